"""Many operations on many images: on a device rows of one kernel together, on the host row by row.

What each row gets is decided on the host, and sent to the device once, so that nothing there is
ever waited for. In a slot rows are sorted by kernel, each kernel gets its stretch, and the next
slot's order is taken from there; rows are put back at the end. On the host, compiled loops take one
row after the other through all its slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment import kernels, kernels_cpu
from augsubset.augment.draws import Drawn
from augsubset.augment.ops import Op
from augsubset.augment.params import FORM_OF_WARP, Compiled, Place, alone, prepare_rows
from augsubset.utils.torch_utils import sent

__all__ = ["Engine"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Kernel = Callable[[Tensor, Tensor], Tensor]

# Pixels from which on kernels compute positions in float64, which the loops do not.
_LARGE = 1 << 23


class _Stretch(NamedTuple):
    """Rows of one slot that one kernel is for, in the slot's order; no kernel: left alone."""

    name: str
    run: Kernel | None
    first: int
    last: int


class Engine:
    """Runs a fixed list of operations.

    Args:
        ops: Operations by name, in the order that :class:`Drawn` counts them.
        compiled: Pass kernels through ``torch.compile``, once each for any number of rows.
    """

    def __init__(self, ops: Mapping[str, Op], compiled: bool = False) -> None:
        self._ops = list(ops.values())
        # Operations of your own are kernels of one operation, even if two share a function.
        self._kernels: list[Kernel] = []
        kernel_of = []
        known: dict[object, int] = {}
        self._names = []
        for number, (name, op) in enumerate(ops.items()):
            key = op.apply if op.prepare is not None else number
            if key not in known:
                known[key] = len(self._kernels)
                run = op.apply if op.prepare is not None else op.run
                self._kernels.append(_Compiled(run) if compiled else run)
                self._names.append(name)
            kernel_of.append(known[key])
        self._kernel_of = np.array([*kernel_of, len(self._kernels)])  # the last: no operation
        self._names.append("none")
        self._runs = [*self._kernels, None]
        # Compiled preparations are made in one go, others for all operations of one function.
        prepares = [op.prepare or alone for op in self._ops]
        codes = [each.code if isinstance(each, Compiled) else -1 for each in prepares]
        self._codes = np.array([*codes, alone.code])  # the last: no operation
        others = [each for each in prepares if not isinstance(each, Compiled)]
        self._prepares = list(dict.fromkeys(others))
        numbers = {each: number for number, each in enumerate(self._prepares)}
        self._prepare_of = np.array([*(numbers.get(each, -1) for each in prepares), -1])
        width = max(len(FORM_OF_WARP), *(len(op.form) for op in self._ops))
        self._forms = np.zeros((len(ops) + 1, width), np.float32)
        for number, op in enumerate(self._ops):
            self._forms[number, : len(op.form)] = op.form
        # As wide as the widest whatever was drawn: compiled kernels know it for a constant.
        place = Place(np.zeros((1, 2), np.float32), 32, 32)
        some = [op.parameters(np.full(1, op.high, np.float32), place) for op in self._ops]
        self._num_params = max(params.shape[1] for params in some)
        self._num_forms = [
            max(len(op.form) for op, mine in zip(self._ops, prepares, strict=True) if mine is each)
            for each in self._prepares
        ]
        # Loops for rows on the host, where there is one for every operation.
        loops = kernels_cpu.KERNELS
        known_loops = [loops.get(op.apply) if op.prepare is not None else None for op in self._ops]
        self._loop_of: Int64Array | None = None
        if not compiled and None not in known_loops:
            self._loop_of = np.array([*known_loops, loops[kernels.identity]], np.int64)

    def __call__(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the images with each row's operations applied, slot by slot.

        Args:
            x: ``(B, C, H, W)`` uint8 or float32 in [0, 1].
            drawn: On the host.
        """
        height, width = x.shape[-2:]
        if self._loop_of is not None and x.device.type == "cpu" and height * width < _LARGE:
            params = self._params(drawn, height, width)
            return kernels_cpu.run_rows(x.contiguous(), self._loop_of[drawn.op], params)
        return self._by_kernels(x, drawn)

    def _by_kernels(self, x: Tensor, drawn: Drawn) -> Tensor:
        order, params, slots = self._planned(drawn, *x.shape[-2:])
        at, table = sent(torch.from_numpy(order), x.device), sent(params, x.device)
        out = x.contiguous()
        for slot, stretches in enumerate(slots):
            out = out.index_select(0, at[slot])
            parts = []
            for stretch in stretches:
                rows = out[stretch.first : stretch.last]
                if stretch.run is not None:
                    try:
                        rows = stretch.run(rows, table[slot, stretch.first : stretch.last])
                    except Exception as error:
                        error.add_note(
                            f"Raised by the operation {stretch.name!r}, given images "
                            f"{tuple(rows.shape)} and a magnitude each, ({len(rows)},)."
                        )
                        raise
                parts.append(rows)
            out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out.index_select(0, at[-1])

    def _params(self, drawn: Drawn, height: int, width: int) -> Float32Array:
        """Return the kernels' parameters of each row and slot: ``(B, S, P)``."""
        op, magnitude, spare = drawn
        params = np.zeros((*op.shape, self._num_params), np.float32)
        prepare_rows(self._codes, op, self._forms, magnitude, spare, height, width, params)
        if self._prepares:
            prepare_of = self._prepare_of[op]
            for number, prepare in enumerate(self._prepares):
                at, slot = np.nonzero(prepare_of == number)
                if len(at):
                    forms = self._forms[op[at, slot], : self._num_forms[number]]
                    place = Place(spare[at, slot], height, width)
                    found = prepare(magnitude[at, slot], forms, place)
                    params[at, slot, : found.shape[1]] = found
        return params

    def _planned(
        self, drawn: Drawn, height: int, width: int
    ) -> tuple[Int64Array, Tensor, list[list[_Stretch]]]:
        """Return row orders ``(S + 1, B)``, parameters ``(S, B, P)``, and each slot's stretches."""
        num_rows, num_slots = drawn.op.shape
        flat = self._params(drawn, height, width).reshape(-1, self._num_params)
        table = np.empty((num_slots, num_rows, self._num_params), np.float32)
        order = np.empty((num_slots + 1, num_rows), np.int64)
        ends = np.zeros((num_slots, len(self._kernels) + 1), np.int64)
        _arrange(self._kernel_of, drawn.op, flat, order, table, ends)
        plan = []
        for of_slot in ends.tolist():
            begins = [0, *of_slot]
            plan.append(
                [
                    _Stretch(name, run, first, last)
                    for name, run, first, last in zip(
                        self._names, self._runs, begins, of_slot, strict=False
                    )
                    if first < last
                ]
            )
        return order, torch.from_numpy(table), plan


@numba.njit(cache=True, nogil=True)
def _arrange(
    kernel_of: Int64Array,
    op: Int64Array,
    params: Float32Array,
    order: Int64Array,
    table: Float32Array,
    ends: Int64Array,
) -> None:
    """Sort each slot's rows by kernel; say where each comes from, with its parameters.

    Args:
        kernel_of: Kernel of each operation; the last is that of none, -1.
        op: Operation of each row and slot. ``(B, S)``
        params: Of each row and slot. ``(B S, P)``
        order: Positions in the slot before; the last line puts rows back. ``(S + 1, B)``
        table: Parameters in the order of the slot. ``(S, B, P)``
        ends: Position after the last row of each kernel, zero at first. ``(S, kernels)``
    """
    num_rows, num_slots = op.shape
    now = order[num_slots]  # where each row is
    for i in range(num_rows):
        now[i] = i
    for slot in range(num_slots):
        end = ends[slot]
        for i in range(num_rows):
            end[kernel_of[op[i, slot]]] += 1
        total = 0
        for kernel in range(end.shape[0]):
            count = end[kernel]
            end[kernel] = total  # the first position for now
            total += count
        for i in range(num_rows):
            kernel = kernel_of[op[i, slot]]
            at = end[kernel]
            end[kernel] += 1
            order[slot, at] = now[i]
            now[i] = at
            for t in range(params.shape[1]):
                table[slot, at, t] = params[i * num_slots + slot, t]


class _Compiled:
    """A kernel that is compiled once an image size, for any number of rows."""

    def __init__(self, run: Kernel) -> None:
        self._run = run
        self._inner = torch.compile(run)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        # Two rows at least, since a size of one is never taken for variable; and copies, since
        # what a view is of would be a part of what was compiled.
        repeats = 2 if len(x) == 1 else 1
        images, table = x.repeat(repeats, 1, 1, 1), params.repeat(repeats, 1)
        for each in (images, table):
            torch._dynamo.mark_dynamic(each, 0)
        return self._inner(images, table)[: len(x)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Compiled, (self._run,)  # compiled anew where it is unpacked
