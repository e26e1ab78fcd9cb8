"""The data loaders, models and training loop of the benchmarks."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from augsubset import RandomOps, SubsetAugmentLoader
from benchmarks import harness
from benchmarks.harness import TrainingPlan, build_model, load_cifar10, load_digits_images, train
from tests.fake_cifar10 import write_fake_cifar10


def write_npz(path, n=40, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = (np.arange(n) % 10).astype(np.uint8)
    np.savez(path, **{**arrays, **changes})
    return arrays


def test_cifar10_is_read_from_an_archive(tmp_path):
    arrays = write_npz(tmp_path / "c.npz")
    data = load_cifar10(tmp_path / "c.npz")
    assert np.array_equal(data.x_train.permute(0, 2, 3, 1).numpy(), arrays["x_train"])
    assert np.array_equal(data.y_test.numpy(), arrays["y_test"])
    assert data.num_classes == 10


def test_cifar10_is_read_from_a_torchvision_root(tmp_path, monkeypatch):
    write_fake_cifar10(tmp_path, monkeypatch)
    data = load_cifar10(tmp_path)
    assert data.x_train.shape == (200, 3, 32, 32)
    assert data.x_test.dtype == torch.uint8


def test_missing_and_malformed_data_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor an"):
        load_cifar10(tmp_path / "nothing.npz")
    write_npz(tmp_path / "bad.npz", x_train=np.zeros((40, 3, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"images must be \(n, 32, 32, 3\) uint8"):
        load_cifar10(tmp_path / "bad.npz")
    write_npz(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"limit must be in 1\.\.40, got limit=50"):
        load_cifar10(tmp_path / "c.npz").limited(50)


def test_digits_are_split_once_and_for_all():
    data = load_digits_images(300)
    assert (len(data.x_train), len(data.x_test)) == (300, 1497)
    assert data.digest == load_digits_images(300).digest
    assert data.digest != load_digits_images(301).digest
    x = data.x_train.float() / 255
    assert float(x.mean()) == pytest.approx(data.mean_std[0][0], abs=0.01)
    assert float(x.std()) == pytest.approx(data.mean_std[1][0], abs=0.02)


def test_resnet20_has_its_published_size():
    model = harness.ResNet20(3, 10)
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", harness.MODELS)
def test_initial_weights_depend_on_the_seed_alone(name):
    data = load_digits_images(20)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    models = [build_model(name, data, seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    same = [all(torch.equal(models[0][key], m[key]) for key in m) for m in models[1:]]
    assert same == [True, False]


def test_the_learning_rate_warms_up_and_falls():
    cosine = TrainingPlan(epochs=10, lr=1.0, warmup=2)
    assert [cosine.lr_at(t) for t in (1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    steps = TrainingPlan(epochs=10, lr=1.0, warmup=0, milestones=(5, 8))
    assert [steps.lr_at(t) for t in (0, 4.9, 5, 9)] == pytest.approx([1, 1, 0.1, 0.01])


def test_training_learns_and_accounts_for_every_row():
    data = load_digits_images(100)
    model = build_model("convnet", data, 0)
    dataset = TensorDataset(data.x_train, data.y_train)
    loader = SubsetAugmentLoader(
        DataLoader(dataset, batch_size=20, shuffle=True),
        model,
        RandomOps.paper(),
        fraction=0.2,
        copies=2,
        normalize=data.mean_std,
    )
    result = train(model, loader, data, TrainingPlan(4, 0.1))
    assert (result.steps, result.rows, result.augmented) == (28, 560, 160)
    assert len(result.accuracies) == 4
    assert result.accuracies[-1] > 0.5
    parts = [result.seconds[b] for b in ("selection", "loading", "augmentation", "step")]
    assert sum(parts) == pytest.approx(result.seconds["total"])
