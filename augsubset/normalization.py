"""What pixel values mean: checked on the host, in [0, 1] while augmented, normalised last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MeanStd", "PixelRange"]

MeanStd = tuple[Sequence[float], Sequence[float]]

# A quarter of an 8-bit level: what rounding costs on the way through a normalisation and back.
_ROUNDING = 1e-3
_BITS_OF_ONE = np.float32(1).view(np.uint32)


class PixelRange:
    """The normalisation that batches need, or already have.

    Args:
        normalize: ``(mean, std)``, one value a channel, applied last; values arrive in [0, 1].
        denormalize: ``(mean, std)`` that the dataset applied: undone first, applied again last.
        channels_last: Whether the model gets its images in that memory format.

    Raises:
        ValueError: If both are given, or a mean is not finite or a std not positive.
    """

    def __init__(
        self,
        normalize: MeanStd | None,
        denormalize: MeanStd | None,
        channels_last: bool = False,
    ) -> None:
        if normalize is not None and denormalize is not None:
            raise ValueError(
                "normalize and denormalize must not both be given: either the dataset normalises "
                "already (denormalize) or it does not (normalize)."
            )
        self._arrives_normalised = denormalize is not None
        self._channels_last = channels_last
        self._kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._statistics: tuple[Tensor, Tensor] | None = None
        statistics = normalize if denormalize is None else denormalize
        if statistics is not None:
            mean, std = (torch.tensor(part, dtype=torch.float64).view(-1) for part in statistics)
            finite = math.isfinite(mean.sum()) and math.isfinite(std.sum())
            if len(mean) != len(std) or not finite or not bool((std > 0).all()):
                raise ValueError(
                    "normalize and denormalize must be (mean, std), one finite mean and one "
                    f"positive std a channel, got mean={mean.tolist()}, std={std.tolist()}."
                )
            self._statistics = mean[:, None, None], std[:, None, None]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept on devices: a worker needs none of it."""
        return {**self.__dict__, "_kept": {}}

    def check(self, x: Any) -> None:
        """Refuse, before the copy to the device, what would be clamped in silence there.

        Raises:
            ValueError: If values are outside [0, 1] (once denormalised), not finite, or of a dtype
                or a number of channels that the statistics do not fit.

        Cost:
            A reduction over a float32 batch, two where the dataset normalises; nothing for uint8.
        """
        if self._statistics is None and not (isinstance(x, Tensor) and x.ndim == 4):
            return  # token ids, columns of a table, a dict: the model's own affair
        if self._statistics is not None:
            channels = len(self._statistics[0])
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"images must be a tensor to be normalised, got {type(x).__name__}."
                )
            if x.ndim != 4 or x.shape[1] != channels:
                raise ValueError(
                    f"images must be (B, C, H, W) with C = {channels}, one channel a mean, got "
                    f"shape {tuple(x.shape)}. Pass one mean and one std a channel."
                )
        if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
            raise ValueError(
                f"images must be (B, C, H, W), got shape {tuple(x.shape)}, which looks like "
                "channels last. Permute the dataset's images with permute(2, 0, 1)."
            )
        if x.dtype == torch.uint8 and not self._arrives_normalised:
            return
        if not x.is_floating_point():
            raise ValueError(
                f"images must be {'' if self._arrives_normalised else 'uint8 or '}float, got "
                f"dtype {x.dtype}."
            )
        if not self._arrives_normalised:
            if _is_unit(x):
                return
            low, high = (float(bound) for bound in x.aminmax())
            if not (low >= 0 and high <= 1):  # written so that NaN fails
                raise ValueError(
                    f"images must be in [0, 1], got values from {low:.4g} to {high:.4g}. If the "
                    "dataset normalises, pass denormalize=(mean, std); else return uint8, or "
                    "divide by 255."
                )
            return
        assert self._statistics is not None
        mean, std = self._statistics
        low = float((x.amin((0, 2, 3))[:, None, None] * std + mean).min())
        high = float((x.amax((0, 2, 3))[:, None, None] * std + mean).max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(
                f"images must be in [0, 1] once denormalised, got values from {low:.4g} to "
                f"{high:.4g}. Pass the mean and std that the dataset used as denormalize, and "
                "let no transform after its Normalize leave the range."
            )

    def to_unit(self, x: Any) -> Any:
        """Return what policies take: uint8, or float in [0, 1]."""
        if not self._arrives_normalised:
            return x
        mean, std = self._on(x)
        return (x * std + mean).clamp(0, 1)  # checked on the host: cuts off rounding alone

    def to_model(self, x: Any) -> Any:
        """Return what the model takes: float, normalised if so told; uint8 is divided by 255.

        What is no ``(B, C, H, W)`` tensor, nor uint8, is returned as it is.

        Cost:
            Two passes: for uint8 the cast, the division by 255 and by the deviation are one. On the
            host the cast is one more, which is still faster than torch's product of two types.
        """
        if not isinstance(x, Tensor) or (x.ndim != 4 and x.dtype != torch.uint8):
            return x
        if self._channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # of bytes, where these arrive
        on_host = x.device.type == "cpu"
        if self._statistics is None:
            if x.is_floating_point():
                return x
            return x.to(torch.float32).div_(255) if on_host else x / 255
        mean, std = self._on(x)
        if x.is_floating_point():
            return (x - mean).div_(std)
        scale, shift = 1 / (255 * std), mean / std
        return (x.to(scale.dtype).mul_(scale) if on_host else x * scale).sub_(shift)

    def _on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation where the images are, sent there once."""
        assert self._statistics is not None
        dtype = x.dtype if x.is_floating_point() else torch.float32
        if (x.device, dtype) not in self._kept:
            mean, std = (part.to(x.device, dtype) for part in self._statistics)
            self._kept[x.device, dtype] = mean, std
        return self._kept[x.device, dtype]


def _is_unit(x: Tensor) -> bool:
    """Tell whether float32 values on the host are in [0, 1]; False: somebody else must look.

    The bits of 0 to 1 are the integers up to those of 1, and a sign or a NaN makes more: one
    maximum, by NumPy, is a third of the time of torch's two ends.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0:
        return False
    return bool(x.detach().numpy().view(np.uint32).max() <= _BITS_OF_ONE)
