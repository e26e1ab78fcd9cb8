"""From gradients to a weighted subset: greedy facility location in each class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.selection.budget import (
    budget_from_fraction,
    budgets_from_mapping,
    check_tolerance,
    sainte_lague_order,
)
from augsubset.selection.certificate import build_certificate
from augsubset.selection.facility_location import Similarity
from augsubset.selection.gradients import LastLayerGradients
from augsubset.selection.result import Selection
from augsubset.selection.solver import ClassProblem, ClassSolution, Method, Options, solve
from augsubset.utils.checks import check_int

__all__ = ["assemble_selection", "assign_quotas", "group_by_class", "select_coreset"]

Int64Array = npt.NDArray[np.int64]

_SMALL_INTEGERS = {torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32}


def select_coreset(
    gradients: LastLayerGradients | Tensor | npt.ArrayLike,
    labels: Tensor | npt.ArrayLike | None = None,
    *,
    fraction: float | None = None,
    budget: int | Mapping[int, int] | None = None,
    tolerance: float | None = None,
    similarity: Similarity = "shifted",
    method: Method = "auto",
    device: torch.device | str | None = None,
    max_memory: int | None = None,
    seed: int = 0,
    progress: bool = False,
    epsilon: float = 0.1,
    part_size: int = 8192,
) -> Selection:
    """Select a weighted subset of each class whose gradients approximate those of the whole class.

    Class budgets follow Sainte-Lague and are filled by greedy facility location. The weight of a
    selected example is its cluster size: the number of examples of its class that it is nearest to
    (paper, algorithm 1, lines 4 and 5). Each class depends only on its own data and budget.

    Args:
        gradients: From :meth:`GradientProbe.scan`, or an ``(n, d)`` tensor or array, or anything
            that numpy converts to one, such as a DataFrame. Not sparse.
        labels: Class of each row of a tensor or array, an integer; ``None``: a single class.
        fraction: Fraction of the examples to select, in (0, 1]; at least one per class.
        budget: Number of examples to select in total, or of each class by label.
        tolerance: Maximum total error (paper, eq. 10 and 11), shared among classes in proportion to
            their size; each class gets the fewest picks that meet its share. Exactly one of
            fraction, budget and tolerance must be given.
        similarity: ``"shifted"``: C - d, with C the largest distance in the class.
            ``"shifted_sq"``: C^2 - d^2. ``"exp"``: exp(-d / p) with p features, as in the paper's
            released code; almost 0 at every distance above about 10 p, where examples may not be
            assigned to their nearest pick: scale such rows down. Or an elementwise function of a
            tensor of distances, with values between 0 and its value at 0. Errors are reported as
            distances in all cases.
        method: ``"lazy"``: exact greedy. ``"naive"``: the same selection, slower. ``"stochastic"``:
            evaluates n / k ln(1 / epsilon) random candidates per pick, stores no matrix.
            ``"partitioned"``: exact within parts of similar examples, merged by gain. ``"auto"``:
            lazy up to 16,384 examples in a class, else partitioned.
        device: Where exact methods solve classes, ``None``: the CPU. Other devices solve many
            classes per batch.
        max_memory: Limit on the memory for distances, in bytes; fewer classes run in parallel to
            stay below it. ``None``: no limit on the CPU, 8 GiB on other devices.
        seed: Determines the candidates of ``"stochastic"``; exact methods ignore it.
        progress: Show a progress bar over classes (needs tqdm).
        epsilon: How far ``"stochastic"`` may fall below (1 - 1/e), in expectation.
        part_size: Maximum number of examples per part of ``"partitioned"``.

    Returns:
        A :class:`Selection` with integer weights that add up to n, and its certificate.

    Raises:
        TypeError: If labels accompany :class:`LastLayerGradients`, or a type is wrong.
        ValueError: If a value is out of range or not finite, or ``max_memory`` is too low.

    Cost:
        Exact, for a class of m examples: O(m^2 features) time and 4 m^2 bytes; classes run in
        parallel on all cores. 10 classes of 5,000 examples with 10 features at 30%: about half a
        second on two cores. Partitioned, with parts of s: O(m s features), then at most
        O(m k features) to find the nearest picks, and 4 s^2 bytes per core.

    Reference:
        Mirzasoleiman et al., 2020 (arXiv:1906.01827); Liu & Mirzasoleiman, 2022 (arXiv:2210.08363).

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
        >>> selection = select_coreset(points, budget=2)
        >>> selection.indices, selection.weights
        (tensor([1, 3]), tensor([3., 1.], dtype=torch.float64))
    """
    options = Options(
        similarity=similarity,
        method=method,
        epsilon=epsilon,
        part_size=part_size,
        device=torch.device("cpu" if device is None else device),
        max_memory=max_memory,
        seed=seed,
        progress=progress,
    )
    gradients = _as_gradients(gradients, labels)
    classes, members = group_by_class(gradients)
    sizes = np.array([len(m) for m in members])
    indices = gradients.indices.numpy()
    quotas = assign_quotas(classes, sizes, options, fraction, budget, tolerance)
    problems = [
        ClassProblem(int(label), gradients.factors, positions, indices[positions], *quota)
        for label, positions, quota in zip(classes, members, quotas, strict=True)
    ]
    solutions = solve(problems, options)
    in_proportion = tolerance is None and not isinstance(budget, Mapping)
    return assemble_selection(
        gradients.indices, members, solutions, sizes if in_proportion else None
    )


def assign_quotas(
    classes: Int64Array,
    sizes: Int64Array,
    options: Options,
    fraction: float | None,
    budget: int | Mapping[int, int] | None,
    tolerance: float | None,
) -> list[tuple[int | None, float | None]]:
    """Return each class's (budget, None), or (None, share of the tolerance)."""
    given = {"fraction": fraction, "budget": budget, "tolerance": tolerance}
    if sum(value is not None for value in given.values()) != 1:
        got = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"exactly one of fraction, budget and tolerance must be given, got {got}.")
    n = int(sizes.sum())
    if tolerance is not None:
        check_tolerance(tolerance, options.method, options.similarity, options.device)
        return [(None, tolerance * (size / n)) for size in sizes.tolist()]
    if isinstance(budget, Mapping):
        return [(k, None) for k in budgets_from_mapping(budget, classes, sizes)]
    if budget is None:
        assert fraction is not None
        budget = budget_from_fraction(fraction, n, len(classes))
    order = sainte_lague_order(sizes, check_int("budget", budget, 0))
    return [(k, None) for k in np.bincount(order, minlength=len(classes)).tolist()]


def assemble_selection(
    indices: Tensor,
    members: Sequence[Int64Array],
    solutions: Sequence[ClassSolution],
    sizes: Int64Array | None,
) -> Selection:
    """Combine the solutions of all classes into one selection.

    Args:
        indices: Dataset index of each row. ``(n,)``
        members: Rows of each class.
        solutions: One per class.
        sizes: Interleave the classes' picks in proportion to these; ``None``: to their numbers.
    """
    counts = np.array([len(solution.order) for solution in solutions])
    class_of = sainte_lague_order(counts if sizes is None else sizes, int(counts.sum()))
    order = np.empty(len(class_of), np.int64)
    gains = np.empty(len(class_of))
    nearest = np.empty(len(indices), np.int64)
    for c, (positions, solution) in enumerate(zip(members, solutions, strict=True)):
        order[class_of == c] = positions[solution.order]
        gains[class_of == c] = solution.gains
        nearest[positions] = positions[solution.nearest]
    weights = np.bincount(nearest, minlength=len(indices))[order].astype(np.float64)
    return Selection(
        indices=indices[order],
        weights=torch.from_numpy(weights),
        gains=torch.from_numpy(gains),
        clusters=indices[nearest],
        certificate=build_certificate(
            (solution.metrics for solution in solutions),
            [solution.lower_bound for solution in solutions],
            weights,
        ),
    )


def group_by_class(gradients: LastLayerGradients) -> tuple[Int64Array, list[Int64Array]]:
    """Return the classes, ascending, and the positions of each by ascending dataset index.

    With this order, ties go to the lowest dataset index whatever the order of the rows.
    """
    labels = gradients.labels.numpy()
    by_index = np.lexsort((gradients.indices.numpy(), labels))
    classes, starts = np.unique(labels[by_index], return_index=True)
    return classes, np.split(by_index, starts[1:])


def _as_gradients(
    gradients: LastLayerGradients | Tensor | npt.ArrayLike, labels: Tensor | npt.ArrayLike | None
) -> LastLayerGradients:
    if isinstance(gradients, LastLayerGradients):
        if labels is not None:
            raise TypeError(
                "labels must be None with LastLayerGradients, which contain labels, got labels."
            )
        return gradients
    dense = "Pass (n, d) floats; of a sparse matrix its to_dense() or toarray()."
    residual = _as_tensor("gradients", gradients, dense)
    if residual.ndim != 2 or not residual.is_floating_point():
        raise ValueError(
            "gradients must be a floating (n, d) tensor or array, got "
            f"(shape {tuple(residual.shape)}, dtype {residual.dtype})."
        )
    if labels is not None:
        encode = "np.unique(labels, return_inverse=True)[1] makes integers of names."
        labels = _as_tensor("labels", labels, encode)
        if labels.dtype in _SMALL_INTEGERS:
            labels = labels.long()
    return LastLayerGradients.from_residual(residual, labels)


def _as_tensor(name: str, values: Any, hint: str) -> Tensor:
    """Return a tensor that shares memory if possible; nothing here writes to it."""
    tensor = values if isinstance(values, Tensor) else None
    if tensor is None and not isinstance(values, np.ma.MaskedArray):  # its mask would be lost
        with warnings.catch_warnings(), suppress(TypeError, ValueError, RuntimeError):
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            # A DataFrame is no sequence of rows. Lists are left to torch's default dtype.
            tensor = torch.as_tensor(np.asarray(values) if hasattr(values, "__array__") else values)
    if tensor is None or tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        dtype = f" of dtype {values.dtype}" if hasattr(values, "dtype") else ""
        raise TypeError(
            f"{name} must be a dense tensor or array of numbers, got {type(values).__name__}"
            f"{dtype}. {hint}"
        )
    return tensor
