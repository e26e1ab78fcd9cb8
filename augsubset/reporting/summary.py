"""From a loader's state to the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from augsubset.reporting.savings import EpochCounts, Savings, epoch_counts
from augsubset.sampling import EpochPlan

__all__ = ["BUCKETS", "summary"]

BUCKETS = ("selection", "loading", "augmentation", "step")
_SETTING = ("budget", "copies", "raw", "mode", "layout", "batch_size", "seed")


def summary(state: Mapping[str, Any], *, num_listed: int = 12) -> dict[str, Any]:
    """Return what a report says, as JSON can hold it.

    Args:
        state: Of :meth:`~augsubset.SubsetAugmentLoader.state_dict`, at any point of a run.
        num_listed: Most, least and never selected examples to name.

    Returns:
        ``num_examples``, ``class_sizes``, ``setting``; ``selections`` and ``epochs`` as in the
        loader's history; ``times_selected``: how many examples were selected 0, 1, 2, ... times;
        ``most``, ``least``, ``never``: examples, as dicts of index, times and mass; ``seconds`` by
        bucket; ``savings``.
    """
    history, tally = state["history"], state["tally"]
    times, mass = tally["times"].long(), tally["mass"]
    epochs = [dict(entry) for entry in history if entry["event"] == "epoch"]
    selections = [dict(entry) for entry in history if entry["event"] == "selection"]

    def listed(rows: torch.Tensor) -> list[dict[str, Any]]:
        return [
            {"index": row, "times": int(times[row]), "mass": round(float(mass[row]), 6)}
            for row in rows[:num_listed].tolist()
        ]

    # Among examples selected as often, those that weighed most come first.
    rank = torch.argsort(mass, descending=True, stable=True)
    rank = rank[torch.argsort(times[rank], descending=True, stable=True)]
    chosen = rank[times[rank] > 0]
    never = torch.nonzero(times == 0).squeeze(1)
    spread = never[torch.linspace(0, max(len(never) - 1, 0), min(len(never), num_listed)).long()]
    seconds = {
        bucket: sum(entry[f"{bucket}_seconds"] for entry in epochs)
        for bucket in (*BUCKETS, "total")
    }
    return {
        "version": 1,
        "num_examples": len(times),
        "class_sizes": list(tally["class_sizes"]),
        # The batch size is known here where the order depends on it.
        "setting": {name: state[name] for name in _SETTING if state[name] is not None},
        "selections": selections,
        "epochs": epochs,
        "times_selected": torch.bincount(times).tolist(),
        "num_never": len(never),
        "most": listed(chosen),
        "least": listed(chosen.flip(0)),
        "never": listed(spread),
        "seconds": seconds,
        "savings": _savings(state, epochs, seconds),
    }


def _savings(
    state: Mapping[str, Any], epochs: list[dict[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any] | None:
    """Return what the run took beside what augmenting everything would have, at its own prices.

    A fetched example, a row and a copy each have one: what the run waited for loading, what its
    steps and all that is done to every row took, and what the strong policy took.
    """
    rows = sum(entry["num_rows"] for entry in epochs)
    copies = sum(entry["num_copies"] for entry in epochs)
    if not copies:
        return None
    plan = EpochPlan(**{field.name: state[field.name] for field in fields(EpochPlan)})
    n = plan.num_examples
    found, of_all = epoch_counts(plan, plan.budget), epoch_counts(plan, n)
    passes = rows / found.rows
    # States saved before the strong policy was timed apart have all augmentation as one.
    strong = sum(entry.get("strong_seconds", entry["augmentation_seconds"]) for entry in epochs)
    per_fetched = seconds["loading"] / (passes * found.fetched)
    per_row = (seconds["step"] + seconds["augmentation"] - strong) / rows
    per_copy = strong / copies

    def an_epoch(counts: EpochCounts) -> float:
        return float(
            counts.fetched * per_fetched + counts.rows * per_row + counts.copies * per_copy
        )

    none, in_place = an_epoch(EpochCounts(n, n, 0)), an_epoch(EpochCounts(n, n, n))
    savings = Savings(seconds["total"], passes * an_epoch(of_all), in_place / none - 1)
    return {
        "num_rows": rows,
        "num_rows_of_all": round(passes * of_all.rows),
        "num_copies": copies,
        "num_copies_of_all": round(passes * of_all.copies),
        "seconds": savings.seconds,
        "seconds_of_all": savings.seconds_of_all,
        "speed_up": savings.speed_up,
        "over_none": savings.over_none,
        "pays": savings.pays,
        "verdict": savings.verdict(is_forecast=False),
    }
