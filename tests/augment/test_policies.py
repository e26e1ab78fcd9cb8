"""RandomOps, CropFlip and KorniaModule: what they promise beside keyed randomness."""

import kornia.augmentation as K
import pytest
import torch
from torch import nn

from augsubset import CropFlip, KorniaModule, Op, RandomOps, RowKeys
from augsubset.augment.ops import OPS


def batch(count=32, shape=(3, 12, 10), dtype=torch.uint8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return pixels if dtype == torch.uint8 else (pixels.float() / 255).to(dtype)


def keys(count=32, seed=0, epoch=0, copy=1):
    return RowKeys(seed, epoch, torch.arange(count), copy)


POLICIES = [RandomOps.paper(), CropFlip(3), CropFlip(3, padding_mode="reflect")]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_shape_dtype_and_range(policy, dtype, channels):
    x = batch(shape=(channels, 12, 10), dtype=dtype)
    before = x.clone()
    out = policy(x, keys())
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert torch.equal(x, before)  # the input is the caller's
    assert float(out.min()) >= 0
    assert float(out.max()) <= (255 if dtype == torch.uint8 else 1)
    assert not torch.equal(out, x)


@pytest.mark.parametrize("policy", [*POLICIES, KorniaModule(K.RandomHorizontalFlip())], ids=repr)
def test_zero_rows_stay_zero_rows(policy):
    assert policy(batch(0), keys(0)).shape == (0, 3, 12, 10)


def test_random_ops_draws_distinct_ops_uniformly_per_row():
    """Each op marks its own bit, so that the result tells which ops ran."""

    def marking(bit):
        return Op(lambda x, _: x + 2.0**bit / 255)

    marks = {f"op{bit}": marking(bit) for bit in range(6)}
    x = torch.zeros(6000, 1, 1, 1)
    out = RandomOps(marks, num_ops=2)(x, keys(6000)) * 255
    codes = out.flatten().round().long()
    ran = torch.stack([(codes >> bit) & 1 for bit in range(6)], 1)
    assert torch.equal(ran.sum(1), torch.full((6000,), 2))
    expected, deviation = 2000, (6000 * (1 / 3) * (2 / 3)) ** 0.5
    assert bool(((ran.sum(0) - expected).abs() < 5 * deviation).all())
    assert len(torch.unique(codes)) == 15


def test_random_ops_paper_draws_two_of_the_issue_s_fourteen():
    policy = RandomOps.paper()
    assert policy.num_ops == 2
    assert set(policy.ops) == {
        *("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "contrast"),
        *("color", "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert"),
    }


def test_uint8_and_float_images_get_the_same_policy():
    x = batch()
    levels = (RandomOps.paper()(x.float() / 255, keys()) * 255).round()
    difference = (RandomOps.paper()(x, keys()).float() - levels).abs()
    assert float((difference > 1).float().mean()) < 0.02  # rounding between the ops


def test_copies_epochs_and_seeds_give_different_augmentations():
    x = batch(1).expand(32, -1, -1, -1)
    results = [
        RandomOps.paper()(x, RowKeys(seed, epoch, 5, torch.tensor([copy] * 32)))[0]
        for seed, epoch, copy in ((0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1))
    ]
    assert len({tuple(result.flatten().tolist()) for result in results}) == 4


def test_what_a_custom_op_returns_is_clamped_not_wrapped():
    brighter = RandomOps({"b": Op(lambda x, m: x * 1.5)}, num_ops=1)
    x = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert set(brighter(x, keys(1)).flatten().tolist()) == {255}


def test_two_policies_of_one_class_draw_apart_in_different_streams():
    x, rows = batch(200), keys(200)
    flip = CropFlip(0)
    assert torch.equal(flip(flip(x, rows), rows), x)  # one stream: the flips cancel
    both = CropFlip(0, stream=1)(flip(x, rows), rows)
    unchanged = (both == x).flatten(1).all(1).float().mean()
    assert 0.35 < float(unchanged) < 0.65
    ops = RandomOps(["rotate", "invert"], 1)(x, rows)
    assert not torch.equal(RandomOps(["rotate", "invert"], 1, stream=1)(x, rows), ops)


def test_crop_flip_moves_pixels_within_the_padding_and_flips_half():
    x = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5).expand(4000, -1, -1, -1)
    out = CropFlip(2)(x, keys(4000))
    padded = torch.nn.functional.pad(x[0, 0], (2, 2, 2, 2))
    windows = {}
    for top in range(5):
        for left in range(5):
            window = padded[top : top + 5, left : left + 5]
            windows[tuple(window.flatten().tolist())] = False
            windows[tuple(window.flip(1).flatten().tolist())] = True
    flips = [windows[tuple(row.flatten().tolist())] for row in out]  # KeyError: no such crop
    assert len({tuple(row.flatten().tolist()) for row in out}) == 50
    assert 1850 < sum(flips) < 2150


def test_crop_flip_reflects_like_torch_pads():
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(500, -1, -1, -1)
    out = CropFlip(2, flip=0, padding_mode="reflect")(x, keys(500))
    padded = torch.nn.functional.pad(x[:1], (2, 2, 2, 2), mode="reflect")[0, 0]
    windows = {
        tuple(padded[top : top + 5, left : left + 5].flatten().tolist())
        for top in range(5)
        for left in range(5)
    }
    assert {tuple(row.flatten().tolist()) for row in out} == windows


def test_kornia_module_repeats_for_the_same_rows_and_leaves_the_generator_alone():
    policy = KorniaModule(K.RandomAffine(30.0))
    x = batch(dtype=torch.float32)
    state = torch.get_rng_state()
    first = policy(x, keys())
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(policy(x, keys()), first)
    assert not torch.equal(policy(x, keys(epoch=1)), first)
    assert not torch.equal(policy(x, keys(seed=1)), first)


def test_kornia_module_takes_uint8():
    x = batch()
    out = KorniaModule(K.RandomHorizontalFlip(p=1.0))(x, keys())
    assert torch.equal(out, x.flip(3))


class Linear(nn.Module):
    """Records whether autograd and autocast reach inside."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        self.grad_enabled = torch.is_grad_enabled()
        self.autocast = torch.is_autocast_enabled("cpu")
        return x * self.scale


def test_autograd_and_autocast_do_not_reach_inside():
    module = Linear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = KorniaModule(module)(batch(dtype=torch.float32), keys())
        ops_out = RandomOps.paper()(batch(dtype=torch.float32), keys())
    assert not out.requires_grad
    assert (module.grad_enabled, module.autocast) == (False, False)
    assert torch.equal(ops_out, RandomOps.paper()(batch(dtype=torch.float32), keys()))


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda: RandomOps(["rotate", "swirl"]), ValueError, "ops must be one of 'rotate'"),
        (lambda: RandomOps(["rotate"], num_ops=2), ValueError, "num_ops must be between 1 and"),
        (lambda: RandomOps(num_ops=0), ValueError, "num_ops must be between 1 and"),
        (lambda: CropFlip(-1), ValueError, "padding must be at least 0"),
        (lambda: CropFlip(flip=1.5), ValueError, "flip must be a probability"),
        (lambda: CropFlip(padding_mode="wrap"), ValueError, "padding_mode must be one of"),
        (
            lambda: CropFlip(10, padding_mode="reflect")(batch(), keys()),
            ValueError,
            "padding must be less than the image's size 12 x 10",
        ),
        (lambda: RandomOps.paper()(batch()[0], keys(3)), ValueError, r"images must be \(B, C, H"),
        (lambda: RandomOps.paper()(batch().int(), keys()), ValueError, r"images must be \(B, C, H"),
        (lambda: RandomOps.paper()(batch(), keys(3)), ValueError, "one key an image, got 3 for 32"),
        (
            lambda: RandomOps.paper()(batch(shape=(4, 8, 8)), keys()),
            ValueError,
            "images must have 1 or 3 channels, got 4",
        ),
        (lambda: CropFlip(2.5), TypeError, "padding must be an int, got float 2.5"),
        (lambda: RandomOps({"b": torch.neg}, 1), TypeError, "ops must map names to Op, got 'b'"),
        (
            lambda: RandomOps({"b": Op(lambda x, m: x[:1])}, 1)(batch(), keys()),
            ValueError,
            r"ops must keep the shape .* from 'b'",
        ),
        (
            lambda: KorniaModule(lambda x: (x * 255).to(torch.uint8))(batch(), keys()),
            TypeError,
            "module must return a float tensor, as it got, got torch.uint8",
        ),
        (lambda: Op(torch.neg, 0.3, 0.1), ValueError, "callable and low <= high, got"),
        (lambda: KorniaModule("flip"), TypeError, "module must be callable, got str"),
        (
            lambda: KorniaModule(K.Resize((4, 4)))(batch(), keys()),
            ValueError,
            r"module must keep the shape \(32, 3, 12, 10\)",
        ),
        (lambda: RowKeys(0, 0, torch.zeros(2), 0), TypeError, "index must be an int or an int64"),
        (
            lambda: RowKeys(0, 0, torch.zeros(2, 2).long(), 0),
            ValueError,
            r"must broadcast to \(B,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, reason):
    with pytest.raises(error, match=reason):
        call()


def test_known_ops_are_listed_when_one_is_not():
    with pytest.raises(ValueError, match=", ".join(f"'{name}'" for name in OPS)):
        RandomOps(["swirl"])
