"""What a subset saves: one definition, for the doctor's forecast and the report's account.

The time of epochs with the subset, probing and solving included, is held against that of the same
epochs with as many copies of every example and no selection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from augsubset.sampling import EpochPlan

__all__ = ["CHEAP_UP_TO", "PAYS_FROM", "EpochCounts", "Savings", "epoch_counts"]

PAYS_FROM = 1.2  # times faster than augmenting everything
CHEAP_UP_TO = 0.1  # what augmenting everything in place adds to no augmentation, as a share


class EpochCounts(NamedTuple):
    """What an epoch holds over all ranks.

    Args:
        fetched: Items of the dataset: each row's own, or one for an example's rows in a batch.
        rows: What goes through the model, fillers included.
        copies: Augmented rows.
    """

    fetched: int
    rows: int
    copies: int


def epoch_counts(plan: EpochPlan, num_selected: int) -> EpochCounts:
    """Return what an epoch of a plan would hold with so many selected."""
    rows, copies = len(replace(plan, budget=num_selected)), plan.copies * num_selected
    if plan.layout == "mixed":
        return EpochCounts(rows, rows, copies)
    n, k = plan.num_examples, num_selected
    examples = {"all": n, "unselected": n, "selected": k, "none": k}[plan.raw]
    fillers = rows - plan.num_rows(num_selected)
    return EpochCounts(examples + fillers, rows, copies)


@dataclass(frozen=True)
class Savings:
    """Seconds with a subset beside those of augmenting everything.

    Args:
        seconds: With the subset, probing and solving included.
        seconds_of_all: With as many copies of every example, and no selection.
        over_none: What one augmentation of every example, in place of it, adds to an epoch without
            strong augmentation, as a share of that.
    """

    seconds: float
    seconds_of_all: float
    over_none: float

    @property
    def speed_up(self) -> float:
        """Time of augmenting everything over the subset's."""
        return self.seconds_of_all / self.seconds

    @property
    def is_cheap_in_place(self) -> bool:
        """Whether augmenting every example in place is as good as free."""
        return self.over_none <= CHEAP_UP_TO

    @property
    def pays(self) -> bool:
        """Whether the subset saves enough, and augmenting all in place is not as good as free."""
        return self.speed_up >= PAYS_FROM and not self.is_cheap_in_place

    def verdict(self, *, is_forecast: bool) -> str:
        """Say in a sentence what is saved, or why it does not pay.

        Args:
            is_forecast: Of epochs to come; else of a run that was.
        """
        past = "" if is_forecast else "have "
        in_place = f"augmenting every example in place instead would {past}cost"
        if self.pays:
            does = "would save" if is_forecast else "saved about"
            return (
                f"Subset augmentation {does} {1 - 1 / self.speed_up:.0%} of the time of augmenting "
                f"everything with as many copies ({self.speed_up:.1f}x); {in_place} "
                f"{self.over_none:.0%} more than no augmentation."
            )
        does = "would" if is_forecast else "did"
        if self.is_cheap_in_place:
            why = f"{in_place} only {self.over_none:.0%} more than no augmentation"
        else:
            took = "would take" if is_forecast else "took about"
            why = (
                f"it {took} {1 / self.speed_up:.0%} of the time of augmenting everything with as "
                "many copies"
            )
        return f"Subset augmentation {does} not pay here: {why}."
