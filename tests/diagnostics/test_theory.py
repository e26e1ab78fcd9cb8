"""The paper's theorems on instances that satisfy their assumptions, and on some that do not."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from augsubset.diagnostics.theory import (
    Descent,
    Inequality,
    augmented_gradient_error,
    coreset_gradient_error,
    coreset_spectrum,
    decay_under_shifts,
    expected_eigenvalue,
    initial_gradient,
    linear_augmentation_error,
    residuals_by_descent,
    residuals_by_spectrum,
    sampled_shifts,
    stochastic_descent,
)

SEEDS = st.integers(0, 10_000)


def coreset_of(gradients, k, rng):
    """Return random medoids, and clusters by nearest medoid."""
    chosen = rng.permutation(len(gradients))[:k]
    distances = np.linalg.norm(gradients[:, None] - gradients[chosen], axis=2)
    clusters = distances.argmin(1)
    return chosen, np.bincount(clusters, minlength=k).astype(float), clusters


def test_an_inequality_holds_up_to_rounding_only():
    assert Inequality(1.0 + 1e-12, 1.0, 0.5).holds
    assert not Inequality(1.0 + 1e-6, 1.0, 0.5).holds
    assert not Inequality(1.0, 1.0, 0.5).holds_as_printed
    bounds = np.array([1.0, 1.0])
    assert Descent(bounds, bounds, bounds / 2).holds
    assert not Descent(bounds, bounds, bounds / 2).holds_as_printed
    assert not Descent(np.array([0.5, 1.1]), bounds, bounds).holds


# Equation 5.


@given(SEEDS, st.integers(1, 8), st.integers(1, 12))
def test_residuals_of_a_linear_model_follow_equation_5(seed, n, m):
    rng = np.random.default_rng(seed)
    jacobian, residual = rng.standard_normal((n, m)), rng.standard_normal(n)
    step = 1 / np.linalg.norm(jacobian, 2) ** 2
    by_descent = residuals_by_descent(jacobian, residual, step, 50)
    by_spectrum = residuals_by_spectrum(jacobian, residual, step, 50)
    np.testing.assert_allclose(by_descent, by_spectrum, rtol=0, atol=1e-10)


def test_equation_5_does_not_match_another_step_size():
    jacobian, residual = np.eye(3), np.ones(3)
    by_descent = residuals_by_descent(jacobian, residual, 0.1, 5)
    assert np.abs(by_descent - residuals_by_spectrum(jacobian, residual, 0.11, 5)).max() > 1e-2


# Lemma 3.1 and theorem 3.2.


@pytest.mark.parametrize("decreasing", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("singular_value", [0.1, 1.3])
def test_lemma_3_1_is_the_mean_under_its_density(singular_value, decreasing):
    shifts = sampled_shifts(0.7, decreasing, 1_000_000)
    assert np.abs(shifts).max() <= 0.7
    assert (shifts < 0).mean() == pytest.approx(decreasing, abs=2e-3)
    eigenvalues = (singular_value + shifts) ** 2
    error = 5 * eigenvalues.std() / 1000
    expected = expected_eigenvalue(singular_value, 0.7, decreasing)
    assert eigenvalues.mean() == pytest.approx(expected, abs=error)


def test_lemma_3_1_needs_its_density():
    shifts = 0.7 * np.sqrt(np.random.default_rng(0).random(100_000))  # growing, not uniform
    eigenvalues = (1.3 + shifts) ** 2
    error = 5 * eigenvalues.std() / 300
    assert abs(eigenvalues.mean() - expected_eigenvalue(1.3, 0.7, 0.0)) > error


@given(
    st.floats(0.01, 2),
    st.floats(0.01, 2),
    st.floats(0, 1),
    st.floats(0.001, 0.2),
    st.integers(1, 30),
)
def test_theorem_3_2_bounds_from_below(singular_value, norm, decreasing, step, num_steps):
    found = decay_under_shifts(singular_value, norm, decreasing, step, num_steps)
    assert found.holds
    # Jensen's inequality: the factor, an even power, is convex in the eigenvalue.
    assert found.value >= found.printed - 1e-9 * (1 + found.printed)


def test_theorem_3_2_does_not_hold_as_printed():
    found = decay_under_shifts(1.5, 1.5, 0.5, 0.1, 20)
    assert found.holds
    assert not found.holds_as_printed
    assert found.value > 100 * found.printed
    shifts = sampled_shifts(1.5, 0.5, 1_000_000)
    sampled = (1 - 0.1 * (1.5 + shifts) ** 2) ** 40
    assert sampled.mean() == pytest.approx(found.value, rel=2e-2)


# Appendix A.6.


@given(SEEDS, st.integers(2, 20))
def test_the_summed_distances_bound_the_gradient_error(seed, n):
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((n, 4)) * rng.lognormal(0, 2, (n, 1))
    chosen, weights, clusters = coreset_of(gradients, rng.integers(1, n + 1), rng)
    assert coreset_gradient_error(gradients, chosen, weights, clusters).holds


def test_the_error_of_a_coreset_is_not_lost_beside_large_gradients():
    """Regression: 64 was missed beside totals of 1e18."""
    gradients = np.array([[1e18], [1e18], [64.0], [0.0]])
    chosen, clusters = np.array([0, 3]), np.array([0, 0, 1, 1])
    found = coreset_gradient_error(gradients, chosen, np.array([2.0, 2.0]), clusters)
    assert found == (64.0, 64.0, 64.0)


def test_the_frobenius_norm_of_a_6_is_not_a_bound():
    gradients = np.zeros((100, 2))
    gradients[1:, 0] = 1
    found = coreset_gradient_error(
        gradients, np.array([0]), np.array([100.0]), np.zeros(100, np.int64)
    )
    assert found.value == found.bound == 99
    assert found.printed == pytest.approx(np.sqrt(99))
    assert not found.holds_as_printed


def test_other_weights_than_cluster_sizes_may_exceed_the_summed_distances():
    gradients = np.ones((4, 1))
    nothing = np.zeros(4, np.int64)
    assert not coreset_gradient_error(gradients, np.array([0]), np.array([9.0]), nothing).holds


# Lemmas 4.1 and B.2.


def lemma_4_1(seed, n, lipschitz, radii=1.0, residuals=1.0):
    rng = np.random.default_rng(seed)
    m = 6
    jacobian = rng.standard_normal((n, m))
    residual = residuals * rng.uniform(-1, 1, n)
    chosen, weights, _ = coreset_of(jacobian * residual[:, None], rng.integers(1, n + 1), rng)
    perturbation = rng.standard_normal((n, m))
    perturbation /= np.linalg.norm(perturbation, axis=1, keepdims=True)
    perturbation *= radii * lipschitz * n**-1.5 / np.sqrt(lipschitz)
    return augmented_gradient_error(jacobian, residual, perturbation, chosen, weights, lipschitz)


@given(SEEDS, st.integers(1, 20), st.floats(0.01, 100))
def test_lemma_4_1(seed, n, lipschitz):
    found = lemma_4_1(seed, n, lipschitz)
    assert found.holds
    assert found.holds_as_printed


@pytest.mark.parametrize("control", [{"radii": 300.0}, {"residuals": 300.0}])
def test_lemma_4_1_needs_its_assumptions(control):
    assert not all(lemma_4_1(seed, 4, 1.0, **control).holds for seed in range(50))


@given(SEEDS, st.integers(1, 20), st.floats(0, 5))
def test_lemma_b_2_with_a_root(seed, n, more):
    rng = np.random.default_rng(seed)
    jacobian = rng.standard_normal((n, 5)) * rng.lognormal(0, 3)
    residual = rng.standard_normal(n)
    chosen, weights, _ = coreset_of(jacobian * residual[:, None], rng.integers(1, n + 1), rng)
    assert coreset_spectrum(jacobian, residual, chosen, weights).holds
    missed = jacobian.T @ residual - jacobian[chosen].T @ (weights * residual[chosen])
    xi = np.linalg.norm(missed) + more
    assert coreset_spectrum(jacobian, residual, chosen, weights, float(xi)).holds


def test_lemma_b_2_as_printed_depends_on_the_scale():
    everything = np.array([0]), np.ones(1)
    small = coreset_spectrum(np.array([[0.1]]), np.ones(1), *everything)
    assert small.holds
    assert not small.holds_as_printed
    assert coreset_spectrum(np.array([[10.0]]), np.ones(1), *everything).holds_as_printed


def test_lemma_b_2_needs_an_xi_that_bounds_the_gradient_error():
    jacobian, residual = np.array([[5.0], [0.1]]), np.ones(2)
    assert not coreset_spectrum(jacobian, residual, np.array([1]), np.ones(1), xi=0.0).holds


# Lemma B.3 and corollary B.4.


def linear_instance(seed, n=12, d=4, outputs=3):
    rng = np.random.default_rng(seed)
    model = rng.standard_normal((d, outputs))
    x, y = rng.uniform(-1, 1, (n, d)), rng.standard_normal((n, outputs))
    augmentation = np.eye(d) + 0.3 * rng.standard_normal((d, d))
    gradients = np.einsum("nd,nc->ndc", x, x @ model - y).reshape(n, -1)
    chosen, weights, _ = coreset_of(gradients, rng.integers(1, n + 1), rng)
    return model, x, y, augmentation, chosen, weights


@given(SEEDS, st.booleans())
def test_lemma_b_3_and_corollary_b_4_with_twice_the_term(seed, with_originals):
    found = linear_augmentation_error(*linear_instance(seed), with_originals=with_originals)
    assert found.holds


@pytest.mark.parametrize("with_originals", [False, True])
def test_lemma_b_3_does_not_hold_as_printed(with_originals):
    # All residuals are zero, so xi = 0 for any coreset. The augmentation stretches the last
    # direction, where one example is on one side and all others are on the other.
    n, d, omega, narrow = 20, 12, 1.0, 1e-3
    x = np.ones((n, d))
    x[:, -1] = -narrow
    x[0, -1] = narrow
    model = np.zeros((d, 1))
    model[-1] = 1e6
    stretched = np.eye(d)
    stretched[-1, -1] += omega / (narrow * 1e6)
    found = linear_augmentation_error(
        model,
        x,
        x @ model,
        stretched,
        np.array([0]),
        np.array([float(n)]),
        with_originals=with_originals,
    )
    assert found.holds
    assert not found.holds_as_printed
    assert found.value > 1.7 * found.printed


def test_lemma_b_3_needs_inputs_of_the_assumed_size():
    model, x, _, augmentation, chosen, _ = linear_instance(0)
    x = 30 * x
    found = linear_augmentation_error(
        model, x, x @ model, augmentation, chosen[:1], np.array([float(len(x))])
    )
    assert not found.holds


# Theorems 4.2, B.1 and B.5.


@given(SEEDS, st.integers(1, 4))
@example(11, 1)  # one example: solved in one step
@example(110, 2)  # the gradient grows at first; its bound allows for that
def test_stochastic_descent_shrinks_at_the_proven_rate(seed, d):
    rng = np.random.default_rng(seed)
    n = d + int(rng.integers(0, 5))
    rows = rng.standard_normal((n, d)) * rng.lognormal(0, 1, (n, 1))
    found = stochastic_descent(rows, rng.uniform(0.5, 5, n), rng.standard_normal(d), 60)
    assert found.holds


def test_the_printed_factor_fails_where_the_loss_is_steep():
    steep = stochastic_descent(np.array([[4.0]]), np.ones(1), np.ones(1), 3)
    assert steep.holds
    assert not steep.holds_as_printed
    flat = stochastic_descent(np.array([[0.25]]), np.ones(1), np.ones(1), 3)
    assert flat.holds_as_printed


def test_twice_the_step_size_need_not_shrink_the_loss():
    # One example: alpha = 2 a, lambda = beta = a: a step of alpha / (lambda beta) = 2 / a reflects.
    a = 3.0
    alpha, smooth, beta = 2 * a, a, a
    w, step = 1.0, alpha / (smooth * beta)
    for _ in range(9):
        w -= step * a * w
    assert abs(w) == 1.0


def start_instance(seed, radius, residuals=1.0):
    rng = np.random.default_rng(seed)
    n, d = 12, 4
    model, x = rng.standard_normal(d), rng.uniform(-1, 1, (n, d))
    y = x @ model + residuals * rng.uniform(-1, 1, n)
    chosen, weights, _ = coreset_of(x * (x @ model - y)[:, None], rng.integers(1, n + 1), rng)
    perturbation = rng.standard_normal((len(chosen), d))
    perturbation *= radius / np.linalg.norm(perturbation, axis=1, keepdims=True)
    return model, x, y, perturbation, chosen, weights


@given(SEEDS, st.floats(0, 0.1), st.booleans())
def test_the_initial_gradient_of_theorems_4_2_and_b_1(seed, radius, full):
    assert initial_gradient(*start_instance(seed, radius), full=full).holds


def test_the_initial_gradient_bound_needs_bounded_residuals():
    found = [initial_gradient(*start_instance(seed, 0.1, 1000.0)) for seed in range(300)]
    assert not all(each.holds for each in found)
