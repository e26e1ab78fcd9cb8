"""The operations against torchvision's on the same pixels."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from augsubset.augment import OPS, ops

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 40), (1, 2, 2)]


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
    return tv.affine(x, 0.0, [along_x, along_y], 1.0, [0.0, 0.0])


# name, our magnitude, torchvision on uint8, levels that may differ: torchvision cuts fractions
# off where we round, and its gray levels are whole numbers.
CASES = [
    ("rotate", 17.0, lambda x: tv.rotate(x, 17.0), 0),
    ("rotate", -30.0, lambda x: tv.rotate(x, -30.0), 0),
    ("shear_x", 0.3, lambda x: shear(x, 0.3, 0), 0),
    ("shear_y", -0.17, lambda x: shear(x, 0, -0.17), 0),
    ("translate_x", 0.4, lambda x: shift(x, int(0.4 * x.shape[-1]), 0), 0),
    ("translate_y", -0.3, lambda x: shift(x, 0, int(-0.3 * x.shape[-2])), 0),
    ("brightness", 1.7, lambda x: tv.adjust_brightness(x, 1.7), 1),
    ("brightness", 0.3, lambda x: tv.adjust_brightness(x, 0.3), 1),
    ("contrast", 1.7, lambda x: tv.adjust_contrast(x, 1.7), 1),
    ("contrast", 0.3, lambda x: tv.adjust_contrast(x, 0.3), 1),
    ("color", 1.7, lambda x: tv.adjust_saturation(x, 1.7), 2),
    ("color", 0.3, lambda x: tv.adjust_saturation(x, 0.3), 2),
    ("sharpness", 1.9, lambda x: tv.adjust_sharpness(x, 1.9), 1),
    ("sharpness", 0.1, lambda x: tv.adjust_sharpness(x, 0.1), 1),
    ("posterize", 4.0, lambda x: tv.posterize(x, 4), 0),
    ("posterize", 8.0, lambda x: tv.posterize(x, 8), 0),
    ("solarize", 0.4, lambda x: tv.solarize(x, 0.4 * 255), 0),
    ("autocontrast", 0.0, tv.autocontrast, 1),
    ("equalize", 0.0, tv.equalize, 0),
    ("invert", 0.0, tv.invert, 0),
]


def test_every_op_has_a_case():
    assert {case[0] for case in CASES} == set(OPS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "magnitude", "reference", "levels"), CASES)
def test_ops_agree_with_torchvision_on_uint8(name, magnitude, reference, levels, shape):
    pixels = images(shape)
    expected = torch.stack([reference(image) for image in pixels])
    found = OPS[name].apply(pixels.float() / 255, torch.full((len(pixels),), magnitude)) * 255
    difference = (found.round() - expected.float()).abs()
    assert float(difference.max()) <= levels


@pytest.mark.parametrize(
    ("name", "factor", "reference"),
    [
        ("brightness", 1.7, tv.adjust_brightness),
        ("contrast", 0.3, tv.adjust_contrast),
        ("color", 1.7, tv.adjust_saturation),
        ("sharpness", 1.9, tv.adjust_sharpness),
        ("solarize", 0.4, tv.solarize),
    ],
)
def test_ops_agree_with_torchvision_on_floats(name, factor, reference):
    x = images((3, 32, 32)).float() / 255
    expected = torch.stack([reference(image, factor) for image in x])
    found = OPS[name].apply(x, torch.full((len(x),), factor))
    # torchvision weighs red by .2989, Kornia by .299.
    assert float((found - expected).abs().max()) < 2e-4


@pytest.mark.parametrize("name", list(OPS))
def test_magnitudes_stay_in_range_and_take_both_signs(name):
    op = OPS[name]
    uniform = torch.linspace(0, 1 - 2**-24, 1001)
    drawn = torch.cat([op.magnitudes(uniform, torch.full_like(uniform, s)) for s in (0.2, 0.8)])
    assert float(drawn.abs().min()) >= op.low
    assert float(drawn.abs().max()) <= op.high
    assert bool((drawn < 0).any()) == op.signed
    if op.integral:
        assert sorted(set(drawn.tolist())) == list(range(int(op.low), int(op.high) + 1))


def test_color_leaves_gray_images_alone():
    x = images((1, 8, 8)).float() / 255
    assert torch.equal(ops.color(x, torch.full((len(x),), 0.1)), x)
