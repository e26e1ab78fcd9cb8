"""How many to select, and how many of them from each class."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from augsubset.utils.checks import check_int, check_number

__all__ = [
    "budget_from_fraction",
    "budgets_from_mapping",
    "check_fraction",
    "check_tolerance",
    "sainte_lague_seats",
]

Int64Array = npt.NDArray[np.int64]


def check_fraction(fraction: float) -> None:
    """Refuse a fraction outside (0, 1]."""
    check_number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction must be in (0, 1], got fraction={fraction}. Pass 0.1 for ten percent."
        )


def budget_from_fraction(fraction: float, n: int, num_classes: int) -> int:
    """Return max(number of classes, fraction * n rounded half up in exact decimal).

    Example:
        >>> budget_from_fraction(0.145, 100, 10)  # the float is below 14.5; what was written is not
        15
    """
    check_fraction(fraction)
    exact = Decimal(str(fraction)) * n
    return max(num_classes, int(exact.to_integral_value(ROUND_HALF_UP)))


def budgets_from_mapping(
    budget: Mapping[int, int], classes: Int64Array, class_sizes: Int64Array
) -> list[int]:
    """Return the budget of each class, or refuse a mapping that does not fit the classes.

    Raises:
        ValueError: If it names an unknown class, leaves one out, or asks for none or too many.
    """
    known = classes.tolist()
    given = {check_int("a class in budget", label, -(2**63)): k for label, k in budget.items()}
    unknown, missing = sorted(set(given) - set(known)), sorted(set(known) - set(given))
    if unknown or missing:
        wrong = f"the unknown {unknown}" if unknown else f"none for {missing}"
        raise ValueError(
            f"budget must name each of the {len(known)} classes, got {wrong}. "
            f"They are {known[:10]}{'...' if len(known) > 10 else ''}."
        )
    budgets = []
    for label, size in zip(known, class_sizes.tolist(), strict=True):
        k = check_int(f"budget[{label}]", given[label], 1)
        if k > size:
            raise ValueError(
                f"budget[{label}] must be at most the class size {size}, got {k}. Lower it."
            )
        budgets.append(k)
    return budgets


def check_tolerance(tolerance: Any, method: str, similarity: Any, device: torch.device) -> None:
    """Refuse a tolerance that cannot be met, or where nothing stops at one."""
    check_number("tolerance", tolerance)
    if not 0 <= tolerance < float("inf"):
        raise ValueError(
            "tolerance must be finite and at least 0, the error of taking everything, got "
            f"tolerance={tolerance}."
        )
    if similarity != "shifted":
        raise ValueError(
            'tolerance must be None for another similarity than "shifted", which alone lowers the '
            "error. Pass a budget."
        )
    if method == "stochastic":
        raise ValueError(
            'tolerance must be None for method="stochastic", whose draws depend on the budget. '
            "Pass a budget, or an exact method."
        )
    if device.type != "cpu":
        raise ValueError(
            f"tolerance must be None on another device than the CPU, got device={str(device)!r}: "
            "classes solved together take their steps together. Pass a budget, or device=None."
        )


def sainte_lague_seats(class_sizes: Int64Array, budget: int) -> Int64Array:
    """Deal seats to classes in proportion to their sizes, one seat a class first.

    A class of size s that holds m seats asks for the next one with s / (2 m + 1); the largest asks
    first, the earlier class among equals, and a full class asks no more. The order of the seats
    does not depend on the budget, so a smaller budget is a prefix of a larger one.

    Args:
        class_sizes: Examples in each class, all at least 1. ``(C,)``
        budget: Seats in all.

    Returns:
        The class that takes each seat, in order. ``(budget,)``

    Raises:
        ValueError: If the budget is below the number of classes or above the number of examples.

    Cost:
        O(n log n) time. Quotients are float64, exact comparisons up to classes of 2**25: equal
        fractions round to equal floats, and unequal ones of such size differ by more.

    Reference:
        Sainte-Lague, 1910; Balinski & Young, *Fair Representation*, 1982.

    Example:
        >>> np.bincount(sainte_lague_seats(np.array([60, 30, 10]), 10))
        array([6, 3, 1])
    """
    n = int(class_sizes.sum())
    if budget < len(class_sizes):
        raise ValueError(
            f"budget must be at least the number of classes {len(class_sizes)}, "
            f"got budget={budget}. Every class needs one example; raise it."
        )
    if budget > n:
        raise ValueError(
            f"budget must be at most the ground-set size {n}, got budget={budget}. "
            "Lower it or pass fraction=1.0."
        )
    classes = np.repeat(np.arange(len(class_sizes)), class_sizes)
    held = np.arange(n) - np.repeat(np.cumsum(class_sizes) - class_sizes, class_sizes)
    priority = (2.0 * held + 1.0) / class_sizes[classes]
    priority[held == 0] = 0.0
    seats: Int64Array = classes[np.lexsort((classes, priority))][:budget]
    return seats
