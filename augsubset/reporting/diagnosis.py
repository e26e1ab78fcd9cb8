"""From measured unit costs to a diagnosis: a table, a verdict, advice and a warning."""

from __future__ import annotations

from dataclasses import dataclass

from augsubset.reporting.cost_model import PARTS, EpochCost, EpochCounts, Savings, count_epoch
from augsubset.sampling import EpochPlan

__all__ = ["Diagnosis", "Measured", "Settings", "diagnose"]

_MANY_ROWS = 0.1  # extra rows, as a share of the examples, from which fewer would help
_UNEVEN = 1.3  # warn above it: more cost accuracy in most settings (docs/results.md)


@dataclass(frozen=True)
class Measured:
    """Seconds that each part of a loop takes when it runs alone, on one rank.

    Args:
        loading: Fetching and collating one example.
        augmentation: The strong policy, per copy.
        step: The transfer, the base policy, forward and backward pass, per row.
        probe: Probing, per selection.
        solve: Solving, per selection.
        effective_sample_size: Of the current selection, or of one made from the measured rows.
        num_selected: Number of examples in that selection.
        weight_kept: Share of the sum of cluster sizes that a cap on the weights leaves.
    """

    loading: float
    augmentation: float
    step: float
    probe: float
    solve: float
    effective_sample_size: float
    num_selected: int
    weight_kept: float = 1.0


@dataclass(frozen=True)
class Settings:
    """The settings on which costs and advice depend.

    Args:
        plan: Shape of an epoch.
        every: Epochs between selections, R.
        num_workers: Worker processes.
        batch_size: Rows per batch.
        num_replicas: Ranks that share an epoch.
        is_resident: Whether the data is on the device.
        background: Whether solves run in a thread.
        recycle: Epochs for which training-time logits are reused; ``None``: never.
        max_weight: Cap on cluster sizes, in multiples of their mean; ``None``: no cap.
    """

    plan: EpochPlan
    every: int
    num_workers: int
    batch_size: int
    num_replicas: int
    is_resident: bool
    background: bool
    recycle: int | None
    max_weight: float | None


@dataclass(frozen=True)
class Diagnosis:
    """Cost of an epoch, whether a subset pays off, and what to change; ``print`` it.

    Args:
        none: An epoch of originals, without strong augmentation.
        subset: With the loader's own settings.
        full: With as many copies of every example.
        in_place: Every example augmented once, in place of the original.
        settings: The loader's.
        effective_sample_size: Of the latest selection, or of one made from the measured rows.
        num_selected: Number of examples in that selection.
        weight_kept: Share of the sum of cluster sizes that ``max_weight`` leaves.
    """

    none: EpochCost
    subset: EpochCost
    full: EpochCost
    in_place: EpochCost
    settings: Settings
    effective_sample_size: float
    num_selected: int
    weight_kept: float = 1.0

    @property
    def savings(self) -> Savings:
        """Time saved per epoch, defined as in the report."""
        overhead = self.in_place.total / self.none.total - 1
        return Savings(self.subset.total, self.full.total, overhead)

    @property
    def speed_up(self) -> float:
        """Time of augmenting everything, divided by the subset's."""
        return self.savings.speed_up

    @property
    def pays(self) -> bool:
        """Whether the subset saves enough, and augmenting everything in place is not cheap."""
        return self.savings.pays

    @property
    def sentence(self) -> str:
        """The verdict, and what to change first."""
        return f"{self.savings.verdict(is_forecast=True)} Change first: {self.advice}."

    @property
    def advice(self) -> str:
        """The setting to change first, or ``nothing`` and why."""
        plan = self.settings.plan
        is_everything = plan.budget == plan.num_examples
        if self.savings.is_cheap_in_place:
            if not is_everything:
                return 'fraction=, to 1.0 with originals="none", copies=1'
            if plan.originals != "none":
                return 'originals=, to "none" with copies=1'
            if plan.copies > 1:
                return "copies=, to 1"
            return "nothing, since every example is augmented in place"
        if is_everything:
            return "fraction=, which selects everything"
        return _advise(self.subset.bottleneck, self.settings)

    @property
    def unevenness(self) -> float:
        """How unevenly the rows of an epoch count: N sum(w^2) / (sum w)^2, 1 if all count the same.

        Copies that are drawn in proportion to cluster sizes count as if these were their weights.
        """
        plan = self.settings.plan
        if plan.weights == "uniform":
            return 1.0
        n, k, r = plan.num_examples, plan.budget, plan.copies
        mass = k * r if plan.weights == "resample" else self.weight_kept * n  # of all copies
        squares = mass**2 / (self.effective_sample_size / self.num_selected * k)  # if r were 1
        count = {"all": n, "unselected": n - k, "selected": k, "none": 0}[plan.originals]
        total, total_squares = mass + count, squares / r + count
        if plan.originals == "selected" and plan.weights == "cluster":  # these have weights, too
            total, total_squares = 2 * mass, squares / r + squares
        return (count + k * r) * total_squares / total**2

    @property
    def warning(self) -> str | None:
        """A warning about uneven weights, if there is one."""
        if self.unevenness <= _UNEVEN:
            return None
        cap = self.settings.max_weight
        change = "max_weight=" if cap is None else f"max_weight= below {cap:g}"
        return (
            f"Weights are as uneven as if {1 / self.unevenness:.0%} of an epoch's samples counted: "
            "that costs accuracy where labels are correct. Consider "
            f'weights="uniform" or CoresetSelector({change}).'
        )

    @property
    def table(self) -> str:
        """Seconds per epoch by part, and how the total comes about."""
        costs = {
            name: getattr(self, name.replace(" ", "_"))
            for name in ("none", "subset", "full", "in place")
        }
        columns = [*PARTS, "total"]
        caption = "total: the sum of the five parts"
        if any(cost.overlap for cost in costs.values()):
            columns.insert(-1, "overlap")
            caption += f" minus the overlap, in which {self._describe_overlap()}"
        lines = ["seconds per epoch" + "".join(f"{each:>14}" for each in columns)]
        for name, cost in costs.items():
            # Shown as a negative number, so that the columns of a row add up to its total.
            values = {each: getattr(cost, each) for each in columns}
            if "overlap" in values:
                values["overlap"] = -cost.overlap or 0.0
            lines.append(f"{name:<17}" + "".join(f"{value:>14.3f}" for value in values.values()))
        every = self.settings.every
        averaged = "" if every == 1 else f"; probe and solve are averaged over every={every} epochs"
        return "\n".join([*lines, f"{caption}{averaged}."])

    def _describe_overlap(self) -> str:
        """Return which parts run at the same time."""
        found = []
        if self.settings.num_workers:
            found.append("workers load during augmentation and steps")
        if self.settings.background:
            found.append("a thread solves during training")
        return " and ".join(found)

    def __str__(self) -> str:
        lines = [self.table, self.sentence, self.warning]
        return "\n".join(line for line in lines if line is not None)


def diagnose(measured: Measured, settings: Settings) -> Diagnosis:
    """Return a diagnosis, computed from the unit costs of a loop's parts."""
    plan, n = settings.plan, settings.plan.num_examples

    def price(counts: EpochCounts, selections: float = 0.0) -> EpochCost:
        fetched, rows, copies = (count / settings.num_replicas for count in counts)
        return EpochCost(
            loading=fetched * measured.loading,
            augmentation=copies * measured.augmentation,
            step=rows * measured.step,
            probe=selections * measured.probe,
            solve=selections * measured.solve,
            has_workers=settings.num_workers > 0,
            background_solves=selections if settings.background else 0.0,
        )

    return Diagnosis(
        none=price(EpochCounts(n, n, 0)),
        subset=price(count_epoch(plan, plan.budget), 1 / settings.every),
        full=price(count_epoch(plan, n)),
        in_place=price(EpochCounts(n, n, n)),
        settings=settings,
        effective_sample_size=measured.effective_sample_size,
        num_selected=measured.num_selected,
        weight_kept=measured.weight_kept,
    )


def _advise(part: str, settings: Settings) -> str:
    """Return the setting to change first if this part is the bottleneck of the subset's epoch."""
    plan = settings.plan
    has_many_rows = len(plan) > (1 + _MANY_ROWS) * plan.num_examples
    if part == "augmentation":
        return "fraction=, or a policy of fewer operations"
    if part == "probe":
        other = ", or LoaderOptions(recycle=...) to probe fewer"
        return "every=" + (other if settings.recycle is None else "")
    if part == "solve":
        return "every=" if settings.background else "every=, or LoaderOptions(background=True)"
    if part == "step":
        if not has_many_rows:
            return "nothing, since most steps are those of an epoch without augmentation"
        setting = "copies=" if plan.copies > 1 else "fraction="
        return f"{setting}, since extra copies are extra steps"
    if settings.is_resident:
        return "nothing, since the data is on the device already"
    if settings.num_workers == 0:
        return "num_workers= of your DataLoader, since the main process loads the data"
    can_be_grouped = plan.layout == "mixed" and settings.batch_size > plan.copies
    if has_many_rows and can_be_grouped:
        return 'layout=, to "grouped", which fetches an example once for all its copies'
    return f"num_workers= of your DataLoader, to more than {settings.num_workers}"
