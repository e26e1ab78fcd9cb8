"""Solve every class within its quota: side by side on cores, or in batches on a device."""

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
from augsubset.selection.certificate import ClassMeasure, measure
from augsubset.selection.distances import Factors
from augsubset.selection.facility_location import (
    UNIT,
    FacilityLocation,
    Int32Array,
    Levels,
    Similarity,
    apart_on,
    check_similarity,
    cost_lower_bound,
    levels_on,
    nearest_picks,
)
from augsubset.selection.greedy import (
    Picks,
    batched_greedy,
    lazy_greedy,
    naive_greedy,
    num_candidates,
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
    "memory_needed",
    "method_for",
    "solve",
    "workers_within",
]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
Method = Literal["auto", "lazy", "naive", "stochastic", "partitioned"]
T = TypeVar("T")
R = TypeVar("R")

LARGEST_EXACT = 16_384  # examples of a class that "auto" solves whole: 1 GiB of levels


@dataclass(frozen=True)
class Options:
    """How to solve; the same for every class. See :func:`select_coreset`."""

    similarity: Similarity = "shifted"
    method: Method = "auto"
    epsilon: float = 0.1
    part_size: int = 8192
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_memory: int | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuse what no solver could run."""
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
                "Exact methods run in batches there."
            )


@dataclass(frozen=True, eq=False)
class ClassProblem:
    """One class and its quota.

    Args:
        label: The class.
        factors: Rows that the class's are among, one entry a layer.
        positions: Its rows, by ascending dataset index.
        indices: Dataset index of each. ``(n,)``
        budget: Picks; ``None``: as many as the tolerance takes.
        tolerance: Cost to stay within.
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

    def among(self, few: Int64Array) -> ClassProblem:
        """Return the problem of choosing as many from a few of the examples."""
        return replace(self, positions=self.positions[few], indices=self.indices[few])

    def rows(self, among: Int64Array | None = None) -> list[Factors]:
        """Return the gradients of some of the class's examples, or of all."""
        positions = self.positions if among is None else self.positions[among]
        return [part.at(positions) for part in self.factors]


@dataclass(frozen=True, eq=False)
class ClassSolution:
    """What a class's quota went to, in positions within the class.

    Args:
        order: Picks, in order. ``(k,)``
        gains: In similarity units. ``(k,)``
        nearest: Who represents each example. ``(n,)``
        bound: What no other k picks can cost less than; ``None`` if unknown.
        measured: Cost and gradient sums.
    """

    order: Int64Array
    gains: Float64Array
    nearest: Int64Array
    bound: float | None
    measured: ClassMeasure


def method_for(method: Method, size: int) -> str:
    """Return what solves a class; ``"auto"`` looks at its size alone."""
    if method != "auto":
        return method
    return "lazy" if size <= LARGEST_EXACT else "partitioned"


def solve(problems: Sequence[ClassProblem], options: Options) -> list[ClassSolution]:
    """Return one solution a problem; each depends on its own problem and the options alone.

    Raises:
        ValueError: If more memory is needed than allowed; nothing has been solved then.
    """
    num_workers = workers_within(problems, options)
    found: dict[int, ClassSolution] = {}
    in_parts = [p for p in problems if method_for(options.method, len(p)) == "partitioned"]
    whole = [p for p in problems if method_for(options.method, len(p)) != "partitioned"]
    whole.sort(key=len, reverse=True)
    with progress_bar(options.progress, len(whole), "solving", "class") as bar:
        solver = Solver(options, num_workers, bar)
        if options.device.type == "cpu":
            solutions = solver.map(solver.solve_whole, whole)
        else:
            solutions = solver.solve_on_device(whole)
        for problem, solution in zip(whole, solutions, strict=True):
            found[id(problem)] = solution
        for problem in in_parts:
            found[id(problem)] = solver.solve_in_parts(problem)
    return [found[id(problem)] for problem in problems]


def memory_needed(problem: ClassProblem, options: Options) -> tuple[int, int]:
    """Return bytes that one class takes in any case, and for each worker that is at it.

    The figures are above what is allocated, so that staying under them stays under the limit.
    """
    n, itemsize = len(problem), int(problem.factors[0].left.itemsize)
    if any(part.right is not None for part in problem.factors):
        itemsize = 8
    widths = [int(part.left.shape[1]) for part in problem.factors]
    widths += [part.right.shape[1] for part in problem.factors if part.right is not None]
    is_product = any(part.right is not None for part in problem.factors)
    width: int = sum(widths)

    def of_rows(m: int) -> int:
        """Copies of rows, scaled and transposed, float64 chunks of them, and vectors."""
        doubles = 24 * min(m, 4096) * max(widths) + (16 * m * max(widths) if is_product else 0)
        return 4 * m * width * itemsize + doubles + 256 * m + 40 * 16 * m

    method = method_for(options.method, n)
    if method == "partitioned":
        part = min(n, options.part_size)
        picks = n if problem.budget is None else problem.budget
        solving = 4 * part**2 + of_rows(part)
        assigning = of_rows(part) + 3 * picks * width * itemsize + 16 * 1024 * part
        return (6 * n * width * itemsize + 128 * n, max(solving, assigning))
    if method == "stochastic":
        assert problem.budget is not None
        candidates = num_candidates(n, problem.budget, options.epsilon)
        return (0, of_rows(n) + candidates * (n * (2 * itemsize + 8) + width * itemsize))
    return (0, 4 * n**2 + of_rows(n))


def workers_within(problems: Sequence[ClassProblem], options: Options) -> int:
    """Return how many classes or parts may be worked on at once."""
    num_workers = torch.get_num_threads()
    if options.max_memory is None:
        return num_workers
    needs = [memory_needed(problem, options) for problem in problems]
    base = sum(8192 + 256 * len(problem) for problem in problems)
    base += max(whole for whole, _ in needs)
    needed = base + max(worker for _, worker in needs)
    if needed > options.max_memory:
        size = max(len(problem) for problem in problems)
        raise ValueError(
            f"max_memory must be at least {needed} bytes for {size} examples in the largest class "
            f"by method={options.method!r}, got max_memory={options.max_memory}. Raise it, or pass "
            'method="partitioned" with a smaller part_size.'
        )
    largest = sorted((worker for _, worker in needs), reverse=True)
    if any(method_for(options.method, len(p)) == "partitioned" for p in problems):
        largest = [largest[0]] * num_workers  # parts of one class run side by side
    while num_workers > 1 and base + sum(largest[:num_workers]) > options.max_memory:
        num_workers -= 1
    return num_workers


class Solver:
    """Threads, their memory, and what runs in them.

    Args:
        options: How to solve.
        num_workers: Threads.
        bar: Advanced by one a class or part; ``None``: nothing is shown.
    """

    def __init__(self, options: Options, num_workers: int, bar: Any = None) -> None:
        self._options = options
        self._threads = threading.local()
        self._num_workers = num_workers
        self._bar = bar

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply to every item in threads; results in order."""
        with ThreadPoolExecutor(self._num_workers) as pool:
            for result in pool.map(function, items):
                if self._bar is not None:
                    self._bar.update()
                yield result

    def _also_count(self, items: Sequence[Any]) -> None:
        if self._bar is not None:
            self._bar.total += len(items)
            self._bar.refresh()

    def _memory(self, num_examples: int) -> Int32Array:
        """Return this thread's memory for levels: pages once touched are not asked for again."""
        memory: Int32Array | None = getattr(self._threads, "memory", None)
        if memory is None or len(memory) < num_examples**2:
            self._threads.memory = None  # before the larger one is asked for
            memory = self._threads.memory = np.empty(num_examples**2, np.int32)
        return memory

    # A class that is solved whole.

    def solve_whole(self, problem: ClassProblem) -> ClassSolution:
        """Solve by the exact or stochastic method, on one core."""
        options = self._options
        rows = problem.rows()
        objective = FacilityLocation(rows, options.similarity)
        if options.method == "stochastic":
            assert problem.budget is not None
            picks = stochastic_greedy(
                objective,
                problem.budget,
                epsilon=options.epsilon,
                seed=mix_seed(options.seed, problem.label),
            )
            return _solution(rows, picks, objective.step, None)
        levels = objective.levels(self._memory(len(problem)))
        if problem.budget is not None:
            greedy = naive_greedy if options.method == "naive" else lazy_greedy
            picks = greedy(levels, problem.budget)
        else:
            assert problem.tolerance is not None
            picks = _within_tolerance(rows, levels, problem.tolerance)
        bound = None
        if options.similarity == "shifted":
            bound = _lower_bound(levels.start, picks, levels.apart[picks.order], objective)
        return _solution(rows, picks, objective.step, bound)

    def solve_on_device(self, problems: Sequence[ClassProblem]) -> Iterator[ClassSolution]:
        """Solve by the exact method, as many classes at once as memory takes."""
        for batch in self._batches(problems):
            rows = [problem.rows() for problem in batch]
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
        """Solve classes whose distances are of one dtype."""
        lost, start = levels_on(self._options.device, objectives)
        budgets = []
        for problem in batch:
            assert problem.budget is not None
            budgets.append(problem.budget)
        sizes = [len(problem) for problem in batch]
        found = batched_greedy(lost, start, budgets, sizes)
        for at, (each, objective, picks) in enumerate(zip(rows, objectives, found, strict=True)):
            bound = None
            if objective.takes_root:
                n = objective.num_examples
                order = torch.from_numpy(picks.order).to(lost.device)
                apart = apart_on(lost[at, :n, :n], order).cpu().numpy()
                bound = _lower_bound(int(start[at]), picks, apart, objective)
            yield _solution(each, picks, objective.step, bound)

    def _batches(self, problems: Sequence[ClassProblem]) -> Iterator[Sequence[ClassProblem]]:
        """Group classes, largest first, so that padded levels and temporaries fit."""
        allowed = self._options.max_memory
        if allowed is None:
            allowed = 1 << 33
        begin = 0
        while begin < len(problems):
            # Distances, differences and levels: four matrices of 4 bytes while these are made.
            count = max(1, allowed // (16 * len(problems[begin]) ** 2))
            yield problems[begin : begin + count]
            begin += count

    # A class that is solved in parts.

    def solve_in_parts(self, problem: ClassProblem) -> ClassSolution:
        """Solve neighbourhoods exactly, merge by gain, and assign everybody to the nearest pick."""
        parts = self.parts(problem)
        few = partition.thinned(problem.indices, problem.budget, self._options.part_size)
        if few is None:
            order, gains = self.merged(problem, parts)
        else:
            fewer = problem.among(few)
            order, gains = self.merged(fewer, self.parts(fewer))
            order = few[order]
        if problem.budget is not None:
            order, gains = order[: problem.budget], gains[: problem.budget]
        else:
            assert problem.tolerance is not None
            length = self._shortest_within(problem, parts, order, gains)
            order, gains = order[:length], gains[:length]
        nearest = self._assigned(problem, parts, order)
        return ClassSolution(
            order, gains, nearest, None, measure(problem.rows(), problem.rows(nearest))
        )

    def parts(self, problem: ClassProblem) -> list[Int64Array]:
        """Return positions within the class, part by part."""
        size, n = self._options.part_size, len(problem)
        sample = problem.rows(partition.sampled(problem.indices, n, size))
        tree = partition.LocalityTree(sample, n, size)
        numbers = tree.parts_of(problem.rows())
        parts = []
        for number in range(tree.num_parts):
            members = np.flatnonzero(numbers == number)
            if len(members):
                rows = problem.rows(members)
                parts += [members[few] for few in partition.split_by_rank(rows, size)]
        return parts

    def merged(
        self, problem: ClassProblem, parts: Sequence[Int64Array]
    ) -> tuple[Int64Array, Float64Array]:
        """Return more picks than the budget, by falling gain within their parts."""

        def solve_part(members: Int64Array) -> tuple[Int64Array, Float64Array]:
            share = len(members)
            if problem.budget is not None:
                share = partition.part_budget(problem.budget, share, len(problem))
            order, gains = self.solve_part(problem.rows(members), share)
            return members[order], gains

        self._also_count(parts)
        return partition.merge_by_gain(*zip(*self.map(solve_part, parts), strict=True))

    def solve_part(self, rows: Sequence[Factors], share: int) -> tuple[Int64Array, Float64Array]:
        """Return a part's picks and their gains in similarity units."""
        objective = FacilityLocation(rows, self._options.similarity)
        picks = lazy_greedy(objective.levels(self._memory(objective.num_examples)), share)
        return picks.order, picks.gains.astype(np.float64) * objective.step

    def _assigned(
        self, problem: ClassProblem, parts: Sequence[Int64Array], order: Int64Array
    ) -> Int64Array:
        """Return the nearest pick of each example of the class, wherever it lies."""
        part_of = np.empty(len(problem), np.int64)
        for number, members in enumerate(parts):
            part_of[members] = number
        numbers = order[np.lexsort((order, part_of[order]))]
        sizes = np.bincount(part_of[order], minlength=len(parts))
        index = partition.PickIndex(problem.rows(numbers), numbers, sizes)

        def assign_part(number: int) -> Int64Array:
            return index.nearest(problem.rows(parts[number]), number)

        self._also_count(parts)
        nearest = np.empty(len(problem), np.int64)
        for members, found in zip(parts, self.map(assign_part, range(len(parts))), strict=True):
            nearest[members] = found
        nearest[order] = order
        return nearest

    def _shortest_within(
        self,
        problem: ClassProblem,
        parts: Sequence[Int64Array],
        order: Int64Array,
        gains: Float64Array,
    ) -> int:
        """Return the fewest first picks whose error is within the tolerance, by bisection."""
        tolerance = problem.tolerance
        assert tolerance is not None
        enough, rows = len(order), problem.rows()
        too_few = 0
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            nearest = self._assigned(problem, parts, order[:middle])
            if measure(rows, problem.rows(nearest)).error <= tolerance:
                enough = middle
            else:
                too_few = middle
        return enough


def _within_tolerance(rows: Sequence[Factors], levels: Levels, tolerance: float) -> Picks:
    """Return the fewest picks of lazy greedy whose error in float64 is within the tolerance.

    Levels say where about to stop; the last picks are settled by the exact error.
    """
    n = len(levels.lost)
    coverage = np.empty(n, np.int32)

    def error_of(order: Int64Array) -> float:
        nearest = nearest_picks(levels.lost, order, coverage)
        return measure(rows, [part.at(nearest) for part in rows]).error

    enough = min(tolerance / levels.step, float(UNIT * n)) if levels.step else 0.0
    picks = lazy_greedy(levels, n, enough=int(enough))
    order = picks.order
    while error_of(order) > tolerance:
        order = lazy_greedy(levels, len(order) + 1).order
    while len(order) > 1 and error_of(order[:-1]) <= tolerance:
        order = order[:-1]
    if len(order) == len(picks.order):
        return picks
    return lazy_greedy(levels, len(order))


def _lower_bound(
    start: int, picks: Picks, apart: npt.NDArray[Any], objective: FacilityLocation
) -> float:
    """Return the bound as a distance, less what rounding may have added to it."""
    n = objective.num_examples
    if len(picks.order) == n:
        return 0.0
    assert picks.left is not None
    bound = cost_lower_bound(n * start - int(picks.gains.sum()), picks.left, apart)
    rounded = (bound - n / 2) * objective.step - n * objective.allowance
    return max(0.0, rounded * (1 - objective.precision))


def _solution(
    rows: Sequence[Factors], picks: Picks, step: float, bound: float | None
) -> ClassSolution:
    representatives = [part.at(picks.nearest) for part in rows]
    gains = picks.gains.astype(np.float64) * step
    return ClassSolution(picks.order, gains, picks.nearest, bound, measure(rows, representatives))
