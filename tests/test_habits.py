"""What user loops do with a loader works, or is refused in words."""

import copy
import gc
import itertools
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from augsubset import AugsubsetError, LoaderOptions, RandomOps, SubsetAugmentLoader

N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
DATA = TensorDataset(X, torch.arange(N) % 3)


def make(model=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)) if model is None else model
    options = {"fraction": 0.2, "copies": 2, "every": 2, **options}
    policy = options.pop("policy", RandomOps.paper())
    return SubsetAugmentLoader(
        DataLoader(DATA, batch_size=8, shuffle=True), model, policy, **options
    )


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_a_per_step_schedule_built_from_len_ends_with_the_last_step():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    loader = make(model)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, epochs=3, steps_per_epoch=len(loader)
    )
    for _ in range(3):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()  # raises when there is one step too many
    assert scheduler.last_epoch == 3 * len(loader)


def test_gradient_accumulation_sees_every_batch():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    seen = 0
    for number, (x, y) in enumerate(make(model), 1):
        (F.cross_entropy(model(x), y) / 2).backward()
        seen += len(x)
        if number % 2 == 0:
            model.zero_grad()
    assert seen == N + 2 * 8


def test_gradient_accumulation_records_every_original_for_recycling():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    loader = make(model, every=1, options=LoaderOptions(recycle=1))
    for number, (x, y) in enumerate(loader, 1):
        (F.cross_entropy(model(x), y) / 2).backward()
        if number % 2 == 0:
            model.zero_grad()
    next(iter(loader))
    selections = [event for event in loader.history if event["event"] == "selection"]
    assert [event["num_recycled"] for event in selections] == [0, N]


def test_tqdm_and_enumerate_know_the_length(capsys):
    assert len(list(enumerate(tqdm(make())))) == len(make())
    assert f"{len(make())}/{len(make())}" in capsys.readouterr().err


def test_evaluation_in_between_does_not_disturb_the_epoch():
    def run(evaluates):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.Dropout(0.5))
        loader, batches = make(model, options=LoaderOptions(recycle=1)), []
        for batch in loader:
            batches.append(batch)
            if evaluates:
                model.eval()
                with torch.no_grad():
                    model(loader.preprocess(X[:5]))
                model.train()
            model(batch[0])
        return batches

    assert_same(run(evaluates=True), run(evaluates=False))


def test_two_loaders_run_side_by_side():
    alone = list(make())
    both = list(zip(make(), make(seed=1), strict=True))
    assert_same([a for a, _ in both], alone)
    assert not all(torch.equal(a[0], b[0]) for a, b in both)


def test_two_loaders_that_record_one_model_take_turns():
    """Side by side either would take the other's pass for its own."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    first, second = (
        make(model, options=LoaderOptions(recycle=1)),
        make(model, seed=1, options=LoaderOptions(recycle=1)),
    )
    wrapped = make(nn.Sequential(model), options=LoaderOptions(recycle=1))
    running = iter(first)
    next(running)
    for other in (second, wrapped):
        with pytest.raises(AugsubsetError, match=r"recorded already, by another loader with recy"):
            next(iter(other))
    running.close()
    assert len(list(second)) == len(list(first)) == len(second)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_that_is_let_go_is_freed_at_once(num_workers):
    """With its dataset and workers: nothing waits for the garbage collector."""
    data = TensorDataset(X.clone(), DATA.tensors[1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    workers = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    plain = DataLoader(data, batch_size=8, shuffle=True, **workers)
    loader = SubsetAugmentLoader(
        plain, model, RandomOps.paper(), every=1, options=LoaderOptions(recycle=1)
    )
    gc.collect()
    gc.disable()
    try:
        for x, _ in loader:
            model(x)
        next(iter(loader))
        gone = [weakref.ref(each) for each in (loader, data)]
        del loader, data, plain
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


def test_a_peek_with_next_iter_is_an_epoch_and_set_epoch_takes_it_back():
    loader = make()
    first = next(iter(loader))
    assert loader.epoch == 1
    loader.set_epoch(0)
    batches = list(loader)
    assert_same(batches[:1], [first])
    assert_same(batches, list(make()))


def test_repeating_the_loader_goes_on_and_itertools_cycle_replays_the_first_epoch():
    loader = make()
    n = len(loader)
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    expected = make()
    assert_same(list(itertools.islice(endless, 2 * n)), list(expected) + list(expected))
    replayed = list(itertools.islice(itertools.cycle(make()), 2 * n))
    assert_same(replayed[n:], replayed[:n])  # as over any DataLoader: it keeps what it saw


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy, copy.copy])
def test_pickling_is_refused_and_says_what_to_save(copied):
    with pytest.raises(TypeError, match=r"Save loader\.state_dict\(\)"):
        copied(make())


def test_a_model_moved_to_another_device_later_is_followed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    loader = make(model, every=100, policy=lambda x, rows: x, options=LoaderOptions(resident=True))
    list(loader)
    model.to("meta")  # any other device will do: nothing is computed on it
    assert {part.device.type for batch in loader for part in batch} == {"meta"}


def test_every_entry_of_the_history_is_an_event():
    events = []
    loader = make(on_event=events.append)
    list(loader)
    list(loader)
    assert events == loader.history
    assert [event["event"] for event in events] == ["selection", "epoch", "epoch"]


def test_an_exception_in_the_loop_body_leaves_the_loader_usable():
    loader = make()

    def loop():
        for _ in loader:
            raise KeyError("in the user's code")

    with pytest.raises(KeyError):
        loop()
    assert len(list(loader)) == len(loader)


def test_attributes_that_trainers_read_are_there():
    loader = make()
    assert (loader.batch_size, loader.dataset, len(loader)) == (8, DATA, 7)
    assert isinstance(iter(loader), type(x for x in ()))


def test_nested_iteration_is_refused():
    loader = make()
    outer = iter(loader)
    next(outer)
    with pytest.raises(AugsubsetError, match=r"each iter\(\) is an epoch"):
        next(iter(loader))
