"""From uniform numbers to what each row gets, compiled: many small arrays would take longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from augsubset.augment.ops import Op

__all__ = ["ANEW", "DISTINCT", "DRAWS_A_SLOT", "IN_SEQUENCE", "Drawn", "draw_rows", "odds_of"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

# What is drawn for a slot: the operation, whether it is applied, its level, sign, and two to spare.
_CHOICE, _FIRES, _LEVEL, _SIGN, _SPARE, DRAWS_A_SLOT = 0, 1, 2, 3, 4, 6

# How operations are chosen: each slot's among all; among those that the row has not got yet, all
# arrangements equally likely; or all slots' by the first one's draw, one sequence after the other.
ANEW, DISTINCT, IN_SEQUENCE = range(3)

_LOW, _SPAN, _SIGNED, _INTEGRAL, _PROBABILITY, _ONLY_LEVEL, _NUM_ODDS = range(7)


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


def odds_of(
    ops: Sequence[Op], probabilities: Sequence[float], levels: Sequence[float]
) -> Float32Array:
    """Return what :func:`draw_rows` looks up.

    Args:
        ops: Operations.
        probabilities: That each is applied.
        levels: The only level of each; below zero: any.

    Shape:
        returns ``(ops, 6)``: magnitude at level 0, what level 1 adds, whether half get less by as
        much, whether magnitudes are whole, probability, level.
    """
    low = np.array([op.low for op in ops], np.float32)
    span = np.array([op.high for op in ops], np.float32) - low
    signed, integral = [op.signed for op in ops], [op.integral for op in ops]
    columns = (low, span, signed, integral, probabilities, levels)
    return np.stack([np.asarray(column, np.float32) for column in columns], 1)


def draw_rows(
    draws: Float32Array, way: int, num_choices: int, odds: Float32Array, levels: Float32Array
) -> Drawn:
    """Return what rows get by their uniform numbers.

    Args:
        draws: ``(B, S, 6)``
        way: How operations are chosen.
        num_choices: Operations, or sequences of them, to choose from.
        odds: Of :func:`odds_of`.
        levels: Levels to draw from, where any is drawn; none: all.
    """
    op = np.empty(draws.shape[:2], np.int64)
    magnitude = np.empty(draws.shape[:2], np.float32)
    _draw(draws, way, num_choices, odds, levels, op, magnitude)
    return Drawn(op, magnitude, draws[:, :, _SPARE:])


# One index after the other below: a view would be counted, which takes longer than what is done.


@numba.njit(cache=True, nogil=True)
def _choose(draws: Float32Array, way: int, num_choices: int, op: Int64Array) -> None:
    num_slots = op.shape[1]
    for i in range(op.shape[0]):
        for slot in range(num_slots):
            if way == ANEW:
                op[i, slot] = np.int64(draws[i, slot, _CHOICE] * num_choices)
            elif way == IN_SEQUENCE:
                sequence = np.int64(draws[i, 0, _CHOICE] * num_choices)
                op[i, slot] = sequence * num_slots + slot
            else:
                rank = np.int64(draws[i, slot, _CHOICE] * (num_choices - slot))
                # Passes the operations that the row has, lowest first, as the least not seen yet.
                last = -1
                for _ in range(slot):
                    least = num_choices
                    for before in range(slot):
                        if last < op[i, before] < least:
                            least = op[i, before]
                    rank += rank >= least
                    last = least
                op[i, slot] = rank


@numba.njit(cache=True, nogil=True)
def _draw(
    draws: Float32Array,
    way: int,
    num_choices: int,
    odds: Float32Array,
    levels: Float32Array,
    op: Int64Array,
    magnitude: Float32Array,
) -> None:
    """Write operations, -1 for those that are not applied, and magnitudes."""
    _choose(draws, way, num_choices, op)
    for i in range(op.shape[0]):
        for slot in range(op.shape[1]):
            at = op[i, slot]
            level = odds[at, _ONLY_LEVEL]
            if level < 0:
                level = draws[i, slot, _LEVEL]
                if levels.shape[0]:
                    level = levels[np.int64(level * levels.shape[0])]
            change = level * odds[at, _SPAN]
            if odds[at, _SIGNED] != 0 and draws[i, slot, _SIGN] < 0.5:
                change = -change
            value = odds[at, _LOW] + change
            magnitude[i, slot] = np.rint(value) if odds[at, _INTEGRAL] != 0 else value
            if draws[i, slot, _FIRES] >= odds[at, _PROBABILITY]:
                op[i, slot] = -1
