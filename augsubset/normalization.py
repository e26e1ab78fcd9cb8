"""What pixel values mean: checked on the CPU, in [0, 1] while augmented, normalised last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from augsubset.utils.torch_utils import check_range, is_unit

__all__ = ["MeanStd", "Normalization"]

MeanStd = tuple[Sequence[float], Sequence[float]]


class Normalization:
    """The normalisation that batches need, or already went through.

    Args:
        normalize: ``(mean, std)``, one value per channel, applied last; values arrive in [0, 1].
        denormalize: ``(mean, std)`` that the dataset applied: undone first, applied again last.
        channels_last: Whether the model gets its images in that memory format.
        dtype: Of the images that the model gets; ``None``: float32, or floats as they are.

    Attributes:
        arrives_normalised: Whether the dataset normalises, so that images must be denormalised.
        channels_last, dtype: As given.

    Raises:
        ValueError: If both are given, a mean is outside [0, 1], or a std outside (0, 1].
    """

    def __init__(
        self,
        normalize: MeanStd | None,
        denormalize: MeanStd | None,
        channels_last: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if normalize is not None and denormalize is not None:
            raise ValueError(
                "normalize and denormalize must not both be given: either the dataset normalises "
                "already (denormalize) or it does not (normalize)."
            )
        self.arrives_normalised = denormalize is not None
        self.channels_last, self.dtype = channels_last, dtype
        self._kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._statistics: tuple[Tensor, Tensor] | None = None
        statistics = normalize if denormalize is None else denormalize
        if statistics is not None:
            name = "normalize" if denormalize is None else "denormalize"
            mean, std = _read_statistics(name, statistics)
            self._statistics = mean[:, None, None], std[:, None, None]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the copies on devices, which no worker needs."""
        return {**self.__dict__, "_kept": {}}

    def check(self, x: Any) -> None:
        """Raise, before the copy to the device, on values that would be clamped silently there.

        Raises:
            ValueError: If values are outside [0, 1] (once denormalised) or not finite, or dtype or
                channels do not fit the statistics.

        Cost:
            A reduction over a float32 batch, two where the dataset normalises; nothing for uint8.
        """
        if self._statistics is None and not (isinstance(x, Tensor) and x.ndim == 4):
            return  # token ids, columns of a table, a dict
        if self._statistics is not None:
            channels = len(self._statistics[0])
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"images must be a tensor to be normalised, got {type(x).__name__}."
                )
            if x.ndim != 4 or x.shape[1] != channels:
                raise ValueError(
                    f"images must be (B, C, H, W) with C = {channels}, the number of means, got "
                    f"shape {tuple(x.shape)}. Pass one mean and one std per channel."
                )
        elif x.shape[1] not in (1, 3) and x.shape[2] > 3 and x.shape[3] in (1, 3):
            zeros = f"([0] * {x.shape[1]}, [1] * {x.shape[1]})"
            raise ValueError(
                f"images must be (B, C, H, W), got shape {tuple(x.shape)}, which looks like "
                "channels last. Permute the dataset's images with permute(2, 0, 1); if channels "
                f"are first, pass normalize={zeros}, which changes nothing."
            )
        if x.dtype == torch.uint8 and not self.arrives_normalised:
            return
        if not x.is_floating_point():
            raise ValueError(
                f"images must be {'' if self.arrives_normalised else 'uint8 or '}float, got "
                f"dtype {x.dtype}."
            )
        if not self.arrives_normalised:
            if not is_unit(x):
                low, high = x.aminmax()
                check_range(
                    "images must be in [0, 1]",
                    low,
                    high,
                    "If the dataset normalises, pass denormalize=(mean, std); else return uint8, "
                    "divide by 255, or end the dataset's transforms in clamp(0, 1).",
                )
            return
        assert self._statistics is not None
        mean, std = self._statistics
        check_range(
            "images must be in [0, 1] once denormalised",
            (x.amin((0, 2, 3))[:, None, None] * std + mean).min(),
            (x.amax((0, 2, 3))[:, None, None] * std + mean).max(),
            "Pass the mean and std that the dataset used as denormalize, and make sure that no "
            "transform after its Normalize leaves the range.",
        )

    def check_augmented(self, name: str, x: Any) -> None:
        """Raise if a policy's images left [0, 1], where they are normalised later."""
        if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and x.numel():
            low, high = x.aminmax()
            check_range(
                f"{name} must return images in [0, 1]",
                low,
                high,
                "Normalise by normalize=(mean, std), not in a policy (after denormalize, the same "
                "is applied again); otherwise end the policy in clamp(0, 1).",
            )

    def to_unit(self, x: Any) -> Any:
        """Return images as policies take them: uint8, or float in [0, 1]."""
        if self.arrives_normalised:
            mean, std = self.get_factors(x.device, x.dtype).unbind()
            x = x * std + mean
        elif not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            return x
        return x.clamp(0, 1)  # checked before: this removes rounding errors only

    def to_model(self, x: Any) -> Any:
        """Return images as the model takes them: float, normalised if there are statistics.

        uint8 is divided by 255. Other inputs than ``(B, C, H, W)`` or uint8 tensors are returned
        unchanged.

        Cost:
            Two passes: for uint8 the cast and both divisions are one. On the CPU the cast is a pass
            of its own, which is still faster than torch's product of two dtypes.
        """
        if not isinstance(x, Tensor) or (x.ndim != 4 and x.dtype != torch.uint8):
            return x
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # before the cast, on bytes
        x = self._normalize(x)
        return x if self.dtype is None else x.to(self.dtype)

    def _normalize(self, x: Tensor) -> Tensor:
        is_on_cpu = x.device.type == "cpu"
        if x.is_floating_point():
            if self._statistics is None:
                return x
            mean, std = self.get_factors(x.device, x.dtype).unbind()
            return (x - mean).div_(std)
        factors = self.get_factors(x.device, x.dtype)
        if self._statistics is None:
            # By a tensor on the device: CUDA multiplies by the reciprocal of a number.
            return x.to(torch.float32).div_(255) if is_on_cpu else torch.div(x, factors)
        scale, shift = factors.unbind()
        return (x.to(torch.float32).mul_(scale) if is_on_cpu else x * scale).sub_(shift)

    def get_factors(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return what images of a dtype are normalised with, on their device, copied there once.

        Of floats mean and standard deviation; of bytes a scale and what is subtracted then, or
        the 255 that divides them if there are no statistics.

        Shape:
            returns ``(2, C, 1, 1)``, or a scalar without statistics.
        """
        if (device, dtype) not in self._kept:
            factors = torch.tensor(255.0)
            if self._statistics is not None:
                kind = dtype if dtype.is_floating_point else torch.float32
                mean, std = (part.to(kind) for part in self._statistics)
                parts = (mean, std) if dtype.is_floating_point else (1 / (255 * std), mean / std)
                factors = torch.stack(parts)
            self._kept[device, dtype] = factors.to(device)
        return self._kept[device, dtype]


def _read_statistics(name: str, statistics: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, or raise if they are not a valid pair."""
    rule = f"{name} must be (mean, std): one mean in [0, 1] and one std in (0, 1] per channel"
    parts = list(statistics) if isinstance(statistics, Iterable) else []
    if len(parts) != 2:
        raise ValueError(f"{rule}, got {name}={statistics!r}.")
    mean, std = (torch.as_tensor(part, dtype=torch.float64).view(-1) for part in parts)
    are_pixels = (mean >= 0).all() and (mean <= 1).all() and (std > 0).all() and (std <= 1).all()
    if len(mean) != len(std) or not are_pixels:
        is_large = bool((torch.cat([mean, std]) > 1).any())
        hint = " Divide statistics of values from 0 to 255 by 255." if is_large else ""
        raise ValueError(f"{rule}, got mean={mean.tolist()}, std={std.tolist()}.{hint}")
    return mean, std
