"""Kornia's random numbers, keyed by row: a module runs on a batch as if each row were alone.

Kornia draws all parameters of a batch before it touches an image, in ``forward_parameters``, and
all of them with a few functions of torch. Under :class:`KeyedMode` these return numbers that are
hashes of (the row's key, number of the draw, position in the row's part of it). A draw whose first
dimension is the batch size, or a multiple of it, is split among the rows. Any other is made once
for the whole batch, such as the order of two operations: there each row gets a value of its own,
which :class:`PerRow` holds until the module asks for it. Rows with equal values are then processed
together, and the others in further calls.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from augsubset.augment.random import (
    GOLDEN,
    UInt64Array,
    look_up_normals,
    mix_word,
    mix_words,
    to_int64,
)
from augsubset.utils.torch_utils import map_tensors, to_device_async

__all__ = ["Draw", "Draws", "KeyedMode", "draw_parameters", "record_draws", "run_keyed"]

FloatArray = npt.NDArray[Any]

_HOST = (None, torch.device("cpu"), "cpu")
_BLOCK = 8  # draws that are made at once, of one float a row
_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
_SHIFTS = {bits: (np.uint64(64 - bits), 2.0**-bits) for bits in _BITS.values()}


class Draw(NamedTuple):
    """One draw of a module's, as :func:`record_draws` notes it.

    Args:
        name: The function, such as ``"rand"``.
        shape: What was asked for.
        kind: ``"row"``: one of each row; ``"choice"``: the module asked for one, and each row got
            one of its own; ``"batch"``: one for all, from a global generator.
        where: File and line that asked.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    where: str

    def __str__(self) -> str:
        return f"torch.{self.name} of shape {self.shape} at {self.where}"


_records: list[list[Draw]] = []


@contextmanager
def record_draws() -> Iterator[list[Draw]]:
    """Collect the draws of all modules that are run inside, keyed or not."""
    found: list[Draw] = []
    _records.append(found)
    try:
        with _Recorder():
            yield found
    finally:
        _records.pop()


def run_keyed(
    module: Any,
    words: UInt64Array,
    x: Tensor,
    others: Sequence[Any] = (),
    *,
    is_first: bool = False,
) -> tuple[Any, ...]:
    """Return what the module makes of the images and what belongs to them, each row on its own.

    Args:
        module: One of Kornia's 2D modules; one without ``forward_parameters`` draws nothing.
        words: A hash of each row's key. ``(B,)``
        x: Floats, ``(B, C, H, W)``, B at least 1.
        others: Masks, boxes, keypoints or classes; of each B rows.
        is_first: Also look for draws while the module runs, which takes longer.

    Raises:
        RuntimeError: If the module draws in a way that has no keyed form.
        ValueError: If its rows leave with different shapes.

    Cost:
        One call of the module, and one for each further choice among those that it makes once a
        batch.
    """
    whole = (x, *others)
    try:
        return _run_once(module, words, whole, is_first)
    except _Split as split:
        todo, done = list(split.groups), []
    while todo:
        rows = todo.pop()
        parts = [_take(part, rows) for part in whole]
        try:
            done.append((rows, _run_once(module, words[rows.numpy()], parts, is_first)))
        except _Split as split:
            todo += [rows[group] for group in split.groups]
    order = torch.cat([rows for rows, _ in done]).argsort()
    return tuple(_join(parts, order) for parts in zip(*(found for _, found in done), strict=True))


def _run_once(
    module: Any, words: UInt64Array, parts: Sequence[Any], is_first: bool
) -> tuple[Any, ...]:
    draws, options = Draws(words, parts[0]), {}
    plain = getattr(module, "_orig_mod", module)  # torch.compile wraps the module
    try:
        if hasattr(plain, "forward_parameters"):
            options["params"] = draw_parameters(plain, draws)
        # Compiled code would be compiled once more inside.
        if is_first and plain is module:
            found = _watch(module, parts, options)
        else:
            found = module(*parts, **options)
    finally:
        draws.close()
    return tuple(found) if len(parts) > 1 else (found,)


def _watch(module: Any, parts: Sequence[Any], options: dict[str, Any]) -> Any:
    """Run the module, and raise if it draws meanwhile."""
    with record_draws() as seen:
        found = module(*parts, **options)
    for draw in seen:
        if draw.kind == "batch":
            raise RuntimeError(
                f"{type(module).__name__} must draw its random numbers in forward_parameters, "
                f"got {draw} while it runs. Pass KorniaModule(..., per_row=False), where a "
                "row's result depends on its batch."
            )
    return found


def draw_parameters(module: Any, draws: Draws) -> Any:
    """Return what a module of Kornia's draws for a batch, from the rows' keys."""
    with KeyedMode(draws):
        return module.forward_parameters(draws.batch_shape)


def _take(part: Any, rows: Tensor) -> Any:
    if isinstance(part, Tensor):
        return part[to_device_async(rows, part.device)]
    return [part[row] for row in rows.tolist()]


def _join(parts: Sequence[Any], order: Tensor) -> Any:
    """Return the rows of several runs as one part, in their order in the batch."""
    if not isinstance(parts[0], Tensor):
        rows = [row for part in parts for row in part]
        return [rows[position] for position in order.tolist()]
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(
            "module must give all rows one shape, got "
            f"{' and '.join(sorted({str(tuple(part.shape[1:])) for part in parts}))}. A resizing "
            "operation needs p=1."
        )
    return torch.cat(list(parts))[to_device_async(order, parts[0].device)]


class _Split(BaseException):
    """Rows disagree on a choice; no ``Exception``, since a module might catch those."""

    def __init__(self, groups: list[Tensor]) -> None:
        self.groups = groups


class PerRow(Tensor):
    """A value that a module draws once for its batch, and each row has of its own.

    It has the shape of one row's value. Operations on it are made on all values at once; whatever
    needs the value itself gets the one that all rows have, or ends the run with a :class:`_Split`.
    When the run is over it is a plain tensor, as Kornia keeps its parameters.
    """

    rows: Tensor | None
    draws: Draws

    @staticmethod
    def wrap(rows: Tensor, draws: Draws) -> Tensor:
        """Return one value where all rows agree, else the values of each."""
        if bool((rows == rows[:1]).all()):
            return rows[0]
        out: Any = Tensor._make_subclass(PerRow, rows[0].clone())
        out.rows, out.draws = rows, draws
        draws.choices.append(out)
        chosen: Tensor = out
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        choices: list[Any] = []
        map_tensors(lambda part: choices.append(part) if _is_open(part) else None, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            if func in _METADATA or not choices:
                return func(*args, **kwargs)
            # Only what returns one tensor and changes none can be made for all rows at once.
            if getattr(func, "__name__", "") in _ELEMENTWISE:
                values = [choice.rows for choice in choices]
                return PerRow.wrap(_map_rows(func, args, kwargs, values), choices[0].draws)
            args, kwargs = map_tensors(_settle, (args, kwargs))
            return func(*args, **kwargs)


def _map_rows(func: Any, args: Any, kwargs: Any, values: list[Any]) -> Tensor:
    """Return the function's results for each row's values, stacked."""

    def call(*given: Tensor) -> Any:
        remaining = iter(given)
        put = map_tensors(lambda p: next(remaining) if _is_open(p) else p, (args, kwargs))
        return func(*put[0], **put[1])

    mapped: Tensor = torch.vmap(call)(*values)
    return mapped


def _is_open(part: Tensor) -> bool:
    return isinstance(part, PerRow) and part.rows is not None


def _settle(part: Tensor) -> Tensor:
    """Return the value that all rows have.

    Raises:
        _Split: If they have different ones.
    """
    if not isinstance(part, PerRow) or part.rows is None:
        return part
    _, which = torch.unique(part.rows.reshape(len(part.rows), -1), dim=0, return_inverse=True)
    if int(which.max()) == 0:
        return part.rows[0]
    counts = torch.bincount(which).tolist()
    raise _Split(list(torch.split(which.argsort(stable=True), counts)))


# What Kornia does with a value before it asks for it, and what it asks of any tensor.
_ELEMENTWISE = {"lt", "le", "gt", "ge", "eq", "ne", "add", "sub", "mul", "div", "neg", "floor"}
_ELEMENTWISE |= {"round", "clamp", "clamp_min", "clamp_max", "to", "type", "int", "long", "float"}
_ELEMENTWISE |= {"bool", "repeat", "expand", "__getitem__", "clone", "detach", "contiguous"}
_ELEMENTWISE |= {f"__{name}__" for name in ("lt", "le", "gt", "ge", "eq", "ne", "add", "radd")}
_ELEMENTWISE |= {f"__{name}__" for name in ("sub", "rsub", "mul", "rmul", "truediv")}
_METADATA: set[Any] = {
    getattr(Tensor, name).__get__
    for name in (
        *("shape", "device", "dtype", "ndim", "is_cuda", "requires_grad", "layout", "grad_fn"),
        *("_version", "is_leaf", "is_sparse"),
    )
}
_METADATA |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}
_METADATA |= {Tensor.is_contiguous, Tensor.stride, Tensor.element_size, Tensor.is_inference}


@numba.njit(cache=True, nogil=True)
def _fill(words: UInt64Array, number: int, shift: np.uint64, unit: Any, out: FloatArray) -> None:
    """Fill (D, B, share) with the upper bits of D draws' words, times a unit.

    A longer share begins like a shorter one.
    """
    golden = np.uint64(GOLDEN)
    for k in range(out.shape[0]):
        for i in range(out.shape[1]):
            state = mix_word(words[i] + golden * np.uint64(number + k + 1))
            for j in range(out.shape[2]):
                state += golden
                out[k, i, j] = (mix_word(state) >> shift) * unit


class Draws:
    """The random numbers of one run, in the order in which the module asks for them.

    Args:
        words: A hash of each row's key. ``(B,)``
        x: The images.
    """

    def __init__(self, words: UInt64Array, x: Tensor) -> None:
        self.choices: list[PerRow] = []
        self.batch_shape, self._device = x.shape, x.device
        self._is_remote = x.device.type != "cpu"
        self._words, self._number = words, 0
        self._block, self._first = np.empty((0, 0, 1), np.float32), 0

    def close(self) -> None:
        """Make plain tensors of the choices that are left."""
        for choice in self.choices:
            choice.rows = None

    def next_words(self, share: int) -> UInt64Array:
        """Return the next draw's words, ``(B, share)``."""
        words: UInt64Array = self._next(share, np.uint64(0), np.uint64(1), np.uint64)
        return words

    def next_floats(self, share: int, bits: int) -> FloatArray:
        """Return the next draw's multiples of ``2**-bits`` below 1, ``(B, share)``."""
        kind = np.float64 if bits > 24 else np.float32
        floats: FloatArray = self._next(share, *_SHIFTS[bits], kind)
        return floats

    def _next_float(self) -> Tensor:
        """Return the next draw of one float32 a row, ``(B,)``: what modules mostly ask for."""
        position = self._number - self._first
        if position >= len(self._block):
            self._first, position = self._number, 0
            self._block = np.empty((_BLOCK, len(self._words), 1), np.float32)
            _fill(self._words, self._number, *_SHIFTS[24], self._block)
        self._number += 1
        return torch.from_numpy(self._block[position, :, 0])

    def _next(self, share: int, shift: np.uint64, unit: Any, kind: Any) -> Any:
        out = np.empty((1, len(self._words), share), kind)
        _fill(self._words, self._number, shift, unit, out)
        self._number += 1
        return out[0]

    def is_by_row(self, shape: Sequence[int]) -> bool:
        """Whether a draw is one of each row."""
        n = len(self._words)
        return n == 1 or (len(shape) > 0 and shape[0] > 0 and shape[0] % n == 0)

    def deliver(self, values: Tensor, shape: Sequence[int], device: Any) -> Tensor:
        """Return numbers ``(B, share)`` as the tensor that was asked for."""
        if device not in _HOST and torch.device(device).type != "cpu":
            values = to_device_async(values, torch.device(device))
        if self.is_by_row(shape):
            return values if values.shape == shape else values.view(shape)
        return PerRow.wrap(values.reshape(len(values), *shape), self)

    def draw_uniform(self, shape: Sequence[int], dtype: Any, device: Any) -> Tensor:
        """Draw from [0, 1), with as many bits as the dtype holds: rounding would give 1."""
        if dtype is torch.float32 and device in _HOST and shape == (len(self._words),):
            return self._next_float()
        bits = _BITS[dtype]
        share = self._count(shape)
        if self._is_noise(shape):
            words = self._hash_on_device(share)
            values = (words >> (64 - bits)) & ((1 << bits) - 1)
            return (values.to(torch.float64) * 2.0**-bits).to(dtype).reshape(tuple(shape))
        floats = self.next_floats(share, bits)
        values = torch.from_numpy(floats.reshape(shape) if self.is_by_row(shape) else floats)
        return self.deliver(values if values.dtype == dtype else values.to(dtype), shape, device)

    def draw_normal(self, shape: Sequence[int], dtype: Any, device: Any) -> Tensor:
        """Draw from the standard normal distribution, of 2**16 equally likely values."""
        states = torch.from_numpy(self.next_words(1)[:, 0].view(np.int64))
        if self._is_noise(shape):
            states, device = to_device_async(states, self._device), None
        values = look_up_normals(states, self._count(shape)).to(dtype)
        return self.deliver(values, shape, device)

    def draw_integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Draw from low to high - 1."""
        if not 0 < high - low <= 1 << 32:
            raise RuntimeError(f"randint must draw from 1 to 2**32 numbers, got {low} to {high}.")
        words = self.next_words(self._count(shape)) >> np.uint64(32)
        values = (words * np.uint64(high - low)) >> np.uint64(32)
        return torch.from_numpy(values.astype(np.int64) + low)

    def draw_choices(self, weights: Tensor, num: int, with_replacement: bool) -> Tensor:
        """Draw ``num`` of k weights: ``(k,)``, or ``(m, k)`` with as many lines as rows or one."""
        lines = weights.detach().double().cpu().reshape(-1, weights.shape[-1])
        n, (m, k) = len(self._words), lines.shape
        # As torch's Categorical asks for one of each row; a module's own choice has one dimension.
        is_each = weights.ndim == 2 and m == 1 and with_replacement and num == n
        if m not in (1, n):
            raise RuntimeError(f"multinomial must draw from 1 or {n} lines of weights, got {m}.")
        per_row = 1 if is_each else num
        shares = (lines / lines.sum(1, keepdim=True)).numpy()
        if with_replacement:
            uniforms = self.next_floats(per_row, 53)
            ends = np.cumsum(shares, 1)
            ends /= ends[:, -1:]
            found = (uniforms[:, :, None] >= ends[:, None, :]).sum(2)
        else:  # exponential clocks, the first of which rings in proportion to its rate
            uniforms = self.next_floats(k, 53) + 2.0**-54
            with np.errstate(divide="ignore"):
                found = np.argsort(-np.log(uniforms) / shares, 1, kind="stable")[:, :num].copy()
        chosen = torch.from_numpy(found.astype(np.int64)).to(weights.device)
        if is_each:
            return chosen[:, 0][None]
        if m == n:
            return chosen if weights.ndim > 1 else chosen[0]
        return PerRow.wrap(chosen if weights.ndim == 1 else chosen[:, None], self)

    def _count(self, shape: Sequence[int]) -> int:
        numel = math.prod(shape)
        return numel // len(self._words) if self.is_by_row(shape) else numel

    def _is_noise(self, shape: Sequence[int]) -> bool:
        """Whether there is a number for each pixel, which is made where the images are."""
        return self._is_remote and tuple(shape) == tuple(self.batch_shape)

    def _hash_on_device(self, share: int) -> Tensor:
        """Return the words of :meth:`next_words` as int64 on the device of the images."""
        seeds = (self._words + np.uint64(GOLDEN) * np.uint64(self._number + 1)).view(np.int64)
        self._number += 1
        states = mix_words(to_device_async(torch.from_numpy(seeds), self._device))
        counters = torch.arange(1, share + 1, device=self._device) * to_int64(GOLDEN)
        return mix_words(states[:, None] + counters)


def _read_size(args: Any, kwargs: dict[str, Any]) -> tuple[int, ...]:
    size = kwargs["size"] if "size" in kwargs else args[0] if len(args) == 1 else args
    return (int(size),) if isinstance(size, int) else tuple(map(int, size))


def _read_dtype(kwargs: dict[str, Any]) -> torch.dtype:
    return kwargs.get("dtype") or torch.get_default_dtype()


def _rand(draws: Draws, *args: Any, **kwargs: Any) -> Tensor:
    return draws.draw_uniform(_read_size(args, kwargs), _read_dtype(kwargs), kwargs.get("device"))


def _randn(draws: Draws, *args: Any, **kwargs: Any) -> Tensor:
    return draws.draw_normal(_read_size(args, kwargs), _read_dtype(kwargs), kwargs.get("device"))


def _rand_like(draws: Draws, x: Tensor, **kwargs: Any) -> Tensor:
    return draws.draw_uniform(x.shape, kwargs.get("dtype") or x.dtype, x.device)


def _randn_like(draws: Draws, x: Tensor, **kwargs: Any) -> Tensor:
    return draws.draw_normal(x.shape, kwargs.get("dtype") or x.dtype, x.device)


def _randint(draws: Draws, *args: Any, **kwargs: Any) -> Tensor:
    *bounds, size = (*args, kwargs["size"]) if "size" in kwargs else args
    if len(bounds) < 2:
        bounds = [kwargs.get("low", 0), *bounds, kwargs.get("high")]
    low, high = bounds[:2]
    values = draws.draw_integers(int(low), int(high), size)
    return draws.deliver(values.to(kwargs.get("dtype") or torch.int64), size, kwargs.get("device"))


def _randperm(draws: Draws, size: int, **kwargs: Any) -> Tensor:
    order = torch.from_numpy(draws.next_words(size).argsort(1, kind="stable"))
    order = order.to(dtype=kwargs.get("dtype") or torch.int64, device=kwargs.get("device"))
    return PerRow.wrap(order, draws)


def _bernoulli(draws: Draws, probability: Tensor, *, generator: None = None) -> Tensor:
    x = draws.draw_uniform(probability.shape, torch.float32, probability.device)
    return (x < probability).to(probability.dtype)


def _multinomial(
    draws: Draws,
    weights: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: None = None,
) -> Tensor:
    return draws.draw_choices(weights, num_samples, replacement)


def _refuse(name: str, *args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError(
        "module must draw by torch.rand, randn, randint, randperm, bernoulli or multinomial, "
        f"without generator= or out=, got {name}, which has no form keyed by row. Pass "
        "KorniaModule(..., per_row=False), where a row's result depends on its batch."
    )


_DRAWS: dict[Any, Callable[..., Tensor]] = {
    torch.rand: _rand,
    torch.randn: _randn,
    torch.rand_like: _rand_like,
    torch.randn_like: _randn_like,
    torch.randint: _randint,
    torch.randperm: _randperm,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    Tensor.multinomial: _multinomial,
}
_DRAWS |= {
    getattr(owner, name): partial(_refuse, name)
    for owner in (torch, Tensor)
    for name in (
        *("normal", "poisson", "binomial", "randint_like", "dropout", "rrelu", "_standard_gamma"),
        *("_sample_dirichlet", "bernoulli_", "uniform_", "normal_", "random_", "exponential_"),
        *("cauchy_", "geometric_", "log_normal_", "feature_dropout", "alpha_dropout"),
    )
    if hasattr(owner, name)
}


class KeyedMode(TorchFunctionMode):
    """Answers torch's random functions from the draws."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self._draws = draws

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        draw = _DRAWS.get(func)
        if draw is None:  # most calls, and the cost of this mode
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None or "out" in kwargs:
            _refuse(func.__name__)
        if self._draws.choices:
            args, kwargs = map_tensors(_settle, (args, kwargs))
        drawn = draw(self._draws, *args, **kwargs)
        if _records:
            _record(func, drawn, "choice" if isinstance(drawn, PerRow) else "row")
        return drawn


class _Recorder(TorchFunctionMode):
    """Notes the random functions that run without keys."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in _DRAWS and not torch.compiler.is_compiling():
            _record(func, found, "batch")
        return found


def _record(func: Any, drawn: Any, kind: str) -> None:
    for found in _records:
        frame = sys._getframe(2)
        while "/torch/" in frame.f_code.co_filename and frame.f_back is not None:
            frame = frame.f_back
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        found.append(Draw(func.__name__, tuple(getattr(drawn, "shape", ())), kind, where))
