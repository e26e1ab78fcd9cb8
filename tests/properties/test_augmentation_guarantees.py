"""Contracts 14 and 15: which rows are augmented, and what a row's result depends on."""

import random
from contextlib import contextmanager

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import (
    CropFlip,
    KorniaModule,
    LoaderOptions,
    RandomOps,
    RandomSelector,
    RowKeys,
    SubsetAugmentLoader,
)
from augsubset.augment import kernels_cpu
from augsubset.augment.ops import OPS
from augsubset.augment.random import draw_normals, draw_uniforms, mix_words
from augsubset.sampling import PADDING, pack, unpack

POLICIES = {
    "kornia": KorniaModule(
        K.AugmentationSequential(
            K.RandomAffine(20.0), K.RandomGaussianNoise(std=0.05), K.RandomErasing()
        )
    ),
    "ops": RandomOps.paper(),
    "three": RandomOps(num_ops=3),
    "every op": RandomOps(tuple(OPS), 6),
    "wu2020": RandomOps.wu2020(),
    "autoaugment": RandomOps.autoaugment("svhn"),
    "augmix": RandomOps.augmix(),
    "noise": RandomOps.noise(),
    "crop": CropFlip(3),
    "reflect": CropFlip(1, padding_mode="reflect"),
}
KEYS = st.tuples(
    st.integers(0, 2**62), st.integers(0, 8191), st.integers(0, 2**36 - 1), st.integers(0, 2**14)
)


@st.composite
def batches(draw):
    count = draw(st.integers(1, 24))
    channels = draw(st.sampled_from([1, 3]))
    size = draw(st.sampled_from([(8, 8), (7, 13), (2, 2), (32, 32)]))
    pixels = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 256, (count, channels, *size), dtype=np.uint8
    )
    x = torch.from_numpy(pixels)
    if draw(st.booleans()):
        x = x.float() / 255
    index = torch.tensor(draw(st.lists(st.integers(0, 99), min_size=count, max_size=count)))
    copy = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    return x, RowKeys(draw(st.integers(0, 2**40)), draw(st.integers(0, 8191)), index, copy)


@contextmanager
def use_threads(count):
    """Set the number of threads; with two, the CPU loops split even the smallest batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels_cpu, "_MIN_VALUES_PER_THREAD", 1)
            yield
    finally:
        torch.set_num_threads(before)


def test_two_threads_split_even_two_rows():
    """Control for the tests below that use two threads."""
    pieces, run = [], kernels_cpu._run
    x, rows = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), RowKeys(0, 0, torch.arange(2), 1)
    with use_threads(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kernels_cpu, "_run", lambda x, at, *rest: pieces.append(len(at)) or run(x, at, *rest)
        )
        RandomOps.paper()(x, rows)
    assert pieces == [1, 1]


@pytest.mark.parametrize("name", POLICIES)
@given(case=batches(), data=st.data())
def test_a_rows_result_does_not_depend_on_batch_mates_order_or_batch_size(name, case, data):
    x, rows = case
    policy = POLICIES[name]
    together = policy(x, rows)
    with use_threads(data.draw(st.sampled_from([1, 2]))):
        assert_rows_are_independent(policy, x, rows, together, data)


def assert_rows_are_independent(policy, x, rows, together, data):
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    assert torch.equal(policy(x[order], rows[order]), together[order])
    cut = data.draw(st.integers(0, len(x)))
    parts = [policy(x[part], rows[part]) for part in (torch.arange(cut), torch.arange(cut, len(x)))]
    assert torch.equal(torch.cat(parts), together)
    one = torch.tensor([cut % len(x)])
    assert torch.equal(policy(x[one], rows[one]), together[one])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (210, 190)])
def test_large_images_do_not_depend_on_batch_threads_or_memory_format(name, unit, threads, size):
    """From 32,768 values on, torch splits a single reduction among threads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=generator)
    x = x.float() / 255 if unit else x
    rows = RowKeys(0, 0, torch.arange(3), 1)
    policy = RandomOps([name], num_ops=1)
    together = policy(x, rows)
    with use_threads(threads):
        alone = [policy(x[i : i + 1], rows[torch.tensor([i])]) for i in range(3)]
        assert torch.equal(torch.cat(alone), together)
        other = policy(x.contiguous(memory_format=torch.channels_last), rows)
        assert torch.equal(other, together)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=10)
@given(data=st.data())
def test_rows_do_not_depend_on_batch_mates_at_224_pixels(name, data):
    policy = POLICIES[name]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    channels = data.draw(st.sampled_from([1, 3]))
    x = torch.randint(0, 256, (6, channels, 224, 224), dtype=torch.uint8, generator=generator)
    x = x.float() / 255 if data.draw(st.booleans()) else x
    rows = RowKeys(data.draw(st.integers(0, 2**40)), 0, torch.arange(6), 1)
    together = policy(x, rows)
    order = torch.tensor(data.draw(st.permutations(range(6))))
    cut = data.draw(st.integers(1, 5))
    with use_threads(data.draw(st.sampled_from([1, 2]))):
        parts = [policy(x[part], rows[part]) for part in (order[:cut], order[cut:])]
    assert torch.equal(torch.cat(parts), together[order])


@pytest.mark.cuda
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [32, 224])
def test_rows_do_not_depend_on_batch_mates_on_cuda(name, size):
    x = torch.randint(0, 256, (40, 3, size, size), dtype=torch.uint8)
    rows, policy = RowKeys(0, 0, torch.arange(40), 1), POLICIES[name]
    together = policy(x.cuda(), rows)
    order = torch.randperm(40)
    parts = [policy(x[part].cuda(), rows[part]) for part in (order[:7], order[7:])]
    assert torch.equal(torch.cat(parts), together[order.cuda()])
    on_cpu = policy(x, rows)
    assert float((together.cpu().int() - on_cpu.int()).abs().float().mean()) < 0.5


@pytest.mark.cuda
@pytest.mark.parametrize("name", POLICIES)
def test_policies_never_synchronise_with_the_device(name):
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8).cuda()
    rows, policy = RowKeys(0, 0, torch.arange(64), 1), POLICIES[name]
    policy(x, rows)  # copies tables once
    torch.cuda.set_sync_debug_mode("error")
    try:
        policy(x, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("held", ["device", "pinned", "pageable"])
def test_the_loaders_batch_path_never_synchronises_with_the_device(compiled, held):
    """From a fetched batch to the next one, prepared ahead on the side stream."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).cuda()
    dataset = TensorDataset(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 4)
    loader = SubsetAugmentLoader(
        DataLoader(dataset, 8, pin_memory=held == "pinned"),
        model,
        RandomOps.paper(compiled=compiled),
        base=CropFlip(4),
        normalize=([0.5] * 3, [0.2] * 3),
        options=LoaderOptions(channels_last=True),
    )
    pipeline, device = loader.pipeline, torch.device("cuda")
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    y = torch.arange(64) % 4
    if held != "pageable":
        x, y = (part.cuda() if held == "device" else part.pin_memory() for part in (x, y))
    keys = pack(0, torch.arange(64) % 3, torch.arange(64))

    def epoch():
        def make_batches():
            for _ in range(3):
                yield pipeline.process((x, y), keys, torch.ones(64), device)

        for batch in pipeline.prefetch(make_batches(), device):
            model(batch.output[0]).sum().backward()

    epoch()  # copies statistics and tables once
    torch.cuda.set_sync_debug_mode("error")
    try:
        epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", POLICIES)
def test_policies_run_under_deterministic_algorithms(name, device):
    x = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, device=device)
    rows, policy = RowKeys(0, 0, torch.arange(16), 1), POLICIES[name]
    expected = policy(x, rows)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(policy(x, rows), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", POLICIES)
def test_no_global_generator_is_read_or_advanced(name):
    x = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    rows = RowKeys(0, 0, torch.arange(16), 1)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        results.append(POLICIES[name](x, rows))
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
        assert np.array_equal(states[2], np.random.get_state()[1])
    assert torch.equal(*results)


# The counter-based generator against splitmix64 in Python integers.

WORD = (1 << 64) - 1


def mix(state):
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
    return state ^ (state >> 31)


@given(KEYS, st.integers(0, 9), st.integers(1, 20))
def test_uniforms_match_unsigned_integer_arithmetic(key, stream, num_draws):
    seed, epoch, index, copy = key
    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) & WORD)
    for part in (stream, epoch, index, copy):
        state = mix((state + golden + part) & WORD)
    expected = [
        (mix((state + draw * golden) & WORD) >> 40) / 2**24 for draw in range(1, num_draws + 1)
    ]
    found = draw_uniforms(RowKeys(seed, epoch, torch.tensor([index]), copy), num_draws, stream)
    assert found.tolist() == [expected]


def draw_along(num_draws=1, stream=1, seed=7, epoch=3, index=5, copy=1):
    return draw_uniforms(RowKeys(seed, epoch, index, copy), num_draws, stream)


AXES = {
    "seed": lambda n: [draw_along(seed=seed) for seed in range(n)],
    "epoch": lambda n: draw_along(epoch=torch.arange(n) % 8192, index=n + torch.arange(n)),
    "index": lambda n: draw_along(index=torch.arange(n)),
    "large index": lambda n: draw_along(index=(1 << 36) - 1 - torch.arange(n)),
    "copy": lambda n: draw_along(copy=torch.arange(n)),
    "draw": lambda n: draw_along(num_draws=n),
    "stream": lambda n: [draw_along(stream=stream) for stream in range(n)],
    "last bits": lambda n: draw_along(index=torch.arange(n)) * 2**16 % 1,
}


@pytest.mark.parametrize("axis", AXES)
def test_uniforms_are_uniform_and_neighbours_independent(axis):
    """While one part of the key changes: their distribution, and that of successive pairs."""
    draws = np.asarray(AXES[axis](4096), np.float64).ravel()
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.histogram(draws, 64, (0, 1))[0]).pvalue > 1e-3
    cells = np.histogram2d(draws[:-1], draws[1:], 16, [[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells[:, :].ravel()).pvalue > 1e-3
    signs = draws > 0.5
    runs = 1 + int((signs[1:] != signs[:-1]).sum())
    assert abs(runs - len(draws) / 2) < 4 * (len(draws) / 4) ** 0.5


def test_the_uniformity_test_rejects_a_counter():
    """Control."""
    draws = np.arange(4096) / 4096
    cells = np.histogram2d(draws[:-1], draws[1:], 16, [[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue < 1e-6


def test_draws_of_a_row_are_independent():
    draws = draw_uniforms(RowKeys(7, 3, torch.arange(50_000), 1), 16, 1).astype(np.float64)
    assert np.abs(draws.mean(0) - 0.5).max() < 0.007  # 5 sigma
    assert np.abs(draws.var(0) * 12 - 1).max() < 0.03
    across_draws = np.corrcoef(draws.T) - np.eye(16)
    assert np.abs(across_draws).max() < 0.025
    for one in range(0, 16, 5):
        for other in range(one + 1, 16, 4):
            cells = np.histogram2d(draws[:, one], draws[:, other], 8, [[0, 1], [0, 1]])[0]
            assert stats.chi2_contingency(cells).pvalue > 1e-4


def test_copies_of_an_example_are_independent_of_each_other():
    by_copy = np.concatenate(
        [draw_uniforms(RowKeys(7, 3, torch.arange(20_000), copy), 1, 1) for copy in range(1, 5)], 1
    )
    assert np.abs(np.corrcoef(by_copy.T) - np.eye(4)).max() < 0.03


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_int64_mixing_matches_uint64(words):
    found = mix_words(torch.tensor(words))
    assert [word % (1 << 64) for word in found.tolist()] == [mix(word & WORD) for word in words]


@pytest.mark.cuda
def test_cuda_draws_the_same_integers_and_noise():
    words = torch.arange(-5000, 5000) * 0x123456789ABCDEF
    assert torch.equal(mix_words(words.cuda()).cpu(), mix_words(words))
    seeds = torch.from_numpy(draw_uniforms(RowKeys(0, 0, torch.arange(9), 1), 2, 1))
    assert torch.equal(draw_normals(seeds.cuda(), 1000).cpu(), draw_normals(seeds, 1000))


# Contract 14, through the loader.


class Recording:
    """A policy that records the rows it gets, and blackens them."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, rows):
        self.calls.append(list(zip(rows.index.tolist(), rows.copy.tolist(), strict=True)))
        return torch.zeros_like(x)


def small_loader(policy, **options):
    x = torch.randint(1, 256, (60, 1, 4, 4), dtype=torch.uint8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    dataset = TensorDataset(x, torch.arange(60) % 3)
    loader = DataLoader(dataset, batch_size=7, shuffle=True)
    return x, SubsetAugmentLoader(loader, model, policy, **options)


class Short(RandomSelector):
    """Selects fewer examples than there is room for, so that the epoch is filled up."""

    def select(self, gradients, *, budget, seed, epoch):
        return super().select(gradients, budget=max(1, budget - 2), seed=seed, epoch=epoch)


@given(
    st.sampled_from(["all", "unselected", "selected", "none"]),
    st.sampled_from(["uniform", "cluster", "unscaled", "resample"]),
    st.integers(1, 3),
    st.sampled_from([0.05, 0.3, 1.0]),
)
def test_the_strong_policy_sees_exactly_the_copies_and_originals_pass_untouched(
    originals, weights, copies, fraction
):
    policy = Recording()
    x, loader = small_loader(
        policy,
        originals=originals,
        weights=weights,
        copies=copies,
        fraction=fraction,
        selector=Short(),
    )
    policy.calls.clear()  # it was tried at construction
    seen = []  # the keys of each batch, in order
    process = loader.pipeline.process

    def recording(batch, keys, *rest):
        seen.append(keys)
        return process(batch, keys, *rest)

    loader.pipeline.process = recording
    batches = [pixels for pixels, *_ in loader]
    calls = iter(policy.calls)
    for pixels, keys in zip(batches, seen, strict=True):
        _, copy, index = unpack(keys)
        is_copy = (copy > 0) & (copy != PADDING)
        assert torch.equal(pixels[~is_copy], x[index[~is_copy]].float() / 255)
        assert float(pixels[is_copy].abs().sum()) == 0
        if bool(is_copy.any()):
            pairs = list(zip(index[is_copy].tolist(), copy[is_copy].tolist(), strict=True))
            assert next(calls) == pairs
    assert next(calls, None) is None  # never called without copies
    selected = set(loader.selection.indices.tolist())
    assert {index for call in policy.calls for index, _ in call} <= selected
    is_padded = any(bool((unpack(keys)[1] == PADDING).any()) for keys in seen)
    # In place, one copy takes the place of an original: fewer selected are as many rows.
    is_short = fraction < 1 and (originals, copies) != ("unselected", 1)
    assert is_padded == (weights in ("cluster", "unscaled") and is_short)
