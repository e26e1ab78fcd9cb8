"""Operations against those of torchvision on the same pixels."""

import math
from functools import cache, partial

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import stats

from augsubset import Op, RandomOps
from augsubset.augment import OPS, AugMix
from augsubset.augment.params import PrepareContext
from augsubset.augment.random import draw_normals

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 40), (1, 5, 3), (1, 2, 2)]


def images(shape, count=4):
    generator = torch.Generator().manual_seed(sum(shape))
    noise = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    noise[1] = noise[1] // 4 + 60  # a narrow range, for autocontrast and equalize
    noise[2, :, : shape[1] // 2] = 200  # flat areas
    noise[3] = 128  # constant
    return noise


def shear(x, along_x, along_y):
    angles = [math.degrees(math.atan(s)) for s in (along_x, along_y)]
    return tv.affine(x, 0.0, [0, 0], 1.0, angles, center=[0, 0])


def shift(x, along_x, along_y):
    return tv.affine(x, 0.0, [int(along_x), int(along_y)], 1.0, [0.0, 0.0])


def solarized(x, threshold):
    return tv.solarize(x, threshold if x.is_floating_point() else threshold * 255)


# The two spare uniform numbers: they decide the place of a crop or cutout.
SPARES = [(0.0, 0.0), (0.999, 0.999), (0.3, 0.8), (0.62, 0.17)]


def padded_crop(x, margin, spare, mode):
    padded = tv.pad(x, int(margin), padding_mode=mode)
    top, left = (int(each * (2 * margin + 1)) for each in spare)
    return tv.crop(padded, top, left, *x.shape[-2:])


def erased(x, share, spare):
    side = round(share * min(x.shape[-2:]))
    ends = []
    for each, size in zip(spare, x.shape[-2:], strict=True):
        first = math.floor(each * size) - side // 2
        ends.append((max(first, 0), min(first + side, size)))
    (top, bottom), (left, right) = ends
    gray = torch.tensor(0.5 if x.is_floating_point() else 127).to(x.dtype)
    return tv.erase(x, top, left, bottom - top, right - left, gray)


def noised(x, sigma, spare, monkeypatch):
    """Return torchvision's result with our normal numbers; it supports floats only."""
    seeds = torch.tensor([spare] * len(x))
    drawn = draw_normals(seeds, x[0].numel()).view_as(x)
    monkeypatch.setattr(torch, "randn_like", lambda _: drawn)
    return tv.gaussian_noise(x, 0.0, sigma)


PLACED = {
    "crop": partial(padded_crop, mode="constant"),
    "crop_reflect": partial(padded_crop, mode="reflect"),
    "cutout": erased,
}


@cache
def list_ranges(name):
    """Return an operation with its default range and with that of every published policy."""
    found = {OPS[name]}
    for policy in (
        *(RandomOps.paper(), RandomOps.wu2020(), RandomOps.randaugment(), RandomOps.trivial()),
        *(RandomOps.autoaugment(data) for data in ("cifar10", "imagenet", "svhn")),
        *(AugMix(), RandomOps.noise(), RandomOps.cutout()),
    ):
        found |= {op for label, op in policy.ops.items() if label.split()[0] == name}
    return found


def list_magnitudes(name, count=9):
    """Return magnitudes over all ranges of an operation."""
    magnitudes = set()
    for op in list_ranges(name):
        ends = [2 * op.low - op.high if op.signed else op.low, op.high]
        drawn = np.linspace(*ends, count)
        drawn = np.round(drawn) if op.integral else drawn
        magnitudes |= {float(np.float32(value)) + 0.0 for value in drawn}  # no negative zero
    return sorted(magnitudes)


def test_the_ranges_are_those_of_every_policy():
    assert {135.0, -135.0, 30.0} <= set(list_magnitudes("rotate"))
    assert {0.99, -0.99} <= {round(m, 6) for m in list_magnitudes("shear_y")}
    assert {32.0, -32.0} <= set(list_magnitudes("translate_x_pixels"))
    assert {1.99, 0.01} <= {round(m, 6) for m in list_magnitudes("contrast")}
    assert {0.0, 1.0, 2.0, 3.0, 8.0} <= set(list_magnitudes("posterize"))


# torchvision's functions of (image, magnitude).
WARPS = {
    "rotate": tv.rotate,
    "shear_x": lambda x, m: shear(x, m, 0),
    "shear_y": lambda x, m: shear(x, 0, m),
    "translate_x": lambda x, m: shift(x, np.float32(m) * x.shape[-1], 0),
    "translate_y": lambda x, m: shift(x, 0, np.float32(m) * x.shape[-2]),
    "translate_x_pixels": lambda x, m: shift(x, m, 0),
    "translate_y_pixels": lambda x, m: shift(x, 0, m),
    "horizontal_flip": lambda x, _: tv.horizontal_flip(x),
    "vertical_flip": lambda x, _: tv.vertical_flip(x),
}
VALUES = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "color": tv.adjust_saturation,
    "sharpness": tv.adjust_sharpness,
    "posterize": lambda x, m: tv.posterize(x, int(m)),
    "solarize": solarized,
    "autocontrast": lambda x, _: tv.autocontrast(x),
    "equalize": lambda x, _: tv.equalize(x),
    "invert": lambda x, _: tv.invert(x),
    "identity": lambda x, _: x,
    "gaussian_blur": lambda x, m: tv.gaussian_blur(x, [5, 5], [m, m]),
}
REFERENCES = {**WARPS, **VALUES}


def fits(name, shape):
    # torchvision's blur needs two pixels to reflect, and a rotation of tiny images by 135 degrees
    # puts every pixel halfway between two.
    return min(shape[1:]) > {"gaussian_blur": 4, "rotate": 2}.get(name, 0)


def test_every_op_has_a_reference():
    assert {*REFERENCES, *PLACED, "gaussian_noise"} == set(OPS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_ops_agree_with_torchvision_on_uint8(name, shape):
    if not fits(name, shape):
        return
    pixels = images(shape)
    for magnitude in list_magnitudes(name):
        expected = torch.stack([REFERENCES[name](image, magnitude) for image in pixels])
        found = OPS[name](pixels, magnitude)
        assert found.dtype == torch.uint8
        difference = (found.int() - expected.int()).abs()
        assert float((difference <= 1).float().mean()) >= 0.995
        # Without sums of products the result is exact; warps differ at pixels halfway between two.
        if name in ("posterize", "invert", "equalize", "autocontrast", "solarize", "identity"):
            assert torch.equal(found, expected)
        if name in WARPS:
            assert float(difference.float().mean()) < 1


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("channels", [1, 3])
def test_ops_agree_with_torchvision_on_floats(name, channels):
    x = images((channels, 32, 32)).float() / 255
    for magnitude in list_magnitudes(name):
        expected = torch.stack([REFERENCES[name](image, magnitude) for image in x])
        found = OPS[name](x, magnitude)
        if name in WARPS:
            assert float((found - expected).abs().mean()) < 1 / 255
        else:
            assert float((found - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("spare", SPARES, ids=str)
@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("unit", [False, True])
def test_ops_with_a_random_place_agree_with_torchvision(name, unit, spare):
    for shape in ((3, 32, 32), (1, 28, 28), (3, 17, 40)):
        pixels = images(shape)
        pixels = pixels.float() / 255 if unit else pixels
        for magnitude in list_magnitudes(name):
            expected = PLACED[name](pixels, magnitude, spare)
            assert torch.equal(OPS[name](pixels, magnitude, spare), expected)


def test_noise_agrees_with_torchvision_for_the_same_normals(monkeypatch):
    x = images((3, 17, 40)).float() / 255
    for sigma in list_magnitudes("gaussian_noise"):
        expected = noised(x, sigma, (0.3, 0.6), monkeypatch)
        torch.testing.assert_close(OPS["gaussian_noise"](x, sigma, (0.3, 0.6)), expected)
        bytes_ = OPS["gaussian_noise"]((x * 255).round().to(torch.uint8), sigma, (0.3, 0.6))
        assert float((bytes_ - expected * 255).abs().max()) <= 1.001  # ours is truncated


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("unit", [False, True])
def test_ops_agree_with_torchvision_on_real_images(name, unit, cifar10, monkeypatch):
    pixels = cifar10.x_train[:200]
    x = pixels.float() / 255 if unit else pixels
    for number, magnitude in enumerate(list_magnitudes(name, 21)):
        spare = SPARES[number % len(SPARES)]
        if name in PLACED:
            expected = PLACED[name](x, magnitude, spare)
        elif name == "gaussian_noise":
            expected = noised(pixels.float() / 255, magnitude, spare, monkeypatch)
            expected = expected if unit else (expected * 255).round()
        else:
            expected = REFERENCES[name](x, magnitude)
        difference = (OPS[name](x, magnitude, spare).float() - expected.float()).abs()
        difference = difference * 255 if unit else difference
        assert float((difference <= 1.001).float().mean()) >= 0.995
        assert float(difference.mean()) < (1 if name in WARPS else 0.51)


def test_a_wrong_reference_is_detected():
    """Control: a neighbouring magnitude fails the same bounds."""
    pixels = images((3, 32, 32))[:3]
    for name, other in (("brightness", 1.7), ("contrast", 0.5), ("rotate", 12.0), ("color", 0.4)):
        expected = REFERENCES[name](pixels, other)
        difference = (OPS[name](pixels, other * 1.1).int() - expected.int()).abs()
        assert float((difference <= 1).float().mean()) < 0.995


def test_each_row_has_its_own_magnitude():
    pixels = images((3, 32, 32))
    magnitudes = torch.tensor([-30.0, 0, 7, 30])
    together = OPS["rotate"](pixels, magnitudes)
    for row in range(4):
        alone = OPS["rotate"](pixels[row : row + 1], float(magnitudes[row]))
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("name", ["crop", "crop_reflect"])
def test_crops_are_windows_of_the_padded_image(name):
    x = torch.arange(1, 36, dtype=torch.uint8).view(1, 1, 5, 7)
    mode = "reflect" if name == "crop_reflect" else "constant"
    padded = torch.nn.functional.pad(x.float(), (2, 2, 2, 2), mode=mode)[0, 0].to(torch.uint8)
    for top in range(5):
        for left in range(5):
            spare = ((top + 0.5) / 5, (left + 0.5) / 5)
            found = OPS[name](x, 2.0, spare)[0, 0]
            assert torch.equal(found, padded[top : top + 5, left : left + 7])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_erases_a_square_clipped_at_the_edges(dtype):
    x = torch.zeros(1, 3, 10, 20, dtype=dtype)
    gray = 127 if dtype == torch.uint8 else 0.5
    middle = OPS["cutout"](x, 0.4, (0.5, 0.5))[0, 0]
    assert middle[3:7, 8:12].eq(gray).all()
    assert int((middle == gray).sum()) == 16
    corner = OPS["cutout"](x, 0.4, (0.0, 0.0))[0, 0]
    assert corner[:2, :2].eq(gray).all()
    assert int((corner == gray).sum()) == 4
    assert torch.equal(OPS["cutout"](x, 0.0), x)


def test_noise_is_normal_with_the_requested_standard_deviation():
    x = torch.full((2, 3, 100, 100), 0.5)
    noisy = OPS["gaussian_noise"](x, torch.tensor([0.02, 0.1]), (0.25, 0.75)) - 0.5
    assert noisy[0].std().item() == pytest.approx(0.02, rel=0.02)
    assert noisy[1].std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noisy[1].mean().item()) < 0.002
    assert stats.kstest(noisy[0].flatten().numpy() / 0.02, "norm").pvalue > 0.01
    bytes_ = OPS["gaussian_noise"](torch.full_like(x, 128, dtype=torch.uint8), 0.1, (0.25, 0.75))
    assert bytes_.float().std().item() == pytest.approx(25.5, rel=0.03)
    other = OPS["gaussian_noise"](x, 0.02, (0.25, 0.5)) - 0.5
    assert abs(float((other[0] * noisy[0]).mean())) < 0.02**2 * 0.03


def test_color_leaves_gray_images_unchanged():
    for x in (images((1, 8, 8)), images((1, 8, 8)).float() / 255):
        assert torch.equal(OPS["color"](x, 0.1), x)
        assert torch.equal(OPS["color"](x, 1.7), x)


def test_float_posterize_follows_torchvision_not_uint8():
    x = torch.tensor([0.0, 0.3, 0.99, 1.0]).view(1, 1, 2, 2)
    assert OPS["posterize"](x, 1.0).flatten().tolist() == [0, 0, 0.5, 0.5]


# Ranges.


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda: Op("flip"), TypeError, "apply must be callable, got str"),
        (lambda: OPS["posterize"].between(9, 4), ValueError, "between 0 and 8, got 9 to 4"),
        (lambda: OPS["brightness"].between(1, 2.5), ValueError, r"between 0 and inf, got \+-1 to"),
        (lambda: OPS["solarize"].between(1.2, 0), ValueError, "between 0 and 1, got 1.2 to 0"),
        (lambda: OPS["cutout"].between(0, 1.5), ValueError, "between 0 and 1, got 0 to 1.5"),
        (lambda: OPS["gaussian_noise"].between(-1, 0), ValueError, "between 0 and inf, got -1"),
        (lambda: OPS["invert"].between(0, 1), ValueError, "between 0 and 0"),
        (lambda: OPS["rotate"].between(0, float("inf")), ValueError, "magnitudes must be between"),
        (lambda: OPS["rotate"].between("a", 1), TypeError, "low must be a number, got str 'a'"),
    ],
)
def test_undefined_magnitudes_are_refused(call, error, reason):
    with pytest.raises(error, match=reason):
        call()


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda x: OPS["posterize"](x, 20.0), ValueError, "between 0 and 8, got 20"),
        (lambda x: OPS["rotate"](x, float("inf")), ValueError, "magnitudes must be between"),
        (lambda x: OPS["rotate"](x, torch.zeros(3)), ValueError, r"got shape \(3,\) for 2 images"),
        (lambda x: OPS["rotate"](x[0], 5.0), ValueError, r"images must be \(B, C, H, W\)"),
        (lambda x: OPS["invert"](x.int(), 0.0), ValueError, r"images must be \(B, C, H, W\)"),
        (lambda x: OPS["invert"](x.float(), 0.0), ValueError, r"images must be in \[0, 1\]"),
        (lambda x: OPS["color"](x.repeat(1, 2, 1, 1), 1.5), ValueError, "1 or 3 channels"),
    ],
)
def test_an_op_called_directly_refuses_what_a_policy_would(call, error, reason):
    with pytest.raises(error, match=reason):
        call(images((3, 8, 8))[:2])


def test_a_users_op_may_work_in_place():
    x = torch.rand(2, 3, 4, 4)
    before = x.clone()
    assert float(Op(lambda x, _: x.zero_())(x, 0.0).sum()) == 0
    assert torch.equal(x, before)


def test_between_changes_only_the_range():
    wide = OPS["rotate"].between(0, 135)
    assert (wide.low, wide.high, wide.signed) == (0, 135, True)
    assert wide.apply is OPS["rotate"].apply


def test_parameters_are_float32_for_every_op():
    context = PrepareContext(np.full((3, 2), 0.3, np.float32), 12, 10)
    for op in OPS.values():
        params = op.compute_params(np.full(3, op.high, np.float32), context)
        assert params.dtype == np.float32
        assert params.shape[0] == 3


def test_large_images_are_addressed_exactly():
    """Beyond 2**24 pixels, where float32 cannot hold every index."""
    x = torch.zeros(1, 1, 4100, 4100, dtype=torch.uint8)
    x[0, 0, -1, -5:] = torch.arange(1, 6, dtype=torch.uint8)
    mirrored = OPS["horizontal_flip"](x, 0.0)
    assert mirrored[0, 0, -1, :5].tolist() == [5, 4, 3, 2, 1]
    assert int(mirrored.sum()) == 15


def test_a_users_op_gets_floats_and_the_input_dtype_is_restored(recwarn):
    halved = Op(partial(lambda x, m, factor: x * factor * m[:, None, None, None], factor=0.5), 1, 1)
    x = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    assert halved(x, 1.0).unique().tolist() == [100]
    assert halved(x.half() / 255, 1.0).dtype == torch.float16
    assert Op(lambda x, _: x * 3)(x, 0.0).unique().tolist() == [255]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_result_rounded_once(name, dtype):
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :, 0] = 1.0  # white must not overflow the 256 levels
    op = OPS[name]
    found = op(x, op.high, (0.3, 0.6))
    assert found.dtype == dtype
    assert torch.equal(found, op(x.float(), op.high, (0.3, 0.6)).to(dtype))
