"""Run different operations on the rows of one batch.

Which operation each row gets is decided on the CPU, and the plan is copied to the device once, so
that no step waits for the device. On a GPU one launch takes all rows through all their slots; on
the CPU a compiled loop takes one row after another. Where neither can run, torch kernels do: the
rows of each slot are sorted by kernel, every kernel gets a contiguous segment, and the original
order is restored at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import device, kernels, kernels_cpu
from augsubset.augment.draws import OpDraws
from augsubset.augment.ops import Op
from augsubset.augment.params import (
    WARP_FORM,
    CompiledPrepare,
    PrepareContext,
    prepare_magnitude,
    prepare_rows,
)
from augsubset.augment.plan import KERNEL_CODES, OpTables
from augsubset.utils.torch_utils import to_device_async

__all__ = ["Engine", "EngineName"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Kernel = Callable[[Tensor, Tensor], Tensor]
EngineName = Literal["compiled loops", "one launch", "torch kernels"]

_logger = logging.getLogger(__name__)


class _Segment(NamedTuple):
    """Contiguous rows of a sorted slot for one kernel; ``None`` leaves them unchanged."""

    name: str
    run: Kernel | None
    first: int
    last: int


class Engine:
    """Runs a fixed set of operations.

    Args:
        ops: Operations by name, in the order that :class:`OpDraws` indexes.
        compiled: Pass kernels through ``torch.compile``, once each for any number of rows.

    Attributes:
        codes: Kernel code of each operation for one launch on a GPU, ``None`` if one has none.
        name: What made the last batch.
    """

    def __init__(self, ops: Mapping[str, Op], compiled: bool = False) -> None:
        self._ops = list(ops.values())
        self._kernels: list[Kernel] = []
        self._names = []
        kernel_of = []
        known: dict[object, int] = {}
        for number, (name, op) in enumerate(ops.items()):
            # Users' operations never share a kernel, so that an error names the right one.
            key = op.apply if op.prepare is not None else number
            if key not in known:
                known[key] = len(self._kernels)
                run = op.apply if op.prepare is not None else op.run
                self._kernels.append(_CompiledKernel(run) if compiled else run)
                self._names.append(name)
            kernel_of.append(known[key])
        # Tables by operation have a last entry for index -1, no operation.
        self._kernel_of = np.array([*kernel_of, len(self._kernels)])
        prepares = [op.prepare or prepare_magnitude for op in self._ops]
        codes = [each.code if isinstance(each, CompiledPrepare) else -1 for each in prepares]
        self._codes = np.array([*codes, -1])
        # Preparations that are not compiled run once for all their rows.
        others = [each for each in prepares if not isinstance(each, CompiledPrepare)]
        self._prepares = list(dict.fromkeys(others))
        numbers = {each: number for number, each in enumerate(self._prepares)}
        self._prepare_of = np.array([*(numbers.get(each, -1) for each in prepares), -1])
        width = max(len(WARP_FORM), *(len(op.form) for op in self._ops))
        self._forms = np.zeros((len(ops) + 1, width), np.float32)
        for number, op in enumerate(self._ops):
            self._forms[number, : len(op.form)] = op.form
        self._num_forms = [
            max(len(op.form) for op, mine in zip(self._ops, prepares, strict=True) if mine is each)
            for each in self._prepares
        ]
        # Always the largest width, whatever was drawn: a compiled kernel specialises on it.
        context = PrepareContext(np.zeros((1, 2), np.float32), 32, 32)
        some = [op.compute_params(np.full(1, op.high, np.float32), context) for op in self._ops]
        self._num_params = max(params.shape[1] for params in some)
        for (name, op), params in zip(ops.items(), some, strict=True):
            least = kernels_cpu.NUM_PARAMS.get(op.apply, 0) if op.prepare is not None else 0
            if params.shape[1] < least:
                raise ValueError(
                    f"prepare of operation {name!r} must return {least} parameters a row for its "
                    f"kernel, got {params.shape[1]}."
                )
        # The CPU's loops, or the device's one launch, run only if they know every operation.
        self._is_compiled = compiled
        self._loop_of = None if compiled else self._find_codes(kernels_cpu.KERNELS)
        self.codes = None if compiled else self._find_codes(KERNEL_CODES)
        self.name: EngineName | None = None
        self._obstacle: str | None = None  # the last that was logged

    def find_obstacle(self, x: Tensor) -> str | None:
        """Return why images cannot go through one launch on their device, ``None`` if they can."""
        if self.codes is None:
            return "it knows the built-in operations alone"
        return device.find_obstacle(x)

    def _find_codes(self, known: Mapping[Any, int]) -> Int64Array | None:
        codes = [known.get(op.apply) if op.prepare is not None else None for op in self._ops]
        return None if None in codes else np.array([*codes, known[kernels.identity]], np.int64)

    def make_tables(
        self,
        stream: int,
        every: int,
        mode: int,
        num_choices: int,
        op_table: Float32Array,
        levels: Float32Array,
        num_slots: int,
    ) -> OpTables | None:
        """Return what ``plan_ops`` needs; ``None`` if a parameter is not made in a loop."""
        if self._prepares:
            return None
        drawing = stream, every, mode, num_choices, op_table, levels
        return OpTables(*drawing, self._codes, self._forms, num_slots, self._num_params)

    def __call__(self, x: Tensor, draws: OpDraws) -> Tensor:
        """Return the images with each row's operations applied in slot order.

        Args:
            x: ``(B, C, H, W)`` uint8 or float32 in [0, 1].
            draws: Operations of each row, on the CPU.
        """
        return self.run(x, draws.op, self.compute_params(draws, *x.shape[-2:]))

    def run(self, x: Tensor, op: Int64Array, params: Float32Array) -> Tensor:
        """Return the same from the operations, and their parameters ``(B, S, P)``."""
        if self._loop_of is not None and kernels_cpu.can_run(x):
            self.name = "compiled loops"
            return kernels_cpu.run_rows(x.contiguous(), self._loop_of[op], params)
        if x.device.type != "cpu" and not self._is_compiled:
            if (obstacle := self.find_obstacle(x)) is None:
                assert self.codes is not None
                self.name = "one launch"
                return device.augment_rows(x.contiguous(), op, params, self.codes)
            if obstacle != self._obstacle:
                self._obstacle = obstacle
                _logger.warning(
                    "augmentation on %s takes about 200 launches a batch instead of one: %s.",
                    x.device,
                    obstacle,
                )
        self.name = "torch kernels"
        order, table, plan = self._plan(op, params)
        order, table = to_device_async(order, x.device), to_device_async(table, x.device)
        out = x.contiguous()
        for slot, segments in enumerate(plan):
            out = out.index_select(0, order[slot])
            parts = []
            for name, run, first, last in segments:
                rows = out[first:last]
                if run is not None:
                    try:
                        rows = run(rows, table[slot, first:last])
                    except Exception as error:
                        error.add_note(
                            f"Raised by operation {name!r} on images {tuple(rows.shape)} with one "
                            "magnitude each."
                        )
                        raise
                parts.append(rows)
            out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out.index_select(0, order[-1])

    def can_replace(self, x: Tensor) -> bool:
        """Return whether :meth:`replace` takes a batch: the loops know operations and images."""
        is_plain = type(x) is Tensor and x.dtype == torch.uint8 and x.is_contiguous()
        return self._loop_of is not None and is_plain and kernels_cpu.can_run(x)

    def replace(self, x: Tensor, at: Int64Array, op: Int64Array, params: Float32Array) -> None:
        """Do what :meth:`run` does to the images at some positions, and write over them."""
        assert self._loop_of is not None
        self.name = "compiled loops"
        kernels_cpu.replace_rows(x, at, self._loop_of[op], params)

    def compute_params(self, draws: OpDraws, height: int, width: int) -> Float32Array:
        """Return the kernel parameters of each row and slot; ``(B, S, P)``."""
        op, magnitude, spare = draws
        params = np.zeros((*op.shape, self._num_params), np.float32)
        prepare_rows(self._codes, op, self._forms, magnitude, spare, height, width, params)
        if self._prepares:
            prepare_of = self._prepare_of[op]
            for number, prepare in enumerate(self._prepares):
                at, slot = np.nonzero(prepare_of == number)
                if len(at):
                    forms = self._forms[op[at, slot], : self._num_forms[number]]
                    context = PrepareContext(spare[at, slot], height, width)
                    found = prepare(magnitude[at, slot], forms, context)
                    params[at, slot, : found.shape[1]] = found
        return params

    def _plan(
        self, op: Int64Array, params: Float32Array
    ) -> tuple[Tensor, Tensor, list[list[_Segment]]]:
        """Return row orders ``(S + 1, B)``, parameters ``(S, B, P)``, and each slot's segments."""
        num_rows, num_slots = op.shape
        table = np.empty((num_slots, num_rows, self._num_params), np.float32)
        order = np.empty((num_slots + 1, num_rows), np.int64)
        ends = np.zeros((num_slots, len(self._kernels) + 1), np.int64)
        _sort_by_kernel(self._kernel_of, op, params, order, table, ends)
        names, runs = [*self._names, "none"], [*self._kernels, None]
        plan = [
            [
                _Segment(name, run, first, last)
                for name, run, first, last in zip(names, runs, [0, *end], end, strict=False)
                if first < last
            ]
            for end in ends.tolist()
        ]
        return torch.from_numpy(order), torch.from_numpy(table), plan


@numba.njit(cache=True, nogil=True)
def _sort_by_kernel(
    kernel_of: Int64Array,
    op: Int64Array,
    params: Float32Array,
    order: Int64Array,
    table: Float32Array,
    ends: Int64Array,
) -> None:
    """Counting sort of each slot's rows by kernel, relative to the order of the slot before.

    Args:
        kernel_of: Kernel of each operation; the last entry is for op -1.
        op: Operation of each row and slot. ``(B, S)``
        params: Parameters of each row and slot. ``(B, S, P)``
        order: Out: positions in the order of the slot before; the last line restores the batch's.
            ``(S + 1, B)``
        table: Out: parameters in the order of their slot. ``(S, B, P)``
        ends: Out, zeros on entry: end position of each kernel's rows. ``(S, kernels)``
    """
    num_rows, num_slots = op.shape
    position = order[num_slots]  # current position of each row; after the last slot, the inverse
    for i in range(num_rows):
        position[i] = i
    for slot in range(num_slots):
        end = ends[slot]
        for i in range(num_rows):
            end[kernel_of[op[i, slot]]] += 1
        total = 0
        for kernel in range(end.shape[0]):
            count = end[kernel]
            end[kernel] = total  # the start for now; filling the segment advances it to the end
            total += count
        for i in range(num_rows):
            kernel = kernel_of[op[i, slot]]
            at = end[kernel]
            end[kernel] += 1
            order[slot, at] = position[i]
            position[i] = at
            for t in range(params.shape[2]):
                table[slot, at, t] = params[i, slot, t]


class _CompiledKernel:
    """A kernel that is compiled once per image size, for any number of rows."""

    def __init__(self, run: Kernel) -> None:
        self._run = run
        self._inner = torch.compile(run)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        # torch.compile specialises on a size of one, so pass two rows at least; and it guards on
        # the base of a view, so pass copies: repeat() makes one even for a count of 1.
        repeats = 2 if len(x) == 1 else 1
        images, table = x.repeat(repeats, 1, 1, 1), params.repeat(repeats, 1)
        for each in (images, table):
            torch._dynamo.mark_dynamic(each, 0)
        return self._inner(images, table)[: len(x)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _CompiledKernel, (self._run,)  # compiled code cannot be pickled: compile again
