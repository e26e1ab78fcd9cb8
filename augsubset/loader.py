"""The main path: a user's DataLoader in, selected, augmented, weighted batches out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal
from weakref import WeakMethod

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from augsubset.batch import BatchParts
from augsubset.distributed import Ranks, world_size
from augsubset.finite import check_finite
from augsubset.history import Tally
from augsubset.labels import looked_at
from augsubset.normalization import MeanStd, PixelRange
from augsubset.pipeline import BatchCheck, Delivery, Policy, Ready
from augsubset.probe.logit_cache import Harvest
from augsubset.probe.probe import GradientProbe, model_device
from augsubset.reporting import Picture, Shown, run_pictures, summary, write_run
from augsubset.reporting.cost_model import Diagnosis, Settings
from augsubset.reporting.doctor import Loop, diagnose
from augsubset.sampling import (
    Layout,
    Mode,
    Raw,
    WeightedCoresetSampler,
    loader_order,
)
from augsubset.sampling.source import Source, opened, started
from augsubset.schedule import Probed, SelectionSchedule, pack_selection, unpack_selection
from augsubset.selection import (
    AllSelector,
    CoresetSelector,
    Selection,
    Selector,
    budget_from_fraction,
)
from augsubset.timing import EpochClock
from augsubset.utils.checks import AugsubsetError, check_choice, check_int, check_state
from augsubset.utils.rng import MAX_SEED, forked_rng

__all__ = ["SubsetAugmentLoader"]

_log = logging.getLogger(__name__)

Event = dict[str, Any]


class SubsetAugmentLoader:
    """Iterate over originals and augmented copies of a small weighted subset, chosen anew.

    Every ``every`` epochs the model's last-layer gradients are probed and a weighted subset is
    selected per class. An epoch holds the originals and ``copies`` augmented copies of each
    selected example; augmentation runs in batches on the model's device, on the copies alone.

    Each ``iter()`` is the next epoch. Iteration order, augmentation and weights are functions of
    (seed, epoch, selection): not of workers, prefetching or the start method.

    Args:
        loader: A plain DataLoader over a map-style dataset whose batches are (inputs, labels)
            pairs, or dicts or tuples that name them. Its batch size, workers, collate function,
            pinning and order (shuffled, sequential, or a DistributedSampler's) are taken over; the
            loader itself is not used again. The collate function must keep every row, in order,
            and not modify items in place. On several ranks the order is shared among them: by the
            DistributedSampler's word, else by torch.distributed's, which must be initialised.
        model: The model in training: probed for gradients, and its device is where batches go.
        augment: The strong policy, ``(x, rows) -> x``, or with ``others`` parts
            ``(x, rows, *others) -> (x, *others)``; it sees the copies only.
        fraction: Share of the examples to augment, in (0, 1]; at least one a class. Without
            effect for :class:`~augsubset.AllSelector`.
        copies: Augmented copies of each selected example, r.
        every: Epochs between selections, R.
        start_epoch: First epoch of the schedule: until then the subset is random.
        selector: The rule; :class:`~augsubset.CoresetSelector` by default.
        raw: Which originals take part; see :class:`~augsubset.WeightedCoresetSampler`.
        mode: ``"weight"``: yields ``(x, y, w)``, each row once. ``"sample"``: yields ``(x, y)``,
            for losses without a per-example form: copies are drawn in proportion to their weight;
            see :class:`~augsubset.WeightedCoresetSampler` for what that optimises.
        weights: ``"paper"``: cluster size / r on each copy, 1 on each original, both scaled so
            that their mean over the epoch is 1 and the learning rate keeps its meaning;
            ``"unscaled"`` leaves them; ``"uniform"`` is 1 everywhere. Padding is always 0.
        max_weight: Caps a cluster size at this multiple of the mean; ``None``: no cap.
        base: Policy for every row, after the strong one; ``None``: nothing.
        normalize: ``(mean, std)`` a channel, applied last.
        denormalize: ``(mean, std)`` that the dataset applied already; undone before augmenting
            and applied again last, which costs originals a rounding in the last bits. Exclusive
            with ``normalize``.
        probe: A :class:`~augsubset.GradientProbe` of your own, where calling the model on a batch
            does not return ``(B, C)`` logits.
        device: Where batches go; ``None`` asks the model at the start of each epoch.
        seed: Distinguishes runs.
        channels_last: Yield images in that memory format.
        inputs: Key (of dict batches), field or position of the inputs, where it is neither the
            first of a pair nor of a usual name; a list of them: x is a dict.
        labels: Likewise, of the labels. One class index an example is selected by class;
            anything else (floats, several a row, boxes) in one group, and needs a ``probe`` that
            knows its loss, or a selector without gradients.
        others: Keys, fields or positions of parts that policies transform with the inputs: masks,
            boxes. They come back in their places: among them the labels, or with ``whole=True``.
        whole: Yield batches in the structure that the collate function gave them, with the inputs
            augmented and all tensors on the device: ``(batch, w)``, or ``batch`` in
            ``mode="sample"``.
        return_index: Yield the dataset index of each row as well, last.
        layout: ``"mixed"``: rows in any order. ``"grouped"``: an example's original and copies in
            one batch, where its item is fetched a single time; all batches are of one size.
        resident: Keep the images of a uint8 ``TensorDataset`` on the device: no workers, no
            collation; the same keys, order and augmentation.
        background: Solve in a thread while the epoch that probed trains on with the old selection;
            the new one is in force from the epoch after, which waits for it. The first selection
            has no predecessor and is made at once. An error in the thread is raised here, when
            that epoch ends or the next begins.
        recycle: Originals that the model saw in training at most this many epochs ago are not
            probed anew: what it said of them then counts, under the base augmentation and in
            training mode. Each batch must go through the model in one pass. ``None``: probe all.
            On several ranks an example is measured by the one that saw it last.
        on_event: Called with each entry of :attr:`history` as it is made.
        progress: Show bars while probing and gathering labels (needs tqdm).
        timeout: How long a rank waits for another before it raises.

    Yields:
        ``(x, y, w)`` on the device: x float (uint8 without ``normalize`` is divided by 255; what
        is no ``(B, C, H, W)`` image stays as it is), classes y int64, w float32. Other parts are
        left behind without ``whole``.

    Raises:
        TypeError: At construction, if the loader, model, dataset or a batch is of the wrong kind.
        ValueError: At construction, if a value is out of range, images are outside [0, 1], or the
            loader has a sampler or batch sampler of its own.
        AugsubsetError: If a second iterator is started while one is live, the dataset changed its
            length, weights are NaN or infinite when an epoch starts (each rank looks at its own),
            ranks are not sharded, or twice, or should probe a model that is spread over them.

    Cost:
        A selection is one forward pass over the data and a solve (see
        :func:`~augsubset.select_coreset`); a batch adds the augmentation of its copies and about
        0.1 ms of key handling. An epoch begins with a look at the model's weights, which waits
        for the device once. Construction fetches two examples, and eight spread over the dataset
        twice, by which a checkpoint knows it; all once where the dataset has no ``targets``,
        ``labels`` or tensors to count the classes by. Where those are no classes they are read
        through.

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
        start_epoch: int = 0,
        selector: Selector | None = None,
        raw: Raw = "all",
        mode: Mode = "weight",
        weights: Literal["paper", "uniform", "unscaled"] = "paper",
        max_weight: float | None = None,
        base: Policy | None = None,
        normalize: MeanStd | None = None,
        denormalize: MeanStd | None = None,
        probe: GradientProbe | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        channels_last: bool = False,
        inputs: str | int | Sequence[str | int] | None = None,
        labels: str | int | None = None,
        others: Sequence[str | int] = (),
        whole: bool = False,
        return_index: bool = False,
        layout: Layout = "mixed",
        resident: bool = False,
        background: bool = False,
        recycle: int | None = None,
        on_event: Callable[[Event], None] | None = None,
        progress: bool = False,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        order = loader_order(loader)
        check_choice("mode", mode, ("weight", "sample"))
        check_choice("weights", weights, ("paper", "uniform", "unscaled"))
        flags = {
            "background": background,
            "channels_last": channels_last,
            "progress": progress,
            "resident": resident,
            "return_index": return_index,
            "whole": whole,
        }
        for name, flag in flags.items():
            check_choice(name, flag, (False, True))
        if mode == "sample" and weights != "paper":
            raise ValueError(f'weights must be "paper" in mode="sample", got weights={weights!r}.')
        selector = CoresetSelector() if selector is None else selector
        _check_types(model, probe, selector, on_event)
        if max_weight is not None and not max_weight > 0:
            raise ValueError(f"max_weight must be positive, got max_weight={max_weight}.")
        self._model = model
        self._weights = weights
        self._max_weight = max_weight
        self._pixels = PixelRange(normalize, denormalize, channels_last)
        self._probe = GradientProbe(model, device=device) if probe is None else probe
        self._device = None if device is None else torch.device(device)
        self._seed = check_int("seed", seed, 0, MAX_SEED)
        self._progress = progress
        self._on_event = on_event
        self._history: list[Event] = []

        self._world_size = world_size()
        ranks = Ranks.apart(timeout) if self._world_size > 1 else None
        self._guard = Ranks.apart(timeout) if self._world_size > 1 else None
        parts = BatchParts(inputs, labels, others)
        check = BatchCheck(parts, self._pixels)
        self._source = Source(loader, seed=self._seed, resident=resident, check=check)
        self._delivery = Delivery(
            parts,
            self._pixels,
            augment,
            base,
            seed=self._seed,
            whole=whole,
            return_index=return_index,
            owns_batches=self._source.owns_batches,
        )
        n = len(self._source)
        if ranks is not None and n < ranks.world_size:
            raise ValueError(
                f"dataset must hold at least one example a rank, got {n} for "
                f"{ranks.world_size} ranks."
            )
        if self._world_size > 1 and selector.needs_gradients:
            self._probe.check_alone()
        probed = self._probe if selector.needs_gradients else None
        self._examples = looked_at(self._source, self._delivery, probed, progress)
        budget = (
            n  # the one rule that takes everything whatever the fraction
            if isinstance(selector, AllSelector)
            else budget_from_fraction(fraction, n, self._examples.num_classes)
        )
        num_replicas, rank = order.num_replicas, order.rank
        if ranks is not None and num_replicas is None:
            num_replicas, rank = ranks.world_size, ranks.rank
        if ranks is not None and num_replicas == 1:
            raise ValueError(
                f"loader must be sharded among the {ranks.world_size} ranks, got a "
                "DistributedSampler with num_replicas=1: each would train on everything."
            )
        self._sampler = WeightedCoresetSampler(
            self._source.dataset,
            budget=budget,
            copies=copies,
            raw=raw,
            mode=mode,
            shuffle=order.shuffle,
            seed=self._seed,
            num_replicas=num_replicas,
            rank=rank,
            drop_last=order.drop_last,
            layout=layout,
            batch_size=loader.batch_size,
        )
        self._batches = self._source.data_loader(self._sampler, drop_last=loader.drop_last)
        if len(self._batches) == 0:
            raise ValueError(
                f"drop_last must leave at least one batch, got {len(self._sampler)} rows a rank "
                f"for batch_size={loader.batch_size}."
            )
        self._schedule = SelectionSchedule(
            selector,
            every=every,
            start_epoch=start_epoch,
            budget=budget,
            num_examples=n,
            seed=self._seed,
            background=background,
            probe=_weakly(self._probed),
            recorded=None if recycle is None else _weakly(self._recorded),
            record=_weakly(self._selected),
            ranks=ranks,
            timeout=timeout,
        )
        classes = self._examples.classes
        self._tally = Tally(torch.zeros(n, dtype=torch.int64) if classes is None else classes)
        self._recycle = recycle if recycle is None else check_int("recycle", recycle, 1)
        self._harvest = Harvest(n)
        if recycle is not None:
            if classes is None:
                raise ValueError(
                    "recycle must be None where labels are no class index an example, got "
                    f"recycle={recycle}."
                )
            with self._probe.attached(into=self._harvest):
                pass  # refuses a probe that cannot be attached
        self._next_epoch = 0
        self._running: int | None = None  # the epoch of the live iterator
        self._position = 0  # rows of the epoch handed out, over all ranks
        self._in_force: Selection | None = None  # in the epoch that runs or will go on
        self._is_guarded = False

    # The main path, from the top: an epoch, a batch, a row.

    def __iter__(self) -> Iterator[Any]:
        """Start the next epoch, with a selection first where one is due."""
        if self._running is not None:
            raise AugsubsetError(
                "this loader already has a live iterator, and each one is an epoch of its own. "
                "Finish it, close() it, or construct a second loader."
            )
        self._check_world()
        epoch, resumes_at = self._next_epoch, self._position
        device = self._device or model_device(self._model)
        clock = EpochClock(device)
        self._running = epoch
        num_yielded = num_copies = 0
        completed = False
        observed = ExitStack()
        try:
            with clock.on_host("selection"):
                if not resumes_at:
                    self._schedule.before(epoch)
                    self._in_force = self._schedule.latest
                assert self._in_force is not None
                check_finite(self._model, epoch)
                self._sampler.set_selection(self._capped(self._in_force))
            self._sampler.set_epoch(epoch)
            self._next_epoch = epoch + 1
            self._source.to(device)
            passes_before = self._harvest.passes
            if self._recycle is not None:
                observed.enter_context(self._probe.attached(into=self._harvest))
            batches = self._ready_batches(clock, epoch, device)
            for batch in self._delivery.ahead(batches, device):
                if not self._is_guarded:
                    self._check_shards(batch.keys, resumes_at)
                num_yielded += len(batch.keys)
                num_copies += batch.num_copies
                if self._recycle is not None:
                    self._harvest.expect(batch.originals, batch.labels)
                # Counted before it is handed out: a checkpoint that its consumer makes has it.
                self._position += len(batch.keys) * self._sampler.num_replicas
                yield batch.output
            completed = True
            if self._recycle is not None and self._harvest.passes == passes_before:
                _log.warning(
                    "recycle=%d found nothing in epoch %d: no batch went through the model that "
                    "the loader was given, in training mode. All examples are probed anew",
                    self._recycle,
                    epoch,
                )
            self._schedule.after()
        finally:
            self._running = None
            self._position = 0
            observed.close()
            self._record(
                {
                    "event": "epoch",
                    "epoch": epoch,
                    "num_rows": num_yielded,
                    "num_copies": num_copies,
                    "completed": completed,
                    **clock.read(),
                }
            )

    def _ready_batches(
        self, clock: EpochClock, epoch: int, device: torch.device
    ) -> Iterator[Ready]:
        """Yield the epoch's batches on the device, each made when it is asked for."""
        move = partial(self._source.moved, device=device)
        batches = started(self._batches)
        while True:
            with clock.on_host("loading"):
                fetched = next(batches, None)
                if fetched is None:
                    return
                batch, keys = opened(fetched)
                parts = self._delivery.split(batch)
                w = self._weights_of(keys, epoch) if self._sampler.plan.mode == "weight" else None
            with clock.augmentation():
                ready = self._delivery.ready(batch, parts, keys, w, move, clock.strong)
            yield ready

    def _weights_of(self, keys: Tensor, epoch: int) -> Tensor:
        w = self._sampler.weights_for(keys)
        if self._weights == "uniform":
            return (w > 0).to(w.dtype)
        if self._weights == "paper":
            return w / self._sampler.mean_weight(epoch)
        return w

    # Selection.

    def reselect(self) -> Selection:
        """Select now, with the model as it is; in force from the next epoch that starts.

        The schedule goes on: between epochs this stands for the selection due at the next one;
        while an epoch runs it does not, since the model goes on training. On several ranks, call
        it on all.

        Raises:
            AugsubsetError: If the dataset changed its length, or the world its ranks.
        """
        self._check_world()
        return self._schedule.reselect(self._next_epoch, stands_for=self.epoch)

    def _probed(self, indices: Tensor | None) -> Probed:
        """Probe some examples, or all of them."""
        if indices is not None:
            self._probe.check_alone()  # the model may have been spread over ranks since
        self._source.to(self._device or model_device(self._model))
        options: dict[str, Any] = {
            "prepare": lambda fetched: self._delivery.original(opened(fetched)[0]),
            "indices": indices,
            "progress": self._progress,
        }
        if self._recycle is None:
            return Probed(self._probe.scan(self._source.data_loader(), **options))
        ages = self._recorded()
        gradients = self._probe.scan(
            self._source.data_loader(), reuse=self._harvest, max_age=self._max_age, **options
        )
        return Probed(gradients, int(((ages if indices is None else ages[indices]) >= 0).sum()))

    def _recorded(self) -> Tensor:
        """Return the ages of what training told of examples, -1 where that is nothing recent."""
        ages = self._harvest.ages
        return torch.where(ages <= self._max_age, ages, -1).int()

    @property
    def _max_age(self) -> int:
        """Training passes that recycling goes back."""
        assert self._recycle is not None
        return self._recycle * len(self)

    def _capped(self, selection: Selection) -> Selection:
        return selection if self._max_weight is None else selection.capped(self._max_weight)

    # Ranks.

    def _check_world(self) -> None:
        """Refuse what changed since construction."""
        n = len(self._source.dataset)
        if n != len(self._source):
            raise AugsubsetError(
                f"the dataset must keep its length {len(self._source)}, got {n}. Selections and "
                "keys are of the examples there were: construct a new loader."
            )
        if world_size() != self._world_size:
            raise AugsubsetError(
                f"the world must be of {self._world_size} ranks as at construction, got "
                f"{world_size()}: what is sharded for one would be missing or doubled in the "
                "other. Construct the loader after init_process_group; in Lightning, by prepare() "
                "in the hook train_dataloader()."
            )

    def _check_shards(self, keys: Tensor, begin: int) -> None:
        """Compare the ranks' first batches: each must have its own share of one order."""
        self._is_guarded = True
        if self._guard is not None:
            sampler = self._sampler
            expected = sampler.first_keys(begin, len(keys))
            self._guard.check_shares(sampler.rank, expected, keys.tolist())

    # Around the loop.

    def preprocess(self, x: Tensor) -> Tensor:
        """Return images as the model sees originals that nobody augmented, on its device.

        For validation, so that it gets the very normalisation of training.

        Args:
            x: As the dataset's batches are: uint8, float in [0, 1], or normalised where the loader
                was told so. ``(B, C, H, W)``

        Raises:
            ValueError: If values are outside the range.
        """
        self._pixels.check(x)
        x = self._source.moved(x, self._device or model_device(self._model))
        seen: Tensor = self._pixels.to_model(self._pixels.to_unit(x))
        return seen

    def __len__(self) -> int:
        """Return the number of batches in an epoch: the same every epoch.

        Only what is left of an epoch after :meth:`load_state_dict` is shorter.
        """
        return len(self._batches)

    @property
    def batch_size(self) -> int:
        """Rows a batch, as the user's DataLoader has it."""
        assert self._batches.batch_size is not None
        return self._batches.batch_size

    @property
    def num_replicas(self) -> int:
        """Ranks that share the order."""
        return self._sampler.num_replicas

    @property
    def num_batches_left(self) -> int:
        """Batches that the next ``iter()`` yields, or that the running one still does."""
        whole, rest = divmod(self._sampler.rows_left(self._position), self.batch_size)
        return whole + (rest > 0 and not self._batches.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch that runs, or else the one that the next ``iter()`` starts."""
        return self._next_epoch if self._running is None else self._running

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next ``iter()`` starts; without it, the one after the last.

        Said of the epoch that :meth:`load_state_dict` was in the middle of, nothing changes.
        """
        before = self._next_epoch
        self._sampler.set_epoch(epoch)
        self._next_epoch = int(epoch)
        if self._next_epoch != before and self._running is None:
            self._position = 0

    @property
    def selection(self) -> Selection | None:
        """The latest selection, weights uncapped; ``None`` before the first epoch."""
        return self._schedule.latest

    @property
    def history(self) -> list[Event]:
        """One dict a selection and one an epoch, oldest first.

        ``event="selection"``: epoch (of the probe), in_force_from, selector, num_selected,
        effective_sample_size, probe_seconds, num_recycled, solve_seconds, digest, the
        certificate's figures, where there is one, overlap (share that the selection before had
        too), covered (share of all examples selected so far) and class_counts.
        ``event="epoch"``: epoch, num_rows, num_copies, whether it completed, and seconds of
        selection, loading, augmentation, step (what remains: the caller's code) and total; of the
        augmentation strong is the part of the copies, beside what is done to every row.
        """
        return self._history

    def _selected(self, entry: Event, selection: Selection) -> None:
        self._record({**entry, **self._tally.add(selection)})

    def _record(self, entry: Event) -> None:
        self._history.append(entry)
        if self._on_event is not None:
            self._on_event(entry)

    def doctor(
        self, steps: int = 50, step: Callable[[Any, Any, Tensor], None] | None = None
    ) -> Diagnosis:
        """Measure this loop, and say whether subset augmentation would pay in it.

        Leaves no trace in the model, the loader or the generators, but for what a ``step`` of your
        own does. On several ranks one may call it alone, and figures are of an epoch there: nothing
        waits for the others, and what ``DistributedDataParallel`` exchanges is not counted. A
        ``step`` of your own that exchanges something, as a backward pass through that does, must
        be called on all.

        Args:
            steps: Batches to measure, or fewer where the data has no more.
            step: A gradient step ``(x, y, w)``; by default a forward and a backward pass on a copy
                of the model, without an optimizer.

        Returns:
            A table and a verdict; ``print`` it.

        Cost:
            Two passes over so many batches, and up to eleven steps and twice as many augmentations
            of one. Probing is taken to grow with the examples, solving, on this rank alone, with
            their square, unless the rule made a selection already: then that one's times count.
        """
        steps = check_int("steps", steps, 1)
        if self._running is not None:
            raise AugsubsetError("the doctor cannot come while an epoch runs. Close it first.")
        device = self._device or model_device(self._model)
        settings = Settings(
            self._sampler.plan,
            every=self._schedule.every,
            num_workers=self._source.num_workers,
            batch_size=self.batch_size,
            num_replicas=self.num_replicas,
            world_size=self._world_size,
            has_rule=not isinstance(self._schedule.selector, AllSelector),
            is_resident=self._source.is_resident,
            background=self._schedule.background,
            recycle=self._recycle,
            weights=self._weights,
            max_weight=self._max_weight,
        )
        with forked_rng(self._seed, [device]):
            return diagnose(
                Loop(
                    self._model,
                    self._probe,
                    self._source,
                    self._delivery,
                    self._schedule,
                    settings,
                    self._history,
                    self._seed,
                    self.epoch,
                ),
                steps,
                step,
                device,
            )

    def report(self, path: str | PathLike[str], *, images: int = 12, spectrum: int = 0) -> Path:
        """Write what was selected so far, and what it saved, as a page, JSON and CSV.

        Args:
            path: A folder, made if it is not there.
            images: Most, least and never selected examples to show, each with two copies.
            spectrum: Selected examples whose Jacobian's singular values are shown, original and
                augmented (needs scipy); 0 for none.

        Returns:
            The page, ``index.html`` in the folder: one file that fetches nothing.

        Raises:
            ImportError: If there are images to show and Pillow is not installed
                (``pip install "augsubset[report]"``), or scipy for a spectrum.
            AugsubsetError: While an epoch runs.

        Cost:
            A fetch an image; a spectrum is a backward pass an output and example.
        """
        check_int("images", images, 0)
        check_int("spectrum", spectrum, 0)
        with self._shown() as shown:
            return write_run(path, self.state_dict(), shown, images=images, spectrum=spectrum)

    def pictures(self, images: int = 12) -> dict[str, list[Picture]]:
        """Return the ``most``, ``least`` and ``never`` selected examples as the report shows them.

        Args:
            images: Of each list; none where inputs are no images.

        Raises:
            AugsubsetError: While an epoch runs.
        """
        check_int("images", images, 1)
        with self._shown() as shown:
            return run_pictures(summary(self.state_dict(), num_listed=images), shown)

    @contextmanager
    def _shown(self) -> Iterator[Shown]:
        """What a report shows beside figures, for as long as generators are forked."""
        if self._running is not None:
            raise AugsubsetError("a report cannot be written while an epoch runs. Close it first.")
        device = self._device or model_device(self._model)
        self._source.to(device)
        with forked_rng(self._seed, [device]):
            yield Shown(self._model, self._source, self._delivery, self._examples.classes, device)

    @property
    def dataset(self) -> Any:
        """The user's dataset."""
        return self._source.dataset

    @property
    def sampler(self) -> Any:
        """Refuse to give it away; ``hasattr`` says no, as before."""
        raise AttributeError(
            "a SubsetAugmentLoader has no sampler for others, such as accelerate's "
            "skip_first_batches: a DataLoader made of it would neither augment nor weigh. Resume "
            "by load_state_dict, which skips what was consumed; under a Hugging Face Trainer by "
            "augsubset.integrations.transformers with ignore_data_skip=True."
        )

    def __reduce__(self) -> Any:
        """Refuse to be pickled or copied."""
        raise TypeError(
            "a SubsetAugmentLoader cannot be pickled: it holds the model, workers and a stream. "
            "Save loader.state_dict(), and construct it anew where it is needed."
        )

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, beside the model.

        Made while an epoch runs, the batches yielded so far count as consumed. Tensors, numbers
        and strings alone, which ``torch.load`` reads with ``weights_only=True``; the tensors are
        the loader's own, not copies. All ranks return the same, but for ``recycle``. Waits for a
        selection that is solved in the background.
        """
        return {
            "version": 3,
            **self._identity(),
            "example_digest": self._examples.digest,
            "epoch": self.epoch,
            "position": self._position if self.num_batches_left else len(self._sampler.plan),
            "num_replicas": self.num_replicas,
            "in_force": pack_selection(self._in_force),
            "schedule": self._schedule.state_dict(),
            "harvest": None
            if self._recycle is None
            else {**self._harvest.state_dict(), **self._sampler.share},
            "history": [dict(entry) for entry in self._history],
            "tally": self._tally.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was made, on any number of workers or ranks.

        The next ``iter()`` yields what was left of the epoch, and nothing where the state was
        made at its last batch: a loop ``for epoch in range(loader.epoch, num_epochs)`` goes on.

        Raises:
            AugsubsetError: While an epoch runs.
            TypeError: If it is no mapping.
            ValueError: If something is missing or damaged, or it is of another dataset, seed or
                shape of epoch. Nothing is changed then.
        """
        if self._running is not None:
            raise AugsubsetError("a state cannot be loaded while an epoch runs. Close it first.")
        keys = ("example_digest", "in_force", "schedule", "harvest", "history", "tally")
        check_state("state_dict", state, ("version", *keys, *self._identity()))
        check_state("state_dict", state, (), same={"version": 3, **self._identity()})
        if None not in (state["example_digest"], self._examples.digest):
            check_state("state_dict", state, (), same={"example_digest": self._examples.digest})
        at = self._sampler.checked(state)
        in_force = unpack_selection(state["in_force"], len(self._source))
        schedule = self._schedule.checked(state["schedule"])
        if at["position"] and in_force is None:
            raise ValueError("state_dict must hold a selection in the middle of an epoch.")
        harvest = Harvest(len(self._source))
        if self._recycle is not None and state["harvest"] is not None:
            harvest.load_state_dict(state["harvest"])
            there = {name: state["harvest"].get(name) for name in self._sampler.share}
            if there != self._sampler.share:
                _log.warning(
                    "recycling goes on from what %s saw in training, here on %s: the next "
                    "selection may be another than without the stop",
                    there,
                    self._sampler.share,
                )
        history = [dict(entry) for entry in state["history"]]
        tally = self._tally.checked(state["tally"])
        if in_force is not None:
            self._sampler.set_selection(self._capped(in_force))
        self._sampler.load_state_dict({**self._sampler.state_dict(), **at})
        self._schedule.take(schedule)
        self._tally.take(tally)
        self._in_force, self._next_epoch, self._position = in_force, at["epoch"], at["position"]
        self._harvest, self._history = harvest, history
        self._is_guarded = False  # ranks may have been given different states

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for keys and positions to mean the same."""
        return {**self._sampler.identity, "labels_digest": self._examples.targets_digest}


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that does not keep its object, with data and workers, alive in a cycle."""
    weak = WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = weak()
        assert bound is not None
        return bound(*arguments)

    return call


def _check_types(model: Any, probe: Any, selector: Any, on_event: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event must be callable, got {type(on_event).__name__}.")
    if probe is not None and not isinstance(probe, GradientProbe):
        raise TypeError(f"probe must be a GradientProbe, got {type(probe).__name__}.")
    if isinstance(selector, type):
        raise TypeError(f"selector must be a rule, got the class {selector.__name__}. Call it.")
    if selector is not None and not isinstance(selector, Selector):
        raise TypeError(
            "selector must have .needs_gradients and .select(gradients, *, budget, seed, epoch), "
            f"got {type(selector).__name__}."
        )
