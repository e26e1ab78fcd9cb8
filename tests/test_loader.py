"""SubsetAugmentLoader in one process: epochs, selections, weights, and what it refuses."""

import copy
import gc
import inspect
import os
import random
import re
import signal
import threading
import time
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from augsubset import (
    AugsubsetError,
    BatchSpec,
    CoresetSelector,
    CropFlip,
    GradientProbe,
    KorniaModule,
    LoaderOptions,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentDataset,
    SubsetAugmentLoader,
    select_coreset,
)

N = 60
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=GENERATOR)
Y = torch.arange(N) % 3
DATA = TensorDataset(X, Y)
STATISTICS = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


def make_model(channels=3, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36 * channels, classes))


MODEL = make_model()


def make(data=DATA, policy=None, *, model=None, batch_size=8, **options):
    loader_options = {
        name: options.pop(name)
        for name in ("shuffle", "sampler", "batch_sampler", "collate_fn", "drop_last")
        if name in options
    }
    if "sampler" not in loader_options and "batch_sampler" not in loader_options:
        loader_options.setdefault("shuffle", True)
    if "batch_sampler" not in loader_options:
        loader_options["batch_size"] = batch_size
    return SubsetAugmentLoader(
        DataLoader(data, **loader_options),
        make_model() if model is None else model,
        RandomOps.paper() if policy is None else policy,
        **options,
    )


def events(loader, kind):
    return [entry for entry in loader.history if entry["event"] == kind]


WEIGHTED = ("cluster", "unscaled")
ALL_WEIGHTS = ("uniform", *WEIGHTED, "resample")


@pytest.mark.parametrize("weights", ALL_WEIGHTS)
def test_an_epoch_yields_images_labels_and_weights_if_asked_for(weights):
    loader = make(fraction=0.1, copies=4, weights=weights)
    batches = list(loader)
    assert len(batches) == len(loader) == 11  # 60 + 4 * 6 rows of 8
    x, y, *w = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (x.shape, x.dtype) == ((84, 3, 6, 6), torch.float32)
    assert y.dtype == torch.int64
    assert [part.dtype for part in w] == [torch.float32] * (weights in WEIGHTED)
    assert [len(batch[0]) for batch in batches] == [8] * 10 + [4]
    if weights != "resample":  # draws follow cluster sizes, not quotas
        assert torch.bincount(y).tolist() == [28, 28, 28]


def test_unweighted_batches_are_pairs_by_default():
    assert all(type(batch) is tuple and len(batch) == 2 for batch in make())


@pytest.mark.parametrize("drop_last", [False, True])
def test_trainers_find_what_they_ask_a_dataloader_for(drop_last):
    generator = torch.Generator()
    plain = DataLoader(
        DATA, 8, shuffle=True, drop_last=drop_last, generator=generator, pin_memory=False
    )
    loader = SubsetAugmentLoader(plain, make_model(), RandomOps.paper(), fraction=0.1)
    asked = ("dataset", "batch_size", "drop_last", "num_workers", "pin_memory", "collate_fn")
    for name in (*asked, "generator"):
        assert getattr(loader, name) is getattr(plain, name)
    assert loader.batch_sampler is None
    assert loader.num_rows == sum(len(y) for _, y in loader)
    assert loader.num_rows > len(DATA)


def test_drop_last_and_sequential_order_are_taken_over():
    loader = make(fraction=0.1, copies=4, drop_last=True, shuffle=False)
    assert [len(x) for x, _ in loader] == [8] * len(loader) == [8] * 10


@pytest.mark.parametrize("copies", [1, 4, 10, 20])  # fewer than originals, as many, and more
def test_without_shuffling_originals_keep_their_order_and_copies_are_spread_among_them(copies):
    options = {"shuffle": False, "selector": RandomSelector(), "fraction": 0.1, "copies": copies}
    loader = make(batch=BatchSpec(return_index=True), policy=blacken, **options)
    found = [(x, index) for x, _, index in loader]
    x, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    is_copy = x.flatten(1).amax(1) == 0
    assert torch.equal(index[~is_copy], torch.arange(N))
    share = float(is_copy.float().mean())
    for part in is_copy.split(14):
        assert abs(float(part.sum()) - share * len(part)) <= 2
    for rank in range(2):  # rows go to ranks in turn
        assert float(is_copy[rank::2].float().mean()) == pytest.approx(share, abs=0.2)


def start_worker(worker_id):
    pass


OPTIONS = {
    "num_workers": 1,
    "pin_memory": True,
    "timeout": 30,
    "worker_init_fn": start_worker,
    "prefetch_factor": 3,
    "persistent_workers": True,
    "multiprocessing_context": "fork",
}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # no accelerator here
def test_the_dataloaders_own_options_are_taken_over():
    given = DataLoader(Dicts(), shuffle=True, batch_size=7, **OPTIONS)
    ours = SubsetAugmentLoader(given, make_model(), blacken)._batches
    for name in ("batch_size", *OPTIONS):
        assert getattr(ours, name) == getattr(given, name), name
    assert ours.collate_fn._collate is given.collate_fn


# What becomes of each argument of torch's DataLoader. One that a new version adds fails the test.
ARGUMENTS = {
    "taken over": {"dataset", "batch_size", "collate_fn", "drop_last", *OPTIONS},
    "taken over where it says shuffled, sequential or sharded": {"shuffle", "sampler"},
    "refused unless it is the default": {"batch_sampler", "in_order"},
    "ours instead": {"generator"},
    "deprecated by torch, which finds the device": {"pin_memory_device"},
}


def test_every_argument_of_a_dataloader_is_accounted_for():
    known = set().union(*ARGUMENTS.values())
    assert set(inspect.signature(DataLoader).parameters) <= known


def test_batches_out_of_order_are_refused():
    loader = DataLoader(DATA, batch_size=8, num_workers=1, in_order=False)
    with pytest.raises(ValueError, match="in order, got in_order=False"):
        SubsetAugmentLoader(loader, make_model(), blacken)


def raise_stop_iteration(*_):
    return next(iter(()))


class Exhausted(Dataset):
    targets = Y.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        return (X[index] if index != 30 else raise_stop_iteration()), self.targets[index]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("selector", [RandomSelector(), MaxLossSelector()])
def test_a_stop_iteration_does_not_pass_for_the_end_of_an_epoch(num_workers, selector):
    """Neither in training nor while probing."""
    plain = DataLoader(Exhausted(), batch_size=8, num_workers=num_workers)
    loader = SubsetAugmentLoader(plain, make_model(), blacken, selector=selector)
    with pytest.raises(RuntimeError, match="dataset must not raise StopIteration"):
        list(loader)
    assert events(loader, "epoch")[0]["completed"] is False
    with pytest.raises(RuntimeError, match="collate_fn must not raise StopIteration"):
        make(collate_fn=raise_stop_iteration)


def test_selections_are_made_at_epochs_0_r_2r():
    loader = make(every=3)
    for _ in range(7):
        list(loader)
    assert [entry["epoch"] for entry in events(loader, "selection")] == [0, 3, 6]
    assert [entry["epoch"] for entry in events(loader, "epoch")] == list(range(7))


def test_selection_is_what_select_coreset_returns_for_the_models_residuals():
    model = make_model()
    loader = make(model=model, fraction=0.2, normalize=STATISTICS)
    assert loader.selection is None
    list(loader)
    mean, std = (torch.tensor(part)[:, None, None] for part in STATISTICS)
    seen = TensorDataset((X.float() / 255 - mean) / std, Y)
    expected = select_coreset(GradientProbe(model).scan(seen), fraction=0.2)
    assert torch.equal(loader.selection.indices, expected.indices)
    assert torch.equal(loader.selection.weights, expected.weights)


def test_until_start_epoch_the_subset_is_random_and_needs_no_probe():
    loader = make(every=2, options=LoaderOptions(start_epoch=3))
    for _ in range(6):
        list(loader)
    made = events(loader, "selection")
    assert [entry["epoch"] for entry in made] == [0, 1, 3, 5]  # periods: -3..-2, -1..0, 1..2
    names = [entry["selector"] for entry in made]
    assert names == ["RandomSelector"] * 2 + ["CoresetSelector"] * 2


def test_history_has_certificate_counts_and_times_that_add_up():
    loader = make(fraction=0.1, copies=4)
    list(loader)
    (selection,), (epoch,) = events(loader, "selection"), events(loader, "epoch")
    assert selection["num_selected"] == 6
    assert selection["error"] == loader.selection.certificate.error
    assert selection["digest"] == loader.selection.digest
    assert (epoch["num_rows"], epoch["num_copies"], epoch["completed"]) == (84, 24, True)
    parts = [epoch[f"{b}_seconds"] for b in ("selection", "loading", "augmentation", "step")]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(epoch["total_seconds"])
    assert epoch["selection_seconds"] >= selection["probe_seconds"] + selection["solve_seconds"]


def weights_by_row(loader):
    """Weights of originals and of copies, which a policy marks by blackening them."""
    rows = [(float(x.sum()), float(w)) for xs, _, ws in loader for x, w in zip(xs, ws, strict=True)]
    copies = [w for total, w in rows if total == 0]
    originals = [w for total, w in rows if total > 0]
    return originals, copies


def blacken(x, rows):
    return torch.zeros_like(x)


def count_rows(loader):
    """Number of originals and of blackened copies in one epoch."""
    black = torch.cat([x.flatten(1).sum(1) == 0 for x, *_ in loader])
    return int((~black).sum()), int(black.sum())


def test_cluster_weights_average_one_and_keep_originals_and_copies_balanced():
    loader = make(policy=blacken, fraction=0.1, copies=4, weights="cluster")
    originals, copies = weights_by_row(loader)
    assert sum(originals) == pytest.approx(sum(copies), rel=1e-5)
    assert (sum(originals) + sum(copies)) / 84 == pytest.approx(1, rel=1e-5)


def test_unscaled_weights_are_cluster_sizes_over_r():
    loader = make(policy=blacken, fraction=0.1, copies=4, weights="unscaled")
    originals, copies = weights_by_row(loader)
    assert originals == [1.0] * N
    expected = [size / 4 for size in loader.selection.weights.tolist() for _ in range(4)]
    assert sorted(copies) == pytest.approx(sorted(expected))


def test_max_weight_caps_at_a_multiple_of_the_mean():
    options = {"policy": blacken, "fraction": 0.1, "copies": 1, "weights": "unscaled"}
    uncapped = make(**options)
    list(uncapped)
    assert float(uncapped.selection.weights.max()) > 10
    loader = make(**options, selector=CoresetSelector(max_weight=1.0))
    _, copies = weights_by_row(loader)
    assert max(copies) == float(loader.selection.weights.max()) == 10.0
    capped = loader.selection.effective_sample_size
    assert loader.selection.certificate.effective_sample_size == capped
    assert events(loader, "selection")[0]["effective_sample_size"] == capped


def test_fraction_one_in_place_augments_everything_without_a_probe():
    class Silent(nn.Module):
        def forward(self, x):
            raise AssertionError("nothing is probed")

    loader = make(policy=blacken, model=Silent(), fraction=1.0, originals="none", copies=1, every=1)
    for _ in range(2):
        assert count_rows(loader) == (0, N)
    assert [e["selector"] for e in events(loader, "selection")] == ["everything"]
    assert loader.selection.indices.tolist() == list(range(N))


def test_base_runs_on_every_row_after_the_strong_policy():
    order = []

    def strong(x, rows):
        order.append(("strong", len(x)))
        return x

    def base(x, rows):
        order.append(("base", len(x)))
        return x

    loader = make(policy=strong, base=base, fraction=0.1, copies=1)
    order.clear()
    list(loader)
    assert [name for name, _ in order].count("base") == 9
    assert sum(count for name, count in order if name == "base") == 66
    assert sum(count for name, count in order if name == "strong") == 6
    for before, after in pairwise(order):
        assert before[0] != "strong" or after[0] == "base"


def test_copies_of_one_image_differ_and_later_epochs_differ_again():
    loader = make(fraction=0.05, copies=3, originals="none", every=100, shuffle=False)
    first, second = (torch.cat([batch[0] for batch in loader]) for _ in range(2))
    assert len(torch.unique(first.flatten(1), dim=0)) > 6  # 9 rows; a few ops change nothing
    assert not torch.equal(first, second)


def test_set_epoch_pins_the_next_epoch_and_the_stream_with_it():
    a, b = make(), make()
    for _ in range(3):
        third = list(a)
    b.set_epoch(2)
    for ours, theirs in zip(third, list(b), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    list(b)
    assert [entry["epoch"] for entry in events(b, "epoch")] == [2, 3]


def test_setting_the_next_epoch_while_one_runs_leaves_that_one_its_number():
    loader = make()
    running = iter(loader)
    next(running)
    loader.set_epoch(5)
    assert loader.epoch == loader.state_dict()["epoch"] == 0
    list(running)
    assert loader.epoch == 5
    list(loader)
    assert [entry["epoch"] for entry in events(loader, "epoch")] == [0, 5]


def test_a_hook_of_a_selection_finds_the_epoch_that_it_is_for():
    epochs = []
    loader = make(every=1, on_event=lambda entry: epochs.append((entry["event"], loader.epoch)))
    for _ in range(2):
        list(loader)
    assert epochs == [("selection", 0), ("epoch", 1), ("selection", 1), ("epoch", 2)]


def test_streams_of_different_seeds_differ_and_of_one_seed_do_not():
    streams = [torch.cat([b[0] for b in make(seed=seed)]) for seed in (0, 0, 1)]
    assert torch.equal(streams[0], streams[1])
    assert not torch.equal(streams[0], streams[2])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# A DataLoader's arguments, and the seed that the loader takes from them.
SEEDS = [
    ({"shuffle": True}, 123),
    ({}, 123),
    ({"shuffle": True, "generator": seeded(5)}, 5),
    ({"generator": seeded(5)}, 5),
    ({"sampler": RandomSampler(DATA, generator=seeded(6))}, 6),
    ({"sampler": RandomSampler(DATA)}, 123),
    ({"shuffle": True, "generator": seeded(-1)}, 2**63 - 1),
    ({"sampler": DistributedSampler(DATA, 1, 0, seed=7)}, 7),
    ({"sampler": DistributedSampler(DATA, 1, 0, seed=7), "generator": seeded(8)}, 8),
]


@pytest.mark.parametrize(("arguments", "seed"), SEEDS)
def test_without_a_seed_the_users_own_decides_and_nothing_is_drawn(arguments, seed):
    model = make_model()
    torch.manual_seed(123)
    torch.rand(3)
    generator = arguments.get("generator", torch.default_generator)
    before = torch.get_rng_state(), generator.get_state()
    given = DataLoader(DATA, batch_size=8, **arguments)
    loader = SubsetAugmentLoader(given, model, RandomOps.paper())
    assert loader.seed == loader.plan.seed == seed
    assert f"seed={seed}, " in repr(loader)
    ours = [batch[0] for batch in loader]
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())
    explicit = SubsetAugmentLoader(given, model, RandomOps.paper(), seed=seed)
    assert all(torch.equal(a, b[0]) for a, b in zip(ours, explicit, strict=True))


def test_an_explicit_seed_goes_before_the_users_generator():
    given = DataLoader(DATA, batch_size=8, shuffle=True, generator=seeded(5))
    assert SubsetAugmentLoader(given, make_model(), RandomOps.paper(), seed=3).seed == 3


def test_the_callers_generator_is_not_advanced():
    state = torch.get_rng_state()
    loader = make(model=MODEL)
    list(loader)
    assert torch.equal(state, torch.get_rng_state())


def test_an_epoch_cut_short_is_noted_and_the_next_one_is_whole():
    loader = make()
    for _ in loader:
        break
    gc.collect()
    assert len(list(loader)) == len(loader)
    assert [entry["completed"] for entry in events(loader, "epoch")] == [False, True]


@pytest.mark.parametrize("close", ["iterator", "loader"])
def test_a_second_live_iterator_is_refused_until_the_first_is_closed(close):
    loader = make()
    first = iter(loader)
    next(first)
    with pytest.raises(AugsubsetError, match=r"already has a live iterator.*loader\.close\(\)"):
        next(iter(loader))
    first.close() if close == "iterator" else loader.close()
    assert list(first) == []
    assert len(list(loader)) == len(loader)


def test_close_frees_a_loader_whose_iterator_a_traceback_keeps_alive():
    loader = make()

    def train():
        batches = iter(loader)
        for _ in batches:
            raise KeyError

    with pytest.raises(KeyError) as caught:  # keeps the frame and its iterator
        train()
    assert loader.is_running
    loader.close()
    loader.close()  # nothing is live any more
    assert not loader.is_running
    assert len(list(loader)) == len(loader)
    assert caught.traceback


def test_close_in_the_loop_ends_it():
    loader = make()
    for number, _ in enumerate(loader):
        if number == 2:
            loader.close()
    assert number == 2
    assert events(loader, "epoch")[0]["completed"] is False


def test_close_while_a_selection_is_made_is_refused():
    loader = make(on_event=lambda entry: entry["event"] == "selection" and loader.close())
    with pytest.raises(AugsubsetError, match="between batches"):
        next(iter(loader))


def take_all(loader):
    for _ in islice(loader, len(loader)):
        pass


def break_at_the_end(loader):
    for number, _ in enumerate(loader, 1):
        if number == len(loader):
            break


@pytest.mark.parametrize("consume", [list, take_all, break_at_the_end])
def test_an_epoch_is_complete_when_no_rows_are_left_however_it_ended(consume):
    loader = make()
    consume(loader)
    gc.collect()
    assert events(loader, "epoch")[0]["completed"] is True
    assert loader.epoch == 1


def test_after_a_break_the_state_says_where_it_stopped_until_the_next_epoch_starts():
    loader = make()
    for number, _ in enumerate(loader):
        if number == 2:
            break
    gc.collect()
    where = {"epoch": 0, "position": 24}
    assert {name: loader.state_dict()[name] for name in where} == where
    loader.set_epoch(1)  # the next one anyway
    assert loader.state_dict()["position"] == 24
    following = iter(loader)
    assert loader.state_dict()["position"] == 24  # not started yet
    next(following)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 8)
    loader.close()
    loader.set_epoch(0)  # another one: it begins at the beginning
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 0)


def test_repr_says_rows_copies_selector_weights_and_epoch():
    loader = make(fraction=0.1, every=3)
    assert repr(loader) == (
        "SubsetAugmentLoader(84 rows in 11 batches: 60 originals and 4 copies of each of 6 "
        "examples,\n    selected by CoresetSelector every 3 epochs; weights='uniform', "
        "seed=0, next epoch 0)"
    )
    next(iterator := iter(loader))
    assert "epoch 0)" in repr(loader)
    assert "next" not in repr(loader)
    iterator.close()
    assert "all examples; weights='uniform'" in repr(make(fraction=1.0))


def test_a_failed_epoch_can_be_tried_again():
    class Failing(RandomSelector):
        fails = True

        def select(self, gradients, **arguments):
            if self.fails:
                raise OSError("disk")
            return super().select(gradients, **arguments)

    selector = Failing()
    loader = make(selector=selector)
    with pytest.raises(OSError, match="disk"):
        list(loader)
    selector.fails = False
    list(loader)
    assert [entry["epoch"] for entry in events(loader, "selection")] == [0]
    assert loader.history[-1]["epoch"] == 0


def test_reselect_selects_now_for_the_next_epoch():
    model = make_model()
    loader = make(model=model, every=10)
    list(loader)
    before = loader.selection
    with torch.no_grad():
        model[1].weight.mul_(-1)
    after = loader.reselect()
    assert loader.selection is after
    assert after.digest != before.digest
    assert after.epoch == 1
    list(loader)
    assert [entry["epoch"] for entry in events(loader, "selection")] == [0, 1]


def test_reselecting_while_an_epoch_runs_does_not_replace_the_scheduled_selection():
    loader = make(every=2)
    list(loader)
    running = iter(loader)
    next(running)
    loader.reselect()
    list(running)
    list(loader)
    assert [entry["epoch"] for entry in events(loader, "selection")] == [0, 2, 2]
    between = make(every=2)
    list(between)
    list(between)
    between.reselect()
    list(between)
    assert [entry["epoch"] for entry in events(between, "selection")] == [0, 2]


class Waiting:
    """Selects the first examples from epoch 1 on, the last ones before; waits to be let go."""

    needs_gradients = True

    def __init__(self, go=None, error=None):
        self.go, self.error, self.threads = go, error, []

    def select(self, gradients, *, budget, seed, epoch):
        self.threads.append(threading.current_thread())
        if epoch and self.go is not None:
            assert self.go.wait(30)
        if epoch and self.error is not None:
            raise self.error
        chosen = gradients.indices[:budget] + epoch
        return Selection.equally_weighted(chosen, len(gradients), epoch=epoch)


def test_in_the_background_an_epoch_trains_on_while_its_selection_is_solved():
    go = threading.Event()
    selector = Waiting(go)
    loader = make(selector=selector, every=1, fraction=0.1, options=LoaderOptions(background=True))
    list(loader)
    assert selector.threads == [threading.main_thread()]  # nothing older to train on
    assert loader.selection.epoch == 0
    for _ in loader:  # all of epoch 1, while its selection waits
        assert loader.selection.epoch == 0
    go.set()
    for _ in loader:
        assert loader.selection.epoch == 1
    assert threading.main_thread() not in selector.threads[1:]
    active = [(e["epoch"], e["active_from"]) for e in events(loader, "selection")]
    assert active == [(0, 0), (1, 2)]


def test_the_background_switch_is_at_a_named_epoch_however_long_solving_takes():
    class Slow(Waiting):
        def select(self, gradients, **options):
            time.sleep(0.2)
            return super().select(gradients, **options)

    streams = []
    for selector in (Waiting(), Slow()):
        loader = make(
            selector=selector, every=2, fraction=0.1, options=LoaderOptions(background=True)
        )
        streams.append([torch.cat([x for x, _ in loader]) for _ in range(6)])
        streams[-1] += [[e["active_from"] for e in events(loader, "selection")]]
    assert all(torch.equal(a, b) for a, b in zip(streams[0][:6], streams[1][:6], strict=True))
    assert streams[0][6] == streams[1][6] == [0, 3, 5]


def test_an_error_in_the_background_is_raised_when_the_epoch_ends_and_then_mended():
    go = threading.Event()
    selector = Waiting(go, OSError("no room"))
    loader = make(selector=selector, every=1, fraction=0.1, options=LoaderOptions(background=True))
    list(loader)
    go.set()

    def two_epochs():  # it is raised at the end of its own epoch, or at the start of the next
        return [list(loader), list(loader)]

    with pytest.raises(OSError, match="no room"):
        two_epochs()
    selector.error = None
    list(loader)
    list(loader)
    assert loader.selection.epoch > 0


def test_reselecting_replaces_what_is_solved_in_the_background():
    loader = make(selector=Waiting(), every=2, fraction=0.1, options=LoaderOptions(background=True))
    for _ in range(3):
        list(loader)
    loader.reselect()
    list(loader)
    assert loader.selection.epoch == 3
    assert [e["epoch"] for e in events(loader, "selection")] == [0, 3]


class Signalling(Waiting):
    """Has the process signalled in the middle of its third solve, which an epoch then waits for."""

    def select(self, gradients, *, epoch, **options):
        selection = super().select(gradients, epoch=epoch, **options)
        if self.threads[-1] is not threading.main_thread() and epoch == 2:
            time.sleep(0.2)  # until the main thread waits; if it does not yet, the test is easier
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
        return selection


def test_a_state_saved_while_an_epoch_waits_for_a_solve_leads_to_its_selection():
    options = {"every": 2, "fraction": 0.1, "options": LoaderOptions(background=True)}
    go = threading.Event()
    loader, states = make(selector=Signalling(go), **options), []
    before = signal.signal(
        signal.SIGUSR1, lambda *_: states.append(copy.deepcopy(loader.state_dict()))
    )
    try:
        for epoch in range(4):
            if epoch == 3:
                go.set()
            list(loader)
    finally:
        signal.signal(signal.SIGUSR1, before)
    (state,) = states
    assert state["epoch"] == 3
    resumed = make(selector=Waiting(), **options)
    resumed.load_state_dict(state)
    list(resumed)
    assert resumed.selection.epoch == loader.selection.epoch == 2
    assert resumed.selection.digest == loader.selection.digest != state["selection"]["digest"]
    assert drop_seconds(resumed.history) == drop_seconds(loader.history)


def drop_seconds(history):
    return [
        {name: value for name, value in entry.items() if not name.endswith("_seconds")}
        for entry in history
    ]


@pytest.mark.parametrize("background", [False, True])
def test_a_state_saved_in_the_event_of_a_selection_does_not_repeat_it(background):
    states = []

    def save(entry):
        if entry["event"] == "selection":
            states.append((len(loader.history), copy.deepcopy(loader.state_dict())))

    options = {"every": 2, "fraction": 0.1, "options": LoaderOptions(background=background)}
    loader = make(selector=Waiting(), on_event=save, **options)
    for _ in range(5):
        list(loader)
    assert len(states) == 3 - background
    for num_entries, state in states:
        resumed = make(selector=Waiting(), **options)
        resumed.load_state_dict(state)
        assert len(resumed.history) == num_entries
        while resumed.epoch < 5:
            list(resumed)
        assert drop_seconds(resumed.history) == drop_seconds(loader.history)
        assert torch.equal(resumed.counts.times, loader.counts.times)


def test_a_hook_that_raises_does_not_count_a_selection_twice():
    def fail_once(entry):
        if len(loader.history) == 1:
            raise OSError("disk full")

    loader = make(selector=Waiting(), fraction=0.1, on_event=fail_once)
    with pytest.raises(OSError, match="disk full"):
        list(loader)
    list(loader)
    assert [e["event"] for e in events(loader, "selection")] == ["selection"]
    assert loader.counts.times.max() == 1


def test_after_the_last_epoch_that_a_key_has_room_for_a_run_ends():
    loader, again = make(fraction=0.1), make(fraction=0.1)
    loader.set_epoch(8191)
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (8192, 0)
    again.load_state_dict(state)
    for each in (loader, again):
        num_entries = len(each.history)
        with pytest.raises(AugsubsetError, match="must end after 8,192 epochs"):
            list(each)
        assert len(each.history) == num_entries
    again.set_epoch(3)
    list(again)


def test_what_is_recycled_does_not_depend_on_other_batches_that_the_model_sees():
    def train(see_others):
        model = make_model()
        loader = make(model=model, every=1, fraction=0.1, options=LoaderOptions(recycle=1))
        for _ in range(3):
            for x, y in loader:
                if see_others:
                    model(torch.rand(5, 3, 6, 6))  # of another size
                    model(x.flip(0))  # and of the same
                loss = nn.functional.cross_entropy(model(x), y)
                with torch.no_grad():
                    model[1].weight -= 0.01 * torch.autograd.grad(loss, model[1].weight)[0]
        return [entry["digest"] for entry in events(loader, "selection")]

    assert train(see_others=True) == train(see_others=False)


def test_recycled_originals_are_not_probed_again():
    model = make_model()
    loader = make(model=model, every=2, fraction=0.1, options=LoaderOptions(recycle=1))
    sizes = []
    handle = model.register_forward_hook(
        lambda module, args, out: None if module.training else sizes.append(len(args[0]))
    )
    for _ in range(3):
        sizes.clear()
        for x, _ in loader:
            model(x)
    handle.remove()
    first, second = events(loader, "selection")
    assert first["num_recycled"] == 0
    assert second["num_recycled"] == N
    assert sizes == []  # every original was seen in the epoch before
    gradients = GradientProbe(model).scan(TensorDataset(X.float() / 255, Y))
    expected = select_coreset(gradients, budget=6)  # the weights did not change
    assert torch.equal(loader.selection.indices, expected.indices)
    assert not model._forward_hooks


def test_originals_that_were_not_trained_on_are_probed_again():
    model = make_model()
    loader = make(
        model=model, every=1, fraction=0.1, originals="none", options=LoaderOptions(recycle=1)
    )
    for _ in range(2):
        for x, _ in loader:
            model(x)
    assert events(loader, "selection")[1]["num_recycled"] == 0


@pytest.mark.parametrize("elsewhere", [True, False])
def test_an_epoch_that_left_nothing_to_recycle_is_named(caplog, elsewhere):
    model = make_model()
    loader = make(model=model, every=1, options=LoaderOptions(recycle=1))
    called = copy.deepcopy(model) if elsewhere else model
    for x, _ in loader:
        called(x)
    warned = "recycle=1 recorded nothing in epoch 0" in caplog.text
    assert warned == elsewhere


def test_what_cannot_be_recycled_is_refused_at_construction():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.ReLU(), nn.Linear(5, 3))
    probe = GradientProbe(model, ["1", "3"], kind="last_layer")
    with pytest.raises(ValueError, match="got earlier layers too"):
        make(model=model, probe=probe, options=LoaderOptions(recycle=1))
    with pytest.raises(ValueError, match="recycle must be at least 1"):
        make(options=LoaderOptions(recycle=0))


def test_training_flags_are_the_users_after_every_batch():
    model = nn.Sequential(make_model(), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    for _ in make(model=model, every=1):
        assert model.training
        assert not model[1].training


def test_a_selector_that_needs_no_gradients_runs_no_forward_pass():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1)[:, :3]

    model = Counting()
    list(make(model=model, selector=RandomSelector()))
    assert model.calls == 0
    list(make(model=model, selector=MaxLossSelector()))
    assert model.calls == 1 + 8  # one batch at construction, then all of them


class Dicts(Dataset):
    def __init__(self, names=("image", "label")):
        self.names = names

    def __len__(self):
        return N

    def __getitem__(self, index):
        return dict(zip(self.names, (X[index], int(Y[index])), strict=True))


def test_dict_items_yield_the_same_batches_and_labels_are_gathered_once():
    for ours, theirs in zip(make(), make(Dicts()), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    named = make(Dicts(("scan", "finding")), batch=BatchSpec(inputs="scan", labels="finding"))
    assert len(list(named)) == len(named)


def test_dict_items_are_fetched_for_their_labels_only_where_these_are_needed():
    class Counting(Dicts):
        fetched = 0

        def __getitem__(self, index):
            self.fetched += 1
            return super().__getitem__(index)

    dataset = Counting()
    loader = make(dataset, selector=RandomSelector(), fraction=0.1, copies=1, originals="none")
    assert dataset.fetched == 2 + 16  # checked; known again by, twice
    list(loader)
    assert dataset.fetched == 2 + 16 + 6
    dataset.fetched = 0
    make(dataset, fraction=0.01)
    assert dataset.fetched == 2 + 16 + N  # everybody's label, once


def test_base_and_strong_policy_of_one_class_draw_apart():
    flips = make(policy=CropFlip(0), base=CropFlip(0), fraction=1.0, copies=1, originals="none")
    by_label = {tuple((x / 255).flatten().tolist()): True for x in X.float()}
    unchanged = [tuple(x.flatten().tolist()) in by_label for batch, _ in flips for x in batch]
    assert 0.2 < sum(unchanged) / N < 0.8


class Few(RandomSelector):
    def select(self, gradients, *, budget, seed, epoch):
        return super().select(gradients, budget=2, seed=seed, epoch=epoch)


@pytest.mark.parametrize("weights", WEIGHTED)
def test_padding_weighs_nothing(weights):
    loader = make(selector=Few(), fraction=0.1, copies=1, originals="none", weights=weights)
    w = torch.cat([batch[2] for batch in loader])
    assert (w == 0).sum() == 4
    assert (w > 0).sum() == 2


@pytest.mark.parametrize("weights", ["uniform", "resample"])
def test_without_weights_further_copies_fill_an_epoch_up(weights):
    loader = make(selector=Few(), fraction=0.1, copies=1, weights=weights, policy=blacken)
    assert count_rows(loader) == (N, 6)
    assert events(loader, "epoch")[0]["num_copies"] == 6


def test_the_probe_sees_denormalised_data_as_the_model_does():
    mean, std = (torch.tensor(part)[:, None, None] for part in STATISTICS)
    seen = TensorDataset((X.float() / 255 - mean) / std, Y)
    model = make_model()
    loader = make(seen, model=model, denormalize=STATISTICS)
    list(loader)
    expected = GradientProbe(model).scan(seen)
    certificate = select_coreset(expected, fraction=0.1).certificate
    assert loader.selection.certificate.error == pytest.approx(certificate.error, rel=1e-4)


def test_a_world_that_was_launched_but_not_introduced_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(AugsubsetError, match="got WORLD_SIZE=2 from a launcher"):
        make()
    monkeypatch.setenv("WORLD_SIZE", "1")
    make()


def test_a_world_that_appears_later_is_refused(monkeypatch):
    loader = make()
    monkeypatch.setattr("augsubset.distributed.world_size", lambda: 2)
    with pytest.raises(AugsubsetError, match="number of ranks must stay 1, got 2"):
        list(loader)


def test_images_are_checked_before_they_are_moved(monkeypatch):
    late = UNIT.clone()
    late[:] = 0.5
    late[2:8] = 1.5  # the examples that construction fetches are in range
    loader = make(TensorDataset(late, Y), selector=RandomSelector(), shuffle=False)
    moved = []
    monkeypatch.setattr("augsubset.pipeline.move", lambda part, device: moved.append(part))
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        list(loader)
    assert moved == []


def test_a_denormalised_dataset_gives_the_same_batches():
    mean, std = (torch.tensor(part)[:, None, None] for part in STATISTICS)
    normalised = TensorDataset((X.float() / 255 - mean) / std, Y)
    unit = TensorDataset(X.float() / 255, Y)
    options = {"selector": RandomSelector(), "base": CropFlip(1)}
    ours = make(normalised, policy=blacken, denormalize=STATISTICS, **options)
    theirs = make(unit, policy=blacken, normalize=STATISTICS, **options)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=2e-5)


def test_a_class_with_one_example_works():
    labels = Y.clone()
    labels[7] = 3
    loader = make(TensorDataset(X, labels), model=make_model(classes=4), fraction=0.1)
    list(loader)
    assert 7 in loader.selection.indices


def test_the_users_dataset_is_at_hand():
    assert make().dataset is DATA


class Iterable(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class Subclass(DataLoader):
    def __iter__(self):
        return islice(super().__iter__(), 2)


class Shortened(DataLoader):
    def __len__(self):
        return 2


class Convenient(DataLoader):
    """Changes nothing but the arguments, as MONAI's does."""

    def __init__(self, dataset, batch_size=8, **options):
        super().__init__(dataset, batch_size, **options)


class Prefetching:
    loader = DataLoader(DATA)


class OfFabric:
    __module__ = "lightning.fabric.wrappers"


HARMLESS = {
    "a subclass with arguments of its own": lambda: Convenient(DATA, shuffle=True),
    "a subclass of that": lambda: type("Deeper", (Convenient,), {})(DATA, shuffle=True),
    "a plain batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, False)
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_of_a_dataloader_is_taken_over(name):
    found = SubsetAugmentLoader(HARMLESS[name](), make_model(), RandomOps.paper(), fraction=0.1)
    for ours, expected in zip(found, make(fraction=0.1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_plain_batch_sampler_may_drop_and_shard():
    sampler = DistributedSampler(DATA, 2, 1)
    given = DataLoader(DATA, batch_sampler=BatchSampler(sampler, 9, True))
    loader = SubsetAugmentLoader(given, make_model(), RandomOps.paper(), fraction=0.1)
    assert (loader.batch_size, loader.num_replicas, loader.drop_last) == (9, 2, True)
    assert [len(x) for x, _ in loader] == [9] * 4  # of 42 rows


def test_the_epoch_is_that_of_the_users_sampler_where_a_script_sets_it():
    def load(sampler):
        given = DataLoader(DATA, 8, sampler=sampler)
        return SubsetAugmentLoader(given, make_model(), RandomOps.paper(), fraction=0.1)

    def follow(epochs, before=None):
        sampler = DistributedSampler(DATA, 1, 0)
        if before is not None:
            sampler.set_epoch(before)
        loader, started = load(sampler), []
        for epoch in epochs:
            if epoch is not None:
                sampler.set_epoch(epoch)
            started.append([x for x, _ in loader])
        return [entry["epoch"] for entry in events(loader, "epoch")], started

    assert follow([0, 1, 2])[0] == [0, 1, 2]
    assert follow([None] * 3)[0] == [0, 1, 2]  # a script that never calls it
    assert follow([0, 0, 0])[0] == [0, 1, 2]  # nor is this a call, for it changes nothing
    assert follow([10, 11])[0] == [10, 11]  # a script that resumes by itself
    assert follow([None, None], before=10)[0] == [10, 11]
    epochs, batches = follow([5, 3, 3])
    assert epochs == [5, 3, 4]
    loader = load(DistributedSampler(DATA, 1, 0))
    loader.set_epoch(5)
    assert all(torch.equal(x, y) for x, (y, _) in zip(batches[0], loader, strict=True))


def test_a_state_goes_before_a_sampler_that_is_not_set():
    sampler = DistributedSampler(DATA, 1, 0)
    given = DataLoader(DATA, 8, sampler=sampler)
    loader, again = (
        SubsetAugmentLoader(given, make_model(), RandomOps.paper(), fraction=0.1) for _ in range(2)
    )
    list(loader)
    next(iter(loader))
    loader.close()
    again.load_state_dict(loader.state_dict())
    sampler.set_epoch(1)  # the same epoch: goes on in its middle
    assert len(list(again)) == len(again) - 1


class Empty(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


def dropping(items):
    return default_collate(items[:-1])


UNIT = X.float() / 255


def regression_probe():
    return GradientProbe(MODEL, loss=lambda logits, y: (logits[:, 0] - y).square())


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda: make(fraction=0.0), ValueError, r"fraction must be in \(0, 1\]"),
        (lambda: make(fraction=1.1), ValueError, r"fraction must be in \(0, 1\]"),
        (lambda: make(copies=0), ValueError, "copies must be between 1 and"),
        (lambda: make(every=0), ValueError, "every must be at least 1"),
        (lambda: make(every=2.5), TypeError, "every must be an int, got float 2.5"),
        (
            lambda: make(options=LoaderOptions(start_epoch=-1)),
            ValueError,
            "start_epoch must be at least 0",
        ),
        (lambda: make(originals="half"), ValueError, "originals must be one of 'all'"),
        (
            lambda: make(options=LoaderOptions(layout="rows")),
            ValueError,
            "layout must be one of 'mixed', 'grouped'",
        ),
        (
            lambda: make(batch_size=4, options=LoaderOptions(layout="grouped")),
            ValueError,
            "batch_size must have room for an example and its copies, 5 rows",
        ),
        (lambda: make(options={"layout": "grouped"}), TypeError, "options must be a LoaderOptions"),
        (lambda: make(batch={"whole": True}), TypeError, "batch must be a BatchSpec, got dict"),
        (lambda: LoaderOptions(timeout=30), TypeError, "timeout must be a timedelta, got int"),
        (lambda: LoaderOptions(resident=1), ValueError, "resident must be one of False, True"),
        (lambda: make(batch=BatchSpec(whole=1)), ValueError, "whole must be one of False, True"),
        (lambda: make(on_event=3), TypeError, "on_event must be callable, got int"),
        (
            lambda: make(batch=BatchSpec(others="mask")),
            TypeError,
            "others must be a list of names or positions",
        ),
        (
            lambda: make(
                TensorDataset(X, Y, X),
                policy=lambda x, rows, mask: (x, mask),
                batch=BatchSpec(inputs=0, labels=1, others=[2]),
            ),
            ValueError,
            r"others must name the labels 1 alone without whole=True, got \[2\]",
        ),
        (
            lambda: make(TensorDataset(X, Y, X), batch=BatchSpec(inputs=0, labels=5)),
            ValueError,
            r"labels must name a part of the batch \[0, 1, 2\], got labels=5",
        ),
        (
            lambda: make(batch_size=85, fraction=0.1, drop_last=True),
            ValueError,
            "drop_last must leave at least one batch, got 84 rows per rank for batch_size=85",
        ),
        (
            lambda: make(TensorDataset(UNIT, Y), options=LoaderOptions(resident=True)),
            TypeError,
            "images must be uint8 to be resident",
        ),
        (
            lambda: make(Dicts(), options=LoaderOptions(resident=True)),
            TypeError,
            "dataset must be a TensorDataset, with",
        ),
        (
            lambda: make(collate_fn=dropping, options=LoaderOptions(resident=True)),
            TypeError,
            "with the default collate_fn, to be resident",
        ),
        (
            lambda: make(
                TensorDataset(X, torch.rand(N)),
                probe=regression_probe(),
                model=MODEL,
                options=LoaderOptions(recycle=1),
            ),
            ValueError,
            "recycle must be None where labels are not one class index",
        ),
        (
            lambda: make(weights="mean"),
            ValueError,
            "weights must be one of 'uniform', 'cluster', 'unscaled', 'resample'",
        ),
        (lambda: CoresetSelector(max_weight=0), ValueError, "max_weight must be positive"),
        (
            lambda: make(normalize=STATISTICS, denormalize=STATISTICS),
            ValueError,
            "normalize and denormalize must not both be given",
        ),
        (lambda: make(seed=-1), ValueError, "seed must be between 0 and"),
        (lambda: make(seed="1"), TypeError, "seed must be an int, got str"),
        (lambda: make(copies=4.0), TypeError, "copies must be an int, got float"),
        (lambda: make(policy=lambda x: x), TypeError, r"pass KorniaModule\(function\)"),
        (lambda: make(policy=RandomOps.paper), TypeError, r"method RandomOps\.paper\. Call it"),
        (lambda: make(policy=RandomOps.augmix), TypeError, "which does not take two arguments"),
        (lambda: make(policy=RandomOps), TypeError, "augment must be a policy, got the class"),
        (lambda: make(selector=RandomSelector), TypeError, "got the class RandomSelector. Call it"),
        (lambda: make(selector="coreset"), TypeError, "selector must have .needs_gradients"),
        (lambda: make(probe=make_model()), TypeError, "probe must be a GradientProbe"),
        (lambda: make(model=lambda x: x), TypeError, "model must be a torch.nn.Module"),
        (lambda: make(policy="flip"), TypeError, "augment must be callable, got str"),
        (lambda: make(policy=nn.Identity()), TypeError, r"Wrap it: KorniaModule\(module\)"),
        (lambda: make(base=nn.Identity()), TypeError, r"base must be a policy \(x, rows\)"),
        (
            lambda: make(policy=type("Compose", (), {"__module__": "albumentations.core"})()),
            TypeError,
            r"albumentations' Compose, which .* KorniaModule\(function\)",
        ),
        (
            lambda: make(TensorDataset(X)),
            TypeError,
            "got list of 1 parts. If labels are missing",
        ),
        (
            lambda: make(TensorDataset(X, Y.float())),
            ValueError,
            "labels must be one class index per example",
        ),
        (
            lambda: make(TensorDataset(X, Y + 5)),
            ValueError,
            r"labels must be in 0\.\.2, one of the model's 3 outputs, got labels from 5 to 6",
        ),
        (
            lambda: make(TensorDataset(UNIT * 2 - 1, Y)),
            ValueError,
            r"images must be in \[0, 1\], got values from .*denormalize=\(mean, std\)",
        ),
        (lambda: make(Empty(), sampler=SequentialSampler(Empty())), ValueError, "got an empty"),
        (
            lambda: make(Subset(SubsetAugmentDataset(DATA), range(10))),
            ValueError,
            "must not contain a SubsetAugmentDataset, got one inside a Subset",
        ),
        (lambda: make(SubsetAugmentDataset(DATA)), ValueError, "must not be wrapped already"),
        (
            lambda: make(collate_fn=dropping),
            ValueError,
            "collate_fn must keep every row, got 1 rows for 2 keys",
        ),
        (
            lambda: make(batch_sampler=[[0, 1], [2]]),
            ValueError,
            "must not have a batch_sampler of its own.*layout='grouped'",
        ),
        (lambda: make(batch_size=None), ValueError, "or batch_size=None"),
        (
            lambda: make(sampler=WeightedRandomSampler([1.0] * N, N), originals="unselected"),
            ValueError,
            "originals must be 'all' and layout 'mixed' with a sampler of your own.*Subset",
        ),
        (
            lambda: make(sampler=DistributedSampler(range(9), 2, 0)),
            ValueError,
            "must be over the loader's own dataset, got one of 9 examples for 60",
        ),
        (
            lambda: SubsetAugmentLoader(DataLoader(Iterable()), make_model(), blacken),
            TypeError,
            "got an IterableDataset",
        ),
        (
            lambda: SubsetAugmentLoader(Subclass(DATA), make_model(), blacken),
            TypeError,
            r"got the subclass tests\.test_loader\.Subclass",
        ),
        (
            lambda: SubsetAugmentLoader(Shortened(DATA), make_model(), blacken),
            TypeError,
            "got the subclass .*Shortened",
        ),
        (
            lambda: SubsetAugmentLoader(DATA, make_model(), blacken),
            TypeError,
            "loader must be a torch DataLoader, got TensorDataset",
        ),
        (
            lambda: SubsetAugmentLoader(Prefetching(), make_model(), blacken),
            TypeError,
            r"got Prefetching\. Pass its inner DataLoader, \.loader\.",
        ),
        (
            lambda: SubsetAugmentLoader(OfFabric(), make_model(), blacken),
            TypeError,
            r"Wrap the DataLoader before fabric\.setup_dataloaders\(\)",
        ),
        (
            lambda: make(model=nn.Conv2d(3, 3, 1)),
            TypeError,
            r"output must be a \(B, C\) tensor.*forward=lambda",
        ),
    ],
)
def test_everything_wrong_is_refused_at_construction(call, error, reason):
    with pytest.raises(error, match=reason):
        call()


def test_a_budget_below_the_number_of_classes_is_raised_to_it():
    loader = make(fraction=0.01)
    list(loader)
    assert len(loader.selection) == 3


def test_images_out_of_range_are_refused_wherever_they_hide():
    late = UNIT.clone()
    late[50, 0, 0, 0] = 1.5
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        list(make(TensorDataset(late, Y)))


def test_a_collate_that_drops_rows_later_is_refused_in_the_main_process():
    def drops_once_full(items):
        return default_collate(items[:7])

    with pytest.raises(ValueError, match="collate_fn must keep every row, got 7 rows for 8 keys"):
        list(make(collate_fn=drops_once_full))


@pytest.mark.parametrize("name", ["augment", "base"])
@pytest.mark.parametrize(
    ("policy", "got"),
    [
        (lambda x, rows: x[:-1], r"torch.uint8, got \("),
        (lambda x, rows: x.float(), r"got \(.*torch.float32"),
        (lambda x, rows: None, "got NoneType"),
        (lambda x, rows: (x, rows), r"got tuple of 2\. Return x alone"),
    ],
)
def test_policies_that_change_shape_or_dtype_are_refused(name, policy, got):
    policies = {"policy": blacken, "base": None}
    policies["policy" if name == "augment" else "base"] = policy
    with pytest.raises(ValueError, match=f"{name} must keep shape and dtype of the inputs.*{got}"):
        make(**policies, originals="selected")


class Untouched(nn.Module):
    def forward(self, x):
        raise AssertionError("policies are tried before the model")


UNIT = X.float() / 255
FLOATS = TensorDataset(UNIT, Y)
STATISTICS = ([0.5, 0.4, 0.3], [0.25, 0.2, 0.5])
MEAN, STD = (torch.tensor(part)[:, None, None] for part in STATISTICS)
NORMALISED = TensorDataset((UNIT - MEAN) / STD, Y)
FOUR_CHANNELS = TensorDataset(X[:, [0, 1, 2, 0]], Y)


@pytest.mark.parametrize(
    ("data", "policy", "options", "reason"),
    [
        (FLOATS, lambda x, rows: x * 3 - 1, {}, "augment must return images in .* from -1"),
        (FLOATS, KorniaModule(lambda x: (x - 0.5) / 0.1), {}, r"augment .* clamp\(0, 1\)"),
        (FLOATS, lambda x, rows: x / 0, {}, "augment must return images in .* from nan"),
        (FLOATS, blacken, {"base": lambda x, rows: x - 1}, "base must return images in .* from -1"),
        (
            NORMALISED,
            KorniaModule(lambda x: (x - 0.5) / 0.25),
            {"denormalize": STATISTICS},
            "augment must return images in .* not in a policy",
        ),
        (FOUR_CHANNELS, None, {}, "images must have 1 or 3 channels for 'brightness', got 4"),
        (
            FOUR_CHANNELS,
            None,
            {"options": LoaderOptions(resident=True)},
            "images must have 1 or 3 channels for 'brightness', got 4",
        ),
    ],
)
def test_policies_are_tried_at_construction(data, policy, options, reason):
    with pytest.raises(ValueError, match=reason):
        make(data, policy, model=Untouched(), **options)


@pytest.mark.parametrize("data", [DATA, FLOATS, [(x, int(y)) for x, y in FLOATS]])
def test_the_trial_of_policies_leaves_no_trace(data):
    def scribble(x, rows):
        np.random.seed(1)
        random.seed(1)
        torch.manual_seed(1)
        return x.zero_()

    model = make_model()
    before = [x.clone() for x, _ in data]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    loader = make(data, scribble, base=scribble, model=model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert all(torch.equal(*pair) for pair in zip([x for x, _ in data], before, strict=True))
    assert loader.history == []
    assert int(loader.counts.times.sum()) == 0


@pytest.mark.parametrize("value", [1 + 2e-7, -1e-4])
def test_rounding_outside_the_range_does_not_stop_an_epoch(value):
    """Nor where a policy rounds, before the base policy checks again."""
    late = UNIT.clone()
    late[50] = value

    def blur(x, rows):
        return x * (1 + 2e-7)

    loader = make(TensorDataset(late, Y), blur, base=RandomOps.paper(), fraction=1.0)
    for x, _ in loader:
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1


def halve_in_place(items):
    for image, _ in items:
        image *= 0.5
    return default_collate(items)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("form", ["tensor", "array"])
def test_a_collate_function_may_work_in_place_on_items_of_several_rows(form, num_workers):
    class Fresh(Dataset):
        targets = Y.tolist()

        def __len__(self):
            return N

        def __getitem__(self, index):
            image = UNIT[index].clone()
            return image if form == "tensor" else image.numpy(), self.targets[index]

    def load(collate_fn):
        data = DataLoader(Fresh(), 8, shuffle=True, collate_fn=collate_fn, num_workers=num_workers)
        policy = KorniaModule(lambda x: x)
        loader = SubsetAugmentLoader(
            data,
            make_model(),
            policy,
            fraction=0.2,
            selector=RandomSelector(),
            options=LoaderOptions(layout="grouped"),
        )
        return torch.cat([x for x, _ in loader])

    assert torch.equal(load(halve_in_place), 0.5 * load(default_collate))


def make_normed(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(
    ("copies", "options", "norm", "is_refused"),
    [
        (7, {}, nn.BatchNorm2d, True),  # 60 + 7 * 3 rows: the last of 11 batches has 1
        (6, {}, nn.BatchNorm2d, False),
        (7, {"drop_last": True}, nn.BatchNorm2d, False),
        (7, {}, nn.Identity, False),
        (7, {}, lambda channels: nn.BatchNorm2d(channels).eval(), False),
    ],
)
def test_a_last_batch_of_one_is_refused_for_batch_norm(copies, options, norm, is_refused):
    def construct():
        return make(
            model=make_normed(norm),
            selector=RandomSelector(),
            fraction=0.05,
            copies=copies,
            **options,
        )

    if is_refused:
        with pytest.raises(ValueError, match=r"BatchNorm.*81 rows.*'1'. Pass another batch_size"):
            construct()
    else:
        construct()


def test_images_of_several_sizes_are_named_to_a_policy_that_takes_one():
    ragged = [(UNIT[i, :, : 3 + i % 3], int(Y[i])) for i in range(N)]

    def keep_apart(items):
        return [image for image, _ in items], torch.tensor([label for _, label in items])

    with pytest.raises(TypeError, match=r"images must be one tensor \(B, C, H, W\), got list"):
        make(ragged, collate_fn=keep_apart, selector=RandomSelector())


def test_a_selector_that_returns_no_selection_is_refused():
    class Wrong(RandomSelector):
        def select(self, gradients, **arguments):
            return [1, 2, 3]

    with pytest.raises(TypeError, match="selector must return a Selection, got list from Wrong"):
        list(make(selector=Wrong()))


def test_a_selection_larger_than_the_epoch_has_room_for_is_refused():
    class Greedy(RandomSelector):
        def select(self, gradients, *, budget, seed, epoch):
            return super().select(gradients, budget=budget + 1, seed=seed, epoch=epoch)

    with pytest.raises(ValueError, match="selection must hold at most budget=6 examples, got 7"):
        list(make(selector=Greedy(), fraction=0.1))


@pytest.mark.cuda
def test_batches_arrive_on_the_models_device_and_equal_those_of_the_cpu():
    options = {"selector": RandomSelector(), "base": CropFlip(1), "normalize": STATISTICS}
    for ours, theirs in zip(
        make(model=make_model().cuda(), **options), make(**options), strict=True
    ):
        assert {part.device.type for part in ours} == {"cuda"}
        assert torch.equal(ours[1].cpu(), theirs[1])
        close = (ours[0].cpu() - theirs[0]).abs() < 0.05
        assert float(close.float().mean()) > 0.99


class Rule:
    """A rule that is a function of gradients and budget."""

    needs_gradients = True

    def __init__(self, choose):
        self.choose = choose

    def select(self, gradients, *, budget, seed, epoch):
        return self.choose(gradients, budget)


def test_a_rule_of_your_own_that_fails_is_named():
    def failing(gradients, budget):
        raise KeyError("scores")

    with pytest.raises(KeyError, match="scores") as caught:
        next(iter(make(selector=Rule(failing))))
    assert caught.value.__notes__ == ["Raised while Rule selected, epoch 0."]
    beyond = Rule(lambda gradients, budget: Selection.equally_weighted(torch.tensor([1, N]), N))
    with pytest.raises(ValueError, match=f"dataset of {N} examples, got .* indices up to {N}"):
        next(iter(make(selector=beyond)))


def test_a_model_that_takes_something_else_than_inputs_is_told_how_to_be_called():
    class OfBatches(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def forward(self, batch):
            return self.net(batch["x"])

    with pytest.raises((TypeError, IndexError)) as caught:
        make(model=OfBatches())
    (note,) = caught.value.__notes__
    assert re.match(r"Raised by the model, called on a tensor \(2, .*pass probe=Gradient", note)


@pytest.mark.parametrize(("n", "is_refused"), [(48, False), (50, True), (49, True)])
def test_the_last_batch_that_counts_is_that_of_each_rank(n, is_refused):
    """48 rows are 24 a rank, and 50 or 49 are 25: one more than batches of 8 take."""
    data = Subset(DATA, range(n))

    def construct():
        given = DataLoader(data, 8, sampler=DistributedSampler(data, 2, 1))
        options = {"fraction": 1.0, "originals": "none", "copies": 1}
        return SubsetAugmentLoader(given, make_normed(), blacken, **options)

    if not is_refused:
        construct()
        return
    with pytest.raises(ValueError, match=r"at least two rows for BatchNorm.* got 25 rows per rank"):
        construct()
