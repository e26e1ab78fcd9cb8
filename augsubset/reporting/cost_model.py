"""From what the parts of a loop take to what epochs cost, a verdict and advice; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from augsubset.reporting.savings import EpochCounts, Savings, epoch_counts
from augsubset.sampling import EpochPlan

__all__ = ["PARTS", "Diagnosis", "EpochCost", "Measured", "Settings", "judge"]

PARTS = ("loading", "augmentation", "step", "probe", "solve")
_FEW_ROWS = 0.1  # share of rows beyond one an example from which it matters to have fewer
_FEW_COUNT = 4  # weights that count like fewer than 1 / this of the selected are warned of
_HEAVY = 10  # a copy that weighs at least as many originals, on average, is warned of


@dataclass(frozen=True)
class Measured:
    """What the parts of a loop take by themselves, in seconds, on one rank.

    Args:
        loading: An example, fetched and collated.
        augmentation: A copy, by the strong policy.
        step: A row: moved, by the base policy, forward and backward.
        probe: Of a selection.
        solve: Of a selection.
        effective_sample_size: Of the weights in force, or of a selection made of what was measured.
        num_sampled: How many examples these weights are of.
        weight_kept: Share of the weights' sum that a cap on them leaves.
    """

    loading: float
    augmentation: float
    step: float
    probe: float
    solve: float
    effective_sample_size: float
    num_sampled: int
    weight_kept: float = 1.0


@dataclass(frozen=True)
class Settings:
    """What a loop was told, where costs and advice depend on it.

    Args:
        plan: Of an epoch.
        every: Epochs between selections, R.
        num_workers: That load.
        batch_size: Rows a batch.
        num_replicas: Ranks that share an epoch.
        world_size: Ranks that share a probe.
        has_rule: Whether the selector leaves anybody out.
        is_resident: Whether data are on the device.
        background: Whether solves run beside training.
        recycle: Epochs that the probe goes back; ``None``: it does not.
        weights: ``"paper"``, ``"unscaled"`` or ``"uniform"``.
        max_weight: Cap, in means; ``None``: no cap.
    """

    plan: EpochPlan
    every: int
    num_workers: int
    batch_size: int
    num_replicas: int
    world_size: int
    has_rule: bool
    is_resident: bool
    background: bool
    recycle: int | None
    weights: str
    max_weight: float | None


@dataclass(frozen=True)
class EpochCost:
    """Seconds of one epoch on one rank.

    Args:
        loading: Fetching and collating, on workers or in the loop.
        augmentation: The strong policy on copies.
        step: Moving, the base policy, forward and backward passes.
        probe: Spread over the epochs between selections.
        solve: Likewise.
        loads_beside: Whether workers load while augmentation and steps run.
        solves_beside: Solves an epoch that run while it trains.
    """

    loading: float
    augmentation: float
    step: float
    probe: float
    solve: float
    loads_beside: bool = False
    solves_beside: float = 0.0

    @property
    def selection(self) -> float:
        """Probe and solve."""
        return self.probe + self.solve

    @property
    def overlap(self) -> float:
        """Seconds in which two parts run at once."""
        busy = self.augmentation + self.step
        loading = min(self.loading, busy) if self.loads_beside else 0.0
        training = self.loading + busy - loading
        return loading + min(self.solve, self.solves_beside * training)

    @property
    def total(self) -> float:
        """The epoch's time: the sum of the five parts less their overlap."""
        parts = self.loading + self.augmentation + self.step + self.probe + self.solve
        return parts - self.overlap

    @property
    def bottleneck(self) -> str:
        """The part without which the epoch would be shortest: none that others hide."""

        def without(part: str) -> tuple[float, float]:
            nothing: dict[str, Any] = {part: 0.0}
            return replace(self, **nothing).total, -getattr(self, part)

        return min(PARTS, key=without)


@dataclass(frozen=True)
class Diagnosis:
    """What epochs would cost and what follows; ``print`` it.

    Args:
        none: An epoch of the originals, without strong augmentation.
        subset: With the loader's own settings.
        full: With as many copies of every example.
        in_place: Every example augmented once, in place of the original.
        settings: The loader's.
        effective_sample_size: Of the latest selection, or of one made of the rows measured; capped
            as in training.
        num_sampled: How many examples that selection is of.
        weight_kept: Share of its weights' sum that ``max_weight=`` leaves.
    """

    none: EpochCost
    subset: EpochCost
    full: EpochCost
    in_place: EpochCost
    settings: Settings
    effective_sample_size: float
    num_sampled: int
    weight_kept: float = 1.0

    @property
    def savings(self) -> Savings:
        """What the subset saves an epoch, as the report has it of a run."""
        over_none = self.in_place.total / self.none.total - 1
        return Savings(self.subset.total, self.full.total, over_none)

    @property
    def speed_up(self) -> float:
        """Time of augmenting everything over the subset's."""
        return self.savings.speed_up

    @property
    def pays(self) -> bool:
        """Whether the subset saves enough, and augmenting all in place is not as good as free."""
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
                return 'selector=, to AllSelector() with raw="none", copies=1'
            if plan.raw != "none":
                return 'raw=, to "none" with copies=1'
            if plan.copies > 1:
                return "copies=, to 1"
            return "nothing, since every example is augmented in place"
        if is_everything and self.settings.has_rule:
            return "fraction=, which leaves nobody out"
        if is_everything:
            return "selector=, since AllSelector() leaves nobody out"
        return _advice_on(self.subset.bottleneck, self.settings)

    @property
    def warning(self) -> str | None:
        """What to know of the weights, if anything."""
        if self.settings.weights == "uniform":
            return None
        return " ".join(filter(None, [self._few_count, self._copies_are_heavy])) or None

    @property
    def _few_count(self) -> str | None:
        """Say that few of the selected carry most of the weight, if they do."""
        settings = self.settings
        if self.effective_sample_size >= self.num_sampled / _FEW_COUNT:
            return None
        known = settings.max_weight
        change = "max_weight=" if known is None else f"max_weight= below {known:g}"
        if settings.plan.mode == "weight":
            change += ' or weights="uniform"'
        return (
            f"The weights count like {self.effective_sample_size:.0f} of {self.num_sampled} "
            f"selected examples: few carry most of it. Consider {change}."
        )

    @property
    def _copies_are_heavy(self) -> str | None:
        """Say that copies outweigh the originals beside them, if they do by far.

        All copies together weigh as much as all originals, however few they are, but for a cap.
        """
        plan = self.settings.plan
        times = self.weight_kept * plan.num_examples / (plan.budget * plan.copies)
        if times < _HEAVY or plan.mode != "weight" or plan.raw not in ("all", "unselected"):
            return None
        return (
            f"On average a copy weighs as much as {times:.0f} originals: few images carry much of "
            'the loss. Consider weights="uniform".'
        )

    @property
    def table(self) -> str:
        """Seconds an epoch, by part, and what the total is."""
        costs = {
            name: getattr(self, name.replace(" ", "_"))
            for name in ("none", "subset", "full", "in place")
        }
        columns = [*PARTS, "total"]
        about = "total: the sum of the five parts"
        if any(cost.overlap for cost in costs.values()):
            columns.insert(-1, "overlap")
            about += f" less the overlap, in which {self._overlapping}"
        lines = ["seconds an epoch" + "".join(f"{each:>14}" for each in columns)]
        for name, cost in costs.items():
            # Subtracted: the columns of a row add up to its total.
            values = {each: getattr(cost, each) for each in columns}
            if "overlap" in values:
                values["overlap"] = -cost.overlap or 0.0
            lines.append(f"{name:<16}" + "".join(f"{value:>14.3f}" for value in values.values()))
        every = self.settings.every
        spread = "" if every == 1 else f"; a probe and a solve are spread over every={every} epochs"
        return "\n".join([*lines, f"{about}{spread}."])

    @property
    def _overlapping(self) -> str:
        """Say what runs beside what."""
        found = []
        if self.settings.num_workers:
            found.append("workers load beside augmentation and step")
        if self.settings.background:
            found.append("a thread solves beside training")
        return " and ".join(found)

    def __str__(self) -> str:
        lines = [self.table, self.sentence, self.warning]
        return "\n".join(line for line in lines if line is not None)


def judge(measured: Measured, settings: Settings) -> Diagnosis:
    """Return what epochs of a loop cost and what follows, from what its parts take.

    Args:
        measured: Seconds.
        settings: The loop's.
    """
    plan, n = settings.plan, settings.plan.num_examples

    def epoch(counts: EpochCounts, selections: float = 0.0) -> EpochCost:
        fetched, rows, copies = (count / settings.num_replicas for count in counts)
        return EpochCost(
            loading=fetched * measured.loading,
            augmentation=copies * measured.augmentation,
            step=rows * measured.step,
            probe=selections * measured.probe,
            solve=selections * measured.solve,
            loads_beside=settings.num_workers > 0,
            solves_beside=selections if settings.background else 0.0,
        )

    return Diagnosis(
        none=epoch(EpochCounts(n, n, 0)),
        subset=epoch(epoch_counts(plan, plan.budget), 1 / settings.every),
        full=epoch(epoch_counts(plan, n)),
        in_place=epoch(EpochCounts(n, n, n)),
        settings=settings,
        effective_sample_size=measured.effective_sample_size,
        num_sampled=measured.num_sampled,
        weight_kept=measured.weight_kept,
    )


def _advice_on(part: str, settings: Settings) -> str:
    """Return the setting to change first where a part costs most of a subset's epoch."""
    plan = settings.plan
    has_many_rows = len(plan) > (1 + _FEW_ROWS) * plan.num_examples
    if part == "augmentation":
        return "fraction=, or a policy of fewer operations"
    if part == "probe":
        return "every=" if settings.recycle is not None else "every=, or recycle= to probe fewer"
    if part == "solve":
        return "every=" if settings.background else "every=, or background=True to solve meanwhile"
    if part == "step":
        if not has_many_rows:
            return "nothing, since most steps are those of an epoch without augmentation"
        return ("copies=" if plan.copies > 1 else "fraction=") + ", since appended rows are steps"
    if settings.is_resident:
        return "nothing, since data are on the device already"
    if settings.num_workers == 0:
        return "num_workers= of your DataLoader, since loading runs in the loop"
    can_be_grouped = plan.layout == "mixed" and settings.batch_size > plan.copies
    if has_many_rows and can_be_grouped:
        return 'layout=, to "grouped", which fetches an example once for its copies'
    return f"num_workers= of your DataLoader, to more than {settings.num_workers}"
