"""Contract 11 at the loader: stop anywhere, reload, go on, with other workers or ranks too."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from augsubset import (
    AugsubsetError,
    BatchSpec,
    CropFlip,
    GradientProbe,
    LoaderOptions,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
)
from tests.contracts import (
    assert_order_pure,
    assert_resumable,
    assert_same_batches,
    batches_from,
    saved_and_read,
    values_of,
)

N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
Y = torch.arange(N) % 3


class Jittered(Dataset):
    """Draws from all three global generators in its transform."""

    targets = Y.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return X[index].float() / 255 * (noise / 3), int(Y[index])


def make(
    data=None,
    *,
    num_replicas=1,
    rank=0,
    drops_rows=False,
    drops_batch=False,
    batch_size=8,
    num_workers=0,
    context=None,
    **options,
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    data = TensorDataset(X, Y) if data is None else data
    loader = DataLoader(
        data,
        batch_size=batch_size,
        sampler=DistributedSampler(data, num_replicas, rank, drop_last=drops_rows),
        drop_last=drops_batch,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context=context,
    )
    options = {"fraction": 0.2, "copies": 3, "every": 2, "base": CropFlip(1), **options}
    return SubsetAugmentLoader(loader, model, RandomOps.paper(), **options)


LAYOUTS, ORIGINALS = ("mixed", "grouped"), ("all", "unselected", "selected", "none")
WEIGHTS = ("uniform", "cluster", "unscaled", "resample")
KINDS = list(itertools.product(LAYOUTS, ORIGINALS, WEIGHTS))


def kind(layout, originals, weights):
    return {
        "originals": originals,
        "weights": weights,
        "options": LoaderOptions(layout=layout),
    }


RANKS = [(1, 0), (2, 0), (2, 1), (4, 3)]


def one_for_each_kind(choices):
    """Every kind with one of the choices, in turn, another for each of the weights."""
    return [(*kind, *choices[(i + i // 4) % len(choices)]) for i, kind in enumerate(KINDS)]


def each_kind_with(choices, slow):
    """The same, and what only `make test-slow` has."""
    rare = [pytest.param(*each, marks=pytest.mark.slow) for each in one_for_each_kind(slow)]
    return one_for_each_kind(choices) + rare


@pytest.mark.parametrize(
    ("layout", "originals", "weights", "num_replicas", "rank", "num_workers"),
    each_kind_with([(*each, 0) for each in RANKS], [(*each, 2) for each in RANKS]),
)
def test_the_order_depends_on_seed_epoch_and_selection_alone(
    layout, originals, weights, num_replicas, rank, num_workers
):
    def orders(num_workers):
        options = kind(layout, originals, weights)
        options |= {"num_replicas": num_replicas, "rank": rank, "num_workers": num_workers}
        options |= {"selector": RandomSelector(), "every": 1}  # another selection every epoch
        return assert_order_pure(lambda: make(Jittered(), **options), (0, 5), read=values_of)

    first, second = orders(num_workers)
    assert first != second
    assert num_workers == 0 or [first, second] == orders(0)


@pytest.mark.parametrize(
    ("layout", "originals", "weights", "num_replicas", "rank"), one_for_each_kind(RANKS)
)
def test_every_kind_of_epoch_resumes_anywhere(layout, originals, weights, num_replicas, rank):
    options = kind(layout, originals, weights)
    options |= {"num_replicas": num_replicas, "rank": rank}
    if num_replicas > 1:
        options["selector"] = RandomSelector()  # a probe would be the same on all

    def again():
        return make(Jittered(), **options)

    num_batches = len(again())
    assert_resumable(again, stops=[0, 1, num_batches, num_batches + 2, 3 * num_batches])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "originals", "weights", "before", "after", "num_replicas", "rank"),
    one_for_each_kind(
        [(0, 2, 1, 0), (2, 0, 1, 0), (2, 2, 1, 0), (2, 2, 2, 0), (2, 2, 2, 1), (2, 2, 4, 3)]
    ),
)
def test_every_kind_resumes_with_other_workers(
    layout, originals, weights, before, after, num_replicas, rank
):
    """Those that were stopped had persistent workers, and had fetched several batches ahead."""
    options = {**kind(layout, originals, weights), "every": 1}
    options |= {"num_replicas": num_replicas, "rank": rank}
    options["selector"] = RandomSelector()  # a probe would start workers of its own
    stops = [1, len(make(**options)) + 1]  # before a selection is made anew, and after
    assert_resumable(
        lambda: make(Jittered(), num_workers=before, **options),
        lambda: make(Jittered(), num_workers=after, **options),
        stops=stops,
        num_epochs=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(None, "spawn"), ("forkserver", None)])
def test_workers_started_another_way_resume_too(before, after):
    def with_workers(context):
        # A probe would start workers of its own: seconds each.
        options = {"selector": RandomSelector(), "every": 1}
        number = 0 if context is None else 2
        return make(Jittered(), num_workers=number, context=context, **options)

    assert_resumable(
        lambda: with_workers(before), lambda: with_workers(after), stops=[3], num_epochs=2
    )


def rows_of(batches):
    return [row for batch in batches for row in zip(*batch, strict=True)]


OTHERS = [(1, 2), (2, 1), (2, 4), (4, 2)]


@pytest.mark.parametrize(
    ("layout", "originals", "weights", "before", "after", "workers"),
    each_kind_with([(*each, (0, 0)) for each in OTHERS], [(*each, (2, 1)) for each in OTHERS]),
)
def test_a_run_goes_on_with_another_number_of_ranks(
    layout, originals, weights, before, after, workers
):
    """Rows of the built-in policies do not depend on the batch, so the union is the same rows.

    The next epoch has another selection.
    """
    options = {**kind(layout, originals, weights), "batch": BatchSpec(return_index=True)}
    options |= {"every": 1, "selector": RandomSelector()}
    unit = 8 if layout == "grouped" else 1

    def union(shares):
        pieces = [[each[i : i + unit] for i in range(0, len(each), unit)] for each in shares]
        return [row for step in zip(*pieces, strict=True) for piece in step for row in piece]

    whole = make(**options)
    running = [
        make(**options, num_replicas=before, rank=rank, num_workers=workers[0])
        for rank in range(before)
    ]
    iterators = [iter(loader) for loader in running]
    rows = union([rows_of([next(iterator)]) for iterator in iterators])
    states = [saved_and_read(loader.state_dict()) for loader in running]
    assert len({(state["epoch"], state["position"]) for state in states}) == 1
    resumed = [
        make(**options, num_replicas=after, rank=rank, num_workers=workers[1])
        for rank in range(after)
    ]
    for loader in resumed:
        loader.load_state_dict(states[0])
    for epoch in range(2):
        expected = rows_of(whole)
        assert all(loader.epoch == epoch for loader in resumed)
        rows += union([rows_of(loader) for loader in resumed])
        for row, other in zip(rows, expected, strict=False):
            assert all(torch.equal(part, same) for part, same in zip(row, other, strict=True))
        fillers = rows[len(expected) :]
        assert 0 <= len(rows) - len(expected) < unit * after
        is_weighted = weights in ("cluster", "unscaled")
        assert not is_weighted or all(float(row[2]) == 0 for row in fillers)
        rows = []
    assert resumed[0].selection.digest == whole.selection.digest
    assert resumed[0].history[0]["digest"] != whole.selection.digest


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "drops", [{}, {"drops_rows": True}, {"drops_batch": True}], ids=["pads", "rows", "batch"]
)
def test_every_state_is_loaded_again_and_says_how_many_batches_are_left(layout, drops):
    """On ranks that took over from others, and there after every batch."""
    selector = RandomSelector()

    def of(num_replicas):
        return make(
            num_replicas=num_replicas,
            originals="none",
            copies=3,
            batch_size=4,
            selector=selector,
            options=LoaderOptions(layout=layout),
            **drops,
        )

    loaders, judges = ([of(number) for number in range(1, 6)] for _ in range(2))

    def states_of(loader):
        loader.set_epoch(0)
        yield loader.state_dict()
        for _ in loader:
            yield loader.state_dict()

    def assert_taken(state, num_batches, num_replicas):
        for judge in judges:
            judge.load_state_dict(state)
            if num_batches == 0 or judge.num_replicas == num_replicas:
                assert judge.num_batches_left == num_batches

    for before, after in itertools.product(loaders[:4], loaders[1:]):
        for state in list(states_of(before)):
            after.load_state_dict(state)
            left = after.num_batches_left
            assert_taken(after.state_dict(), left, after.num_replicas)
            for _ in after:
                left -= 1
                assert after.num_batches_left == left
                assert_taken(after.state_dict(), left, after.num_replicas)
            assert left == 0


def test_a_state_made_between_epochs_or_at_the_last_batch_swallows_no_epoch():
    loader = make()
    batches = list(batches_from(make(), 3))
    per_epoch = len(loader)
    list(loader)
    between = make()
    between.load_state_dict(saved_and_read(loader.state_dict()))
    assert between.epoch == 1
    assert_same_batches(list(batches_from(between, 3)), batches[per_epoch:])
    running = iter(loader)
    for _ in range(per_epoch):
        next(running)
    at_the_end = make()
    at_the_end.load_state_dict(saved_and_read(loader.state_dict()))
    assert at_the_end.epoch == 1
    assert list(at_the_end) == []
    assert_same_batches(list(batches_from(at_the_end, 3)), batches[2 * per_epoch :])


def test_loops_that_set_the_epoch_resume_too_and_another_epoch_begins_whole():
    loader = make()
    running = iter(loader)
    next(running)
    state = loader.state_dict()
    again = make()
    again.load_state_dict(state)
    again.set_epoch(0)
    assert len(list(again)) == len(loader) - 1
    again = make()
    again.load_state_dict(state)
    again.set_epoch(1)
    assert len(list(again)) == len(loader)


def test_a_selection_made_in_the_middle_of_an_epoch_is_resumed_for_the_next():
    def run(stop):
        loader = make(selector=RandomSelector(), every=100)
        running = iter(loader)
        rows = [next(running) for _ in range(2)]
        loader.set_epoch(5)  # a random selection depends on the epoch: another one
        loader.reselect()
        if stop:
            state = saved_and_read(loader.state_dict())
            running.close()
            loader = make(selector=RandomSelector(), every=100)
            loader.load_state_dict(state)
            rows += list(loader)
        else:
            rows += list(running)
        loader.set_epoch(1)
        return rows + list(loader)

    assert_same_batches(run(stop=True), run(stop=False))


def test_a_selection_that_is_solved_in_the_background_is_resumed():
    def again():  # each epoch's random subset is another one: losing it would show
        return make(every=1, selector=RandomSelector(), options=LoaderOptions(background=True))

    per_epoch = len(again())
    assert_resumable(again, stops=[per_epoch + 1, 2 * per_epoch + 1], num_epochs=4)


def test_recycled_gradients_are_resumed():
    def trained(stop=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
        data = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
        loader = SubsetAugmentLoader(
            data,
            model,
            RandomOps.paper(),
            every=1,
            fraction=0.2,
            options=LoaderOptions(recycle=1),
        )
        digests, seen = [], 0
        while loader.epoch < 3:
            for x, _ in loader:
                model(x)
                with torch.no_grad():
                    model[1].weight.add_(0.001)
                seen += 1
                if seen == stop:
                    state = saved_and_read(loader.state_dict())
            digests.append(loader.selection.digest)
        if stop is None:
            return digests, loader.history
        weights = {"1.weight": model[1].weight, "1.bias": model[1].bias}
        model.load_state_dict({name: value.detach() for name, value in weights.items()})
        return state

    digests, history = trained()
    assert [e["num_recycled"] for e in history if e["event"] == "selection"] == [0, N, N]
    state = trained(stop=len(make(fraction=0.2, copies=4)))  # the last batch of epoch 0
    assert state["epoch"] == 0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    data = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    loader = SubsetAugmentLoader(
        data, model, RandomOps.paper(), every=1, fraction=0.2, options=LoaderOptions(recycle=1)
    )
    loader.load_state_dict(state)
    assert list(loader) == []
    next(iter(loader))
    assert loader.selection.digest == digests[1]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("data", [Jittered(), None])
def test_a_state_brings_its_seed_along(data, num_workers):
    options = {"selector": RandomSelector(), "every": 1, "num_workers": num_workers}
    loader = make(data, **options, seed=5)
    running = batches_from(loader, 3)
    before = [next(running) for _ in range(3)]
    state = saved_and_read(loader.state_dict())
    whole = [*before, *running]
    fresh = make(data, **options)
    list(fresh)  # persistent workers have a copy of the dataset with another seed
    assert fresh.seed == 0
    fresh.load_state_dict(state)
    assert fresh.seed == fresh.plan.seed == fresh.state_dict()["seed"] == 5
    assert "seed=5, " in repr(fresh)
    assert_same_batches([*before, *batches_from(fresh, 3)], whole)


def test_a_state_of_another_seed_than_the_one_given_is_refused():
    state = make(seed=1).state_dict()
    fresh = make(seed=0)
    with pytest.raises(ValueError, match="same seed, got seed=1 for seed=0 here"):
        fresh.load_state_dict(state)
    assert fresh.seed == 0


def test_a_record_of_recycling_made_on_another_rank_is_named(caplog):
    def one_of(num_replicas, rank):
        return make(num_replicas=num_replicas, rank=rank, options=LoaderOptions(recycle=1))

    state = one_of(2, 0).state_dict()
    one_of(2, 0).load_state_dict(state)
    assert not caplog.records
    one_of(2, 1).load_state_dict(state)
    assert "and this is {'rank': 1, 'num_replicas': 2}" in caplog.text
    caplog.clear()
    one_of(1, 0).load_state_dict(state)
    assert "recorded by {'rank': 0, 'num_replicas': 2}" in caplog.text


def damaged(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda s: None, TypeError, "state_dict must be a mapping, got NoneType"),
        (lambda s: {"version": 5}, ValueError, "state_dict must be a saved state, got one without"),
        (lambda s: damaged(s, seed=-1), ValueError, "seed must be between 0 and"),
        (lambda s: damaged(s, num_examples=9), ValueError, "same num_examples"),
        (lambda s: damaged(s, labels_digest="0"), ValueError, "same labels_digest"),
        (lambda s: damaged(s, copies=4), ValueError, "same copies, got copies=4"),
        (lambda s: damaged(s, position=-1), ValueError, "position must be between 0 and 128,"),
        (lambda s: damaged(s, position=129), ValueError, "got position=129"),
        (lambda s: damaged(s, num_replicas=0), ValueError, "num_replicas must be at least 1"),
        (lambda s: damaged(s, position=1.5), TypeError, "position must be an int"),
        (lambda s: damaged(s, epoch=1 << 20), ValueError, "epoch must be between 0 and 8192"),
        (
            lambda s: damaged(s, version=3),
            ValueError,
            "version 5, got version 3: it was saved by anot",
        ),
        (lambda s: damaged(s, selection=None), ValueError, "hold a selection in the middle"),
        (
            lambda s: damaged(
                s, selection=damaged(s["selection"], weights=s["selection"]["weights"] * 2)
            ),
            ValueError,
            "the checkpoint was altered or damaged",
        ),
        (lambda s: damaged(s, schedule={}), ValueError, "got one without .*'pending'"),
        (
            lambda s: damaged(s, selection=damaged(s["selection"], indices=torch.zeros(2))),
            (TypeError, ValueError),
            "indices must",
        ),
    ],
)
def test_a_state_of_something_else_is_refused_and_nothing_is_changed(change, error, reason):
    loader = make()
    running = iter(loader)
    next(running)
    good = loader.state_dict()
    fresh = make()
    with pytest.raises(error, match=reason):
        fresh.load_state_dict(change(good))
    assert_same_batches(list(batches_from(fresh, 1)), list(batches_from(make(), 1)))


@pytest.mark.parametrize("change", [{"position": 5}, {"epoch": 1 << 20}])
def test_a_state_that_is_refused_late_leaves_the_sampler_its_selection(change):
    loader = make(options=LoaderOptions(layout="grouped"))
    next(iter(loader))
    state, fresh = (
        damaged(loader.state_dict(), **change),
        make(options=LoaderOptions(layout="grouped")),
    )
    before = fresh.state_dict()
    with pytest.raises(ValueError, match=r"position must be a whole|epoch must be between"):
        fresh.load_state_dict(state)
    assert fresh.row_sampler.state_dict()["selection"] is None
    assert fresh.state_dict()["epoch"] == before["epoch"]


def test_an_epoch_that_was_filled_up_for_some_ranks_is_over_for_any():
    """The tail of 65 rows is padded to 68 for four ranks, to 67 where three take over from one."""
    data = TensorDataset(X[:5].repeat(13, 1, 1, 1), torch.zeros(65, dtype=torch.int64))
    options = {"originals": "unselected", "copies": 1, "batch_size": 4}
    one, four = make(data, **options), make(data, num_replicas=4, rank=0, **options)
    running = iter(one)
    next(running)
    three = make(data, num_replicas=3, rank=0, **options)
    three.load_state_dict(one.state_dict())
    for loader in (four, three):
        running = iter(loader)
        for _ in range(loader.num_batches_left):
            next(running)
        state = saved_and_read(loader.state_dict())
        assert state["position"] == 65
        for again in (make(data, **options), make(data, num_replicas=5, rank=4, **options)):
            again.load_state_dict(state)
            again.load_state_dict(again.state_dict())
            assert again.num_batches_left == 0
            assert list(again) == []
            assert again.epoch == 1


def test_a_damaged_record_of_recycling_changes_nothing_either():
    loader = make(options=LoaderOptions(recycle=1))
    running = iter(loader)
    next(running)
    state = damaged(loader.state_dict(), logits={"seen": torch.zeros(3)})
    fresh = make(options=LoaderOptions(recycle=1))
    with pytest.raises(ValueError, match="logit_cache must be a saved state"):
        fresh.load_state_dict(state)
    assert_same_batches(
        list(batches_from(fresh, 1)), list(batches_from(make(options=LoaderOptions(recycle=1)), 1))
    )


def changed(tensor, where):
    other = tensor.clone()
    other[where] = tensor.flip(0)[where]
    return other


def test_a_state_of_another_dataset_of_the_same_length_is_refused():
    loader = make()
    with pytest.raises(ValueError, match="same labels_digest"):
        make(TensorDataset(X, Y.flip(0))).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("where", [slice(1, None), slice(20, None), slice(-1, None)])
def test_a_state_of_other_images_is_refused_though_labels_and_the_first_image_are_the_same(where):
    with pytest.raises(ValueError, match="same example_digest"):
        make(TensorDataset(changed(X, where), Y)).load_state_dict(make().state_dict())


@pytest.mark.parametrize("shape", [(N,), (N, 2)])
@pytest.mark.parametrize("held", ["tensors", "attribute"])
def test_a_state_of_other_numbers_is_refused_wherever_they_differ(shape, held):
    """Also between the examples that are fetched to tell datasets apart."""
    targets = torch.arange(float(np.prod(shape))).view(shape)

    def of(targets):
        if held == "tensors":
            return regressed(TensorDataset(X, targets))
        rows = Rows(zip(X, targets, strict=True))
        rows.targets = list(targets.numpy())
        return regressed(rows)

    state = of(targets).state_dict()
    of(targets.clone()).load_state_dict(state)
    with pytest.raises(ValueError, match="same labels_digest"):
        of(changed(targets, slice(1, 5))).load_state_dict(state)
    with pytest.raises(ValueError, match="same labels_digest"):
        of(changed(targets, slice(1, None))).load_state_dict(state)


class Rows(list):
    """Examples that may have attributes."""


class Regressed(Dataset):
    """Images of a seed, with a number each: no class that tells datasets apart."""

    def __init__(self, seed, draws=0.0, y=None):
        self.y = torch.arange(float(N)) if y is None else y
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.rand(N, 3, 6, 6, generator=generator)
        self.draws = draws

    def __len__(self):
        return N

    def __getitem__(self, index):
        noise = np.random.default_rng().random() * self.draws  # of nobody's seed
        return {"x": self.x[index] * (1 - noise), "y": self.y[index]}


def regressed(dataset, batch_size=8):
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    options = {"selector": RandomSelector(), "fraction": 0.2}
    return SubsetAugmentLoader(loader, model, RandomOps.paper(), **options)


def test_a_state_of_other_images_is_refused_where_labels_are_the_same():
    with pytest.raises(ValueError, match="same example_digest"):
        make(TensorDataset(X.flip(0), Y)).load_state_dict(make().state_dict())
    state = regressed(Regressed(0)).state_dict()
    with pytest.raises(ValueError, match="same example_digest"):
        regressed(Regressed(1)).load_state_dict(state)
    other = Regressed(0, y=changed(torch.arange(float(N)), slice(1, None)))
    with pytest.raises(ValueError, match="same example_digest"):
        regressed(other).load_state_dict(state)
    regressed(Regressed(0), batch_size=1).load_state_dict(state)
    state = make(Jittered(), num_workers=1).state_dict()
    for batch_size in (8, 1):
        make(Jittered(), batch_size=batch_size).load_state_dict(state)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9])
def test_few_examples_are_told_apart_too(n):
    state = regressed(TensorDataset(X[:n], torch.zeros(n))).state_dict()
    regressed(TensorDataset(X[:n].clone(), torch.zeros(n)), batch_size=1).load_state_dict(state)
    other = torch.cat([X[: n - 1], X[-1:]])
    with pytest.raises(ValueError, match="same example_digest"):
        regressed(TensorDataset(other, torch.zeros(n))).load_state_dict(state)


def test_a_dataset_that_draws_for_itself_resumes_all_the_same(caplog):
    with caplog.at_level("INFO", "augsubset"):
        state = regressed(Regressed(0)).state_dict()
        assert not caplog.records
        state = regressed(Regressed(0, draws=0.1)).state_dict()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "fetching an example twice gives different results" in record.message
    regressed(Regressed(0, draws=0.1)).load_state_dict(state)


def test_a_state_is_not_loaded_while_an_epoch_runs():
    loader = make()
    running = iter(loader)
    next(running)
    with pytest.raises(AugsubsetError, match="cannot be loaded while an epoch runs"):
        loader.load_state_dict(loader.state_dict())


def test_a_regression_run_resumes_too():
    def again():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
        data = DataLoader(TensorDataset(X, Y.float()), batch_size=8, shuffle=True)
        probe = GradientProbe(model, loss="mse")
        return SubsetAugmentLoader(data, model, RandomOps.paper(), probe=probe)

    assert_resumable(again, stops=[1, 9], num_epochs=2)
