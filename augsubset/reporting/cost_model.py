"""The cost of an epoch, part by part, and what a subset saves.

The doctor predicts with this model, and the report applies it to a finished run. Both compare the
time of epochs with a subset, probing and solving included, with that of epochs that hold as many
copies of every example and need no selection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from augsubset.sampling import EpochPlan

__all__ = ["PARTS", "EpochCost", "EpochCounts", "Savings", "count_epoch"]

PARTS = ("loading", "augmentation", "step", "probe", "solve")
_MIN_SPEED_UP = 1.2  # over augmenting everything, from which a subset pays off
_CHEAP_OVERHEAD = 0.1  # of an epoch: up to this, augmenting everything in place is cheap


class EpochCounts(NamedTuple):
    """Number of items, rows and copies in an epoch, over all ranks.

    Args:
        fetched: Dataset items fetched: one per row, or one per example and batch if grouped.
        rows: Rows that go through the model, fillers included.
        copies: Augmented rows.
    """

    fetched: int
    rows: int
    copies: int


def count_epoch(plan: EpochPlan, num_selected: int) -> EpochCounts:
    """Return the counts of an epoch with this many selected examples."""
    rows, copies = len(replace(plan, budget=num_selected)), plan.copies * num_selected
    if plan.layout == "mixed":
        return EpochCounts(rows, rows, copies)
    n, k = plan.num_examples, num_selected
    examples = {"all": n, "unselected": n, "selected": k, "none": k}[plan.originals]
    fillers = rows - plan.num_rows(num_selected)
    return EpochCounts(examples + fillers, rows, copies)


@dataclass(frozen=True)
class EpochCost:
    """Seconds of one epoch on one rank.

    Args:
        loading: Fetching and collating, in workers or in the main process.
        augmentation: The strong policy on copies.
        step: The transfer to the device, the base policy, forward and backward passes.
        probe: Probing, averaged over the epochs between selections.
        solve: Solving, averaged likewise.
        has_workers: Whether loading runs in parallel with augmentation and steps.
        background_solves: Solves per epoch that run in parallel with training.
    """

    loading: float
    augmentation: float
    step: float
    probe: float
    solve: float
    has_workers: bool = False
    background_solves: float = 0.0

    @property
    def selection(self) -> float:
        """Seconds of probing and solving."""
        return self.probe + self.solve

    @property
    def overlap(self) -> float:
        """Seconds during which two parts run at the same time."""
        busy = self.augmentation + self.step
        loading = min(self.loading, busy) if self.has_workers else 0.0
        training = self.loading + busy - loading
        return loading + min(self.solve, self.background_solves * training)

    @property
    def total(self) -> float:
        """Duration of the epoch: the sum of the five parts minus their overlap."""
        parts = self.loading + self.augmentation + self.step + self.probe + self.solve
        return parts - self.overlap

    @property
    def bottleneck(self) -> str:
        """The part without which the epoch would be shortest, never one hidden behind others."""

        def cost_without(part: str) -> tuple[float, float]:
            removed: dict[str, Any] = {part: 0.0}
            return replace(self, **removed).total, -getattr(self, part)

        return min(PARTS, key=cost_without)


@dataclass(frozen=True)
class Savings:
    """Time with a subset, compared with augmenting everything.

    Args:
        seconds: Time with the subset, probing and solving included.
        full_seconds: Time with as many copies of every example, and no selection.
        in_place_overhead: What augmenting every example once, in place of the original, adds to an
            epoch without strong augmentation, as a share of it.
    """

    seconds: float
    full_seconds: float
    in_place_overhead: float

    @property
    def speed_up(self) -> float:
        """Time of augmenting everything, divided by the subset's."""
        return self.full_seconds / self.seconds

    @property
    def is_cheap_in_place(self) -> bool:
        """Whether replacing every original by an augmented copy costs next to nothing."""
        return self.in_place_overhead <= _CHEAP_OVERHEAD

    @property
    def pays(self) -> bool:
        """Whether the subset saves enough, and augmenting everything in place is not cheap."""
        return self.speed_up >= _MIN_SPEED_UP and not self.is_cheap_in_place

    def verdict(self, *, is_forecast: bool) -> str:
        """Return a sentence on how much is saved, or why the subset does not pay off.

        Args:
            is_forecast: Whether it is about epochs to come rather than a finished run.
        """
        past = "" if is_forecast else "have "
        in_place = f"augmenting every example in place instead would {past}cost"
        if self.pays:
            does = "would save" if is_forecast else "saved about"
            return (
                f"Subset augmentation {does} {1 - 1 / self.speed_up:.0%} of the time of augmenting "
                f"everything with as many copies ({self.speed_up:.1f}x); {in_place} "
                f"{self.in_place_overhead:.0%} more than no augmentation."
            )
        does = "would" if is_forecast else "did"
        if self.is_cheap_in_place:
            why = f"{in_place} only {self.in_place_overhead:.0%} more than no augmentation"
        else:
            took = "would take" if is_forecast else "took about"
            why = (
                f"it {took} {1 / self.speed_up:.0%} of the time of augmenting everything with as "
                "many copies"
            )
        return f"Subset augmentation {does} not pay off here: {why}."
