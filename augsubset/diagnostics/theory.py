r"""The paper's theorems, evaluated on concrete instances: both sides of each inequality.

Each function computes both sides in float64 on an instance that you supply; its assumptions are
listed, not checked. If the printed bound does not follow, :class:`Inequality` has one that does.

Throughout, J is a Jacobian ``(n, m)``, r a residual ``(n,)``, ``chosen`` the rows of a coreset and
``weights`` its cluster sizes. The coreset's gradient is the sum of its rows of J, each times its
residual and weight; xi is its distance from the full gradient, where all weights are 1.

Reference:
    Liu & Mirzasoleiman, *Data-Efficient Augmentation for Training Neural Networks*, 2022
    (arXiv:2210.08363), sections 3 and 4, appendices A and B.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Descent",
    "Inequality",
    "augmented_gradient_error",
    "coreset_gradient_error",
    "coreset_spectrum",
    "decay_under_shifts",
    "expected_eigenvalue",
    "initial_gradient",
    "linear_augmentation_error",
    "residuals_by_descent",
    "residuals_by_spectrum",
    "sampled_shifts",
    "stochastic_descent",
]

Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_ROUNDING = 1e-9


class Inequality(NamedTuple):
    """Both sides of an inequality on one instance.

    Args:
        value: The bounded quantity.
        bound: A proven bound on it.
        printed: The paper's bound; equal to ``bound`` if the paper is right.
    """

    value: float
    bound: float
    printed: float

    @property
    def holds(self) -> bool:
        """Whether the value is within the bound, up to rounding."""
        return self.value <= self.bound + _ROUNDING * (1 + abs(self.bound))

    @property
    def holds_as_printed(self) -> bool:
        """Whether the value is within the printed bound, up to rounding."""
        return self.value <= self.printed + _ROUNDING * (1 + abs(self.printed))


# Section 3: the spectrum determines how fast residuals shrink.


def residuals_by_descent(
    jacobian: Array, residual: Array, learning_rate: float, num_steps: int
) -> Array:
    """Return the residuals of a linear model at every step of gradient descent.

    Shape:
        jacobian ``(n, m)``, residual ``(n,)``; returns ``(num_steps + 1, n)``.
    """
    weights = np.zeros(jacobian.shape[1])
    found = [residual]
    for _ in range(num_steps):
        weights += learning_rate * jacobian.T @ found[-1]
        found.append(residual - jacobian @ weights)
    return np.stack(found)


def residuals_by_spectrum(
    jacobian: Array, residual: Array, learning_rate: float, num_steps: int
) -> Array:
    """Return the same by equation 5: each eigencomponent shrinks at the rate of its eigenvalue.

    Shape:
        jacobian ``(n, m)``, residual ``(n,)``; returns ``(num_steps + 1, n)``.
    """
    eigenvalues, vectors = np.linalg.eigh(jacobian @ jacobian.T)
    factors = (1 - learning_rate * eigenvalues) ** np.arange(num_steps + 1)[:, None]
    found: Array = (factors * (vectors.T @ residual)) @ vectors.T
    return found


def expected_eigenvalue(singular_value: float, norm: float, decreasing: float) -> float:
    """Return the expected squared singular value according to lemma 3.1.

    Args:
        singular_value: Before the perturbation.
        norm: Largest singular value of the perturbation.
        decreasing: Probability that it decreases. Either way, the shift is assumed uniform up to
            the norm.
    """
    return singular_value**2 + singular_value * (1 - 2 * decreasing) * norm + norm**2 / 3


def sampled_shifts(norm: float, decreasing: float, count: int, seed: int = 0) -> Array:
    """Draw ``(count,)`` shifts of a singular value from the distribution in lemma 3.1."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random(count) < decreasing, -1.0, 1.0)
    return sign * norm * rng.random(count)


def decay_under_shifts(
    singular_value: float, norm: float, decreasing: float, learning_rate: float, num_steps: int
) -> Inequality:
    """Compare theorem 3.2 with the mean that it bounds, for one direction of a unit residual.

    The proof applies Jensen's inequality in the wrong direction: the printed expression is a lower
    bound. The upper bound that holds is the largest decay factor over all shifts.

    Cost:
        Exact quadrature with ``2 num_steps + 1`` nodes.
    """
    nodes, masses = np.polynomial.legendre.leggauss(2 * num_steps + 1)
    up = norm * (nodes + 1) / 2
    shifts = np.concatenate([-up, up])
    probabilities = np.concatenate([decreasing * masses, (1 - decreasing) * masses]) / 2
    factors = (1 - learning_rate * (singular_value + shifts) ** 2) ** (2 * num_steps)
    mean = expected_eigenvalue(singular_value, norm, decreasing)
    # The factor is largest at either extreme shift, or where the singular value is zero.
    ends = np.array([singular_value - norm, singular_value + norm, 0.0])
    if abs(singular_value) > norm:
        ends = ends[:2]
    largest = ((1 - learning_rate * ends**2) ** (2 * num_steps)).max()
    printed = (1 - learning_rate * mean) ** (2 * num_steps)
    return Inequality(float(probabilities @ factors), float(largest), float(printed))


# Section 4 and appendix B: the gradient error of a coreset.


def coreset_gradient_error(
    gradients: Array, chosen: Int64Array, weights: Array, clusters: Int64Array
) -> Inequality:
    """Compare the gradient error of a coreset with the distances to its representatives.

    Their sum, which facility location minimises, bounds it. The root of their summed squares, which
    the paper's A.6 prints, is smaller and not a bound.

    Args:
        gradients: ``(n, m)``
        chosen: ``(k,)``
        weights: Cluster sizes. ``(k,)``
        clusters: Representative of each example, as a position in ``chosen``. ``(n,)``
    """
    differences = gradients - gradients[chosen][clusters]
    sizes = np.bincount(clusters, minlength=len(chosen))
    # Not a difference of totals, whose rounding can exceed the bound where norms span decades.
    error = differences.sum(0) + (sizes - weights) @ gradients[chosen]
    distances = np.linalg.norm(differences, axis=1)
    frobenius = float(np.sqrt(np.square(distances).sum()))
    return Inequality(float(np.linalg.norm(error)), float(distances.sum()), frobenius)


def augmented_gradient_error(
    jacobian: Array,
    residual: Array,
    perturbation: Array,
    chosen: Int64Array,
    weights: Array,
    lipschitz: float,
) -> Inequality:
    """Compare the gradient error of an augmented coreset with the bound of lemma 4.1.

    Assumes:
        Rows of the perturbation with norms up to ``lipschitz`` times its radius, which is at most
        ``n ** -1.5 / sqrt(lipschitz)``; residuals in [-1, 1], the same for augmented examples;
        weights that add up to n.

    Shape:
        jacobian, perturbation ``(n, m)``, residual ``(n,)``, chosen, weights ``(k,)``.
    """
    xi = _compute_gradient_error(jacobian, residual, chosen, weights)
    value = _compute_gradient_error(jacobian + perturbation, residual, chosen, weights)
    bound = xi + 2 * np.sqrt(lipschitz)
    return Inequality(value, bound, bound)


def coreset_spectrum(
    jacobian: Array, residual: Array, chosen: Int64Array, weights: Array, xi: float | None = None
) -> Inequality:
    """Compare the lower bound of lemma B.2 with the spectrum of the weighted coreset's Jacobian.

    It bounds the root of the summed eigenvalues; printed without the root, the sides scale
    differently. Vacuous if ``xi`` exceeds the norm of the gradient.

    Args:
        jacobian: ``(n, m)``
        residual: ``(n,)``
        chosen: ``(k,)``
        weights: ``(k,)``
        xi: Upper bound on the gradient error; by default the gradient error itself.
    """
    xi = _compute_gradient_error(jacobian, residual, chosen, weights) if xi is None else xi
    gradient = float(np.linalg.norm(jacobian.T @ residual))
    value = max(0.0, gradient - xi) / float(np.linalg.norm(residual[chosen]))
    frobenius = float(np.linalg.norm(weights[:, None] * jacobian[chosen]))
    return Inequality(value, frobenius, frobenius**2)


def linear_augmentation_error(
    model: Array,
    x: Array,
    y: Array,
    augmentation: Array,
    chosen: Int64Array,
    weights: Array,
    *,
    with_originals: bool = False,
) -> Inequality:
    """Compare the gradient error after a linear augmentation with lemma B.3, or corollary B.4.

    For a linear model under squared loss, whose outputs the augmentation changes by at most omega.
    The proof counts that change in the coreset but not in the whole set, which contributes as much
    again: the bound that holds has twice the printed term. Inputs are in [-1, 1].

    Args:
        model: ``(d, C)``
        x: ``(n, d)``
        y: ``(n, C)``
        augmentation: ``(d, d)``
        chosen: ``(k,)``
        weights: Cluster sizes, which add up to n. ``(k,)``
        with_originals: Whether to add the gradients of the originals (the corollary).
    """
    n, d = x.shape
    changed = x @ augmentation.T
    before, after = (
        _compute_linear_gradients(model, x, y),
        _compute_linear_gradients(model, changed, y),
    )
    errors = [each.sum(0) - np.tensordot(weights, each[chosen], 1) for each in (before, after)]
    xi = float(np.linalg.norm(errors[0]))
    omega = float(np.linalg.norm((changed - x) @ model, axis=1).max())
    norm = float(np.linalg.norm(augmentation, 2))
    value = float(np.linalg.norm(sum(errors) if with_originals else errors[1]))
    of_xi = (norm + with_originals) * xi
    term = norm * np.sqrt(d) * n * omega
    return Inequality(value, of_xi + 2 * term, of_xi + term)


# Theorems 4.2, B.1 and B.5: stochastic gradient descent on the augmented coreset.


class Descent(NamedTuple):
    """Gradient norms at every step, and bounds on them.

    Args:
        norms: Root mean square over all orders of examples, at least the mean. ``(steps + 1,)``
        bounds: Proven bounds. ``(steps + 1,)``
        printed: The paper's bounds. ``(steps + 1,)``
    """

    norms: Array
    bounds: Array
    printed: Array

    @property
    def holds(self) -> bool:
        """Whether all norms are within the bounds, up to rounding."""
        return bool((self.norms <= self.bounds + _ROUNDING * self.norms[0]).all())

    @property
    def holds_as_printed(self) -> bool:
        """Whether all norms are within the printed bounds, up to rounding."""
        return bool((self.norms <= self.printed + _ROUNDING * self.norms[0]).all())


def stochastic_descent(rows: Array, weights: Array, error: Array, num_steps: int) -> Descent:
    """Return the exact expectation of SGD on a weighted least-squares problem with zero minimum.

    For a loss that is lambda-smooth, has beta-smooth terms and a squared gradient of at least alpha
    times the loss, a step size eta = alpha / (2 lambda beta) shrinks the expected loss by a factor
    1 - alpha eta / 2 (after Bassily, Belkin & Ma, 2018); twice that, as we read the paper, need
    not. From gradient to loss and back costs a factor 2 lambda / alpha; the paper prints 1 / alpha.

    Assumes:
        Rows that span the space; a solution with zero loss (interpolation).

    Args:
        rows: Features. ``(n, d)``
        weights: Of each example's loss. ``(n,)``
        error: Initial parameters minus the solution. ``(d,)``
        num_steps: Number of steps, on one uniformly drawn example each.

    Cost:
        O(steps n d^3).
    """
    n = len(rows)
    parts = n * weights[:, None, None] * rows[:, :, None] * rows[:, None, :]
    hessian = parts.mean(0)
    eigenvalues = np.linalg.eigvalsh(hessian)
    alpha, smooth = 2 * eigenvalues[0], eigenvalues[-1]
    step = alpha / (2 * smooth * max(np.trace(part) for part in parts))
    moves = np.eye(len(error)) - step * parts
    moments = [np.outer(error, error)]
    for _ in range(num_steps):
        moments.append(np.mean(moves @ moments[-1] @ moves, axis=0))
    norms = np.sqrt([np.trace(hessian @ moment @ hessian) for moment in moments])
    factor = max(0.0, 1 - alpha * step / 2)
    decay = factor ** (np.arange(num_steps + 1) / 2) * norms[0]
    return Descent(norms, np.sqrt(2 * smooth / alpha) * decay, np.sqrt(1 / alpha) * decay)


def initial_gradient(
    model: Array,
    x: Array,
    y: Array,
    perturbation: Array,
    chosen: Int64Array,
    weights: Array,
    *,
    full: bool = True,
) -> Inequality:
    """Compare the initial gradient of training with its bound in theorem 4.2, or B.1.

    For a linear model under squared loss, trained on the full data (B.1: the coreset) plus the
    augmented coreset. The bound is twice the full gradient, plus xi (B.1: twice), plus a term for
    the perturbation.

    Assumes:
        Residuals of augmented examples in [-sqrt 2, sqrt 2]; weights that add up to n.

    Args:
        model: ``(d,)``
        x: ``(n, d)``
        y: ``(n,)``
        perturbation: Of the chosen examples. ``(k, d)``
        chosen: ``(k,)``
        weights: ``(k,)``
        full: Whether to train on all originals, instead of the weighted coreset's.
    """
    n = len(x)
    residual = x @ model - y
    xi = _compute_gradient_error(x, residual, chosen, weights)
    of_full, of_coreset = x.T @ residual, x[chosen].T @ (weights * residual[chosen])
    augmented = x[chosen] + perturbation
    of_augmented = augmented.T @ (weights * (augmented @ model - y[chosen]))
    value = float(np.linalg.norm((of_full if full else of_coreset) + of_augmented))
    radius = float(np.linalg.norm(perturbation, axis=1).max())
    largest = float(np.linalg.norm(np.sqrt(weights)[:, None] * x[chosen], 2))
    lipschitz = max(1.0, float(np.linalg.norm(model)))
    added = largest * lipschitz * np.sqrt(n) * radius + np.sqrt(2) * n * lipschitz * radius
    bound = 2 * float(np.linalg.norm(of_full)) + (1 if full else 2) * xi + added
    return Inequality(value, bound, bound)


def _compute_gradient_error(
    jacobian: Array, residual: Array, chosen: Int64Array, weights: Array
) -> float:
    """Return xi, the norm of (full gradient - weighted gradient of the coreset)."""
    of_coreset = jacobian[chosen].T @ (weights * residual[chosen])
    return float(np.linalg.norm(jacobian.T @ residual - of_coreset))


def _compute_linear_gradients(model: Array, x: Array, y: Array) -> Array:
    """Return the per-example gradients of half the squared error; ``(n, d, C)``."""
    found: Array = np.einsum("nd,nc->ndc", x, x @ model - y)
    return found
