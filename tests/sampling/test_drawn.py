"""Samplers of the user's own: what an epoch holds, from which examples, and what is refused."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from augsubset import (
    CoresetSelector,
    CropFlip,
    LoaderOptions,
    RandomOps,
    SubsetAugmentLoader,
)
from augsubset.sampling import is_original, shard_loader, unpack
from augsubset.sampling.drawn import DrawnOrder
from tests.contracts import assert_order_pure, assert_same_batches, batches_from, saved_and_read

N = 40
X = torch.randint(0, 256, (N, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)


class Own(Sampler):
    """Yield what a function draws."""

    def __init__(self, draw, length, **attributes):
        self.draw, self.length = draw, length
        vars(self).update(attributes)

    def __iter__(self):
        return iter(self.draw(self))

    def __len__(self):
        return self.length


class Epochs(Own):
    """Follow the epoch, as samplers of several ranks do."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch


def balanced(sampler):
    """Draw as many of each class, in blocks of one of each."""
    return [4 * sampler.rng.integers(10) + label for _ in range(6) for label in range(4)]


# Add a line for a sampler that should be taken: how it is made, and examples it never draws.
TAKEN = {
    "a subset": (lambda: SubsetRandomSampler(range(4, 24)), [*range(4), *range(24, N)]),
    "a subset with a generator": (
        lambda: SubsetRandomSampler(range(30), generator=torch.Generator().manual_seed(5)),
        range(30, N),
    ),
    "weights": (lambda: WeightedRandomSampler([0.0] * 8 + [1.0, 3.0] * 16, 50), range(8)),
    "weights, without replacement": (
        lambda: WeightedRandomSampler(torch.ones(N), 30, replacement=False),
        [],
    ),
    "a sequence of fewer": (lambda: SequentialSampler(range(12)), range(12, N)),
    "fewer draws": (lambda: RandomSampler(DATA, num_samples=24), []),
    "draws with replacement": (lambda: RandomSampler(DATA, replacement=True), []),
    "class-balanced, by numpy": (lambda: Own(balanced, 24, rng=np.random.default_rng(3)), []),
    "python's generator": (lambda: Own(lambda s: random.sample(range(20), 20), 20), range(20, N)),
    "a python generator of its own": (
        lambda: Own(lambda s: s.rng.sample(range(20), 20), 20, rng=random.Random(1)),
        range(20, N),
    ),
    "numpy's old generator": (
        lambda: Own(lambda s: s.rng.permutation(20), 20, rng=np.random.RandomState(1)),
        range(20, N),
    ),
    "a fixed order": (lambda: Own(lambda s: torch.arange(N - 1, 9, -1), 30), range(10)),
    "a seed and an epoch": (
        lambda: Epochs(lambda s: np.random.default_rng(s.epoch).permutation(30), 30),
        range(30, N),
    ),
}
SAMPLERS = pytest.mark.parametrize(("make_sampler", "never"), TAKEN.values(), ids=TAKEN)


def make(sampler, data=DATA, *, num_workers=0, shard=None, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 4))
    options = {"fraction": 0.2, "every": 2, "seed": 3, "copies": 2, **options}
    loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=num_workers)
    if shard is not None:
        loader = shard_loader(loader, *shard)
    return SubsetAugmentLoader(loader, model, RandomOps.paper(), **options)


def keys_of(loader, epoch):
    """Copy numbers and indices of an epoch, after the selection that is due."""
    loader.set_epoch(epoch)
    for _ in loader:
        pass
    loader.row_sampler.seek(epoch)
    return [each.numpy() for each in unpack(torch.tensor(list(loader.row_sampler)))[1:]]


@SAMPLERS
def test_an_epoch_holds_what_the_sampler_draws_with_copies_spread_among_it(make_sampler, never):
    loader, order = make(make_sampler()), DrawnOrder(make_sampler(), N)
    for epoch in (0, 3):
        copies, indices = keys_of(loader, epoch)
        is_own = is_original(copies)
        assert indices[is_own].tolist() == order.draw(3, epoch).tolist()
        # Each example and copy number once: what is drawn twice has random numbers of its own.
        assert max(Counter(zip(copies.tolist(), indices.tolist(), strict=True)).values()) == 1
        assert not np.isin(indices, never).any()
        assert len(loader.selection) == int((~is_own).sum()) / 2
        first, last = np.flatnonzero(~is_own)[[0, -1]]
        assert first < len(copies) / 2 < last


@SAMPLERS
def test_order_is_a_function_of_seed_and_epoch(make_sampler, never):
    orders = assert_order_pure(
        lambda: make(make_sampler(), fraction=1.0),
        read=lambda loader: [y.tolist() for _, y in loader],
    )
    other = make(make_sampler(), seed=4, fraction=1.0)
    assert [y.tolist() for _, y in other] != orders[0]


@SAMPLERS
@pytest.mark.parametrize("consumed", [1, 4])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(make_sampler, never, consumed):
    expected = list(batches_from(make(make_sampler()), 3))
    first = make(make_sampler())
    before = []
    for batch in first:
        before.append(batch)
        if len(before) == consumed:
            break
    torch.rand(7)
    second = make(make_sampler(), seed=None)
    second.load_state_dict(saved_and_read(first.state_dict()))
    assert_same_batches([*before, *batches_from(second, 3)], expected)


@pytest.mark.parametrize("weights", ["uniform", "cluster", "resample"])
@pytest.mark.parametrize("name", ["weights", "a subset"])
def test_ranks_share_the_order_of_one_process(name, weights):
    make_sampler, never = TAKEN[name]
    whole = make(make_sampler(), weights=weights)
    ranks = [make(make_sampler(), weights=weights, shard=(3, rank)) for rank in range(3)]
    for _ in whole:
        pass
    shares = []
    for loader in ranks:
        loader.row_sampler.set_selection(whole.selection)
        loader.row_sampler.seek(0)
        shares.append(list(loader.row_sampler))
    whole.row_sampler.seek(0)
    expected = list(whole.row_sampler)
    together = [key for row in zip(*shares, strict=True) for key in row]
    assert together[: len(expected)] == expected
    assert not np.isin(unpack(np.array(together))[2], never).any()


def test_an_original_that_is_drawn_again_is_augmented_anew_by_the_base():
    data = TensorDataset(X[:4].repeat_interleave(10, 0), Y)
    sampler = Own(lambda s: [0] * 12, 12)
    loader = make(sampler, data, base=CropFlip(2), fraction=1.0, copies=1)
    originals = torch.cat([x for x, _ in loader])
    assert len({each.numpy().tobytes() for each in originals}) > 6
    assert loader.history[-1]["num_copies"] == 1


def test_what_is_never_drawn_is_never_fetched_selected_or_probed():
    class Guarded(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            assert 8 <= index < 28
            return X[index], int(Y[index])

    loader = make(SubsetRandomSampler(range(8, 28)), Guarded(), fraction=0.4, weights="cluster")
    for _ in range(2):
        for _ in loader:
            pass
    assert len(loader.selection) == 8
    assert float(loader.selection.weights.sum()) == 20


def test_the_users_sampler_and_global_generators_are_left_alone():
    generator = torch.Generator().manual_seed(9)
    sampler = SubsetRandomSampler(range(20), generator=generator)
    before = generator.get_state(), torch.get_rng_state()
    DrawnOrder(sampler, N).draw(0, 1)
    assert sampler.generator is generator
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_state_is_of_one_sampler():
    state = make(SubsetRandomSampler(range(20))).state_dict()
    with pytest.raises(ValueError, match="order"):
        make(SubsetRandomSampler(range(1, 21))).load_state_dict(state)


def test_the_seed_is_that_of_the_samplers_generator():
    generator = torch.Generator().manual_seed(9)
    loader = make(SubsetRandomSampler(range(20), generator=generator), seed=None)
    assert loader.seed == 9


def test_the_epoch_of_the_users_sampler_is_followed():
    sampler = Epochs(lambda s: np.random.default_rng(s.epoch).permutation(30), 30)
    loader = make(sampler)
    sampler.set_epoch(5)
    for _ in loader:
        pass
    assert loader.history[-1]["epoch"] == 5


def test_workers_change_nothing():
    make_sampler, _ = TAKEN["weights"]
    expected = list(batches_from(make(make_sampler()), 1))
    assert_same_batches(list(batches_from(make(make_sampler(), num_workers=2), 1)), expected)


def counting(sampler):
    sampler.state["draws"] += 1
    return np.roll(np.arange(10), sampler.state["draws"])


# Add a line for a sampler that should be refused.
REFUSED = {
    "a share of its own": (
        lambda: Own(lambda s: range(0, N, 2), 20, num_replicas=2, rank=0),
        "shares its order among ranks.*copies=",
    ),
    "a subclass of DistributedSampler": (
        lambda: type("RepeatAugSampler", (DistributedSampler,), {})(DATA, 2, 0),
        "RepeatAugSampler.*copies=",
    ),
    "state that no seed sets": (
        lambda: Own(counting, 10, state={"draws": 0}),
        "must draw the same order twice from the same seed",
    ),
    "too few": (lambda: Own(lambda s: range(9), 10), "got 9 for 10 from Own"),
    "too many": (lambda: Own(lambda s: iter(int, 1), 10), "got more for 10 from Own"),
    "a length that changes": (
        lambda: Epochs(lambda s: range(10 + (s.epoch > 4)), 10),
        "got more for 10 from Epochs, epoch 5",
    ),
    "indices that do not exist": (lambda: Own(lambda s: range(N + 1), N + 1), r"in \[0, 39\]"),
    "negative indices": (lambda: Own(lambda s: range(-1, 9), 10), r"got -1 to 8"),
    "batches": (lambda: Own(lambda s: [[0, 1], [2, 3]], 2), "indices only.*layout='grouped'"),
    "names": (lambda: Own(lambda s: ["a", "b"], 2), "indices only, got <U1"),
    "nothing": (lambda: Own(lambda s: [], 0), "at least one index"),
}


@pytest.mark.parametrize(("make_sampler", "reason"), REFUSED.values(), ids=REFUSED)
def test_samplers_that_break_a_promise_are_refused_at_construction(make_sampler, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        make(make_sampler())


def test_a_sampler_without_a_length_is_refused():
    class Endless(Sampler):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(TypeError, match="must have a length, got Endless without __len__"):
        DrawnOrder(Endless(), N)


def test_a_grouped_layout_needs_shuffle():
    with pytest.raises(ValueError, match="layout 'mixed' with a sampler of your own"):
        make(SubsetRandomSampler(range(20)), options=LoaderOptions(layout="grouped"))


def test_a_coreset_stands_for_what_is_drawn():
    loader = make(SubsetRandomSampler(range(20)), selector=CoresetSelector(), weights="cluster")
    next(iter(loader))
    clusters = loader.selection.clusters
    assert (clusters[:20] >= 0).all()
    assert (clusters[20:] == -1).all()
