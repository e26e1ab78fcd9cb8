"""Counter-based random numbers: a row's draws depend on its key and on nothing else.

A torch generator returns the next number of a sequence, so a row's augmentation would depend on
its place in the batch and on all batches before. Here a row's numbers are a hash of (seed, epoch,
index, copy, stream, draw): the same in any batch, order or process, and without state to save.

Uniform numbers are computed on the CPU by compiled loops, because many small tensor operations
would take longer than augmenting a batch. Only :func:`draw_normals`, which makes one number per
pixel, runs on the device of the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["GOLDEN", "RowKeys", "draw_normals", "draw_uniforms", "fill_uniforms", "get_quantiles"]
__all__ += ["hash_rows", "look_up_normals", "mix_word", "mix_words", "to_int64"]

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

# splitmix64's increment and multipliers (Steele, Lea & Flood, 2014).
GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class RowKeys:
    """Keys of a batch's rows: all that a row's random augmentation depends on.

    Args:
        seed: Seed of the run.
        epoch: Epoch of each row.
        index: Dataset index of each row.
        copy: 0 for an original, 1 and up for augmented copies.

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
    _arrays: tuple[Any, ...] = field(repr=False)

    def __init__(
        self, seed: int, epoch: Tensor | int, index: Tensor | int, copy: Tensor | int
    ) -> None:
        parts = []
        for name, value in (("epoch", epoch), ("index", index), ("copy", copy)):
            part = torch.as_tensor(value)
            if part.dtype != torch.int64:
                raise TypeError(f"{name} must be an int or an int64 tensor, got {part.dtype}.")
            parts.append(part.cpu())
        shapes = [tuple(part.shape) for part in parts]
        if len(shapes[0]) != 1 or shapes.count(shapes[0]) != 3:  # rare, and slow
            parts = _broadcast(parts, shapes)
        self._set(int(seed), *(part.contiguous() for part in parts))

    def _set(self, seed: int, epoch: Tensor, index: Tensor, copy: Tensor) -> RowKeys:
        # Converted to NumPy once, for all policies that see these rows.
        arrays = np.uint64(seed & _MASK), epoch.numpy(), index.numpy(), copy.numpy()
        self.__dict__.update(seed=seed, epoch=epoch, index=index, copy=copy, _arrays=arrays)
        return self

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> RowKeys:
        """Return the keys of the rows selected by positions, a slice or a mask."""
        kept = self.epoch[rows], self.index[rows], self.copy[rows]
        return object.__new__(RowKeys)._set(self.seed, *kept)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """Seed, epoch, index and copy as the compiled loops take them."""
        return self._arrays

    def round_epochs(self, every: int) -> RowKeys:
        """Return the keys with epochs rounded down to a multiple, to repeat draws that long."""
        if every == 1:
            return self
        return RowKeys(self.seed, self.epoch - self.epoch % every, self.index, self.copy)


def _broadcast(parts: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Return the parts broadcast to a common shape, which must be ``(B,)``."""
    try:
        shape = np.broadcast_shapes((1,), *shapes)
    except ValueError:
        shape = ()
    if len(shape) != 1:
        raise ValueError(f"epoch, index and copy must broadcast to (B,), got shapes {shapes}.")
    return [part.expand(shape) for part in parts]


@numba.njit(cache=True, nogil=True, inline="always")
def mix_word(state: np.uint64) -> np.uint64:
    """Mix 64 bits bijectively (splitmix64's finaliser)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    return state ^ (state >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _hash(
    seed: np.uint64,
    stream: int,
    epoch: Int64Array,
    index: Int64Array,
    copy: Int64Array,
    words: UInt64Array,
) -> None:
    golden = np.uint64(GOLDEN)
    first = mix_word(mix_word(seed + golden) + golden + np.uint64(stream))
    for i in range(words.shape[0]):
        state = mix_word(first + golden + np.uint64(epoch[i]))
        state = mix_word(state + golden + np.uint64(index[i]))
        words[i] = mix_word(state + golden + np.uint64(copy[i]))


@numba.njit(cache=True, nogil=True)
def fill_uniforms(
    seed: np.uint64,
    stream: int,
    epoch: Int64Array,
    index: Int64Array,
    copy: Int64Array,
    out: Float32Array,
) -> None:
    """Write :func:`draw_uniforms`' numbers; called by other compiled loops too."""
    words = np.empty(out.shape[0], np.uint64)
    _hash(seed, stream, epoch, index, copy, words)
    golden, unit = np.uint64(GOLDEN), np.float32(2**-24)
    for i in range(words.shape[0]):
        state = words[i]
        for t in range(out.shape[1]):
            state += golden  # splitmix64, seeded with the row's hash
            out[i, t] = np.float32(mix_word(state) >> np.uint64(40)) * unit  # 24 bits: exact


def hash_rows(rows: RowKeys, stream: int) -> UInt64Array:
    """Return a 64-bit hash of each row's key, ``(B,)``; other streams give independent hashes."""
    words = np.empty(len(rows), np.uint64)
    seed, epoch, index, copy = rows.arrays
    _hash(seed, stream, epoch, index, copy, words)
    return words


def draw_uniforms(rows: RowKeys, num_draws: int, stream: int) -> Float32Array:
    """Return ``num_draws`` uniform numbers in [0, 1) per row, multiples of 2**-24.

    Shape:
        returns ``(B, num_draws)`` float32.

    Cost:
        One hash per number, a few nanoseconds each.
    """
    out = np.empty((len(rows), num_draws), np.float32)
    seed, epoch, index, copy = rows.arrays
    fill_uniforms(seed, stream, epoch, index, copy, out)
    return out


def to_int64(word: int) -> int:
    """Return the signed integer with the same 64 bits."""
    return word - (1 << 64) if word >= 1 << 63 else word


def mix_words(state: Tensor) -> Tensor:
    """Mix like :func:`mix_word`, on any device.

    torch cannot shift uint64, so this uses int64: products wrap to the same bits, and the masks
    clear the sign bits that an arithmetic right shift copies in.
    """
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * to_int64(_MIX_1)
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * to_int64(_MIX_2)
    return state ^ ((state >> 31) & ((1 << 33) - 1))


_tables: dict[torch.device, Tensor] = {}


def get_quantiles(device: torch.device) -> Tensor:
    """Return the normal quantiles at the midpoints of 2**16 equal bins of probability."""
    if device not in _tables:
        midpoints = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
        _tables[device] = torch.special.ndtri(midpoints).to(torch.float32).to(device)
    return _tables[device]


def draw_normals(seeds: Tensor, num_draws: int) -> Tensor:
    """Return ``num_draws`` standard normal numbers per row, of 2**16 equally likely values.

    They come from a table of quantiles, which makes them bit-identical on every device. The largest
    is 4.3.

    Args:
        seeds: Two numbers per row from :func:`draw_uniforms`. ``(B, 2)`` float32
        num_draws: Numbers per row.

    Shape:
        returns ``(B, num_draws)`` float32 on the device of ``seeds``.

    Cost:
        O(B num_draws): a hash per four numbers and a lookup each.
    """
    high, low = (seeds * (1 << 24)).to(torch.int64).unbind(1)
    return look_up_normals(mix_words((high << 24) | low), num_draws)


def look_up_normals(states: Tensor, num_draws: int) -> Tensor:
    """Return what :func:`draw_normals` does, from a hash of each row: ``(B,)`` int64."""
    device = states.device
    if device.type == "cpu" and not torch.compiler.is_compiling():
        out = np.empty((len(states), num_draws), np.float32)
        _look_up(states.numpy(), get_quantiles(device).numpy(), out)
        return torch.from_numpy(out)
    counters = torch.arange(1, -(-num_draws // 4) + 1, device=device) * to_int64(GOLDEN)
    words = mix_words(states[:, None] + counters)
    bins = words.view(torch.int16)[:, :num_draws].long() + (1 << 15)  # four per word
    values: Tensor = get_quantiles(device)[bins]
    return values


@numba.njit(cache=True, nogil=True)
def _look_up(states: Int64Array, table: Float32Array, out: Float32Array) -> None:
    """Fill (B, num_draws) with what the device takes from the same table."""
    word, lowest = np.uint64(0), np.uint64(0xFFFF)
    for i in range(out.shape[0]):
        state = np.uint64(states[i])
        for j in range(out.shape[1]):
            if j % 4 == 0:
                state += np.uint64(GOLDEN)
                word = mix_word(state)
            out[i, j] = table[(word & lowest) ^ np.uint64(1 << 15)]  # as int16, plus 2**15
            word >>= np.uint64(16)
