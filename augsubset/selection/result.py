"""The immutable result of a selection."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augsubset.selection.certificate import Certificate
from augsubset.selection.gradients import check_finite_rows
from augsubset.utils.checkpoint import write_whole

__all__ = ["Selection"]

_ARRAYS = ("indices", "weights", "gains", "clusters")


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The weighted subset that a selector chose at one epoch.

    Args:
        indices: Selected dataset indices, distinct. In the order of selection: the first k' are the
            selection of budget k'.
        weights: Number of examples of its class that each one represents; positive.
        gains: Marginal gain of each pick in the facility-location value of its class, in units of
            distance; zero for selectors without such an objective.
        clusters: Dataset index of the representative of each row of the data, -1 if none.
        certificate: Quality of the approximation, for a coreset.
        epoch: When it was made.

    Shape:
        indices, weights, gains ``(k,)``; clusters ``(n,)``. int64, float64, float64, int64; kept
        on the CPU.

    Raises:
        ValueError: If lengths disagree, an index repeats or a weight is not positive.
        TypeError: If a field is not a one-dimensional tensor of its dtype.
    """

    indices: Tensor
    weights: Tensor
    gains: Tensor
    clusters: Tensor
    certificate: Certificate | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        """Validate once; everything downstream trusts these values."""
        k = len(self.indices)
        for name in _ARRAYS:
            value = getattr(self, name)
            dtype = torch.float64 if name in ("weights", "gains") else torch.int64
            if not isinstance(value, Tensor) or value.ndim != 1 or value.dtype != dtype:
                raise TypeError(f"{name} must be a one-dimensional {dtype} tensor.")
            if name != "clusters" and len(value) != k:
                raise ValueError(f"{name} must have {k} values, one per index, got {len(value)}.")
            object.__setattr__(self, name, value.cpu())
        if not 0 < k <= len(self.clusters):
            raise ValueError(
                f"indices must have between 1 and n={len(self.clusters)} entries, got {k}."
            )
        if int(self.indices.min()) < 0:
            raise ValueError(f"indices must be 0 or more, got {int(self.indices.min())}.")
        if len(torch.unique(self.indices)) != k:
            raise ValueError("indices must be distinct, got repeats.")
        check_finite_rows("weights", self.weights)
        if not bool((self.weights > 0).all()):
            raise ValueError("weights must be positive, got a weight of zero or less.")

    @classmethod
    def equally_weighted(cls, indices: Tensor, num_examples: int, *, epoch: int = 0) -> Selection:
        """Return a selection without clusters, in which each example has weight n / k.

        Args:
            indices: Selected dataset indices. ``(k,)`` int64
            num_examples: Size of the dataset, n.
            epoch: When it was made.

        Example:
            >>> Selection.equally_weighted(torch.tensor([4, 1]), num_examples=10).weights
            tensor([5., 5.], dtype=torch.float64)
        """
        k = len(indices)
        return cls(
            indices=indices,
            weights=torch.full((k,), num_examples / max(k, 1), dtype=torch.float64),
            gains=torch.zeros(k, dtype=torch.float64),
            clusters=torch.full((num_examples,), -1, dtype=torch.int64),
            epoch=epoch,
        )

    def __len__(self) -> int:
        """Return the number of selected examples, k."""
        return len(self.indices)

    def __repr__(self) -> str:
        return (
            f"Selection({len(self)} of {len(self.clusters)}, epoch {self.epoch}, weights "
            f"{float(self.weights.min()):g} to {float(self.weights.max()):g}, effective sample "
            f"size {self.effective_sample_size:.4g})"
        )

    @property
    def effective_sample_size(self) -> float:
        """(Sum of weights)^2 / sum of squared weights: k if all are equal."""
        return float(self.weights.sum() ** 2 / self.weights.square().sum())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays: equal digests mean bit-identical selections."""
        sha = hashlib.sha256()
        for name in _ARRAYS:
            sha.update(getattr(self, name).numpy().tobytes())
        return sha.hexdigest()

    def capped(self, max_weight: float) -> Selection:
        """Return the selection with weights capped at ``max_weight`` times their mean.

        The certificate's effective sample size is updated; its errors still refer to the cluster
        sizes.
        """
        limit = max_weight * float(self.weights.mean())
        capped = replace(self, weights=self.weights.clamp(max=limit))
        if self.certificate is None:
            return capped
        size = capped.effective_sample_size
        return replace(capped, certificate=replace(self.certificate, effective_sample_size=size))

    def save(self, path: str | PathLike[str]) -> None:
        """Write all fields to one ``.npz`` file, readable without this package or pickle."""
        figures: dict[str, Any] = {"epoch": np.array(self.epoch)}
        if self.certificate is not None:
            bound = self.certificate.error_lower_bound
            figures["certificate"] = np.array(
                [
                    self.certificate.error,
                    np.nan if bound is None else bound,
                    self.certificate.gradient_error,
                    self.certificate.gradient_norm,
                    self.certificate.effective_sample_size,
                ]
            )
        figures.update({name: getattr(self, name).numpy() for name in _ARRAYS})
        file = io.BytesIO()
        np.savez(file, **figures)
        write_whole(path, file.getvalue())

    @staticmethod
    def load(path: str | PathLike[str]) -> Selection:
        """Read a selection written by :meth:`save`; its digest is the same.

        Raises:
            ValueError: If the file is not a saved selection.
        """
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError(f"{path} must be a saved Selection, got no .npz archive.")
        with np.load(path, allow_pickle=False) as archive:
            missing = {*_ARRAYS, "epoch"} - set(archive)
            if missing:
                raise ValueError(
                    f"{path} must be a saved Selection, got an archive without {sorted(missing)}."
                )
            certificate = None
            if "certificate" in archive:
                error, bound, *others = archive["certificate"].tolist()
                certificate = Certificate(error, None if np.isnan(bound) else bound, *others)
            return Selection(
                **{name: torch.from_numpy(archive[name]) for name in _ARRAYS},
                certificate=certificate,
                epoch=int(archive["epoch"]),
            )
