"""What goes wrong in weeks of training ends in a clear error or in recovery, never in silence."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.utils.data import DataLoader, Dataset, TensorDataset

from augsubset import (
    AugsubsetError,
    CoresetSelector,
    LoaderOptions,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[2]
N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
Y = torch.arange(N) % 3


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 3))


def make(data=None, *, model=None, num_workers=0, persistent=False, **options):
    data = TensorDataset(X, Y) if data is None else data
    workers = {"num_workers": num_workers, "persistent_workers": persistent}
    loader = DataLoader(data, batch_size=8, shuffle=True, **workers)
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
        make(broken, num_workers=num_workers, fraction=0.01)


@pytest.mark.slow
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


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("change", "n"), [(lambda rows: rows.append(rows[0]), 41), (list.pop, 39)])
def test_a_dataset_that_changes_its_length_is_refused(num_workers, change, n):
    rows = [(X[i], int(Y[i])) for i in range(N)]
    loader = make(rows, num_workers=num_workers, persistent=num_workers > 0)
    list(loader)
    change(rows)
    for use in (list, SubsetAugmentLoader.reselect):
        with pytest.raises(AugsubsetError, match=f"must keep its length 40, got {n}"):
            use(loader)
    assert [e["event"] for e in loader.history] == ["selection", "epoch"]


def trained(loader, model, factor, learning_rate=0.1):
    """An epoch of an ordinary loop, in which one loss is multiplied."""
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    for number, (x, y) in enumerate(loader):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        (loss * factor if number == 2 else loss).backward()
        optimizer.step()


RULES = {
    "coreset": {"selector": CoresetSelector()},
    "random": {"selector": RandomSelector()},
    "max-loss": {"selector": MaxLossSelector()},
    "everything": {"fraction": 1.0},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_nan_or_infinite_is_named_when_the_next_epoch_starts(rule, factor):
    model = make_model()
    loader = make(model=model, every=20, **RULES[rule])
    trained(loader, model, factor=1.0)
    trained(loader, model, factor)
    reason = (
        r"must be finite .*, got 324 non-finite of 324 values in '1\.weight' at epoch 2\. The loss"
    )
    with pytest.raises(AugsubsetError, match=reason):
        trained(loader, model, factor=1.0)
    assert loader.epoch == 2
    model.load_state_dict(make_model().state_dict())
    trained(loader, model, factor=1.0)
    assert loader.history[-1]["completed"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_named_however_large_the_others(value):
    model = make_model()
    loader = make(model=model, selector=RandomSelector())
    with torch.no_grad():
        model[1].weight.fill_(torch.finfo(torch.float32).max)
        list(loader)
        model[1].bias[1] = value
    with pytest.raises(AugsubsetError, match=r"got 1 non-finite of 3 values in '1\.bias'"):
        next(iter(loader))


def test_looking_at_weights_leaves_no_trace():
    model = make_model()
    loader = make(model=model, selector=RandomSelector())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.grad_fn is None


class Odd(nn.Module):
    """What is no trained weight, or none that can be looked at."""

    def __init__(self):
        super().__init__()
        self.lazy = nn.LazyLinear(3)
        self.meta = nn.Parameter(torch.full((2,), torch.nan, device="meta"))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.mask = nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False)
        self.eighth = nn.Parameter(torch.full((2,), torch.nan).to(torch.float8_e4m3fn))
        self.counts = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        self.register_buffer("never", torch.full((2,), torch.nan))
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


def test_what_is_no_weight_in_training_or_cannot_be_looked_at_is_left_out():
    model = Odd()
    loader = make(model=model, selector=RandomSelector(), options=LoaderOptions(device="cpu"))
    assert len(list(loader)) == len(loader)
    with torch.no_grad():
        model.weight[1] = torch.nan
    with pytest.raises(AugsubsetError, match="got 1 non-finite of 2 values in 'weight'"):
        next(iter(loader))


def test_weights_that_ranks_share_are_looked_at_where_they_are():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = make_model()
        mesh = init_device_mesh("cpu", (1,))
        model[1].weight = nn.Parameter(DTensor.from_local(model[1].weight.detach(), mesh))
        loader = make(model=model, selector=RandomSelector(), options=LoaderOptions(device="cpu"))
        assert len(list(loader)) == len(loader)
        model[1].weight.to_local().detach()[0, 0] = torch.nan
        with pytest.raises(AugsubsetError, match=r"got 1 non-finite of 324 values in '1\.weight'"):
            next(iter(loader))
    finally:
        dist.destroy_process_group()


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
    loader = make(model=model, every=1, options=LoaderOptions(recycle=1))
    for x, _ in loader:
        model(x.mul_(float("nan")))
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
    with pytest.raises(ValueError, match=r"must be (complete|a checkpoint)"):
        load_checkpoint(checkpoint)


def test_a_damaged_checkpoint_is_refused(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_checkpoint(checkpoint)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path, file = tmp_path / "code", io.BytesIO()
    torch.save(make_model(), file)
    checksum = zlib.crc32(file.getvalue()).to_bytes(4, "big")
    path.write_bytes(b"augsubset checkpoint 1\n" + checksum + file.getvalue())
    with pytest.raises(ValueError, match="must hold only tensors, numbers and strings"):
        load_checkpoint(path)


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
