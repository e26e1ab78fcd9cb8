r"""What augmentation does to the spectrum of a network's Jacobian, with the bounds that hold.

The paper's section 3 reads an augmentation as a perturbation E of the Jacobian J of the outputs in
the parameters: it moves singular values by no more than the norm of E, small ones relatively most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from augsubset.probe.eval_mode import untouched
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

# What float32 Jacobians leave of an inequality that holds exactly, relative to the largest value.
_ROUNDING = 1e-4
# Spaces of leading vectors that are compared: an SVD each.
_MOST_SPACES = 32


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a Jacobian, the largest first.

    Args:
        singular_values: ``(k,)`` float64; all of them, or the k largest.
        num_rows: Outputs of all examples together.
        num_columns: Parameters.
    """

    singular_values: Float64Array
    num_rows: int
    num_columns: int

    @property
    def eigenvalues(self) -> Float64Array:
        """Eigenvalues of the neural tangent kernel J J^T: the squares."""
        return np.square(self.singular_values)


@dataclass(frozen=True, eq=False)
class SpectrumChange:
    """Spectra of original and augmented examples, and of what lies between.

    Args:
        original: Of J.
        augmented: Of J + E.
        perturbation_norm: Largest singular value of E.
        perturbation_frobenius: Root of the summed squares of E.
        sines: Sine of the largest angle between the spaces of the j + 1 leading left singular
            vectors, for the first 32 j; empty where vectors were not computed.
        wedin_bounds: What Wedin's theorem allows for it; at least 1, which says nothing, where the
            gap to the next singular value is too small.
    """

    original: Spectrum
    augmented: Spectrum
    perturbation_norm: float
    perturbation_frobenius: float
    sines: Float64Array
    wedin_bounds: Float64Array

    def __post_init__(self) -> None:
        """Check what no perturbation can do; a violation is an error of the computation."""
        moved = np.abs(self.augmented.singular_values - self.original.singular_values)
        scale = float(self.original.singular_values[0] + self.perturbation_norm)
        if float(moved.max()) > self.perturbation_norm + _ROUNDING * scale:
            raise AugsubsetError(
                f"singular values moved by {moved.max():.4g}, more than Weyl's inequality allows "
                f"for a perturbation of norm {self.perturbation_norm:.4g}. The model must be "
                "deterministic, and the same for both."
            )
        total = float(np.sqrt(np.square(moved).sum()))
        if total > self.perturbation_frobenius + _ROUNDING * scale * np.sqrt(len(moved)):
            raise AugsubsetError(
                f"singular values moved by {total:.4g} in all, more than Mirsky's inequality "
                f"allows for a perturbation of norm {self.perturbation_frobenius:.4g}."
            )
        beyond = self.sines - self.wedin_bounds
        if len(beyond) and float(beyond.max()) > np.sqrt(_ROUNDING):
            raise AugsubsetError(
                f"singular vectors turned by a sine of {beyond.max():.4g} more than Wedin's "
                "theorem allows."
            )


def jacobian(model: nn.Module, x: Tensor, *, chunk_size: int = 16) -> Tensor:
    """Return the Jacobian of all outputs in all parameters, the model in evaluation mode.

    Args:
        model: Returns ``(B, C)``; batch normalisation uses its running statistics.
        x: Inputs. ``(n, ...)``
        chunk_size: Examples at a time: bounds memory beside the result.

    Shape:
        returns ``(n * C, m)`` on the device of ``x``: the outputs of an example are neighbours.

    Cost:
        C backward passes an example; 4 n C m bytes.

    Raises:
        TypeError: If the model returns no ``(B, C)`` tensor.
    """
    check_int("chunk_size", chunk_size, 1)
    _num_outputs(model, x)
    return torch.cat([_rows(model, part) for part in torch.split(x, chunk_size)])


def _rows(model: nn.Module, x: Tensor) -> Tensor:
    """Return the rows of the Jacobian of some examples, held at once."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def outputs(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        out: Tensor = functional_call(model, (weights, buffers), (one[None],))
        return out[0]

    with untouched(model, x.device), torch.enable_grad():
        found = vmap(jacrev(outputs), (None, 0))(weights, x)
    return torch.cat([each.detach().flatten(2) for each in found.values()], 2).flatten(0, 1)


def _num_outputs(model: nn.Module, x: Tensor) -> int:
    with untouched(model, x.device):
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
    """Return how augmenting moves the Jacobian's singular values and vectors.

    Weyl's and Mirsky's inequalities and, where vectors are computed, Wedin's bound are checked.

    Args:
        model: Returns ``(B, C)``; evaluated as a whole, without a trace.
        x: Inputs as the model takes them. ``(n, ...)``
        augmented: The same examples, augmented. ``(n, ...)``
        method: ``"exact"``: both Jacobians in memory, through their Gram matrices in float64 or
            their SVD, whichever is smaller. ``"iterative"``: the ``num_values`` largest singular
            values alone by products with the Jacobian, which is never held (ARPACK). ``"auto"``:
            exact up to ``max_elements`` entries.
        num_values: How many, for ``"iterative"``; by default a tenth of what there are, at most
            100.
        chunk_size: Examples at a time.
        max_elements: Entries of a Jacobian that are held.
        seed: Of the iteration's start.

    Raises:
        ValueError: If shapes differ or a value is out of range.
        TypeError: If the model returns no ``(B, C)`` tensor.
        AugsubsetError: If a bound is violated: the model draws random numbers, or float32 does not
            hold what it computes.

    Reference:
        Liu & Mirzasoleiman, section 3; Weyl, 1912; Mirsky, 1960; Wedin, 1972.
    """
    check_choice("method", method, ("auto", "exact", "iterative"))
    if x.shape != augmented.shape or not len(x):
        raise ValueError(
            f"augmented must be as many examples of one shape as x, got {tuple(augmented.shape)} "
            f"for {tuple(x.shape)}."
        )
    rows = len(x) * _num_outputs(model, x)
    columns = sum(parameter.numel() for parameter in model.parameters())
    if method == "auto":
        method = "exact" if rows * columns <= max_elements else "iterative"
    if method == "exact":
        first = jacobian(model, x, chunk_size=chunk_size)
        second = jacobian(model, augmented, chunk_size=chunk_size)
        return _exact(first.double().cpu().numpy(), second.double().cpu().numpy())
    most = min(rows, columns) - 1
    count = max(1, min(100, most // 10)) if num_values is None else num_values
    check_int("num_values", count, 1, most)
    return _iterative(model, x, augmented, rows, columns, count, chunk_size, seed)


def _exact(first: Float64Array, second: Float64Array) -> SpectrumChange:
    """Return the change between two Jacobians that are held."""
    difference = second - first
    left, before, _ = np.linalg.svd(first, full_matrices=False)
    turned, after, _ = np.linalg.svd(second, full_matrices=False)
    norm = float(np.linalg.norm(difference, 2))
    sines, bounds = _movement(left, turned, before, after, norm)
    rows, columns = first.shape
    return SpectrumChange(
        Spectrum(before, rows, columns),
        Spectrum(after, rows, columns),
        norm,
        float(np.linalg.norm(difference)),
        sines,
        bounds,
    )


def _movement(
    left: Float64Array,
    turned: Float64Array,
    before: Float64Array,
    after: Float64Array,
    norm: float,
) -> tuple[Float64Array, Float64Array]:
    """Return the sines between leading left singular spaces, and Wedin's bounds on them.

    The gap is from the j-th singular value of the one to the next of the other; where it is not
    positive the theorem says nothing.
    """
    count = min(len(before) - 1, _MOST_SPACES)
    products = turned[:, :count].T @ left[:, :count]
    sines, bounds = np.empty(count), np.ones(count)
    for j in range(count):
        # What the j + 1 leading vectors of the other leave of those of the one.
        inside = min(1.0, float(np.linalg.svd(products[: j + 1, : j + 1], compute_uv=False)[-1]))
        sines[j] = np.sqrt(1 - inside**2)
        gap = before[j] - after[j + 1]
        if gap > 0:
            bounds[j] = max(norm / gap, 0.0)
    return sines, bounds


def _iterative(
    model: nn.Module,
    x: Tensor,
    augmented: Tensor,
    rows: int,
    columns: int,
    count: int,
    chunk_size: int,
    seed: int,
) -> SpectrumChange:
    """Return the largest singular values by products with Jacobians that are never held."""
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(min(rows, columns))
    frobenius = 0.0
    for parts in zip(torch.split(x, chunk_size), torch.split(augmented, chunk_size), strict=True):
        first, second = (_rows(model, part) for part in parts)
        frobenius += float((second - first).double().square().sum())
    operators = [_operator(model, inputs, rows, columns) for inputs in (x, augmented)]

    def largest(operator: LinearOperator, k: int) -> Float64Array:
        found: Float64Array = svds(operator, k, v0=start, return_singular_vectors=False)
        return np.sort(found)[::-1]

    with untouched(model, x.device):
        before, after = (largest(operator, count) for operator in operators)
        norm = largest(operators[1] - operators[0], 1)[0]
    nothing = np.zeros(0)
    return SpectrumChange(
        Spectrum(before, rows, columns),
        Spectrum(after, rows, columns),
        float(norm),
        float(np.sqrt(frobenius)),
        nothing,
        nothing,
    )


def _operator(model: nn.Module, x: Tensor, rows: int, columns: int) -> LinearOperator:
    """Return the Jacobian as what multiplies vectors: a forward or a backward derivative."""
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
            # The backward derivative is linear in its vector: its own is the forward one.
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
