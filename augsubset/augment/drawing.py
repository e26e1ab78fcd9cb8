"""From uniform numbers to what each row gets, compiled: many small arrays would take longer."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["DRAWS_A_SLOT", "Drawn", "chosen_anew", "chosen_distinct", "decided", "spare_of"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

# What is drawn for a slot: the operation, whether it is applied, its level, sign, and two to spare.
_CHOICE, _FIRES, _LEVEL, _SIGN, _SPARE, DRAWS_A_SLOT = 0, 1, 2, 3, 4, 6


class Drawn(NamedTuple):
    """What a policy drew for each row and slot.

    Args:
        op: Which of the operations, -1 for none. ``(B, S)``
        magnitude: ``(B, S)``
        spare: Uniform numbers for what is drawn beside the magnitude. ``(B, S, 2)``
    """

    op: Int64Array
    magnitude: Float32Array
    spare: Float32Array


@numba.njit(cache=True, nogil=True)
def chosen_anew(draws: Float32Array, num_ops: int, chosen: Int64Array) -> None:
    """Choose among all operations for every slot."""
    for i in range(chosen.shape[0]):
        for slot in range(chosen.shape[1]):
            chosen[i, slot] = np.int64(draws[i, slot, _CHOICE] * num_ops)


@numba.njit(cache=True, nogil=True)
def chosen_distinct(draws: Float32Array, num_ops: int, chosen: Int64Array) -> None:
    """Choose among the operations that a row has not got yet: all arrangements equally likely."""
    for i in range(chosen.shape[0]):
        for slot in range(chosen.shape[1]):
            rank = np.int64(draws[i, slot, _CHOICE] * (num_ops - slot))
            number = 0
            while True:
                is_taken = False
                for before in range(slot):
                    is_taken |= chosen[i, before] == number
                if not is_taken:
                    if rank == 0:
                        break
                    rank -= 1
                number += 1
            chosen[i, slot] = number


@numba.njit(cache=True, nogil=True)
def decided(
    draws: Float32Array,
    low: Float32Array,
    span: Float32Array,
    signed: BoolArray,
    integral: BoolArray,
    probability: Float32Array,
    level: Float32Array,
    levels: Float32Array,
    op: Int64Array,
    magnitude: Float32Array,
) -> None:
    """Write magnitudes of the operations chosen, and -1 for those that are not applied.

    Args:
        draws: ``(B, S, 6)``
        low: Magnitude at level 0, an operation; so are all up to ``level``.
        span: What level 1 adds.
        signed: Whether half get less by as much.
        integral: Whether magnitudes are whole.
        probability: Of being applied.
        level: Its only level; below zero: any.
        levels: Levels to draw from, where any is drawn; none: all.
        op: Chosen operations; overwritten. ``(B, S)``
        magnitude: Written. ``(B, S)``
    """
    for i in range(op.shape[0]):
        for slot in range(op.shape[1]):
            number = op[i, slot]
            drawn = draws[i, slot]
            at = level[number]
            if at < 0 and len(levels):
                at = levels[np.int64(drawn[_LEVEL] * len(levels))]
            elif at < 0:
                at = drawn[_LEVEL]
            change = at * span[number]
            if signed[number] and drawn[_SIGN] < 0.5:
                change = -change
            value = low[number] + change
            magnitude[i, slot] = np.rint(value) if integral[number] else value
            if drawn[_FIRES] >= probability[number]:
                op[i, slot] = -1


def spare_of(draws: Float32Array) -> Float32Array:
    """Return the draws that parameters may use. ``(B, S, 2)``."""
    return draws[:, :, _SPARE:]
