"""forked_rng: everybody's generators are as they were, and no accelerator is touched."""

import random

import numpy as np
import pytest
import torch

from augsubset.rng import forked_rng, mix_seed


def draws():
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_the_block_draws_from_its_seed_and_the_caller_goes_on_as_before():
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


def test_accelerators_that_were_not_named_are_not_reseeded(monkeypatch):
    reseeded = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda seed: reseeded.append(seed))
    with forked_rng(3):
        pass
    assert reseeded == []
    torch.manual_seed(3)
    assert reseeded == [3]  # the control: this is what torch.manual_seed does


@pytest.mark.cuda
def test_a_cuda_device_that_was_named_is_seeded_and_put_back():
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
