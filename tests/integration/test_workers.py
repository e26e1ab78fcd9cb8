"""Real DataLoader workers: one stream, whoever fetches it."""

import itertools
import random
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from augsubset import BatchSpec, CropFlip, RandomOps, SubsetAugmentLoader
from augsubset.sampling import unpack
from tests.integration.printed_loop import DATASETS, N, Photos, tensors


def stream(dataset, *, epochs=4, **loader_options):
    """Train through the loop as printed; return every row's (index, copy, pixels, label)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loader = DataLoader(dataset, batch_size=16, shuffle=True, **loader_options)
    loader = SubsetAugmentLoader(
        loader, model, RandomOps.paper(), fraction=0.2, copies=2, every=2, base=CropFlip(1)
    )
    keys_seen = []
    process = loader.pipeline.process

    def spy(batch, keys, *rest):
        keys_seen.append(keys)
        return process(batch, keys, *rest)

    loader.pipeline.process = spy
    batches = []
    for _ in range(epochs):
        for x, y in loader:
            batches.append((x, y))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    selections = [entry["digest"] for entry in loader.history if entry["event"] == "selection"]
    assert len(set(selections)) == 2  # the stream crosses a reselection that changed something
    _, copies, indices = unpack(torch.cat(keys_seen))
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return {"index": indices, "copy": copies, "pixels": x, "label": y}


def assert_same_stream(a, b):
    for name, values in a.items():
        assert torch.equal(values, b[name]), name


PERSISTENT = {"num_workers": 2, "persistent_workers": True}


@pytest.mark.parametrize("name", DATASETS)
def test_two_persistent_forked_workers_give_the_stream_of_none(name):
    expected = stream(DATASETS[name]())
    found = stream(DATASETS[name](), **PERSISTENT, multiprocessing_context="fork")
    assert_same_stream(expected, found)


def test_workers_that_come_and_go_and_prefetch_far_give_it_too():
    found = stream(tensors(), num_workers=1, prefetch_factor=8)
    assert_same_stream(stream(tensors()), found)


def turning(dataset, **loader_options):
    """A loader whose model is another after every epoch, and so is the selection."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    @torch.no_grad()
    def turn(entry):
        if entry["event"] == "epoch":
            for parameter in model.parameters():
                parameter.neg_()

    loader = DataLoader(dataset, batch_size=16, shuffle=True, **loader_options)
    options = {"fraction": 0.2, "copies": 2, "every": 1, "base": CropFlip(1), "on_event": turn}
    return SubsetAugmentLoader(
        loader, model, RandomOps.paper(), **options, batch=BatchSpec(return_index=True)
    )


def read_ahead(loader, num_epochs, ahead):
    """Yield each batch when so many more were taken from the loader."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader, num_epochs))
    taken = deque(itertools.islice(batches, ahead))
    assert loader.epoch == ahead // len(loader) > 0
    for batch in batches:
        taken.append(batch)
        yield taken.popleft()
    yield from taken


@pytest.mark.parametrize("is_persistent", [False, True])
@pytest.mark.parametrize("prefetch_factor", [1, 6])
def test_reading_ahead_across_epochs_and_selections_gives_the_stream(
    is_persistent, prefetch_factor
):
    one = turning(Photos())
    expected = [*one, *one]
    options = {"prefetch_factor": prefetch_factor, "multiprocessing_context": "fork"}
    loader = turning(Photos(), num_workers=2, persistent_workers=is_persistent, **options)
    found = list(read_ahead(loader, 2, ahead=len(loader) + 2))
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    digests = [entry["digest"] for entry in loader.history if entry["event"] == "selection"]
    assert len(set(digests)) == 2


def test_the_global_seed_does_not_reach_the_stream():
    """The control: the same loop over the plain loader does depend on it."""
    streams, plain = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        loader = DataLoader(Photos(), batch_size=16, shuffle=True)
        plain.append(torch.cat([x for x, _ in loader]))
        streams.append(stream(Photos()))
    assert_same_stream(*streams)
    assert not torch.equal(*plain)


def test_breaking_off_with_persistent_workers_does_not_shift_the_next_epoch():
    def second_epoch(**options):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        plain = DataLoader(tensors(), batch_size=4, shuffle=True, **options)
        loader = SubsetAugmentLoader(plain, model, RandomOps.paper(), originals="selected")
        iterator = iter(loader)
        next(iterator)
        iterator.close()
        return torch.cat([x for x, _ in loader])

    torch.manual_seed(0)
    expected = second_epoch()
    torch.manual_seed(0)
    assert torch.equal(second_epoch(**PERSISTENT), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_items_are_fetched_in_workers_where_there_are_workers(num_workers):
    class Where(Dataset):
        targets = tuple(index % 3 for index in range(N))

        def __len__(self):
            return N

        def __getitem__(self, index):
            inside = get_worker_info() is not None
            return torch.full((3, 8, 8), float(inside)), index % 3

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    loader = DataLoader(Where(), batch_size=16, num_workers=num_workers)
    loader = SubsetAugmentLoader(loader, model, lambda x, rows: x)
    assert {float(x.mean()) for x, _ in loader} == {float(num_workers)}


def test_a_workers_error_reaches_the_training_loop():
    class Broken(Photos):
        def __getitem__(self, index):
            if index == 30:
                raise ValueError("file 30 is truncated")
            return super().__getitem__(index)

    broken = Broken()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    loader = SubsetAugmentLoader(
        DataLoader(broken, batch_size=16, num_workers=1), model, RandomOps.paper()
    )
    with pytest.raises(ValueError, match="file 30 is truncated"):
        list(loader)
