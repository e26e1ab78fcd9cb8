"""Solver: the same solutions in any order, with any number of threads, in batches or not."""

import numpy as np
import pytest
import torch

from augsubset import LastLayerGradients
from augsubset.selection.coreset import group_by_class
from augsubset.selection.solver import ClassProblem, Options, Solver, solve

RNG = np.random.default_rng(0)


def problems(sizes, dtype=np.float64, *, products=False, fraction=0.3):
    """Rows on a grid, so that ties and duplicates occur, and one class of Gaussian rows."""
    n = sum(sizes)
    residual = RNG.integers(-2, 3, (n, 2)).astype(dtype)
    residual[-sizes[-1] :] = RNG.normal(size=(sizes[-1], 2))
    gradients = LastLayerGradients(
        torch.from_numpy(residual),
        torch.from_numpy(RNG.integers(-2, 3, (n, 3)).astype(dtype)) if products else None,
        torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        torch.arange(n),
        torch.zeros(n),
    )
    classes, members = group_by_class(gradients)
    return [
        ClassProblem(int(label), gradients.factors, mine, mine, max(1, int(fraction * len(mine))))
        for label, mine in zip(classes, members, strict=True)
    ]


def assert_equal_solutions(one, other):
    for name in ("order", "gains", "nearest"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.lower_bound == other.lower_bound
    assert one.metrics.error == other.metrics.error


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("similarity", ["shifted", "shifted_sq"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_batches_give_the_same_solutions_and_bounds(dtype, products, similarity, fraction):
    """The code for a device, run on the CPU."""
    todo = problems([1, 40, 2, 17, 30], dtype, products=products, fraction=fraction)
    todo.sort(key=len, reverse=True)
    options = Options(similarity=similarity)
    expected = solve(todo, options)
    for max_memory in (None, 1, 16 * 40**2 * 2):  # all at once, one by one, two at once
        solver = Solver(Options(similarity=similarity, max_memory=max_memory), 1)
        for one, other in zip(solver.solve_on_device(todo), expected, strict=True):
            assert_equal_solutions(one, other)


@pytest.mark.parametrize("method", ["lazy", "naive", "stochastic", "partitioned"])
def test_a_solution_does_not_depend_on_other_problems_or_threads(method):
    todo = problems([25, 40, 1, 33])
    options = Options(method=method, part_size=10)
    together = solve(todo, options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        backwards = solve(todo[::-1], options)[::-1]
    finally:
        torch.set_num_threads(threads)
    for problem, one, other in zip(todo, together, backwards, strict=True):
        assert_equal_solutions(one, other)
        assert_equal_solutions(one, *solve([problem], options))


def test_a_buffer_reused_from_a_larger_class_does_not_affect_a_smaller():
    todo = problems([60, 5, 1, 30])
    solver = Solver(Options(), 1)
    for one in (solver.solve_whole(problem) for problem in todo):
        assert one is not None
    again = [solver.solve_whole(problem) for problem in todo]
    for problem, one in zip(todo, again, strict=True):
        assert_equal_solutions(one, Solver(Options(), 1).solve_whole(problem))
