"""weighted_loss: reductions, shapes, padding."""

import pytest
import torch
import torch.nn.functional as F

from augsubset import weighted_loss

LOSSES = torch.tensor([1.0, 2.0, 6.0])
WEIGHTS = torch.tensor([2.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", 1.0), ("weighted_mean", 1.2), ("sum", 3.0)]
)
def test_reductions(reduction, expected):
    assert float(weighted_loss(LOSSES, WEIGHTS, reduction)) == pytest.approx(expected)


def test_unit_weights_give_the_unweighted_loss_and_gradient():
    logits = torch.randn(8, 4, requires_grad=True)
    labels = torch.arange(8) % 4
    plain = F.cross_entropy(logits, labels)
    ours = weighted_loss(F.cross_entropy(logits, labels, reduction="none"), torch.ones(8))
    assert float(ours.detach()) == pytest.approx(float(plain.detach()))
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (plain, ours)]
    torch.testing.assert_close(*gradients)


def test_r_identical_copies_weigh_as_much_as_one():
    gamma, r = 6.0, 4
    one = weighted_loss(LOSSES[:1], torch.tensor([gamma]), "sum")
    copies = weighted_loss(LOSSES[:1].expand(r), torch.full((r,), gamma / r), "sum")
    assert float(copies) == pytest.approx(float(one))


def test_trailing_dimensions_are_averaged():
    per_pixel = torch.stack([torch.full((2, 2), value) for value in LOSSES])
    assert float(weighted_loss(per_pixel, WEIGHTS)) == pytest.approx(1.0)


def test_a_batch_of_padding_alone_gives_zero_and_no_nan_gradient():
    losses = LOSSES.clone().requires_grad_()
    loss = weighted_loss(losses, torch.zeros(3), "weighted_mean")
    loss.backward()
    assert float(loss.detach()) == 0
    assert losses.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("losses", "weights", "error", "reason"),
    [
        (torch.tensor(1.0), WEIGHTS, TypeError, "losses must hold one value per row, got a scalar"),
        (LOSSES, WEIGHTS[:2], ValueError, r"weights must be of shape \(3,\)"),
        (LOSSES, WEIGHTS[:, None], ValueError, r"weights must be of shape \(3,\)"),
        (LOSSES[:0], WEIGHTS[:0], ValueError, "losses must hold at least one row"),
    ],
)
def test_bad_shapes_are_refused(losses, weights, error, reason):
    with pytest.raises(error, match=reason):
        weighted_loss(losses, weights)


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'weighted_mean', 'sum'"):
        weighted_loss(LOSSES, WEIGHTS, "none")
