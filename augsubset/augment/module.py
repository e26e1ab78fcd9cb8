"""Anybody's augmentation module as a policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from augsubset.augment.keyed_random import RowKeys, hash_rows
from augsubset.augment.policies import check_images, plain_context
from augsubset.rng import forked_rng

__all__ = ["KorniaModule"]

_STREAM_MODULE = 3


class KorniaModule:
    """Run a ``kornia.augmentation`` module on the rows given.

    The module draws from torch's global generator, which is forked and seeded from the rows, so
    that the same rows in the same batch repeat exactly and the caller's state is left alone. But
    one call draws for all its rows: a row's result can depend on its batch mates, which the
    built-in policies rule out. Kornia's own ``auto`` policies even draw one list of operations
    for the whole batch.

    Args:
        module: A module or callable ``(B, C, H, W) -> (B, C, H, W)`` on floats in [0, 1].

    Raises:
        TypeError: If the module is not callable.
        ValueError: When called, if it changes the shape.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; uint8 is converted to float
        and rounded back.
    """

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        if not callable(module):
            raise TypeError(f"module must be callable, got {type(module).__name__}.")
        self.module = module

    def __repr__(self) -> str:
        return f"KorniaModule({self.module!r})"

    def __call__(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return the batch with the module applied to all rows together."""
        check_images(x, rows)
        if len(x) == 0:
            return x
        words = hash_rows(rows, _STREAM_MODULE)
        # Chained, not summed: the same rows in another order are another batch.
        seed = 0
        for word in words.tolist():
            seed = (seed * 0x5851F42D4C957F2D + word) & ((1 << 63) - 1)
        with forked_rng(seed, [x.device]), plain_context(x.device):
            out = self.module(x.float() / 255 if x.dtype == torch.uint8 else x)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            kind = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"module must return a float tensor, as it got, got {kind}.")
        if out.shape != x.shape:
            raise ValueError(
                f"module must keep the shape {tuple(x.shape)}, got {tuple(out.shape)}. "
                "Resize in the dataset instead."
            )
        if x.dtype == torch.uint8:
            return (out * 255).round().clamp(0, 255).to(torch.uint8)
        return out.to(x.dtype)
