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


CLASS_WEIGHTS = torch.tensor([0.2, 5.0, 1.0, 30.0])


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)], ids=["rows", "tokens", "pixels"])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
@pytest.mark.parametrize(
    ("options", "normalize"),
    [
        ({"weight": CLASS_WEIGHTS}, lambda y: CLASS_WEIGHTS[y]),
        ({"weight": CLASS_WEIGHTS, "label_smoothing": 0.1}, lambda y: CLASS_WEIGHTS[y]),
        ({"ignore_index": 3}, lambda y: y != 3),
        (
            {"weight": CLASS_WEIGHTS, "ignore_index": 3},
            lambda y: CLASS_WEIGHTS[y] * (y != 3),
        ),
    ],
    ids=["weights", "smoothed", "ignored", "both"],
)
def test_a_normalizer_gives_torchs_mean_under_unit_weights(shape, reduction, options, normalize):
    y = torch.randint(0, 4, (6, *shape), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(6, 4, *shape, generator=torch.Generator().manual_seed(0))
    losses = F.cross_entropy(logits, y, reduction="none", **options)
    ours = weighted_loss(losses, torch.ones(6), reduction, normalizer=normalize(y))
    torch.testing.assert_close(ours, F.cross_entropy(logits, y, **options))


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", 4.5 / 10), ("weighted_mean", 4.5 / 8.75)]
)
def test_weights_multiply_losses_and_in_a_weighted_mean_their_normalizer(reduction, expected):
    normalizer = torch.tensor([3.0, 4.0, 3.0])
    loss = weighted_loss(LOSSES, torch.tensor([2.0, 0.5, 0.25]), reduction, normalizer=normalizer)
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_normalizer_is_added_up_in_float32(dtype):
    losses = torch.full((3000,), 2.0, dtype=dtype)
    loss = weighted_loss(losses, torch.ones(3000), normalizer=torch.ones(3000, dtype=dtype))
    assert float(loss) == 2


def test_a_batch_in_which_every_label_is_ignored_gives_zero():
    ignored = torch.zeros(3, dtype=torch.bool)
    assert float(weighted_loss(LOSSES * 0, torch.ones(3), normalizer=ignored)) == 0


@pytest.mark.parametrize(
    ("reduction", "shape", "reason"),
    [
        ("sum", (3,), "normalizer must be None where reduction='sum'"),
        ("mean", (2,), r"normalizer must be of shape \(3,\), one value per loss"),
        ("mean", (3, 1), r"normalizer must be of shape \(3,\)"),
    ],
)
def test_a_normalizer_that_cannot_be_is_refused(reduction, shape, reason):
    with pytest.raises(ValueError, match=reason):
        weighted_loss(LOSSES, WEIGHTS, reduction, normalizer=torch.ones(shape))


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
