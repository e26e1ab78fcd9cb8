"""What a run selected so far: how often each example, and what changed from time to time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from augsubset.selection import Selection
from augsubset.utils.checks import check_state

__all__ = ["Tally"]


class Tally:
    """Counts selections, example by example.

    Args:
        labels: Class of each example; all zeros where there are no classes. ``(n,)`` int64

    Attributes:
        times: How often each was selected. ``(n,)`` int32
        mass: What it weighed in all. ``(n,)`` float64
        class_sizes: Examples of each class.
    """

    def __init__(self, labels: Tensor) -> None:
        n = len(labels)
        self._labels = labels
        self.class_sizes: list[int] = torch.bincount(labels).tolist()
        self.times = torch.zeros(n, dtype=torch.int32)
        self.mass = torch.zeros(n, dtype=torch.float64)
        self._previous = torch.zeros(n, dtype=torch.bool)

    def add(self, selection: Selection) -> dict[str, Any]:
        """Count a selection, and return what it is beside those before.

        Returns:
            ``overlap``: share of it that was in the one before, ``None`` for the first;
            ``covered``: share of all examples that were selected at least once; ``class_counts``:
            selected examples of each class.
        """
        rows = selection.indices
        is_first = not bool(self._previous.any())
        overlap = None if is_first else float(self._previous[rows].double().mean())
        self.times[rows] += 1
        self.mass[rows] += selection.weights
        self._previous = torch.zeros_like(self._previous)
        self._previous[rows] = True
        counts = torch.bincount(self._labels[rows], minlength=len(self.class_sizes))
        return {
            "overlap": overlap,
            "covered": float((self.times > 0).double().mean()),
            "class_counts": counts.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counts so far."""
        return {
            "times": self.times,
            "mass": self.mass,
            "previous": self._previous,
            "class_sizes": self.class_sizes,
        }

    def checked(self, state: Any) -> dict[str, Tensor]:
        """Return a saved state as it will be taken over, or refuse it."""
        check_state("tally", state, ("times", "mass", "previous"))
        kept = {"times": self.times, "mass": self.mass, "previous": self._previous}
        for name, mine in kept.items():
            value = state[name]
            if (
                not isinstance(value, Tensor)
                or value.shape != mine.shape
                or value.dtype != mine.dtype
            ):
                raise ValueError(
                    f"tally must hold {name} of shape {tuple(mine.shape)} and dtype {mine.dtype}."
                )
        return {name: state[name].clone() for name in kept}

    def take(self, checked: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`checked` returned."""
        self.times, self.mass = checked["times"], checked["mass"]
        self._previous = checked["previous"]
