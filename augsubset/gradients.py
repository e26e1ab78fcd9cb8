"""Last-layer gradients as plain values: what was measured, for which examples, how far apart."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["LastLayerGradients", "check_finite_rows"]


@numba.njit(cache=True, nogil=True)
def _euclidean(
    rows: npt.NDArray[np.floating],
    cols: npt.NDArray[np.floating],
    unit: float,
) -> npt.NDArray[np.floating]:
    """Distances times ``unit``, by direct differences summed over the features in one order."""
    m, d = rows.shape
    n = cols.shape[0]
    columns = cols.T.copy()
    out = np.zeros((m, n), rows.dtype)
    for i in range(m):
        distances = out[i]
        for t in range(d):
            column = columns[t]
            value = rows[i, t]
            for j in range(n):
                difference = column[j] - value
                distances[j] += difference * difference
        for j in range(n):
            distances[j] = np.sqrt(distances[j]) * unit
    return out


def check_finite_rows(name: str, values: Tensor, indices: Tensor | None = None) -> None:
    """Refuse values with a NaN or an infinity, and say where the first one is."""
    bad = ~torch.isfinite(values).reshape(len(values), -1).all(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        index = first if indices is None else int(indices[first])
        raise ValueError(
            f"{name} must be finite, got {int(bad.sum())} non-finite rows, first at index {index}. "
            "Check the loss scale and the weights before probing."
        )


@dataclass(frozen=True, eq=False)
class LastLayerGradients:
    """Per-example gradients of the loss with respect to the last layer, on the CPU.

    Row *i* of every field belongs to the example ``indices[i]`` of the dataset. Distances between
    residuals bound distances between full gradients up to a constant (paper, section 4, after
    Katharopoulos & Fleuret, 2018), and within a class the one-hot parts cancel.

    Args:
        residual: Gradient with respect to the logits, finite. float32 or float64.
        inputs: Inputs of the last layer, for ``kind="last_layer"``. Only ``None`` exists today.
        labels: Class of each row.
        indices: Dataset index of each row, distinct.
        losses: Loss of each row.

    Shape:
        residual ``(n, C)``; labels, indices ``(n,)`` int64; losses ``(n,)``.

    Raises:
        TypeError: If a field is no tensor, or of the wrong kind of dtype.
        ValueError: If a shape disagrees, n is zero, a value is not finite or an index repeats.

    Example:
        >>> g = LastLayerGradients.from_residual(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> g.distances(torch.tensor([0]), torch.tensor([0, 1]))
        tensor([[0., 5.]])
    """

    residual: Tensor
    inputs: Tensor | None
    labels: Tensor
    indices: Tensor
    losses: Tensor

    def __post_init__(self) -> None:
        """Validate once; everything downstream trusts these values."""
        if self.inputs is not None:
            raise ValueError(
                'inputs must be None, got a tensor. Only kind="logits" exists so far; '
                "the last-layer form is not implemented."
            )
        for name in ("residual", "labels", "indices", "losses"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
            object.__setattr__(self, name, value.detach().cpu().contiguous())
        if self.residual.ndim != 2 or not self.residual.is_floating_point():
            raise ValueError(
                "residual must be a floating (n, C) tensor, got "
                f"(shape {tuple(self.residual.shape)}, dtype {self.residual.dtype})."
            )
        if self.residual.dtype not in (torch.float32, torch.float64):
            object.__setattr__(self, "residual", self.residual.float())
        n = len(self.residual)
        if n == 0:
            raise ValueError("gradients must hold at least one example, got an empty dataset.")
        for name in ("labels", "indices", "losses"):
            value = getattr(self, name)
            if value.shape != (n,):
                raise ValueError(
                    f"{name} must be of shape ({n},), one a row of residual, got shape "
                    f"{tuple(value.shape)}."
                )
        for name in ("labels", "indices"):
            if getattr(self, name).dtype != torch.int64:
                raise TypeError(f"{name} must be int64, got dtype {getattr(self, name).dtype}.")
        if len(torch.unique(self.indices)) != n:
            raise ValueError("indices must be distinct, got repeats. Probe each example once.")
        check_finite_rows("gradients", self.residual, self.indices)
        check_finite_rows("losses", self.losses, self.indices)

    @classmethod
    def from_residual(cls, residual: Tensor, labels: Tensor | None = None) -> LastLayerGradients:
        """Wrap a bare ``(n, C)`` tensor: one group unless labels say otherwise, indices 0..n-1."""
        n = len(residual)
        return cls(
            residual=residual,
            inputs=None,
            labels=torch.zeros(n, dtype=torch.int64) if labels is None else labels,
            indices=torch.arange(n),
            losses=torch.zeros(n),
        )

    @classmethod
    def unprobed(cls, n: int) -> LastLayerGradients:
        """Stand in for n examples that nobody probed, for rules that need no gradient."""
        return cls.from_residual(torch.zeros(n, 0))

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self.indices)

    def distances(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return Euclidean distances between the gradients at two lists of positions.

        Args:
            rows: Positions (not dataset indices), int64.
            cols: Positions, int64.

        Returns:
            ``(len(rows), len(cols))`` in the residual's dtype, from direct differences: the Gram
            form cancels to noise among the near-duplicates of a converged network. Symmetric to
            the bit, with exact zeros between equal gradients.

        Cost:
            O(len(rows) len(cols) C) time on one core, no temporary but the result.
        """
        features = self.residual.numpy()
        here, there = features[rows.numpy()], features[cols.numpy()]
        # Squares overflow and vanish long before values do; a power of two is exact both ways.
        largest = max(np.abs(here).max(initial=0), np.abs(there).max(initial=0))
        exponent = min(int(np.frexp(largest)[1]), 1000)
        here, there = (np.ldexp(part, -exponent) for part in (here, there))
        return torch.from_numpy(_euclidean(here, there, 2.0**exponent))
