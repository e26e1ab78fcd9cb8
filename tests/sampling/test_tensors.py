"""Images that stay on the device."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import LoaderOptions, RandomSelector, SubsetAugmentLoader
from augsubset.sampling import TensorBatches, pack

N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
DATA = TensorDataset(X, torch.arange(N) % 3)


@pytest.mark.parametrize(("resident", "expected"), [(True, "meta"), (False, "cpu")])
def test_batches_of_resident_images_are_taken_where_they_are(resident, expected):
    """Any other device will do: nothing is computed on it."""
    data = TensorBatches(DATA, resident=resident)
    data.to(torch.device("meta"))
    (images, labels), _ = data.__getitems__(pack(0, 0, torch.tensor([3, 5])).tolist())
    assert (images.device.type, labels.device.type) == (expected, "cpu")


@pytest.mark.parametrize(("resident", "moves"), [(True, 1), (False, 0)])
def test_images_are_moved_once_for_all_epochs(resident, moves, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    loader = SubsetAugmentLoader(
        DataLoader(DATA, batch_size=8, num_workers=2),
        model,
        lambda x, rows: x,
        selector=RandomSelector(),
        options=LoaderOptions(resident=resident),
    )
    moved = []
    to = torch.Tensor.to

    def counting(tensor, *arguments, **options):
        if tensor.shape[:1] == (N,) and tensor.dtype == torch.uint8:
            moved.append(tensor)
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", counting)
    model.to("meta")
    for _ in range(2):
        for x, _ in loader:
            assert x.device.type == "meta"
    assert len(moved) == moves
    fetched, _ = next(iter(loader._batches))
    assert fetched[0].device.type == ("meta" if resident else "cpu")
    assert loader._batches.num_workers == (0 if resident else 2)


def test_images_that_do_not_fit_are_refused_in_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (X.numel() - 1, 1 << 30))
    data = TensorBatches(DATA, resident=True)
    with pytest.raises(ValueError, match=r"must fit on cuda to be resident, got 4320 bytes"):
        data.to(torch.device("cuda"))


@pytest.mark.parametrize("change", [lambda d: d.tensors[0].zero_(), lambda d: assign(d, X)])
def test_resident_images_that_changed_are_moved_again(change):
    dataset = TensorDataset(X.clone(), torch.arange(N) % 3)
    data = TensorBatches(dataset, resident=True)
    for _ in range(2):
        data.to(torch.device("meta"))
        assert not data.refresh()
        change(dataset)
        assert data.refresh()
        assert data._images is dataset.tensors[0]


def assign(dataset, images):
    dataset.tensors = (images, dataset.tensors[1])


def test_resident_images_of_another_dtype_are_refused_when_they_are_assigned():
    dataset = TensorDataset(X, torch.arange(N) % 3)
    data = TensorBatches(dataset, resident=True)
    assign(dataset, X.float())
    with pytest.raises(TypeError, match="images must be uint8 to be resident"):
        data.refresh()
