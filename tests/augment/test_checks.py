"""Images in [0, 1]: what is let through, clamped, refused."""

import pytest
import torch

from augsubset.augment.checks import clamp_rounding

INSIDE = [0.0, 1.0, 1e-45, 0.5, torch.finfo(torch.float32).eps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_within_the_range_are_returned_as_they_are(dtype, memory_format):
    x = torch.tensor(INSIDE, dtype=dtype).repeat(2, 3, 4, 1)
    x = x.contiguous(memory_format=memory_format)
    assert clamp_rounding(x) is x


@pytest.mark.parametrize("value", [-0.0001, 1.0001, -1e-45, 1 + 2**-23])
def test_rounding_is_clamped(value):
    x = torch.full((1, 1, 2, 2), 0.5)
    x[0, 0, 1, 1] = value
    assert clamp_rounding(x).flatten().tolist() == [0.5, 0.5, 0.5, min(max(value, 0.0), 1.0)]


def test_a_negative_zero_is_within():
    assert clamp_rounding(torch.full((1, 1, 1, 1), -0.0)).item() == 0


@pytest.mark.parametrize("value", [-0.1, 1.1, -1e30, torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_what_is_outside_is_refused(value):
    x = torch.full((2, 1, 3, 3), 0.5)
    x[1, 0, 0, 2] = value
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        clamp_rounding(x)
