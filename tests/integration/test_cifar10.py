"""What must hold on real images: runs where AUGSUBSET_CIFAR10 names the data."""

import pytest

pytestmark = pytest.mark.slow


def test_the_coresets_error_is_well_below_random_and_max_loss_subsets(cifar10):
    """After one epoch of a ResNet20 on 5,000 images, at 10%."""
    from benchmarks.residuals import trained_gradients
    from benchmarks.workloads import errors

    result = errors(trained_gradients(cifar10.limited(5_000)), repeats=1)
    assert result["selected"] == 500
    assert len(result["error_random_all"]) == 10
    assert result["coreset_over_random"] <= 0.85
    assert result["coreset_over_max_loss"] <= 0.40
