"""From a loader's state to the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

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
        "setting": {name: state[name] for name in _SETTING},
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
    """Return what the run spent beside what augmenting everything would have, by a row's price."""
    rows = sum(entry["num_rows"] for entry in epochs)
    copies = sum(entry["num_copies"] for entry in epochs)
    if not copies:
        return None
    passes = rows / _rows_an_epoch(state, state["budget"])
    all_rows = passes * _rows_an_epoch(state, state["num_examples"])
    all_copies = passes * state["copies"] * state["num_examples"]
    per_row = (seconds["loading"] + seconds["step"]) / rows
    estimate = per_row * all_rows + seconds["augmentation"] / copies * all_copies
    return {
        "num_rows": rows,
        "num_rows_of_all": round(all_rows),
        "num_copies": copies,
        "num_copies_of_all": round(all_copies),
        "seconds": seconds["total"],
        "seconds_of_all": estimate,
        "speed_up": estimate / seconds["total"],
    }


def _rows_an_epoch(state: Mapping[str, Any], num_selected: int) -> int:
    """Return the rows of an epoch in which so many are selected."""
    originals = {
        "all": state["num_examples"],
        "unselected": state["num_examples"] - num_selected,
        "selected": num_selected,
        "none": 0,
    }[state["raw"]]
    found: int = originals + num_selected * state["copies"]
    return found
