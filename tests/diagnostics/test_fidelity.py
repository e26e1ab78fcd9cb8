"""Full gradients against backward passes, and fidelity of probed gradients."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from augsubset import GradientProbe, LastLayerGradients
from augsubset.diagnostics import (
    alignment,
    distance_fidelity,
    full_gradients,
    summed_gradient,
)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
    )


def examples(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.arange(n) % 3


def by_hand(model, x, y):
    model.eval()
    rows = []
    for one, label in zip(x, y, strict=True):
        loss = cross_entropy(model(one[None]), label[None])
        found = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([each.flatten() for each in found]))
    model.train()
    return torch.stack(rows)


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_full_gradients_match_backward_passes(chunk_size):
    model, (x, y) = small_net(), examples()
    found = full_gradients(model, x, y, chunk_size=chunk_size)
    torch.testing.assert_close(found, by_hand(model, x, y), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_a_summed_gradient_is_the_weighted_sum(chunk_size):
    model, (x, y) = small_net(), examples()
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(1))
    rows = by_hand(model, x, y).double()
    found = summed_gradient(model, x, y, weights, chunk_size=chunk_size)
    torch.testing.assert_close(found, weights.double() @ rows, atol=1e-5, rtol=1e-5)
    found = summed_gradient(model, x, y, chunk_size=chunk_size)
    torch.testing.assert_close(found, rows.sum(0), atol=1e-5, rtol=1e-5)


def test_an_unused_parameter_has_a_zero_gradient():
    model = small_net()
    model.register_parameter("spare", nn.Parameter(torch.ones(4)))
    x, y = examples(4)
    assert summed_gradient(model, x, y).shape == full_gradients(model, x, y).shape[1:]


def test_the_model_is_unchanged():
    model, (x, y) = small_net(), examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    full_gradients(model, x, y)
    summed_gradient(model, x, y)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_more_layers_increase_fidelity_up_to_full_gradients():
    model, (x, y) = small_net(), examples(90)
    data, full = TensorDataset(x, y), full_gradients(model, x, y)
    assert distance_fidelity(LastLayerGradients.from_residual(full, y), full) > 1 - 1e-6
    found = [
        distance_fidelity(GradientProbe(model, layer, kind=kind).scan(data), full)
        for layer, kind in (("auto", "logits"), ("auto", "last_layer"), (["0", "4"], "last_layer"))
    ]
    assert 0.3 < found[0] < found[1] < found[2] <= 1
    # Control: noise does not correlate.
    noise = torch.randn(90, 3, generator=torch.Generator().manual_seed(5))
    assert abs(distance_fidelity(LastLayerGradients.from_residual(noise, y), full)) < 0.2


def test_only_pairs_within_a_class_count():
    # Two distant classes: over all pairs, the ranking would only depend on the classes.
    full = torch.tensor([[0.0], [1.0], [3.0], [100.0], [101.0], [103.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    turned = torch.tensor([[3.0], [2.0], [0.0], [1.0], [3.0], [0.0]])
    found = distance_fidelity(LastLayerGradients.from_residual(turned, labels), full)
    of_class = [
        np.corrcoef([1, 3, 2], [1, 3, 2])[0, 1],  # distances 1, 3, 2 in both
        np.corrcoef([2, 1, 3], [1, 3, 2])[0, 1],  # 2, 1, 3 against 1, 3, 2
    ]
    assert found == pytest.approx(np.mean(of_class))


def test_alignment_is_cosine_and_relative_error():
    found = alignment(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert found.cosine == pytest.approx(np.sqrt(0.5))
    assert found.error == pytest.approx(np.sqrt(0.5))
    assert alignment(torch.ones(3), torch.ones(3)) == pytest.approx((1.0, 0.0))
    assert alignment(torch.zeros(3), torch.ones(3)) == (0.0, 1.0)
    assert alignment(torch.ones(3), torch.zeros(3)) == (0.0, float("inf"))


@pytest.mark.parametrize("function", [full_gradients, summed_gradient])
def test_bad_input_is_refused(function):
    model, (x, y) = small_net(), examples()
    with pytest.raises(ValueError, match="y must have one label per input, got 29 for 30 inputs"):
        function(model, x, y[1:])
    with pytest.raises(ValueError, match="y must have one label per input, got 0 for 0"):
        function(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        function(model, x, y, chunk_size=0)


def test_mismatched_rows_are_refused():
    model, (x, y) = small_net(), examples()
    gradients = LastLayerGradients.from_residual(torch.rand(30, 3), y)
    with pytest.raises(ValueError, match="full must have 30 rows, like gradients, got 29"):
        distance_fidelity(gradients, torch.rand(29, 4))
    with pytest.raises(ValueError, match="a class of at least three examples"):
        distance_fidelity(
            LastLayerGradients.from_residual(torch.rand(4, 3), torch.arange(4)), torch.rand(4, 4)
        )
    with pytest.raises(ValueError, match=r"weights must be of shape \(30,\), one per input"):
        summed_gradient(model, x, y, torch.ones(3))
