"""What each row of a batch gets, in one compiled loop: from its key to the kernels' parameters.

The loop calls those of other modules. Numba keeps compiled code by the file of the outermost loop:
after a change in one of the others, touch this file.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from augsubset.augment.draws import DRAWS_PER_SLOT, fill_draws
from augsubset.augment.params import prepare_rows
from augsubset.augment.random import fill_uniforms

__all__ = ["OpTables", "plan_ops"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


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


@numba.njit(cache=True, nogil=True)
def plan_ops(
    seed: np.uint64,
    epoch: Int64Array,
    index: Int64Array,
    copy: Int64Array,
    tables: OpTables,
    height: int,
    width: int,
) -> tuple[Int64Array, Float32Array, Float32Array, Float32Array]:
    """Return each row's operations ``(B, S)``, magnitudes, uniform numbers and parameters.

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
    return op, magnitude, draws, params
