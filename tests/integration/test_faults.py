"""What goes wrong in weeks of training ends in a clear error or in recovery, never in silence."""

import os
import resource
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from augsubset import (
    AugsubsetError,
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentLoader,
    load_checkpoint,
    save_checkpoint,
)

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


def dying(index):
    if index == 30:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_item_that_raises_reaches_the_loop_and_the_next_epoch_runs(num_workers):
    broken = Items(raising)
    loader = make(broken, num_workers=num_workers, selector=RandomSelector())
    with pytest.raises(OSError, match="file 30 is truncated"):
        list(loader)
    broken.fetch = lambda index: None
    assert len(list(loader)) == len(loader)
    assert [e["completed"] for e in loader.history if e["event"] == "epoch"] == [False, True]


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_is_an_error_and_not_a_hang():
    loader = make(Items(dying), num_workers=1, selector=RandomSelector())
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
        list(loader)


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


def on_a_full_disk(action):
    """Return what an action raises where files end at 1000 bytes: writing more fails.

    In a process of its own: the limit would hold for the tests' own output too.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        message = b"nothing"
        try:
            action()
        except OSError as error:
            message = str(error).encode()
        finally:
            os.write(writable, message)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        return pipe.read()


def test_a_full_disk_keeps_the_older_checkpoint(checkpoint):
    before = checkpoint.read_bytes()
    states = {"loader": make().state_dict(), "more": torch.zeros(1000)}
    assert "File too large" in on_a_full_disk(lambda: save_checkpoint(checkpoint, **states))
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_full_disk_keeps_the_older_selection(tmp_path):
    path = tmp_path / "selection.npz"
    path.write_bytes(b"older")
    selection = Selection.equally_weighted(torch.arange(3), 9)
    assert "File too large" in on_a_full_disk(lambda: selection.save(path))
    assert path.read_bytes() == b"older"


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
