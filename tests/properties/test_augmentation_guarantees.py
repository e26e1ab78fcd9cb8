"""Contracts 14 and 15: who is augmented, and what a row's result depends on."""

import random
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import CropFlip, KorniaModule, RandomOps, RowKeys, SubsetAugmentLoader
from augsubset.augment import kernels_cpu
from augsubset.augment.ops import OPS
from augsubset.augment.random import mixed, normals, uniforms
from augsubset.sampling import pack, unpack

POLICIES = {
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
def num_threads(count):
    """Set how many threads there are; two share the rows of the host's loops, however few."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels_cpu, "_MIN_A_THREAD", 1)
            yield
    finally:
        torch.set_num_threads(before)


def test_two_threads_share_even_two_rows():
    """Of what the tests below do at two threads."""
    pieces, run = [], kernels_cpu._run
    x, rows = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), RowKeys(0, 0, torch.arange(2), 1)
    with num_threads(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels_cpu, "_run", lambda x, *rest: pieces.append(len(x)) or run(x, *rest))
        RandomOps.paper()(x, rows)
    assert pieces == [1, 1]


@pytest.mark.parametrize("name", POLICIES)
@given(case=batches(), data=st.data())
def test_a_rows_result_does_not_depend_on_batch_mates_order_or_batch_size(name, case, data):
    x, rows = case
    policy = POLICIES[name]
    together = policy(x, rows)
    with num_threads(data.draw(st.sampled_from([1, 2]))):
        assert_rows_are_their_own(policy, x, rows, together, data)


def assert_rows_are_their_own(policy, x, rows, together, data):
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
    """From 32,768 numbers on, torch splits a reduction among threads when it stands alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=generator)
    x = x.float() / 255 if unit else x
    rows = RowKeys(0, 0, torch.arange(3), 1)
    policy = RandomOps([name], num_ops=1)
    together = policy(x, rows)
    with num_threads(threads):
        alone = [policy(x[i : i + 1], rows[torch.tensor([i])]) for i in range(3)]
        assert torch.equal(torch.cat(alone), together)
        other = policy(x.contiguous(memory_format=torch.channels_last), rows)
        assert torch.equal(other, together)


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=10)
@given(data=st.data())
def test_the_same_at_224_pixels(name, data):
    policy = POLICIES[name]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    channels = data.draw(st.sampled_from([1, 3]))
    x = torch.randint(0, 256, (6, channels, 224, 224), dtype=torch.uint8, generator=generator)
    x = x.float() / 255 if data.draw(st.booleans()) else x
    rows = RowKeys(data.draw(st.integers(0, 2**40)), 0, torch.arange(6), 1)
    together = policy(x, rows)
    order = torch.tensor(data.draw(st.permutations(range(6))))
    cut = data.draw(st.integers(1, 5))
    with num_threads(data.draw(st.sampled_from([1, 2]))):
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
    on_host = policy(x, rows)
    assert float((together.cpu().int() - on_host.int()).abs().float().mean()) < 0.5


@pytest.mark.cuda
@pytest.mark.parametrize("name", POLICIES)
def test_the_host_never_waits_for_the_device(name):
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8).cuda()
    rows, policy = RowKeys(0, 0, torch.arange(64), 1), POLICIES[name]
    policy(x, rows)  # tables are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        policy(x, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("held", ["device", "pinned", "pageable"])
def test_a_loaders_batch_path_never_waits_for_the_device(compiled, held):
    """From a fetched batch to the next one made ahead, on the side stream."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).cuda()
    dataset = TensorDataset(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 4)
    loader = SubsetAugmentLoader(
        DataLoader(dataset, 8, pin_memory=held == "pinned"),
        model,
        RandomOps.paper(compiled=compiled),
        base=CropFlip(4),
        normalize=([0.5] * 3, [0.2] * 3),
        channels_last=True,
    )
    delivery, device = loader._delivery, torch.device("cuda")
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    x, y = x, torch.arange(64) % 4
    if held != "pageable":
        x, y = (part.cuda() if held == "device" else part.pin_memory() for part in (x, y))
    keys = pack(0, torch.arange(64) % 3, torch.arange(64))

    def epoch():
        def made():
            for _ in range(3):
                parts = delivery.split((x, y))
                move = partial(loader._source.moved, device=device)
                yield delivery.ready((x, y), parts, keys, torch.ones(64), move)

        for batch in delivery.ahead(made(), device):
            model(batch.output[0]).sum().backward()

    epoch()  # statistics and tables are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", POLICIES)
def test_deterministic_algorithms_are_all_that_is_needed(name, device):
    x = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, device=device)
    rows, policy = RowKeys(0, 0, torch.arange(16), 1), POLICIES[name]
    expected = policy(x, rows)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(policy(x, rows), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_kornia_module_may_depend_on_batch_mates():
    """The control: what the built-in policies rule out does happen elsewhere."""
    import kornia.augmentation as K

    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = RowKeys(0, 0, torch.arange(8), 1)
    policy = KorniaModule(K.RandomAffine(45.0))
    four = torch.arange(4)
    assert not torch.equal(policy(x, rows)[:4], policy(x[:4], rows[four]))


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


# The counter RNG against splitmix64 in Python's own integers.

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
    found = uniforms(RowKeys(seed, epoch, torch.tensor([index]), copy), num_draws, stream)
    assert found.tolist() == [expected]


AXES = {
    "seed": lambda n: [uniforms(RowKeys(s, 3, torch.tensor([5]), 1), 1, 1)[0, 0] for s in range(n)],
    "epoch": lambda n: uniforms(RowKeys(7, torch.arange(n) % 8192, n + torch.arange(n), 1), 1, 1),
    "index": lambda n: uniforms(RowKeys(7, 3, torch.arange(n), 1), 1, 1),
    "large index": lambda n: uniforms(RowKeys(7, 3, (1 << 36) - 1 - torch.arange(n), 1), 1, 1),
    "copy": lambda n: uniforms(RowKeys(7, 3, torch.tensor([5]), torch.arange(n)), 1, 1),
    "draw": lambda n: uniforms(RowKeys(7, 3, torch.tensor([5]), 1), n, 1),
    "stream": lambda n: [
        uniforms(RowKeys(7, 3, torch.tensor([5]), 1), 1, s)[0, 0] for s in range(n)
    ],
    "last bits": lambda n: (uniforms(RowKeys(7, 3, torch.arange(n), 1), 1, 1) * 2**16) % 1,
}


@pytest.mark.parametrize("axis", AXES)
def test_uniforms_are_uniform_and_neighbours_independent(axis):
    """Along each part of the key alone: as a whole, and from one number to the next."""
    draws = np.asarray(AXES[axis](4096), np.float64).ravel()
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.histogram(draws, 64, (0, 1))[0]).pvalue > 1e-3
    cells = np.histogram2d(draws[:-1], draws[1:], 16, [[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells[:, :].ravel()).pvalue > 1e-3
    signs = draws > 0.5
    runs = 1 + int((signs[1:] != signs[:-1]).sum())
    assert abs(runs - len(draws) / 2) < 4 * (len(draws) / 4) ** 0.5


def test_the_tests_of_uniformity_tell_a_counter_from_a_hash():
    """The control."""
    draws = np.arange(4096) / 4096
    cells = np.histogram2d(draws[:-1], draws[1:], 16, [[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue < 1e-6


def test_draws_of_a_row_are_independent():
    draws = uniforms(RowKeys(7, 3, torch.arange(50_000), 1), 16, 1).astype(np.float64)
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
        [uniforms(RowKeys(7, 3, torch.arange(20_000), copy), 1, 1) for copy in range(1, 5)], 1
    )
    assert np.abs(np.corrcoef(by_copy.T) - np.eye(4)).max() < 0.03


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_a_devices_integers_are_the_hosts(words):
    found = mixed(torch.tensor(words))
    assert [word % (1 << 64) for word in found.tolist()] == [mix(word & WORD) for word in words]


@pytest.mark.cuda
def test_cuda_draws_the_same_integers_and_noise():
    words = torch.arange(-5000, 5000) * 0x123456789ABCDEF
    assert torch.equal(mixed(words.cuda()).cpu(), mixed(words))
    seeds = torch.from_numpy(uniforms(RowKeys(0, 0, torch.arange(9), 1), 2, 1))
    assert torch.equal(normals(seeds.cuda(), 1000).cpu(), normals(seeds, 1000))


# Contract 14, through the loader.


class Recording:
    """A policy that notes the rows it gets, and blackens them."""

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


@given(
    st.sampled_from(["all", "unselected", "selected", "none"]),
    st.integers(1, 3),
    st.sampled_from([0.05, 0.3, 1.0]),
)
def test_the_strong_policy_sees_exactly_the_copies_and_originals_pass_untouched(
    raw, copies, fraction
):
    policy = Recording()
    x, loader = small_loader(policy, raw=raw, copies=copies, fraction=fraction)
    sampler = loader._sampler  # the keys of each batch, in order
    seen = []
    weigh = sampler.weights_for
    sampler.weights_for = lambda keys: (seen.append(keys), weigh(keys))[1]
    batches = [pixels for pixels, _, _ in loader]
    calls = iter(policy.calls)
    for pixels, keys in zip(batches, seen, strict=True):
        _, copy, index = unpack(keys)
        chosen = copy > 0
        assert torch.equal(pixels[~chosen], x[index[~chosen]].float() / 255)
        assert float(pixels[chosen].abs().sum()) == 0
        if bool(chosen.any()):
            pairs = list(zip(index[chosen].tolist(), copy[chosen].tolist(), strict=True))
            assert next(calls) == pairs
    assert next(calls, None) is None  # never called for none
    selected = loader.selection.indices.tolist()
    expected = sorted((i, c) for i in selected for c in range(1, copies + 1))
    assert sorted(pair for call in policy.calls for pair in call) == expected
