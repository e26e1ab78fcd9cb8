"""Policies: a batch and its row keys in, the batch augmented row by row out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from augsubset.augment.keyed_random import RowKeys, uniforms
from augsubset.augment.ops import OPS, Op
from augsubset.errors import check_choice, check_int

__all__ = ["CropFlip", "RandomOps", "check_images", "plain_context"]

# Classes of policies that see the same rows draw independently of each other.
_RANDOM_OPS, _CROP_FLIP = 1, 2


def _stream(policy_class: int, stream: int) -> int:
    return 4 * check_int("stream", stream, 0) + policy_class


def check_images(x: Tensor, rows: RowKeys) -> None:
    """Refuse what is no batch of images with one key a row."""
    if x.ndim != 4 or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise ValueError(
            "images must be (B, C, H, W), uint8 or float in [0, 1], got "
            f"(shape {tuple(x.shape)}, dtype {x.dtype})."
        )
    if len(rows) != len(x):
        raise ValueError(f"rows must hold one key an image, got {len(rows)} for {len(x)}.")


@contextmanager
def plain_context(device: torch.device) -> Iterator[None]:
    """Keep gradients and the caller's autocast out of a policy."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class RandomOps:
    """Apply ``num_ops`` distinct operations to each row, drawn for it alone, in the order drawn.

    A row's result depends on (seed, epoch, index, copy) and its pixels: not on batch mates, order,
    batch size, workers or resume, on the same device type and torch version. No global generator
    is read. Values are rounded to 8 bits after each operation where the input is uint8.

    Args:
        ops: Names of :data:`~augsubset.augment.ops.OPS`, or a mapping of names to your own
            :class:`~augsubset.augment.ops.Op`; what those return is clamped to [0, 1].
        num_ops: Operations a row.
        stream: Two policies of one class that see the same rows draw the same numbers; give one
            of them another stream. The loader does so for its strong and base policy.

    Raises:
        ValueError: If an op is unknown, or there are fewer than ``num_ops``.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``, same dtype; C is 1 or 3. A float input
        must be in [0, 1]; the loader checks that on the host.

    Cost:
        O(pixels of the rows given) an op, rows of one op together; each distinct op of the batch
        and slot runs once. Rows are drawn on the CPU, and nothing is read back from the device.
    """

    def __init__(
        self,
        ops: Sequence[str] | Mapping[str, Op] = tuple(OPS),
        num_ops: int = 2,
        *,
        stream: int = 0,
    ) -> None:
        if isinstance(ops, Mapping):
            self.ops = dict(ops)
            for name, op in self.ops.items():
                if not isinstance(op, Op):
                    raise TypeError(f"ops must map names to Op, got {name!r}: {op!r}.")
        else:
            names = list(ops)
            for name in names:
                check_choice("ops", name, tuple(OPS))
            self.ops = {name: OPS[name] for name in names}
        self.num_ops = check_int("num_ops", num_ops, 1, len(self.ops))
        self.stream = _stream(_RANDOM_OPS, stream)

    @classmethod
    def paper(cls) -> RandomOps:
        """Return two of fourteen operations at random magnitudes, as the paper's section 5 says.

        The operations and ranges are those of AutoAugment and RandAugment (Cubuk et al., 2019,
        2020) without cutout, which is no operation here yet.
        """
        return cls()

    def __repr__(self) -> str:
        return f"RandomOps(ops={tuple(self.ops)}, num_ops={self.num_ops})"

    def __call__(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return the batch with every row augmented."""
        check_images(x, rows)
        if x.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {x.shape[1]}.")
        if len(x) == 0:
            return x
        count = len(self.ops)
        draws = uniforms(rows, count + 2 * self.num_ops, self.stream)
        # The order of random numbers is a random order of the ops; the sort is stable, so equal
        # numbers cannot make the order depend on the implementation.
        chosen = draws[:, :count].argsort(dim=1, stable=True)[:, : self.num_ops]
        with plain_context(x.device):
            quantised = x.dtype == torch.uint8
            out = x.float() / 255 if quantised else x.to(torch.float32, copy=True)
            for slot in range(self.num_ops):
                strength, sign = draws[:, count + 2 * slot], draws[:, count + 2 * slot + 1]
                for number, op in enumerate(self.ops.values()):
                    at = (chosen[:, slot] == number).nonzero().squeeze(1)
                    if len(at) == 0:
                        continue
                    magnitude = op.magnitudes(strength[at], sign[at]).to(x.device)
                    at = at.to(x.device)
                    images = out[at]
                    result = op.apply(images, magnitude)
                    if result.shape != images.shape:
                        raise ValueError(
                            f"ops must keep the shape {tuple(images.shape)}, got "
                            f"{tuple(result.shape)} from {list(self.ops)[number]!r}."
                        )
                    out[at] = result
                out.clamp_(0, 1)
                if quantised:
                    out = (out * 255).round() / 255
            return (out * 255).round().to(torch.uint8) if quantised else out.to(x.dtype)


class CropFlip:
    """Pad, crop back to the size at a random place, and mirror half of the rows: weak augmentation.

    A row's crop depends on its key alone, as in :class:`RandomOps`; pixels are moved, never
    computed, so any dtype comes out exact.

    Args:
        padding: Pixels added on each side.
        flip: Probability of mirroring left to right.
        padding_mode: What lies outside: ``"constant"`` zeros, or the image ``"reflect"``-ed.
        stream: As in :class:`RandomOps`.

    Raises:
        ValueError: If a value is out of range.

    Shape:
        ``(x (B, C, H, W), rows of B) -> (B, C, H, W)``.
    """

    def __init__(
        self,
        padding: int = 4,
        *,
        flip: float = 0.5,
        padding_mode: Literal["constant", "reflect"] = "constant",
        stream: int = 0,
    ) -> None:
        check_choice("padding_mode", padding_mode, ("constant", "reflect"))
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability, got flip={flip}.")
        self.padding = check_int("padding", padding, 0)
        self.flip = flip
        self.padding_mode = padding_mode
        self.stream = _stream(_CROP_FLIP, stream)

    def __repr__(self) -> str:
        return (
            f"CropFlip(padding={self.padding}, flip={self.flip}, "
            f"padding_mode={self.padding_mode!r})"
        )

    def __call__(self, x: Tensor, rows: RowKeys) -> Tensor:
        """Return the batch with every row cropped and perhaps mirrored."""
        check_images(x, rows)
        batch, _, height, width = x.shape
        if self.padding_mode == "reflect" and self.padding >= min(height, width):
            raise ValueError(
                f"padding must be less than the image's size {height} x {width} to reflect, "
                f"got padding={self.padding}."
            )
        draws = uniforms(rows, 3, self.stream)
        offsets = (draws[:, :2] * (2 * self.padding + 1)).long() - self.padding
        mirrored = draws[:, 2:] < self.flip
        source_y = offsets[:, :1] + torch.arange(height)
        columns = torch.arange(width).expand(batch, width)
        source_x = offsets[:, 1:] + torch.where(mirrored, columns.flip(1), columns)
        inside = (
            ((source_y >= 0) & (source_y < height))[:, :, None]
            & ((source_x >= 0) & (source_x < width))[:, None, :]
        )[:, None]
        with torch.no_grad():
            pixels = x[
                torch.arange(batch, device=x.device)[:, None, None],
                :,
                _reflected(source_y, height)[:, :, None].to(x.device),
                _reflected(source_x, width)[:, None, :].to(x.device),
            ].permute(0, 3, 1, 2)
            if self.padding_mode == "reflect":
                return pixels.contiguous()
            return pixels * inside.to(x.device)


def _reflected(source: Tensor, size: int) -> Tensor:
    """Fold coordinates outside 0..size-1 back inside without repeating the edge."""
    if size == 1:
        return torch.zeros_like(source)
    folded = source.abs() % (2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)
