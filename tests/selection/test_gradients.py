"""LastLayerGradients: distances and validation."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from augsubset import LastLayerGradients
from tests.reference import pairwise

RESIDUAL = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
GRADIENTS = LastLayerGradients(
    residual=RESIDUAL,
    inputs=None,
    labels=torch.arange(12) % 3,
    indices=torch.arange(12),
    losses=torch.rand(12, generator=torch.Generator().manual_seed(0)),
)


def test_distances_are_euclidean_at_positions():
    rows, cols = torch.tensor([3, 0]), torch.tensor([1, 3, 11])
    expected = pairwise(RESIDUAL)[rows][:, cols]
    assert float((GRADIENTS.distances(rows, cols) - expected).abs().max()) < 1e-6


def test_distances_are_exactly_symmetric_with_a_zero_diagonal():
    every = torch.arange(12)
    distances = GRADIENTS.distances(every, every)
    assert torch.equal(distances, distances.T)
    assert torch.equal(distances.diagonal(), torch.zeros(12))


def test_half_precision_is_stored_as_float32():
    assert replace(GRADIENTS, residual=RESIDUAL.half()).residual.dtype == torch.float32


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        GRADIENTS.labels = torch.zeros(12)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"residual": RESIDUAL[0]}, ValueError, r"residual must be a floating \(n, C\) tensor"),
        ({"residual": RESIDUAL.long()}, ValueError, r"residual must be a floating \(n, C\)"),
        ({"residual": RESIDUAL.numpy()}, TypeError, "residual must be a torch.Tensor"),
        ({"labels": None}, TypeError, "labels must be a torch.Tensor, got NoneType"),
        ({"labels": torch.zeros(11).long()}, ValueError, r"labels must be of shape \(12,\)"),
        ({"labels": torch.zeros(12)}, TypeError, "labels must be int64"),
        ({"losses": torch.zeros(3)}, ValueError, r"losses must be of shape \(12,\)"),
        ({"losses": torch.full((12,), torch.inf)}, ValueError, "losses must be finite, got 12"),
        ({"indices": torch.zeros(12).long()}, ValueError, "indices must be distinct"),
        ({"inputs": RESIDUAL[:3]}, ValueError, "inputs must have 12 rows, like residual, got 3"),
        ({"inputs": RESIDUAL * torch.nan}, ValueError, "gradients must be finite, got 12"),
        ({"earlier": ((RESIDUAL, RESIDUAL[0]),)}, ValueError, "earlier must be a floating"),
        ({"earlier": ((RESIDUAL[:3], RESIDUAL),)}, ValueError, "earlier must have 12 rows"),
        ({"ages": torch.zeros(3).long()}, ValueError, r"ages must be of shape \(12,\)"),
    ],
)
def test_inconsistent_fields_are_refused(change, error, reason):
    with pytest.raises(error, match=reason):
        replace(GRADIENTS, **change)


def test_non_finite_residuals_name_the_dataset_index():
    bad = RESIDUAL.clone()
    bad[[2, 5], 1] = float("inf")
    with pytest.raises(ValueError, match="got 2 non-finite rows, first at index 102"):
        replace(GRADIENTS, residual=bad, indices=torch.arange(100, 112))
