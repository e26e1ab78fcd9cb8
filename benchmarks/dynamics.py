"""What a rule selects as training goes on: how well it covers, what it shares, what it skips.

``python -m benchmarks.dynamics --out JSON`` checks how many examples random subsets never select
against the closed form; everything else here is recorded by the cells of ``benchmarks.train``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augsubset import LastLayerGradients, MaxLossSelector, RandomSelector, Selection
from augsubset.selection import budget_from_fraction
from benchmarks.datasets import FolderData, ImageData, tail_classes
from benchmarks.harness import environment

__all__ = [
    "Recorded",
    "Track",
    "as_columns",
    "coverage",
    "gini",
    "gradient_norms",
    "never_selected",
    "norm_of_sum",
    "top_overlap",
]

# Shares of the data whose most selected are compared.
_TOP = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_GALLERY = 10


def coverage(gradients: LastLayerGradients, selection: Selection) -> dict[str, float]:
    """Return how well a selection stands for all gradients, whatever rule made it.

    ``error``: the sum over examples of the distance to the nearest selected one of their class;
    where a class has none, of their norms, as if nothing stood for them. ``gradient_error``: the
    norm of what the selection's own weights miss of the summed gradients. ``nearest_error``: the
    same with cluster sizes for weights. All over the summed norms, so that 1 is as good as nothing.
    """
    norms = gradient_norms(gradients)
    is_selected = torch.zeros(len(gradients), dtype=torch.bool)
    is_selected[selection.indices] = True
    error, sizes = 0.0, torch.zeros(len(gradients), dtype=torch.float64)
    for c in torch.unique(gradients.labels):
        (rows,) = torch.nonzero(gradients.labels == c, as_tuple=True)
        picks = rows[is_selected[rows]]
        if len(picks) == 0:
            error += float(norms[rows].sum())
            continue
        distances, nearest = gradients.distances(rows, picks).double().min(1)
        error += float(distances.sum())
        sizes.index_add_(0, picks[nearest], torch.ones(len(rows), dtype=torch.float64))
    scale, ones = float(norms.sum()), torch.ones_like(sizes)
    own = torch.zeros_like(sizes).index_add(0, selection.indices, selection.weights.double())
    return {
        "error": error / scale,
        "gradient_error": norm_of_sum(gradients, ones - own) / scale,
        "nearest_error": norm_of_sum(gradients, ones - sizes) / scale,
        "gradient_norm": norm_of_sum(gradients, ones) / scale,
        "summed_norms": scale,
    }


def gradient_norms(gradients: LastLayerGradients) -> Tensor:
    """Return the norm of each gradient, over all layers that were probed. ``(n,)`` float64."""
    squares = torch.zeros(len(gradients), dtype=torch.float64)
    for left, right in _layers(gradients):
        squares += left.square().sum(1) * (1.0 if right is None else right.square().sum(1))
    return squares.sqrt()


def norm_of_sum(gradients: LastLayerGradients, weights: Tensor) -> float:
    """Return the norm of the weighted sum of the gradients, over all layers that were probed."""
    squares = 0.0
    for left, right in _layers(gradients):
        total = weights @ left if right is None else (weights[:, None] * left).T @ right
        squares += float(total.square().sum())
    return math.sqrt(squares)


def _layers(gradients: LastLayerGradients) -> list[tuple[Tensor, Tensor | None]]:
    pairs = [(gradients.residual, gradients.inputs), *gradients.earlier]
    return [(left.double(), None if right is None else right.double()) for left, right in pairs]


def top_overlap(mine: Tensor, others: Tensor, count: int) -> float:
    """Return the expected share that two tops of ``count`` have in common, ties broken at random.

    Args:
        mine: How often each example was selected. ``(n,)``
        others: Likewise by another rule.
        count: Size of the tops.
    """

    def membership(times: Tensor) -> Tensor:
        """Return the probability of each example to be in the top."""
        last = times.sort(descending=True).values[count - 1]
        above, at = times > last, times == last
        return above.double() + at.double() * ((count - int(above.sum())) / int(at.sum()))

    return float((membership(mine) * membership(others)).sum()) / count


def gini(times: Tensor) -> float:
    """Return Gini's coefficient of how often examples were selected.

    0: all as often; 1 - k / n: k of n always, and the others never.
    """
    rank = torch.arange(1, len(times) + 1, dtype=torch.float64)
    weighted = float((rank * times.sort().values).sum())
    n, total = len(times), float(times.sum())
    return (2 * weighted - (n + 1) * total) / (n * total)


def as_columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return entries of the same names as a list for each name."""
    return {name: [each[name] for each in entries] for name in (entries[0] if entries else ())}


class Track:
    """What one rule selected, over a run.

    Args:
        data: What it selects from.
    """

    def __init__(self, data: ImageData | FolderData) -> None:
        self._labels, self._clean = data.y_train, data.clean
        tail = tail_classes(self._labels, data.num_classes)
        self._is_tail = None if tail is None else torch.isin(self._labels, tail)
        self._times = torch.zeros(len(self._labels), dtype=torch.int64)
        self._max_loss_times = torch.zeros_like(self._times)
        self._entries: list[dict[str, Any]] = []

    def note(self, found: Selection, gradients: LastLayerGradients | None, epoch: int) -> None:
        """Add a selection; with gradients also how well it covers, and what max-loss would take."""
        self._times[found.indices] += 1
        entry: dict[str, Any] = {
            "epoch": epoch,
            "num_selected": len(found),
            "effective_sample_size": found.effective_sample_size,
            "selected_so_far": float((self._times > 0).double().mean()),
        }
        if self._clean is not None:
            is_clean = (self._clean == self._labels)[found.indices].double()
            entry["clean_share"] = float(is_clean.mean())
            entry["clean_weight"] = float((is_clean * found.weights).sum() / found.weights.sum())
        if self._is_tail is not None:
            entry["tail_recall"] = float(self._is_tail[found.indices].sum() / self._is_tail.sum())
        if gradients is not None:
            hardest = MaxLossSelector().select(gradients, budget=len(found), seed=0, epoch=epoch)
            self._max_loss_times[hardest.indices] += 1
            both = torch.isin(found.indices, hardest.indices)
            entry["overlap_with_max_loss"] = float(both.double().mean())
            entry.update(coverage(gradients, found))
        self._entries.append(entry)

    def record(self) -> dict[str, Any]:
        """Return what there is to say of the whole run."""
        n = len(self._times)
        summary: dict[str, Any] = {
            "selections": as_columns(self._entries),
            "never_selected": float((self._times == 0).double().mean()),
            "times_selected": torch.bincount(self._times).tolist(),
            "gini": gini(self._times),
            "most_selected": _most(self._times),
        }
        if bool(self._max_loss_times.any()):
            summary["most_selected_by_max_loss"] = _most(self._max_loss_times)
            summary["top_overlap"] = {
                str(share): top_overlap(self._times, self._max_loss_times, round(share * n))
                for share in _TOP
                if round(share * n) > 0
            }
        return summary


class Recorded:
    """A rule, and a record of what it selected and of what others would have.

    Args:
        rule: Any selector: the one that the run follows.
        data: What it selects from.
        observe: Probe for every selection, whether the rule needs it or not, and measure coverage
            and overlap with max-loss. The time of selections is then not the rule's own.
        shadows: Rules, each with a share of the data, that are asked at every selection what they
            would select of the same gradients: compared on one model, whose training they do not
            touch. They are observed, and so is the rule.
    """

    def __init__(
        self,
        rule: Any,
        data: ImageData | FolderData,
        observe: bool = False,
        shadows: Mapping[str, tuple[Any, float]] | None = None,
    ) -> None:
        self._rule = rule
        self._shadows = {} if shadows is None else dict(shadows)
        self._observe = observe or bool(self._shadows)
        self._track = Track(data)
        self._shadow_tracks = {name: Track(data) for name in self._shadows}
        self._num_classes = data.num_classes

    @property
    def needs_gradients(self) -> bool:
        """Whether a probe runs."""
        needs: bool = self._rule.needs_gradients
        return self._observe or needs

    def select(
        self, gradients: LastLayerGradients, *, budget: int, seed: int, epoch: int
    ) -> Selection:
        """Return the rule's selection, recorded."""
        found: Selection = self._rule.select(gradients, budget=budget, seed=seed, epoch=epoch)
        seen = gradients if self._observe else None
        self._track.note(found, seen, epoch)
        for name, (rule, fraction) in self._shadows.items():
            count = budget_from_fraction(fraction, len(gradients), self._num_classes)
            shadow = rule.select(gradients, budget=count, seed=seed, epoch=epoch)
            self._shadow_tracks[name].note(shadow, seen, epoch)
        return found

    def record(self) -> dict[str, Any]:
        """Return what there is to say of the whole run."""
        shadows = {name: track.record() for name, track in self._shadow_tracks.items()}
        return {**self._track.record(), **({"shadows": shadows} if shadows else {})}


def _most(times: Tensor) -> list[list[int]]:
    """Return (index, times) of those selected most often, the lowest index first among equals."""
    order = torch.argsort(-times, stable=True)[:_GALLERY]
    return [[int(i), int(times[i])] for i in order]


def never_selected(
    fraction: float, num_examples: int, epochs: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Return the share that random subsets, drawn anew each epoch, never select.

    In closed form (1 - fraction)^epochs: an epoch's draw is without replacement, epochs are
    independent.
    """
    budget = round(fraction * num_examples)
    unprobed = LastLayerGradients.unprobed(num_examples)
    found = []
    for seed in seeds:
        seen = np.zeros(num_examples, bool)
        for epoch in range(epochs):
            chosen = RandomSelector().select(unprobed, budget=budget, seed=seed, epoch=epoch)
            seen[chosen.indices.numpy()] = True
        found.append(float(1 - seen.mean()))
    return {
        "fraction": fraction,
        "num_examples": num_examples,
        "epochs": epochs,
        "measured": found,
        "closed_form": (1 - budget / num_examples) ** epochs,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dynamics", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--num-examples", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found = []
    for fraction in (0.002, 0.005):
        each = never_selected(fraction, given.num_examples, given.epochs, range(5))
        measured = ", ".join(f"{100 * share:.2f}" for share in each["measured"])
        print(
            f"{fraction:.1%} over {given.epochs} epochs: never selected {measured} % "
            f"(closed form {100 * each['closed_form']:.2f} %)"
        )
        found.append(each)
    if given.out is not None:
        record = {"environment": environment(), "never_selected": found}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
