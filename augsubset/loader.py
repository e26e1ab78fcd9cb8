"""The main path: a user's DataLoader in, selected, augmented, weighted batches out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from augsubset.augment.keyed_random import RowKeys
from augsubset.batches import known_labels, split_batch
from augsubset.errors import AugsubsetError, check_choice, check_int
from augsubset.gradients import LastLayerGradients
from augsubset.harvest import Harvest
from augsubset.pixels import MeanStd, PixelRange
from augsubset.probe import GradientProbe, model_device
from augsubset.rng import MAX_SEED, mix_seed
from augsubset.sampling import (
    PADDING,
    SubsetAugmentDataset,
    WeightedCoresetSampler,
    loader_options,
    loader_shuffles,
    unpack,
)
from augsubset.selection import (
    AllSelector,
    CoresetSelector,
    RandomSelector,
    Selection,
    Selector,
    budget_from_fraction,
)
from augsubset.timing import EpochClock
from augsubset.transfer import sent

__all__ = ["SubsetAugmentLoader"]

_log = logging.getLogger(__name__)

Policy = Callable[[Tensor, RowKeys], Tensor]


class _Solving(NamedTuple):
    """A selection that a thread is at, and the epoch whose probe it is from."""

    epoch: int
    selection: Future[Selection]
    entry: dict[str, Any]


class SubsetAugmentLoader:
    """Iterate over originals and augmented copies of a small weighted subset, chosen anew.

    Every ``every`` epochs the model's last-layer gradients are probed and a weighted subset is
    selected per class. An epoch holds the originals and ``copies`` augmented copies of each
    selected example; augmentation runs in batches on the model's device, on the copies alone.

    Each ``iter()`` is the next epoch. Iteration order, augmentation and weights are functions of
    (seed, epoch, selection): not of workers, prefetching or the start method.

    Args:
        loader: A plain DataLoader over a map-style dataset whose batches are (inputs, labels)
            pairs, or dicts that name them. Its batch size, workers, collate function, pinning and
            order (shuffled or sequential) are taken over; the loader itself is not used again. The
            collate function must keep every row, in order, and not modify items in place.
        model: The model in training: probed for gradients, and its device is where batches go.
        augment: The strong policy, ``(x, rows) -> x``; it sees the copies only.
        fraction: Share of the examples to augment, in (0, 1]; at least one a class. Without
            effect for :class:`~augsubset.AllSelector`.
        copies: Augmented copies of each selected example, r.
        every: Epochs between selections, R.
        start_epoch: First epoch of the schedule: until then the subset is random.
        selector: The rule; :class:`~augsubset.CoresetSelector` by default.
        raw: Which originals take part; see :class:`~augsubset.WeightedCoresetSampler`.
        mode: ``"weight"``: yields ``(x, y, w)``, each row once.
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
        inputs: Key of the inputs in dict batches, where it has no usual name.
        labels: Key of the labels in dict batches, likewise.
        background: Solve in a thread while the epoch that probed trains on with the old selection;
            the new one is in force from the epoch after, which waits for it. The first selection
            has no predecessor and is made at once. An error in the thread is raised here, when
            that epoch ends or the next begins.
        recycle: Originals that the model saw in training at most this many epochs ago are not
            probed anew: what it said of them then counts, under the base augmentation and in
            training mode. Each batch must go through the model in one pass. ``None``: probe all.

    Yields:
        ``(x, y, w)`` on the device: x float (uint8 without ``normalize`` is divided by 255), y
        int64, w float32. Other parts of dict batches are left behind.

    Raises:
        TypeError: At construction, if the loader, model, dataset or a batch is of the wrong kind.
        ValueError: At construction, if a value is out of range, images are outside [0, 1], or the
            loader has a sampler or batch sampler of its own.
        AugsubsetError: If a second iterator is started while one is live.

    Cost:
        A selection is one forward pass over the data and a solve (see
        :func:`~augsubset.select_coreset`); a batch adds the augmentation of its copies and about
        0.1 ms of key handling. Construction fetches two examples, and all of them once where the
        dataset has no ``targets``, ``labels`` or tensors to count the classes by.

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
        raw: Literal["all", "unselected", "selected", "none"] = "all",
        mode: Literal["weight"] = "weight",
        weights: Literal["paper", "uniform", "unscaled"] = "paper",
        max_weight: float | None = None,
        base: Policy | None = None,
        normalize: MeanStd | None = None,
        denormalize: MeanStd | None = None,
        probe: GradientProbe | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        channels_last: bool = False,
        inputs: str | None = None,
        labels: str | None = None,
        background: bool = False,
        recycle: int | None = None,
    ) -> None:
        check_choice("mode", mode, ("weight",))
        check_choice("weights", weights, ("paper", "uniform", "unscaled"))
        check_choice("background", background, (False, True))
        check_choice("channels_last", channels_last, (False, True))
        shuffle = loader_shuffles(loader)
        _check_types(model, augment, base, probe, selector)
        if max_weight is not None and not max_weight > 0:
            raise ValueError(f"max_weight must be positive, got max_weight={max_weight}.")
        self._model = model
        self._augment = augment
        self._every = check_int("every", every, 1)
        self._start_epoch = check_int("start_epoch", start_epoch, 0)
        self._selector: Selector = CoresetSelector() if selector is None else selector
        self._weights = weights
        self._max_weight = max_weight
        self._base = base
        self._pixels = PixelRange(normalize, denormalize, channels_last)
        self._probe = GradientProbe(model, device=device) if probe is None else probe
        self._device = None if device is None else torch.device(device)
        self._seed = check_int("seed", seed, 0, MAX_SEED)
        # Policies of one class would draw the same numbers for a row; the base has its own seed.
        self._base_seed = mix_seed(self._seed, 1)
        self._parts = {"inputs": inputs, "labels": labels}

        self._dataset = SubsetAugmentDataset(loader.dataset, seed=self._seed)
        self._options = loader_options(loader)
        self._check_one_batch()
        n = len(self._dataset)
        budget = (
            n  # the one rule that takes everything whatever the fraction
            if isinstance(self._selector, AllSelector)
            else budget_from_fraction(fraction, n, self._count_classes(loader.dataset))
        )
        self._sampler = WeightedCoresetSampler(
            self._dataset, budget=budget, copies=copies, raw=raw, shuffle=shuffle, seed=self._seed
        )
        self._batches = self._data_loader(self._sampler, drop_last=loader.drop_last)
        self._recycle = recycle if recycle is None else check_int("recycle", recycle, 1)
        self._harvest = Harvest(n)
        if recycle is not None:
            with self._probe.attached(into=self._harvest):
                pass  # refuses a probe that cannot be attached
        self._next_epoch = 0
        self._live = False
        self._selection: Selection | None = None
        self._selected_period: int | None = None
        self._background = background
        self._solving: _Solving | None = None
        self._history: list[dict[str, Any]] = []

    # The main path, from the top: an epoch, a batch, a row.

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Start the next epoch, with a selection first where one is due."""
        if self._live:
            raise AugsubsetError(
                "this loader already has a live iterator, and each one is an epoch of its own. "
                "Finish it, close() it, or construct a second loader."
            )
        self._live = True
        epoch = self._next_epoch
        device = self._device or model_device(self._model)
        clock = EpochClock(device)
        num_rows = num_copies = 0
        completed = False
        observed = ExitStack()
        try:
            self._sampler.set_epoch(epoch)
            with clock.on_host("selection"):
                self._take_over(before=epoch)
                if self._period(epoch) != self._selected_period or self._selection is None:
                    self._select(epoch, background=self._background and self._selection is not None)
            self._next_epoch = epoch + 1
            if self._recycle is not None:
                observed.enter_context(self._probe.attached(into=self._harvest))
            batches = iter(self._batches)
            while True:
                with clock.on_host("loading"):
                    fetched = next(batches, None)
                    if fetched is None:
                        completed = True
                        break
                    x, y, keys = self._checked(*fetched)
                    w = self._weights_of(keys, epoch)
                    rows = _row_keys(self._seed, keys)
                num_rows += len(keys)
                num_copies += int(_are_copies(rows).sum())
                with clock.augmentation():
                    x = self._augmented(self._moved(x, device), rows)
                if self._recycle is not None:
                    self._harvest.expect(torch.where(rows.copy == 0, rows.index, -1), y)
                yield x, self._moved(y, device), self._moved(w, device)
            solving = self._solving
            if solving and solving.selection.done() and solving.selection.exception():
                self._result_of(solving)  # raises
        finally:
            self._live = False
            observed.close()
            self._history.append(
                {
                    "event": "epoch",
                    "epoch": epoch,
                    "num_rows": num_rows,
                    "num_copies": num_copies,
                    "completed": completed,
                    **clock.read(),
                }
            )

    def _augmented(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return model inputs: the strong policy on copies, the base on all, normalised last."""
        x = self._strongly_augmented(self._pixels.to_unit(x), rows)
        if self._base is not None:
            rows = RowKeys(self._base_seed, rows.epoch, rows.index, rows.copy)
            x = _applied("base", self._base, x, rows)
        return self._pixels.to_model(x)

    def _strongly_augmented(self, x: Tensor, rows: RowKeys) -> Tensor:
        copies = _are_copies(rows).nonzero().squeeze(1)
        if len(copies) == 0:
            return x
        at = sent(copies, x.device)
        augmented = _applied("augment", self._augment, x.index_select(0, at), rows[copies])
        return x.index_copy(0, at, augmented)

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
        while an epoch runs it does not, since the model goes on training.
        """
        period = self._period(self._next_epoch - self._live)
        self._select(self._next_epoch)
        self._selected_period = period
        assert self._selection is not None
        return self._selection

    def _select(self, epoch: int, background: bool = False) -> None:
        """Probe now, and solve: now, or in a thread for the epoch after."""
        if self._solving is not None:
            self._result_of(self._solving)  # something newer is asked for
        selector = self._selector if epoch >= self._start_epoch else RandomSelector()
        begin = time.perf_counter()
        num_recycled = 0
        if selector.needs_gradients and self._recycle is not None:
            max_age = self._recycle * len(self)
            ages = self._harvest.ages
            num_recycled = int(((ages >= 0) & (ages <= max_age)).sum())
            gradients = self._probe.scan(
                self._data_loader(), prepare=self._original, reuse=self._harvest, max_age=max_age
            )
        elif selector.needs_gradients:
            gradients = self._probe.scan(self._data_loader(), prepare=self._original)
        else:
            gradients = LastLayerGradients.unprobed(len(self._dataset))
        entry: dict[str, Any] = {
            "event": "selection",
            "epoch": epoch,
            "in_force_from": epoch + background,
            "selector": type(selector).__name__,
            "probe_seconds": time.perf_counter() - begin,
            "num_recycled": num_recycled,
        }
        budget = self._sampler.budget

        def solve() -> Selection:
            begin = time.perf_counter()
            found = selector.select(gradients, budget=budget, seed=self._seed, epoch=epoch)
            entry["solve_seconds"] = time.perf_counter() - begin
            if not isinstance(found, Selection):
                raise TypeError(
                    f"selector must return a Selection, got {type(found).__name__} from "
                    f"{type(selector).__name__}."
                )
            return found

        if background:
            thread = ThreadPoolExecutor(1, thread_name_prefix="augsubset-select")
            self._solving = _Solving(epoch, thread.submit(solve), entry)
            thread.shutdown(wait=False)
        else:
            self._put_in_force(solve(), entry)
        self._selected_period = self._period(epoch)

    def _take_over(self, before: int) -> None:
        """Put what was solved in the background in force, if an earlier epoch asked for it."""
        if self._solving is not None and self._solving.epoch < before:
            entry = self._solving.entry
            self._put_in_force(self._result_of(self._solving), entry)

    def _result_of(self, solving: _Solving) -> Selection:
        """Wait for a thread's selection; after an error the next epoch selects anew."""
        self._solving = None
        try:
            return solving.selection.result()
        except BaseException:
            self._selected_period = None
            raise

    def _put_in_force(self, selection: Selection, entry: dict[str, Any]) -> None:
        capped = selection if self._max_weight is None else selection.capped(self._max_weight)
        self._sampler.set_selection(capped)
        self._selection = selection
        entry["num_selected"] = len(selection)
        entry["effective_sample_size"] = selection.effective_sample_size
        entry["digest"] = selection.digest
        if selection.certificate is not None:
            entry.update(vars(selection.certificate))
        self._history.append(entry)

    def _period(self, epoch: int) -> int:
        """Number the stretches of ``every`` epochs; negative before ``start_epoch``."""
        return (epoch - self._start_epoch) // self._every

    def _original(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Turn a fetched batch of originals into what the model sees of them unaugmented."""
        x, y, _ = self._checked(*batch)
        return self._pixels.to_model(self._pixels.to_unit(x)), y

    def _checked(self, batch: Any, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split a fetched batch, and refuse on the host what would be clamped on the device."""
        x, y = split_batch(batch, **self._parts)
        if len(x) != len(keys):
            raise ValueError(
                f"collate_fn must keep every row, got {len(x)} rows for {len(keys)} keys. "
                "Filter the dataset instead of the batch."
            )
        self._pixels.check(x)
        return x, y, keys

    def _moved(self, part: Tensor, device: torch.device) -> Tensor:
        return part.to(device, non_blocking=self._batches.pin_memory)

    # The user's DataLoader, rebuilt.

    def _data_loader(
        self, sampler: Sampler[int] | None = None, *, drop_last: bool = False, **changes: Any
    ) -> DataLoader[Any]:
        """Return a DataLoader with the user's options: over everything in order, or a sampler's.

        Its generator is ours, so that starting an epoch does not advance the caller's.
        """
        options = {**self._options, **changes}
        if sampler is None:
            # A pass over everything now and then: its workers must not linger in between.
            options["persistent_workers"] = False
        return DataLoader(
            self._dataset,
            sampler=sampler,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(self._seed),
            **options,
        )

    def _check_one_batch(self) -> None:
        """Fetch two examples the way training will, and refuse what would fail later.

        In a worker where there are workers: a dataset that opens a file on first access must not
        do so here and then be forked.
        """
        few: Any = range(min(2, len(self._dataset)))
        num_workers = min(1, self._options["num_workers"])
        loader = self._data_loader(few, num_workers=num_workers, persistent_workers=False)
        x, y = self._original(next(iter(loader)))
        if self._selector.needs_gradients:
            self._probe.check(x, y)

    def _count_classes(self, dataset: Any) -> int:
        known = known_labels(dataset)
        if known is None:
            _log.info("the dataset has no .targets or .labels: fetching every example for them")
            known = torch.cat([self._checked(*batch)[1] for batch in self._data_loader()])
        return len(torch.unique(known))

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
        x = self._moved(x, self._device or model_device(self._model))
        return self._pixels.to_model(self._pixels.to_unit(x))

    def __len__(self) -> int:
        """Return the number of batches in an epoch: the same every epoch."""
        return len(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next ``iter()`` starts; without it, the one after the last."""
        self._sampler.set_epoch(epoch)
        self._next_epoch = int(epoch)

    @property
    def selection(self) -> Selection | None:
        """The latest selection, weights uncapped; ``None`` before the first epoch."""
        return self._selection

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dict a selection and one an epoch, oldest first.

        ``event="selection"``: epoch (of the probe), in_force_from, selector, num_selected,
        effective_sample_size, probe_seconds, num_recycled, solve_seconds, digest and the
        certificate's figures, where there is one.
        ``event="epoch"``: epoch, num_rows, num_copies, whether it completed, and seconds of
        selection, loading, augmentation, step (what remains: the caller's code) and total.
        """
        return self._history

    @property
    def dataset(self) -> Any:
        """The user's dataset."""
        return self._dataset.dataset


def _check_types(model: Any, augment: Any, base: Any, probe: Any, selector: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for name, policy in (("augment", augment), ("base", base)):
        if isinstance(policy, nn.Module):
            raise TypeError(
                f"{name} must be a policy (x, rows) -> x, got the module "
                f"{type(policy).__name__}. Wrap it: KorniaModule(module)."
            )
        if isinstance(policy, type):
            raise TypeError(f"{name} must be a policy, got the class {policy.__name__}. Call it.")
        if name == "base" and policy is None:
            continue
        if not callable(policy):
            raise TypeError(f"{name} must be callable, got {type(policy).__name__}.")
        try:
            signature(policy).bind(None, None)
        except TypeError:
            raise TypeError(
                f"{name} must be a policy (x, rows) -> x, got {policy!r}, which does not take two "
                "arguments. For a function of x alone pass KorniaModule(function)."
            ) from None
        except ValueError:  # a builtin that does not tell its signature
            pass
    if probe is not None and not isinstance(probe, GradientProbe):
        raise TypeError(f"probe must be a GradientProbe, got {type(probe).__name__}.")
    if isinstance(selector, type):
        raise TypeError(f"selector must be a rule, got the class {selector.__name__}. Call it.")
    if selector is not None and not isinstance(selector, Selector):
        raise TypeError(
            "selector must have .needs_gradients and .select(gradients, *, budget, seed, epoch), "
            f"got {type(selector).__name__}."
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world_size = torch.distributed.get_world_size()
        if world_size > 1:
            raise ValueError(
                f"world size must be 1, got {world_size}: sharding is not implemented, and every "
                "rank would train on everything."
            )


def _applied(name: str, policy: Policy, x: Tensor, rows: RowKeys) -> Tensor:
    """Return a policy's result, or refuse one that would change what other rows hold."""
    out = policy(x, rows)
    if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"{name} must keep shape and dtype {tuple(x.shape)} {x.dtype}, got {got}.")
    return out


def _row_keys(seed: int, keys: Tensor) -> RowKeys:
    epoch, copy, index = unpack(keys)
    return RowKeys(seed, epoch, index, copy)


def _are_copies(rows: RowKeys) -> Tensor:
    return (rows.copy > 0) & (rows.copy != PADDING)
