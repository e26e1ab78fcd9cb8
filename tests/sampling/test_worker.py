"""What workers send arrives as it was, and is checked where it was collated."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset, default_collate

from augsubset import (
    LoaderOptions,
    RandomOps,
    SubsetAugmentDataset,
    SubsetAugmentLoader,
    pipeline,
)
from augsubset.sampling import KeyedCollate, worker
from augsubset.utils.torch_utils import to_device_async

PARTS = {
    "bytes": torch.arange(24, dtype=torch.uint8).view(4, 6),
    "class": torch.tensor([3, 1, 2, 0]),
    "double": torch.tensor([0.1, -0.0, torch.nan, torch.inf], dtype=torch.float64),
    "half": torch.tensor([0.1, 2.0, 3.0, 4.0], dtype=torch.bfloat16),
    "flag": torch.tensor([True, False, True, True]),
    "large": torch.rand(4, 1 << 16),
    "leaf": torch.ones(4, requires_grad=True),
    "view": torch.arange(8).view(2, 4).T[:, 1],
}


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index

    def __getitems__(self, keys):
        return [(index, key) for index, key in zip(keys, keys, strict=True)]


def collate_parts(_):
    return list(PARTS.values())


class Nested(Rows):
    """Holds a dataset, as wrappers do; itself at first."""

    def __init__(self):
        super().__init__()
        self.dataset = self


def test_a_dataset_that_holds_itself_is_looked_through_once():
    one, other = Nested(), Nested()
    assert worker.check_map_style(one) == len(one)
    one.dataset, other.dataset = other, ConcatDataset([one, Rows()])
    assert worker.check_map_style(one) == len(one)
    other.dataset = SubsetAugmentDataset(Rows())
    with pytest.raises(ValueError, match="must not contain a SubsetAugmentDataset"):
        worker.check_map_style(one)


def let_pass(batch, keys, item):
    assert len(keys) == 4


def refuse(batch, keys, item):
    raise ValueError("images must be in [0, 1]")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_arrives_as_it_was_collated(num_workers):
    collate = KeyedCollate(collate_parts, let_pass)
    loader = DataLoader(Rows(), batch_size=4, num_workers=num_workers, collate_fn=collate)
    batch, keys = next(iter(loader))
    assert keys.tolist() == [0, 1, 2, 3]
    assert keys.dtype == torch.int64
    for (name, expected), found in zip(PARTS.items(), batch, strict=True):
        assert found.dtype == expected.dtype, name
        assert found.shape == expected.shape, name
        assert found.requires_grad == expected.requires_grad, name
        found, expected = (each.detach() for each in (found, expected))
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()), name
        if num_workers:
            found.zero_()  # what a training loop gets is its own to change


def test_small_tensors_travel_inside_the_message(monkeypatch):
    monkeypatch.setattr(worker, "get_worker_info", lambda: "a worker")
    rows = Rows().__getitems__(range(4))
    assert not worker._is_small(torch.eye(4).to_sparse())
    batch, keys = KeyedCollate(collate_parts, let_pass)(rows)
    kept = {name for name, part in zip(PARTS, batch, strict=True) if isinstance(part, torch.Tensor)}
    assert kept == {"half", "large", "leaf"}
    assert not isinstance(keys, torch.Tensor)
    assert torch.equal(pickle.loads(pickle.dumps(keys)), torch.arange(4))


def test_a_batch_is_refused_by_the_worker_that_collated_it():
    collate = KeyedCollate(default_collate, refuse)
    loader = DataLoader(Rows(), batch_size=4, num_workers=1, collate_fn=collate)
    with pytest.raises(ValueError, match=r"worker process 0(.|\n)*images must be in \[0, 1\]"):
        next(iter(loader))


def test_values_out_of_range_are_refused_in_the_epoch_whatever_the_workers():
    x = torch.rand(40, 3, 8, 8)
    x[37, 0, 0, 0] = 1.5
    for num_workers in (0, 1):
        loader = SubsetAugmentLoader(
            DataLoader(TensorDataset(x, torch.arange(40) % 2), 10, num_workers=num_workers),
            nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
            RandomOps.paper(),
            options=LoaderOptions(start_epoch=1),
        )
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\].* to 1.5"):
            list(loader)


def test_what_workers_need_of_the_check_leaves_devices_behind():
    loader = SubsetAugmentLoader(
        DataLoader(TensorDataset(torch.rand(40, 3, 8, 8), torch.arange(40) % 2), 10),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 2)),
        RandomOps.paper(),
        normalize=([0.5] * 3, [0.25] * 3),
    )
    list(loader)
    assert loader.pipeline.normalization._kept
    sent = pickle.loads(pickle.dumps(loader._batches.collate_fn))
    assert sent._check._normalization._kept == {}


def test_whatever_is_moved_is_sent_so_that_nobody_waits_for_the_device(monkeypatch):
    """Pinned by the DataLoader or not: labels and weights are not, where images are resident."""
    sent = []
    monkeypatch.setattr(
        pipeline, "to_device_async", lambda tensor, device: sent.append(device) or tensor
    )
    x = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    plain = DataLoader(TensorDataset(x, torch.arange(8) % 2), 4)
    options = LoaderOptions(resident=True)
    loader = SubsetAugmentLoader(
        plain, model, lambda x, rows: x, weights="cluster", options=options
    )
    before = len(sent)
    next(iter(loader))
    assert len(sent) - before == 4  # x, y, w, and which rows are copies


def test_sparse_tensors_are_moved_too():
    sparse = torch.eye(3).to_sparse()
    assert to_device_async(sparse, torch.device("cpu")).layout == torch.sparse_coo
