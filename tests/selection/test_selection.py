"""Selection: validation, digest, saving."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from augsubset import RandomSelector, Selection, select_coreset
from augsubset.selection.gradients import LastLayerGradients

FEATURES = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["selection.npz", "selection"])
def test_load_returns_what_was_saved(tmp_path, name):
    selection = replace(select_coreset(FEATURES, budget=4), epoch=40)
    selection.save(tmp_path / name)
    loaded = Selection.load(tmp_path / name)
    assert loaded.digest == selection.digest
    assert loaded.certificate == selection.certificate
    assert loaded.epoch == 40


def test_a_selection_without_certificate_can_be_saved(tmp_path):
    gradients = LastLayerGradients.unprobed(20)
    selection = RandomSelector().select(gradients, budget=4, seed=0, epoch=3)
    selection.save(tmp_path / "random.npz")
    assert Selection.load(tmp_path / "random.npz").certificate is None


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, indices=np.arange(3))
    with pytest.raises(ValueError, match=r"an archive without \['clusters', 'epoch'"):
        Selection.load(path)
    np.save(tmp_path / "other.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"got no \.npz archive"):
        Selection.load(tmp_path / "other.npy")


def test_digests_of_different_selections_differ():
    assert select_coreset(FEATURES, budget=4).digest != select_coreset(FEATURES, budget=5).digest


def test_a_selection_is_frozen():
    with pytest.raises(FrozenInstanceError):
        select_coreset(FEATURES, budget=4).epoch = 1


def test_repr_shows_size_epoch_and_weights():
    selection = Selection.equally_weighted(torch.tensor([3, 1]), 10, epoch=4)
    expected = "Selection(2 of 10, epoch 4, weights 5 to 5, effective sample size 2)"
    assert repr(selection) == expected


def test_effective_sample_size_equals_the_certificates():
    selection = select_coreset(FEATURES, budget=4)
    assert selection.effective_sample_size == selection.certificate.effective_sample_size


def test_capped_limits_weights_to_a_multiple_of_their_mean():
    selection = replace(
        select_coreset(FEATURES, budget=4), weights=torch.tensor([17.0, 1, 1, 1]).double()
    )
    assert selection.capped(2).weights.tolist() == [10, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"indices": torch.tensor([1, 1, 2, 3])}, ValueError, "indices must be distinct"),
        ({"indices": torch.tensor([-1, 1, 2, 3])}, ValueError, "indices must be 0 or more"),
        ({"weights": torch.tensor([1.0, 0, 1, 1]).double()}, ValueError, "must be positive"),
        ({"weights": torch.ones(4)}, TypeError, "weights must be a one-dimensional torch.float64"),
        ({"gains": torch.ones(3).double()}, ValueError, "gains must have 4 values"),
        ({"clusters": torch.zeros(2).long()}, ValueError, "between 1 and n=2 entries, got 4"),
    ],
)
def test_inconsistent_fields_are_refused(change, error, reason):
    with pytest.raises(error, match=reason):
        replace(select_coreset(FEATURES, budget=4), **change)
