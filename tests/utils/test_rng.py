"""Seeds and hashes; forked_rng leaves all generators unchanged."""

import random

import numpy as np
import pytest
import torch

from augsubset.utils.rng import forked_rng, hash_integers, mix_seed


def draws():
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_the_block_draws_from_its_seed_and_the_caller_continues_unchanged():
    for seed_all in (torch.manual_seed, random.seed, np.random.seed):
        seed_all(7)
    expected = [draws(), draws()]
    for seed_all in (torch.manual_seed, random.seed, np.random.seed):
        seed_all(7)
    found = [draws()]
    inside = []
    for _ in range(2):
        with forked_rng(5):
            inside.append(draws())
    found.append(draws())
    assert found == expected
    assert inside[0] == inside[1] != expected[0]


def test_generators_are_restored_after_an_error():
    states = torch.get_rng_state(), random.getstate()

    def fail():
        with forked_rng(1):
            draws()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_other_accelerators_are_not_reseeded(monkeypatch):
    reseeded = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: reseeded.append(seed))
    with forked_rng(3):
        pass
    assert reseeded == []
    torch.manual_seed(3)
    assert reseeded == [3]  # the control: torch.manual_seed does reseed them


@pytest.mark.cuda
def test_a_given_cuda_device_is_seeded_and_restored():
    state = torch.cuda.get_rng_state()
    found = []
    for _ in range(2):
        with forked_rng(3, [torch.device("cuda")]):
            found.append(float(torch.rand((), device="cuda")))
    assert found[0] == found[1]
    assert torch.equal(state, torch.cuda.get_rng_state())


def test_seeds_do_not_collide_as_sums_do():
    pairs = {mix_seed(a, b) for a in range(50) for b in range(50)}
    assert len(pairs) == 2500
    assert all(0 <= seed < 2**63 for seed in pairs)


def test_a_hash_depends_on_its_integer_and_the_seed_alone():
    values = np.array([-(2**63), -5, 0, 1, 2, 2**40, 2**63 - 1])
    hashes = hash_integers(values)
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == len(values)
    for at in range(len(values)):
        assert hash_integers(values[[at]])[0] == hashes[at]
    assert np.array_equal(hash_integers(values[::-1]), hashes[::-1])
    assert not (hash_integers(values, 1) == hashes).any()
    assert values.tolist() == [-(2**63), -5, 0, 1, 2, 2**40, 2**63 - 1]  # unchanged


@pytest.mark.parametrize("stride", [1, 2, 1000, 2**32])
def test_hashes_of_regular_integers_are_uniform_and_independent_between_seeds(stride):
    n = 20_000
    first, second = (hash_integers(np.arange(n) * stride, seed) / 2**64 for seed in (0, 1))
    for shares in (first, second, (first + second) % 1):
        counts = np.histogram(shares, bins=20, range=(0, 1))[0]
        assert (np.abs(counts - n / 20) < 5 * np.sqrt(n / 20)).all()
    assert len(np.unique(first)) == n
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
