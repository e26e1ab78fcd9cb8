"""Finding inputs and labels, and labels without fetching."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from augsubset.batches import known_labels, split_batch

X, Y = torch.rand(3, 2), torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y.int()],
        {"image": X, "label": Y},
        {"pixel_values": X, "labels": Y, "path": ["a", "b", "c"]},
    ],
)
def test_usual_batches_are_split(batch):
    x, y = split_batch(batch)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert y.dtype == torch.int64


def test_keys_can_be_named():
    x, y = split_batch({"scan": X, "class": Y, "label": X}, inputs="scan", labels="class")
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize(
    ("batch", "error", "reason"),
    [
        (X, TypeError, "batches must be .inputs, labels. pairs or mappings, got Tensor"),
        ((X,), TypeError, "got tuple of 1 parts. If labels are missing"),
        ((X, Y, Y), TypeError, "got tuple of 3 parts"),
        ((X, ["a", "b", "c"]), TypeError, "labels of a batch must be a tensor, got list"),
        ((X, Y.float()), ValueError, "labels must be one class index an example"),
        ((X, X.long()), ValueError, "labels must be one class index an example"),
        ((X, Y[:2]), ValueError, "labels must be as many as the inputs 3, got 2"),
        ({"scan": X, "label": Y}, ValueError, r"inputs must be found among .*Pass inputs="),
        ({"image": X, "label": Y, "target": Y}, ValueError, r"labels must be found .*Pass labels="),
    ],
)
def test_other_batches_are_refused(batch, error, reason):
    with pytest.raises(error, match=reason):
        split_batch(batch)


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"inputs must name a key of the batch \['image'"):
        split_batch({"image": X, "label": Y}, inputs="img")


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
    assert known_labels(dataset).tolist() == [2, 0, 1]


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
    assert known_labels(dataset) is None
