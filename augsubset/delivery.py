"""A batch of images whose plan is made in one loop, from packed keys.

On a GPU it is augmented, cropped, normalised and cast in one launch; on the CPU its copies are
augmented, bytes where they lie.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import CropFlip, RandomOps, SubPolicies
from augsubset.augment.checks import clamp_rounding, disable_grad_and_autocast
from augsubset.augment.device import OUT_TYPES, deliver_rows
from augsubset.augment.plan import (
    COUNT,
    MIRRORED,
    SOURCE,
    TOP,
    CropTables,
    OpTables,
    count_columns,
    fill_crops,
    plan_ops,
    stage_ops,
)
from augsubset.batch import put_rows, take_rows
from augsubset.normalization import Normalization
from augsubset.sampling import PADDING, ResidentRows, is_original, unpack
from augsubset.utils.torch_utils import keep_if_captured, to_device_async

__all__ = ["Delivery", "Loops", "StagedBatch", "list_tables", "plan_batch"]

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]

_unpack: Any = numba.njit(unpack)
_is_original: Any = numba.njit(is_original)
# Rows that are planned together.
_BLOCK = 256
_NO_WEIGHTS = np.empty(0, np.float32)


class StagedBatch(NamedTuple):
    """What a launch needs, on the device, and what was copied along with it.

    Args:
        images: The batch's, ``(B, C, H, W)``, or all that the plan points into.
        plan: Begins with ``(B, W)`` int32.
        parts: Labels, weights and indices, those that were asked for.
        num_rows: ``B``
        num_copies: Rows that are augmented copies.
    """

    images: Tensor
    plan: Tensor
    parts: list[Tensor]
    num_rows: int
    num_copies: int


class Loops:
    """Augments the copies in a batch of images, uint8 or float32, on the CPU.

    Results are bit-identical to those of the policies.

    Args:
        augment: Policy for copies.
        base: For all rows, after it. Its crops are planned here and applied by the caller.
    """

    def __init__(self, augment: RandomOps, base: CropFlip) -> None:
        self._augment = augment
        self._tables = cast(OpTables, augment.tables), base.tables

    @classmethod
    def make(cls, augment: Any, base: Any) -> Loops | None:
        """Return loops for a strong policy, ``None`` if it is not one of ours."""
        if not _is_ours(augment):
            return None
        return cls(augment, base if type(base) is CropFlip else CropFlip(0, flip=0))

    def can_take(self, x: Any) -> bool:
        """Return whether a batch of inputs can be augmented here."""
        is_batch = isinstance(x, Tensor) and x.ndim == 4 and x.device.type == "cpu"
        return is_batch and x.dtype in (torch.uint8, torch.float32)

    def augment(
        self, x: Tensor, keys: Int64Array, seeds: tuple[int, int], in_place: bool = False
    ) -> tuple[Tensor, Int32Array, int]:
        """Return the images, each row's crop, and how many copies there are.

        Args:
            x: ``(B, C, H, W)``, written to if ``in_place``.
            keys: ``(B,)``
            seeds: Of the strong policy's rows and the base policy's.
            in_place: Whether the batch is nobody else's.

        Raises:
            ValueError: If there is not one key for each image, floats leave [0, 1], or an op does
                not support the number of channels.
        """
        _check_keys(keys, x)
        crops = np.empty((len(keys), 3), np.int32)
        height, width = x.shape[2:]
        both = np.uint64(seeds[0]), np.uint64(seeds[1])
        at, op, params = _plan_rows(keys, *both, *self._tables, height, width, crops)
        if len(at) == 0:
            return x, crops, 0
        engine = self._augment.engine
        self._augment.check_channels(x)
        if engine.can_replace(x):
            x = x if in_place else x.clone()
            engine.replace(x, at, op, params)
        else:
            rows = torch.from_numpy(at)
            copies = clamp_rounding(take_rows(x, rows, rows))
            with disable_grad_and_autocast(x.device):
                copies = engine.run(copies, op, params)
            x = put_rows(x, rows, rows, copies, in_place)
        return x, crops, len(at)


def _check_keys(keys: Int64Array, x: Tensor) -> None:
    if len(keys) != len(x):
        raise ValueError(f"keys must have one entry per image, {len(x)}, got {len(keys)}.")


def _is_ours(augment: Any) -> bool:
    """Return whether a loop can plan a policy; not a subclass, which may do anything."""
    return type(augment) in (RandomOps, SubPolicies) and augment.tables is not None


class Delivery:
    """Delivers batches of one image tensor, uint8 or float32, in one launch.

    Results are bit-identical to those of the policies and the normalisation one after another.

    Args:
        augment: Policy for copies.
        base: For all rows, after it.
        normalization: What values mean.
    """

    def __init__(
        self, augment: RandomOps, base: CropFlip | None, normalization: Normalization
    ) -> None:
        self._augment, self._normalization = augment, normalization
        self._base = CropFlip(0, flip=0) if base is None else base
        self._tables = cast(OpTables, augment.tables)
        self._listed = list_tables(augment, self._base)
        self._dtype = normalization.dtype or torch.float32
        self._known: dict[tuple[Any, ...], bool] = {}

    @classmethod
    def make(cls, augment: Any, base: Any, normalization: Normalization) -> Delivery | None:
        """Return a delivery for these policies, ``None`` if they need a general way."""
        is_known = _is_ours(augment) and type(base) in (CropFlip, type(None))
        if not is_known or normalization.arrives_normalised:
            return None
        delivery = cls(augment, base, normalization)
        return delivery if delivery._dtype in OUT_TYPES else None

    def can_take(self, x: Any, device: torch.device) -> bool:
        """Return whether a batch of inputs goes through one launch on a device."""
        is_batch = isinstance(x, Tensor) and x.ndim == 4 and len(x) > 0
        if device.type == "cpu" or not is_batch:
            return False
        known = device, x.dtype, x.shape[1:]
        if known not in self._known:
            self._known[known] = self._check(x, device)
        return self._known[known]

    def _check(self, x: Tensor, device: torch.device) -> bool:
        if x.dtype not in (torch.uint8, torch.float32):
            return False
        factors = self._normalization.get_factors(device, x.dtype)
        channels, height, width = x.shape[1:]
        ops = self._augment.ops.values()
        one = torch.empty((1, *x.shape[1:]), dtype=x.dtype, device=device)
        return (
            (factors.ndim == 0 or factors.shape[1] == channels)
            and all(not op.channels or channels in op.channels for op in ops)
            and not (self._is_reflected and self._base.padding >= min(height, width))
            and self._augment.engine.find_obstacle(one) is None
        )

    @property
    def _is_reflected(self) -> bool:
        return self._base.padding_mode == "reflect"

    def stage(
        self,
        x: Tensor,
        keys: Int64Array,
        seeds: tuple[int, int],
        device: torch.device,
        *,
        labels: Tensor | None,
        weights: Float32Array | None,
        with_index: bool,
    ) -> StagedBatch:
        """Plan a batch, and copy it to the device: the pixels, and everything else at once.

        Args:
            x: ``(B, C, H, W)`` as fetched.
            keys: ``(B,)``
            seeds: Of the strong policy's rows and the base policy's.
            device: Where all goes.
            labels: On the CPU, needed on the device as well.
            weights: Likewise. ``(B,)``
            with_index: Whether rows' indices in the dataset are needed there.

        Raises:
            ValueError: If there is not one key for each image.
        """
        _check_keys(keys, x)
        tables, num_rows = self._tables, len(keys)
        num_columns = count_columns(tables.num_slots, tables.num_params)
        weights = _NO_WEIGHTS if weights is None else weights
        # In words of 64 bits: lines have an even number of columns, and two weights fit into one.
        index_at = num_rows * num_columns // 2
        weights_at = index_at + num_rows * with_index
        labels_at = weights_at + -(-len(weights) // 2)
        labels_at += labels_at % 2  # for labels of any dtype
        num_words = labels_at
        if labels is not None:
            labels = labels.contiguous()
            num_words += -(-labels.nbytes // 16) * 2
        staged = torch.empty(num_words, dtype=torch.int64, pin_memory=device.type == "cuda")
        # Filled without torch, whose calls take longer than the loop.
        buffer = (ctypes.c_byte * (8 * labels_at)).from_address(staged.data_ptr())
        planned = np.frombuffer(memoryview(buffer), np.int64)
        lines = planned[:index_at].view(np.int32).reshape(num_rows, num_columns)
        num_copies = plan_batch(
            keys,
            seeds,
            self._listed,
            (x.shape[2], x.shape[3]),
            lines,
            planned[index_at:weights_at],
            weights,
            planned[weights_at:].view(np.float32),
            is_byte=x.dtype == torch.uint8,
            is_resident=isinstance(x, ResidentRows),
        )
        if labels is not None:
            ctypes.memmove(staged.data_ptr() + 8 * labels_at, labels.data_ptr(), labels.nbytes)
        on_device = keep_if_captured(staged, device).to(device, non_blocking=True)
        parts = []
        if labels is not None:
            layout = labels.dtype, labels.shape, labels.stride()
            parts.append(_share_memory(on_device, labels_at, *layout))
        if len(weights) > 0:
            parts.append(_share_memory(on_device, weights_at, torch.float32, weights.shape, (1,)))
        if with_index:
            parts.append(on_device[index_at:weights_at])
        if isinstance(x, ResidentRows):
            images = x.source
        else:
            images = to_device_async(x, device).contiguous()
        return StagedBatch(images, on_device, parts, num_rows, num_copies)

    def launch(self, staged: StagedBatch) -> Tensor:
        """Return the images as the model takes them."""
        images, tables = staged.images, self._tables
        if staged.num_copies:
            self._augment.engine.name = "one launch"
        is_last = self._normalization.channels_last
        out = torch.empty(
            (staged.num_rows, *images.shape[1:]),
            dtype=self._dtype,
            device=images.device,
            memory_format=torch.channels_last if is_last else torch.contiguous_format,
        )
        factors = self._normalization.get_factors(images.device, images.dtype)
        deliver_rows(
            images,
            out,
            staged.plan,
            num_slots=tables.num_slots,
            num_params=tables.num_params,
            has_copies=staged.num_copies > 0,
            statistics=factors if factors.ndim else None,
            is_reflected=self._is_reflected,
            is_channels_last=is_last,
        )
        return out


def _share_memory(
    words: Tensor, first: int, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
) -> Tensor:
    """Return what begins at a word of a buffer, without a copy.

    Not as a view: all views of a tensor share its version counter, and autograd would refuse labels
    that it has saved once the weights beside them are changed in place.
    """
    return torch.empty(0, dtype=dtype, device=words.device).set_(
        words.untyped_storage(), first * 8 // dtype.itemsize, shape, strides
    )


def list_tables(augment: RandomOps, base: CropFlip) -> tuple[Any, ...]:
    """Return what the loop of :func:`plan_batch` takes of two policies, one after another."""
    drawn, crop = augment.tables, base.tables
    assert drawn is not None
    # One array of all integers: each argument of compiled code takes a tenth of a microsecond.
    numbers = [drawn.stream, drawn.every, drawn.mode, drawn.num_choices, drawn.num_slots]
    numbers += [drawn.num_params, crop.stream, crop.every, crop.padding]
    arrays = drawn.op_table, drawn.levels, drawn.prepare_codes, drawn.forms
    return augment.engine.codes, np.array(numbers), *arrays, crop.flip


def plan_batch(
    keys: Int64Array,
    seeds: tuple[int, int],
    tables: tuple[Any, ...],
    size: tuple[int, int],
    lines: Int32Array,
    index: Int64Array,
    weights: Float32Array,
    staged_weights: Float32Array,
    *,
    is_byte: bool,
    is_resident: bool,
) -> int:
    """Write a batch's plan, its rows' indices and weights; return how many copies there are.

    The plan is all rows' crops, and the operations of copies.

    Args:
        keys: ``(B,)``
        seeds: Of the strong policy's rows and the base policy's.
        tables: From :func:`list_tables`.
        size: Image height and width.
        lines: Out. ``(B, W)``
        index: Out: each row's index in the dataset. ``(B,)``, or empty if nobody asks.
        weights: ``(B,)``, or empty if all rows weigh 1.
        staged_weights: Out: the same, beside the plan.
        is_byte: Whether pixels are bytes.
        is_resident: Whether images are found by their index in the dataset, not by their row.
    """
    num_copies: int = _plan_batch(
        *(keys, *seeds, *size, lines, index, weights, staged_weights, is_byte, is_resident),
        *tables,
    )
    return num_copies


# Table by table: to look up the type of a tuple takes as long as planning thirty rows.
@numba.njit(cache=True, nogil=True)
def _plan_batch(
    keys: Int64Array,
    seed: int,
    base_seed: int,
    height: int,
    width: int,
    lines: Int32Array,
    index: Int64Array,
    weights: Float32Array,
    staged_weights: Float32Array,
    is_byte: bool,
    is_resident: bool,
    codes: Int64Array,
    numbers: Int64Array,
    op_table: Float32Array,
    levels: Float32Array,
    prepare_codes: Int64Array,
    forms: Float32Array,
    flip: np.float32,
) -> int:
    stream, every, mode, num_choices = numbers[0], numbers[1], numbers[2], numbers[3]
    drawing = stream, every, mode, num_choices, op_table, levels
    tables = OpTables(*drawing, prepare_codes, forms, numbers[4], numbers[5])
    crop = CropTables(numbers[6], numbers[7], numbers[8], flip)
    for i in range(index.shape[0]):
        index[i] = _unpack(keys[i])[2]
    for i in range(weights.shape[0]):
        staged_weights[i] = weights[i]
    num_copies = 0
    # Blocks, whose arrays stay in cache and are not mapped anew by each call.
    for first in range(0, keys.shape[0], _BLOCK):
        last = min(first + _BLOCK, keys.shape[0])
        part, to = keys[first:last], lines[first:last]
        given = tables, codes, crop, height, width, is_byte, is_resident
        num_copies += _plan_block(part, first, np.uint64(seed), np.uint64(base_seed), *given, to)
    return num_copies


@numba.njit(cache=True, nogil=True)
def _plan_rows(
    keys: Int64Array,
    seed: np.uint64,
    base_seed: np.uint64,
    tables: OpTables,
    crop: CropTables,
    height: int,
    width: int,
    crops: Int32Array,
) -> tuple[Int64Array, Int64Array, Float32Array]:
    """Write crops ``(B, 3)``; return positions of copies, their operations and parameters."""
    num_rows, num_copies = keys.shape[0], 0
    at, epochs = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)  # of copies
    indices, copies = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    epoch, index = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)  # of all
    copy = np.empty(num_rows, np.int64)
    for i in range(num_rows):
        epoch[i], copy[i], index[i] = _unpack(keys[i])
        if not _is_original(copy[i]) and copy[i] != PADDING:
            at[num_copies], epochs[num_copies] = i, epoch[i]
            indices[num_copies], copies[num_copies] = index[i], copy[i]
            num_copies += 1
    if crop.padding > 0 or crop.flip > 0:
        fill_crops(base_seed, epoch, index, copy, crop, crops)
    else:
        crops[:] = 0
    epochs, indices, copies = epochs[:num_copies], indices[:num_copies], copies[:num_copies]
    op, params = plan_ops(seed, epochs, indices, copies, tables, height, width)
    return at[:num_copies], op, params


@numba.njit(cache=True, nogil=True)
def _plan_block(
    keys: Int64Array,
    first: int,
    seed: np.uint64,
    base_seed: np.uint64,
    tables: OpTables,
    codes: Int64Array,
    crop: CropTables,
    height: int,
    width: int,
    is_byte: bool,
    is_resident: bool,
    lines: Int32Array,
) -> int:
    """Do what :func:`plan_batch` does for some rows, ``first`` and those after it."""
    for i in range(keys.shape[0]):
        source = _unpack(keys[i])[2] if is_resident else first + i
        lines[i, SOURCE], lines[i, SOURCE + 1] = np.int32(source & 0xFFFFFFFF), source >> 32
        lines[i, COUNT] = 0
    crops = lines[:, TOP : MIRRORED + 1]
    at, op, params = _plan_rows(keys, seed, base_seed, tables, crop, height, width, crops)
    stage_ops(op, params, codes, is_byte, at, lines)
    return len(at)
