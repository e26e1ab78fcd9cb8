"""What must hold on real images: runs where AUGSUBSET_CIFAR10 names the data."""

import pytest

from augsubset.demo.data import Images
from augsubset.demo.training import ARMS, Setting, train_arm

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
    data = cifar10.limited(1000)
    images = Images("cifar10", data.x_train, data.y_train, data.x_test, data.y_test)
    setting = Setting(epochs=3, batch_size=128, fraction=0.1, every=10, crop_flip=True)
    run, selections = train_arm(ARMS["coreset"], images, setting, 0)
    assert run.augmented == 3 * 4 * 100
    assert len(selections) == 1
    assert run.accuracies[-1] > 0.2
