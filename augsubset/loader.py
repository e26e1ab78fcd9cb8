"""The main path: a user's DataLoader in; selected, augmented batches out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from augsubset.batch import BatchSpec
from augsubset.distributed import Ranks, world_size
from augsubset.history import EpochTimer, Event, SelectionCounts
from augsubset.labels import inspect_dataset
from augsubset.normalization import MeanStd, Normalization
from augsubset.pipeline import BatchCheck, BatchPipeline, Policy, ReadyBatch, move
from augsubset.probe import GradientProbe
from augsubset.prober import Prober
from augsubset.sampling import (
    EpochPlan,
    Layout,
    Originals,
    RowWeights,
    Source,
    WeightedCoresetSampler,
    fresh_iterator,
    read_order,
)
from augsubset.sampling.keys import MAX_EPOCHS
from augsubset.schedule import (
    NewSelection,
    SelectionSchedule,
    pack_selection,
    unpack_selection,
)
from augsubset.selection import CoresetSelector, Selection, Selector, budget_from_fraction
from augsubset.utils.checks import AugsubsetError, check_choice, check_int, check_state
from augsubset.utils.rng import MAX_SEED
from augsubset.utils.torch_utils import check_weights_finite

__all__ = ["LoaderOptions", "SubsetAugmentLoader", "Weights"]

Weights = Literal["uniform", "cluster", "unscaled", "resample"]
_ROW_WEIGHTS: dict[Weights, RowWeights] = {
    "uniform": "uniform",
    "cluster": "cluster",
    "unscaled": "cluster",
    "resample": "resample",
}
_STATE_VERSION = 4


@dataclass(frozen=True)
class LoaderOptions:
    """Rarely needed options of a :class:`SubsetAugmentLoader`.

    Args:
        start_epoch: First epoch of the schedule: until then the subset is random, because the
            gradients of an untrained network say little.
        layout: ``"mixed"``: rows in any order. ``"grouped"``: an example's original and copies in
            one batch, where its item is fetched once; all batches have the same size.
        resident: Keep the images of a uint8 ``TensorDataset`` on the device: no workers, no
            collation; keys, order and augmentation stay the same.
        background: Solve in a thread while the epoch that probed trains on with the old
            selection; the next epoch waits for it and uses the new one. The first selection is
            made at once. An error in the thread is raised at the end of that epoch or at the
            start of the next.
        recycle: Do not probe originals that the model saw in training at most this many epochs
            ago: reuse the logits of that pass, under base augmentation and in training mode. Each
            batch must go through the model in one pass. On several ranks an example is measured
            by the rank that saw it last. ``None``: probe everything.
        channels_last: Yield images in that memory format.
        device: Where batches go; ``None`` asks the model at the start of each epoch.
        timeout: How long a rank waits for another before it raises.

    Raises:
        TypeError: If ``timeout`` is not a timedelta or a number is not an int.
        ValueError: If a value is unknown or out of range.
    """

    start_epoch: int = 0
    layout: Layout = "mixed"
    resident: bool = False
    background: bool = False
    recycle: int | None = None
    channels_last: bool = False
    device: torch.device | str | None = None
    timeout: timedelta = timedelta(minutes=30)

    def __post_init__(self) -> None:
        """Validate once."""
        check_int("start_epoch", self.start_epoch, 0)
        check_choice("layout", self.layout, ("mixed", "grouped"))
        for name in ("resident", "background", "channels_last"):
            check_choice(name, getattr(self, name), (False, True))
        if self.recycle is not None:
            check_int("recycle", self.recycle, 1)
        if self.device is not None:
            object.__setattr__(self, "device", torch.device(self.device))
        if not isinstance(self.timeout, timedelta):
            raise TypeError(f"timeout must be a timedelta, got {type(self.timeout).__name__}.")


class SubsetAugmentLoader:
    """Iterate over the originals and augmented copies of a small subset, selected every R epochs.

    Every ``every`` epochs the model's last-layer gradients are measured and a subset is selected
    per class. An epoch holds the originals and ``copies`` augmented copies of each selected
    example; augmentation runs in batches on the model's device, on the copies alone.

    Each ``iter()`` is the next epoch. Order, augmentation and weights are functions of (seed,
    epoch, selection); workers, prefetching and start methods do not change them.

    Args:
        loader: A plain DataLoader over a map-style dataset. Its batch size, workers, collate
            function, pinning and order (shuffled, sequential or a DistributedSampler's) are taken
            over; the loader itself is not used again. The collate function must keep every row,
            in order, and not modify items in place. On several ranks the order is shared as the
            DistributedSampler says, otherwise among the ranks of torch.distributed, which must be
            initialised.
        model: The model in training: its gradients are measured, and batches go to its device.

        augment: *What to augment.* The strong policy ``(x, rows) -> x``; it sees copies only.
        fraction: Share of the examples to augment, in (0, 1]; at least one per class. 1.0 takes
            everything: nothing is probed, and ``selector`` is not used.
        copies: Augmented copies of each selected example, r.
        originals: Which originals an epoch holds: ``"all"``; ``"unselected"``, where copies
            replace selected ones; ``"selected"``; ``"none"``.
            See :class:`~augsubset.WeightedCoresetSampler`.
        base: Policy for every row, after the strong one; ``None``: nothing.
        selector: How the subset is chosen; ``None``: :class:`~augsubset.CoresetSelector`.
        weights: ``"uniform"``: every row weighs 1, and the loader yields ``(x, y)``.
            ``"cluster"``, the paper's text: cluster size / r on each copy, 1 on each original,
            scaled to mean 1 over the epoch so that the learning rate keeps its meaning; yields
            ``(x, y, w)`` for :func:`~augsubset.weighted_loss`. ``"unscaled"``: the same without
            scaling. ``"resample"``: copies are drawn in proportion to cluster size, for losses
            that are not a mean over examples; yields ``(x, y)``.

        batch: *What a batch looks like.* A :class:`~augsubset.BatchSpec`, if it is neither an
            (inputs, labels) pair nor a dict with usual names, or should be yielded in another form.
        probe: A :class:`~augsubset.GradientProbe` of your own, if calling the model on a batch
            does not return ``(B, C)`` logits.

        normalize: *What values mean.* ``(mean, std)`` per channel, applied last. Without it,
            uint8 images are divided by 255.
        denormalize: ``(mean, std)`` that the dataset applied already: undone before augmenting and
            applied again last, which costs originals a rounding error in the last bits. At most
            one of the two.

        every: *When.* Epochs between selections, R.
        seed: Distinguishes runs.

        progress: *Rarely needed.* Show bars while probing and gathering labels (needs tqdm).
        on_event: Called with each entry of :attr:`history` as it is made.
        options: :class:`~augsubset.LoaderOptions`.

    Attributes:
        history: One dict per selection and one per epoch, oldest first. ``event="selection"``:
            epoch (of the probe), active_from, selector, num_selected, effective_sample_size,
            probe_seconds, num_recycled, solve_seconds, digest, the certificate's figures if there
            is one, overlap (share that the previous selection had too), covered (share of all
            examples selected so far) and class_counts. ``event="epoch"``: epoch, num_rows,
            num_copies, completed (no rows are left), and seconds of selection, loading,
            augmentation, step (what remains: the caller's code) and total; strong_seconds is the
            strong policy's share of the augmentation.
        model, source, pipeline, prober, schedule, info, counts, options, weights, seed: The parts
            that the loader is composed of; read them, do not replace them.

    Yields:
        ``(x, y)`` or ``(x, y, w)`` on the device: x float (inputs other than ``(B, C, H, W)``
        images are left as they are), classes y int64, w float32.

    Raises:
        TypeError: At construction, if loader, model, dataset or a batch is of the wrong kind.
        ValueError: At construction, if a value is out of range, images are outside [0, 1], or the
            loader has a sampler or batch sampler of its own.
        AugsubsetError: If a second iterator is started while one is live, the dataset changed its
            length, weights are NaN or infinite when an epoch starts, the data is not sharded, or
            sharded twice, or the selector needs gradients of a model split over ranks.

    Cost:
        A selection takes one forward pass over the data and a solve (see
        :func:`~augsubset.select_coreset`); a batch takes the augmentation of its copies and about
        0.1 ms of bookkeeping. An epoch begins with a check of the model's weights, which waits for
        the device once. Construction fetches two examples, and twice eight spread over the
        dataset, by which a checkpoint recognises it; all of them, once, if the dataset has no
        ``targets``, ``labels`` or tensors that hold the classes.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from augsubset import RandomOps
        >>> images = torch.randint(0, 256, (40, 3, 8, 8)).to(torch.uint8)
        >>> data = TensorDataset(images, torch.arange(40) % 4)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> loader = SubsetAugmentLoader(loader, model, RandomOps.randaugment(), fraction=0.1)
        >>> for x, y in loader:
        ...     loss = nn.functional.cross_entropy(model(x), y)
        >>> loader
        SubsetAugmentLoader(56 rows in 7 batches: 40 originals and 4 copies of each of 4 examples,
            selected by CoresetSelector every 20 epochs; weights='uniform', next epoch 1)

    Reference:
        Liu & Mirzasoleiman, *Data-Efficient Augmentation for Training Neural Networks*, 2022
        (arXiv:2210.08363), algorithm 1.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        model: nn.Module,
        augment: Policy,
        *,
        fraction: float = 0.1,
        copies: int = 4,
        every: int = 20,
        selector: Selector | None = None,
        originals: Originals = "all",
        weights: Weights = "uniform",
        base: Policy | None = None,
        normalize: MeanStd | None = None,
        denormalize: MeanStd | None = None,
        batch: BatchSpec | None = None,
        probe: GradientProbe | None = None,
        seed: int = 0,
        progress: bool = False,
        on_event: Callable[[Event], None] | None = None,
        options: LoaderOptions | None = None,
    ) -> None:
        order = read_order(loader)
        check_choice("weights", weights, tuple(_ROW_WEIGHTS))
        check_choice("progress", progress, (False, True))
        _check_types(model, probe, selector, batch, options, on_event)
        self.model = model
        self.weights: Weights = weights
        self.seed = check_int("seed", seed, 0, MAX_SEED)
        self.options = options = LoaderOptions() if options is None else options
        self.history: list[Event] = []
        self._on_event = on_event
        device = options.device if isinstance(options.device, torch.device) else None
        probe = GradientProbe(model, device=device) if probe is None else probe
        if fraction == 1:
            selector = None
        elif selector is None:
            selector = CoresetSelector()

        self.world_size = world_size()
        is_alone = self.world_size == 1
        ranks = None if is_alone else Ranks.make_group(options.timeout)
        # The check of shards has a group of its own, beside a selection that runs in a thread.
        self._guard = None if is_alone else Ranks.make_group(options.timeout)

        spec = BatchSpec() if batch is None else batch
        normalization = Normalization(normalize, denormalize, options.channels_last)
        self.source = Source(
            loader,
            seed=self.seed,
            resident=options.resident,
            check=BatchCheck(spec, normalization),
        )
        n = len(self.source)
        if n < self.world_size:
            raise ValueError(
                f"dataset must hold at least one example per rank, got {n} for "
                f"{self.world_size} ranks."
            )
        self.pipeline = BatchPipeline(
            spec,
            normalization,
            augment,
            base,
            seed=self.seed,
            owns_batches=self.source.owns_batches,
        )
        needs_probe = selector is not None and selector.needs_gradients
        if needs_probe and not is_alone:
            probe.check_alone()
        self.info = inspect_dataset(
            self.source, self.pipeline, probe if needs_probe else None, progress
        )

        num_replicas, rank = order.num_replicas, order.rank
        if ranks is not None and num_replicas is None:
            num_replicas, rank = ranks.world_size, ranks.rank
        if ranks is not None and num_replicas == 1:
            raise ValueError(
                f"loader must be sharded among the {ranks.world_size} ranks, got a "
                "DistributedSampler with num_replicas=1: each rank would train on everything."
            )
        budget = budget_from_fraction(fraction, n, self.info.num_classes)
        self._sampler = WeightedCoresetSampler(
            self.source.dataset,
            budget=budget,
            copies=copies,
            originals=originals,
            weights=_ROW_WEIGHTS[weights],
            shuffle=order.shuffle,
            seed=self.seed,
            num_replicas=num_replicas,
            rank=rank,
            drop_last=order.drop_last,
            layout=options.layout,
            batch_size=loader.batch_size,
        )
        self._batches = self.source.make_loader(self._sampler, drop_last=loader.drop_last)
        if len(self._batches) == 0:
            raise ValueError(
                f"drop_last must leave at least one batch, got {len(self._sampler)} rows per rank "
                f"for batch_size={loader.batch_size}."
            )
        classes = self.info.classes
        if options.recycle is not None and classes is None:
            raise ValueError(
                "recycle must be None where labels are not one class index per example, got "
                f"recycle={options.recycle}."
            )
        self.prober = Prober(
            model,
            probe,
            self.source,
            self.pipeline,
            device=device,
            progress=progress,
            recycle=options.recycle,
            batches_per_epoch=len(self._batches),
        )
        self.schedule = SelectionSchedule(
            selector,
            self.prober,
            every=every,
            start_epoch=options.start_epoch,
            budget=budget,
            num_examples=n,
            seed=self.seed,
            background=options.background,
            ranks=ranks,
            timeout=options.timeout,
        )
        self.counts = SelectionCounts(
            torch.zeros(n, dtype=torch.int64) if classes is None else classes
        )
        # Where the state stands, and where the next iter() starts: epoch, and rows of it handed
        # out over all ranks. They differ while an epoch runs and after one that was broken off.
        self._at = (0, 0)
        self._next = (0, 0)
        self.is_running = False
        self._iterators: WeakSet[Generator[Any, None, None]] = WeakSet()
        self._is_guarded = False

    # The main path: an epoch, a batch.

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over the next epoch; it selects first if a selection is due."""
        iterator = self._iterate_epoch()
        self._iterators.add(iterator)
        return iterator

    def _iterate_epoch(self) -> Generator[Any, None, None]:
        if self.is_running:
            raise AugsubsetError(
                "this loader already has a live iterator, and each iterator is an epoch of its "
                "own. Finish it, end it by loader.close(), or construct a second loader."
            )
        self._check_unchanged()
        self._at = epoch, begin = self._next
        device = self.prober.device
        timer = EpochTimer(device)
        num_rows = num_copies = 0
        has_started, is_exhausted = False, False
        self.is_running = True
        try:
            with timer.on_cpu("selection"):
                if not begin:
                    for new in self.schedule.before_epoch(epoch):
                        self._adopt(new)
                    self._sampler.seek(epoch)
                check_weights_finite(self.model, epoch)
            self.source.to(device)
            self._next = (epoch + 1, 0)
            has_started = True
            with self.prober.observe_epoch(epoch):
                for batch in self.pipeline.prefetch(self._make_batches(timer, device), device):
                    if not self._is_guarded:
                        self._check_shards(batch.keys, begin)
                    num_rows += len(batch.keys)
                    num_copies += batch.num_copies
                    self.prober.expect(batch)
                    # Counted before it is yielded: a checkpoint made in the loop includes it.
                    done = self._at[1] + len(batch.keys) * self.num_replicas
                    self._at = (epoch, done)
                    yield batch.output
            is_exhausted = True
            self.schedule.after_epoch()
        finally:
            self.is_running = False
            completed = has_started and self._count_batches(self._at[1]) == 0
            if is_exhausted:
                self._at = self._next
            self._record(
                {
                    "event": "epoch",
                    "epoch": epoch,
                    "num_rows": num_rows,
                    "num_copies": num_copies,
                    "completed": completed,
                    **timer.read(),
                }
            )

    def _make_batches(self, timer: EpochTimer, device: torch.device) -> Iterator[ReadyBatch]:
        """Yield the epoch's batches on the device, each made when it is asked for."""
        fetched = fresh_iterator(self._batches)
        while True:
            with timer.on_cpu("loading"):
                following = next(fetched, None)
            if following is None:
                return
            batch, keys = following
            with timer.on_device("augmentation"):
                ready = self.pipeline.process(batch, keys, self._weigh(keys), device, timer)
            yield ready

    def _weigh(self, keys: Tensor) -> Tensor | None:
        """Return the rows' weights, ``None`` where all weigh 1."""
        if _ROW_WEIGHTS[self.weights] != "cluster":
            return None
        weights = self._sampler.weights_for(keys)
        if self.weights == "unscaled":
            return weights
        return weights / self._sampler.mean_weight(self._at[0])

    def _adopt(self, new: NewSelection) -> None:
        """Use a selection from the next epoch that starts, and record it."""
        self._sampler.set_selection(new.selection)
        self._record({**new.entry, **self.counts.add(new.selection)})

    def _record(self, entry: Event) -> None:
        self.history.append(entry)
        if self._on_event is not None:
            self._on_event(entry)

    def _check_unchanged(self) -> None:
        """Raise if the dataset's length or the number of ranks changed since construction."""
        n = len(self.source.dataset)
        if n != len(self.source):
            raise AugsubsetError(
                f"the dataset must keep its length {len(self.source)}, got {n}. Selections and "
                "keys refer to the examples there were: construct a new loader."
            )
        if world_size() != self.world_size:
            raise AugsubsetError(
                f"the number of ranks must stay {self.world_size} as at construction, got "
                f"{world_size()}: rows would be missing or doubled. Construct the loader after "
                "init_process_group; in Lightning, by prepare() in the hook train_dataloader()."
            )

    def _check_shards(self, keys: Tensor, begin: int) -> None:
        """Compare the ranks' first batches: each must have its own share of one order."""
        self._is_guarded = True
        if self._guard is not None:
            expected = self._sampler.first_keys(begin, len(keys))
            self._guard.check_shares(self._sampler.rank, expected, keys.tolist())

    # Around the loop.

    def close(self) -> None:
        """End the live iterator, if there is one, in the middle of its epoch.

        :meth:`state_dict` still says where it stopped, and the next ``iter()`` is the next epoch.

        Raises:
            AugsubsetError: If it is called while a batch or a selection is being made, from a
                signal handler or a callback.
        """
        for iterator in list(self._iterators):
            if iterator.gi_running:  # type: ignore[attr-defined]
                raise AugsubsetError(
                    "close() must be called between batches, not while one is being made. In a "
                    "signal handler set a flag, and break in the loop."
                )
            iterator.close()

    def reselect(self) -> Selection:
        """Select now, with the model as it is, for the next epoch that starts.

        Between epochs this replaces the selection due at the next one. While an epoch runs it does
        not, because the model goes on training. On several ranks, call it on all.

        Raises:
            AugsubsetError: If the dataset changed its length, or the number of ranks changed.
        """
        self._check_unchanged()
        new = self.schedule.reselect(self._next[0], stands_for=self.epoch)
        self._adopt(new)
        return new.selection

    def preprocess(self, x: Tensor) -> Tensor:
        """Return images normalised as in training, without augmentation, on the model's device.

        For validation.

        Args:
            x: As the dataset's batches: uint8, float in [0, 1], or normalised if the loader was
                told so. ``(B, C, H, W)``

        Raises:
            ValueError: If values are outside the range.
        """
        normalization = self.pipeline.normalization
        normalization.check(x)
        moved = move(x, self.prober.device)
        prepared: Tensor = normalization.to_model(normalization.to_unit(moved))
        return prepared

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch the next ``iter()`` starts; without it, the one after the last.

        Does nothing for the epoch that :meth:`load_state_dict` was in the middle of.
        """
        epoch = check_int("epoch", epoch, 0, MAX_EPOCHS - 1)
        if epoch != self._next[0]:
            self._next = (epoch, 0)
            if not self.is_running:
                self._at = self._next

    @property
    def epoch(self) -> int:
        """The epoch that runs; between epochs, the one that the next ``iter()`` starts."""
        return (self._at if self.is_running else self._next)[0]

    def __len__(self) -> int:
        """Return the number of batches in an epoch: the same in every epoch.

        Only what is left of an epoch after :meth:`load_state_dict` is shorter.
        """
        return len(self._batches)

    @property
    def num_batches_left(self) -> int:
        """Batches that the running epoch still yields; between epochs, those of the next."""
        return self._count_batches((self._at if self.is_running else self._next)[1])

    def _count_batches(self, position: int) -> int:
        """Return how many batches are left of an epoch from a position on."""
        full, rest = divmod(self._sampler.rows_left(position), self.batch_size)
        return full + (rest > 0 and not self._batches.drop_last)

    @property
    def batch_size(self) -> int:
        """Rows per batch, as in the user's DataLoader."""
        assert self._batches.batch_size is not None
        return self._batches.batch_size

    @property
    def num_replicas(self) -> int:
        """Ranks that share the order."""
        return self._sampler.num_replicas

    @property
    def plan(self) -> EpochPlan:
        """The shape of an epoch."""
        return self._sampler.plan

    @property
    def selection(self) -> Selection | None:
        """The latest selection, ``None`` before the first epoch."""
        selection: Selection | None = self._sampler.selection
        return selection

    @property
    def dataset(self) -> Any:
        """The user's dataset."""
        return self.source.dataset

    @property
    def sampler(self) -> Any:
        """Not available; ``hasattr`` returns False."""
        raise AttributeError(
            "a SubsetAugmentLoader has no sampler for others, such as accelerate's "
            "skip_first_batches: a DataLoader built from it would neither augment nor weigh. "
            "Resume by load_state_dict, which skips what was consumed; under a Hugging Face "
            "Trainer by augsubset.integrations.transformers with ignore_data_skip=True."
        )

    def __repr__(self) -> str:
        plan = self.plan
        k, n = plan.budget, plan.num_examples
        chosen = f"{k:,} examples" if k < n else "all examples"
        how = (
            ""
            if self.schedule.selector is None
            else f",\n    selected by {self.schedule.selector_name} every {self.schedule.every} "
            "epochs"
        )
        shared = f" over {self.num_replicas} ranks" if self.num_replicas > 1 else ""
        now = "epoch" if self.is_running else "next epoch"
        return (
            f"SubsetAugmentLoader({len(plan):,} rows{shared} in {len(self):,} batches: "
            f"{plan.num_originals(k):,} originals and {plan.copies} "
            f"{'copy' if plan.copies == 1 else 'copies'} of each of {chosen}{how}; "
            f"weights={self.weights!r}, {now} {self.epoch})"
        )

    def __reduce__(self) -> Any:
        """Refuse to be pickled or copied."""
        raise TypeError(
            "a SubsetAugmentLoader cannot be pickled: it holds the model, workers and a CUDA "
            "stream. Save loader.state_dict(), and construct the loader anew where it is needed."
        )

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, except the model.

        In the loop, the batches yielded so far count as consumed; after leaving it early, by
        ``break``, :meth:`close` or an exception, the state says where it stopped until the next
        ``iter()`` starts. It holds tensors, numbers and strings only, which ``torch.load`` reads
        with ``weights_only=True``; tensors are not copied. All ranks return the same, except with
        ``recycle``. Waits for a selection that is being solved in the background.
        """
        epoch, position = self._at
        selection, active = self._sampler.selection, self._sampler.active
        return {
            "version": _STATE_VERSION,
            **self._identity(),
            "example_digest": self.info.digest,
            "epoch": epoch,
            "position": position if self._count_batches(position) else len(self.plan),
            "num_replicas": self.num_replicas,
            "schedule": self.schedule.state_dict(),
            "selection": pack_selection(selection),
            # Of the epoch in the middle, if that is another one.
            "active": pack_selection(None if active is selection else active),
            "logits": self.prober.state_dict(self._sampler.share),
            "history": [dict(entry) for entry in self.history],
            "counts": self.counts.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called, on any number of workers or ranks.

        The next ``iter()`` yields the rest of the epoch: nothing if the state was made at its
        last batch. A loop ``for epoch in range(loader.epoch, num_epochs)`` goes on.

        Raises:
            AugsubsetError: While an epoch runs.
            TypeError: If it is not a mapping.
            ValueError: If something is missing or damaged, or if it is of another dataset, seed,
                shape of epoch or version. Nothing is changed then.
        """
        if self.is_running:
            raise AugsubsetError(
                "a state cannot be loaded while an epoch runs. Call loader.close() first."
            )
        check_state("state_dict", state, ("version",))
        if state["version"] != _STATE_VERSION:
            raise ValueError(
                f"state_dict must be of version {_STATE_VERSION}, got version {state['version']}: "
                "it was saved by another version of augsubset, and cannot be continued by this one."
            )
        parts = ("example_digest", "selection", "active", "schedule", "logits", "history", "counts")
        check_state("state_dict", state, (*parts, *self._identity()), same=self._identity())
        if None not in (state["example_digest"], self.info.digest):
            check_state("state_dict", state, (), same={"example_digest": self.info.digest})
        epoch, position = self._sampler.check_position(state)
        selection = unpack_selection(state["selection"], len(self.source))
        active = unpack_selection(state["active"], len(self.source)) or selection
        schedule = self.schedule.check_state(state["schedule"])
        if position and active is None:
            raise ValueError("state_dict must hold a selection in the middle of an epoch.")
        logits = self.prober.check_state(state["logits"], self._sampler.share)
        history = [dict(entry) for entry in state["history"]]
        counts = self.counts.check_state(state["counts"])
        if active is not None:
            self._sampler.set_selection(active)
        self._sampler.seek(epoch, position)
        if selection is not None:
            self._sampler.set_selection(selection)
        self.schedule.restore(schedule)
        self.counts.restore(counts)
        self.prober.restore(logits)
        self._at = self._next = (epoch, position)
        self.history = history
        self._is_guarded = False  # ranks may have been given different states

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for keys and positions to mean the same rows."""
        return {**self._sampler.identity, "labels_digest": self.info.targets_digest}


def _check_types(
    model: Any, probe: Any, selector: Any, batch: Any, options: Any, on_event: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event must be callable, got {type(on_event).__name__}.")
    for name, value, kind in (
        ("probe", probe, GradientProbe),
        ("batch", batch, BatchSpec),
        ("options", options, LoaderOptions),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}.")
    if isinstance(selector, type):
        raise TypeError(f"selector must be an object, got the class {selector.__name__}. Call it.")
    if selector is not None and not isinstance(selector, Selector):
        raise TypeError(
            "selector must have .needs_gradients and .select(gradients, *, budget, seed, epoch), "
            f"got {type(selector).__name__}."
        )
