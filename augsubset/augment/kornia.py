"""Anybody's augmentation module as a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from augsubset.augment.checks import MODULE, check_images, check_unit_range, plain_context
from augsubset.augment.random import RowKeys, hash_rows
from augsubset.utils.checks import check_int
from augsubset.utils.rng import forked_rng

__all__ = ["KorniaModule"]


class KorniaModule:
    """Run anybody's augmentation on the rows given: Kornia's, torchvision's v2, any callable.

    Random numbers come from the global generators of torch, numpy and Python, which are forked and
    seeded from the rows, so that the same rows in the same batch repeat exactly and the caller's
    state is left alone. But one call draws for all its rows: a row's result can depend on its batch
    mates, which the built-in policies rule out. Kornia's own ``auto`` policies and torchvision's
    transforms even draw one list of operations for the whole batch.

    Args:
        module: A module or callable ``(B, C, H, W) -> (B, C, H, W)`` on floats in [0, 1]. An
            ``AugmentationSequential`` with ``data_keys`` gets what comes with the images too, and
            returns it.
        every: Epochs for which the same rows in the same batch get the same.

    Raises:
        TypeError: If the module is not callable; when called, if it returns something else than
            it got.
        ValueError: When called, if it changes the shape of the images or the number of rows.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; uint8 is converted to float
        and rounded back. With masks, boxes or keypoints of B rows each:
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

    def __call__(self, x: Tensor, rows: RowKeys, *others: Tensor) -> Any:
        """Return the batch with the module applied to all rows together."""
        check_images(x, rows)
        check_unit_range(x)
        if len(x) == 0:
            return (x, *others) if others else x
        # Chained, not summed: the same rows in another order are another batch.
        seed = 0
        for word in hash_rows(rows.held(self.every), MODULE).tolist():
            seed = (seed * 0x5851F42D4C957F2D + word) & ((1 << 63) - 1)
        # Copies: what a module does in place is not done to the caller's.
        images = x.float() / 255 if x.dtype == torch.uint8 else x.clone()
        with forked_rng(seed, [x.device]), plain_context(x.device):
            found = self.module(images, *(part.clone() for part in others))
        if not others:
            return _checked(found, images, x)
        if not isinstance(found, (list, tuple)) or len(found) != 1 + len(others):
            got = len(found) if isinstance(found, (list, tuple)) else type(found).__name__
            raise TypeError(f"module must return the {1 + len(others)} parts it got, got {got}.")
        for part, before in zip(found[1:], others, strict=True):
            if len(part) != len(x):
                raise ValueError(f"module must keep the {len(x)} rows, got {len(part)}.")
            if isinstance(part, Tensor) and part.dtype != before.dtype:
                raise TypeError(f"module must return {before.dtype}, as it got, got {part.dtype}.")
        return (_checked(found[0], images, x), *found[1:])


def _checked(out: Any, images: Tensor, x: Tensor) -> Tensor:
    """Return the images in the dtype they had, or refuse what the module made of them."""
    if not isinstance(out, Tensor) or out.dtype != images.dtype:
        kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"module must return {images.dtype}, as it got, got {kind}.")
    if out.shape != x.shape:
        raise ValueError(
            f"module must keep the shape {tuple(x.shape)}, got {tuple(out.shape)}. "
            "Resize in the dataset instead."
        )
    if x.dtype == torch.uint8:
        return (out * 255).round().clamp(0, 255).to(torch.uint8)
    return out.to(x.dtype)
