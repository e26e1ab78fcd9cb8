"""Effect of augmentation on the spectrum of a network's Jacobian, checked against known bounds.

The paper's section 3 treats augmentation as a perturbation E of the Jacobian J of the outputs with
respect to the parameters. Singular values move by at most the norm of E; small ones move most,
relative to their size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from augsubset.probe.eval_mode import evaluation_mode
from augsubset.utils.checks import AugsubsetError, check_choice, check_int

try:
    from scipy.sparse.linalg import (  # type: ignore[import-untyped]
        LinearOperator,
        svds,
    )
except ImportError as error:
    raise ImportError(
        "augsubset.diagnostics needs scipy, which is not installed: "
        'pip install "augsubset[diagnostics]".'
    ) from error

__all__ = ["Spectrum", "SpectrumChange", "jacobian", "spectrum_change"]

Float64Array = npt.NDArray[np.float64]

# Rounding error allowed in the inequalities, relative to the largest value: Jacobians are float32.
_ROUNDING = 1e-4
# Number of leading subspaces that are compared; each takes an SVD.
_MAX_SUBSPACES = 32


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a Jacobian, in decreasing order.

    Args:
        singular_values: ``(k,)`` float64; all of them, or the k largest.
        num_rows: Number of examples times number of outputs.
        num_columns: Number of parameters.
    """

    singular_values: Float64Array
    num_rows: int
    num_columns: int

    @property
    def eigenvalues(self) -> Float64Array:
        """Eigenvalues of the neural tangent kernel J J^T: the squared singular values."""
        return np.square(self.singular_values)


@dataclass(frozen=True, eq=False)
class SpectrumChange:
    """Spectra of original and augmented examples, and how far they are apart.

    Args:
        original: Of J.
        augmented: Of J + E.
        perturbation_norm: Largest singular value of E.
        perturbation_frobenius: Frobenius norm of E.
        sines: Sine of the largest angle between the subspaces of the j + 1 leading left singular
            vectors, for j < 32; empty if vectors were not computed.
        wedin_bounds: Upper bound on each by Wedin's theorem; at least 1, hence vacuous, if the gap
            to the next singular value is too small.
    """

    original: Spectrum
    augmented: Spectrum
    perturbation_norm: float
    perturbation_frobenius: float
    sines: Float64Array
    wedin_bounds: Float64Array

    def __post_init__(self) -> None:
        """Check that the bounds hold; a violation means that the computation is wrong."""
        moved = np.abs(self.augmented.singular_values - self.original.singular_values)
        scale = float(self.original.singular_values[0] + self.perturbation_norm)
        if float(moved.max()) > self.perturbation_norm + _ROUNDING * scale:
            raise AugsubsetError(
                f"singular values moved by {moved.max():.4g}, more than Weyl's inequality allows "
                f"for a perturbation of norm {self.perturbation_norm:.4g}. The model must be "
                "deterministic and must not change between the two."
            )
        total = float(np.sqrt(np.square(moved).sum()))
        if total > self.perturbation_frobenius + _ROUNDING * scale * np.sqrt(len(moved)):
            raise AugsubsetError(
                f"singular values moved by {total:.4g} in total, more than Mirsky's inequality "
                f"allows for a perturbation of norm {self.perturbation_frobenius:.4g}."
            )
        excess = self.sines - self.wedin_bounds
        if len(excess) and float(excess.max()) > np.sqrt(_ROUNDING):
            raise AugsubsetError(
                f"singular vectors turned by more than Wedin's theorem allows: the sine exceeds "
                f"its bound by {excess.max():.4g}."
            )


def jacobian(model: nn.Module, x: Tensor, *, chunk_size: int = 16) -> Tensor:
    """Return the Jacobian of all outputs with respect to all parameters, in evaluation mode.

    Args:
        model: Returns ``(B, C)``; batch norm uses running statistics.
        x: Inputs. ``(n, ...)``
        chunk_size: Examples per step; bounds the memory beside the result.

    Shape:
        returns ``(n * C, m)`` on the device of ``x``; the outputs of an example are adjacent rows.

    Cost:
        C backward passes per example; 4 n C m bytes.

    Raises:
        TypeError: If the model does not return a ``(B, C)`` tensor.
    """
    check_int("chunk_size", chunk_size, 1)
    _count_outputs(model, x)
    return torch.cat([_compute_rows(model, part) for part in torch.split(x, chunk_size)])


def _compute_rows(model: nn.Module, x: Tensor) -> Tensor:
    """Return the rows of the Jacobian for one chunk of examples."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def outputs(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        out: Tensor = functional_call(model, (weights, buffers), (one[None],))
        return out[0]

    with evaluation_mode(model, x.device), torch.enable_grad():
        found = vmap(jacrev(outputs), (None, 0))(weights, x)
    return torch.cat([each.detach().flatten(2) for each in found.values()], 2).flatten(0, 1)


def _count_outputs(model: nn.Module, x: Tensor) -> int:
    with evaluation_mode(model, x.device):
        out = model(x[:1])
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise TypeError(
            f"the model must return a (B, C) tensor, got {type(out).__name__}"
            f"{f' of shape {tuple(out.shape)}' if isinstance(out, Tensor) else ''}."
        )
    return out.shape[1]


def spectrum_change(
    model: nn.Module,
    x: Tensor,
    augmented: Tensor,
    *,
    method: str = "auto",
    num_values: int | None = None,
    chunk_size: int = 16,
    max_elements: int = 1 << 27,
    seed: int = 0,
) -> SpectrumChange:
    """Return how augmentation changes the Jacobian's singular values and vectors.

    Weyl's and Mirsky's inequalities are checked, and Wedin's bound if vectors are computed.

    Args:
        model: Returns ``(B, C)``; left unchanged, run in evaluation mode.
        x: Inputs as the model takes them. ``(n, ...)``
        augmented: The same examples, augmented. ``(n, ...)``
        method: ``"exact"``: both Jacobians in memory, and their SVD in float64. ``"iterative"``:
            only the ``num_values`` largest singular values, from matrix-vector products (ARPACK).
            ``"auto"``: exact up to ``max_elements`` entries.
        num_values: Number of values for ``"iterative"``; by default a tenth of all, at most 100.
        chunk_size: Examples per step.
        max_elements: Size limit of a Jacobian in memory, in entries.
        seed: Of the iteration's start vector.

    Raises:
        ValueError: If shapes differ or a value is out of range.
        TypeError: If the model does not return a ``(B, C)`` tensor.
        AugsubsetError: If a bound is violated: a nondeterministic model, or rounding in float32.

    Reference:
        Liu & Mirzasoleiman, section 3; Weyl, 1912; Mirsky, 1960; Wedin, 1972.
    """
    check_choice("method", method, ("auto", "exact", "iterative"))
    if x.shape != augmented.shape or not len(x):
        raise ValueError(
            "augmented must have the shape of x and at least one example, got shape "
            f"{tuple(augmented.shape)} for {tuple(x.shape)}."
        )
    rows = len(x) * _count_outputs(model, x)
    columns = sum(parameter.numel() for parameter in model.parameters())
    if method == "auto":
        method = "exact" if rows * columns <= max_elements else "iterative"
    if method == "exact":
        first = jacobian(model, x, chunk_size=chunk_size)
        second = jacobian(model, augmented, chunk_size=chunk_size)
        return _compute_exactly(first.double().cpu().numpy(), second.double().cpu().numpy())
    most = min(rows, columns) - 1
    count = max(1, min(100, most // 10)) if num_values is None else num_values
    check_int("num_values", count, 1, most)
    return _compute_iteratively(model, x, augmented, rows, columns, count, chunk_size, seed)


def _compute_exactly(first: Float64Array, second: Float64Array) -> SpectrumChange:
    """Return the change between two Jacobians in memory."""
    difference = second - first
    left, before, _ = np.linalg.svd(first, full_matrices=False)
    turned, after, _ = np.linalg.svd(second, full_matrices=False)
    norm = float(np.linalg.norm(difference, 2))
    sines, bounds = _compare_subspaces(left, turned, before, after, norm)
    rows, columns = first.shape
    return SpectrumChange(
        Spectrum(before, rows, columns),
        Spectrum(after, rows, columns),
        norm,
        float(np.linalg.norm(difference)),
        sines,
        bounds,
    )


def _compare_subspaces(
    left: Float64Array,
    turned: Float64Array,
    before: Float64Array,
    after: Float64Array,
    norm: float,
) -> tuple[Float64Array, Float64Array]:
    """Return the sines between leading left singular subspaces, and Wedin's bounds on them.

    The gap is between the j-th singular value before and the (j + 1)-th after; if it is not
    positive, there is no bound.
    """
    count = min(len(before) - 1, _MAX_SUBSPACES)
    products = turned[:, :count].T @ left[:, :count]
    sines, bounds = np.empty(count), np.ones(count)
    for j in range(count):
        # The cosine of the largest principal angle.
        cosine = min(1.0, float(np.linalg.svd(products[: j + 1, : j + 1], compute_uv=False)[-1]))
        sines[j] = np.sqrt(1 - cosine**2)
        gap = before[j] - after[j + 1]
        if gap > 0:
            bounds[j] = max(norm / gap, 0.0)
    return sines, bounds


def _compute_iteratively(
    model: nn.Module,
    x: Tensor,
    augmented: Tensor,
    rows: int,
    columns: int,
    count: int,
    chunk_size: int,
    seed: int,
) -> SpectrumChange:
    """Return the change of the largest singular values, from Jacobian-vector products only."""
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(min(rows, columns))
    frobenius = 0.0
    for parts in zip(torch.split(x, chunk_size), torch.split(augmented, chunk_size), strict=True):
        first, second = (_compute_rows(model, part) for part in parts)
        frobenius += float((second - first).double().square().sum())
    operators = [_build_operator(model, inputs, rows, columns) for inputs in (x, augmented)]

    def find_largest(operator: LinearOperator, k: int) -> Float64Array:
        found: Float64Array = svds(operator, k, v0=start, return_singular_vectors=False)
        return np.sort(found)[::-1]

    with evaluation_mode(model, x.device):
        before, after = (find_largest(operator, count) for operator in operators)
        norm = find_largest(operators[1] - operators[0], 1)[0]
    return SpectrumChange(
        Spectrum(before, rows, columns),
        Spectrum(after, rows, columns),
        float(norm),
        float(np.sqrt(frobenius)),
        sines=np.zeros(0),
        wedin_bounds=np.zeros(0),
    )


def _build_operator(model: nn.Module, x: Tensor, rows: int, columns: int) -> LinearOperator:
    """Return the Jacobian as a linear operator, by forward and backward differentiation."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())
    sizes = [value.numel() for value in weights.values()]

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(model, (weights, buffers), (x,))
        return out.flatten()

    def forward(vector: Float64Array) -> Float64Array:
        flat = torch.from_numpy(vector).to(x.device, torch.float32).flatten()
        parts = zip(weights.items(), torch.split(flat, sizes), strict=True)
        tangents = {name: part.view_as(value) for (name, value), part in parts}
        with torch.enable_grad():
            # J^T u is linear in u, so its own vector-Jacobian product is J v: double backward.
            pull = vjp(outputs, weights)[1]
            push = vjp(lambda u: pull(u)[0], torch.zeros(rows, device=x.device))[1]
            (product,) = push(tangents)
        found: Float64Array = product.detach().double().cpu().numpy()
        return found

    def backward(vector: Float64Array) -> Float64Array:
        with torch.enable_grad():
            pull = vjp(outputs, weights)[1]
            (found,) = pull(torch.from_numpy(vector).to(x.device, torch.float32).flatten())
        product = torch.cat([found[name].detach().flatten() for name in weights])
        result: Float64Array = product.double().cpu().numpy()
        return result

    return LinearOperator((rows, columns), matvec=forward, rmatvec=backward, dtype=np.float64)
