"""Checks that more than one test makes of the same promise."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from augsubset import Selection


def assert_valid_selection(selection: Selection, labels: torch.Tensor, budget: int) -> None:
    """Sizes, ranges and bookkeeping of a coreset over rows 0..n-1."""
    n = len(labels)
    assert len(selection) == budget
    assert len(torch.unique(selection.indices)) == budget
    assert int(selection.indices.min()) >= 0
    assert int(selection.indices.max()) < n
    assert torch.equal(selection.weights, selection.weights.round())
    assert float(selection.weights.min()) >= 1
    for label in torch.unique(labels):
        mine = labels[selection.indices] == label
        assert float(selection.weights[mine].sum()) == int((labels == label).sum())
        gains = selection.gains[mine]
        assert bool((gains[1:] <= gains[:-1]).all())
    assert torch.equal(labels[selection.clusters], labels)
    assert torch.equal(selection.clusters[selection.indices], selection.indices)


def assert_order_pure(make, epochs=(0, 1, 5), read: Callable[[Any], list] = list) -> list:
    """The order is a function of (seed, epoch, selection): not of what ran before.

    Args:
        make: Returns a fresh sampler or loader.
        epochs: Which to look at.
        read: Returns what an epoch of it holds, in a form that can be compared.
    """
    orders = []
    for epoch in epochs:
        fresh = make()
        fresh.set_epoch(epoch)
        expected = read(fresh)
        used = make()
        for other in (3, epoch, 2, epoch):
            used.set_epoch(other)
            found = read(used)
        assert found == expected
        assert len(used) == len(expected)
        orders.append(expected)
    return orders


def values_of(batches) -> list:
    """Batches as nested lists of numbers."""
    return [[part.tolist() for part in batch] for batch in batches]


def saved_and_read(state: Any) -> Any:
    """Through a checkpoint file's bytes, read without pickle."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def batches_from(loader, until_epoch: int) -> Iterator[tuple]:
    """What a training loop gets, to the end of an epoch, as tuples of tensors."""
    while loader.epoch < until_epoch:
        for batch in loader:
            parts = batch if isinstance(batch, (tuple, list)) else (batch,)
            yield tuple(part.clone() for part in parts)


def assert_same_batches(found: Sequence[tuple], expected: Sequence[tuple]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        for part, other in zip(ours, theirs, strict=True):
            assert torch.equal(part, other)


def assert_same_state(state: Any, other: Any) -> None:
    """Two states from which a run goes on alike; what happened before is left out."""
    if isinstance(state, dict):
        for name in (state.keys() | other.keys()) - {"history"}:
            assert_same_state(state[name], other[name])
    elif isinstance(state, list):
        for value, same in zip(state, other, strict=True):
            assert_same_state(value, same)
    elif isinstance(state, torch.Tensor):
        assert torch.equal(state, other)
    else:
        assert state == other


def assert_resumable(
    make: Callable[[], Any],
    make_again: Callable[[], Any] | None = None,
    *,
    stops: Sequence[int],
    num_epochs: int = 3,
) -> None:
    """Stop after any batch, reload into a fresh loader, go on: the rest is the uninterrupted one.

    A state saved after leaving the loop is the one that would have been saved in it.

    Args:
        make: Returns a fresh loader.
        make_again: The loader that goes on; the same by default.
        stops: After how many batches.
        num_epochs: How long the run is.
    """
    whole = list(batches_from(make(), num_epochs))
    for stop in stops:
        loader = make()
        running = batches_from(loader, num_epochs)
        before = [next(running) for _ in range(stop)]
        in_the_loop = saved_and_read(loader.state_dict())
        running.close()  # as a break does
        state = saved_and_read(loader.state_dict())
        assert_same_state(in_the_loop, state)
        again = (make_again or make)()
        again.load_state_dict(state)
        assert_same_batches([*before, *batches_from(again, num_epochs)], whole)
