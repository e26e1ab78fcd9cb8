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


def test_an_arm_of_the_demo_learns_from_real_images(cifar10):
    from benchmarks.demo import ARMS, parse, run_arm

    setting, *_ = parse(["--data", "unused", "--epochs", "3", "--lr", "0.05"])
    result, selections = run_arm(ARMS["coreset"], cifar10.limited(1000), setting, 0)
    assert result.augmented == 3 * 4 * 100
    assert len(selections) == 1
    assert result.accuracies[-1] > 0.2
