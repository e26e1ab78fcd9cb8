"""Kornia's modules, and any other augmentation, as policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from augsubset.augment.checks import (
    MODULE,
    check_images,
    clamp_rounding,
    disable_grad_and_autocast,
    get_stream,
)
from augsubset.augment.kernels import divide
from augsubset.augment.keyed import Draw, record_draws, run_keyed
from augsubset.augment.random import RowKeys, UInt64Array, hash_rows
from augsubset.utils.checks import check_int
from augsubset.utils.rng import forked_rng, seed_cpu
from augsubset.utils.torch_utils import map_tensors

__all__ = ["KorniaModule", "as_policy", "check_rows_independent"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)
_REFUSED = {
    "kornia.augmentation._2d.mix": "mixes the images of a batch, and their labels with them",
    "kornia.augmentation._3d": "takes volumes (B, C, D, H, W), not images",
    "kornia.augmentation.container.video": "takes videos (B, C, T, H, W), not images",
    "kornia.augmentation.presets": "changes its probability from call to call",
}


class KorniaModule:
    """Any augmentation of a batch as a policy: Kornia's modules, torchvision's, or a function.

    If every part of a module comes from Kornia, its parameters are drawn from the rows' keys
    (``augsubset.augment.keyed``): a row's result depends only on its key, its image and the module,
    and the batch takes one call. Where Kornia draws once per batch (the order in ``ColorJiggle``,
    ``random_apply``, the operation of an ``auto`` policy), every row draws for itself; rows with
    equal draws share a call. Anything else is called for one row at a time, with the generators of
    torch, NumPy and Python seeded from the row's key: the same guarantee, but slower. The caller's
    generators are not changed.

    A :class:`~augsubset.SubsetAugmentLoader` takes a module of Kornia's as it is; this class is for
    the options, and for everything else.

    Args:
        module: A module or callable ``(B, C, H, W) -> (B, C, H, W)`` on floats in [0, 1]. An
            ``AugmentationSequential`` with ``data_keys`` also takes and returns masks, boxes,
            keypoints or classes. An ``nn.Sequential`` is run part by part.
        per_row: ``False``: one call for the batch, its generators seeded from all keys together.
            The same batch repeats exactly, but a row's result depends on its batch mates, and so on
            the batch size, the number of ranks and the selection.
        every: Number of epochs for which a row gets the same augmentation.
        stream: Number of the random stream: two modules on the same rows need different ones.

    Raises:
        TypeError: If the module is not callable, or is one for videos or volumes, one that mixes
            images, or one with ``same_on_batch=True``; on a call, if it returns another type or
            dtype.
        ValueError: On a call, if it changes the shape of the images or the number of rows; on the
            first, if it draws from a generator of its own, as albumentations does.
        RuntimeError: On a call, if a module of Kornia's draws what cannot be keyed by row.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; uint8 is converted to float
        and rounded back. With masks, boxes or keypoints, B of each, as a tensor or a list:
        ``(x, rows, *others) -> (x, *others)``; integers are converted and rounded back.

    Cost:
        Beside the module's own call, a hash for each number that it draws; a call for each row
        where ``strategy`` is ``"row by row"``.

    Attributes:
        strategy: ``"keyed"``, ``"row by row"`` or, with ``per_row=False``, ``"whole batch"``.

    Example:
        >>> import kornia.augmentation as K
        >>> flip = K.RandomHorizontalFlip(p=1.0)
        >>> both = KorniaModule(K.AugmentationSequential(flip, data_keys=["input", "mask"]))
        >>> x, rows = torch.rand(2, 3, 4, 4), RowKeys(0, 0, torch.arange(2), 1)
        >>> image, mask = both(x, rows, x[:, :1])
        >>> torch.equal(mask, image[:, :1])
        True
    """

    strategy: Literal["keyed", "row by row", "whole batch"]

    def __init__(
        self, module: Callable[..., Any], *, per_row: bool = True, every: int = 1, stream: int = 0
    ) -> None:
        if not callable(module):
            raise TypeError(f"module must be callable, got {type(module).__name__}.")
        self.module, self._parts = module, _find_parts(module)
        data_keys = getattr(module, "data_keys", None) or ()
        self._data_keys = [str(getattr(key, "name", key)).lower() for key in data_keys]
        self.every, self._stream = check_int("every", every, 1), get_stream(MODULE, stream)
        self._seen_size: tuple[int, ...] = ()
        self._was_seen = False  # whether a first call showed that the keys decide everything
        for part in self._parts:
            _check_part(part, per_row)
        pieces = *self._parts, *_unchain(module)
        is_kornias = bool(self._parts) and all(map(_is_kornias, pieces))
        if not per_row:
            self.strategy = "whole batch"
        else:
            self.strategy = "keyed" if is_kornias else "row by row"

    def __repr__(self) -> str:
        return f"KorniaModule({self.module!r}, {self.strategy})"

    @property
    def is_geometric(self) -> bool:
        """Whether a module of Kornia's or torchvision's in it moves pixels."""
        return any("geometr" in type(part).__module__ for part in self._parts)

    def __call__(self, x: Tensor, rows: RowKeys, *others: Any) -> Any:
        """Return the rows, each as its key says."""
        check_images(x, rows)
        self._check_others(others)
        x = clamp_rounding(x)
        if len(x) == 0:
            return (x, *others) if others else x
        self._check_sizes(x)
        words = hash_rows(rows.round_epochs(self.every), self._stream)
        images = divide(x.float(), 255) if x.dtype == torch.uint8 else x
        parts = images, *(map(_to_float, others) if self._data_keys else others)
        with disable_grad_and_autocast(x.device):
            if self.strategy == "keyed":
                found = self._run_keyed(words, parts)
            elif self.strategy == "row by row":
                found = self._run_rows(words, parts)
            else:
                found = self._run_batch(words, parts)
        self._was_seen = True
        # Copies of what came back as it was, so that nobody writes into the caller's.
        image = _restore_dtype(found[0], images, x)
        image = image.clone() if image is x else image
        return (image, *map(_restore_other, found[1:], others)) if others else image

    def _run_keyed(self, words: UInt64Array, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        is_first = not self._was_seen
        for number, stage in enumerate(_unchain(self.module)):
            if number > 0:  # another stage draws other numbers
                words = words * 0x9FB21C651E98DF25 + 1
            parts = run_keyed(stage, words, parts[0], parts[1:], is_first=is_first)
        return parts

    def _run_rows(self, words: UInt64Array, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        device, seeds = parts[0].device, [word >> 1 for word in words.tolist()]

        def run(row: int) -> tuple[Any, ...]:
            seed_cpu(seeds[row])
            if device.type == "cuda":
                torch.cuda.manual_seed(seeds[row])
            given = (map_tensors(torch.clone, part[row : row + 1]) for part in parts)
            return self._call(*given)

        with forked_rng(0, [device]):
            found = [run(row) for row in range(len(words))]
            if not self._was_seen:
                again = [run(row)[0] for row in range(min(8, len(words)))]
                _check_repeats([each[0] for each in found[:8]], again)
        return tuple(
            torch.cat(rows) if isinstance(rows[0], Tensor) else [row[0] for row in rows]
            for rows in zip(*found, strict=True)
        )

    def _run_batch(self, words: UInt64Array, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        # Chained, not summed, so that the same rows in another order get another seed.
        seed = 0
        for word in words.tolist():
            seed = (seed * 0x5851F42D4C957F2D + word) & ((1 << 63) - 1)
        with forked_rng(seed, [parts[0].device]):
            return self._call(*(map_tensors(torch.clone, part) for part in parts))

    def _call(self, *parts: Any) -> tuple[Any, ...]:
        """Return what the module makes of copies, or raise if it returns something else."""
        found = self.module(*parts)
        if len(parts) == 1:
            found = (found,)
        if not isinstance(found, (list, tuple)) or len(found) != len(parts):
            got = len(found) if isinstance(found, (list, tuple)) else type(found).__name__
            raise TypeError(f"module must return {len(parts)} outputs, as given, got {got}.")
        for before, after in zip(parts, found, strict=True):
            if isinstance(before, Tensor):
                _check_dtype(before, after)
            if len(after) != len(before):
                raise ValueError(
                    f"module must keep the batch size {len(before)}, got {len(after)}."
                )
        return tuple(found)

    def _check_others(self, others: Sequence[Any]) -> None:
        if self._data_keys and len(self._data_keys) != 1 + len(others):
            raise ValueError(
                f"module takes data_keys={self._data_keys}, got the images and {len(others)} "
                "others. Name the parts of a batch in the same order: BatchSpec(others=[...])."
            )
        if others and self.strategy == "keyed" and not self._data_keys:
            raise ValueError(
                f"module takes images alone, got {len(others)} others. Put it into a "
                'K.AugmentationSequential(..., data_keys=["input", "mask"]).'
            )

    def _check_sizes(self, x: Tensor) -> None:
        """Raise if some rows would leave with another size than the others."""
        for part in self._parts if x.shape[-2:] != self._seen_size else ():
            size = getattr(part, "flags", {}).get("size")
            is_sometimes = 0 < getattr(part, "p", 1) < 1 or 0 < getattr(part, "p_batch", 1) < 1
            if is_sometimes and isinstance(size, tuple) and tuple(size) != tuple(x.shape[-2:]):
                raise ValueError(
                    f"module must give all rows one shape, got {part} on images of "
                    f"{tuple(x.shape[-2:])}. A resizing operation needs p=1."
                )
        self._seen_size = x.shape[-2:]


def as_policy(policy: Any) -> Any:
    """Return a module of Kornia's wrapped, anything else as it is; imports nothing."""
    if isinstance(policy, nn.Module) and any(map(_is_kornias, _unchain(policy))):
        return KorniaModule(policy)
    return policy


def check_rows_independent(module: Any, x: Tensor, *others: Any, tolerance: float = 0.0) -> None:
    """Raise unless each row of a policy's result depends on its key and its image alone.

    Runs the batch in another order, row by row, and in pieces of three.

    Args:
        module: A policy ``(x, rows)``, or anything that :class:`KorniaModule` takes.
        x: Images to try it on. ``(B, C, H, W)``, B at least 2
        others: Masks, boxes and the like, B of each.
        tolerance: Largest difference that is let pass; bitwise by default. Kornia's elastic
            transform rounds by batch size, within 1e-5; on some processors its JPEG, within 1e-6.

    Raises:
        ValueError: If a row's result changes with its batch mates; names the draw that is to blame.

    Cost:
        B + B / 3 + 2 calls.

    Example:
        >>> import kornia.augmentation as K
        >>> check_rows_independent(K.RandomAffine(20.0), torch.rand(8, 3, 16, 16))
    """
    policy = KorniaModule(module) if isinstance(module, nn.Module) else module
    n = check_int("the number of images", len(x), 2)
    keys = RowKeys(7, 3, torch.arange(n) * 5 + 1, 1)
    with record_draws() as together:
        whole = _run_policy(policy, x, keys, others, torch.arange(n))
    shuffled = torch.arange(n).flip(0).roll(1)
    pieces = (
        torch.arange(first, min(first + size, n)) for size in (3, 1) for first in range(0, n, size)
    )
    for rows in (shuffled, *pieces):
        with record_draws() as apart:
            found = _run_policy(policy, x, keys, others, rows)
        for row, parts in zip(rows.tolist(), found, strict=True):
            pairs = zip(parts, whole[row], strict=True)
            if not all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in pairs):
                raise ValueError(
                    f"module must give a row the same result in any batch, got another for row "
                    f"{row} in one of {len(rows)} rows: {_find_cause(together, apart)}."
                )


def _find_cause(together: Sequence[Draw], apart: Sequence[Draw]) -> str:
    """Say why a row's result differs between two batches with these draws."""
    for draw in together:
        if draw.kind == "batch":
            return f"{draw} is drawn once for all"
    for draw, other in zip(together, apart, strict=False):
        if (draw.name, draw.kind) != (other.name, other.kind):
            return f"{draw} is taken for one number of each row, in a batch of this size"
    return "no draw differs, so it computes over the batch"


def _run_policy(
    policy: Any, x: Tensor, keys: RowKeys, others: Sequence[Any], rows: Tensor
) -> list[tuple[Tensor, ...]]:
    """Return each row's images and others."""
    parts = [p[rows] if isinstance(p, Tensor) else [p[i] for i in rows] for p in (x, *others)]
    found = policy(parts[0], keys[rows], *parts[1:])
    return list(zip(*(found if others else (found,)), strict=True))


def _find_parts(module: Any) -> list[nn.Module]:
    """Return the modules in it that do something."""
    if not isinstance(module, nn.Module):
        return []
    found = [part for part in module.modules() if not hasattr(part, "_orig_mod")]
    return [part for part in found if type(part) not in _CONTAINERS]


def _is_kornias(part: Any) -> bool:
    return type(getattr(part, "_orig_mod", part)).__module__.split(".")[0] == "kornia"


def _unchain(module: Any) -> list[nn.Module]:
    """Return the modules that a plain ``nn.Sequential`` runs one after the other."""
    if type(module) is nn.Sequential:
        return [stage for part in module for stage in _unchain(part)]
    return [] if type(module) is nn.Identity else [module]


def _check_part(part: nn.Module, per_row: bool) -> None:
    name = type(part).__name__
    for base in type(part).__mro__:
        for package, reason in _REFUSED.items():
            if base.__module__.startswith(package):
                raise TypeError(
                    f"module must augment images one by one, got {name}, which {reason}."
                )
    if name in ("Normalize", "Denormalize"):
        raise ValueError(
            f"module must keep values in [0, 1], got {name}. Take it out, and pass "
            "normalize=(mean, std) to the loader, which applies it last."
        )
    # Some classes have no such argument and set it themselves, as CenterCrop does.
    is_argument = "same_on_batch" in signature(type(part).__init__).parameters
    if per_row and is_argument and getattr(part, "same_on_batch", None) is True:
        raise TypeError(
            f"{name} must have same_on_batch=False: each row draws its own parameters. For one "
            "draw a batch pass KorniaModule(..., per_row=False)."
        )


def _check_repeats(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    for one, two in zip(first, second, strict=True):
        if one.shape == two.shape and not torch.allclose(
            one, two, rtol=0, atol=1e-3, equal_nan=True
        ):
            raise ValueError(
                "module must give the same row for the same seed of torch, NumPy and random, got "
                "two different ones: it has a generator of its own. Seed that in a function which "
                "calls the module, from torch: int(torch.randint(2**31, ()))."
            )


def _to_float(other: Any) -> Any:
    """Return masks, boxes or classes as floats, which Kornia takes."""
    return map_tensors(lambda part: part if part.is_floating_point() else part.float(), other)


def _restore_other(after: Any, before: Any) -> Any:
    """Return one of the others in the shape and dtype that it had."""
    if isinstance(before, (list, tuple)):
        return [_restore_other(*pair) for pair in zip(after, before, strict=True)]
    if not isinstance(before, Tensor):
        return after
    if after.ndim == before.ndim + 1 and after.shape[1] == 1:  # a channel, for masks without
        after = after.squeeze(1)
    if after.dtype != before.dtype:
        after = after.round().to(before.dtype)
    return after.clone() if after is before else after


def _check_dtype(before: Tensor, after: Any) -> None:
    if not isinstance(after, Tensor) or after.dtype != before.dtype:
        kind = after.dtype if isinstance(after, Tensor) else type(after).__name__
        raise TypeError(f"module must keep the dtype {before.dtype}, got {kind}.")


def _restore_dtype(out: Any, images: Tensor, x: Tensor) -> Tensor:
    """Return the module's images in the dtype of ``x``; raise if they changed dtype or shape."""
    _check_dtype(images, out)
    if out.shape != x.shape:
        raise ValueError(
            f"module must keep the shape {tuple(x.shape)}, got {tuple(out.shape)}. "
            "Resize in the dataset instead."
        )
    if x.dtype == torch.uint8:
        out = (out * 255).round().clamp(0, 255).to(torch.uint8)
    restored: Tensor = out
    return restored
