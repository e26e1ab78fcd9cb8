"""What runs on the pixels: one kernel for several operations, each row by its own parameters.

A kernel takes images ``(m, C, H, W)``, contiguous, uint8 or float32 in [0, 1], and parameters
``(m, P)`` float32 on the same device, and returns new images of the same kind. Results are
torchvision's (``transforms.v2.functional``) on the same type. A row's bits depend on no other row:
elementwise operations, gathers, and sums of integers or in a fixed order; no convolution, whose
algorithm may follow the batch's shape, and no fused multiply-add, which only whole vectors get.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from augsubset.augment.random import normals

__all__ = [
    "autocontrast",
    "blend",
    "blur",
    "equalize",
    "erase",
    "identity",
    "noise",
    "posterize",
    "sharpen",
    "solarize",
    "taken",
    "warp",
    "warp_reflected",
]


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _top(x: Tensor) -> int:
    """Return the value of white."""
    return 1 if x.is_floating_point() else 255


def _stored(values: Tensor, like: Tensor) -> Tensor:
    """Cut values to the range, and for uint8 the fraction off, as torchvision does."""
    return values.clamp_(0, _top(like)).to(like.dtype)


def identity(x: Tensor, _: Tensor) -> Tensor:
    """Leave every image as it is."""
    return x


# Pixels moved.


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Return pixels by their positions in an image with a border of one black pixel around.

    Args:
        x: Images. ``(m, C, H, W)``
        index: Positions in ``H + 2`` rows of ``W + 2``. ``(m, H, W)`` int64
    """
    m, channels, height, width = x.shape
    bordered = F.pad(x, (1, 1, 1, 1)).flatten(2)
    at = index.reshape(m, 1, height * width).expand(-1, channels, -1)
    return bordered.gather(2, at).view_as(x)


def _sources(params: Tensor, height: int, width: int) -> Tensor:
    """Return the whole coordinates (x, y) where each pixel comes from; ``(m, 2, H, W)``."""
    # Positions are computed in floats, which float32 holds exactly up to 4094 x 4094 pixels.
    if (height + 2) * (width + 2) >= 1 << 24:
        params = params.double()
    at = torch.arange(max(height, width), dtype=params.dtype, device=params.device)
    along_x, along_y, shift = params[:, :6].reshape(-1, 2, 3, 1).unbind(2)
    rows = along_y * at[:height] + shift
    return ((along_x * at[:width])[:, :, None, :] + rows[:, :, :, None]).round_()


def _position(sources: Tensor) -> Tensor:
    """Return positions as :func:`taken` counts them, of coordinates from -1 to the size."""
    width = sources.shape[-1]
    position = torch.add(sources[:, 0], sources[:, 1], alpha=width + 2)  # whole numbers: exact
    return position.add_(width + 3).long()


def warp(x: Tensor, params: Tensor) -> Tensor:
    """Take each pixel from the nearest one to (a x + b y + c, d x + e y + f); black from outside.

    Nearest is what PIL, torchvision's policies and the published ones take.

    Args:
        x: Images.
        params: a, b, c, d, e, f.
    """
    height, width = x.shape[-2:]
    sources = _sources(params, height, width)
    sources[:, 0].clamp_(-1, width)
    sources[:, 1].clamp_(-1, height)
    return taken(x, _position(sources))


def warp_reflected(x: Tensor, params: Tensor) -> Tensor:
    """Do the same with the image mirrored around its edge pixels, up to its own size outside."""
    height, width = x.shape[-2:]
    sources = _sources(params, height, width)
    for axis, last in enumerate((width - 1, height - 1)):
        sources[:, axis].abs_().sub_(last).abs_().neg_().add_(last).clamp_(0, last)
    return taken(x, _position(sources))


def erase(x: Tensor, params: Tensor) -> Tensor:
    """Fill a rectangle.

    Args:
        x: Images.
        params: First row and column, row and column after the last, and the colour in [0, 1],
            one value for gray images and three else.
    """
    height, width = x.shape[-2:]
    ys = torch.arange(height, device=x.device)
    xs = torch.arange(width, device=x.device)
    rows = (ys >= params[:, 0:1]) & (ys < params[:, 2:3])
    columns = (xs >= params[:, 1:2]) & (xs < params[:, 3:4])
    colour = params[:, 4 : 4 + x.shape[1]]
    if colour.shape[1] < x.shape[1]:
        colour = params[:, 4:5]
    fill = (colour * _top(x)).to(x.dtype)[:, :, None, None]
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], fill, x)


# Values changed.


def _gray(values: Tensor, is_float: bool) -> Tensor:
    """Return luma of float values ``(m, 1, H, W)``, whole for uint8; of gray images themselves."""
    if values.shape[1] == 1:
        return values
    red, green, blue = (values[:, channel : channel + 1] for channel in range(3))
    gray = red * 0.2989
    gray += green * 0.587
    gray += blue * 0.114
    return gray if is_float else gray.floor_()


def blend(x: Tensor, params: Tensor) -> Tensor:
    """Add up the image, its gray version and its mean gray level, each times a factor.

    Args:
        x: Images of one or three channels.
        params: Factor of the image, of the gray version, of the mean. In a gray image the second
            is without effect and the image stays as it is, as in torchvision.
    """
    values, is_float = x.float(), x.is_floating_point()
    gray = _gray(values, is_float)
    # A float sum depends on its order; whole numbers add up the same in any.
    whole, unit = ((gray * (1 << 20)).round_(), 1 << 20) if is_float else (gray, 1)
    mean = whole.sum((1, 2, 3), dtype=torch.int64) / (unit * gray[0].numel())
    out = values * _column(params[:, 0])
    if x.shape[1] != 1:
        out += gray * _column(params[:, 1])
    out += _column(mean * params[:, 2])
    out = _stored(out, x)
    return torch.where(_column(params[:, 1] != 0), x, out) if x.shape[1] == 1 else out


def solarize(x: Tensor, params: Tensor) -> Tensor:
    """Invert values at or above a threshold in [0, 1]."""
    if x.is_floating_point():
        return torch.where(x >= _column(params[:, 0]), 1 - x, x)
    threshold = (params[:, 0] * 255).ceil_().to(torch.uint8)
    inverted = (x >= _column(threshold)).to(torch.uint8).neg_()  # all bits or none
    return inverted.bitwise_xor_(x)


def posterize(x: Tensor, params: Tensor) -> Tensor:
    """Keep the highest bits: of 8 in uint8; floats are cut to as many levels below 1."""
    bits = _column(params[:, 0])
    if not x.is_floating_point():
        return x & (256 - torch.exp2(8 - bits)).to(torch.uint8)
    levels = torch.exp2(bits)
    return torch.minimum((x * levels).floor_(), levels - 1) / levels


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range; a constant channel stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    scale = (high - low) * (1 / _top(x))
    return torch.where(high > low, _stored((x - low) / scale, x), x)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram of 256 levels, as PIL does; floats are cut to levels."""
    if x.is_floating_point():
        levels = (x * (256 - 1e-3)).to(torch.uint8)
        return equalize(levels, _).to(x.dtype) / 255
    m, channels, height, width = x.shape
    count = m * channels
    flat = x.view(count, height * width).long()
    first = torch.arange(0, count * 256, 256, device=x.device)[:, None]
    index = (flat + first).flatten()
    histogram = torch.zeros(count * 256, dtype=torch.int32, device=x.device)
    # In one dimension, where torch has a deterministic form on every device.
    histogram.scatter_add_(0, index, torch.ones_like(histogram[:1]).expand(index.shape[0]))
    histogram = histogram.view(count, 256)
    brightest = histogram.gather(1, flat.amax(1, keepdim=True))
    # Whole numbers divide exactly in float64, which vectors of a processor do and integers not.
    step = ((height * width - brightest).double() / 255).floor_()
    below = histogram.cumsum(1, dtype=torch.int32) - histogram
    table = ((below + (step / 2).floor_()) / step).clamp_(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.to(torch.uint8).view(-1).take(index).view_as(x)


def sharpen(x: Tensor, params: Tensor) -> Tensor:
    """Blend with the smoothed image: 0 gives that, 1 the image, 2 sharper. Borders stay."""
    height, width = x.shape[-2:]
    if height <= 2 or width <= 2:
        return x
    values = x.to(torch.float32, copy=True)
    columns = values[..., :-2, :] + values[..., 1:-1, :]
    columns += values[..., 2:, :]
    smooth = columns[..., :-2] + columns[..., 1:-1]
    smooth += columns[..., 2:]
    inner = values[..., 1:-1, 1:-1]
    smooth += inner * 4
    smooth /= 13
    if not x.is_floating_point():
        smooth.round_()
    inner += (smooth - inner) * _column(1 - params[:, 0])
    return _stored(values, x)


def blur(x: Tensor, params: Tensor) -> Tensor:
    """Smooth along rows and columns with symmetric weights; edges are reflected.

    Args:
        x: Images of at least as many rows and columns as there are weights.
        params: Weight of the middle, of its neighbours, and of theirs where an image is large
            enough.
    """
    values = x.float()
    radius = min(2, x.shape[2] - 1, x.shape[3] - 1)
    padded = F.pad(values, (radius, radius, radius, radius), mode="reflect")
    for dim in (-1, -2):
        size = padded.shape[dim] - 2 * radius
        total = padded.narrow(dim, radius, size) * _column(params[:, 0])
        for away in range(1, radius + 1):
            both = padded.narrow(dim, radius - away, size) + padded.narrow(dim, radius + away, size)
            total += both * _column(params[:, away])
        padded = total
    return padded if x.is_floating_point() else padded.round_().to(x.dtype)


def noise(x: Tensor, params: Tensor) -> Tensor:
    """Add normal noise to every value.

    Args:
        x: Images.
        params: Standard deviation in [0, 1], and two uniform numbers that decide the noise.
    """
    drawn = normals(params[:, 1:3], x[0].numel()).view_as(x) * _column(params[:, 0] * _top(x))
    if x.is_floating_point():
        return drawn.add_(x).clamp_(0, 1)
    return (drawn.to(torch.int16) + x).clamp_(0, 255).to(torch.uint8)
