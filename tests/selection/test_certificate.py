"""Certificate: its figures against the materialised rows, and the error ratio."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from augsubset import LastLayerGradients, select_coreset
from augsubset.selection.certificate import Certificate, build_certificate, measure_class
from tests import reference


def gradients(dtype, *, with_inputs, with_earlier, n=60):
    rng = np.random.default_rng(0)

    def rows(width):
        return torch.from_numpy(rng.normal(size=(n, width))).to(dtype)

    return LastLayerGradients(
        residual=rows(4),
        inputs=rows(5) if with_inputs else None,
        labels=torch.arange(n) % 3,
        indices=torch.arange(n),
        losses=torch.zeros(n),
        earlier=((rows(2), rows(3)), (rows(3), rows(1))) if with_earlier else (),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("with_earlier", [False, True])
def test_figures_match_the_materialised_rows(dtype, with_inputs, with_earlier):
    given = gradients(dtype, with_inputs=with_inputs, with_earlier=with_earlier)
    rows = reference.materialised(given)
    selection = select_coreset(given, budget=12)
    certificate = selection.certificate
    gap = rows.sum(0) - (selection.weights[:, None] * rows[selection.indices]).sum(0)
    error = float((rows - rows[selection.clusters]).norm(dim=1).sum())
    assert certificate.error == pytest.approx(error, rel=1e-10)
    assert certificate.gradient_error == pytest.approx(float(gap.norm()), rel=1e-10)
    assert certificate.gradient_norm == pytest.approx(float(rows.sum(0).norm()), rel=1e-10)
    assert certificate.gradient_error <= certificate.error
    weights = selection.weights
    expected = float(weights.sum() ** 2 / weights.square().sum())
    assert certificate.effective_sample_size == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("with_inputs", [False, True])
def test_the_error_bounds_the_gradient_error_where_norms_span_decades(seed, with_inputs):
    """Regression: the sums of all products and of the selected ones differed by rounding alone."""
    rng = np.random.default_rng(seed)

    def rows(width):
        return torch.from_numpy(rng.normal(size=(20, width)) * 10.0 ** rng.integers(-8, 9, (20, 1)))

    inputs = rows(4).abs() if with_inputs else None
    zeros = torch.zeros(20, dtype=torch.int64)
    given = LastLayerGradients(rows(3), inputs, zeros, torch.arange(20), torch.zeros(20))
    selection = select_coreset(given, budget=17)
    products = reference.materialised(given)
    gap = (products - products[selection.clusters]).sum(0).norm()
    assert selection.certificate.gradient_error == pytest.approx(float(gap), rel=1e-9)
    assert selection.certificate.gradient_error <= selection.certificate.error


@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("exponent", [-400, -250, 250, 490])
def test_figures_scale_with_the_rows(exponent, with_inputs):
    """Regression: squares of numbers above 1e154 overflow, and of some below 1e-154 vanish."""
    given = gradients(torch.float64, with_inputs=with_inputs, with_earlier=False)
    scale = 2.0 ** (exponent if with_inputs else 2 * exponent)
    scaled = replace(
        given,
        residual=given.residual * scale,
        inputs=given.inputs * scale if with_inputs else None,
    )
    found, expected = (select_coreset(one, budget=12).certificate for one in (scaled, given))
    for name in ("error", "error_lower_bound", "gradient_error", "gradient_norm"):
        unscaled = getattr(found, name) / 2.0 ** (2 * exponent)
        assert unscaled == pytest.approx(getattr(expected, name), rel=1e-6)


def test_gradient_errors_of_classes_may_cancel_but_their_errors_add_up():
    rows = torch.tensor([[0.0], [2.0], [0.0], [-2.0]], dtype=torch.float64)
    whole = select_coreset(rows, torch.tensor([0, 0, 1, 1]), budget=2).certificate
    assert (whole.error, whole.gradient_error) == (4.0, 0.0)


def test_one_class_without_a_bound_means_no_bound_in_total():
    part = gradients(torch.float64, with_inputs=False, with_earlier=False).factors
    measured = [measure_class(part, [one.take(np.zeros(60, np.int64)) for one in part])] * 2
    assert build_certificate(measured, [1.0, 2.0], np.ones(2)).error_lower_bound == 3.0
    assert build_certificate(measured, [1.0, None], np.ones(2)).error_lower_bound is None


@pytest.mark.parametrize(
    ("error", "bound", "ratio"),
    [(3.0, 2.0, 1.5), (3.0, None, None), (3.0, 0.0, float("inf")), (0.0, 0.0, 1.0)],
)
def test_error_ratio_divides_by_the_lower_bound(error, bound, ratio):
    assert Certificate(error, bound, 1.0, 1.0, 1.0).error_ratio == ratio


def test_a_distant_outlier_does_not_improve_the_error_ratio():
    """Unlike the ratio of objective values, where C depends on the outlier."""
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = select_coreset(points, budget=30).certificate
    outlier = torch.full((1, 3), 1e5, dtype=torch.float64)
    beside = select_coreset(torch.cat([points, outlier]), budget=31).certificate
    assert beside.error_ratio == pytest.approx(alone.error_ratio, rel=0.02)
    assert alone.error_ratio > 1.01
