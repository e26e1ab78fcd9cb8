"""Last-layer gradients of a set of examples, and the distances between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from augsubset.selection.distances import Factors, SquaredDistances

__all__ = ["LastLayerGradients", "check_finite_rows"]


def check_finite_rows(name: str, values: Tensor, indices: Tensor | None = None) -> None:
    """Raise if a value is NaN or infinite, and report the first such row."""
    if values.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(values)):
        return  # one pass without a mask; aminmax propagates NaN
    bad = ~torch.isfinite(values[:, None]).flatten(1).all(1)
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
    last-layer gradients bound distances between full gradients up to a constant (paper, section 4,
    after Katharopoulos & Fleuret, 2018); within a class, the one-hot labels cancel.

    Args:
        residual: Gradient with respect to the logits, finite. float32 or float64.
        inputs: Inputs of the last layer, so that the gradient of its weights is residual ⊗ inputs,
            an ``(n, C d)`` matrix that is never formed. ``None``: the residual alone.
        labels: Class of each row.
        indices: Dataset index of each row, distinct.
        losses: Loss of each row.
        earlier: ``(gradient at the output, input)`` of further Linear layers, ``(n, o)`` and
            ``(n, i)``; their squared distances are added.
        ages: Training passes since each row was measured, if it was cached; ``None``: all current.

    Shape:
        residual ``(n, C)``; inputs ``(n, d)``; labels, indices, ages ``(n,)`` int64; losses
        ``(n,)``.

    Raises:
        TypeError: If a field is not a tensor, or its dtype is wrong.
        ValueError: If a shape is wrong, n is zero, a value is not finite or an index repeats.

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
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()
    ages: Tensor | None = None

    def __post_init__(self) -> None:
        """Validate once; everything downstream trusts these values."""
        self._set("residual", _check_features("residual", self.residual))
        n = len(self.residual)
        if n == 0:
            raise ValueError("gradients must contain at least one example, got an empty dataset.")
        if self.inputs is not None:
            self._set("inputs", _check_features("inputs", self.inputs, like=self.residual))
        earlier = tuple(
            (
                _check_features("earlier", left, self.residual),
                _check_features("earlier", right, self.residual),
            )
            for left, right in self.earlier
        )
        self._set("earlier", earlier)
        for name in ("labels", "indices", "losses", "ages"):
            value = getattr(self, name)
            if name == "ages" and value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
            if value.shape != (n,):
                raise ValueError(
                    f"{name} must be of shape ({n},), like the rows of residual, got shape "
                    f"{tuple(value.shape)}."
                )
            if name != "losses" and value.dtype != torch.int64:
                raise TypeError(f"{name} must be int64, got dtype {value.dtype}.")
            self._set(name, value.detach().cpu().contiguous())
        if len(torch.unique(self.indices)) != n:
            raise ValueError("indices must be distinct, got repeats. Probe each example once.")
        for values in (self.residual, self.inputs, *(part for pair in earlier for part in pair)):
            if values is not None:
                check_finite_rows("gradients", values, self.indices)
        check_finite_rows("losses", self.losses, self.indices)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_residual(cls, residual: Tensor, labels: Tensor | None = None) -> LastLayerGradients:
        """Wrap an ``(n, C)`` tensor, with indices 0..n-1; a single class without labels."""
        n = len(residual)
        return cls(
            residual=residual,
            inputs=None,
            labels=torch.zeros(n, dtype=torch.int64) if labels is None else labels,
            indices=torch.arange(n),
            losses=torch.zeros(n),
        )

    @classmethod
    def unprobed(cls, n: int, labels: Tensor | None = None) -> LastLayerGradients:
        """Return a placeholder for n examples, for selectors that need no gradients."""
        return cls.from_residual(torch.zeros(n, 0), labels)

    @classmethod
    def merged(cls, shards: Sequence[LastLayerGradients]) -> LastLayerGradients:
        """Return the rows of several shards, sorted by dataset index.

        Args:
            shards: Of the same fields, with disjoint indices. Ages are dropped.
        """
        order = torch.argsort(torch.cat([shard.indices for shard in shards]))

        def rows(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(parts))[order]

        inputs = [shard.inputs for shard in shards if shard.inputs is not None]
        layers = zip(*(shard.earlier for shard in shards), strict=True)
        return cls(
            residual=rows([shard.residual for shard in shards]),
            inputs=rows(inputs) if inputs else None,
            labels=rows([shard.labels for shard in shards]),
            indices=rows([shard.indices for shard in shards]),
            losses=rows([shard.losses for shard in shards]),
            earlier=tuple(
                (rows([left for left, _ in layer]), rows([right for _, right in layer]))
                for layer in layers
            ),
        )

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self.indices)

    @property
    def factors(self) -> tuple[Factors, ...]:
        """The arrays to compute distances from, one entry per layer; no copy."""
        last = Factors(self.residual.numpy(), None if self.inputs is None else self.inputs.numpy())
        return (last, *(Factors(left.numpy(), right.numpy()) for left, right in self.earlier))

    def distances(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return Euclidean distances between the gradients at two lists of positions.

        Args:
            rows: Positions (not dataset indices), int64.
            cols: Positions, int64.

        Returns:
            ``(len(rows), len(cols))`` in the residual's dtype. Exactly symmetric, and exactly zero
            between equal gradients; see :mod:`augsubset.selection.distances` on float32.

        Cost:
            O(len(rows) len(cols) (C + d)) time on one core, and a second matrix of the result's
            size if there are inputs.
        """
        here, there = ([part.take(p.numpy()) for part in self.factors] for p in (rows, cols))
        squares = SquaredDistances(here, there)
        return torch.from_numpy(np.sqrt(squares.compute_block(slice(None))) * squares.unit)


def _check_features(name: str, value: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a float32 or float64 matrix on the CPU; half precision becomes float32."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if value.ndim != 2 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a floating (n, C) tensor, got "
            f"(shape {tuple(value.shape)}, dtype {value.dtype})."
        )
    if like is not None and len(value) != len(like):
        raise ValueError(f"{name} must have {len(like)} rows, like residual, got {len(value)}.")
    dtype = like.dtype if like is not None else value.dtype
    if dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    return value.detach().to("cpu", dtype).contiguous()
