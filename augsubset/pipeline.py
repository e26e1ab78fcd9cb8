"""One batch: checked in the worker; then moved, augmented, normalised and yielded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import nullcontext
from dataclasses import replace
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from augsubset.augment import CropFlip
from augsubset.augment.kornia import as_policy
from augsubset.augment.random import RowKeys
from augsubset.batch import BatchParts, BatchSpec, get_device, num_rows, put_rows, take_rows
from augsubset.delivery import Delivery, Loops
from augsubset.history import EpochTimer
from augsubset.normalization import Normalization
from augsubset.sampling import PADDING, is_original, unpack
from augsubset.utils.rng import forked_rng, mix_seed
from augsubset.utils.torch_utils import map_tensors, to_device_async

__all__ = ["BatchCheck", "BatchPipeline", "Policy", "ReadyBatch", "check_policy", "move"]

Policy = Callable[..., Any]


class ReadyBatch(NamedTuple):
    """A batch on the device, and what the CPU has to know of it.

    Args:
        output: What the training loop gets.
        inputs: The model's, which are a part of it.
        keys: ``(B,)`` int64.
        labels: As fetched.
        num_copies: Rows that are augmented copies.
    """

    output: Any
    inputs: Any
    keys: Tensor
    labels: Any
    num_copies: int

    @property
    def originals(self) -> Tensor:
        """Dataset index of each original, -1 for copies and padding; ``(B,)``."""
        _, copy, index = unpack(self.keys)
        return torch.where(is_original(copy), index, -1)


class BatchCheck:
    """Raises, in the worker, on batches that would lose rows or be clamped silently later.

    Args:
        spec: Which part of a batch is which.
        normalization: What values mean.
    """

    def __init__(self, spec: BatchSpec, normalization: Normalization) -> None:
        self._spec = replace(spec, labels=spec.label_name)  # workers need no tensor of all labels
        self._normalization = normalization

    def __call__(self, batch: Any, keys: Tensor, item: Any = None) -> None:
        """Check a collated batch; ``item`` is its first, as the dataset returned it."""
        self._spec.check_unmixed(batch, item)
        inputs = self._spec.split(batch).inputs
        if num_rows(inputs) != len(keys):
            raise ValueError(
                f"collate_fn must keep every row, got {num_rows(inputs)} rows for {len(keys)} "
                "keys. Filter the dataset instead of the batch."
            )
        self._normalization.check(inputs)


class BatchPipeline:
    """What a batch goes through on the device.

    Args:
        spec: Which part of a batch is which, and in what form it is yielded.
        normalization: What values mean.
        augment: Policy for copies, or a module of Kornia's.
        base: The same for all rows, after it; ``None``: nothing.
        seed: Seeds the rows' random numbers.
        owns_batches: Whether batches share no memory with the dataset, so that rows may be
            replaced in place.

    Raises:
        TypeError: If a policy is not a callable with the right arguments.
    """

    def __init__(
        self,
        spec: BatchSpec,
        normalization: Normalization,
        augment: Policy,
        base: Policy | None,
        *,
        seed: int,
        owns_batches: bool,
    ) -> None:
        augment, base = as_policy(augment), as_policy(base)
        check_policy("augment", augment, len(spec.others))
        if base is not None:
            check_policy("base", base, len(spec.others))
        self.spec, self.normalization = spec, normalization
        self._augment, self._base = augment, base
        self.set_seed(seed)
        self._owns_batches = owns_batches
        self._delivery = Delivery.make(augment, base, normalization)
        self.loops = Loops.make(augment, base)
        self._stream: torch.cuda.Stream | None = None

    def set_seed(self, seed: int) -> None:
        """Seed the rows of batches from now on."""
        self._seed = seed
        # Policies of one class draw the same numbers for a row, so the base has its own seed.
        self._base_seed = mix_seed(seed, 1)

    def process(
        self,
        batch: Any,
        keys: Tensor,
        weights: Tensor | None,
        device: torch.device,
        timer: EpochTimer | None = None,
    ) -> ReadyBatch:
        """Return a collated batch as the training loop gets it.

        May overwrite the batch, unless it shares memory with the dataset.

        Args:
            batch: As collated.
            keys: ``(B,)`` int64.
            weights: ``(B,)`` float32, or ``None`` if the loop gets none.
            device: Where it goes.
            timer: Times the strong policy.
        """
        parts = self.spec.split(batch)
        delivery = None if self.spec.others or self.spec.whole else self._delivery
        if delivery is not None and delivery.can_take(parts.inputs, device):
            return self._deliver(delivery, parts, keys, weights, device, timer)
        x, others = move(parts.inputs, device), move(parts.others, device)
        in_place = self._owns_batches and not _are_targets(parts)
        in_place = in_place or get_device(x) != get_device(parts.inputs)
        x = self.normalization.to_unit(x)
        loops = self.loops if self.loops and not others and self.loops.can_take(x) else None
        with nullcontext() if timer is None else timer.on_device("strong"):
            if loops is not None:
                seeds = self._seed, self._base_seed
                x, crops, num_copies = loops.augment(x, keys.numpy(), seeds, in_place)
            else:
                rows = _unpack_rows(self._seed, keys)
                x, others, num_copies = self.augment_copies(x, others, rows, in_place)
        if loops is not None and type(self._base) is CropFlip:
            x = self._base.crop(x, crops)
        elif self._base is not None:
            rows = _unpack_rows(self._base_seed, keys)
            x, others = _apply("base", self._base, x, rows, others)
        x = self.normalization.to_model(x)
        output = self._arrange(batch, BatchParts(x, parts.labels, others), device)
        output += [] if weights is None else [move(weights, device)]
        output += [move(unpack(keys)[2], device)] if self.spec.return_index else []
        yielded = output[0] if len(output) == 1 else tuple(output)
        return ReadyBatch(yielded, x, keys, parts.labels, num_copies)

    def _deliver(
        self,
        delivery: Delivery,
        parts: BatchParts,
        keys: Tensor,
        weights: Tensor | None,
        device: torch.device,
        timer: EpochTimer | None,
    ) -> ReadyBatch:
        """Return a batch made in one launch, with one copy for all but the pixels."""
        labels_go_along = _is_plain(parts.labels)
        staged = delivery.stage(
            parts.inputs,
            keys.numpy(),
            (self._seed, self._base_seed),
            device,
            labels=parts.labels if labels_go_along else None,
            weights=None if weights is None else weights.numpy(),
            with_index=self.spec.return_index,
        )
        with nullcontext() if timer is None else timer.on_device("strong"):
            x = delivery.launch(staged)
        labels = [] if labels_go_along else [move(parts.labels, device)]
        output = (x, *labels, *staged.parts)
        return ReadyBatch(output, x, keys, parts.labels, staged.num_copies)

    def _arrange(self, batch: Any, parts: BatchParts, device: torch.device) -> list[Any]:
        """Return ``[x, y]``, or ``[batch]`` in its own structure."""
        labels, others = parts.labels, self.spec.others
        if others and self.spec.find_labels(batch) in others:
            labels = parts.others[list(others).index(self.spec.find_labels(batch))]
        if self.spec.whole:
            return [move(self.spec.join(batch, parts._replace(labels=labels)), device)]
        return [parts.inputs, move(labels, device)]

    def prefetch(self, batches: Iterator[ReadyBatch], device: torch.device) -> Iterator[ReadyBatch]:
        """Yield the same batches; on CUDA the next is made while the model runs on the last.

        It is moved and augmented on a stream of its own. There is one for the life of the loader,
        because each stream keeps memory of its own.
        """
        if device.type != "cuda":
            yield from batches
            return
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._stream
        with torch.cuda.stream(stream):
            upcoming = next(batches, None)
        while upcoming is not None:
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            batch = upcoming
            _record_use(current, batch.output)
            # Memory that the model frees meanwhile may be reused: the next batch has to wait for
            # the kernels that still read it.
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                upcoming = next(batches, None)
            yield batch

    def augment_copies(
        self, x: Any, others: tuple[Any, ...], rows: RowKeys, in_place: bool = False
    ) -> tuple[Any, tuple[Any, ...], int]:
        """Return inputs and other parts, the strong policy's results in the rows of copies.

        And how many these are.
        """
        copies = torch.from_numpy(_find_copies(rows.copy.numpy()))
        if len(copies) == 0:
            return x, others, 0
        on_device = to_device_async(copies, get_device(x))
        seen = [take_rows(part, copies, on_device) for part in (x, *others)]
        new, new_others = _apply("augment", self._augment, seen[0], rows[copies], tuple(seen[1:]))
        replaced = [
            put_rows(part, copies, on_device, values, in_place)
            for part, values in zip((x, *others), (new, *new_others), strict=True)
        ]
        return replaced[0], tuple(replaced[1:]), len(copies)

    def try_policies(self, batch: Any, device: torch.device) -> None:
        """Run the policies once, as if all rows were copies, and raise what would fail later.

        The batch and the global generators are left as they are.

        Raises:
            ValueError: If a policy changes shapes or dtypes, or its images leave [0, 1].
        """
        device = torch.device("cpu") if device.type == "meta" else device
        parts = self.spec.split(batch)
        seen = self.normalization.to_unit(move(parts.inputs, device)), *move(parts.others, device)
        index = torch.arange(num_rows(parts.inputs))
        on_device = to_device_async(index, get_device(seen[0]))
        x, *rest = (take_rows(part, index, on_device) for part in seen)  # policies may overwrite
        others = tuple(rest)
        policies = ("augment", self._augment, self._seed), ("base", self._base, self._base_seed)
        with forked_rng(self._seed, [device]):
            for name, policy, seed in policies:
                if policy is not None:
                    x, others = _apply(name, policy, x, RowKeys(seed, 0, index, 1), others)
                    self.normalization.check_augmented(name, x)

    def prepare_originals(self, batch: Any) -> tuple[Any, Any]:
        """Return a batch as the model sees originals without augmentation, and its labels."""
        parts = self.spec.split(batch)
        unit = self.normalization.to_unit(parts.inputs)
        return self.normalization.to_model(unit), parts.labels

    def check_masks(self, batch: Any) -> None:
        """Raise if a policy would move pixels and leave their labels where they were.

        Raises:
            ValueError: If labels have the images' height and width and are not among the others.
        """
        parts, label = self.spec.split(batch), self.spec.find_labels(batch)
        x, y = parts.inputs, parts.labels
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim == 4 and y.ndim >= 3):
            return
        if y.shape[-2:] != x.shape[-2:] or label in self.spec.others:
            return
        for name, policy in (("augment", self._augment), ("base", self._base)):
            if getattr(policy, "is_geometric", False):
                raise ValueError(
                    f"others must name the labels {label!r}, of the images' height and width, "
                    f"beside a policy that moves pixels, got others={list(self.spec.others)} and "
                    f"{name}={policy!r}. Pass batch=BatchSpec(others=[{label!r}])."
                )

    def preprocess(self, x: Tensor, device: torch.device) -> Tensor:
        """Return checked images on a device, as the model sees originals."""
        self.normalization.check(x)
        prepared: Tensor = self.normalization.to_model(self.normalization.to_unit(move(x, device)))
        return prepared


def _unpack_rows(seed: int, keys: Tensor) -> RowKeys:
    epoch, copy, index = unpack(keys)
    return RowKeys(seed, epoch, index, copy)


def move(part: Any, device: torch.device) -> Any:
    """Return the tensors of any nesting on the device, without waiting for it."""
    return map_tensors(lambda tensor: to_device_async(tensor, device), part)


def check_policy(name: str, policy: Any, num_others: int = 0) -> None:
    """Raise if something cannot be called as a policy ``(x, rows, *others) -> x``.

    Raises:
        TypeError: If it is a module, a class, one of albumentations' pipelines, or not callable
            with these arguments.
    """
    if isinstance(policy, torch.nn.Module):
        raise TypeError(
            f"{name} must be a policy (x, rows) -> x or a module of Kornia's, got "
            f"{type(policy).__name__}. Wrap it: KorniaModule(module)."
        )
    if isinstance(policy, type):
        raise TypeError(f"{name} must be a policy, got the class {policy.__name__}. Call it.")
    if isinstance(getattr(policy, "__self__", None), type):  # as RandomOps.randaugment
        raise TypeError(
            f"{name} must be a policy, got the class method {policy.__qualname__}. Call it."
        )
    if type(policy).__module__.split(".")[0] == "albumentations":
        raise TypeError(
            f"{name} must be a policy (x, rows) -> x, got albumentations' "
            f"{type(policy).__name__}, which takes one image by name. Wrap a function for one "
            "image: KorniaModule(function); see 'Your albumentations pipeline' in docs/adopt.md."
        )
    if not callable(policy):
        raise TypeError(f"{name} must be callable, got {type(policy).__name__}.")
    try:
        signature(policy).bind(*[None] * (2 + num_others))
    except TypeError:
        also = f" and {num_others} others" if num_others else ""
        raise TypeError(
            f"{name} must be a policy (x, rows) -> x, got {policy!r}, which does not take two "
            f"arguments{also}. For a function of x alone pass KorniaModule(function)."
        ) from None
    except ValueError:  # builtins without a signature
        pass


def _apply(
    name: str, policy: Policy, x: Any, rows: RowKeys, others: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]]:
    """Return a policy's result, or raise if it changed the shape or dtype of what it got."""
    out = policy(x, rows, *others)
    new_others: tuple[Any, ...] = ()
    if others:
        if not isinstance(out, (tuple, list)) or len(out) != 1 + len(others):
            raise ValueError(f"{name} must return the {1 + len(others)} parts it got.")
        out, *rest = out
        new_others = tuple(rest)
    pairs = zip((x, *others), (out, *new_others), strict=True)
    for number, (before, after) in enumerate(pairs):
        if isinstance(before, Tensor):
            rule, is_kept = "shape and dtype", isinstance(after, Tensor)
            is_kept = is_kept and after.shape == before.shape and after.dtype == before.dtype
        else:
            rule = "type and number of rows"
            is_kept = type(after) is type(before) and num_rows(after) == num_rows(before)
        if not is_kept:
            is_alone = isinstance(before, Tensor) and isinstance(after, tuple) and not others
            hint = " Return x alone." if is_alone else ""
            raise ValueError(
                f"{name} must keep {rule} of {f'other {number}' if number else 'the inputs'}, "
                f"{_describe(before)}, got {_describe(after)}.{hint}"
            )
    return out, new_others


def _describe(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"{tuple(part.shape)} {part.dtype}"
    return type(part).__name__ + (f" of {len(part)}" if isinstance(part, Sized) else "")


def _are_targets(parts: BatchParts) -> bool:
    """Return whether inputs are the labels too, as for an autoencoder: these stay as they are."""
    is_named = isinstance(parts.inputs, Mapping)
    return any(part is parts.labels for part in (parts.inputs.values() if is_named else parts[:1]))


def _is_plain(part: Any) -> bool:
    """Return whether a part is a tensor on the CPU that is nothing but its values."""
    is_dense = type(part) is Tensor and part.layout == torch.strided and not part.requires_grad
    return is_dense and part.device.type == "cpu" and not part.is_conj() and not part.is_neg()


def _record_use(stream: torch.cuda.Stream, output: Any) -> None:
    """Tell the allocator that a stream reads tensors which another one made."""
    map_tensors(lambda part: part.record_stream(stream), output)


def _find_copies(copy: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the positions of augmented copies among rows with these copy numbers."""
    return np.flatnonzero(~is_original(copy) & (copy != PADDING))
