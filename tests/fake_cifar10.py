"""A few images in CIFAR-10's own file format, so that torchvision's real loading code runs."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import cifar


def write_fake_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_file: int = 40) -> None:
    """Write the python version's pickles below root, and accept their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name in names:
        labels = rng.permutation(np.arange(per_file) % 10)
        pixels = rng.integers(0, 200, (per_file, 3072)) + 5 * labels[:, None]
        batch = {"data": pixels.astype(np.uint8), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
