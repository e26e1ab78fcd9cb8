"""Contracts 9 and 12: length, order, and weights however far ahead somebody reads."""

from collections import deque

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from augsubset import Selection, SubsetAugmentDataset, WeightedCoresetSampler
from augsubset.sampling import PADDING, KeyedCollate, unpack
from tests.contracts import assert_order_pure

RAW = st.sampled_from(["all", "unselected", "selected", "none"])


def random_selection(n: int, k: int, seed: int) -> Selection:
    rng = np.random.default_rng(seed)
    return Selection(
        indices=torch.from_numpy(rng.permutation(n)[:k]),
        weights=torch.from_numpy(rng.integers(1, 9, k).astype(np.float64)),
        gains=torch.zeros(k).double(),
        clusters=torch.full((n,), -1),
    )


@st.composite
def settings(draw):
    n = draw(st.integers(1, 30))
    budget = draw(st.integers(1, n))
    return {
        "n": n,
        "budget": budget,
        "k": draw(st.integers(1, budget)),
        "copies": draw(st.integers(1, 4)),
        "raw": draw(RAW),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**40)),
    }


def make(case, dataset=None):
    sampler = WeightedCoresetSampler(
        range(case["n"]) if dataset is None else dataset,
        budget=case["budget"],
        copies=case["copies"],
        raw=case["raw"],
        shuffle=case["shuffle"],
        seed=case["seed"],
    )
    sampler.set_selection(random_selection(case["n"], case["k"], case["seed"]))
    return sampler


def expected_rows(case) -> dict:
    """{(copy, index): weight}, written out row by row from the table of the docstring."""
    selection = random_selection(case["n"], case["k"], case["seed"])
    size = dict(zip(selection.indices.tolist(), selection.weights.tolist(), strict=True))
    rows = {}
    for index in range(case["n"]):
        if case["raw"] == "all" or (case["raw"] == "unselected" and index not in size):
            rows[0, index] = 1.0
        if case["raw"] == "selected" and index in size:
            rows[0, index] = size[index]
        for copy in range(1, case["copies"] + 1):
            if index in size:
                rows[copy, index] = size[index] / case["copies"]
    return rows


@given(settings(), st.integers(0, 8191))
def test_an_epoch_yields_len_rows_each_once_weighted_and_padded_with_zeros(case, epoch):
    sampler = make(case)
    sampler.set_epoch(epoch)
    keys = torch.tensor(list(sampler))
    assert len(keys) == len(sampler)
    epochs, copies, indices = unpack(keys)
    assert bool((epochs == epoch).all())
    real = copies != PADDING
    weights = sampler.weights_for(keys)
    assert bool((weights[~real] == 0).all())
    pairs = list(zip(copies[real].tolist(), indices[real].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    found = dict(zip(pairs, weights[real].tolist(), strict=True))
    expected = expected_rows(case)
    assert found.keys() == expected.keys()
    assert all(abs(found[pair] - expected[pair]) < 1e-5 for pair in expected)


@given(settings())
def test_order_is_a_function_of_seed_epoch_and_selection(case):
    assert_order_pure(lambda: make(case))


@given(settings())
def test_shuffled_epochs_and_seeds_differ_but_hold_the_same_rows(case):
    case = {**case, "n": 30, "budget": 10, "k": 10, "shuffle": True}
    orders = {}
    for seed, epoch in ((case["seed"], 0), (case["seed"], 1), (case["seed"] + 1, 0)):
        sampler = make({**case, "seed": seed})
        sampler.set_selection(random_selection(30, 10, 0))
        sampler.set_epoch(epoch)
        _, copies, indices = unpack(torch.tensor(list(sampler)))
        orders[seed, epoch] = list(zip(copies.tolist(), indices.tolist(), strict=True))
    assert len({tuple(order) for order in orders.values()}) == 3
    assert len({tuple(sorted(order)) for order in orders.values()}) == 1


@given(settings(), st.integers(1, 50))
def test_a_row_keeps_the_weight_of_its_epoch_however_far_ahead_it_was_read(case, ahead):
    """A consumer that lags ``ahead`` rows behind the sampler, across epochs and reselections."""
    sampler = make(case)
    in_flight: deque = deque()
    expected, found = [], []

    def consume(until: int) -> None:
        while len(in_flight) > until:
            found.append(float(sampler.weights_for(torch.tensor([in_flight.popleft()]))))

    for epoch in range(3):
        selection = random_selection(case["n"], case["k"], case["seed"] + epoch)
        sampler.set_selection(selection)
        size = dict(zip(selection.indices.tolist(), selection.weights.tolist(), strict=True))
        sampler.set_epoch(epoch)
        for key in sampler:
            _, copy, index = unpack(key)
            if copy == PADDING:
                weight = 0.0
            elif copy:
                weight = size[index] / case["copies"]
            else:
                weight = size[index] if case["raw"] == "selected" else 1.0
            expected.append(weight)
            in_flight.append(key)
            consume(ahead)
    consume(0)
    assert np.allclose(found, expected, atol=1e-6)


def test_persistent_workers_see_every_reselection():
    """Workers keep a copy of the dataset from before all selections; the keys are enough."""
    dataset = SubsetAugmentDataset([(index, index) for index in range(12)])
    sampler = WeightedCoresetSampler(dataset, budget=3, copies=2, raw="none")
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=sampler,
        num_workers=2,
        persistent_workers=True,
        collate_fn=KeyedCollate(list),
    )
    for epoch in range(4):
        selection = random_selection(12, 3, epoch)
        sampler.set_selection(selection)
        sampler.set_epoch(epoch)
        seen = {item[0] for items, _ in loader for item in items}
        assert seen == set(selection.indices.tolist())
