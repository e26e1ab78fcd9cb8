"""From a fetched batch to what the training loop gets: checked, moved, augmented, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment.random import RowKeys
from augsubset.batch import (
    BatchParts,
    Split,
    map_tensors,
    num_rows,
    put_rows,
    take_rows,
)
from augsubset.normalization import PixelRange
from augsubset.sampling import PADDING, unpack
from augsubset.utils.rng import mix_seed
from augsubset.utils.torch_utils import sent

__all__ = ["BatchCheck", "Delivery", "Policy", "Ready", "check_policy"]

Policy = Callable[..., Any]
Timed = Callable[[], AbstractContextManager[Any]]


class Ready(NamedTuple):
    """A batch on the device, and what the host must know of it.

    Args:
        output: What the training loop gets.
        keys: ``(B,)``
        rows: The same, unpacked.
        labels: As fetched.
    """

    output: Any
    keys: Tensor
    rows: RowKeys
    labels: Any

    @property
    def originals(self) -> Tensor:
        """Dataset index of each original, -1 for copies and padding; ``(B,)``."""
        return torch.where(self.rows.copy == 0, self.rows.index, -1)

    @property
    def num_copies(self) -> int:
        """Rows that are augmented copies."""
        return int(_are_copies(self.rows).sum())


class BatchCheck:
    """Refuses, on the host, what would be lost or clamped in silence later.

    Args:
        parts: Which parts of a batch are which.
        pixels: What values mean.
    """

    def __init__(self, parts: BatchParts, pixels: PixelRange) -> None:
        self._parts, self._pixels = parts, pixels

    def __call__(self, batch: Any, keys: Tensor) -> None:
        """Check a fetched batch."""
        inputs = self._parts.split(batch).inputs
        if num_rows(inputs) != len(keys):
            raise ValueError(
                f"collate_fn must keep every row, got {num_rows(inputs)} rows for {len(keys)} "
                "keys. Filter the dataset instead of the batch."
            )
        self._pixels.check(inputs)


class Delivery:
    """The policies, what they see, and the form of what is yielded.

    Args:
        parts: Which parts of a batch are which.
        pixels: What values mean.
        augment: Policy for copies.
        base: Policy for all rows, after it; ``None``: nothing.
        seed: Of the rows' random numbers.
        whole: Whether batches keep the structure that they were fetched in.
        return_index: Whether each row's dataset index comes last.
        owns_batches: Whether batches are nobody else's: their rows are then replaced in place.
    """

    def __init__(
        self,
        parts: BatchParts,
        pixels: PixelRange,
        augment: Policy,
        base: Policy | None,
        *,
        seed: int,
        whole: bool,
        return_index: bool,
        owns_batches: bool,
    ) -> None:
        check_policy("augment", augment, len(parts.others))
        if base is not None:
            check_policy("base", base, len(parts.others))
        self._parts, self._pixels = parts, pixels
        self._augment, self._base = augment, base
        self._seed = seed
        # Policies of one class would draw the same numbers for a row; the base has its own seed.
        self._base_seed = mix_seed(seed, 1)
        self._whole, self._returns_index = whole, return_index
        self._owns_batches = owns_batches
        self._stream: torch.cuda.Stream | None = None

    def check_names(self, batch: Any) -> None:
        """Refuse to transform parts that would not be yielded."""
        label, others = self._parts.label_of(batch), self._parts.others
        if not self._whole and any(name != label for name in others):
            raise ValueError(
                f"others must be the labels {label!r} alone without whole=True, got "
                f"{list(others)}: what else is transformed would not be yielded."
            )

    def split(self, batch: Any) -> Split:
        """Return a batch in parts."""
        return self._parts.split(batch)

    def unaugmented(self, batch: Any) -> tuple[Any, tuple[Any, ...]]:
        """Return what policies would see of a batch, and what goes along."""
        parts = self._parts.split(batch)
        return self._pixels.to_unit(parts.inputs), parts.others

    def to_model(self, x: Any) -> Any:
        """Return what the model takes of what policies see."""
        return self._pixels.to_model(x)

    def original(self, batch: Any) -> tuple[Any, Any]:
        """Turn a batch of originals into what the model sees of them unaugmented."""
        parts = self._parts.split(batch)
        return self._pixels.to_model(self._pixels.to_unit(parts.inputs)), parts.labels

    def ready(
        self,
        batch: Any,
        parts: Split,
        keys: Tensor,
        w: Tensor | None,
        move: Callable[[Any], Any],
        timed: Timed = nullcontext,
    ) -> Ready:
        """Return a checked batch as the training loop gets it.

        Args:
            batch: As fetched.
            parts: The same, in parts.
            keys: ``(B,)`` int64.
            w: Weights ``(B,)``, where there are any.
            move: Takes tensors of any nesting to the device.
            timed: A context for the strong policy to run in.

        What was fetched may be overwritten, where batches are nobody else's.
        """
        epoch, copy, index = unpack(keys)
        rows = RowKeys(self._seed, epoch, index, copy)
        x, others = move(parts.inputs), move(parts.others)
        is_own = self._owns_batches or _device_of(x) != _device_of(parts.inputs)
        x, others = self.augmented(x, others, rows, is_own, timed)
        names, y = self._parts.others, parts.labels
        labels = y
        if names and self._parts.label_of(batch) in names:
            y = others[names.index(self._parts.label_of(batch))]
        parts = Split(x, move(y), others)
        output = list(parts[:2])
        if self._whole:
            output = [self._parts.joined(move(batch), parts)]
        output += [] if w is None else [move(w)]
        output += [move(index)] if self._returns_index else []
        return Ready(output[0] if len(output) == 1 else tuple(output), keys, rows, labels)

    def ahead(self, batches: Iterator[Ready], device: torch.device) -> Iterator[Ready]:
        """Yield the same batches; on CUDA the next one is made while the model has the last.

        It is moved and augmented on a stream of its own, one for the life of the loader: streams
        that come and go keep memory each.
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
            _used_on(current, batch.output)
            # What the model frees meanwhile may be handed out again: made after it, not beside it.
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                upcoming = next(batches, None)
            yield batch

    def augmented(
        self,
        x: Any,
        others: tuple[Any, ...],
        rows: RowKeys,
        in_place: bool = False,
        timed: Timed = nullcontext,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return model inputs: the strong policy on copies, the base on all, normalised last."""
        x = self._pixels.to_unit(x)
        with timed():
            x, others = self.strongly_augmented(x, others, rows, in_place)
        if self._base is not None:
            rows = RowKeys(self._base_seed, rows.epoch, rows.index, rows.copy)
            x, others = _applied("base", self._base, x, rows, others)
        return self._pixels.to_model(x), others

    def strongly_augmented(
        self, x: Any, others: tuple[Any, ...], rows: RowKeys, in_place: bool = False
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return inputs and what goes along with the strong policy's results for the copies."""
        copies = torch.from_numpy(np.flatnonzero(_are_copies(rows)))
        if len(copies) == 0:
            return x, others
        at = sent(copies, _device_of(x))
        seen = [take_rows(part, copies, at) for part in (x, *others)]
        new, new_others = _applied("augment", self._augment, seen[0], rows[copies], tuple(seen[1:]))
        parts = zip((x, *others), (new, *new_others), strict=True)
        x, *rest = (put_rows(part, copies, at, rows_of, in_place) for part, rows_of in parts)
        return x, tuple(rest)


def check_policy(name: str, policy: Any, num_others: int = 0) -> None:
    """Refuse what is no policy ``(x, rows, *others) -> x``.

    Raises:
        TypeError: If it is a module, a class, or not callable with these arguments.
    """
    if isinstance(policy, torch.nn.Module):
        raise TypeError(
            f"{name} must be a policy (x, rows) -> x, got the module "
            f"{type(policy).__name__}. Wrap it: KorniaModule(module)."
        )
    if isinstance(policy, type):
        raise TypeError(f"{name} must be a policy, got the class {policy.__name__}. Call it.")
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
    except ValueError:  # a builtin that does not tell its signature
        pass


def _applied(
    name: str, policy: Policy, x: Any, rows: RowKeys, others: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]]:
    """Return a policy's result, or refuse one that would change what other rows hold."""
    out = policy(x, rows, *others)
    new_others: tuple[Any, ...] = ()
    if others:
        if not isinstance(out, (tuple, list)) or len(out) != 1 + len(others):
            raise ValueError(f"{name} must return the {1 + len(others)} parts it got.")
        out, *rest = out
        new_others = tuple(rest)
    for before, after in zip((x, *others), (out, *new_others), strict=True):
        if not isinstance(before, Tensor):
            if type(after) is not type(before) or num_rows(after) != num_rows(before):
                raise ValueError(f"{name} must keep the type and rows of what it gets.")
            continue
        kept = isinstance(after, Tensor) and after.dtype == before.dtype
        if not kept or after.shape != before.shape:
            expected = f"{tuple(before.shape)} {before.dtype}"
            got = type(after).__name__
            if isinstance(after, Tensor):
                got = f"{tuple(after.shape)} {after.dtype}"
            raise ValueError(f"{name} must keep shape and dtype {expected}, got {got}.")
    return out, new_others


def _device_of(part: Any) -> torch.device:
    """Return where the tensors of a part are."""
    found: list[torch.device] = []
    map_tensors(lambda tensor: found.append(tensor.device), part)
    return found[0] if found else torch.device("cpu")


def _used_on(stream: torch.cuda.Stream, output: Any) -> None:
    """Tell the allocator that another stream than the one that made them reads tensors."""
    map_tensors(lambda part: part.record_stream(stream), output)


def _are_copies(rows: RowKeys) -> npt.NDArray[np.bool_]:
    copy: npt.NDArray[np.int64] = rows.copy.numpy()
    are_copies: npt.NDArray[np.bool_] = np.logical_and(copy > 0, copy != PADDING)
    return are_copies
