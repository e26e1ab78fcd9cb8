"""Pictures of how it works: the way through, and what rules select of one class.

``python -m benchmarks.way`` draws ``how-way.svg`` and ``how-selection.svg`` in the docs; the latter
of residuals of a network that was trained on handwritten digits for a moment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from augsubset import (
    CoresetSelector,
    GradientProbe,
    LastLayerGradients,
    MaxLossSelector,
    RandomSelector,
    Selection,
)
from benchmarks.datasets import load_digits_images
from benchmarks.models import build_model
from benchmarks.pictures import new_figure, save_figure

DOCS = Path(__file__).parents[1] / "docs"
CLASS, NUM_EXAMPLES, FRACTION, EPOCHS = 8, 1200, 0.1, 5
RULES = {
    "coreset": CoresetSelector(),
    "random": RandomSelector(),
    "max-loss": MaxLossSelector("class"),
}

# Boxes of the way through: column, row, words. Arrows between them, with what travels.
BOXES = {
    "model": (0, 3, "your model"),
    "probe": (0, 2, "GradientProbe"),
    "rule": (0, 1, "selector"),
    "selection": (0, 0, "Selection"),
    "sampler": (1, 0, "WeightedCoresetSampler"),
    "keyed": (1, 1, "SubsetAugmentDataset\naround your dataset"),
    "augment": (1, 2, "SubsetAugmentLoader\naugments the copies"),
    "loop": (1, 3, "your loop"),
}
ARROWS = (
    ("model", "probe", "logits"),
    ("probe", "rule", "gradients"),
    ("rule", "selection", ""),
    ("selection", "sampler", "indices,\nweights"),
    ("sampler", "keyed", "keys"),
    ("keyed", "augment", "(item, key)"),
    ("augment", "loop", "(x, y)"),
    ("loop", "model", "trains"),
)


def draw_way(path: Path) -> None:
    """Draw the boxes and arrows."""
    figure = new_figure(4.2)
    axis = figure.subplots()
    axis.axis("off")
    axis.set_xlim(-0.4, 1.5)
    axis.set_ylim(-0.4, 3.8)
    outline = {"boxstyle": "round,pad=0.5", "facecolor": "#eef3f8", "edgecolor": "#4477aa"}
    drawn = {
        name: axis.text(column, row, words, ha="center", va="center", size=10, bbox=outline)
        for name, (column, row, words) in BOXES.items()
    }
    for first, second, what in ARROWS:
        (x0, y0, _), (x1, y1, _) = BOXES[first], BOXES[second]
        axis.annotate(
            "",
            xy=(x1, y1),
            xytext=(x0, y0),
            arrowprops={
                **{"arrowstyle": "-|>", "color": "#4477aa", "shrinkA": 3, "shrinkB": 3},
                "patchA": drawn[first].get_bbox_patch(),
                "patchB": drawn[second].get_bbox_patch(),
            },
        )
        beside = 0.04 if y0 != y1 else 0.0
        axis.text(
            (x0 + x1) / 2 + beside,
            (y0 + y1) / 2 + (0.08 if y0 == y1 else 0.0),
            what,
            ha="left" if beside else "center",
            va="center" if beside else "bottom",
            size=9,
            color="#555555",
        )
    for column, words in enumerate(("every R epochs", "every batch")):
        axis.text(column, 3.6, words, ha="center", size=10, style="italic")
    save_figure(figure, path)


def trained_on_digits() -> LastLayerGradients:
    """Return the gradients of a small network after a few epochs on digits."""
    data = load_digits_images(NUM_EXAMPLES)
    x, y = data.x_train.float() / 255, data.y_train
    model = build_model("mlp", data, seed=0)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for at in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
    return GradientProbe(model).scan(TensorDataset(x, y))


def of_one_class(gradients: LastLayerGradients) -> LastLayerGradients:
    """Return the gradients of one class, its examples counted from 0."""
    at = (gradients.labels == CLASS).nonzero().squeeze(1)
    return LastLayerGradients(
        residual=gradients.residual[at],
        inputs=None,
        labels=gradients.labels[at],
        indices=torch.arange(len(at)),
        losses=gradients.losses[at],
    )


def nearest(gradients: LastLayerGradients, selection: Selection) -> tuple[Tensor, float]:
    """Return the nearest selected example of each, and the sum of distances to it."""
    everybody = torch.arange(len(gradients))
    distance, pick = gradients.distances(everybody, selection.indices).min(1)
    return selection.indices[pick], float(distance.sum())


def draw_selection(
    gradients: LastLayerGradients, selections: Mapping[str, Selection], path: Path
) -> None:
    """Draw the residuals on their leading components, and what each rule selects."""
    centred = gradients.residual.double() - gradients.residual.double().mean(0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    at = centred @ components[:2].T
    figure = new_figure(2.5)
    axes: Any = figure.subplots(1, len(selections), sharex=True, sharey=True)
    for axis, (name, selection) in zip(axes, selections.items(), strict=True):
        pick, cost = nearest(gradients, selection)
        for example, stands_for_it in zip(at, at[pick], strict=True):
            ends = torch.stack([example, stands_for_it]).T
            axis.plot(*ends, color="#bbbbbb", linewidth=0.6, zorder=1)
        axis.scatter(*at.T, s=6, color="#777777", zorder=2)
        weights = torch.bincount(pick, minlength=len(at))[selection.indices]
        chosen = at[selection.indices]
        axis.scatter(*chosen.T, s=12 + 6 * weights, color="#4477aa", alpha=0.7, zorder=3)
        axis.set_title(f"{name}\n{len(chosen)} of {len(at)}, cost {cost:.1f}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    save_figure(figure, path)


def selections_of(gradients: LastLayerGradients) -> dict[str, Selection]:
    """Return what each rule selects of as many examples."""
    budget = max(1, round(FRACTION * len(gradients)))
    return {
        name: rule.select(gradients, budget=budget, seed=0, epoch=0) for name, rule in RULES.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.way", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    draw_way(given.out / "how-way.svg")
    gradients = of_one_class(trained_on_digits())
    draw_selection(gradients, selections_of(gradients), given.out / "how-selection.svg")


if __name__ == "__main__":
    main()
