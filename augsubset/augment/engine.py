"""Many operations on many images: rows of one kernel together, in a few passes a slot.

What each row gets is decided on the host, and sent to the device once, so that nothing there is
ever waited for. In a slot rows are sorted by kernel, each kernel gets its stretch, and the next
slot's order is taken from there; rows are put back at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from augsubset.augment.ops import Op, Place
from augsubset.transfer import sent

__all__ = ["Drawn", "Engine"]

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class Drawn(NamedTuple):
    """What a policy drew for each row and slot.

    Args:
        op: Which of the engine's operations, -1 for none. ``(B, S)``
        magnitude: ``(B, S)``
        spare: Uniform numbers for what is drawn beside the magnitude. ``(B, S, 2)``
    """

    op: Int64Array
    magnitude: Float32Array
    spare: Float32Array


class _Stretch(NamedTuple):
    """Rows of one slot that one kernel is for, in the slot's order; no kernel: left alone."""

    run: Callable[[Tensor, Tensor], Tensor] | None
    first: int
    last: int
    num_params: int


class Engine:
    """Runs a fixed list of operations.

    Args:
        ops: Operations, in the order that :class:`Drawn` counts them.
        compiled: Pass kernels through ``torch.compile``, once each for any number of rows.
    """

    def __init__(self, ops: Sequence[Op], compiled: bool = False) -> None:
        self._ops = list(ops)
        # Operations of your own are kernels of one operation, even if two share a function.
        self._kernels: list[Callable[[Tensor, Tensor], Tensor]] = []
        kernel_of = []
        known: dict[object, int] = {}
        for number, op in enumerate(self._ops):
            key = op.apply if op.prepare is not None else number
            if key not in known:
                known[key] = len(self._kernels)
                run = op.apply if op.prepare is not None else op.run
                self._kernels.append(_compiled(run) if compiled else run)
            kernel_of.append(known[key])
        self._kernel_of = np.array([*kernel_of, len(self._kernels)])  # the last: no operation

    def __call__(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the images with each row's operations applied, slot by slot.

        Args:
            x: ``(B, C, H, W)`` uint8 or float32 in [0, 1].
            drawn: On the host.
        """
        order, params, slots = self._planned(drawn, *x.shape[-2:])
        at, table = sent(torch.from_numpy(order), x.device), sent(params, x.device)
        out = x.contiguous()
        for slot, stretches in enumerate(slots):
            out = out.index_select(0, at[slot])
            parts = []
            for stretch in stretches:
                rows = out[stretch.first : stretch.last]
                if stretch.run is not None:
                    mine = table[slot, stretch.first : stretch.last, : stretch.num_params]
                    rows = stretch.run(rows, mine)
                parts.append(rows)
            out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out.index_select(0, at[-1])

    def _planned(
        self, drawn: Drawn, height: int, width: int
    ) -> tuple[Int64Array, Tensor, list[list[_Stretch]]]:
        """Return row orders ``(S + 1, B)``, parameters ``(S, B, P)``, and each slot's stretches."""
        num_rows, num_slots = drawn.op.shape
        found = []
        for number, op in enumerate(self._ops):
            rows, slots = np.nonzero(drawn.op == number)
            if len(rows):
                place = Place(drawn.spare[rows, slots], height, width)
                found.append((rows, slots, op.parameters(drawn.magnitude[rows, slots], place)))
        width_of_table = max((params.shape[1] for *_, params in found), default=1)
        table = np.zeros((num_slots, num_rows, width_of_table), np.float32)
        num_params = np.zeros(len(self._kernel_of), np.int64)
        for rows, slots, params in found:
            table[slots, rows, : params.shape[1]] = params
            kernel = self._kernel_of[drawn.op[rows[0], slots[0]]]
            num_params[kernel] = max(num_params[kernel], params.shape[1])
        kernels = self._kernel_of[drawn.op]
        order = np.empty((num_slots + 1, num_rows), np.int64)
        now = np.empty(num_rows, np.int64)  # where each row is
        now[:] = np.arange(num_rows)
        plan = []
        for slot in range(num_slots):
            by_kernel = np.argsort(kernels[:, slot], kind="stable")
            order[slot] = now[by_kernel]
            now[by_kernel] = np.arange(num_rows)
            table[slot] = table[slot, by_kernel]
            ends = np.cumsum(np.bincount(kernels[:, slot], minlength=len(self._kernels) + 1))
            plan.append(
                [
                    _Stretch(
                        self._kernels[kernel] if kernel < len(self._kernels) else None,
                        int(first),
                        int(last),
                        int(num_params[kernel]),
                    )
                    for kernel, (first, last) in enumerate(
                        zip(np.concatenate([[0], ends]), ends, strict=False)
                    )
                    if first < last
                ]
            )
        order[-1] = now
        return order, torch.from_numpy(table), plan


def _compiled(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile a kernel for any number of rows."""
    inner = torch.compile(run, dynamic=True)

    def call(x: Tensor, params: Tensor) -> Tensor:
        if len(x) > 1:
            return inner(x, params)
        # One row would be compiled anew: sizes of one are never taken for variable.
        return inner(x.expand(2, -1, -1, -1).contiguous(), params.expand(2, -1))[:1]

    return call
