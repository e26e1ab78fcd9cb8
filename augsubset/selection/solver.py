"""Solve the selection problem of every class: in parallel on CPU cores, or batched on a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from augsubset.selection import partition
from augsubset.selection.certificate import ClassMetrics, measure_class
from augsubset.selection.distances import Factors
from augsubset.selection.facility_location import (
    UNIT,
    FacilityLocation,
    Int32Array,
    Levels,
    Similarity,
    check_similarity,
    compute_cost_lower_bound,
    compute_levels_on_device,
    find_nearest_other,
    find_nearest_picks,
)
from augsubset.selection.greedy import (
    Picks,
    batched_greedy,
    count_candidates,
    lazy_greedy,
    naive_greedy,
    stochastic_greedy,
)
from augsubset.utils.checks import check_choice, check_int, check_number
from augsubset.utils.progress import progress_bar
from augsubset.utils.rng import mix_seed

__all__ = [
    "ClassProblem",
    "ClassSolution",
    "Method",
    "Options",
    "Solver",
    "choose_method",
    "count_workers",
    "estimate_memory",
    "solve",
]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
Method = Literal["auto", "lazy", "naive", "stochastic", "partitioned"]
T = TypeVar("T")
R = TypeVar("R")

LARGEST_EXACT = 16_384  # largest class that "auto" solves exactly: 1 GiB of levels


@dataclass(frozen=True)
class Options:
    """How to solve, the same for every class; see :func:`select_coreset`."""

    similarity: Similarity = "shifted"
    method: Method = "auto"
    epsilon: float = 0.1
    part_size: int = 8192
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_memory: int | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Validate once; raise for what no solver supports."""
        check_similarity(self.similarity)
        check_choice("method", self.method, ("auto", "lazy", "naive", "stochastic", "partitioned"))
        check_choice("progress", self.progress, (False, True))
        check_int("part_size", self.part_size, 2)
        if self.max_memory is not None:
            check_int("max_memory", self.max_memory, 1)
        check_number("epsilon", self.epsilon)
        check_int("seed", self.seed, -(2**63), 2**64 - 1)
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must be between 0 and 1, got epsilon={self.epsilon}.")
        if self.device.type != "cpu" and self.method == "stochastic":
            raise ValueError(
                f'device must be the CPU for method="stochastic", got device={str(self.device)!r}. '
                "Exact methods run in batches on a device."
            )


@dataclass(frozen=True, eq=False)
class ClassProblem:
    """One class and its budget or tolerance.

    Args:
        label: The class.
        factors: Gradients of all classes, one entry per layer.
        positions: The rows of this class, by ascending dataset index. ``(n,)``
        indices: Dataset index of each. ``(n,)``
        budget: Number of picks; ``None``: as many as the tolerance requires.
        tolerance: Maximum cost.
    """

    label: int
    factors: Sequence[Factors]
    positions: Int64Array
    indices: Int64Array
    budget: int | None
    tolerance: float | None = None

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self.positions)

    def restrict(self, subset: Int64Array) -> ClassProblem:
        """Return the problem of selecting the same budget from a subset of the examples."""
        return replace(self, positions=self.positions[subset], indices=self.indices[subset])

    def take(self, subset: Int64Array | None = None) -> list[Factors]:
        """Return the gradients of a subset of the examples; ``None``: of all."""
        positions = self.positions if subset is None else self.positions[subset]
        return [part.take(positions) for part in self.factors]


@dataclass(frozen=True, eq=False)
class ClassSolution:
    """The picks of one class; positions are within the class.

    Args:
        order: Picks, in order. ``(k,)``
        gains: In units of similarity. ``(k,)``
        nearest: Representative of each example. ``(n,)``
        lower_bound: On the cost of any k picks; ``None`` if unknown.
        metrics: Cost and gradient sums.
    """

    order: Int64Array
    gains: Float64Array
    nearest: Int64Array
    lower_bound: float | None
    metrics: ClassMetrics


def choose_method(method: Method, size: int) -> str:
    """Return the method for a class; ``"auto"`` depends on the class size alone."""
    if method != "auto":
        return method
    return "lazy" if size <= LARGEST_EXACT else "partitioned"


def solve(problems: Sequence[ClassProblem], options: Options) -> list[ClassSolution]:
    """Return one solution per problem; each depends on its own problem and the options alone.

    Raises:
        ValueError: If ``max_memory`` is too low; raised before anything is solved.
    """
    num_workers = count_workers(problems, options)
    found: dict[int, ClassSolution] = {}
    partitioned = [p for p in problems if choose_method(options.method, len(p)) == "partitioned"]
    whole = [p for p in problems if choose_method(options.method, len(p)) != "partitioned"]
    whole.sort(key=len, reverse=True)
    with progress_bar(options.progress, len(whole), "solving", "class") as bar:
        solver = Solver(options, num_workers, bar)
        if options.device.type == "cpu":
            solutions = solver.map(solver.solve_whole, whole)
        else:
            solutions = solver.solve_on_device(whole)
        for problem, solution in zip(whole, solutions, strict=True):
            found[id(problem)] = solution
        for problem in partitioned:
            found[id(problem)] = solver.solve_in_parts(problem)
    return [found[id(problem)] for problem in problems]


def estimate_memory(problem: ClassProblem, options: Options) -> tuple[int, int]:
    """Return the bytes that one class takes regardless of threads, and per thread working on it.

    Upper bounds on what is allocated, so that staying below ``max_memory`` is guaranteed.
    """
    n = len(problem)
    sides = [side for part in problem.factors for side in part if side is not None]
    is_product = len(sides) > len(problem.factors)
    itemsize = 8 if is_product else int(sides[0].itemsize)
    widths: list[int] = [side.shape[1] for side in sides]
    width, widest = sum(widths), max(widths)

    def estimate_rows(m: int) -> int:
        """Scaled and transposed copies of m rows, float64 chunks of them, and vectors."""
        doubles = 24 * min(m, 4096) * widest + (16 * m * widest if is_product else 0)
        return 4 * m * width * itemsize + doubles + 256 * m + 40 * 16 * m

    method = choose_method(options.method, n)
    if method == "partitioned":
        part = min(n, options.part_size)
        picks = n if problem.budget is None else problem.budget
        solving = 4 * part**2 + estimate_rows(part)
        assigning = estimate_rows(part) + 3 * picks * width * itemsize + 16 * 1024 * part
        return (6 * n * width * itemsize + 128 * n, max(solving, assigning))
    if method == "stochastic":
        assert problem.budget is not None
        candidates = count_candidates(n, problem.budget, options.epsilon)
        return (0, estimate_rows(n) + candidates * (n * (2 * itemsize + 8) + width * itemsize))
    return (0, 4 * n**2 + estimate_rows(n))


def count_workers(problems: Sequence[ClassProblem], options: Options) -> int:
    """Return how many classes or parts may be solved in parallel within ``max_memory``."""
    num_workers = torch.get_num_threads()
    if options.max_memory is None:
        return num_workers
    needs = [estimate_memory(problem, options) for problem in problems]
    base = sum(8192 + 256 * len(problem) for problem in problems)
    base += max(shared for shared, _ in needs)
    needed = base + max(per_thread for _, per_thread in needs)
    if needed > options.max_memory:
        size = max(len(problem) for problem in problems)
        raise ValueError(
            f"max_memory must be at least {needed} bytes for method={options.method!r} and {size} "
            f"examples in the largest class, got max_memory={options.max_memory}. Raise it, or "
            'pass method="partitioned" with a smaller part_size.'
        )
    largest = sorted((per_thread for _, per_thread in needs), reverse=True)
    if any(choose_method(options.method, len(p)) == "partitioned" for p in problems):
        largest = [largest[0]] * num_workers  # parts of one class run in parallel
    while num_workers > 1 and base + sum(largest[:num_workers]) > options.max_memory:
        num_workers -= 1
    return num_workers


class Solver:
    """Solves classes or parts of classes in threads, with one reused buffer per thread.

    Args:
        options: How to solve.
        num_workers: Number of threads.
        bar: Progress bar, advanced once per class or part; ``None``: no bar.
    """

    def __init__(self, options: Options, num_workers: int, bar: Any = None) -> None:
        self._options = options
        self._threads = threading.local()
        self._num_workers = num_workers
        self._bar = bar

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply a function to every item in threads; yield the results in order."""
        with ThreadPoolExecutor(self._num_workers) as pool:
            for result in pool.map(function, items):
                if self._bar is not None:
                    self._bar.update()
                yield result

    def _extend_bar(self, count: int) -> None:
        if self._bar is not None:
            self._bar.total += count
            self._bar.refresh()

    def _reuse_buffer(self, num_examples: int) -> Int32Array:
        """Return this thread's buffer for levels: fresh memory would cost page faults each time."""
        buffer: Int32Array | None = getattr(self._threads, "buffer", None)
        if buffer is None or len(buffer) < num_examples**2:
            self._threads.buffer = None  # frees the smaller one before the larger is allocated
            buffer = self._threads.buffer = np.empty(num_examples**2, np.int32)
        return buffer

    def solve_whole(self, problem: ClassProblem) -> ClassSolution:
        """Solve one class with an exact or the stochastic method, on one core."""
        options = self._options
        rows = problem.take()
        objective = FacilityLocation(rows, options.similarity)
        if options.method == "stochastic":
            assert problem.budget is not None
            picks = stochastic_greedy(
                objective,
                problem.budget,
                epsilon=options.epsilon,
                seed=mix_seed(options.seed, problem.label),
            )
            return _build_solution(rows, picks, objective.step, None)
        levels = objective.compute_levels(self._reuse_buffer(len(problem)))
        if problem.budget is not None:
            greedy = naive_greedy if options.method == "naive" else lazy_greedy
            picks = greedy(levels, problem.budget)
        else:
            assert problem.tolerance is not None
            picks = _meet_tolerance(rows, levels, problem.tolerance)
        bound = None
        if options.similarity == "shifted":
            nearest_other = levels.nearest_other[picks.order]
            bound = _bound_cost(levels.uncovered, picks, nearest_other, objective)
        return _build_solution(rows, picks, objective.step, bound)

    def solve_on_device(self, problems: Sequence[ClassProblem]) -> Iterator[ClassSolution]:
        """Solve by the exact method, as many classes at once as fit into memory."""
        for batch in self._split_into_batches(problems):
            rows = [problem.take() for problem in batch]
            objectives = [FacilityLocation(each, self._options.similarity) for each in rows]
            found: dict[int, ClassSolution] = {}
            for dtype in {one.squares.dtype for one in objectives}:
                at = [i for i, one in enumerate(objectives) if one.squares.dtype == dtype]
                solved = self._solve_together(
                    [batch[i] for i in at], [rows[i] for i in at], [objectives[i] for i in at]
                )
                found.update(zip(at, solved, strict=True))
            for i in range(len(batch)):
                if self._bar is not None:
                    self._bar.update()
                yield found[i]

    def _solve_together(
        self,
        batch: Sequence[ClassProblem],
        rows: Sequence[Sequence[Factors]],
        objectives: Sequence[FacilityLocation],
    ) -> Iterator[ClassSolution]:
        """Solve classes whose distances have the same dtype."""
        levels, uncovered = compute_levels_on_device(self._options.device, objectives)
        budgets = []
        for problem in batch:
            assert problem.budget is not None
            budgets.append(problem.budget)
        sizes = [len(problem) for problem in batch]
        found = batched_greedy(levels, uncovered, budgets, sizes)
        for c, (each, objective, picks) in enumerate(zip(rows, objectives, found, strict=True)):
            bound = None
            if objective.takes_root:
                n = objective.num_examples
                order = torch.from_numpy(picks.order).to(levels.device)
                nearest_other = find_nearest_other(levels[c, :n, :n], order).cpu().numpy()
                bound = _bound_cost(int(uncovered[c]), picks, nearest_other, objective)
            yield _build_solution(each, picks, objective.step, bound)

    def _split_into_batches(
        self, problems: Sequence[ClassProblem]
    ) -> Iterator[Sequence[ClassProblem]]:
        """Group classes, largest first, so that padded levels and temporaries fit into memory."""
        allowed = self._options.max_memory or 1 << 33
        begin = 0
        while begin < len(problems):
            # Four temporary 4-byte matrices: distances, differences and levels.
            count = max(1, allowed // (16 * len(problems[begin]) ** 2))
            yield problems[begin : begin + count]
            begin += count

    def solve_in_parts(self, problem: ClassProblem) -> ClassSolution:
        """Solve each part exactly, merge by gain, assign every example to its nearest pick."""
        parts = self.split(problem)
        subsample = partition.draw_subsample(
            problem.indices, problem.budget, self._options.part_size
        )
        if subsample is None:
            order, gains = self.propose_picks(problem, parts)
        else:
            smaller = problem.restrict(subsample)
            order, gains = self.propose_picks(smaller, self.split(smaller))
            order = subsample[order]
        k = problem.budget
        if k is None:
            k = self._count_picks_for_tolerance(problem, parts, order)
        order, gains = order[:k], gains[:k]
        nearest = self._assign_to_nearest(problem, parts, order)
        metrics = measure_class(problem.take(), problem.take(nearest))
        return ClassSolution(order, gains, nearest, None, metrics)

    def split(self, problem: ClassProblem) -> list[Int64Array]:
        """Return the positions of the examples in each part."""
        size, n = self._options.part_size, len(problem)
        sample = problem.take(partition.draw_tree_sample(problem.indices, n, size))
        tree = partition.LocalityTree(sample, n, size)
        numbers = tree.assign_parts(problem.take())
        parts = []
        for number in range(tree.num_parts):
            members = np.flatnonzero(numbers == number)
            if len(members):
                halves = partition.split_in_halves(problem.take(members), size)
                parts += [members[half] for half in halves]
        return parts

    def propose_picks(
        self, problem: ClassProblem, parts: Sequence[Int64Array]
    ) -> tuple[Int64Array, Float64Array]:
        """Return the picks of all parts by decreasing gain: at least as many as the budget."""

        def solve_part(members: Int64Array) -> tuple[Int64Array, Float64Array]:
            budget = len(members)
            if problem.budget is not None:
                budget = partition.compute_part_budget(problem.budget, budget, len(problem))
            order, gains = self.solve_part(problem.take(members), budget)
            return members[order], gains

        self._extend_bar(len(parts))
        return partition.merge_by_gain(*zip(*self.map(solve_part, parts), strict=True))

    def solve_part(self, rows: Sequence[Factors], budget: int) -> tuple[Int64Array, Float64Array]:
        """Return a part's picks and their gains in units of similarity."""
        objective = FacilityLocation(rows, self._options.similarity)
        buffer = self._reuse_buffer(objective.num_examples)
        picks = lazy_greedy(objective.compute_levels(buffer), budget)
        return picks.order, picks.gains.astype(np.float64) * objective.step

    def _assign_to_nearest(
        self, problem: ClassProblem, parts: Sequence[Int64Array], order: Int64Array
    ) -> Int64Array:
        """Return the nearest pick of each example of the class, in whichever part it lies."""
        part_of = np.empty(len(problem), np.int64)
        for number, members in enumerate(parts):
            part_of[members] = number
        numbers = order[np.lexsort((order, part_of[order]))]
        sizes = np.bincount(part_of[order], minlength=len(parts))
        index = partition.PickIndex(problem.take(numbers), numbers, sizes)

        def assign_part(number: int) -> Int64Array:
            return index.find_nearest(problem.take(parts[number]), number)

        self._extend_bar(len(parts))
        nearest = np.empty(len(problem), np.int64)
        for members, found in zip(parts, self.map(assign_part, range(len(parts))), strict=True):
            nearest[members] = found
        nearest[order] = order
        return nearest

    def _count_picks_for_tolerance(
        self, problem: ClassProblem, parts: Sequence[Int64Array], order: Int64Array
    ) -> int:
        """Return the length of the shortest prefix whose error is within the tolerance."""
        tolerance = problem.tolerance
        assert tolerance is not None
        rows = problem.take()
        too_few, enough = 0, len(order)
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            nearest = self._assign_to_nearest(problem, parts, order[:middle])
            if measure_class(rows, problem.take(nearest)).error <= tolerance:
                enough = middle
            else:
                too_few = middle
        return enough


def _meet_tolerance(rows: Sequence[Factors], levels: Levels, tolerance: float) -> Picks:
    """Return the fewest picks of lazy greedy whose error in float64 is within the tolerance.

    The levels, being rounded, only tell roughly where to stop; the exact error settles the rest.
    """
    n = len(levels.matrix)
    coverage = np.empty(n, np.int32)

    def compute_error(order: Int64Array) -> float:
        nearest = find_nearest_picks(levels.matrix, order, coverage)
        return measure_class(rows, [part.take(nearest) for part in rows]).error

    # Any cost is at most UNIT * n; without the cap a large tolerance would overflow an integer.
    target = min(tolerance / levels.step, float(UNIT * n)) if levels.step else 0.0
    picks = lazy_greedy(levels, n, target_cost=int(target))
    order = picks.order
    while compute_error(order) > tolerance:
        order = lazy_greedy(levels, len(order) + 1).order
    while len(order) > 1 and compute_error(order[:-1]) <= tolerance:
        order = order[:-1]
    if len(order) == len(picks.order):
        return picks
    return lazy_greedy(levels, len(order))


def _bound_cost(
    uncovered: int, picks: Picks, nearest_other: npt.NDArray[Any], objective: FacilityLocation
) -> float:
    """Return the lower bound on the cost as a distance, minus what rounding may have added."""
    n = objective.num_examples
    if len(picks.order) == n:
        return 0.0
    assert picks.remaining_gains is not None
    cost = n * uncovered - int(picks.gains.sum())
    bound = compute_cost_lower_bound(cost, picks.remaining_gains, nearest_other)
    # Rounding to levels adds up to half a level per example.
    rounded = (bound - n / 2) * objective.step - n * objective.absolute_error
    return max(0.0, rounded * (1 - objective.relative_error))


def _build_solution(
    rows: Sequence[Factors], picks: Picks, step: float, lower_bound: float | None
) -> ClassSolution:
    metrics = measure_class(rows, [part.take(picks.nearest) for part in rows])
    gains = picks.gains.astype(np.float64) * step
    return ClassSolution(picks.order, gains, picks.nearest, lower_bound, metrics)
