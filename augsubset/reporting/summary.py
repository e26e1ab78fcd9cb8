"""Summarise a loader's state as the figures of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from augsubset.reporting.cost_model import EpochCounts, Savings, count_epoch
from augsubset.sampling import EpochPlan

__all__ = ["BUCKETS", "refuse_malformed_states", "summarize"]

BUCKETS = ("selection", "loading", "augmentation", "step")
_SETTING = ("budget", "copies", "originals", "weights", "layout", "batch_size", "seed")


_MALFORMED = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError),
    ValueError,
)


@contextmanager
def refuse_malformed_states() -> Iterator[None]:
    """Raise one kind of error for whatever a malformed state makes the block raise.

    Nothing beside a state is read here, and a check of every value would be as long as its use.

    Raises:
        ValueError: In place of any of these.
    """
    try:
        yield
    except _MALFORMED as error:
        raise ValueError(
            "state must be as a loader's state_dict() returned it, got one that cannot be reported "
            f"({type(error).__name__}: {error}). It was altered, damaged or of another version."
        ) from error


@refuse_malformed_states()
def summarize(state: Mapping[str, Any], *, num_listed: int = 12) -> dict[str, Any]:
    """Return the figures of a report; JSON can hold them.

    Args:
        state: From :meth:`~augsubset.SubsetAugmentLoader.state_dict`, at any point of a run.
        num_listed: Number of most, least and never selected examples to list.

    Returns:
        ``num_examples``, ``classes``, ``class_sizes``, ``setting``; ``selections`` and
        ``epochs`` as in the loader's history; ``times_selected``: how many examples were selected
        0, 1, 2, ... times; ``most``, ``least``, ``never``: examples, as dicts of index, times
        selected and mass, the sum of weights; ``seconds`` by bucket; ``savings``, ``None`` before
        the first copy.

    Raises:
        ValueError: If the state is malformed.
    """
    history, counts = state["history"], state["counts"]
    times, mass = counts["times"].long(), counts["mass"]
    epochs = [dict(entry) for entry in history if entry["event"] == "epoch"]
    selections = [dict(entry) for entry in history if entry["event"] == "selection"]

    def list_examples(rows: torch.Tensor) -> list[dict[str, Any]]:
        return [
            {"index": row, "times": int(times[row]), "mass": round(float(mass[row]), 6)}
            for row in rows[:num_listed].tolist()
        ]

    # Examples selected equally often are ranked by the sum of their weights.
    rank = torch.argsort(mass, descending=True, stable=True)
    rank = rank[torch.argsort(times[rank], descending=True, stable=True)]
    chosen = rank[times[rank] > 0]
    never = torch.nonzero(times == 0).squeeze(1)
    sample = never[torch.linspace(0, max(len(never) - 1, 0), min(len(never), num_listed)).long()]
    classes = dict(zip(counts["classes"], counts["class_sizes"], strict=True))
    seconds = {
        bucket: sum(entry[f"{bucket}_seconds"] for entry in epochs)
        for bucket in (*BUCKETS, "total")
    }
    return {
        "version": 1,
        "num_examples": len(times),
        "classes": list(classes),
        "class_sizes": list(classes.values()),
        # The batch size is in the state only if the order depends on it.
        "setting": {name: state[name] for name in _SETTING if state[name] is not None},
        "selections": selections,
        "epochs": epochs,
        "times_selected": torch.bincount(times).tolist(),
        "num_never": len(never),
        "most": list_examples(chosen),
        "least": list_examples(chosen.flip(0)),
        "never": list_examples(sample),
        "seconds": seconds,
        "savings": _compute_savings(state, epochs, seconds),
    }


def _compute_savings(
    state: Mapping[str, Any], epochs: list[dict[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any] | None:
    """Compare the run's time with that of augmenting everything at the same unit costs.

    The unit costs are, per fetched item, the time spent waiting for data; per row, the steps and
    all augmentation but the strong policy's; per copy, the strong policy.
    """
    rows = sum(entry["num_rows"] for entry in epochs)
    copies = sum(entry["num_copies"] for entry in epochs)
    if not copies:
        return None
    plan = EpochPlan(**{field.name: state[field.name] for field in fields(EpochPlan)})
    n = plan.num_examples
    subset, full = count_epoch(plan, plan.budget), count_epoch(plan, n)
    passes = rows / subset.rows
    strong = sum(entry["strong_seconds"] for entry in epochs)
    per_fetched = seconds["loading"] / (passes * subset.fetched)
    per_row = (seconds["step"] + seconds["augmentation"] - strong) / rows
    per_copy = strong / copies

    def price(counts: EpochCounts) -> float:
        return float(
            counts.fetched * per_fetched + counts.rows * per_row + counts.copies * per_copy
        )

    none, in_place = price(EpochCounts(n, n, 0)), price(EpochCounts(n, n, n))
    savings = Savings(seconds["total"], passes * price(full), in_place / none - 1)
    return {
        "num_rows": rows,
        "num_rows_full": round(passes * full.rows),
        "num_copies": copies,
        "num_copies_full": round(passes * full.copies),
        "seconds": savings.seconds,
        "full_seconds": savings.full_seconds,
        "speed_up": savings.speed_up,
        "in_place_overhead": savings.in_place_overhead,
        "pays": savings.pays,
        "verdict": savings.verdict(is_forecast=False),
    }
