"""Checks that more than one test makes of the same promise."""

import torch

from augsubset import Selection, WeightedCoresetSampler


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


def assert_order_pure(make_sampler, epochs=(0, 1, 5)) -> None:
    """The order is a function of (seed, epoch, selection): not of what ran before."""
    for epoch in epochs:
        fresh: WeightedCoresetSampler = make_sampler()
        fresh.set_epoch(epoch)
        expected = list(fresh)
        used: WeightedCoresetSampler = make_sampler()
        for other in (3, epoch, 2, epoch):
            used.set_epoch(other)
            found = list(used)
        assert found == expected
        assert len(used) == len(expected)
