"""Normalization: refusals on the host, and the way there and back."""

import numpy as np
import pytest
import torch

from augsubset.normalization import Normalization

STATISTICS = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
UNIT = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_uint8_is_divided_by_255_and_normalised_last():
    x = (UNIT * 255).to(torch.uint8)
    mean, std = (torch.tensor(part)[:, None, None] for part in STATISTICS)
    pixels = Normalization(STATISTICS, None)
    pixels.check(x)
    assert pixels.to_unit(x) is x
    torch.testing.assert_close(pixels.to_model(x), (x.float() / 255 - mean) / std)
    assert torch.equal(Normalization(None, None).to_model(x), x.float() / 255)


def test_denormalising_and_normalising_again_changes_rounding_alone():
    normalised = Normalization(STATISTICS, None).to_model(UNIT)
    pixels = Normalization(None, STATISTICS)
    pixels.check(normalised)
    torch.testing.assert_close(pixels.to_unit(normalised), UNIT, rtol=0, atol=1e-6)
    again = pixels.to_model(pixels.to_unit(normalised))
    torch.testing.assert_close(again, normalised, rtol=0, atol=1e-5)


def test_float_images_without_statistics_pass_as_they_are():
    assert Normalization(None, None).to_model(UNIT) is UNIT


@pytest.mark.parametrize(
    ("normalize", "denormalize", "x", "reason"),
    [
        (
            None,
            None,
            UNIT * 2 - 1,
            r"images must be in \[0, 1\], got values from -.*denormalize=\(mean, std\)",
        ),
        (None, None, UNIT * 1.2, r"images must be in \[0, 1\]"),
        (None, None, UNIT * torch.nan, r"images must be in \[0, 1\], got values from nan"),
        (None, None, UNIT.permute(0, 2, 3, 1), r"looks like channels last.*permute\(2, 0, 1\)"),
        (None, None, UNIT.int(), "images must be uint8 or float, got dtype torch.int32"),
        (
            STATISTICS,
            None,
            UNIT[:, :1],
            r"images must be \(B, C, H, W\) with C = 3, the number of means",
        ),
        (None, STATISTICS, UNIT * 20, r"images must be in \[0, 1\] once denormalised"),
        (None, STATISTICS, UNIT * torch.nan, r"images must be in \[0, 1\] once denormalised"),
        (None, STATISTICS, UNIT.to(torch.uint8), "images must be float, got dtype torch.uint8"),
    ],
)
def test_values_out_of_range_are_refused(normalize, denormalize, x, reason):
    with pytest.raises(ValueError, match=reason):
        Normalization(normalize, denormalize).check(x)


@pytest.mark.parametrize(
    ("normalize", "denormalize", "reason"),
    [
        (STATISTICS, STATISTICS, "normalize and denormalize must not both be given"),
        (([0.5], [0.0]), None, r"one std in \(0, 1\] per channel, got mean=\[0.5\]"),
        (([0.5, 0.5], [1.0]), None, r"normalize must be \(mean, std\)"),
        (None, ([float("nan")], [1.0]), r"denormalize must be \(mean, std\): one mean in \[0, 1\]"),
        (([123.7], [58.4]), None, r"got mean=\[123.7\].* Divide .* from 0 to 255 by 255"),
        (None, ([123.7], [58.4]), r"denormalize must be .* by 255"),
        (([0.5], [58.4]), None, r"std=\[58.4\].* by 255"),
        (([-0.5], [0.5]), None, r"one mean in \[0, 1\].*got mean=\[-0.5\], std=\[0.5\]\.$"),
        ([0.5] * 3, None, r"normalize must be \(mean, std\).* got normalize=\[0.5, 0.5, 0.5\]"),
        (None, 0.5, r"denormalize must be \(mean, std\).* got denormalize=0.5"),
    ],
)
def test_bad_statistics_are_refused(normalize, denormalize, reason):
    with pytest.raises(ValueError, match=reason):
        Normalization(normalize, denormalize)


@pytest.mark.parametrize(
    "statistics",
    [
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        (torch.tensor([0.5]), torch.tensor([0.5])),
        np.array([[0.0, 1.0], [1.0, 1 / 255]]),
        (0.5, 0.5),
    ],
)
def test_usual_statistics_pass_in_any_form(statistics):
    for pair in ((statistics, None), (None, statistics)):
        Normalization(*pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-0.0009, -1e-45, 1 + 2**-23, 1 + 2e-7, 1.0009])
def test_rounding_is_clamped(value, dtype):
    x = torch.full((2, 3, 4, 4), 0.5, dtype=dtype)
    x[1, 2, 3, 3] = value
    pixels = Normalization(None, None)
    pixels.check(x)
    assert float(pixels.to_unit(x)[1, 2, 3, 3]) == round(value)
    assert float(x[1, 2, 3, 3]) != round(value)  # the dataset's own tensor, perhaps
    assert int((pixels.to_unit(x) == x).sum()) == x.numel() - 1


def test_values_are_shown_with_the_digits_that_put_them_outside():
    with pytest.raises(
        ValueError, match=r"from 0 to 1.00101\. .*denormalize=.* or .*clamp\(0, 1\)"
    ):
        Normalization(None, None).check(torch.tensor([0.0, 1.00101]).view(1, 1, 1, 2))


@pytest.mark.parametrize("shape", [(17, 3, 3), (5, 1, 1), (12, 100, 1), (2, 4, 3)])
def test_images_whose_width_looks_like_channels_have_a_way_in(shape):
    """Too narrow for channels last, or with as many statistics as channels."""
    x = torch.rand(2, *shape)
    same = Normalization(([0] * shape[0], [1] * shape[0]), None)
    same.check(x)
    assert torch.equal(same.to_model(same.to_unit(x)), x)
    if shape[1] > 3:
        hint = rf"normalize=\(\[0\] \* {shape[0]}, \[1\] \* {shape[0]}\), which changes nothing"
        with pytest.raises(ValueError, match=f"looks like channels last.*{hint}"):
            Normalization(None, None).check(x)
    else:
        Normalization(None, None).check(x)


@pytest.mark.parametrize("value", [-0.0, 0.0, 1e-45, 0.5, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_of_the_unit_range_pass(value, dtype):
    x = torch.zeros(2, 3, 4, 4, dtype=dtype)
    x[1, 2, 3, 3] = value
    Normalization(None, None).check(x)
    Normalization(None, None).check(x.transpose(2, 3))
    Normalization(None, None).check(x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    "value", [-0.0011, -0.5, 1.0011, 255.0, torch.inf, -torch.inf, torch.nan, -torch.nan]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_value_outside_of_it_does_not(value, dtype):
    x = torch.full((2, 3, 4, 4), 0.5, dtype=dtype)
    x[1, 2, 3, 3] = value
    for given in (x, x.transpose(2, 3), x.contiguous(memory_format=torch.channels_last)):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from"):
            Normalization(None, None).check(given)
