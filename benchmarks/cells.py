"""One cell of a grid: everything that one training run depends on, and how it is run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from augsubset import (
    BatchSpec,
    CropFlip,
    GradientProbe,
    LoaderOptions,
    RandomOps,
    RowKeys,
    SubsetAugmentLoader,
    doctor,
)
from augsubset.utils.checks import check_choice
from augsubset.utils.rng import forked_rng
from benchmarks.datasets import FolderData, ImageData, load_data
from benchmarks.dynamics import Recorded
from benchmarks.harness import TrainingPlan, environment, train, unchanged
from benchmarks.models import build_model
from benchmarks.rules import make_rule
from benchmarks.strength import Strength

__all__ = ["Cell", "Costs", "OneByOne", "build", "costs_of", "data_of", "run_cell", "start_from"]

Data = ImageData | FolderData
WHERE = ("device", "precision", "channels_last", "resident")
"""What a call may change of a grid's cells: a record is the same cell's all the same."""


class OneByOne:
    """Torchvision's RandAugment on PIL images, one after the other: what a worker process does."""

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        from torchvision.transforms import v2

        self._transform = v2.Compose(
            [v2.ToPILImage(), v2.RandAugment(num_ops, magnitude), v2.PILToTensor()]
        )

    def __call__(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return the batch, each image transformed under a seed of its key."""
        seed = hash((rows.seed, int(rows.epoch[0]), int(rows.index[0]), int(rows.copy[0])))
        with forked_rng(seed % (1 << 31)):
            return torch.stack([self._transform(image) for image in x.cpu()]).to(x.device)


STRONG: dict[str, Callable[..., Any]] = {
    "none": lambda: unchanged,
    "paper": RandomOps.paper,
    "wu2020": RandomOps.wu2020,
    "randaugment": RandomOps.randaugment,
    "trivial": RandomOps.trivial,
    "autoaugment": lambda: RandomOps.autoaugment("cifar10"),
    "autoaugment-imagenet": lambda: RandomOps.autoaugment("imagenet"),
    "augmix": RandomOps.augmix,
    "cutout": RandomOps.cutout,
    "noise": RandomOps.noise,
    "one by one": OneByOne,
    "strength": Strength,
}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Args:
        arm: What the arm is called.
        seed: Of the initial weights, the order and all draws: arms of one seed are paired.
        data: A name of :data:`~benchmarks.datasets.DATA`.
        limit: Training images.
        test_limit: Test images.
        imbalance: Long tail: size of the first class over the last.
        noise: Share of wrong labels.
        noise_kind: Whether a wrong label may be the true one; see ``ImageData.with_noise``.
        model: A name of :data:`~benchmarks.models.MODELS`.
        epochs: Epochs that the schedule is laid out in, and that are run, unless ``passes`` or
            ``seconds`` are given.
        batch_size: Rows a step.
        lr: Peak learning rate.
        momentum: Of SGD.
        weight_decay: On all parameters.
        warmup: Epochs.
        milestones: Epochs; none: cosine.
        passes: Run as many steps as ``epochs`` epochs of so many times n rows have: what makes arms
            of different epoch lengths equal in steps.
        seconds: Run for so long instead.
        rule: A name of :data:`~benchmarks.rules.RULES`, ``package.module:Class``, or "all".
        rule_options: Its arguments.
        fraction: Share that is selected; 1 for "all".
        copies: Augmented copies of each selected example.
        every: Epochs between selections.
        start_epoch: First epoch that the rule selects in; random before.
        strong: What is done to copies.
        strong_options: Its arguments.
        originals: Which take part: "all", "unselected" (in place), "selected", "none".
        weights: See ``SubsetAugmentLoader``.
        max_weight: Of a coreset; see ``CoresetSelector``.
        kind: Of the gradients.
        recycle: See ``LoaderOptions``.
        base: Crop and flip: "fresh" each time, "frozen" for ``base_every`` epochs, or "none".
        base_every: How long a frozen base stays.
        init: A file of weights to start from, of a network with another last layer.
        workers: Processes that load.
        observe: See ``Recorded``; times are then not the rule's own. Not of "all".
        shadows: Rules to compare on this run's model: each a name, options and a fraction.
        evaluate_every: Epochs between evaluations.
        precision: Of forward and backward passes.
        graphed: Whether these are CUDA graphs.
        channels_last: Memory format.
        resident: Keep the images on the device.
        device: Where it runs.
        threads: Of the processor.
    """

    arm: str
    seed: int
    data: str = "digits"
    limit: int | None = None
    test_limit: int | None = None
    imbalance: float | None = None
    noise: float = 0.0
    noise_kind: Literal["any", "other"] = "any"
    model: str = "convnet"
    epochs: int = 12
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 1.0
    milestones: tuple[int, ...] = ()
    passes: float | None = None
    seconds: float | None = None
    rule: str = "coreset"
    rule_options: dict[str, Any] = field(default_factory=dict)
    fraction: float = 0.1
    copies: int = 4
    every: int = 20
    start_epoch: int = 0
    strong: str = "paper"
    strong_options: dict[str, Any] = field(default_factory=dict)
    originals: str = "all"
    weights: str = "uniform"
    max_weight: float | None = None
    kind: str = "logits"
    recycle: int | None = None
    base: Literal["fresh", "frozen", "none"] = "fresh"
    base_every: int = 20
    init: str | None = None
    workers: int = 0
    observe: bool = False
    shadows: tuple[dict[str, Any], ...] = ()
    evaluate_every: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    graphed: bool = False
    channels_last: bool = False
    resident: bool = False
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what would fail only when the run starts."""
        check_choice("strong", self.strong, tuple(STRONG))
        check_choice("base", self.base, ("fresh", "frozen", "none"))
        if self.passes is not None and self.seconds is not None:
            raise ValueError("passes and seconds must not both be given: either steps or time.")
        if self.rule == "all" and self.fraction != 1:
            raise ValueError(f'fraction must be 1 for rule="all", got {self.fraction}.')
        if self.graphed and self.device == "cpu":
            raise ValueError('graphed must be False on device="cpu": CUDA graphs need a GPU.')
        self.make_rule()
        if self.strong_options:
            self.make_strong()
        self.make_shadows()

    @property
    def is_observed(self) -> bool:
        """Whether there is something to observe, and it is."""
        return self.observe and self.fraction < 1

    def make_rule(self) -> Any:
        """Return the rule; ``None`` where everything is selected."""
        if self.rule == "all":
            return None
        capped = {} if self.max_weight is None else {"max_weight": self.max_weight}
        made = make_rule(self.rule, {**self.rule_options, **capped})
        return made if self.fraction < 1 else None

    def make_strong(self) -> Any:
        """Return the policy."""
        return STRONG[self.strong](**self.strong_options)

    def make_shadows(self) -> dict[str, tuple[Any, float]]:
        """Return the rules to compare, by name."""
        return {
            f"{each['rule']} {each['fraction']:.3g}": (
                make_rule(each["rule"], each.get("rule_options", {})),
                each["fraction"],
            )
            for each in self.shadows
        }

    @classmethod
    def of(cls, values: dict[str, Any]) -> Cell:
        """Return a cell of values as they are in a file.

        Raises:
            ValueError: If a name is none of a cell's.
        """
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"a cell must have only {sorted(known)}, got {unknown}.")
        tuples = {name: tuple(values.get(name, ())) for name in ("milestones", "shadows")}
        return cls(**{**values, **tuples})

    def values(self) -> dict[str, Any]:
        """Return what differs from the defaults, and the arm and the seed."""
        return {k: v for k, v in vars(self).items() if k not in _DEFAULTS or v != _DEFAULTS[k]}

    @property
    def key(self) -> str:
        """What its record is known by: all but the arm's name and where it runs."""
        found = {k: v for k, v in self.values().items() if k not in ("arm", *WHERE)}
        return json.dumps(found, sort_keys=True)

    def plan(self, num_examples: int) -> TrainingPlan:
        """Return how it is trained."""
        steps = None
        if self.passes is not None:
            steps = self.epochs * math.ceil(self.passes * num_examples / self.batch_size)
        return TrainingPlan(
            self.epochs,
            self.lr,
            self.momentum,
            self.weight_decay,
            self.warmup,
            self.milestones,
            steps,
            self.seconds,
            self.precision,
            self.graphed,
        )


_DEFAULTS = {
    each.name: each.default if each.default_factory is MISSING else each.default_factory()
    for each in fields(Cell)
    if each.name not in ("arm", "seed")
}


def data_of(cell: Cell, root: str | Path | None) -> Data:
    """Return the cell's data, which lies at ``root``."""
    data: Data = load_data(cell.data, root)
    if isinstance(data, FolderData):
        changed = (cell.limit, cell.test_limit, cell.imbalance, cell.noise or None)
        if any(each is not None for each in changed):
            raise ValueError(f"limit, imbalance and noise must not be given for {cell.data}.")
        return replace(data, num_workers=cell.workers)
    data = data.limited(cell.limit, cell.test_limit)
    if cell.imbalance is not None:
        data = data.long_tailed(cell.imbalance)
    if cell.noise:
        data = data.with_noise(cell.noise, cell.noise_kind)
    return data


def build(
    cell: Cell, data: Data, strong: Any = None
) -> tuple[nn.Module, SubsetAugmentLoader, Recorded | None]:
    """Return what a cell trains, on what, and the record of what its rule, if any, selects.

    Args:
        cell: Says all of it.
        data: Of the cell.
        strong: Its policy, if that is made already. The loader of one that learns from training
            passes yields indices too.
    """
    torch.set_num_threads(cell.threads)
    model = build_model(cell.model, data, cell.seed)
    if cell.init is not None:
        start_from(model, cell.init)
    model = model.to(cell.device)
    if cell.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rule = cell.make_rule()
    if rule is not None:
        rule = Recorded(rule, data, cell.is_observed, cell.make_shadows())
    strong = cell.make_strong() if strong is None else strong
    base = None
    if cell.base != "none":
        base = CropFlip(4, every=cell.base_every if cell.base == "frozen" else 1)
    loader = SubsetAugmentLoader(
        DataLoader(
            data.train_set,
            batch_size=cell.batch_size,
            shuffle=True,
            num_workers=cell.workers,
            persistent_workers=cell.workers > 0,
        ),
        model,
        strong,
        fraction=cell.fraction,
        copies=cell.copies,
        every=cell.every,
        selector=rule,
        originals=cell.originals,  # type: ignore[arg-type]
        weights=cell.weights,  # type: ignore[arg-type]
        base=base,
        normalize=data.mean_std,
        batch=BatchSpec(return_index=isinstance(strong, Strength)),
        probe=GradientProbe(model, kind=cell.kind),  # type: ignore[arg-type]
        seed=cell.seed,
        options=LoaderOptions(
            start_epoch=cell.start_epoch,
            recycle=cell.recycle,
            channels_last=cell.channels_last,
            resident=cell.resident,
        ),
    )
    return model, loader, rule


def start_from(model: nn.Module, path: str) -> None:
    """Load weights of another task: all but those of another shape, the last layer's.

    Raises:
        ValueError: If more than a weight and a bias are left out, or a name is missing.
    """
    known = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if set(known) != set(own):
        raise ValueError(f"init must hold the model's own names, got others in {path}.")
    fitting = {name: value for name, value in known.items() if value.shape == own[name].shape}
    if len(own) - len(fitting) > 2:
        raise ValueError(
            f"init must fit but for the last layer, got {len(own) - len(fitting)} tensors of "
            f"another shape in {path}."
        )
    model.load_state_dict({**own, **fitting})


def run_cell(
    cell: Cell, data: Data, before_epoch: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Train, and return the record."""
    found = environment(data, cell.device)  # of the code that starts, whatever happens meanwhile
    strong = cell.make_strong()
    model, loader, rule = build(cell, data, strong)
    found["threads"] = torch.get_num_threads()
    test = data
    if cell.resident and isinstance(data, ImageData):
        x, y = (part.to(cell.device) for part in (data.x_test, data.y_test))
        test = replace(data, x_test=x, y_test=y)
    result = train(
        model,
        loader,
        test,
        cell.plan(len(data.y_train)),
        evaluate_every=cell.evaluate_every,
        before_epoch=before_epoch,
        strength=strong if isinstance(strong, Strength) else None,
    )
    if cell.strong == "none":
        result = replace(result, augmented=0)
    return {
        "cell": cell.values(),
        "environment": found,
        "result": asdict(result),
        "dynamics": {"selections": {}} if rule is None else rule.record(),
    }


@dataclass(frozen=True)
class Costs:
    """Seconds that cells of one network, data and policy are made of.

    Args:
        row: Loading, base augmentation and a step, a row.
        copy: Strong augmentation, a copy.
        selection: A probe and a solve of the whole data.
    """

    row: float
    copy: float
    selection: float

    def of(self, cell: Cell, num_examples: int) -> float:
        """Return what a cell takes; evaluation is left out."""
        if cell.seconds is not None:
            return cell.seconds
        n, k = num_examples, cell.fraction * num_examples
        copies = k * cell.copies
        originals = {"all": n, "unselected": n - k, "selected": k, "none": 0.0}[cell.originals]
        plan = cell.plan(num_examples)
        steps = -(-(originals + copies) // cell.batch_size)
        epochs = plan.epochs if plan.steps is None else plan.steps / steps
        rule = cell.make_rule()
        probed = cell.is_observed or (rule is not None and rule.needs_gradients)
        an_epoch = (originals + copies) * self.row + copies * self.copy * (cell.strong != "none")
        return epochs * (an_epoch + (self.selection / cell.every if probed else 0.0))


def costs_of(cell: Cell, data: Data, num_examples: int, steps: int = 2) -> Costs:
    """Measure a few steps and a selection of some of the data.

    Args:
        cell: Says the network, the policies and the device.
        data: Some data of the right shape.
        num_examples: How many a selection is of; a solve is taken to grow as they do.
        steps: Batches that the doctor measures.
    """
    cell = replace(
        cell, rule="coreset", rule_options={}, fraction=0.1, copies=1, every=1, originals="all"
    )
    if cell.strong == "strength":  # takes as long, and nothing is learnt here
        cell = replace(cell, strong="randaugment", strong_options={})
    _, loader, _ = build(cell, data)
    found = doctor(loader, steps)
    n = len(data.y_train)
    return Costs(
        row=found.none.total / n,
        copy=found.full.augmentation / n,
        selection=found.subset.selection / n * num_examples,
    )
