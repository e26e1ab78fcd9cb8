"""Contracts 14 and 15: who is augmented, and what a row's result depends on."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import CropFlip, KorniaModule, RandomOps, RowKeys, SubsetAugmentLoader
from augsubset.augment.keyed_random import uniforms
from augsubset.augment.ops import OPS
from augsubset.sampling import unpack

POLICIES = {"ops": RandomOps.paper(), "three": RandomOps(num_ops=3), "crop": CropFlip(3)}
KEYS = st.tuples(
    st.integers(0, 2**62), st.integers(0, 8191), st.integers(0, 2**36 - 1), st.integers(0, 2**14)
)


@st.composite
def batches(draw):
    count = draw(st.integers(1, 24))
    channels = draw(st.sampled_from([1, 3]))
    size = draw(st.sampled_from([(8, 8), (7, 13), (2, 2)]))
    pixels = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 256, (count, channels, *size), dtype=np.uint8
    )
    x = torch.from_numpy(pixels)
    if draw(st.booleans()):
        x = x.float() / 255
    index = torch.tensor(draw(st.lists(st.integers(0, 99), min_size=count, max_size=count)))
    copy = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    return x, RowKeys(draw(st.integers(0, 2**40)), draw(st.integers(0, 8191)), index, copy)


@pytest.mark.parametrize("name", POLICIES)
@given(case=batches(), data=st.data())
def test_a_rows_result_does_not_depend_on_batch_mates_order_or_batch_size(name, case, data):
    x, rows = case
    policy = POLICIES[name]
    together = policy(x, rows)
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    assert torch.equal(policy(x[order], rows[order]), together[order])
    cut = data.draw(st.integers(0, len(x)))
    parts = [policy(x[part], rows[part]) for part in (torch.arange(cut), torch.arange(cut, len(x)))]
    assert torch.equal(torch.cat(parts), together)
    one = torch.tensor([cut % len(x)])
    assert torch.equal(policy(x[one], rows[one]), together[one])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("unit", [False, True])
def test_large_images_do_not_depend_on_the_batch_or_the_memory_format(name, unit):
    """From 32,768 numbers on, torch splits a reduction among threads when it stands alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (3, 3, 210, 190), dtype=torch.uint8, generator=generator)
    x = x.float() / 255 if unit else x
    rows = RowKeys(0, 0, torch.arange(3), 1)
    policy = RandomOps([name], num_ops=1)
    together = policy(x, rows)
    alone = [policy(x[i : i + 1], rows[torch.tensor([i])]) for i in range(3)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(policy(x.contiguous(memory_format=torch.channels_last), rows), together)


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


def test_uniforms_are_uniform_and_uncorrelated():
    draws = uniforms(RowKeys(7, 3, torch.arange(50_000), 1), 16, 1).double()
    assert float((draws.mean(0) - 0.5).abs().max()) < 0.007  # 5 sigma
    assert float((draws.var(0) * 12 - 1).abs().max()) < 0.03
    across_draws = torch.corrcoef(draws.T) - torch.eye(16)
    assert float(across_draws.abs().max()) < 0.025
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]
    assert abs(float(neighbours)) < 0.025
    counts = torch.histc(draws[:, 0], 100, 0, 1)
    chi_square = float(((counts - 500) ** 2 / 500).sum())
    assert chi_square < 99 + 5 * (2 * 99) ** 0.5


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
