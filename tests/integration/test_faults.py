"""What goes wrong in weeks of training ends in a clear error or in recovery, never in silence."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from augsubset import (
    AugsubsetError,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
    load_checkpoint,
    save_checkpoint,
)

ROOT = Path(__file__).parents[2]
N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
Y = torch.arange(N) % 3


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 3))


def make(data=None, *, model=None, num_workers=0, **options):
    data = TensorDataset(X, Y) if data is None else data
    loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=num_workers)
    options = {"fraction": 0.2, "copies": 2, "every": 2, **options}
    model = make_model() if model is None else model
    return SubsetAugmentLoader(loader, model, RandomOps.paper(), **options)


class Items(Dataset):
    targets = Y.tolist()

    def __init__(self, fetch):
        self.fetch = fetch

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.fetch(index)
        return X[index], int(Y[index])


def raising(index):
    if index == 30:
        raise OSError("file 30 is truncated")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_item_that_raises_reaches_the_loop_and_the_next_epoch_runs(num_workers):
    broken = Items(raising)
    loader = make(broken, num_workers=num_workers, selector=RandomSelector())
    with pytest.raises(OSError, match="file 30 is truncated"):
        list(loader)
    broken.fetch = lambda index: None
    assert len(list(loader)) == len(loader)
    assert [e["completed"] for e in loader.history if e["event"] == "epoch"] == [False, True]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_item_that_raises_while_probing_or_gathering_labels_is_named(num_workers):
    broken = Items(raising)
    loader = make(broken, num_workers=num_workers)
    with pytest.raises(OSError, match="file 30 is truncated"):
        next(iter(loader))
    assert loader.selection is None
    broken.fetch = lambda index: None
    assert len(list(loader)) == len(loader)
    broken.fetch, broken.targets = raising, None
    with pytest.raises(OSError, match="file 30 is truncated"):
        make(broken, num_workers=num_workers)


@pytest.mark.parametrize(
    "scene",
    [
        "a_worker_that_is_killed",
        "a_worker_that_is_killed_while_probing",
        "a_worker_that_is_killed_while_labels_are_gathered",
        "a_full_disk_under_a_checkpoint",
        "and_under_a_selection",
    ],
)
def test_what_would_harm_this_process_is_met_in_one_of_its_own(scene, tmp_path):
    command = [sys.executable, "-m", "tests.integration.faulty", scene, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_dataset_that_changes_its_length_is_refused():
    rows = [(X[i], int(Y[i])) for i in range(N)]
    loader = make(rows, selector=RandomSelector())
    list(loader)
    rows.append(rows[0])
    with pytest.raises(AugsubsetError, match="must keep its length 40, got 41"):
        list(loader)


def test_weights_that_are_nan_are_named_at_the_next_selection():
    model = make_model()
    loader = make(model=model, every=1)
    list(loader)
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="gradients must be finite, got 40 non-finite rows"):
        list(loader)
    with torch.no_grad():
        model[1].weight.fill_(0.5)
    assert len(list(loader)) == len(loader)


def test_a_nan_recorded_in_training_is_named_too():
    model = make_model()
    loader = make(model=model, every=1, recycle=1)
    for x, _, _ in loader:
        model(x * float("nan"))
    with pytest.raises(ValueError, match="gradients must be finite"):
        list(loader)


@pytest.fixture
def checkpoint(tmp_path):
    loader = make()
    list(loader)
    path = tmp_path / "run.ckpt"
    save_checkpoint(path, loader=loader.state_dict(), step=7)
    return path


def test_a_checkpoint_is_read_back(checkpoint):
    states = load_checkpoint(checkpoint)
    assert states["step"] == 7
    fresh = make()
    fresh.load_state_dict(states["loader"])
    assert fresh.epoch == 1


@pytest.mark.parametrize("kept", [0, 10, 100, -1])
def test_a_truncated_checkpoint_is_refused(checkpoint, kept):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"must be (whole|a checkpoint)"):
        load_checkpoint(checkpoint)


def test_a_damaged_checkpoint_is_refused(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_checkpoint(checkpoint)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    save_checkpoint(tmp_path / "code", loader=make_model())
    with pytest.raises(ValueError, match="must hold tensors, numbers and strings alone"):
        load_checkpoint(tmp_path / "code")


def test_an_event_hook_that_fails_surfaces_and_leaves_the_loader_usable():
    calls = []

    def hook(entry):
        calls.append(entry)
        if len(calls) == 1:
            raise OSError("the log is gone")

    loader = make(on_event=hook)
    with pytest.raises(OSError, match="the log is gone"):
        list(loader)
    assert len(list(loader)) == len(loader)
