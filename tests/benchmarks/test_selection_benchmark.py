"""The selection benchmark's own arithmetic."""

import json

import numpy as np
import pytest
import torch

from augsubset import LastLayerGradients, select_coreset
from benchmarks import selection
from tests.benchmarks.test_harness import write_npz


@pytest.fixture
def gradients():
    generator = torch.Generator().manual_seed(0)
    return LastLayerGradients.from_residual(
        torch.randn(90, 3, generator=generator), torch.arange(90) % 4
    )


def test_error_of_a_coreset_is_its_certificates(gradients):
    chosen = select_coreset(gradients, fraction=0.2)
    error = selection.error_of(gradients, chosen.indices)
    assert error == pytest.approx(chosen.certificate.error, rel=1e-5)


def test_random_subsets_have_the_same_class_budgets(gradients):
    chosen = select_coreset(gradients, fraction=0.2).indices
    at_random = selection.random_with_budgets(gradients, chosen, 1)
    counts = [torch.bincount(gradients.labels[subset]) for subset in (chosen, at_random)]
    assert torch.equal(*counts)
    assert len(torch.unique(at_random)) == len(chosen)


def test_the_quick_form_prints_and_records(tmp_path, capsys, monkeypatch):
    write_npz(tmp_path / "c.npz", n=80)
    limited = selection.ImageData.limited
    monkeypatch.setattr(selection.ImageData, "limited", lambda self, limit: limited(self, 80))
    out = tmp_path / "quick.json"
    selection.main(["--quick", "--data", str(tmp_path / "c.npz"), "--out", str(out)])
    assert "10 of 80: solved in" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert np.isfinite(record["quick"]["coreset_over_random"])
