"""WeightedCoresetSampler: arguments, lengths, weights."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from augsubset import AugsubsetError, Selection, SubsetAugmentDataset, WeightedCoresetSampler
from augsubset.sampling import PADDING, pack, unpack

N = 8


def selection_of(*cluster_sizes: float) -> Selection:
    """Examples 5, 2, 7, ... with these weights."""
    k = len(cluster_sizes)
    return Selection(
        indices=torch.tensor([5, 2, 7, 0])[:k],
        weights=torch.tensor(cluster_sizes).double(),
        gains=torch.zeros(k).double(),
        clusters=torch.full((N,), -1),
    )


def rows_of(sampler):
    """{(copy, index): weight} of the coming epoch."""
    keys = torch.tensor(list(sampler))
    weights = sampler.weights_for(keys)
    _, copies, indices = unpack(keys)
    pairs = zip(copies.tolist(), indices.tolist(), strict=True)
    return dict(zip(pairs, weights.tolist(), strict=True))


@pytest.mark.parametrize(
    ("originals", "weighs"),
    [
        ("all", dict.fromkeys(range(N), 1.0)),
        ("unselected", {index: 1.0 for index in range(N) if index not in (5, 2)}),
        ("selected", {5: 6.0, 2: 2.0}),
        ("none", {}),
    ],
)
@pytest.mark.parametrize("weights", ["cluster", "uniform"])
def test_each_choice_of_originals_yields_its_rows_once_with_its_weights(originals, weighs, weights):
    sampler = WeightedCoresetSampler(
        range(N), selection_of(6, 2), copies=2, originals=originals, weights=weights
    )
    expected = {(0, index): weight for index, weight in weighs.items()}
    expected |= {(copy, 5): 3.0 for copy in (1, 2)} | {(copy, 2): 1.0 for copy in (1, 2)}
    if weights == "uniform":
        expected = dict.fromkeys(expected, 1.0)
    assert rows_of(sampler) == expected
    assert len(sampler) == len(expected)


def test_unselected_at_one_copy_keeps_n_rows_and_total_weight():
    sampler = WeightedCoresetSampler(range(N), selection_of(1, 1), originals="unselected")
    assert len(sampler) == N
    assert sum(rows_of(sampler).values()) == N


def test_the_unscaled_copies_count_as_much_as_the_originals():
    weights = rows_of(WeightedCoresetSampler(range(N), selection_of(6, 2), copies=3))
    copies = sum(weight for (copy, _), weight in weights.items() if copy)
    assert copies == pytest.approx(N)


def test_without_shuffling_originals_and_copies_keep_their_order():
    sampler = WeightedCoresetSampler(range(N), selection_of(6, 2), copies=2, shuffle=False)
    copies = [pack(0, copy, index) for copy in (1, 2) for index in (2, 5)]
    keys = list(sampler)
    assert [key for key in keys if key in range(N)] == list(range(N))
    assert [key for key in keys if key not in range(N)] == copies
    assert keys[:N] != list(range(N))  # spread among the originals


def test_mean_weight_leaves_padding_out():
    sampler = WeightedCoresetSampler(range(N), budget=4, copies=1, originals="none")
    sampler.set_selection(selection_of(5, 3))
    assert len(list(sampler)) == 4
    assert sampler.mean_weight(0) == 4


def test_padding_rows_are_originals_index_with_weight_zero():
    sampler = WeightedCoresetSampler(range(N), budget=4, copies=2)
    sampler.set_selection(selection_of(4, 4))
    weights = rows_of(sampler)
    padded = {pair: weight for pair, weight in weights.items() if pair[0] == PADDING}
    assert len(padded) == len(sampler) - N - 4
    assert set(padded.values()) == {0.0}


def test_a_selection_set_while_an_epoch_runs_waits_for_the_next():
    sampler = WeightedCoresetSampler(range(N), selection_of(6, 2), originals="none")
    running = iter(sampler)
    first = next(running)
    sampler.set_selection(selection_of(8))
    keys = torch.tensor([first, *running])
    assert sorted(sampler.weights_for(keys).tolist()) == [2.0, 6.0]
    sampler.set_epoch(1)
    later = torch.tensor(list(sampler))
    assert sorted(sampler.weights_for(later).tolist()) == [0.0, 8.0]
    assert sorted(sampler.weights_for(keys).tolist()) == [2.0, 6.0]


def test_weights_of_epochs_that_never_started_are_refused():
    sampler = WeightedCoresetSampler(range(N), selection_of(6, 2))
    with pytest.raises(AugsubsetError, match="epoch 4 was not started"):
        sampler.weights_for(torch.tensor([pack(4, 0, 1)]))


def test_epochs_are_forgotten_after_64():
    sampler = WeightedCoresetSampler(range(N), selection_of(6, 2))
    for epoch in range(65):
        sampler.set_epoch(epoch)
        iter(sampler)
    assert sampler.weights_for(torch.tensor([pack(1, 1, 5)])).tolist() == [6.0]
    with pytest.raises(AugsubsetError, match="epoch 0 was not started"):
        sampler.weights_for(torch.tensor([pack(0, 1, 5)]))


def test_keys_of_copies_that_were_not_selected_are_refused():
    sampler = WeightedCoresetSampler(range(N), selection_of(6, 2))
    iter(sampler)
    with pytest.raises(AugsubsetError, match="rows that epoch 0 did not select"):
        sampler.weights_for(torch.tensor([pack(0, 1, 3)]))


def test_iterating_without_a_selection_is_refused():
    with pytest.raises(AugsubsetError, match="no selection is set"):
        iter(WeightedCoresetSampler(range(N), budget=2))


def test_a_larger_selection_is_refused():
    sampler = WeightedCoresetSampler(range(N), budget=2)
    with pytest.raises(ValueError, match="at most budget=2 examples, got 3"):
        sampler.set_selection(selection_of(2, 3, 3))


def test_a_selection_of_another_dataset_is_refused():
    with pytest.raises(ValueError, match="selection must be of this dataset of 9 examples"):
        WeightedCoresetSampler(range(9), selection_of(6, 2))


@pytest.mark.parametrize("epoch", [-1, 8192])
def test_epochs_that_no_key_can_hold_are_refused(epoch):
    with pytest.raises(ValueError, match="epoch must be between 0 and 8191"):
        WeightedCoresetSampler(range(N), budget=2).set_epoch(epoch)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"originals": "some"}, "originals must be one of 'all', 'unselected', 'selected', 'none'"),
        ({"weights": "paper"}, "weights must be one of 'cluster', 'uniform', 'resample'"),
        ({"layout": "rows"}, "layout must be one of 'mixed', 'grouped'"),
        ({"layout": "grouped"}, "batch_size must have room .* 2 rows.*got batch_size=None"),
        ({"layout": "grouped", "batch_size": 1}, "batch_size must have room .*got batch_size=1"),
        ({"copies": 0}, "copies must be between 1 and 8191"),
        ({"copies": 8192}, "copies must be between 1 and 8191"),
        ({"budget": 0}, "budget must be between 1 and 8"),
        ({"budget": 9}, "budget must be between 1 and 8"),
        ({"budget": None}, "budget must be given when there is no selection"),
        ({"num_replicas": 2}, "num_replicas and rank must both be given or neither"),
        ({"num_replicas": 2, "rank": 2}, "rank must be between 0 and 1"),
        ({"num_replicas": 99, "rank": 0, "drop_last": True}, "at least one row per rank"),
    ],
)
def test_bad_arguments_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        WeightedCoresetSampler(range(N), **{"budget": 2, **arguments})


@pytest.mark.parametrize("name", ["copies", "budget", "seed"])
@pytest.mark.parametrize("value", [2.0, True, "2"])
def test_numbers_that_are_no_ints_are_refused(name, value):
    with pytest.raises(TypeError, match=f"{name} must be an int, got {type(value).__name__}"):
        WeightedCoresetSampler(range(N), **{"budget": 2, name: value})


def test_numpy_integers_are_ints():
    sampler = WeightedCoresetSampler(range(N), budget=np.int64(2), copies=np.int32(2))
    sampler.set_selection(selection_of(6, 2))
    sampler.set_epoch(np.int64(3))
    assert len(list(sampler)) == len(sampler) == 12


def test_a_selection_of_indices_beyond_the_dataset_is_refused():
    with pytest.raises(ValueError, match="indices up to 8"):
        WeightedCoresetSampler(range(N), replace(selection_of(6), indices=torch.tensor([8])))


def test_what_is_no_selection_is_refused():
    with pytest.raises(TypeError, match="selection must be a Selection, got list"):
        WeightedCoresetSampler(range(N), budget=2).set_selection([1, 2])


def test_keys_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match=r"keys must be int64, got torch\.int32"):
        WeightedCoresetSampler(range(N), budget=2).weights_for(torch.zeros(1, dtype=torch.int32))


def share_of(num_replicas, *, layout, drop_last):
    """Rank 0's of 23 rows, or of 12 batches of two."""
    selection = Selection.equally_weighted(torch.arange(5), 23)
    options = {"originals": "unselected", "layout": layout, "batch_size": 2, "drop_last": drop_last}
    return WeightedCoresetSampler(
        range(23), selection, num_replicas=num_replicas, rank=0, **options
    )


@pytest.mark.parametrize("layout", ["mixed", "grouped"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("before", range(1, 5))
@pytest.mark.parametrize("after", range(2, 6))
def test_a_state_is_taken_by_any_number_of_ranks_wherever_it_was_made(
    layout, drop_last, before, after
):
    """Also one made on ranks that took over from others, whose tail is filled up anew."""

    def of(num_replicas, state=None):
        sampler = share_of(num_replicas, layout=layout, drop_last=drop_last)
        if state is not None:
            sampler.load_state_dict(state)
        return sampler

    unit = 2 if layout == "grouped" else 1
    first = of(before)
    running = iter(first)
    for _ in range(0, len(first) + 1, unit):
        resumed = of(after, first.state_dict())
        rest = iter(resumed)
        for left in range(resumed.rows_left(first.state_dict()["position"]), -1, -unit):
            assert len(list(of(after, resumed.state_dict()))) == left
            of(before, resumed.state_dict())
            list(itertools.islice(rest, unit))
        assert next(rest, None) is None
        assert list(of(1, resumed.state_dict())) == []
        list(itertools.islice(running, unit))


@pytest.mark.parametrize(("position", "is_possible"), [(23, True), (46, True), (47, False)])
def test_a_position_beyond_the_end_is_the_end_unless_no_ranks_could_have_filled_up_so_far(
    position, is_possible
):
    sampler = share_of(1, layout="mixed", drop_last=False)
    state = {**sampler.state_dict(), "position": position}
    if is_possible:
        sampler.load_state_dict(state)
        assert sampler.state_dict()["position"] == 23
        assert list(sampler) == []
    else:
        with pytest.raises(ValueError, match="position must be between 0 and 46, got position=47"):
            sampler.load_state_dict(state)


def test_our_dataset_in_a_subset_is_refused():
    wrong = Subset(SubsetAugmentDataset(range(N)), [0, 1])
    with pytest.raises(ValueError, match="must not contain a SubsetAugmentDataset"):
        WeightedCoresetSampler(wrong, budget=1)
