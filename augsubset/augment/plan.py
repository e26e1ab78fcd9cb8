"""What each row of a batch gets, in one compiled loop: from its key to the kernels' parameters.

The loops call those of other modules. Numba keeps compiled code by the file of the outermost loop:
after a change in one of the others, touch this file, and those whose loops call it (``crop.py``,
``delivery.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from augsubset.augment import kernels
from augsubset.augment.draws import DRAWS_PER_SLOT, fill_draws
from augsubset.augment.params import prepare_rows
from augsubset.augment.random import fill_uniforms

__all__ = ["KERNEL_CODES", "CropTables", "OpTables", "count_columns", "fill_crops", "plan_ops"]
__all__ += ["stage_ops"]

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

# A line of a staged plan, as device/rows.cu reads it: where the image is among all, as 64 bits; how
# many operations; the crop's first row and column, and whether it is mirrored; then the operations'
# kernels, and their parameters as floats.
SOURCE, COUNT, TOP, LEFT, MIRRORED, KERNELS = 0, 2, 3, 4, 5, 6

KERNEL_CODES: dict[Callable[..., Any], int] = {
    kernels.identity: 0,
    kernels.warp: 1,
    kernels.blend: 2,
    kernels.sharpen: 3,
    kernels.posterize: 4,
    kernels.solarize: 5,
    kernels.autocontrast: 6,
    kernels.equalize: 7,
    kernels.erase: 8,
    kernels.warp_reflected: 9,
    kernels.blur: 10,
    kernels.add_noise: 11,
}
"""The code in ``device/rows.cu`` of each torch kernel."""

_POSTERIZE = KERNEL_CODES[kernels.posterize]


class OpTables(NamedTuple):
    """All of a policy that its rows' draws depend on; arguments of the compiled loops."""

    stream: int
    every: int
    mode: int
    num_choices: int
    op_table: Float32Array
    levels: Float32Array
    prepare_codes: Int64Array
    forms: Float32Array
    num_slots: int
    num_params: int


def count_columns(num_slots: int, num_params: int) -> int:
    """Return the width of a staged plan, an even number: lines begin with 64 bits."""
    width = KERNELS + num_slots * (1 + num_params)
    return width + width % 2


@numba.njit(cache=True, nogil=True)
def plan_ops(
    seed: np.uint64,
    epoch: Int64Array,
    index: Int64Array,
    copy: Int64Array,
    tables: OpTables,
    height: int,
    width: int,
) -> tuple[Int64Array, Float32Array]:
    """Return each row's operations ``(B, S)``, -1 for none, and their parameters ``(B, S, P)``.

    Args:
        seed: Of the rows.
        epoch: ``(B,)``, as index and copy.
        index: In the dataset.
        copy: Which copy.
        tables: The policy's.
        height: Image height.
        width: Image width.
    """
    num_rows, num_slots = epoch.shape[0], tables.num_slots
    if tables.every != 1:
        epoch = epoch - epoch % tables.every
    flat = np.empty((num_rows, num_slots * DRAWS_PER_SLOT), np.float32)
    fill_uniforms(seed, tables.stream, epoch, index, copy, flat)
    draws = flat.reshape(num_rows, num_slots, DRAWS_PER_SLOT)
    op = np.empty((num_rows, num_slots), np.int64)
    magnitude = np.empty((num_rows, num_slots), np.float32)
    table, levels = tables.op_table, tables.levels
    fill_draws(draws, tables.mode, tables.num_choices, table, levels, op, magnitude)
    params = np.zeros((num_rows, num_slots, tables.num_params), np.float32)
    spare = draws[:, :, DRAWS_PER_SLOT - 2 :]
    codes, forms = tables.prepare_codes, tables.forms
    prepare_rows(codes, op, forms, magnitude, spare, height, width, params)
    return op, params


@numba.njit(cache=True, nogil=True)
def stage_ops(
    op: Int64Array,
    params: Float32Array,
    codes: Int64Array,
    is_byte: bool,
    rows: Int64Array,
    lines: Int32Array,
) -> None:
    """Write operations and parameters into the lines of some rows.

    Args:
        op: Operation of each row and slot, -1 for none. ``(m, S)``
        params: ``(m, S, P)``
        codes: Kernel code of each operation, 0 for none. The last entry is for op -1.
        is_byte: Whether pixels are bytes.
        rows: Line of each row. ``(m,)``
        lines: The plan. ``(B, W)``
    """
    num_slots, num_params = np.uint64(op.shape[1]), np.uint64(params.shape[2])
    # One dimension, and unsigned: numba compiles a check for negative ones into any other index.
    values, whole = params.reshape(-1), lines.reshape(-1)
    as_floats, taken = whole.view(np.float32), np.uint64(0)
    for j in range(op.shape[0]):
        line, count = np.uint64(rows[j]) * np.uint64(lines.shape[1]), np.uint64(0)
        kernels_at = line + np.uint64(KERNELS)
        for slot in range(num_slots):
            code = codes[op[j, slot]]
            at = kernels_at + num_slots + count * num_params
            for t in range(num_params):
                as_floats[at + t] = values[taken + t]
            if code == _POSTERIZE:  # a power of two by the device's own function might differ
                bits = np.float64(values[taken])
                if is_byte:
                    as_floats[at] = np.uint8(256 - np.float32(2 ** (8 - bits)))
                else:
                    as_floats[at] = 2**bits
            taken += num_params
            whole[kernels_at + count] = code
            count += np.uint64(code != 0)  # the next one overwrites none
        whole[line + np.uint64(COUNT)] = count


class CropTables(NamedTuple):
    """All of a crop and flip that its rows' draws depend on."""

    stream: int
    every: int
    padding: int
    flip: np.float32


@numba.njit(cache=True, nogil=True)
def fill_crops(
    seed: np.uint64,
    epoch: Int64Array,
    index: Int64Array,
    copy: Int64Array,
    tables: CropTables,
    crops: Int32Array,
) -> None:
    """Write each row's first row and column in the image, and whether it is mirrored: ``(B, 3)``.

    Args:
        seed: Of the rows.
        epoch: ``(B,)``, as index and copy.
        index: In the dataset.
        copy: Which copy.
        tables: The policy's.
        crops: Out.
    """
    num_rows, padding = epoch.shape[0], tables.padding
    if tables.every != 1:
        epoch = epoch - epoch % tables.every
    draws = np.empty((num_rows, 3), np.float32)
    fill_uniforms(seed, tables.stream, epoch, index, copy, draws)
    num_offsets = np.float32(2 * padding + 1)
    for i in range(num_rows):
        crops[i, 0] = np.int32(draws[i, 0] * num_offsets) - padding
        crops[i, 1] = np.int32(draws[i, 1] * num_offsets) - padding
        crops[i, 2] = draws[i, 2] < tables.flip
