"""The main path: a user's DataLoader in; selected, augmented batches out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Literal, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from augsubset.batch import BatchSpec
from augsubset.distributed import Ranks, check_world_size, choose_seed, world_size
from augsubset.history import EpochTimer, Event, SelectionCounts
from augsubset.labels import inspect_dataset
from augsubset.normalization import MeanStd, Normalization
from augsubset.options import LoaderOptions, check_batches, check_types
from augsubset.pipeline import BatchCheck, BatchPipeline, Policy, ReadyBatch
from augsubset.probe import GradientProbe
from augsubset.prober import Prober
from augsubset.sampling import (
    Originals,
    RowWeights,
    Source,
    WeightedCoresetSampler,
    fresh_iterator,
    read_order,
    unpack_batch_sampler,
)
from augsubset.sampling.keys import MAX_EPOCHS, check_epoch_exists
from augsubset.schedule import NewSelection, SelectionSchedule
from augsubset.selection import CoresetSelector, Selection, Selector, budget_from_fraction
from augsubset.state import get_setting, make_state, restore_state
from augsubset.utils.checks import AugsubsetError, check_choice, check_int
from augsubset.utils.torch_utils import check_weights_finite, get_half_dtype, get_model_device

__all__ = ["LoaderOptions", "SubsetAugmentLoader", "Weights"]

Weights = Literal["uniform", "cluster", "unscaled", "resample"]
_ROW_WEIGHTS: dict[Weights, RowWeights] = {
    "uniform": "uniform",
    "cluster": "cluster",
    "unscaled": "cluster",
    "resample": "resample",
}


class SubsetAugmentLoader:
    """Iterate over the originals and augmented copies of a small subset, selected every R epochs.

    A subset is selected per class so that its last-layer gradients represent the whole set. An
    epoch holds the originals and r augmented copies of each selected example, made in batches on
    the model's device. Each ``iter()`` starts the next epoch. Order, augmentation and weights are
    functions of (seed, epoch, selection), for any workers, prefetching or start method.

    Args:
        loader: A plain DataLoader over a map-style dataset. Its batch size, workers, collate
            function, pinning and order (of any sampler with a length) are adopted; the loader
            itself is not used again. The collate function must keep every row, in order. Without
            a DistributedSampler, the ranks of torch.distributed, which must be initialised, share
            the order.
        model: The model in training: its gradients are measured, and batches go to its device.

        augment: *What to augment.* A policy ``(x, rows) -> x`` or Kornia module; sees copies only.
        fraction: Share of the examples to augment, in (0, 1]; no fewer than the classes. 1.0 takes
            everything: nothing is probed, and ``selector`` is not used. Negative labels mark
            unlabelled examples: they are used as originals only, and not counted here.
        copies: Augmented copies of each selected example, r.
        originals: Which originals an epoch holds: ``"all"``, ``"unselected"`` (copies replace the
            selected ones), ``"selected"`` or ``"none"``.
        base: A policy for every row, after the strong one; ``None``: nothing.
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
        seed: Distinguishes runs. ``None``: what your DataLoader's generator or DistributedSampler
            was seeded with, else ``torch.initial_seed()``; a loaded state restores its seed.

        progress: *Rarely needed.* Show bars while probing and gathering labels (needs tqdm).
        on_event: Called with each entry of :attr:`history` as it is made.
        options: :class:`~augsubset.LoaderOptions`.

    Attributes:
        history: One :data:`~augsubset.history.Event` per selection and per epoch, oldest first.
        dataset, model, num_replicas, seed, weights, options, plan: As given; ``plan`` is the shape
            of an epoch.
        batch_size, drop_last, num_workers, pin_memory, collate_fn, generator: The DataLoader's;
            ``batch_sampler`` is ``None``.
        source, info, pipeline, row_sampler, prober, schedule, counts: The parts that the loader is
            composed of, from the data to the history. Read them, do not replace them.

    Yields:
        ``(x, y)`` or ``(x, y, w)`` on the device: x float32, or half precision for such a model
        (inputs that are not ``(B, C, H, W)`` images keep theirs), classes y int64, w float32.

    Raises:
        TypeError: If loader, model, dataset or a batch is of the wrong kind.
        ValueError: If a value is out of range, images are outside [0, 1], or the loader has a
            batch sampler of its own. Both are raised at construction.
        AugsubsetError: If a second iterator is started while one is live, the dataset changed its
            length, weights are NaN or infinite when an epoch starts, the data is not sharded, or
            sharded twice, or the selector needs gradients of a model split over ranks.

    Cost:
        A selection takes a forward pass over the data and a solve (see
        :func:`~augsubset.select_coreset`); a batch, its copies' augmentation and about 0.1 ms of
        bookkeeping; an epoch, one wait for the device, to check the model's weights. Construction
        fetches two examples, and eight twice, by which a checkpoint recognises the dataset. It
        fetches all if no attribute has their classes and ``fraction`` may be too small for each.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from augsubset import RandomOps
        >>> images = torch.randint(0, 256, (40, 3, 8, 8)).to(torch.uint8)
        >>> data = TensorDataset(images, torch.arange(40) % 4)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> loader = SubsetAugmentLoader(loader, model, RandomOps.randaugment(), seed=0)
        >>> for x, y in loader:
        ...     loss = nn.functional.cross_entropy(model(x), y)
        >>> loader
        SubsetAugmentLoader(56 rows in 7 batches: 40 originals and 4 copies of each of 4 examples,
            selected by CoresetSelector every 20 epochs; weights='uniform', seed=0, next epoch 1)

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
        seed: int | None = None,
        progress: bool = False,
        on_event: Callable[[Event], None] | None = None,
        options: LoaderOptions = LoaderOptions(),  # noqa: B008 - frozen
    ) -> None:
        loader = unpack_batch_sampler(loader)
        order = read_order(loader)
        check_choice("weights", weights, tuple(_ROW_WEIGHTS))
        check_types(model, probe, selector, batch, options, on_event, progress)
        self.model, self.options = model, options
        self.weights: Weights = weights
        self.history: list[Event] = []
        self._on_event = on_event or (lambda entry: None)
        device = options.device if isinstance(options.device, torch.device) else None
        probe = GradientProbe(model, device=device) if probe is None else probe
        if fraction == 1 or selector is None:
            selector = None if fraction == 1 else CoresetSelector()

        self.world_size = world_size()
        ranks = self._guard = None
        if self.world_size > 1:
            # Two: one for checks while a selection may run in a thread.
            ranks, self._guard = (Ranks.make_group(options.timeout) for _ in range(2))
        self.seed, self.is_seed_given = choose_seed(seed, order.seed, ranks), seed is not None

        spec = BatchSpec() if batch is None else batch
        dtype = get_half_dtype(model) if options.dtype is None else options.dtype
        normalization = Normalization(normalize, denormalize, options.channels_last, dtype)
        check = BatchCheck(spec, normalization)
        self.source = Source(loader, seed=self.seed, resident=options.resident, check=check)
        self.dataset = self.source.dataset
        if ranks is not None:
            order = order.share_among(ranks.world_size, ranks.rank, len(self.source))
        owns = self.source.owns_batches
        self.pipeline = BatchPipeline(
            spec, normalization, augment, base, seed=self.seed, owns_batches=owns
        )
        if ranks is not None and selector is not None and selector.needs_gradients:
            probe.check_alone()
        where = device or get_model_device(model)
        self.info = inspect_dataset(
            self.source, self.pipeline, probe, selector, fraction, where, progress
        )
        num_candidates = len(self.info.candidates)
        budget = budget_from_fraction(fraction, num_candidates, self.info.num_classes)
        self.row_sampler = WeightedCoresetSampler(
            self.source.dataset,
            budget=budget,
            copies=copies,
            originals=originals,
            weights=_ROW_WEIGHTS[weights],
            shuffle=order.shuffle,
            order=self.source.order,
            seed=self.seed,
            num_replicas=order.num_replicas,
            rank=order.rank,
            drop_last=order.drop_last,
            layout=options.layout,
            batch_size=loader.batch_size,
        )
        self.plan, self.num_replicas = self.row_sampler.plan, self.row_sampler.num_replicas
        self.batch_size, self.drop_last = cast(int, loader.batch_size), loader.drop_last
        self.num_workers, self.pin_memory = loader.num_workers, loader.pin_memory
        self.collate_fn, self.generator = loader.collate_fn, loader.generator
        self.batch_sampler = None
        self._batches = self.source.make_loader(self.row_sampler, drop_last=loader.drop_last)
        check_batches(model, len(self.row_sampler), self.batch_size, self.drop_last)
        self.prober = Prober(
            model,
            probe,
            self.source,
            self.pipeline,
            device=device,
            progress=progress,
            recycle=options.recycle,
            has_classes=self.info.has_classes,
            batches_per_epoch=len(self._batches),
        )
        self.schedule = SelectionSchedule(
            selector,
            self.prober,
            every=every,
            start_epoch=options.start_epoch,
            budget=budget,
            info=self.info,
            seed=self.seed,
            background=options.background,
            ranks=ranks,
            timeout=options.timeout,
        )
        self.counts = SelectionCounts(self.info.groups)
        if self._guard is not None:
            self._guard.check_same(get_setting(self))
        # Where the state stands, and where the next iter() starts: epoch, and rows of it handed
        # out over all ranks. They differ while an epoch runs and after one that was broken off.
        self._at = self._next = (0, 0)
        self.is_running = self._is_guarded = False
        self._iterators: WeakSet[Generator[Any, None, None]] = WeakSet()

    # The main path: an epoch, a batch.

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over the next epoch; it selects first if a selection is due."""
        iterator = self._iterate_epoch()
        self._iterators.add(iterator)
        return iterator

    def _iterate_epoch(self) -> Generator[Any, None, None]:
        if self.is_running:
            raise AugsubsetError(
                "this loader already has a live iterator, and each iter() is an epoch. Finish it, "
                "end it by loader.close(), or construct a second loader."
            )
        if (epoch := self.source.read_epoch()) is not None:
            self.set_epoch(epoch)
        self._check_unchanged()
        check_epoch_exists(self._next[0])
        self._at = epoch, begin = self._next
        device = self.prober.device
        timer = EpochTimer(device)
        num_rows = num_copies = 0
        has_started = is_exhausted = False
        self.is_running = True
        try:
            with timer.on_cpu("selection"):
                if not begin:
                    for new in self.schedule.before_epoch(epoch):
                        self._adopt(new)
                    self.row_sampler.seek(epoch)
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
                    self._at = (epoch, self._at[1] + len(batch.keys) * self.num_replicas)
                    yield batch.output
            is_exhausted = True
            self.schedule.after_epoch()
        finally:
            self.is_running = False
            completed = has_started and self.count_batches(self._at[1]) == 0
            if is_exhausted:
                self._at = self._next
            counted = {"num_rows": num_rows, "num_copies": num_copies, "completed": completed}
            self.history.append({"event": "epoch", "epoch": epoch, **counted, **timer.read()})
            self._on_event(self.history[-1])

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
        weights = self.row_sampler.weights_for(keys)
        if self.weights == "unscaled":
            return weights
        return weights / self.row_sampler.mean_weight(self._at[0])

    def _adopt(self, new: NewSelection) -> None:
        """Use a selection from the next epoch that starts, and record it."""
        self.counts.set_labels(self.info.groups)
        self.row_sampler.set_selection(new.selection)
        self.history.append({**new.entry, **self.counts.add(new.selection)})
        new.confirm()
        self._on_event(self.history[-1])  # last: it may save the state, or raise

    def _check_unchanged(self) -> None:
        """Raise if the dataset's length or ranks changed since construction, or ranks differ."""
        if self.source.refresh(self._batches):
            self.prober.forget()
        check_world_size(self.world_size)
        if self._guard is not None:
            epoch, position = self._next
            is_due = self.schedule.is_due(epoch)
            self._guard.check_same({"epoch": epoch, "position": position, "selection due": is_due})

    def _check_shards(self, keys: Tensor, begin: int) -> None:
        """Compare the ranks' first batches: each must have its own share of one order."""
        self._is_guarded = True
        if self._guard is not None:
            expected = self.row_sampler.first_keys(begin, len(keys))
            self._guard.check_shares(self.row_sampler.rank, expected, keys.tolist())

    # Around the loop.

    def close(self) -> None:
        """End the live iterator, if there is one; the next ``iter()`` is the next epoch.

        Raises:
            AugsubsetError: If it is called while a batch or a selection is being made, by a signal
                handler or a callback.
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
        not, because the model continues training. On several ranks, call it on all.
        """
        self._check_unchanged()
        new = self.schedule.reselect(self._next[0], stands_for=self.epoch)
        self._adopt(new)
        return new.selection

    def preprocess(self, x: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` images as the model sees originals, on its device.

        For validation: normalised as in training, without augmentation.

        Raises:
            ValueError: If values are outside the range of the dataset's images.
        """
        return self.pipeline.preprocess(x, self.prober.device)

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch the next ``iter()`` starts; without it, the one after the last.

        It has no effect if a loaded state is in the middle of that epoch. Calling ``set_epoch`` of
        your DistributedSampler does the same. There are 8,192 epochs.
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
        """Return the number of batches per epoch; only an epoch resumed in its middle has fewer."""
        return len(self._batches)

    @property
    def num_rows(self) -> int:
        """Rows that a whole epoch yields on this rank: divide a sum of losses by this."""
        return min(len(self.row_sampler), len(self) * self.batch_size)

    @property
    def num_batches_left(self) -> int:
        """Batches that the running epoch still yields; between epochs, those of the next."""
        return self.count_batches((self._at if self.is_running else self._next)[1])

    def count_batches(self, position: int) -> int:
        """Return how many batches are left of an epoch from a position on."""
        full, rest = divmod(self.row_sampler.rows_left(position), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def selection(self) -> Selection | None:
        """The latest selection, ``None`` before the first epoch."""
        return cast(Selection | None, self.row_sampler.selection)

    @property
    def sampler(self) -> Any:
        """Not available; ``hasattr`` returns False."""
        raise AttributeError(
            "a SubsetAugmentLoader has no sampler for others, such as skip_first_batches: a "
            "DataLoader built from it would not augment. Resume by load_state_dict, which skips "
            "what was consumed; under a Hugging Face Trainer with ignore_data_skip=True."
        )

    def __repr__(self) -> str:
        ranks = f" over {self.num_replicas} ranks" if self.num_replicas > 1 else ""
        how = f"selected by {self.schedule.selector_name} every {self.schedule.every} epochs"
        return (
            f"SubsetAugmentLoader({len(self.plan):,} rows{ranks} in {len(self):,} batches: "
            f"{self.plan.describe()}"
            f"{'' if self.schedule.selector is None else f',{chr(10)}    {how}'}; "
            f"weights={self.weights!r}, seed={self.seed}, "
            f"{'' if self.is_running else 'next '}epoch {self.epoch})"
        )

    def __reduce__(self) -> Any:
        """Refuse to be pickled or copied."""
        raise TypeError(
            "a SubsetAugmentLoader cannot be pickled: it holds the model, workers and a CUDA "
            "stream. Save loader.state_dict(), and construct the loader anew where it is needed."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, except the model.

        In the loop, the batches yielded so far count as consumed; after leaving it early, by
        ``break``, :meth:`close` or an exception, the state records where it stopped until the next
        ``iter()`` starts. It holds tensors, numbers and strings only, which ``torch.load`` reads
        with ``weights_only=True``; tensors are not copied. All ranks return the same, except with
        ``recycle``. Waits for a selection that is being solved in the background.
        """
        return make_state(self, *self._at)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was called, on any number of workers or ranks.

        The next ``iter()`` yields the rest of the epoch: nothing if the state was made at its
        last batch. On another number of ranks later selections may differ in close calls, since
        residuals differ in their last bits. Loop over ``range(loader.epoch, num_epochs)``.

        Raises:
            AugsubsetError: While an epoch runs.
            TypeError: If it is not a mapping.
            ValueError: If it is damaged, or its dataset, shape of epoch or version differs, or its
                seed from one that you passed. Nothing is changed then.
        """
        if self.is_running:
            raise AugsubsetError(
                "a state cannot be loaded while an epoch runs. Call loader.close() first."
            )
        self._at = self._next = restore_state(self, state)
        self._is_guarded = False  # ranks may have been given different states
