"""From gradients to a weighted subset: per class, greedy facility location."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.selection.budget import (
    budget_from_fraction,
    budgets_from_mapping,
    check_tolerance,
    sainte_lague_seats,
)
from augsubset.selection.certificate import combine
from augsubset.selection.facility_location import Similarity
from augsubset.selection.gradients import LastLayerGradients
from augsubset.selection.result import Selection
from augsubset.selection.solver import ClassProblem, ClassSolution, Method, Options, solve
from augsubset.utils.checks import check_int

__all__ = ["assemble", "class_members", "quotas", "select_coreset"]

Int64Array = npt.NDArray[np.int64]


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
    """Select the weighted subset whose gradients stand for everybody's, class by class.

    Each class gets seats by Sainte-Lague and fills them by greedy facility location; a selected
    example weighs as many examples of its class as are nearest to it (paper, algorithm 1, lines 4
    and 5). A class depends on its own data and budget alone.

    Args:
        gradients: What :meth:`GradientProbe.scan` returned, or an ``(n, d)`` tensor or array.
        labels: Class of each row of a bare tensor; ``None`` makes it one group.
        fraction: Share of the examples to select, in (0, 1]; never fewer than one a class.
        budget: How many to select, or how many of each class. Seats of a mapping are dealt in
            proportion to its budgets.
        tolerance: Total error to stay within (paper, eq. 10 and 11), shared among classes by
            size: each gets the fewest picks that keep within its share. Exactly one of fraction,
            budget and tolerance.
        similarity: ``"shifted"``, C - d with C the class's largest distance; ``"shifted_sq"``,
            C^2 - d^2; ``"exp"``, exp(-d / p) with p the number of features, which the paper's
            released code ran; or an elementwise function of a tensor of distances, between 0 and
            its value at 0. Errors are distances under every one of them.
        method: ``"lazy"``, exact. ``"naive"``, slower: the same selection. ``"stochastic"``: looks
            at n / k ln(1 / epsilon) random candidates a pick and holds no matrix.
            ``"partitioned"``: exact within parts of neighbours, merged by gain. ``"auto"``: lazy up
            to 16,384 examples of a class, partitioned above; it depends on that number alone.
        device: Where exact methods solve whole classes; ``None``: the CPU. Elsewhere many at once.
        max_memory: Bytes that distances may take; fewer classes run side by side to stay under
            it. ``None``: no limit, on a device 8 GiB.
        seed: Decides the candidates of ``"stochastic"``; exact methods do not use it.
        progress: Show a bar over classes (needs tqdm).
        epsilon: What ``"stochastic"`` gives away of (1 - 1/e) in expectation.
        part_size: Examples a part of ``"partitioned"``, at most.

    Returns:
        A :class:`Selection` with integral weights that add up to n, and its certificate.

    Raises:
        TypeError: If labels accompany :class:`LastLayerGradients`, or a type is wrong.
        ValueError: If a value is out of range or not finite, or more memory is needed than allowed.

    Cost:
        A class of m examples solved whole: O(m^2 features) time and 4 m^2 bytes; classes run in
        parallel over the cores. 10 classes of 5,000 in 10 dimensions at 30%: about half a second
        on two cores. In parts of size s: O(m s features), then O(m k features) at most to find
        everybody's nearest pick, and 4 s^2 bytes a core.

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
    classes, members = class_members(gradients)
    sizes = np.array([len(m) for m in members])
    indices = gradients.indices.numpy()
    problems = [
        ClassProblem(int(label), gradients.factors, positions, indices[positions], *quota)
        for label, positions, quota in zip(
            classes,
            members,
            quotas(classes, sizes, options, fraction, budget, tolerance),
            strict=True,
        )
    ]
    solutions = solve(problems, options)
    in_proportion = tolerance is None and not isinstance(budget, Mapping)
    return assemble(gradients.indices, members, solutions, sizes if in_proportion else None)


def quotas(
    classes: Int64Array,
    sizes: Int64Array,
    options: Options,
    fraction: float | None,
    budget: int | Mapping[int, int] | None,
    tolerance: float | None,
) -> list[tuple[int | None, float | None]]:
    """Return each class's budget, or its share of the tolerance, from the one that is given."""
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
    seats = sainte_lague_seats(sizes, check_int("budget", budget, 0))
    return [(k, None) for k in np.bincount(seats, minlength=len(classes)).tolist()]


def assemble(
    indices: Tensor,
    members: Sequence[Int64Array],
    solutions: Sequence[ClassSolution],
    sizes: Int64Array | None,
) -> Selection:
    """Put the classes' solutions together.

    Args:
        indices: Dataset index of each row. ``(n,)``
        members: Rows of each class.
        solutions: One a class.
        sizes: What seats are dealt in proportion to; ``None``: to the numbers of picks.
    """
    counts = np.array([len(solution.order) for solution in solutions])
    seats = sainte_lague_seats(counts if sizes is None else sizes, int(counts.sum()))
    order = np.empty(len(seats), np.int64)
    gains = np.empty(len(seats))
    nearest = np.empty(len(indices), np.int64)
    for c, (positions, solution) in enumerate(zip(members, solutions, strict=True)):
        order[seats == c] = positions[solution.order]
        gains[seats == c] = solution.gains
        nearest[positions] = positions[solution.nearest]
    weights = np.bincount(nearest, minlength=len(indices))[order].astype(np.float64)
    return Selection(
        indices=indices[order],
        weights=torch.from_numpy(weights),
        gains=torch.from_numpy(gains),
        clusters=indices[nearest],
        certificate=combine(
            (solution.measured for solution in solutions),
            [solution.bound for solution in solutions],
            weights,
        ),
    )


def class_members(gradients: LastLayerGradients) -> tuple[Int64Array, list[Int64Array]]:
    """Return the classes present, ascending, and each one's positions by ascending index.

    The order within a class is what makes "the lowest index wins" hold in any row order.
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
                "labels must be None with LastLayerGradients, which carry their own, got labels."
            )
        return gradients
    if labels is not None:
        labels = _as_tensor(labels)
        if labels.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
            labels = labels.long()
    return LastLayerGradients.from_residual(_as_tensor(gradients), labels)


def _as_tensor(values: Tensor | npt.ArrayLike) -> Tensor:
    """Return a tensor on the same memory where there is one; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(values)
