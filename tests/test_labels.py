"""Labels of a dataset, found without fetching an item."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from augsubset.labels import find_labels, find_targets

X, Y = torch.rand(3, 2), torch.tensor([2, 0, 1])


class Plain:
    """Has the attributes given, and fails if an item is fetched."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return vars(self).get("n", 3)

    def __getitem__(self, index):
        raise AssertionError("an item was fetched")


@pytest.mark.parametrize(
    "dataset",
    [
        Plain(targets=[2, 0, 1]),
        Plain(labels=Y.numpy()),
        TensorDataset(X, Y),
        Subset(Plain(targets=[9, 1, 0, 2], n=4), [3, 2, 1]),
        ConcatDataset([Plain(targets=[2, 0, 1])]),
    ],
)
def test_labels_are_found_without_fetching(dataset):
    assert find_labels(dataset).tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_indices_of_a_subset_may_be_of_any_integer_dtype(dtype):
    """torch takes uint8 for a mask, and knows nothing of uint16."""
    subset = Subset(Plain(targets=[9, 1, 0, 2], n=4), np.array([3, 2, 1, 1], dtype))
    assert find_labels(subset).tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize(
    "dataset",
    [
        Plain(),
        TensorDataset(X),
        TensorDataset(X, X),
        Plain(targets="train.csv"),
        Plain(labels=["cat", "dog", "cow"]),
        Plain(labels=[0, 1]),
        Plain(targets=[{"boxes": []}] * 3),
        Plain(targets=np.array([1, 0, 2], dtype=object)),
        Plain(labels=len),
        ConcatDataset([Plain(targets=[2, 0, 1]), Plain()]),
    ],
)
def test_datasets_that_do_not_offer_labels_give_none(dataset):
    assert find_labels(dataset) is None


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Plain(targets=[0.5, 1, 2]), [0.5, 1, 2]),
        (Plain(labels=[np.array([0.5, 1])] * 3), [[0.5, 1]] * 3),
        (TensorDataset(Y, X), X.tolist()),
        (Subset(TensorDataset(Y, X), [2, 0]), X[[2, 0]].tolist()),
        (ConcatDataset([Plain(targets=[0.5, 1, 2])] * 2), [0.5, 1, 2] * 2),
        (ConcatDataset([Plain(targets=[0.5, 1, 2]), TensorDataset(Y, X)]), None),
        (Plain(labels=["cat", "dog", "cow"]), None),
        (Plain(targets=[[0], [0, 1], [2]]), None),
        (Plain(targets=[0.5, 1]), None),
    ],
)
def test_targets_of_any_kind_are_found_without_fetching(dataset, expected):
    found = find_targets(dataset)
    assert (None if found is None else found.tolist()) == expected
