"""Contracts 9 to 13: length, order, shares, resuming, and weights however far ahead one reads."""

from collections import deque

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from augsubset import (
    LoaderOptions,
    RandomSelector,
    Selection,
    SubsetAugmentDataset,
    SubsetAugmentLoader,
    WeightedCoresetSampler,
)
from augsubset.sampling import PADDING, KeyedCollate, unpack
from tests.contracts import assert_order_pure

ORIGINALS = st.sampled_from(["all", "unselected", "selected", "none"])
WEIGHTS = st.sampled_from(["cluster", "uniform", "resample"])


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
        "originals": draw(ORIGINALS),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**40)),
        "weights": "cluster",
        "layout": "mixed",
        "batch_size": None,
    }


@st.composite
def any_settings(draw):
    """All weights and layouts too."""
    case = draw(settings())
    layout = draw(st.sampled_from(["mixed", "grouped"]))
    return {
        **case,
        "weights": draw(WEIGHTS),
        "layout": layout,
        "batch_size": case["copies"] + draw(st.integers(1, 9)) if layout == "grouped" else None,
    }


def make(case, dataset=None, **options):
    sampler = WeightedCoresetSampler(
        range(case["n"]) if dataset is None else dataset,
        budget=case["budget"],
        copies=case["copies"],
        originals=case["originals"],
        shuffle=case["shuffle"],
        seed=case["seed"],
        weights=case["weights"],
        layout=case["layout"],
        batch_size=case["batch_size"],
        **options,
    )
    sampler.set_selection(random_selection(case["n"], case["k"], case["seed"]))
    return sampler


def expected_rows(case) -> dict:
    """{(copy, index): weight}, written out row by row from the table of the docstring."""
    selection = random_selection(case["n"], case["k"], case["seed"])
    size = dict(zip(selection.indices.tolist(), selection.weights.tolist(), strict=True))
    rows = {}
    for index in range(case["n"]):
        if case["originals"] == "all" or (case["originals"] == "unselected" and index not in size):
            rows[0, index] = 1.0
        if case["originals"] == "selected" and index in size:
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


@given(any_settings(), st.integers(0, 8191))
def test_a_uniform_epoch_holds_originals_and_copies_alone_spread_evenly(case, epoch):
    """Nothing is padded, no row is there twice, and fillers go to each selected one in turn."""
    case = {**case, "weights": "uniform"}
    sampler = make(case)
    sampler.set_epoch(epoch)
    keys = torch.tensor(list(sampler))
    assert len(torch.unique(keys)) == len(keys) == len(sampler)
    assert sampler.weights_for(keys).tolist() == [1.0] * len(keys)
    _, copies, indices = unpack(keys)
    assert PADDING not in copies.tolist()
    expected = expected_rows(case)
    rows = set(zip(copies.tolist(), indices.tolist(), strict=True))
    assert expected.keys() <= rows
    extra = rows - expected.keys()
    selected = random_selection(case["n"], case["k"], case["seed"]).indices.tolist()
    counts = [sum(index == chosen for _, index in extra) for chosen in selected]
    assert sum(counts) == len(extra)
    assert max(counts) - min(counts) <= 1
    assert all(copy > 8191 for copy, _ in extra)


@given(any_settings(), st.integers(1, 5), st.data())
def test_order_is_a_function_of_seed_epoch_and_selection(case, num_replicas, data):
    rank = data.draw(st.integers(0, num_replicas - 1))
    assert_order_pure(lambda: make(case, num_replicas=num_replicas, rank=rank))


@given(any_settings(), st.integers(0, 8191))
def test_a_grouped_epoch_has_the_rows_of_a_mixed_one_each_example_in_whole_groups(case, epoch):
    case["layout"], case["batch_size"] = "grouped", case["batch_size"] or 1 + 2 * case["copies"]
    sampler, mixed = make(case), make({**case, "layout": "mixed"})
    for each in (sampler, mixed):
        each.set_epoch(epoch)
    keys, size = np.array(list(sampler)), case["batch_size"]
    assert len(keys) == len(sampler)
    assert len(keys) % size == 0
    _, copies, indices = unpack(keys)
    drawn = {key for key in mixed if unpack(key)[1] != PADDING}
    if case["weights"] == "cluster":
        assert set(keys[copies != PADDING].tolist()) == drawn
        assert len(drawn) == int((copies != PADDING).sum())
        batch = np.arange(len(keys)) // size
        selected = random_selection(case["n"], case["k"], case["seed"]).indices.tolist()
        for index in selected:
            mine = batch[(indices == index) & (copies != PADDING)]
            assert len(set(mine.tolist())) == 1
    else:
        assert drawn <= set(keys.tolist())


@given(any_settings(), st.integers(1, 5), st.integers(0, 8191))
def test_ranks_share_one_order_with_nothing_twice_and_nothing_lost(case, num_replicas, epoch):
    alone = make(case)
    alone.set_epoch(epoch)
    expected = list(alone)
    unit = case["batch_size"] or 1
    shares = []
    for rank in range(num_replicas):
        sampler = make(case, num_replicas=num_replicas, rank=rank)
        sampler.set_epoch(epoch)
        share = list(sampler)
        assert len(share) == len(sampler)
        shares.append([share[at : at + unit] for at in range(0, len(share), unit)])
    union = [key for step in zip(*shares, strict=True) for piece in step for key in piece]
    assert union[: len(expected)] == expected
    rest = torch.tensor(union[len(expected) :], dtype=torch.int64)
    assert len(rest) < unit * num_replicas
    if case["weights"] == "cluster":
        assert bool((unpack(rest)[1] == PADDING).all())
        assert bool((alone.weights_for(rest) == 0).all())
    else:
        copies = [key for key in union if unpack(key)[1]]  # originals may be drawn repeatedly
        assert len(set(copies)) == len(copies)
        assert alone.weights_for(torch.tensor(union)).tolist() == [1.0] * len(union)


@given(any_settings(), st.integers(1, 4))
def test_drop_last_leaves_a_prefix_that_divides_evenly(case, num_replicas):
    alone = make(case)
    if len(alone) < num_replicas * (case["batch_size"] or 1):
        return
    samplers = [
        make(case, num_replicas=num_replicas, rank=rank, drop_last=True)
        for rank in range(num_replicas)
    ]
    lengths = {len(list(sampler)) for sampler in samplers}
    assert lengths == {len(samplers[0])}
    kept = len(samplers[0]) * num_replicas
    expected = set(list(alone)[:kept])
    assert {key for sampler in samplers for key in sampler} == expected


@given(any_settings(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_stopping_anywhere_and_going_on_with_other_ranks_loses_and_repeats_nothing(
    case, before, after, data
):
    alone = make(case)
    alone.set_epoch(7)
    expected = list(alone)
    unit = case["batch_size"] or 1
    sampler = make(case, num_replicas=before, rank=0)
    sampler.set_epoch(7)
    iterator = iter(sampler)
    num_units = data.draw(st.integers(0, len(sampler) // unit))
    for _ in range(num_units * unit):
        next(iterator)
    state = sampler.state_dict()
    assert state["position"] == min(num_units * unit * before, len(expected))
    left = []
    for rank in range(after):
        resumed = make(case, num_replicas=after, rank=rank)
        resumed.load_state_dict(state)
        resumed.set_epoch(7)  # as loops do; it changes nothing
        share = list(resumed)
        left.append([share[at : at + unit] for at in range(0, len(share), unit)])
        resumed.set_epoch(8)
        assert len(list(resumed)) == len(resumed)
    union = [key for step in zip(*left, strict=True) for piece in step for key in piece]
    remaining = expected[state["position"] :]
    assert union[: len(remaining)] == remaining
    fillers = union[len(remaining) :]
    assert len(fillers) < unit * after
    if case["weights"] == "cluster":
        assert bool((unpack(torch.tensor(fillers, dtype=torch.int64))[1] == PADDING).all())
    else:
        assert len(set(fillers)) == len(fillers)
        assert not set(fillers) & set(expected)


@given(any_settings(), st.integers(0, 8191))
def test_drawn_rows_are_as_many_as_their_weight_rounded_up_or_down_and_distinct(case, epoch):
    case = {**case, "weights": "resample"}
    sampler = make(case)
    sampler.set_epoch(epoch)
    keys = torch.tensor(list(sampler))
    assert sampler.weights_for(keys).tolist() == [1.0] * len(keys)
    _, copies, indices = unpack(keys)
    assert PADDING not in copies.tolist()
    own = keys[copies > 0]
    assert len(torch.unique(own)) == len(own)
    selection = random_selection(case["n"], case["k"], case["seed"])
    share = selection.weights / selection.weights.sum() * case["k"] * case["copies"]
    for index, expected in zip(selection.indices.tolist(), share.tolist(), strict=True):
        drawn = int(((indices == index) & (copies > 0) & (copies < 8192)).sum())
        assert np.floor(expected) <= drawn <= np.ceil(expected)


def test_the_expected_number_of_draws_is_in_proportion_to_the_weights():
    """Contract 13: with it the expected gradient is proportional to the weighted one."""
    case = {
        "n": 20,
        "budget": 6,
        "k": 6,
        "copies": 1,
        "originals": "none",
        "shuffle": False,
        "seed": 3,
        "weights": "resample",
        "layout": "mixed",
        "batch_size": None,
    }
    sampler = make(case)
    counts = torch.zeros(20)
    for epoch in range(8000):
        sampler.set_epoch(epoch)
        counts += torch.bincount(unpack(torch.tensor(list(sampler)))[2], minlength=20)
    selection = random_selection(20, 6, 3)
    share = selection.weights / selection.weights.sum() * 6
    # A number of draws is its share rounded: its deviation is at most half, the mean's 0.0056.
    assert torch.allclose(counts[selection.indices] / 8000, share.float(), atol=0.025)
    uniform = torch.ones(6)
    assert not torch.allclose(counts[selection.indices] / 8000, uniform, atol=0.025)


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
                weight = size[index] if case["originals"] == "selected" else 1.0
            expected.append(weight)
            in_flight.append(key)
            consume(ahead)
    consume(0)
    assert np.allclose(found, expected, atol=1e-6)


def test_persistent_workers_see_every_reselection():
    """Workers keep a copy of the dataset from before all selections; the keys are enough."""
    dataset = SubsetAugmentDataset([(index, index) for index in range(12)])
    sampler = WeightedCoresetSampler(dataset, budget=3, copies=2, originals="none")
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


@given(
    st.sampled_from(["uniform", "cluster", "unscaled", "resample"]),
    ORIGINALS,
    st.sampled_from(["mixed", "grouped"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_what_ranks_of_a_loader_yield_is_one_epoch(
    weights, originals, layout, num_replicas, copies, is_short
):
    """Over all weights, originals and layouts, on one to four ranks: whole, and nothing twice."""

    class Short(RandomSelector):
        def select(self, gradients, *, budget, seed, epoch):
            budget -= is_short
            return super().select(gradients, budget=budget, seed=seed, epoch=epoch)

    data = TensorDataset(torch.zeros(23, 1, 2, 2, dtype=torch.uint8), torch.arange(23) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    shares, seen = [], []
    for rank in range(num_replicas):
        order = DistributedSampler(data, num_replicas, rank)
        loader = SubsetAugmentLoader(
            DataLoader(data, 5, sampler=order),
            model,
            lambda x, rows: x,
            fraction=0.3,
            copies=copies,
            originals=originals,
            weights=weights,
            selector=Short(),
            options=LoaderOptions(layout=layout),
        )
        process, keys = loader.pipeline.process, []
        loader.pipeline.process = lambda batch, k, *rest, p=process, to=keys: (
            to.append(k),
            p(batch, k, *rest),
        )[1]
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(
            len(batch) == (3 if weights in ("cluster", "unscaled") else 2) for batch in batches
        )
        shares.append(torch.cat(keys))
        seen += [weight for batch in batches for weight in batch[2:]]
    assert len({len(share) for share in shares}) == 1
    union = torch.cat(shares)
    _, copy, index = unpack(union)
    is_drawn = weights == "resample" and originals == "selected"  # then repeatedly
    real = union[(copy != PADDING) & (copy > 0 if is_drawn else copy >= 0)]
    assert len(torch.unique(real)) == len(real)
    selected = set(loader.selection.indices.tolist())
    rows = set(zip(copy.tolist(), index.tolist(), strict=True))
    kept = {"all": range(23), "unselected": set(range(23)) - selected, "none": ()}
    if originals != "selected":
        assert {i for c, i in rows if c == 0} == set(kept[originals])
    elif weights != "resample":
        assert {i for c, i in rows if c == 0} == selected
    assert {i for c, i in rows if 0 < c < PADDING} <= selected
    if weights != "resample":
        assert {(c, i) for c in range(1, copies + 1) for i in selected} <= rows
    if weights in ("uniform", "resample"):
        assert PADDING not in copy.tolist()
    else:
        w = torch.cat(seen)
        assert bool(((w == 0) == (copy == PADDING)).all())
        mean = float(w.sum() / (w > 0).sum())
        assert weights == "unscaled" or abs(mean - 1) < 1e-5
