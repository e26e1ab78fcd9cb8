"""Counter-based random numbers: a row's draws depend on its key, not on what else is drawn.

torch's generators give the n-th number of a stream, so that a row's augmentation would depend on
its place in the batch and on every batch before. Here a row's numbers are a hash of
(seed, epoch, index, copy, stream, draw): the same alone or among others, in any order, in any
process, and there is no generator state to save.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RowKeys", "hash_rows", "uniforms"]


def _signed(word: int) -> int:
    """Write a 64-bit constant as torch's int64 has it."""
    return word - (1 << 64) if word >= 1 << 63 else word


# splitmix64's increment and multipliers (Steele, Lea & Flood, 2014).
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


@dataclass(frozen=True, eq=False)
class RowKeys:
    """What a row's augmentation depends on, and nothing else.

    Args:
        seed: Distinguishes runs.
        epoch: Epoch of each row.
        index: Dataset index of each row.
        copy: 0 for an original, 1.. for an augmented copy.

    Shape:
        epoch, index, copy ``(B,)`` int64 on the CPU; ints are broadcast against the others.

    Raises:
        TypeError: If a value is neither an int nor an int64 tensor.
        ValueError: If the shapes do not broadcast to ``(B,)``.

    Example:
        >>> rows = RowKeys(seed=0, epoch=3, index=torch.tensor([7, 9]), copy=1)
        >>> rows.copy
        tensor([1, 1])
    """

    seed: int
    epoch: Tensor
    index: Tensor
    copy: Tensor

    def __init__(
        self, seed: int, epoch: Tensor | int, index: Tensor | int, copy: Tensor | int
    ) -> None:
        parts = []
        for name, value in (("epoch", epoch), ("index", index), ("copy", copy)):
            part = torch.as_tensor(value)
            if part.dtype != torch.int64:
                raise TypeError(f"{name} must be an int or an int64 tensor, got {part.dtype}.")
            parts.append(part.cpu())
        shape = (torch.zeros(1, dtype=torch.int64) + parts[0] + parts[1] + parts[2]).shape
        if len(shape) != 1:
            raise ValueError(f"epoch, index and copy must broadcast to (B,), got shape {shape}.")
        object.__setattr__(self, "seed", int(seed))
        for name, part in zip(("epoch", "index", "copy"), parts, strict=True):
            object.__setattr__(self, name, part.expand(shape))

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> RowKeys:
        """Return the keys of some rows, by positions or a mask."""
        return RowKeys(self.seed, self.epoch[rows], self.index[rows], self.copy[rows])


def _mix(state: Tensor) -> Tensor:
    """Scramble 64 bits bijectively (splitmix64's finaliser).

    int64 stands in for uint64, which torch cannot shift: products wrap alike, and the mask undoes
    the sign that an arithmetic shift drags in.
    """
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * _MIX_1
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * _MIX_2
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def hash_rows(rows: RowKeys, stream: int) -> Tensor:
    """Return one well-mixed int64 a row, of shape ``(B,)``.

    Args:
        rows: The rows.
        stream: Keeps two policies that see the same rows independent of each other.
    """
    state = _mix(torch.full((len(rows),), rows.seed, dtype=torch.int64) + _GOLDEN)
    for part in (torch.full_like(state, stream), rows.epoch, rows.index, rows.copy):
        state = _mix(state + _GOLDEN + part)
    return state


def uniforms(rows: RowKeys, num_draws: int, stream: int) -> Tensor:
    """Return uniform numbers in [0, 1), ``num_draws`` a row.

    Multiples of 2**-24 in float32: the same bits on every device.

    Shape:
        returns ``(B, num_draws)`` float32.

    Cost:
        O(B num_draws), about ten elementwise operations.
    """
    counters = torch.arange(1, num_draws + 1) * _GOLDEN
    bits = _mix(hash_rows(rows, stream)[:, None] + counters)
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) / (1 << 24)
