"""Torch kernels of the image operations, with per-row parameters, for any device.

A kernel takes contiguous images ``(m, C, H, W)``, uint8 or float32 in [0, 1], and parameters
``(m, P)`` float32 on the same device, and returns new images of the same dtype. Results follow
torchvision (``transforms.v2.functional``) for that dtype. Several operations share one kernel.

A row's result must be bit-identical in any batch. So kernels use only elementwise operations,
gathers, integer sums and sums in a fixed order: no convolutions, whose algorithm may depend on the
batch shape, and no fused multiply-add, which a vectorised loop may use for all but the remainder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from augsubset.augment.random import draw_normals

__all__ = ["add_noise", "autocontrast", "blend", "blur", "divide", "equalize", "erase", "identity"]
__all__ += ["posterize", "sharpen", "solarize", "take_pixels", "warp", "warp_reflected"]


def _expand(values: Tensor) -> Tensor:
    """Return per-row values ``(m,)`` in a shape that broadcasts against images."""
    return values[:, None, None, None]


def _get_white(x: Tensor) -> int:
    """Return the largest pixel value of the dtype."""
    return 1 if x.is_floating_point() else 255


def _clamp_to(values: Tensor, like: Tensor) -> Tensor:
    """Clamp in place to the range of a dtype and cast; uint8 truncates, as torchvision does."""
    return values.clamp_(0, _get_white(like)).to(like.dtype)


def divide(x: Tensor, number: float) -> Tensor:
    """Return quotients as the CPU has them; CUDA multiplies by the reciprocal of a number."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return torch.div(x, torch.full((), number, dtype=dtype, device=x.device))


def identity(x: Tensor, _: Tensor) -> Tensor:
    """Return the images unchanged."""
    return x


# Geometry: pixels are moved, never interpolated.


def take_pixels(x: Tensor, index: Tensor) -> Tensor:
    """Gather pixels from each image padded with a one-pixel black border.

    The border lets an out-of-range source be an index like any other, without a mask.

    Args:
        x: Images. ``(m, C, H, W)``
        index: Flat source indices into the ``(H + 2, W + 2)`` padded image. ``(m, H, W)`` int64
    """
    m, channels, height, width = x.shape
    bordered = F.pad(x, (1, 1, 1, 1)).flatten(2)
    index = index.reshape(m, 1, height * width).expand(-1, channels, -1)
    return bordered.gather(2, index).view_as(x)


def _compute_sources(params: Tensor, height: int, width: int) -> Tensor:
    """Return the rounded source coordinates (x, y) of each pixel; ``(m, 2, H, W)``."""
    # _to_index computes flat indices in this dtype; float32 is exact for integers up to 2**24.
    if (height + 2) * (width + 2) >= 1 << 24:
        params = params.double()
    steps = torch.arange(max(height, width), dtype=params.dtype, device=params.device)
    along_x, along_y, shift = params[:, :6].reshape(-1, 2, 3, 1).unbind(2)
    rows = along_y * steps[:height] + shift
    # Halves are rounded to even, as np.rint does in kernels_cpu.
    return ((along_x * steps[:width])[:, :, None, :] + rows[:, :, :, None]).round_()


def _to_index(sources: Tensor) -> Tensor:
    """Return indices for :func:`take_pixels` from coordinates between -1 and the size."""
    width = sources.shape[-1]
    index = torch.add(sources[:, 0], sources[:, 1], alpha=width + 2)  # exact: integers
    return index.add_(width + 3).long()  # skips the first border row and column


def warp(x: Tensor, params: Tensor) -> Tensor:
    """Affine warp: pixel (x, y) is the one nearest to (a x + b y + c, d x + e y + f), else black.

    Nearest-neighbour sampling is the default of PIL, torchvision's policies and published code.

    Args:
        x: Images.
        params: a, b, c, d, e, f.
    """
    height, width = x.shape[-2:]
    sources = _compute_sources(params, height, width)
    sources[:, 0].clamp_(-1, width)
    sources[:, 1].clamp_(-1, height)
    return take_pixels(x, _to_index(sources))


def warp_reflected(x: Tensor, params: Tensor) -> Tensor:
    """Affine warp like :func:`warp`, of the image reflected about its edge pixels.

    Exact up to one image size outside, clamped to the first row or column beyond.
    """
    height, width = x.shape[-2:]
    sources = _compute_sources(params, height, width)
    for axis, last in enumerate((width - 1, height - 1)):
        sources[:, axis].abs_().sub_(last).abs_().neg_().add_(last).clamp_(0, last)
    return take_pixels(x, _to_index(sources))


def erase(x: Tensor, params: Tensor) -> Tensor:
    """Fill a rectangle.

    Args:
        x: Images.
        params: Top, left, bottom (exclusive), right (exclusive), then the colour in [0, 1]. If it
            has fewer values than ``x`` has channels, the first fills them all.
    """
    height, width = x.shape[-2:]
    ys = torch.arange(height, device=x.device)
    xs = torch.arange(width, device=x.device)
    rows = (ys >= params[:, 0:1]) & (ys < params[:, 2:3])
    columns = (xs >= params[:, 1:2]) & (xs < params[:, 3:4])
    colour = params[:, 4 : 4 + x.shape[1]]
    if colour.shape[1] < x.shape[1]:
        colour = params[:, 4:5]
    fill = (colour * _get_white(x)).to(x.dtype)[:, :, None, None]
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], fill, x)


# Pixel values.


def _to_gray(values: Tensor, is_float: bool) -> Tensor:
    """Return the luma ``(m, 1, H, W)`` of float values, truncated to integers for uint8 images."""
    if values.shape[1] == 1:
        return values
    red, green, blue = (values[:, channel : channel + 1] for channel in range(3))
    gray = red * 0.2989
    gray += green * 0.587
    gray += blue * 0.114
    return gray if is_float else gray.floor_()


def blend(x: Tensor, params: Tensor) -> Tensor:
    """Weighted sum of the image, its gray version and its mean gray level.

    Brightness, contrast and saturation are special cases.

    Args:
        x: Images with one or three channels.
        params: Weights of image, gray version and mean. A one-channel image with a nonzero second
            weight is returned unchanged, as in torchvision.
    """
    values, is_float = x.float(), x.is_floating_point()
    gray = _to_gray(values, is_float)
    # The mean in fixed point, 2**-20 per unit for floats: an integer sum is the same in any order.
    fixed, unit = ((gray * (1 << 20)).round_(), 1 << 20) if is_float else (gray, 1)
    mean = divide(fixed.sum((1, 2, 3), dtype=torch.int64), unit * gray[0].numel())
    out = values * _expand(params[:, 0])
    if x.shape[1] != 1:
        out += gray * _expand(params[:, 1])
    out += _expand(mean * params[:, 2])
    out = _clamp_to(out, x)
    return torch.where(_expand(params[:, 1] != 0), x, out) if x.shape[1] == 1 else out


def solarize(x: Tensor, params: Tensor) -> Tensor:
    """Invert values at or above a threshold in [0, 1]."""
    if x.is_floating_point():
        return torch.where(x >= _expand(params[:, 0]), 1 - x, x)
    threshold = (params[:, 0] * 255).ceil_().to(torch.uint8)
    mask = (x >= _expand(threshold)).to(torch.uint8).neg_()  # 255 or 0
    return mask.bitwise_xor_(x)  # 255 - x is x with all bits flipped


def posterize(x: Tensor, params: Tensor) -> Tensor:
    """Keep the highest bits of uint8; floats are floored to ``2**bits`` levels below 1."""
    bits = _expand(params[:, 0])
    if not x.is_floating_point():
        return x & (256 - torch.exp2(8 - bits)).to(torch.uint8)
    levels = torch.exp2(bits)
    return torch.minimum((x * levels).floor_(), levels - 1) / levels


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range; a constant channel is left unchanged."""
    # -0 and +0 compare equal, so either could be the minimum; adding 0 makes it +0.
    low, high = x.amin((2, 3), keepdim=True) + 0, x.amax((2, 3), keepdim=True)
    scale = (high - low) * (1 / _get_white(x))
    return torch.where(high > low, _clamp_to((x - low) / scale, x), x)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Equalize each channel's 256-level histogram, as PIL does; floats are quantised first."""
    if x.is_floating_point():
        levels = (x * (256 - 1e-3)).to(torch.uint8)  # 1.0 becomes 255, not 256
        return divide(equalize(levels, _).to(x.dtype), 255)
    m, channels, height, width = x.shape
    count = m * channels
    flat = x.view(count, height * width).long()
    first = torch.arange(0, count * 256, 256, device=x.device)[:, None]
    index = (flat + first).flatten()
    histogram = torch.zeros(count * 256, dtype=torch.int32, device=x.device)
    # One flat scatter, as torch has a deterministic version in one dimension only.
    histogram.scatter_add_(0, index, torch.ones_like(histogram[:1]).expand(index.shape[0]))
    histogram = histogram.view(count, 256)
    brightest = histogram.gather(1, flat.amax(1, keepdim=True))
    # As in PIL, the brightest level does not count towards the step. Integer division is done in
    # float64, which is exact here and has SIMD instructions, unlike int64.
    step = divide((height * width - brightest).double(), 255).floor_()
    below = histogram.cumsum(1, dtype=torch.int32) - histogram
    table = ((below + (step / 2).floor_()) / step).clamp_(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.to(torch.uint8).view(-1).take(index).view_as(x)


def sharpen(x: Tensor, params: Tensor) -> Tensor:
    """Blend with a smoothed image: 0 is smooth, 1 the original, 2 sharper. Borders are kept.

    The filter is a 3 x 3 box with weight 5 at the centre, over 13: separable box sums, plus 4 times
    the centre.
    """
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
    smooth = divide(smooth, 13)
    if not x.is_floating_point():
        smooth.round_()
    inner += (smooth - inner) * _expand(1 - params[:, 0])
    return _clamp_to(values, x)


def blur(x: Tensor, params: Tensor) -> Tensor:
    """Separable symmetric blur, up to 5 x 5, with reflected edges.

    Args:
        x: Images at least as high and as wide as there are weights.
        params: Weights from the centre outwards: three, or fewer for images below 3 pixels.
    """
    values = x.float()
    radius = min(2, x.shape[2] - 1, x.shape[3] - 1)
    padded = F.pad(values, (radius, radius, radius, radius), mode="reflect")
    for dim in (-1, -2):
        size = padded.shape[dim] - 2 * radius
        total = padded.narrow(dim, radius, size) * _expand(params[:, 0])
        for step in range(1, radius + 1):
            both = padded.narrow(dim, radius - step, size) + padded.narrow(dim, radius + step, size)
            total += both * _expand(params[:, step])
        padded = total
    return padded if x.is_floating_point() else padded.round_().to(x.dtype)


def add_noise(x: Tensor, params: Tensor) -> Tensor:
    """Add normal noise to every value.

    Args:
        x: Images.
        params: Standard deviation in [0, 1], and two uniform numbers that seed the noise.
    """
    sigma = _expand(params[:, 0] * _get_white(x))
    drawn = draw_normals(params[:, 1:3], x[0].numel()).view_as(x) * sigma
    if x.is_floating_point():
        return drawn.add_(x).clamp_(0, 1)
    return (drawn.to(torch.int16) + x).clamp_(0, 255).to(torch.uint8)
