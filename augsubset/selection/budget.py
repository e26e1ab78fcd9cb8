"""How many examples to select, in total and from each class."""

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
    "sainte_lague_order",
]

Int64Array = npt.NDArray[np.int64]


def check_fraction(fraction: float) -> None:
    """Raise unless the fraction is in (0, 1]."""
    check_number("fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction must be in (0, 1], got fraction={fraction}. Pass 0.1 for ten percent."
        )


def budget_from_fraction(fraction: float, n: int, num_classes: int) -> int:
    """Return max(number of classes, fraction * n), rounded half up in exact decimal arithmetic.

    Example:
        >>> budget_from_fraction(0.145, 100, 10)  # 14.5, although the float 0.145 is just below
        15
    """
    check_fraction(fraction)
    exact = Decimal(str(fraction)) * n
    return max(num_classes, int(exact.to_integral_value(ROUND_HALF_UP)))


def budgets_from_mapping(
    budget: Mapping[int, int], classes: Int64Array, class_sizes: Int64Array
) -> list[int]:
    """Return the budget of each class from a mapping of class label to budget.

    Raises:
        ValueError: If a class is unknown or missing, or a budget is below 1 or above its size.
    """
    known = classes.tolist()
    given = {check_int("a class in budget", label, -(2**63)): k for label, k in budget.items()}
    unknown, missing = sorted(set(given) - set(known)), sorted(set(known) - set(given))
    if unknown or missing:
        wrong = f"unknown classes {unknown}" if unknown else f"no budget for {missing}"
        raise ValueError(
            f"budget must name each of the {len(known)} classes, got {wrong}. "
            f"The classes are {known[:10]}{'...' if len(known) > 10 else ''}."
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
    """Raise if the tolerance is invalid, or if the other arguments do not support one."""
    check_number("tolerance", tolerance)
    if not 0 <= tolerance < float("inf"):
        raise ValueError(
            "tolerance must be finite and at least 0, the error of selecting everything, got "
            f"tolerance={tolerance}."
        )
    if similarity != "shifted":
        raise ValueError(
            'tolerance must be None unless similarity="shifted", the only one that minimises the '
            "error. Pass a budget."
        )
    if method == "stochastic":
        raise ValueError(
            'tolerance must be None with method="stochastic", whose candidates depend on the '
            "budget. Pass a budget, or use an exact method."
        )
    if device.type != "cpu":
        raise ValueError(
            f"tolerance must be None on any device but the CPU, got device={str(device)!r}: a "
            "batch of classes runs a fixed number of steps. Pass a budget, or device=None."
        )


def sainte_lague_order(class_sizes: Int64Array, budget: int) -> Int64Array:
    """Return the order in which classes receive their picks, proportionally to class size.

    Every class gets one pick first. After that, the next pick goes to the class with the largest
    s / (2 m + 1), for s its size and m its picks so far; ties go to the earlier class, and full
    classes are skipped. The order does not depend on the budget, so the order for a smaller budget
    is a prefix of the order for a larger one. ``np.bincount`` of it gives the class quotas.

    Args:
        class_sizes: Examples in each class, all at least 1. ``(C,)``
        budget: Total number of picks.

    Returns:
        The class of each pick. ``(budget,)``

    Raises:
        ValueError: If the budget is below the number of classes or above the number of examples.

    Cost:
        O(n log n) time. The float64 quotients compare exactly for classes of up to 2**25 examples:
        equal fractions round to equal floats, and different ones differ by more than rounding.

    Reference:
        Sainte-Lague, 1910; Balinski & Young, *Fair Representation*, 1982.

    Example:
        >>> np.bincount(sainte_lague_order(np.array([60, 30, 10]), 10))
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
    picks_so_far = np.arange(n) - np.repeat(np.cumsum(class_sizes) - class_sizes, class_sizes)
    priority = (2.0 * picks_so_far + 1.0) / class_sizes[classes]
    priority[picks_so_far == 0] = 0.0
    order: Int64Array = classes[np.lexsort((classes, priority))][:budget]
    return order
