"""Policies, CropFlip and KorniaModule; keyed randomness is in tests/properties."""

import dataclasses
import pickle
from functools import partial

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, v2

from augsubset import CropFlip, KorniaModule, Op, RandomOps, RowKeys, SubPolicies
from augsubset.augment import OPS, AugMix, kernels_cpu
from augsubset.augment.random import draw_uniforms


def batch(count=32, shape=(3, 12, 10), dtype=torch.uint8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return pixels if dtype == torch.uint8 else (pixels.float() / 255).to(dtype)


def keys(count=32, seed=0, epoch=0, copy=1):
    return RowKeys(seed, epoch, torch.arange(count), copy)


def draw(policy, count=20_000, seed=0):
    """Return a policy's draws for many rows: op names (B, S), "" for none, and the ``OpDraws``."""
    drawn = policy._decode(draw_uniforms(keys(count, seed), policy.num_ops * 6, policy.stream))
    return np.array([*policy.ops, ""])[drawn.op], drawn


PRESETS = {
    "paper": RandomOps.paper,
    "wu2020": RandomOps.wu2020,
    "randaugment": RandomOps.randaugment,
    "trivial": RandomOps.trivial,
    "cifar10": partial(RandomOps.autoaugment, "cifar10"),
    "imagenet": partial(RandomOps.autoaugment, "imagenet"),
    "svhn": partial(RandomOps.autoaugment, "svhn"),
    "augmix": RandomOps.augmix,
    "cutout": RandomOps.cutout,
    "noise": RandomOps.noise,
    "crop": partial(CropFlip, 3),
    "reflect": partial(CropFlip, 3, padding_mode="reflect"),
}
POLICIES = {name: make() for name, make in PRESETS.items()}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_shape_dtype_and_range(policy, dtype, channels):
    x = batch(shape=(channels, 12, 10), dtype=dtype)
    before = x.clone()
    out = policy(x, keys())
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert torch.equal(x, before)  # the caller's input is unchanged
    assert float(out.min()) >= 0
    assert float(out.max()) <= (255 if dtype == torch.uint8 else 1)
    assert not torch.equal(out, x)
    changes = {
        tuple((a.float() - b.float()).flatten().tolist()) for a, b in zip(out, x, strict=True)
    }
    assert len(changes) > 16  # rows of one batch differ


@pytest.mark.parametrize(
    "policy", [*POLICIES.values(), KorniaModule(K.RandomHorizontalFlip())], ids=repr
)
def test_an_empty_batch_stays_empty(policy):
    assert policy(batch(0), keys(0)).shape == (0, 3, 12, 10)


@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS)
def test_every_freezes_a_policy_for_that_many_epochs(make):
    policy, x = make(every=3), batch()
    kept = [policy(x, keys(epoch=epoch)) for epoch in (3, 4, 5, 6)]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[3])
    assert torch.equal(kept[0], make()(x, keys(epoch=3)))


@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS)
def test_streams_differ(make):
    x = batch()
    assert not torch.equal(make(stream=1)(x, keys()), make()(x, keys()))


# Distributions.


def assert_uniform(observed, expected):
    counts = np.array([observed.get(name, 0) for name in expected], float)
    assert counts.sum() == sum(observed.values()), "unexpected outcomes"
    shares = np.array(list(expected.values()), float)
    if len(counts) > 1:
        assert stats.chisquare(counts, shares / shares.sum() * counts.sum()).pvalue > 1e-3


def assert_uniform_over_the_range(op, values):
    low, high = sorted([2 * op.low - op.high if op.signed else op.low, op.high])
    assert stats.kstest((values - low) / (high - low), "uniform").pvalue > 1e-3


def count_values(names):
    values, counts = np.unique(names, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_paper_draws_two_distinct_ops_of_the_fourteen_in_every_order():
    policy = RandomOps.paper()
    names, _ = draw(policy)
    assert list(policy.ops) == list(OPS)[:14]
    pairs = count_values([f"{a}>{b}" for a, b in names])
    assert_uniform(pairs, {f"{a}>{b}": 1 for a in policy.ops for b in policy.ops if a != b})


def test_three_of_five_ops_come_in_every_arrangement():
    policy = RandomOps(["rotate", "invert", "color", "equalize", "solarize"], 3)
    names, _ = draw(policy)
    assert all(len(set(row)) == 3 for row in names.tolist())
    triples = count_values([">".join(row) for row in names])
    assert len(triples) == 60
    assert_uniform(triples, dict.fromkeys(triples, 1))


def test_magnitudes_are_uniform_over_the_range_with_both_signs():
    names, drawn = draw(RandomOps.paper(), 60_000)
    for name, op in RandomOps.paper().ops.items():
        if op.low != op.high and not op.integral:
            assert_uniform_over_the_range(op, drawn.magnitude[names == name])
    bits = count_values(drawn.magnitude[names == "posterize"].astype(int))
    assert_uniform(bits, {4: 0.5, 5: 1, 6: 1, 7: 1, 8: 0.5})  # rounding halves the ends


def test_wu2020_draws_with_replacement_and_applies_half():
    policy = RandomOps.wu2020()
    names, drawn = draw(policy)
    assert set(policy.ops) == {
        *("autocontrast", "brightness", "color", "contrast", "cutout", "equalize", "invert"),
        *("posterize", "rotate", "sharpness", "shear_x", "shear_y", "solarize"),
        *("translate_x_pixels", "translate_y_pixels"),
    }
    applied = (names != "").sum(1)
    assert_uniform(count_values(applied), {0: 1, 1: 2, 2: 1})
    both = names[applied == 2]
    assert 0.05 < (both[:, 0] == both[:, 1]).mean() < 0.09  # 1 of 15
    assert_uniform(count_values(names[names != ""]), dict.fromkeys(policy.ops, 1))
    assert_uniform(
        count_values(np.abs(drawn.magnitude[names == "posterize"]).astype(int)),
        {0: 1, 1: 1, 2: 1, 3: 1},
    )
    for name, op in policy.ops.items():
        if op.low != op.high and not op.integral:
            assert_uniform_over_the_range(op, drawn.magnitude[names == name])
    # Ranges of the released code.
    ends = {"translate_x_pixels": 10, "rotate": 30, "shear_y": 0.3, "cutout": 0.5, "color": 1.9}
    for name, end in ends.items():
        assert drawn.magnitude[names == name].max() == pytest.approx(end, rel=0.01)


# Names in torchvision and here.
NAMES = {
    **{"Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "Rotate": "rotate"},
    **{"TranslateX": "translate_x", "TranslateY": "translate_y", "Brightness": "brightness"},
    **{"Color": "color", "Contrast": "contrast", "Sharpness": "sharpness"},
    **{"Posterize": "posterize", "Solarize": "solarize", "AutoContrast": "autocontrast"},
    **{"Equalize": "equalize", "Invert": "invert"},
}
FACTORS = ("brightness", "color", "contrast", "sharpness")
SIZE = 331  # image size that translations are fractions of


def get_magnitude(space, name, bin_, num_bins):
    """Return the absolute magnitude in torchvision's table."""
    make, _ = space[name]
    table = make(num_bins, SIZE, SIZE)
    return None if table is None else float(table[bin_])


def assert_same_magnitudes(policy, names, drawn, space, num_bins, bins, pixels=False):
    for theirs, mine in NAMES.items():
        name = f"{mine}_pixels" if pixels and mine.startswith("translate") else mine
        if theirs not in space or name not in policy.ops:
            assert (theirs in space) == (name in policy.ops), theirs
            continue
        if get_magnitude(space, theirs, bins[0], num_bins) is None:
            continue
        values = drawn.magnitude[names == name]
        if mine in FACTORS:
            values = values - 1
        if mine.startswith("translate") and not pixels:
            values = values * SIZE
        # Bins are equally likely, and so are signs if there are any; bins may share a magnitude.
        signs = (-1, 1) if space[theirs][1] else (1,)
        sizes = [get_magnitude(space, theirs, bin_, num_bins) for bin_ in bins]
        expected = np.array(sorted(sign * size for size in sizes for sign in signs))
        distinct = expected[np.append(True, np.diff(expected) > 2e-3)]
        assert_uniform(count_nearest(values, distinct), count_nearest(expected, distinct))


def count_nearest(values, distinct):
    """Count values by the index of the distinct value they equal."""
    number = np.abs(values[:, None] - distinct).argmin(1)
    assert values == pytest.approx(distinct[number], abs=2e-3)
    return count_values(number)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_matches_torchvision_at_one_magnitude(magnitude):
    policy = RandomOps.randaugment(magnitude)
    names, drawn = draw(policy)
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert_uniform(count_values(names), {NAMES[name]: 1 for name in space})
    assert 0.05 < (names[:, 0] == names[:, 1]).mean() < 0.1
    assert_same_magnitudes(policy, names, drawn, space, 31, [magnitude])


def test_trivial_matches_torchvisions_wide_space():
    policy = RandomOps.trivial()
    names, drawn = draw(policy, 60_000)
    assert names.shape[1] == 1
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert_uniform(
        count_values([name.removesuffix("_pixels") for name in names[:, 0]]),
        {NAMES[name]: 1 for name in space},
    )
    assert_same_magnitudes(policy, names, drawn, space, 31, range(31), pixels=True)


def test_augmix_matches_torchvision_at_the_lowest_magnitudes():
    policy = AugMix(3)
    names, drawn = draw(policy)
    space = {
        name: (
            (lambda bins, h, w: torch.linspace(0, SIZE / 3, bins), True)
            if name.startswith("Translate")
            else entry
        )
        for name, entry in v2.AugMix._AUGMENTATION_SPACE.items()
    }
    assert_uniform(count_values(names), {NAMES[name]: 1 for name in space})
    assert_same_magnitudes(policy, names, drawn, space, 10, range(3))


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet", "svhn"])
def test_autoaugment_draws_the_published_pairs(dataset):
    policy = RandomOps.autoaugment(dataset)
    table = AutoAugment(AutoAugmentPolicy(dataset)).policies
    names, drawn = draw(policy, 40_000)
    space = v2.AutoAugment._AUGMENTATION_SPACE
    shares, signs = {"nothing": 0.0}, {}
    for number, pair in enumerate(table):
        (_, first, _), (_, second, _) = pair
        steps = f"{2 * number} {2 * number + 1}".split()
        shares[",".join(steps)] = first * second
        shares[steps[0]], shares[steps[1]] = first * (1 - second), (1 - first) * second
        shares["nothing"] += (1 - first) * (1 - second)
        for slot, (name, probability, bin_) in enumerate(pair):
            fired = drawn.op[:, slot] == 2 * number + slot
            if not fired.any():
                assert probability == 0
                continue
            assert names[fired, slot][0] == f"{NAMES[name]} {steps[slot]}"
            if bin_ is None or (size := get_magnitude(space, name, bin_, 10)) is None:
                continue
            values = drawn.magnitude[fired, slot] - (NAMES[name] in FACTORS)
            if name.startswith("Translate"):
                values = values * SIZE
            assert np.abs(values) == pytest.approx(size, abs=2e-3)
            if space[name][1] and size > 0:
                signs.setdefault(name, []).append(values > 0)
    # The pairs, and which of their two operations are applied.
    outcomes = [",".join(str(at) for at in row if at >= 0) or "nothing" for row in drawn.op]
    observed = count_values(outcomes)
    assert all(observed.get(outcome, 0) == 0 for outcome, share in shares.items() if share == 0)
    assert_uniform(observed, {outcome: share for outcome, share in shares.items() if share > 1e-9})
    assert len(signs) > 3
    for positive in signs.values():
        assert_uniform(count_values(np.concatenate(positive)), {False: 1, True: 1})


def replace_ops(policy, ops):
    """Make a policy draw from these operations only."""
    other = RandomOps(ops, 1)
    policy.ops, policy.engine, policy._op_table = ops, other.engine, other._op_table
    policy._num_choices = len(ops)


def test_augmix_weighs_the_original_uniformly():
    x = torch.zeros(4000, 1, 4, 4)
    white = {"white": Op(lambda x, _: torch.ones_like(x))}
    policy = AugMix(width=3)
    replace_ops(policy, white)
    share = policy(x, keys(4000))[:, 0, 0, 0]
    # Every chain is white and the original black, so 1 - value is the original's weight.
    assert stats.kstest(1 - share.numpy(), "uniform").pvalue > 1e-3


def test_augmix_weighs_its_chains_uniformly_on_the_simplex():
    """Each chain paints one colour, so the colours of the result are the chains' weights."""

    def paint(x, _, channel):
        return torch.eye(3)[channel].view(1, 3, 1, 1).expand_as(x)

    policy = AugMix(width=3)
    replace_ops(policy, {f"{c}": Op(partial(paint, channel=c)) for c in range(3)})
    out = policy(torch.zeros(20_000, 3, 1, 1), keys(20_000)).flatten(1)
    out = out[(out > 0).all(1)].numpy()  # three chains, three colours: 2 of 9 rows
    assert 4000 < len(out) < 4900
    total = out.sum(1)
    shares = out / total[:, None]
    for channel in range(3):
        assert stats.kstest(shares[:, channel], stats.beta(1, 2).cdf).pvalue > 1e-3
    # Uniform on the triangle: one weight as a fraction of what another leaves is uniform too.
    assert stats.kstest(shares[:, 0] / (1 - shares[:, 1]), "uniform").pvalue > 1e-3
    assert abs(stats.spearmanr(total, shares[:, 0]).statistic) < 0.05


def test_augmix_chains_have_one_to_three_operations():
    """Each op doubles the value, so the result shows how many ran."""
    x = torch.full((6000, 1, 1, 1), 1 / 16)
    policy = AugMix(width=1)
    doubling = {"double": Op(lambda x, _: x * 2)}
    replace_ops(policy, doubling)
    draws = draw_uniforms(keys(6000), 1 * (18 + 2) + 1, policy.stream)
    out = policy(x, keys(6000)).flatten().numpy() * 16
    original = draws[:, -1]
    grown = ((out - original) / (1 - original)).round(2)
    sure = original < 0.9
    assert_uniform(count_values(grown[sure].round().astype(int)), {2: 1, 4: 1, 8: 1})


def test_cutout_size_and_fill():
    x = torch.full((400, 3, 16, 16), 255, dtype=torch.uint8)
    out = RandomOps.cutout(0.5, fill=(0.0, 0.5, 1.0))(x, keys(400))
    erased = (out[:, 0] == 0).flatten(1).sum(1)
    assert int(erased.max()) == 64
    assert int(erased.min()) >= 16  # a quarter, at a corner
    assert set(out[:, 1].unique().tolist()) == {127, 255}
    assert torch.equal(out[:, 2], x[:, 2])


def test_noise_differs_between_rows_and_pixels():
    noisy = RandomOps.noise(0.05)(torch.full((3, 3, 8, 8), 0.5), keys(3)) - 0.5
    assert len(torch.unique(noisy)) > 550
    assert noisy.std().item() == pytest.approx(0.05, rel=0.1)


def test_sub_policies_run_the_drawn_sequence():
    add = [Op(partial(lambda x, m, bit: x + 2.0**bit / 255, bit=bit)) for bit in range(4)]
    policy = SubPolicies(
        [[(add[0], 1.0, 0.0), (add[1], 1.0, 0.0)], [(add[2], 1.0, 0.0), (add[3], 0.0, 0.0)]]
    )
    out = policy(torch.zeros(400, 1, 1, 1, dtype=torch.uint8), keys(400)).flatten()
    assert_uniform(count_values(out.numpy()), {3: 1, 4: 1})


def test_uint8_and_float_images_get_the_same_policy():
    x = batch()
    levels = (RandomOps.paper()(x.float() / 255, keys()) * 255).round()
    difference = (RandomOps.paper()(x, keys()).float() - levels).abs()
    # uint8 truncates between operations, and posterize has other levels for floats.
    assert float((difference > 2).float().mean()) < 0.15
    only = RandomOps(["rotate", "invert", "translate_x", "solarize"])
    exact = (only(x.float() / 255, keys()) * 255).round().to(torch.uint8)
    assert float((exact != only(x, keys())).float().mean()) < 0.01


def test_copies_epochs_and_seeds_give_different_augmentations():
    x = batch(1).expand(32, -1, -1, -1)
    results = [
        RandomOps.paper()(x, RowKeys(seed, epoch, 5, torch.tensor([copy] * 32)))[0]
        for seed, epoch, copy in ((0, 0, 1), (0, 0, 2), (0, 1, 1), (1, 0, 1))
    ]
    assert len({tuple(result.flatten().tolist()) for result in results}) == 4


def test_the_result_of_a_users_op_is_clamped_not_wrapped():
    brighter = RandomOps({"b": Op(lambda x, m: x * 1.5)}, num_ops=1)
    x = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert set(brighter(x, keys(1)).flatten().tolist()) == {255}


def test_two_users_ops_with_one_function_keep_their_ranges():
    def shade(x, factor):
        return x * factor[:, None, None, None]

    policy = RandomOps({"dim": Op(shade, 0.5, 0.5), "off": Op(shade, 0.0, 0.0)}, num_ops=1)
    out = policy(torch.full((200, 1, 1, 1), 200, dtype=torch.uint8), keys(200))
    assert_uniform(count_values(out.flatten().numpy()), {100: 1, 0: 1})


# Crop and flip.


def test_policies_of_one_class_are_independent_in_different_streams():
    x, rows = batch(200), keys(200)
    flip = CropFlip(0)
    assert torch.equal(flip(flip(x, rows), rows), x)  # one stream: the flips cancel
    both = CropFlip(0, stream=1)(flip(x, rows), rows)
    unchanged = (both == x).flatten(1).all(1).float().mean()
    assert 0.35 < float(unchanged) < 0.65


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


def test_crop_flip_reflects_like_torch_pad():
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(500, -1, -1, -1)
    out = CropFlip(2, flip=0, padding_mode="reflect")(x, keys(500))
    padded = torch.nn.functional.pad(x[:1], (2, 2, 2, 2), mode="reflect")[0, 0]
    windows = {
        tuple(padded[top : top + 5, left : left + 5].flatten().tolist())
        for top in range(5)
        for left in range(5)
    }
    assert {tuple(row.flatten().tolist()) for row in out} == windows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("padding", "size"), [(0, (5, 1)), (3, (12, 10)), (9, (4, 7))])
def test_crop_flip_copies_rows_on_the_cpu_to_where_a_gather_takes_them(
    padding, size, dtype, monkeypatch
):
    x, crop = batch(60, shape=(2, *size), dtype=dtype), CropFlip(padding)
    x = x.to(memory_format=torch.channels_last)
    by_rows = crop(x.requires_grad_(x.is_floating_point()), keys(60))
    assert by_rows.dtype == dtype
    assert torch.equal(by_rows.double(), crop(x.double(), keys(60)))
    monkeypatch.setattr(kernels_cpu, "run_rows", None)
    with pytest.raises(TypeError):
        crop(x, keys(60))
    monkeypatch.setattr(kernels_cpu, "_MAX_PIXELS", size[0] * size[1] - 1)
    assert torch.equal(by_rows, crop(x, keys(60)))


@pytest.mark.parametrize("channels", [2, 5])
def test_crop_flip_supports_any_number_of_channels(channels):
    x = batch(shape=(channels, 6, 5))
    out = CropFlip(1)(x, keys())
    for channel in range(channels):
        alone = CropFlip(1)(x[:, channel : channel + 1], keys())
        assert torch.equal(out[:, channel : channel + 1], alone)


# Autograd and autocast.


class Linear(nn.Module):
    """Records whether autograd and autocast reach inside."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        self.grad_enabled = torch.is_grad_enabled()
        self.autocast = torch.is_autocast_enabled("cpu")
        return x * self.scale


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_autocast_does_not_reach_inside_policies(policy):
    x = batch(dtype=torch.float32)
    expected = policy(x, keys())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy(x, keys()), expected)
    assert not policy(x.requires_grad_(), keys()).requires_grad


def test_autocast_would_be_detected():
    """Control: autocast runs a matrix product in half precision."""
    x = batch(dtype=torch.float32)

    def mixed(x, _):
        return (x @ torch.full((x.shape[-1], x.shape[-1]), 1 / 37.0)).clamp(0, 1)

    policy = RandomOps({"mixed": Op(mixed)}, 1)
    expected = policy(x, keys())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixed(x, None).dtype == torch.bfloat16
        assert torch.equal(policy(x, keys()), expected)


def test_autograd_and_autocast_do_not_reach_inside_modules():
    module = Linear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = KorniaModule(module)(batch(dtype=torch.float32), keys())
    assert not out.requires_grad
    assert (module.grad_enabled, module.autocast) == (False, False)


# Errors.


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda: RandomOps(["rotate", "swirl"]), ValueError, "ops must be one of 'rotate'"),
        (lambda: RandomOps("rotate", 1), TypeError, "ops must be a list of names, got the name"),
        (lambda: RandomOps([], 1), ValueError, "ops must name at least one operation"),
        (lambda: RandomOps(["rotate"], num_ops=2), ValueError, "num_ops must be between 1 and"),
        (lambda: RandomOps(num_ops=0), ValueError, "num_ops must be between 1 and"),
        (lambda: RandomOps(probability=1.5), ValueError, r"probability must be in \[0, 1\]"),
        (lambda: RandomOps(probability="p"), TypeError, "probability must be a number"),
        (lambda: RandomOps(levels=[0.5, 1.5]), ValueError, "levels must be a list of numbers in"),
        (lambda: RandomOps(levels=[]), ValueError, "levels must be a list of numbers in"),
        (lambda: RandomOps(levels=[float("nan")]), ValueError, "levels must be a list of"),
        (lambda: RandomOps(every=0), ValueError, "every must be at least 1"),
        (lambda: RandomOps(replacement=1), ValueError, "replacement must be one of False, True"),
        (lambda: RandomOps.randaugment(31), ValueError, "magnitude must be between 0 and 30"),
        (lambda: RandomOps.randaugment(9.5), TypeError, "magnitude must be an int"),
        (lambda: RandomOps.autoaugment("mnist"), ValueError, "dataset must be one of 'cifar10'"),
        (lambda: RandomOps.augmix(11), ValueError, "severity must be between 1 and 10"),
        (lambda: RandomOps.augmix(width=0), ValueError, "width must be at least 1"),
        (lambda: RandomOps.cutout(1.5), ValueError, "magnitudes must be between 0 and 1"),
        (lambda: RandomOps.cutout(fill=2), ValueError, "fill must be one or three values"),
        (lambda: RandomOps.cutout(fill=(0, 1)), ValueError, "fill must be one or three values"),
        (lambda: RandomOps.noise(-0.1), ValueError, "magnitudes must be between 0 and inf"),
        (lambda: RandomOps.cutout(fill="a"), TypeError, "fill must be a number"),
        (lambda: RandomOps.noise("a"), TypeError, "low must be a number"),
        (lambda: RandomOps(levels="ab"), TypeError, "levels must be a number, got str 'a'"),
        (lambda: RandomOps(levels=["a"]), TypeError, "levels must be a number, got str 'a'"),
        (lambda: SubPolicies([[("rotate", "a", 1)]]), TypeError, "probability must be a number"),
        (lambda: SubPolicies([[("rotate", 1)]]), TypeError, "table steps must be"),
        (lambda: SubPolicies([]), ValueError, "sequences of equal length"),
        (
            lambda: SubPolicies([[("rotate", 1, 1)], [("rotate", 1, 1)] * 2]),
            ValueError,
            r"sequences of equal length, at least 1, got \[1, 2\]",
        ),
        (lambda: SubPolicies([[("spin", 1, 1)]]), ValueError, "ops must be one of 'rotate'"),
        (lambda: SubPolicies([[("rotate", 2, 1)]]), ValueError, "probabilities and levels must"),
        (lambda: CropFlip(-1), ValueError, "padding must be at least 0"),
        (lambda: CropFlip(flip=1.5), ValueError, "flip must be a probability"),
        (lambda: CropFlip(flip="often"), TypeError, "flip must be a number"),
        (lambda: CropFlip(padding_mode="wrap"), ValueError, "padding_mode must be one of"),
        (lambda: CropFlip(2.5), TypeError, "padding must be an int, got float 2.5"),
        (lambda: RandomOps({"b": torch.neg}, 1), TypeError, "ops must map names to Op, got 'b'"),
        (lambda: KorniaModule("flip"), TypeError, "module must be callable, got str"),
        (lambda: RowKeys(0, 0, torch.zeros(2), 0), TypeError, "index must be an int or an int64"),
        (lambda: RowKeys(0, 0, torch.ones(2, 2).long(), 0), ValueError, r"broadcast to \(B,\)"),
        (lambda: RowKeys(0, torch.arange(3), torch.arange(2), 0), ValueError, "must broadcast to"),
    ],
)
def test_bad_arguments_are_refused(call, error, reason):
    with pytest.raises(error, match=reason):
        call()


UNIT = batch(dtype=torch.float32)


@pytest.mark.parametrize(
    ("policy", "x", "reason"),
    [
        (RandomOps.paper(), batch()[0], r"images must be \(B, C, H, W\)"),
        (RandomOps.paper(), batch().int(), r"images must be \(B, C, H, W\)"),
        (RandomOps.paper(), batch(31), "rows must hold one key per image, got 32 keys for 31"),
        (RandomOps.paper(), batch(shape=(5, 8, 8)), "must have 1 or 3 channels for 'brightness'"),
        (RandomOps(["color"], 1), batch(shape=(2, 8, 8)), "1 or 3 channels for 'color', got 2"),
        (RandomOps.paper(), UNIT * 2, r"images must be in \[0, 1\], got values from 0 to 2"),
        (RandomOps.augmix(), UNIT - 0.5, r"in \[0, 1\], got values from -0.5 to 0.5"),
        (RandomOps.noise(), UNIT * float("nan"), r"in \[0, 1\], got values from nan"),
        (KorniaModule(nn.Identity()), UNIT * 1.5, r"in \[0, 1\], got values .* to 1.5"),
        (CropFlip(10, padding_mode="reflect"), batch(), "smaller than the image, 12 x 10"),
        (RandomOps({"b": Op(lambda x, m: x[:1])}, 1), batch(), "ops must keep the shape"),
    ],
)
def test_bad_images_are_refused(policy, x, reason):
    with pytest.raises(ValueError, match=reason):
        policy(x, keys())


@pytest.mark.parametrize(
    ("module", "num_others", "error", "reason"),
    [
        (lambda x: x.double(), 0, TypeError, "keep the dtype torch.float32, got torch.float64"),
        (
            lambda x: x.to(torch.uint8),
            0,
            TypeError,
            "keep the dtype torch.float32, got torch.uint8",
        ),
        (lambda x, m: (x, m.long()), 1, TypeError, "the dtype torch.float32, got torch.int64"),
        (lambda x: x[0, 0, 0, 0].item(), 0, TypeError, "the dtype torch.float32, got float"),
        (K.Resize((4, 4)), 0, ValueError, r"module must keep the shape \(32, 3, 12, 10\), got"),
        (lambda x: x[:0], 0, ValueError, "module must keep the batch size 1, got 0"),
        (lambda x, m: x, 1, TypeError, "module must return 2 outputs, as given, got Tensor"),
        (lambda x, m: (x, m[:0]), 1, ValueError, "module must keep the batch size 1, got 0"),
    ],
)
@pytest.mark.parametrize("x", [batch(), UNIT], ids=["uint8", "float32"])
def test_a_module_that_changes_shape_or_dtype_is_refused(x, module, num_others, error, reason):
    with pytest.raises(error, match=reason):
        KorniaModule(module)(x, keys(), *[UNIT] * num_others)


def test_ops_without_color_support_any_number_of_channels():
    x = batch(shape=(5, 8, 8))
    out = RandomOps(["rotate", "invert", "equalize", "sharpness", "gaussian_blur"], 2)(x, keys())
    assert out.shape == x.shape


def test_autoaugment_without_torchvision_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    with pytest.raises(ImportError, match="needs the tables of torchvision"):
        RandomOps.autoaugment("cifar10")


def test_an_unknown_op_is_refused_with_the_list_of_known_ones():
    with pytest.raises(ValueError, match=", ".join(f"'{name}'" for name in OPS)):
        RandomOps(["swirl"])


@pytest.mark.parametrize("name", PRESETS)
def test_policies_can_be_pickled(name):
    x, policy = batch(), POLICIES[name]
    assert torch.equal(pickle.loads(pickle.dumps(policy))(x, keys()), policy(x, keys()))


def test_compiled_policies_can_be_pickled():
    pickle.loads(pickle.dumps(RandomOps.paper(compiled=True)))


def test_a_module_that_works_in_place_does_not_change_the_callers_images():
    x = batch(dtype=torch.float32)
    mask, before = x[:, :1].clone(), x.clone()
    KorniaModule(lambda x, m: (x.mul_(0), m.mul_(0)))(x, keys(), mask)
    assert torch.equal(x, before)
    assert torch.equal(mask, before[:, :1])


def test_a_table_may_be_a_generator():
    policy = SubPolicies(iter([[("rotate", 1, 1)], [("invert", 1, 0)]]))
    assert len(policy.table) == 2


def test_an_op_can_be_changed_with_dataclasses_replace():
    policy = RandomOps({"spin": dataclasses.replace(OPS["rotate"], high=180.0)}, 1)
    _, drawn = draw(policy)
    assert np.abs(drawn.magnitude).max() > 175


MOVING = {
    **{name: POLICIES[name] for name in ("paper", "wu2020", "trivial", "imagenet")},
    "crop": CropFlip(3, mask_fill=255),
    "reflect": POLICIES["reflect"],
    "both": RandomOps(["rotate", "invert"], 2, mask_fill=255),
}


@pytest.mark.parametrize("policy", MOVING.values(), ids=MOVING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
def test_masks_move_exactly_as_the_images_do(policy, dtype):
    """Each pixel of a mask holds its own place, and those that an image holds say where it went."""
    places = torch.arange(120, dtype=dtype).view(1, 12, 10).expand(64, 12, 10).contiguous()
    only_moves = policy
    if isinstance(policy, RandomOps):
        only_moves = pickle.loads(pickle.dumps(policy))
        keep = [op.prepare is OPS["rotate"].prepare or "flip" in n for n, op in policy.ops.items()]

        def augment(x, rows):
            op, params = only_moves._plan(rows, *x.shape[-2:])
            return only_moves.engine.run(x, np.where(np.array([*keep, False])[op], op, -1), params)

        only_moves._augment = augment
    x = (places[:, None] + 1).to(torch.uint8)
    moved, mask, same = policy(x, keys(64), places, places[:, None])
    expected = only_moves(x, keys(64)).long() - 1
    expected[expected < 0] = policy.mask_fill
    assert mask.dtype == dtype
    assert torch.equal(mask.long(), expected[:, 0])
    assert torch.equal(same[:, 0], mask)
    assert torch.equal(moved, policy(x, keys(64)))
    assert not torch.equal(mask, places)


@pytest.mark.parametrize(
    ("policy", "mask", "error", "reason"),
    [
        (
            CropFlip(2),
            torch.zeros(2, 4, 5),
            TypeError,
            "masks must be integers .*got torch.float32",
        ),
        (RandomOps(), [{"boxes": 0}] * 2, TypeError, "masks must be integers .*got list"),
        (CropFlip(2), torch.zeros(2, 4).long(), ValueError, r"masks must be \(B, H, W\) like"),
        (RandomOps(), torch.zeros(3, 4, 5).long(), ValueError, r"got shape \(3, 4, 5\)"),
        (AugMix(), torch.zeros(2, 4, 5).long(), ValueError, "got a mixture. Pass a policy"),
        (
            RandomOps({"mine": Op(lambda x, m: x.flip(-1))}, 1),
            torch.zeros(2, 4, 5).long(),
            ValueError,
            r"built-in operations alone, got \['mine'\]",
        ),
    ],
)
def test_what_is_no_mask_is_refused(policy, mask, error, reason):
    with pytest.raises(error, match=reason):
        policy(batch(2, (3, 4, 5)), keys(2), mask)


def test_policies_say_whether_they_move_pixels():
    still = {name for name, policy in POLICIES.items() if not policy.is_geometric}
    assert still == {"cutout", "noise"}
    assert not CropFlip(0, flip=0).is_geometric
    assert KorniaModule(K.AugmentationSequential(K.RandomAffine(20.0))).is_geometric
    assert KorniaModule(v2.RandomHorizontalFlip()).is_geometric
    assert not KorniaModule(K.AugmentationSequential(K.RandomGamma())).is_geometric
    assert not KorniaModule(torch.sin).is_geometric
