"""Strengths: what each example's comes to, and that it is what augments it."""

import math

import pytest
import torch

from augsubset import RandomOps, RowKeys
from benchmarks.cells import Cell, data_of, run_cell
from benchmarks.strength import Strength

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 1, 0])
ROWS = RowKeys(0, 1, torch.arange(3), 1)


def levels(by, **options):
    """Return what one pass makes of three examples, over the largest level."""
    policy = Strength(by, scale=30, **options)
    policy.start_epoch(4, 0.0)
    policy.observe(torch.arange(3), LOGITS, LABELS)
    assert policy.levels_of(ROWS).tolist() == [0, 0, 0]  # only from the next epoch on
    policy.start_epoch(4, 0.5)
    return policy.levels_of(ROWS).tolist()


def test_confidences_are_what_they_are_called():
    p = LOGITS.double().softmax(1)
    own = p[torch.arange(3), LABELS]
    assert levels("probability") == pytest.approx(own.tolist(), rel=1e-5)
    assert levels("cosine") == pytest.approx((own / p.norm(dim=1)).tolist(), rel=1e-5)
    entropy = -(p * p.log()).sum(1) / math.log(3)
    assert levels("entropy") == pytest.approx((1 - entropy).tolist(), abs=1e-6)
    assert levels("time") == [0.5, 0.5, 0.5]


def test_a_running_confidence_forgets_at_its_rate_and_the_unseen_have_none():
    policy = Strength("probability", scale=15, memory=0.75)
    policy.start_epoch(2, 0.0)
    sure = torch.tensor([[50.0, 0.0]])
    policy.observe(torch.tensor([1]), sure, torch.tensor([0]))
    policy.observe(torch.tensor([1]), sure, torch.tensor([1]))
    policy.start_epoch(2, 0.1)
    at = policy.levels_of(RowKeys(0, 1, torch.arange(2), 1)).tolist()
    assert at == pytest.approx([0, 0.5 * 0.75])


def test_equal_levels_are_randaugment_at_that_magnitude():
    x = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    rows = RowKeys(5, 2, torch.arange(64), 1)
    policy = Strength("time", scale=20)
    policy.start_epoch(64, 0.45)
    assert torch.equal(policy(x, rows), RandomOps.randaugment(9)(x, rows))
    policy.start_epoch(64, 0.2)
    assert torch.equal(policy(x, rows), RandomOps.randaugment(4)(x, rows))


def test_bad_strengths_are_refused():
    with pytest.raises(ValueError, match="by must be one of"):
        Strength("luck")
    for options in ({"scale": 31}, {"scale": 0}, {"memory": 1.0}):
        with pytest.raises(ValueError, match="scale must be in"):
            Strength("time", **options)


@pytest.mark.parametrize("by", ["probability", "time"])
def test_a_cell_learns_its_strengths(by, monkeypatch):
    shares, seen = [], set()
    start, observe = Strength.start_epoch, Strength.observe

    def noting(self, num_examples, share):
        shares.append((num_examples, share))
        start(self, num_examples, share)

    def seeing(self, index, logits, labels):
        assert (labels == data.y_train[index]).all()
        seen.update(index.tolist())
        observe(self, index, logits, labels)

    monkeypatch.setattr(Strength, "start_epoch", noting)
    monkeypatch.setattr(Strength, "observe", seeing)
    values = {"rule": "all", "fraction": 1.0, "originals": "none", "copies": 1, "base": "none"}
    values |= {"limit": 60, "batch_size": 30, "epochs": 2, "lr": 0.05, "weights": "uniform"}
    cell = Cell.of(
        {"arm": "some", "seed": 0, "strong": "strength", "strong_options": {"by": by}, **values}
    )
    data = data_of(cell, None)
    result = run_cell(cell, data)["result"]
    assert shares == [(60, 0.0), (60, 0.5)]
    assert seen == set(range(60))
    assert result["augmented"] == 120
