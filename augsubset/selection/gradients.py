"""Last-layer gradients as plain values: what was measured, for which examples, how far apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from augsubset.selection.distances import Factors, SquaredDistances

__all__ = ["LastLayerGradients", "check_finite_rows"]


def check_finite_rows(name: str, values: Tensor, indices: Tensor | None = None) -> None:
    """Refuse values with a NaN or an infinity, and say where the first one is."""
    if values.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(values)):
        return  # in one pass, without a mask of everything; aminmax keeps a NaN
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
    these bound distances between full gradients up to a constant (paper, section 4, after
    Katharopoulos & Fleuret, 2018), and within a class the one-hot parts cancel.

    Args:
        residual: Gradient with respect to the logits, finite. float32 or float64.
        inputs: Inputs of the last layer: the gradient in its weights is then residual ⊗ inputs,
            an ``(n, C d)`` matrix that is never formed. ``None``: the residual alone.
        labels: Class of each row.
        indices: Dataset index of each row, distinct.
        losses: Loss of each row.
        earlier: ``(gradient at the output, input)`` of further Linear layers, ``(n, o)`` and
            ``(n, i)``; their squared distances are added.
        ages: Training passes since each row was measured, where it was recycled; ``None``: now.

    Shape:
        residual ``(n, C)``; inputs ``(n, d)``; labels, indices, ages ``(n,)`` int64; losses
        ``(n,)``.

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
    earlier: tuple[tuple[Tensor, Tensor], ...] = ()
    ages: Tensor | None = None

    def __post_init__(self) -> None:
        """Validate once; everything downstream trusts these values."""
        self._set("residual", _features("residual", self.residual))
        n = len(self.residual)
        if n == 0:
            raise ValueError("gradients must hold at least one example, got an empty dataset.")
        if self.inputs is not None:
            self._set("inputs", _features("inputs", self.inputs, like=self.residual))
        earlier = tuple(
            (_features("earlier", left, self.residual), _features("earlier", right, self.residual))
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
                    f"{name} must be of shape ({n},), one a row of residual, got shape "
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

    @classmethod
    def merged(cls, shards: Sequence[LastLayerGradients]) -> LastLayerGradients:
        """Return the rows of several shards as one, by ascending dataset index.

        Args:
            shards: Of one kind, with no index in two of them. Ages are left behind.
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
        """The rows as the arrays that distances are taken of, one entry a layer; no copy."""
        last = Factors(self.residual.numpy(), None if self.inputs is None else self.inputs.numpy())
        return (last, *(Factors(left.numpy(), right.numpy()) for left, right in self.earlier))

    def distances(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return Euclidean distances between the gradients at two lists of positions.

        Args:
            rows: Positions (not dataset indices), int64.
            cols: Positions, int64.

        Returns:
            ``(len(rows), len(cols))`` in the residual's dtype. Symmetric to the bit, with exact
            zeros between equal gradients; see :mod:`augsubset.selection.distances` for float32.

        Cost:
            O(len(rows) len(cols) (C + d)) time on one core, and a second matrix of the result's
            size where there are inputs.
        """
        here, there = ([part.at(p.numpy()) for part in self.factors] for p in (rows, cols))
        squares = SquaredDistances(here, there)
        return torch.from_numpy(np.sqrt(squares.block(slice(None))) * squares.unit)


def _features(name: str, value: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a floating matrix on the CPU, float32 or float64, or refuse it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if value.ndim != 2 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a floating (n, C) tensor, got "
            f"(shape {tuple(value.shape)}, dtype {value.dtype})."
        )
    if like is not None and len(value) != len(like):
        raise ValueError(f"{name} must have {len(like)} rows, as residual has, got {len(value)}.")
    dtype = like.dtype if like is not None else value.dtype
    if dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    return value.detach().to("cpu", dtype).contiguous()
