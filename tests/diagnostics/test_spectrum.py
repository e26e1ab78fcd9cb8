"""Spectra against explicit Jacobians, and the bounds, each with a violation that is caught."""

import numpy as np
import pytest
import torch
from torch import nn

from augsubset import AugsubsetError, CropFlip, RandomOps, RowKeys
from augsubset.diagnostics import Spectrum, SpectrumChange, jacobian, spectrum_change
from benchmarks.datasets import load_digits_images
from benchmarks.models import build_model


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def inputs(n=8, seed=0):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def by_hand(model, x):
    """One backward pass per output."""
    rows = []
    for one in x:
        for output in model(one[None])[0]:
            grads = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_a_jacobian_matches_backward_passes(chunk_size):
    model, x = small_net(), inputs()
    found = jacobian(model, x, chunk_size=chunk_size)
    assert found.shape == (24, 53)
    assert torch.allclose(found, by_hand(model, x), atol=1e-6)


def test_batch_normalisation_uses_its_running_statistics():
    data = load_digits_images(12)
    model = build_model("convnet", data, 0)
    model(data.x_train.float() / 255)  # updates the running statistics
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = data.x_train[:3].float() / 255
    together, alone = jacobian(model, x), torch.cat([jacobian(model, one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_linear_model_has_the_spectrum_of_its_inputs():
    # f = W x: the Jacobian of every output is the inputs, so the NTK of each is X X^T.
    model, x = nn.Linear(6, 2, bias=False), inputs(4)
    found = spectrum_change(model, x, x + 0.01)
    expected = np.repeat(np.linalg.svd(x.numpy(), compute_uv=False), 2)
    assert np.allclose(found.original.singular_values, expected, atol=1e-5)
    kernel = np.linalg.eigvalsh((x @ x.T).numpy())[::-1]
    assert np.allclose(found.original.eigenvalues[::2], kernel, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_the_bounds_hold_for_any_perturbation(seed, size):
    model, x = small_net(seed), inputs(seed=seed)
    noise = size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    found = spectrum_change(model, x, x + noise)
    moved = np.abs(found.augmented.singular_values - found.original.singular_values)
    assert moved.max() <= found.perturbation_norm * (1 + 1e-6)
    assert np.sqrt((moved**2).sum()) <= found.perturbation_frobenius * (1 + 1e-6)
    assert (found.sines <= found.wedin_bounds + 1e-6).all()
    if size < 0.01:
        assert (found.wedin_bounds < 1).sum() >= 3  # not vacuous there


def test_without_augmentation_the_spectrum_is_unchanged():
    found = spectrum_change(small_net(), inputs(), inputs())
    assert found.perturbation_norm == 0
    assert np.array_equal(found.original.singular_values, found.augmented.singular_values)
    assert found.sines.max() < 1e-6


@pytest.mark.parametrize("count", [1, 5])
def test_the_iteration_finds_the_largest_values(count):
    model, x = small_net(), inputs()
    exact = spectrum_change(model, x, x + 0.2, method="exact")
    found = spectrum_change(model, x, x + 0.2, method="iterative", num_values=count, chunk_size=3)
    for side in ("original", "augmented"):
        values = getattr(exact, side).singular_values[:count]
        assert np.allclose(getattr(found, side).singular_values, values, rtol=1e-4)
    assert found.perturbation_norm == pytest.approx(exact.perturbation_norm, rel=1e-4)
    assert found.perturbation_frobenius == pytest.approx(exact.perturbation_frobenius, rel=1e-4)
    again = spectrum_change(model, x, x + 0.2, method="iterative", num_values=count)
    assert np.allclose(again.original.singular_values, found.original.singular_values, rtol=1e-5)


@pytest.mark.parametrize("method", ["exact", "iterative"])
def test_model_and_autograd_state_are_unchanged(method):
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            spectrum_change(model, inputs(), inputs() + 0.1, method=method, chunk_size=3)
            assert torch.is_grad_enabled() == grad
    assert torch.is_grad_enabled()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_auto_is_iterative_above_max_elements():
    found = spectrum_change(small_net(), inputs(), inputs() + 0.1, max_elements=10)
    assert len(found.original.singular_values) == 2  # a tenth of 24
    assert (found.original.num_rows, found.original.num_columns) == (24, 53)


def test_real_images_under_weak_and_strong_augmentation():
    data = load_digits_images(8)
    model = build_model("mlp", data, 0)
    rows = RowKeys(0, 0, torch.arange(8), 1)
    pictures = {"weak": CropFlip(1, flip=0.0), "strong": RandomOps.paper()}
    moved = {}
    for name, policy in pictures.items():
        copies = policy(data.x_train, rows)
        change = spectrum_change(model, data.x_train.float() / 255, copies.float() / 255)
        moved[name] = change.perturbation_frobenius
    assert 0 < moved["weak"] < moved["strong"]


# Controls: each check raises if its inequality is violated.


def change(before, after, norm, frobenius, sines=(), bounds=()):
    return SpectrumChange(
        Spectrum(np.array(before), 3, 3),
        Spectrum(np.array(after), 3, 3),
        norm,
        frobenius,
        np.array(sines),
        np.array(bounds),
    )


def test_each_inequality_is_checked():
    change([3.0, 2.0, 1.0], [3.4, 2.0, 1.0], 0.5, 0.5, [0.3], [0.4])
    with pytest.raises(AugsubsetError, match="Weyl"):
        change([3.0, 2.0, 1.0], [3.6, 2.0, 1.0], 0.5, 1.0)
    with pytest.raises(AugsubsetError, match="Mirsky"):
        change([3.0, 2.0, 1.0], [3.4, 2.4, 1.4], 0.5, 0.5)
    with pytest.raises(AugsubsetError, match="Wedin"):
        change([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], 0.5, 0.5, [0.9], [0.4])


class Unsteady(nn.Module):
    """A different function at every call, even in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 2))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x @ self.weight * (1 + self.calls)


def test_a_nondeterministic_model_is_detected():
    with pytest.raises(AugsubsetError, match="deterministic"):
        spectrum_change(Unsteady(), inputs(), inputs() + 1e-4, method="iterative", num_values=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spectrum_change(small_net(), inputs(), inputs(5)), ValueError, "the shape of x"),
        (lambda: spectrum_change(small_net(), inputs(0), inputs(0)), ValueError, "at least one"),
        (
            lambda: spectrum_change(small_net(), inputs(), inputs(), method="exactly"),
            ValueError,
            "method must be one of",
        ),
        (
            lambda: spectrum_change(
                small_net(), inputs(), inputs(), method="iterative", num_values=24
            ),
            ValueError,
            "num_values must be",
        ),
        (lambda: jacobian(nn.Flatten(0), inputs()), TypeError, r"\(B, C\) tensor"),
        (lambda: jacobian(small_net(), inputs(), chunk_size=0), ValueError, "chunk_size must be"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
