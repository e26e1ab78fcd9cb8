"""Decode uniform numbers into each row's operations and magnitudes.

Compiled with numba: many NumPy calls on small arrays would take longer than the work itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from augsubset.augment.ops import Op

__all__ = ["DISTINCT", "DRAWS_PER_SLOT", "INDEPENDENT", "SEQUENCE", "OpDraws"]
__all__ += ["build_op_table", "decode_draws", "fill_draws"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

# The uniform numbers of one slot: which operation, whether to apply it, level, sign, two to spare.
_CHOICE, _APPLY, _LEVEL, _SIGN, _SPARE, DRAWS_PER_SLOT = 0, 1, 2, 3, 4, 6

# How a row's operations are chosen. INDEPENDENT: each slot from all of them. DISTINCT: without
# replacement, all arrangements equally likely. SEQUENCE: the first slot's draw picks one of several
# fixed sequences, which are stored one after another.
INDEPENDENT, DISTINCT, SEQUENCE = range(3)

# Columns of the operation table.
_LOW, _SPAN, _SIGNED, _INTEGRAL, _PROBABILITY, _FIXED_LEVEL = range(6)


class OpDraws(NamedTuple):
    """The operation drawn for each row and slot.

    Args:
        op: Index into the policy's operations, -1 for none. ``(B, S)``
        magnitude: ``(B, S)``
        spare: Uniform numbers for whatever else an operation draws. ``(B, S, 2)``
    """

    op: Int64Array
    magnitude: Float32Array
    spare: Float32Array


def build_op_table(
    ops: Collection[Op], probabilities: Sequence[float], levels: Sequence[float]
) -> Float32Array:
    """Return the lookup table of :func:`decode_draws`.

    Args:
        ops: Operations.
        probabilities: Probability that each is applied.
        levels: Fixed level of each, or a negative number to draw it.

    Shape:
        returns ``(len(ops), 6)``: magnitude at level 0, difference to level 1, signed, integral,
        probability, fixed level.
    """
    low = np.array([op.low for op in ops], np.float32)
    span = np.array([op.high for op in ops], np.float32) - low
    signed, integral = [op.signed for op in ops], [op.integral for op in ops]
    columns = (low, span, signed, integral, probabilities, levels)
    return np.stack([np.asarray(column, np.float32) for column in columns], 1)


def decode_draws(
    draws: Float32Array, mode: int, num_choices: int, table: Float32Array, levels: Float32Array
) -> OpDraws:
    """Return the operations and magnitudes that uniform numbers stand for.

    Args:
        draws: ``(B, S, 6)``
        mode: ``INDEPENDENT``, ``DISTINCT`` or ``SEQUENCE``.
        num_choices: Number of operations, or of sequences, to choose from.
        table: From :func:`build_op_table`.
        levels: Allowed levels, equally likely; empty: any level in [0, 1).
    """
    op = np.empty(draws.shape[:2], np.int64)
    magnitude = np.empty(draws.shape[:2], np.float32)
    fill_draws(draws, mode, num_choices, table, levels, op, magnitude)
    return OpDraws(op, magnitude, draws[:, :, _SPARE:])


# The loops index element by element: reference counting of a view costs more than the loop body.


@numba.njit(cache=True, nogil=True)
def _choose_ops(draws: Float32Array, mode: int, num_choices: int, op: Int64Array) -> None:
    num_slots = op.shape[1]
    for i in range(op.shape[0]):
        for slot in range(num_slots):
            if mode == INDEPENDENT:
                op[i, slot] = np.int64(draws[i, slot, _CHOICE] * num_choices)
            elif mode == SEQUENCE:
                sequence = np.int64(draws[i, 0, _CHOICE] * num_choices)
                op[i, slot] = sequence * num_slots + slot
            else:
                # The draw is a rank among the unused operations. Going through the used ones in
                # ascending order and skipping each that is not above the rank gives the index:
                # with 1 and 3 used of 0..4, ranks 0, 1, 2 become 0, 2, 4.
                rank = np.int64(draws[i, slot, _CHOICE] * (num_choices - slot))
                last = -1
                for _ in range(slot):
                    smallest = num_choices  # of the used operations above `last`
                    for earlier in range(slot):
                        used = op[i, earlier]
                        smallest = min(smallest, used if used > last else num_choices)
                    rank += rank >= smallest
                    last = smallest
                op[i, slot] = rank


@numba.njit(cache=True, nogil=True)
def fill_draws(
    draws: Float32Array,
    mode: int,
    num_choices: int,
    table: Float32Array,
    levels: Float32Array,
    op: Int64Array,
    magnitude: Float32Array,
) -> None:
    """Write operations, -1 where none is applied, and magnitudes."""
    _choose_ops(draws, mode, num_choices, op)
    num_levels = levels.shape[0]
    # Selections, not branches, which would be guessed wrong for every other row.
    for i in range(op.shape[0]):
        for slot in range(op.shape[1]):
            which, level = op[i, slot], draws[i, slot, _LEVEL]
            if num_levels:
                level = levels[np.int64(level * num_levels)]
            fixed = table[which, _FIXED_LEVEL]
            change = (level if fixed < 0 else fixed) * table[which, _SPAN]
            is_negative = (table[which, _SIGNED] != 0) & (draws[i, slot, _SIGN] < np.float32(0.5))
            value = table[which, _LOW] + (-change if is_negative else change)
            rounded = np.rint(value)
            magnitude[i, slot] = rounded if table[which, _INTEGRAL] != 0 else value
            op[i, slot] = which if draws[i, slot, _APPLY] < table[which, _PROBABILITY] else -1
