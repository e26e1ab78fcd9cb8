"""A loader prepared for accelerate is still the loader that it was."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.scheduler import AcceleratedScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import AugsubsetError, LoaderOptions, RandomOps, RandomSelector, SubsetAugmentLoader
from augsubset.integrations.accelerate import prepare

N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
DATA = TensorDataset(X, torch.arange(N) % 3)


class Share:
    """An accelerator of the first of several processes, of which there is this one alone."""

    def __init__(self, num_processes):
        Accelerator(cpu=True)  # prepare() needs its state
        self.num_processes = num_processes

    def prepare_data_loader(self, loader):
        return prepare_data_loader(loader, num_processes=self.num_processes, process_index=0)

    def register_for_checkpointing(self, loader):
        pass


def make(num_processes=1, drop_last=False, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    options = {"fraction": 0.2, "copies": 2, "selector": RandomSelector(), **options}
    loader = DataLoader(DATA, 8, shuffle=True, drop_last=drop_last)
    return prepare(Share(num_processes), loader, model, RandomOps(), **options)


@pytest.fixture
def prepared():
    return make()


PUBLIC = [
    name for name in dir(SubsetAugmentLoader) if not name.startswith("_") and name != "sampler"
]


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_of_the_loader_is_there(prepared, name):
    loader = prepared.loader
    if not callable(getattr(SubsetAugmentLoader, name)):
        assert getattr(prepared, name) == getattr(loader, name)
    else:
        assert getattr(prepared, name).__self__ is loader


def test_what_the_loader_says_follows_it(prepared):
    running = iter(prepared)
    next(running)
    assert (prepared.epoch, prepared.num_batches_left) == (0, len(prepared) - 1)
    running.close()
    assert prepared.selection is prepared.loader.selection is not None
    assert [entry["event"] for entry in prepared.history] == ["selection", "epoch"]
    assert prepared.reselect() is prepared.selection
    again = make()
    again.load_state_dict(prepared.state_dict())
    assert (again.epoch, again.num_batches_left) == (0, len(prepared) - 1)
    again.set_epoch(3)
    assert again.loader.epoch == 3


def test_what_is_not_there_is_not_there_and_the_sampler_says_why(prepared):
    for name in ("no_such_thing", "_sampler", "_batches", "__array__"):
        assert not hasattr(prepared, name)
    with pytest.raises(AttributeError, match=r"load_state\(\) skipped what was consumed"):
        skip_first_batches(prepared, 2)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_pickling_is_refused_as_the_loader_refuses_it(prepared, copied):
    with pytest.raises(TypeError, match=r"Save loader\.state_dict\(\)"):
        copied(prepared)


def test_a_shallow_copy_is_of_the_same_loader(prepared):
    assert copy.copy(prepared).loader is prepared.loader
    with pytest.raises(AttributeError, match="loader"):
        type(prepared).__new__(type(prepared)).history  # noqa: B018


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("layout", ["mixed", "grouped"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (1, 5), (2, 3), (4, 5)])
def test_the_last_batch_is_named_on_ranks_that_took_over_from_others(
    drop_last, layout, before, after
):
    options = {"options": LoaderOptions(layout=layout), "drop_last": drop_last}
    first = make(before, **options)
    running = iter(first)
    next(running)
    prepared = make(after, **options)
    prepared.load_state_dict(first.state_dict())
    total = prepared.num_batches_left
    assert [prepared.end_of_dataloader for _ in prepared] == [False] * (total - 1) + [True] * (
        total > 0
    )
    assert len(list(prepared)) == len(prepared)


def test_a_loader_that_is_live_is_refused_through_it_too(prepared):
    running = iter(prepared)
    next(running)
    with pytest.raises(AugsubsetError, match="already has a live iterator"):
        next(iter(prepared))


@pytest.mark.parametrize(
    ("num_steps", "at", "warns"),
    [
        (15, 1, "before"),  # 3 epochs of the plain loader's 5 batches
        (21, 1, None),  # 3 epochs of the loader's 7
        (28, 1, None),  # of which one is never reached
        (11, 12, "at its end"),  # a number of steps of the user's own, exceeded
    ],
)
def test_a_prepared_scheduler_of_another_length_is_warned_of(num_steps, at, warns):
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    plain = DataLoader(DATA, 8, shuffle=True)
    loader = prepare(
        accelerator, plain, model, RandomOps(), fraction=0.2, copies=2, selector=RandomSelector()
    )
    assert (len(plain), len(loader)) == (5, 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=num_steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    steps = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for x, y in loader:
                steps += 1
                assert len(caught) == (warns is not None and steps >= at)
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                scheduler.step()
    assert steps == 21
    for warning in caught:
        assert f"total_steps={num_steps}, but accelerate steps it 7 times" in str(warning.message)


def test_on_several_processes_the_warning_names_the_factor():
    loader = make(2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), 1.0, total_steps=3 * 3
    )
    assert len(loader) == 4  # of 3 in the plain loader's share
    loader.schedulers = [AcceleratedScheduler(scheduler, [])]
    with pytest.warns(UserWarning, match=r"8 times .* len\(loader\) \* accelerator.num_processes"):
        next(iter(loader))
