"""Any augmentation module as a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from augsubset.augment.checks import (
    MODULE,
    check_images,
    clamp_rounding,
    disable_grad_and_autocast,
)
from augsubset.augment.random import RowKeys, hash_rows
from augsubset.utils.checks import check_int
from augsubset.utils.rng import forked_rng

__all__ = ["KorniaModule"]


class KorniaModule:
    """Wrap any batch augmentation as a policy: Kornia, torchvision v2, or any other callable.

    The module draws from the global generators of torch, NumPy and Python, which are seeded from
    the batch's keys and restored afterwards: the same rows in the same batch repeat exactly, and
    the caller's random state does not change. But the module is called once for the whole batch, so
    a row's result can depend on the rest of the batch, which the built-in policies rule out.
    Kornia's ``auto`` policies and torchvision's transforms even draw one list of operations for the
    whole batch.

    Args:
        module: A module or callable ``(B, C, H, W) -> (B, C, H, W)`` on floats in [0, 1]. An
            ``AugmentationSequential`` with ``data_keys`` also takes and returns masks, boxes or
            keypoints.
        every: Number of epochs for which the same batch gets the same augmentation.

    Raises:
        TypeError: If the module is not callable; on a call, if it returns another type or dtype.
        ValueError: On a call, if it changes the shape of the images or the number of rows.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; uint8 is converted to float
        and rounded back. With masks, boxes or keypoints, B of each:
        ``(x, rows, *others) -> (x, *others)``.

    Example:
        >>> import kornia.augmentation as K
        >>> flip = K.RandomHorizontalFlip(p=1.0)
        >>> both = KorniaModule(K.AugmentationSequential(flip, data_keys=["input", "mask"]))
        >>> x, rows = torch.rand(2, 3, 4, 4), RowKeys(0, 0, torch.arange(2), 1)
        >>> image, mask = both(x, rows, x[:, :1])
        >>> torch.equal(mask, image[:, :1])
        True
    """

    def __init__(self, module: Callable[..., Any], *, every: int = 1) -> None:
        if not callable(module):
            raise TypeError(f"module must be callable, got {type(module).__name__}.")
        self.module = module
        self.every = check_int("every", every, 1)

    def __repr__(self) -> str:
        return f"KorniaModule({self.module!r})"

    @property
    def is_geometric(self) -> bool:
        """Whether a module of Kornia's or torchvision's in it moves pixels."""
        parts = self.module.modules() if isinstance(self.module, torch.nn.Module) else ()
        return any("geometr" in type(part).__module__ for part in parts)

    def __call__(self, x: Tensor, rows: RowKeys, *others: Tensor) -> Any:
        """Return the batch after one call of the module."""
        check_images(x, rows)
        x = clamp_rounding(x)
        if len(x) == 0:
            return (x, *others) if others else x
        # Chained, not summed, so that the same rows in another order get another seed.
        seed = 0
        for word in hash_rows(rows.round_epochs(self.every), MODULE).tolist():
            seed = (seed * 0x5851F42D4C957F2D + word) & ((1 << 63) - 1)
        # Copies, because the module may work in place.
        images = x.float() / 255 if x.dtype == torch.uint8 else x.clone()
        with forked_rng(seed, [x.device]), disable_grad_and_autocast(x.device):
            found = self.module(images, *(part.clone() for part in others))
        if not others:
            return _restore_dtype(found, images, x)
        if not isinstance(found, (list, tuple)) or len(found) != 1 + len(others):
            got = len(found) if isinstance(found, (list, tuple)) else type(found).__name__
            raise TypeError(f"module must return {1 + len(others)} outputs, as given, got {got}.")
        for part, before in zip(found[1:], others, strict=True):
            if len(part) != len(x):
                raise ValueError(f"module must keep the batch size {len(x)}, got {len(part)}.")
            if isinstance(part, Tensor) and part.dtype != before.dtype:
                raise TypeError(f"module must keep the dtype {before.dtype}, got {part.dtype}.")
        return (_restore_dtype(found[0], images, x), *found[1:])


def _restore_dtype(out: Any, images: Tensor, x: Tensor) -> Tensor:
    """Return the module's images in the dtype of ``x``; raise if they changed dtype or shape."""
    if not isinstance(out, Tensor) or out.dtype != images.dtype:
        kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"module must keep the dtype {images.dtype}, got {kind}.")
    if out.shape != x.shape:
        raise ValueError(
            f"module must keep the shape {tuple(x.shape)}, got {tuple(out.shape)}. "
            "Resize in the dataset instead."
        )
    if x.dtype == torch.uint8:
        return (out * 255).round().clamp(0, 255).to(torch.uint8)
    return out.to(x.dtype)
