"""SubsetAugmentDataset and the keyed collate function."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from augsubset import SubsetAugmentDataset
from augsubset.sampling import KeyedCollate, pack


class Counting(Dataset):
    """Counts fetches; items are (index, three random numbers)."""

    def __init__(self, n=10):
        self.n = n
        self.fetched = []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.fetched.append(index)
        draws = (float(torch.rand(())), random.random(), float(np.random.rand()))
        return index, torch.tensor(draws, dtype=torch.float64)


class Iterable(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def test_a_key_returns_the_item_of_its_index_and_itself():
    key = pack(5, 2, 7)
    item, found = SubsetAugmentDataset(Counting())[key]
    assert (item[0], found) == (7, key)


def test_each_distinct_index_is_fetched_once_a_batch():
    inner = Counting()
    keys = [pack(1, copy, index) for copy in (0, 1, 2) for index in (3, 8)]
    rows = SubsetAugmentDataset(inner).__getitems__(keys)
    assert inner.fetched == [3, 8]
    assert [row[1] for row in rows] == keys
    assert [row[0][0] for row in rows] == [3, 8, 3, 8, 3, 8]


def test_the_inner_datasets_own_batch_fetch_is_used():
    class Batched(Counting):
        def __getitems__(self, indices):
            return [(index, "batched") for index in indices]

    rows = SubsetAugmentDataset(Batched()).__getitems__([pack(0, 1, 4), 4])
    assert [row[0] for row in rows] == [(4, "batched")] * 2


def test_a_batch_fetch_that_loses_items_is_refused():
    class Lossy(Counting):
        def __getitems__(self, indices):
            return indices[1:]

    with pytest.raises(ValueError, match="one item per index, got 1 for 2 from its __getitems__"):
        SubsetAugmentDataset(Lossy()).__getitems__([1, 2])


def test_random_transforms_repeat_with_the_batch_and_differ_between_batches():
    dataset = SubsetAugmentDataset(Counting(), seed=1)

    def draws(keys, dataset=dataset):
        return torch.stack([row[0][1] for row in dataset.__getitems__(keys)])

    torch.manual_seed(3)
    once = draws([1, 2, 3])
    random.seed(9)
    assert torch.equal(once, draws([1, 2, 3]))
    assert not torch.equal(once[1:], draws([2, 3]))
    assert not torch.equal(once, draws([pack(1, 0, 1), 2, 3]))
    assert not torch.equal(once, draws([1, 2, 3], SubsetAugmentDataset(Counting(), seed=2)))


def test_fetching_leaves_the_callers_generators_alone():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    SubsetAugmentDataset(Counting()).__getitems__([1, 2])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_generators_are_restored_when_an_item_fails():
    class Failing(Counting):
        def __getitem__(self, index):
            super().__getitem__(index)
            raise KeyError(index)

    before = random.getstate()
    with pytest.raises(KeyError):
        SubsetAugmentDataset(Failing())[3]
    assert random.getstate() == before


def test_its_length_is_that_of_the_dataset_and_it_pickles():
    dataset = pickle.loads(pickle.dumps(SubsetAugmentDataset(Counting(6), seed=4)))
    assert len(dataset) == 6
    assert dataset.seed == 4


def test_collate_carries_the_keys():
    rows = [((torch.ones(2), 0), pack(3, 1, 0)), ((torch.zeros(2), 1), pack(3, 0, 1))]
    (x, y), keys = KeyedCollate(default_collate)(rows)
    assert x.shape == (2, 2)
    assert y.tolist() == [0, 1]
    assert keys.tolist() == [pack(3, 1, 0), pack(3, 0, 1)]


@pytest.mark.parametrize("key", [10, pack(3, 1, 10), -1])
def test_keys_outside_the_dataset_are_refused(key):
    with pytest.raises(IndexError, match=r"keys must address examples 0\.\.9"):
        SubsetAugmentDataset(Counting())[key]


def test_a_subset_around_the_wrapped_dataset_fails_on_its_first_keyed_row():
    wrong = Subset(SubsetAugmentDataset(Counting()), [0, 1, 2])
    with pytest.raises(IndexError):
        next(iter(DataLoader(wrong, sampler=[pack(2, 1, 1)], batch_size=1)))


@pytest.mark.parametrize(
    ("dataset", "error", "reason"),
    [
        (Iterable(), TypeError, "dataset must be map-style, got an IterableDataset"),
        (5, TypeError, "dataset must have __getitem__ and __len__, got int"),
        (TensorDataset(torch.zeros(0, 2)), ValueError, "got an empty dataset"),
        (SubsetAugmentDataset(Counting()), ValueError, "must not be wrapped already"),
        (
            Subset(SubsetAugmentDataset(Counting()), [0, 1]),
            ValueError,
            "must not contain a SubsetAugmentDataset, got one inside a Subset",
        ),
        (
            ConcatDataset([Counting(), Subset(SubsetAugmentDataset(Counting()), [0])]),
            ValueError,
            "must not contain a SubsetAugmentDataset, got one inside a ConcatDataset",
        ),
    ],
)
def test_datasets_that_cannot_be_wrapped_are_refused(dataset, error, reason):
    with pytest.raises(error, match=reason):
        SubsetAugmentDataset(dataset)
