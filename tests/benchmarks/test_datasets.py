"""The data of the benchmarks: each format read by the code that reads the real files."""

import struct

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision.datasets import mnist, svhn

from benchmarks.cells import Cell, data_of, run_cell
from benchmarks.datasets import (
    load_caltech256,
    load_cifar10,
    load_data,
    load_digits_images,
    load_imagenet,
    load_mnist,
    load_svhn,
    load_tinyimagenet,
)
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


# Generated trees of the formats.


def write_svhn(root):
    rng, written = np.random.default_rng(0), {}
    for part, n in (("train", 30), ("test", 20)):
        pixels = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]  # 10 stands for zero
        scipy.io.savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": labels})
        written[part] = pixels
    return written["train"]


def write_mnist(root):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        images = struct.pack(">IIII", 2051, 12, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 2049, 12) + bytes(range(10)) + b"\0\1"
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return pixels


def write_image(path, level, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, 0, 0)).save(path, "JPEG")


def write_caltech256(root, per_class=61):
    folder = root / "caltech256" / "256_ObjectCategories"
    for c, name in enumerate(["001.ak47", "002.flag", "257.clutter"]):
        for number in range(per_class + c):
            mode = "L" if number == 0 else "RGB"  # some of its files are gray
            write_image(folder / name / f"{c + 1:03}_{number + 1:04}.jpg", 40 * c, mode=mode)
    return folder


def write_tinyimagenet(root):
    for c, wnid in enumerate(["n01", "n02"]):
        for number in range(3):
            write_image(root / "train" / wnid / "images" / f"{number}.JPEG", 90 * c, (64, 64))
    lines = []
    for number, wnid in enumerate(["n02", "n01", "n02"]):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", 90, (64, 64))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def write_imagenet(root):
    for part, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n01443537"):
            for number in range(count):
                write_image(root / part / wnid / f"{number}.JPEG", 10, (300, 260))


@pytest.fixture
def unchecked(monkeypatch):
    """Let torchvision read files that are not the published ones."""
    for module in (svhn, mnist):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)


def test_svhn_is_read_from_its_mat_files(tmp_path, unchecked):
    written = write_svhn(tmp_path)
    data = load_svhn(tmp_path)
    assert data.x_train.shape == (30, 3, 32, 32)
    assert data.x_test.dtype == torch.uint8
    assert torch.equal(data.x_train[4, 1], torch.from_numpy(written[:, :, 1, 4]))
    assert data.y_train[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_mnist_is_read_from_its_idx_files(tmp_path, unchecked):
    pixels = write_mnist(tmp_path)
    data = load_mnist(tmp_path)
    assert data.x_train.shape == (12, 1, 28, 28)
    assert torch.equal(data.x_train[3, 0], torch.from_numpy(pixels[3]))
    assert data.y_test.tolist() == [*range(10), 0, 1]


def test_caltech256_is_split_by_class(tmp_path):
    folder = write_caltech256(tmp_path, per_class=5)
    with pytest.raises(ValueError, match="per_class must leave images to test on, got per_class=7"):
        load_caltech256(tmp_path, per_class=7)
    data = load_caltech256(tmp_path, size=24, per_class=4)
    assert data.num_classes == 3
    assert torch.bincount(data.y_train).tolist() == [4, 4, 4]
    assert len(data.test_set) == 1 + 2 + 3
    x, y = data.train_set[5]
    assert (x.shape, x.dtype, y) == ((3, 24, 24), torch.uint8, 1)
    batches = list(data.test_batches(4))
    assert [len(y) for _, y in batches] == [4, 2]
    assert data.digest != load_caltech256(tmp_path, size=24, per_class=3).digest
    # Another image in a file's place is other data.
    write_image(folder / "002.flag" / "002_0002.jpg", 40, (41, 90))
    assert data.digest != load_caltech256(tmp_path, size=24, per_class=4).digest


def test_tinyimagenet_is_read_with_its_annotations(tmp_path):
    write_tinyimagenet(tmp_path)
    data = load_tinyimagenet(tmp_path)
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    ((x, y),) = data.test_batches(10)
    assert x.shape == (3, 3, 64, 64)
    assert y.tolist() == [1, 0, 1]


def test_imagenet_folders_are_read(tmp_path):
    write_imagenet(tmp_path)
    data = load_imagenet(tmp_path)
    assert data.y_train.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_set[0][0].shape == (3, 224, 224)
    (tmp_path / "val" / "n09999999").mkdir()
    write_image(tmp_path / "val" / "n09999999" / "0.JPEG", 10)
    with pytest.raises(ValueError, match="must hold the same classes, got 2 and 3"):
        load_imagenet(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("svhn", write_svhn),
        ("mnist", write_mnist),
        ("caltech256", write_caltech256),
        ("tinyimagenet", write_tinyimagenet),
        ("imagenet", write_imagenet),
    ],
)
def test_every_format_goes_through_a_cell(name, write, tmp_path, unchecked):
    write(tmp_path)
    values = {"data": name, "rule": "coreset", "fraction": 0.5, "epochs": 1, "copies": 1}
    values |= {"model": "mlp", "batch_size": 6, "every": 1, "base": "none"}
    cell = Cell.of({"arm": "some", "seed": 0, **values})
    data = data_of(cell, tmp_path)
    record = run_cell(cell, data)
    assert record["environment"]["data"] == {"name": name, "sha256": data.digest}
    assert 0 <= record["result"]["accuracies"][-1] <= 1
    assert 0 < record["result"]["augmented"] < record["result"]["rows"]


def test_files_for_testing_are_decoded_by_the_cells_workers(tmp_path):
    write_imagenet(tmp_path)
    cell = Cell.of({"arm": "some", "seed": 0, "data": "imagenet", "workers": 2})
    assert data_of(cell, tmp_path).num_workers == 2


@pytest.mark.parametrize("kind", ["any", "other"])
def test_a_cells_noise_and_long_tail_reach_its_data(kind):
    data = load_digits_images().long_tailed(100).with_noise(0.5, kind)
    values = {"data": "digits", "imbalance": 100, "noise": 0.5, "noise_kind": kind}
    assert data_of(Cell.of({"arm": "some", "seed": 0, **values}), None).digest == data.digest
    assert data.digest != load_digits_images().long_tailed(10).with_noise(0.5, kind).digest


def test_missing_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_imagenet(tmp_path / "nothing")
    (tmp_path / "train" / "n01").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images"):
        load_imagenet(tmp_path)
    with pytest.raises(ValueError, match="data must say where svhn is"):
        load_data("svhn")
    with pytest.raises(ValueError, match="data must be one of"):
        load_data("cifar11", tmp_path)


# Changes.


def test_the_long_tail_falls_exponentially():
    data = load_digits_images(1000)
    tail = data.long_tailed(10)
    before, after = (torch.bincount(each.y_train, minlength=10) for each in (data, tail))
    assert after[0] == before[0]
    for c in range(10):
        assert int(after[c]) == int(int(before[c]) * 10 ** (-c / 9))
    assert torch.equal(tail.x_test, data.x_test)
    assert torch.equal(data.long_tailed(1).x_train, data.x_train)
    with pytest.raises(ValueError, match=r"factor must be at least 1, got factor=0\.5"):
        data.long_tailed(0.5)


@pytest.mark.parametrize(("kind", "wrong"), [("any", 0.5 * 0.9), ("other", 0.5)])
def test_noise_of_either_definition(kind, wrong):
    data = load_digits_images(1700)
    noisy = data.with_noise(0.5, kind)
    share = float((noisy.y_train != noisy.clean).double().mean())
    assert torch.equal(noisy.clean, data.y_train)
    assert share == pytest.approx(wrong, abs=0 if kind == "other" else 0.03)
    assert torch.equal(noisy.y_train, data.with_noise(0.5, kind).y_train)
    assert not torch.equal(noisy.y_train, data.with_noise(0.5, kind, seed=1).y_train)
    assert torch.equal(noisy.y_test, data.y_test)
    # wrong labels are spread over the other classes
    changed = noisy.y_train != noisy.clean
    shift = (noisy.y_train - noisy.clean)[changed] % 10
    counts = torch.bincount(shift, minlength=10)[1:].double()
    assert float(counts.min()) > 0.6 * float(counts.mean())


def test_noise_and_limits_travel_together():
    noisy = load_digits_images(200).with_noise(0.3, "other").limited(50, test_limit=10)
    assert len(noisy.clean) == len(noisy.y_train) == 50
    assert len(noisy.y_test) == 10
    with pytest.raises(ValueError, match="rate must be in"):
        load_digits_images(20).with_noise(1.5, "any")
    with pytest.raises(ValueError, match="kind must be one of"):
        load_digits_images(20).with_noise(0.5, "some")
