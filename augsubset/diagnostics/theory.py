r"""The paper's statements in numbers: what is said to be smaller, and what is said to be larger.

Each function computes both sides on an instance of yours, in float64; whether it satisfies the
assumptions, which are named, is yours to see to. Where the paper prints a bound that does not
follow, :class:`Inequality` has the one that does, and the printed one beside it.

Throughout, J is a Jacobian ``(n, m)``, r a residual ``(n,)``, ``chosen`` the rows of a coreset and
``weights`` its cluster sizes: its gradient is the sum of its rows of J, each times its residual and
weight, and xi the norm of what that misses of the same sum over all rows, each weighing one.

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
    """Two sides of a statement on one instance.

    Args:
        value: What is bounded.
        bound: What bounds it, by a proof.
        printed: What the paper prints; the same where that is right.
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
        """Whether it is within what the paper prints."""
        return self.value <= self.printed + _ROUNDING * (1 + abs(self.printed))


# Section 3: the spectrum decides how fast residuals shrink.


def residuals_by_descent(
    jacobian: Array, residual: Array, learning_rate: float, num_steps: int
) -> Array:
    """Return the residuals of a linear model under gradient descent, step by step.

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
    """Return the same by equation 5: each eigenvector's share shrinks by its eigenvalue.

    Shape:
        jacobian ``(n, m)``, residual ``(n,)``; returns ``(num_steps + 1, n)``.
    """
    eigenvalues, vectors = np.linalg.eigh(jacobian @ jacobian.T)
    factors = (1 - learning_rate * eigenvalues) ** np.arange(num_steps + 1)[:, None]
    found: Array = (factors * (vectors.T @ residual)) @ vectors.T
    return found


def expected_eigenvalue(singular_value: float, norm: float, decreasing: float) -> float:
    """Return the mean of the squared singular value by lemma 3.1.

    Args:
        singular_value: Before the perturbation.
        norm: Largest singular value of the perturbation.
        decreasing: Probability that it decreases; given that, as given the opposite, the lemma
            assumes that the shift is uniform up to the norm.
    """
    return singular_value**2 + singular_value * (1 - 2 * decreasing) * norm + norm**2 / 3


def sampled_shifts(norm: float, decreasing: float, count: int, seed: int = 0) -> Array:
    """Draw shifts of a singular value as lemma 3.1 assumes them, of shape ``(count,)``."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random(count) < decreasing, -1.0, 1.0)
    return sign * norm * rng.random(count)


def decay_under_shifts(
    singular_value: float, norm: float, decreasing: float, learning_rate: float, num_steps: int
) -> Inequality:
    """Compare theorem 3.2 to the mean that it bounds, for one direction of a unit residual.

    The proof moves the mean into a convex function, against Jensen's inequality: what is printed
    is a bound from below, no bound from above. What holds is that no factor is larger than the
    largest, over all shifts.

    Cost:
        An exact quadrature of ``2 num_steps + 1`` nodes.
    """
    nodes, masses = np.polynomial.legendre.leggauss(2 * num_steps + 1)
    up = norm * (nodes + 1) / 2
    shifts = np.concatenate([-up, up])
    probabilities = np.concatenate([decreasing * masses, (1 - decreasing) * masses]) / 2
    factors = (1 - learning_rate * (singular_value + shifts) ** 2) ** (2 * num_steps)
    mean = expected_eigenvalue(singular_value, norm, decreasing)
    # The factor is largest at an end: of the shifts, or where the eigenvalue is zero.
    ends = np.array([singular_value - norm, singular_value + norm, 0.0])
    if abs(singular_value) > norm:
        ends = ends[:2]
    largest = ((1 - learning_rate * ends**2) ** (2 * num_steps)).max()
    printed = (1 - learning_rate * mean) ** (2 * num_steps)
    return Inequality(float(probabilities @ factors), float(largest), float(printed))


# Section 4 and appendix B: what a coreset's gradient misses.


def coreset_gradient_error(
    gradients: Array, chosen: Int64Array, weights: Array, clusters: Int64Array
) -> Inequality:
    """Compare what a coreset's gradient misses to the distances to its representatives.

    The sum of the distances bounds it: facility location minimises that. The paper's A.6 prints the
    root of the summed squares, which is less, and no bound.

    Args:
        gradients: ``(n, m)``
        chosen: ``(k,)``
        weights: Cluster sizes. ``(k,)``
        clusters: Row of ``chosen`` that represents each example. ``(n,)``
    """
    missed = gradients.sum(0) - weights @ gradients[chosen]
    distances = np.linalg.norm(gradients - gradients[chosen][clusters], axis=1)
    frobenius = float(np.sqrt(np.square(distances).sum()))
    return Inequality(float(np.linalg.norm(missed)), float(distances.sum()), frobenius)


def augmented_gradient_error(
    jacobian: Array,
    residual: Array,
    perturbation: Array,
    chosen: Int64Array,
    weights: Array,
    lipschitz: float,
) -> Inequality:
    """Compare what an augmented coreset's gradient misses to lemma 4.1's bound.

    Assumes:
        Rows of the perturbation no longer than ``lipschitz`` times its radius, which is at most
        ``n ** -1.5 / sqrt(lipschitz)``; residuals in [-1, 1], the same for augmented examples;
        weights that add up to n.

    Shape:
        jacobian, perturbation ``(n, m)``, residual ``(n,)``, chosen, weights ``(k,)``.
    """
    xi = _missed(jacobian, residual, chosen, weights)
    value = _missed(jacobian + perturbation, residual, chosen, weights)
    bound = xi + 2 * np.sqrt(lipschitz)
    return Inequality(value, bound, bound)


def coreset_spectrum(
    jacobian: Array, residual: Array, chosen: Int64Array, weights: Array, xi: float | None = None
) -> Inequality:
    """Compare lemma B.2's lower bound to the spectrum of the weighted coreset's Jacobian.

    What holds is of the root of the summed eigenvalues; without it, as printed, the two sides do
    not scale alike. A ``xi`` larger than the gradient says nothing.

    Args:
        jacobian: ``(n, m)``
        residual: ``(n,)``
        chosen: ``(k,)``
        weights: ``(k,)``
        xi: Bound on what the coreset misses; by default what it misses.
    """
    xi = _missed(jacobian, residual, chosen, weights) if xi is None else xi
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
    """Compare what a coreset misses after a linear augmentation to lemma B.3, or corollary B.4.

    A linear model under squared loss, whose outputs the augmentation changes by at most omega. The
    proof counts what the augmentation changes in the coreset, and not in the whole set, which is as
    much again: what holds is twice the printed term. Inputs are in [-1, 1].

    Args:
        model: ``(d, C)``
        x: ``(n, d)``
        y: ``(n, C)``
        augmentation: ``(d, d)``
        chosen: ``(k,)``
        weights: Cluster sizes, which add up to n. ``(k,)``
        with_originals: Whether the originals' gradients count too (the corollary).
    """
    n, d = x.shape
    changed = x @ augmentation.T
    before, after = _linear_gradients(model, x, y), _linear_gradients(model, changed, y)
    missed = [each.sum(0) - np.tensordot(weights, each[chosen], 1) for each in (before, after)]
    xi = float(np.linalg.norm(missed[0]))
    omega = float(np.linalg.norm((changed - x) @ model, axis=1).max())
    norm = float(np.linalg.norm(augmentation, 2))
    value = float(np.linalg.norm(sum(missed) if with_originals else missed[1]))
    of_xi = (norm + with_originals) * xi
    term = norm * np.sqrt(d) * n * omega
    return Inequality(value, of_xi + 2 * term, of_xi + term)


# Theorems 4.2, B.1 and B.5: stochastic gradient descent on what was chosen and augmented.


class Descent(NamedTuple):
    """Norms of the gradient over the steps, and what bounds them.

    Args:
        norms: Root mean square over all orders, which is no less than the mean. ``(steps + 1,)``
        bounds: What follows for them. ``(steps + 1,)``
        printed: As in the paper. ``(steps + 1,)``
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
        """Whether all norms are within what the paper prints."""
        return bool((self.norms <= self.printed + _ROUNDING * self.norms[0]).all())


def stochastic_descent(rows: Array, weights: Array, error: Array, num_steps: int) -> Descent:
    """Follow SGD on weighted least squares that some parameters solve, in exact expectation.

    For a loss that is lambda-smooth, has beta-smooth parts and a squared gradient of at least alpha
    times itself, a step eta = alpha / (2 lambda beta) shrinks its mean by 1 - alpha eta / 2 (after
    Bassily, Belkin & Ma, 2018); at twice that step, as we read the paper, it need not shrink.
    From loss to gradient and back costs a factor of 2 lambda / alpha; the paper prints 1 / alpha.

    Assumes:
        Rows that span the space; a solution (interpolation).

    Args:
        rows: What each example multiplies the parameters with. ``(n, d)``
        weights: Of each example's loss. ``(n,)``
        error: Parameters at the start, less the solution. ``(d,)``
        num_steps: Steps of one example each, drawn uniformly.

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
    """Compare the gradient at the start to what theorem 4.2, or B.1, makes of it.

    A linear model under squared loss; of the full data, or the coreset (B.1), with the augmented
    coreset: at most twice the full data's, xi (B.1: twice), and what the perturbation adds.

    Assumes:
        Residuals of augmented examples in [-sqrt 2, sqrt 2]; weights that add up to n.

    Args:
        model: ``(d,)``
        x: ``(n, d)``
        y: ``(n,)``
        perturbation: Of the chosen examples. ``(k, d)``
        chosen: ``(k,)``
        weights: ``(k,)``
        full: Whether all originals are trained on, or the weighted coreset's.
    """
    n = len(x)
    residual = x @ model - y
    xi = _missed(x, residual, chosen, weights)
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


def _missed(jacobian: Array, residual: Array, chosen: Int64Array, weights: Array) -> float:
    """Return the norm of what a coreset's gradient misses: xi."""
    of_coreset = jacobian[chosen].T @ (weights * residual[chosen])
    return float(np.linalg.norm(jacobian.T @ residual - of_coreset))


def _linear_gradients(model: Array, x: Array, y: Array) -> Array:
    """Return each example's gradient of half the squared error; ``(n, d, C)``."""
    found: Array = np.einsum("nd,nc->ndc", x, x @ model - y)
    return found
