"""The compiled CPU loops are bit-identical to the torch kernels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from augsubset import Op, RandomOps, RowKeys
from augsubset.augment import OPS, kernels, kernels_cpu
from augsubset.augment.engine import Engine
from augsubset.augment.ops import select_ops
from augsubset.augment.params import PrepareContext

POLICIES = {
    "paper": RandomOps.paper(),
    "wu2020": RandomOps.wu2020(),
    "randaugment": RandomOps.randaugment(25),
    "trivial": RandomOps.trivial(),
    "autoaugment": RandomOps.autoaugment("svhn"),
    "cutout": RandomOps.cutout(fill=(0.1, 0.9, 0.5)),
    "crop": RandomOps(["crop", "horizontal_flip", "vertical_flip"], 3),
}


def images(count, channels, height, width, dtype, seed=0):
    """Random images, some flat or of few levels, to reach the branches of equalize and others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, channels, height, width, generator=generator)
    x[::3] = (x[::3] * 3).round() / 3
    x[::5] = x[::5, :1, :1, :1].round()
    return (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x


def as_bits(x):
    """Floats as integers: unlike their values, those of 0.0 and -0.0 differ."""
    return x.view(torch.int32) if x.is_floating_point() else x


def run_both(policy, x):
    """Return the results of the loops and of the kernels for the same draws."""
    rows = RowKeys(0, 3, torch.arange(len(x)), 1)
    engine = policy.engine
    assert engine._loop_of is not None
    loops = policy(x, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_loop_of", None)
        return loops, policy(x, rows)


@given(
    name=st.sampled_from(sorted(POLICIES)),
    count=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 100),
)
@example(name="paper", count=300, channels=3, size=(32, 32), dtype=torch.uint8, seed=0)
@example(name="paper", count=300, channels=3, size=(32, 32), dtype=torch.float32, seed=0)
@example(name="trivial", count=30, channels=3, size=(224, 224), dtype=torch.uint8, seed=0)
@example(name="wu2020", count=30, channels=3, size=(224, 160), dtype=torch.float32, seed=0)
def test_loops_and_kernels_are_bit_identical(name, count, channels, size, dtype, seed):
    if name == "cutout" and channels == 1:
        channels = 3
    loops, kernels = run_both(POLICIES[name], images(count, channels, *size, dtype, seed))
    assert torch.equal(as_bits(loops), as_bits(kernels))


@pytest.mark.parametrize(
    "name", [name for name, op in OPS.items() if op.apply in kernels_cpu.KERNELS]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_operation_is_bit_identical_over_its_range(name, dtype):
    op, x = OPS[name], images(21, 3, 32, 32, dtype)
    magnitude = torch.linspace(op.low, op.high, 21)
    magnitude = magnitude.round() if op.integral else magnitude
    context = PrepareContext(np.full((21, 2), 0.4, np.float32), 32, 32)
    params = op.compute_params(magnitude.numpy(), context)[:, None]
    found = kernels_cpu.run_rows(x, np.full((21, 1), kernels_cpu.KERNELS[op.apply]), params)
    assert torch.equal(as_bits(found), as_bits(op(x, magnitude, (0.4, 0.4))))


def around(values):
    """Values and their neighbours in float32, with both signs."""
    values = np.array(values, np.float32)
    each = [values, np.nextafter(values, np.float32(-np.inf)), np.nextafter(values, np.float32(9))]
    return np.unique(np.concatenate([*each, *(-one for one in each)]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 5, 9), (2, 4, 8), (3, 3, 1), (5, 7, 3)]
)
def test_rows_that_move_by_whole_pixels_follow_the_kernel_at_every_tie(
    dtype, channels, height, width
):
    halves = [0, 0.25, 0.5, 1.5, 2.5, width - 1, width - 0.5, width, width + 0.5]
    shifts = [*around(halves), *around([0.496, 1.504, 3 * width, 1e5, 3e9, 1e30]), np.inf, -np.inf]
    rest = [*itertools.product([1, -1, 0.5], [0, 0.3], [0, 0.01], [1, -1], [0, 1.5, height - 1])]
    params = np.array([[a, b, c, d, e, f] for a, b, d, e, f in rest for c in shifts], np.float32)
    x = images(len(params), channels, height, width, dtype)
    found = kernels_cpu.run_rows(x, np.full((len(x), 1), kernels_cpu._WARP), params[:, None])
    expected = kernels.warp(x, torch.from_numpy(params))
    assert torch.equal(as_bits(found), as_bits(expected))


@pytest.mark.parametrize(("width", "shift"), [(1 << 16, 0.5 - 2**-9), ((1 << 16) + 8, 0.5 - 2**-8)])
def test_shifts_that_become_a_tie_in_the_sum_take_the_general_form(width, shift):
    """The sum with a large column loses the bits that decide."""
    params = np.array([[1, 0, shift, 0, 1, 0]], np.float32)
    x = images(2, 1, 1, width, torch.uint8)[1:]
    found = kernels_cpu.run_rows(x, np.full((1, 1), kernels_cpu._WARP), params[:, None])
    assert torch.equal(found, kernels.warp(x, torch.from_numpy(params)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 6, 7), (2, 5, 6), (3, 17, 23), (3, 2, 5), (5, 3, 3)]
)
def test_slots_follow_one_another_as_the_kernels_do(dtype, channels, height, width):
    ops = [
        op
        for op in OPS.values()
        if op.apply in kernels_cpu.KERNELS and (not op.channels or channels in op.channels)
    ]
    num_rows, num_slots = 150, 4
    x, random = images(num_rows, channels, height, width, dtype), np.random.default_rng(0)
    if dtype == torch.float32:
        x[x == 0] = -0.0  # a sign that sums of zeros decide
    expected, before = x.clone(), x.clone()
    kernel = np.zeros((num_rows, num_slots), np.int64)
    params = np.zeros((num_rows, num_slots, 7), np.float32)
    for i, slot in itertools.product(range(num_rows), range(num_slots)):
        if random.random() < 0.3 or i < 3:  # no operation; none at all in the first rows
            continue
        op = ops[random.integers(len(ops))]
        level = random.choice([0, 0.5, 1, random.random()])
        magnitude = np.array([op.low + (op.high - op.low) * level], np.float32)
        magnitude = np.round(magnitude) if op.integral else magnitude
        context = PrepareContext(random.random((1, 2), np.float32), height, width)
        row = op.compute_params(magnitude, context)
        kernel[i, slot], params[i, slot, : row.shape[1]] = kernels_cpu.KERNELS[op.apply], row
        expected[i : i + 1] = op.run(expected[i : i + 1], torch.from_numpy(row))
    found = kernels_cpu.run_rows(x, kernel, params)
    assert torch.equal(as_bits(found), as_bits(expected))
    assert torch.equal(x, before)
    at = np.arange(0, num_rows, 2)[::-1].copy()
    kernels_cpu.replace_rows(x, at, kernel[at], params[at])
    assert torch.equal(as_bits(x[::2]), as_bits(expected[::2]))
    assert torch.equal(as_bits(x[1::2]), as_bits(before[1::2]))


def test_smoothing_rounds_every_sum_of_bytes_as_a_division_does():
    """In a 3 x 3 image the centre counts five times: 13 * 255 is the largest sum."""
    x = torch.zeros(13 * 255 + 1, 1, 3, 3, dtype=torch.uint8)
    for total, image in enumerate(x):
        level, rest = divmod(total, 13)
        image[:] = level
        image[0, 1, 1] += rest // 5
        image[0].view(-1)[: rest % 5] += 1
    params = torch.zeros(len(x), 1)  # the smoothed image alone
    found = kernels_cpu.run_rows(
        x, np.full((len(x), 1), kernels_cpu._SHARPEN), params.numpy()[:, None]
    )
    assert torch.equal(found, kernels.sharpen(x, params))
    assert len(found[:, 0, 1, 1].unique()) == 256


def test_the_comparison_can_fail():
    x = images(40, 3, 32, 32, torch.uint8)
    loops, kernels = run_both(POLICIES["paper"], x)
    other = POLICIES["paper"](x, RowKeys(1, 3, torch.arange(40), 1))
    assert torch.equal(loops, kernels)
    assert not torch.equal(loops, other)


def test_threads_share_rows_and_change_nothing(monkeypatch):
    x = images(50, 3, 32, 32, torch.uint8)
    rows = RowKeys(0, 0, torch.arange(50), 1)
    alone = POLICIES["paper"](x, rows)
    monkeypatch.setattr(kernels_cpu, "_MIN_VALUES_PER_THREAD", 1000)
    pieces = []
    run = kernels_cpu._run
    monkeypatch.setattr(
        kernels_cpu, "_run", lambda x, at, *rest: pieces.append(len(at)) or run(x, at, *rest)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(POLICIES["paper"](x, rows), alone)
    finally:
        torch.set_num_threads(threads)
    assert sorted(pieces) == [16, 17, 17]


def test_the_input_is_not_modified():
    x = images(40, 3, 32, 32, torch.uint8)
    before = x.clone()
    POLICIES["paper"](x, RowKeys(0, 0, torch.arange(40), 1))
    assert torch.equal(x, before)


def test_any_memory_format_is_accepted():
    x = images(40, 3, 20, 24, torch.float32)
    rows = RowKeys(0, 0, torch.arange(40), 1)
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(POLICIES["paper"](strided, rows), POLICIES["paper"](x, rows))
    assert torch.equal(POLICIES["paper"](x[::2], rows[::2]), POLICIES["paper"](x, rows)[::2])


def test_a_policy_with_any_other_operation_runs_the_kernels():
    mine = Op(lambda x, _: 1 - x)
    for engine in (
        Engine({"rotate": OPS["rotate"], "mine": mine}),
        Engine(select_ops("gaussian_noise")),
        Engine(select_ops("rotate"), compiled=True),
    ):
        assert engine._loop_of is None


def test_images_too_large_for_float32_indices_run_the_kernels(monkeypatch):
    monkeypatch.setattr(kernels_cpu, "_MAX_PIXELS", 32 * 32 - 1)
    monkeypatch.setattr(kernels_cpu, "run_rows", None)
    x = images(4, 3, 32, 32, torch.uint8)
    POLICIES["paper"](x, RowKeys(0, 0, torch.arange(4), 1))
    with pytest.raises(TypeError):
        POLICIES["paper"](x[:, :, :31], RowKeys(0, 0, torch.arange(4), 1))
