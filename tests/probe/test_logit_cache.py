"""LogitCache: logits recorded during training, and scans that reuse them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from augsubset.probe import GradientProbe, LogitCache, assign_to_rank
from augsubset.utils.checks import AugsubsetError

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 4
DATA = TensorDataset(X, Y)


class Network(nn.Module):
    """Returns the same in training and evaluation mode, and counts the rows it was run on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)
        self.num_rows = 0

    def forward(self, x):
        self.num_rows += len(x)
        return self.head(self.body(x).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Network()


def assert_no_hooks(model):
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def train(cache, model, rows):
    """Announce a training pass, then run it; -1 stands for a row that is not recorded."""
    cache.expect(torch.tensor(rows), Y[rows])
    return model(X[rows])


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("logits", "auto"), ("logits", "head"), ("last_layer", "auto"), ("last_layer", "head")],
)
def test_training_passes_are_recorded_with_their_age(model, kind, layer):
    probe = GradientProbe(model, layer, kind=kind)
    with probe.attached(30) as cache:
        for rows in ([0, 1, 2], [3, 4, -1], [0, 5, 6]):
            train(cache, model, rows)
        model(X[:5])  # not announced
        model.eval()
        train(cache, model, [9])  # in evaluation mode
        probe.scan(DATA)
        assert cache.is_expecting
        model.train()
    assert_no_hooks(model)
    assert cache.passes == 3
    assert cache.ages[:8].tolist() == [0, 2, 2, 1, 1, 0, 0, -1]
    assert int((cache.ages >= 0).sum()) == 7

    whole = probe.scan(DATA)
    assert whole.ages is None
    model.num_rows = 0
    found = probe.scan(DATA, reuse=cache, max_age=1)
    assert model.num_rows == 30 - 5  # all but those of age 0 and 1
    assert torch.equal(found.indices, torch.arange(30))
    assert torch.equal(found.labels, Y)
    torch.testing.assert_close(found.residual, whole.residual)
    torch.testing.assert_close(found.losses, whole.losses)
    if kind == "last_layer":
        torch.testing.assert_close(found.inputs, whole.inputs)
    assert found.ages.tolist() == [0, 0, 0, 1, 1] + 25 * [0]


def test_given_indices_keep_their_order_whether_reused_or_probed(model):
    probe = GradientProbe(model)
    with probe.attached(30) as cache:
        train(cache, model, [3, 6])
        train(cache, model, [6])
    loader = DataLoader(DATA, batch_size=4)
    for data in (DATA, loader):
        some = probe.scan(data, reuse=cache, max_age=1, indices=[6, 9, 3, 1])
        assert some.indices.tolist() == [6, 9, 3, 1]
        assert some.ages.tolist() == [0, 0, 1, 0]
        torch.testing.assert_close(some.residual, probe.scan(DATA).residual[[6, 9, 3, 1]])
    with pytest.raises(ValueError, match="data must be complete and in dataset order"):
        probe.scan(DataLoader(DATA, shuffle=True), reuse=cache)


def test_an_empty_cache_means_a_full_scan(model):
    probe = GradientProbe(model)
    with probe.attached(30) as cache:
        pass
    found, whole = probe.scan(DATA, reuse=cache), probe.scan(DATA)
    assert torch.equal(found.residual, whole.residual)
    assert torch.equal(found.ages, torch.zeros(30, dtype=torch.int64))


def test_with_every_example_cached_the_model_does_not_run_and_gradients_are_of_older_weights(model):
    probe = GradientProbe(model)
    old = probe.scan(DATA).residual
    with probe.attached(30) as cache:
        train(cache, model, list(range(30)))
    with torch.no_grad():
        model.head.weight *= -1
    assert not torch.allclose(probe.scan(DATA).residual, old)
    model.num_rows = 0
    torch.testing.assert_close(probe.scan(DATA, reuse=cache).residual, old)
    assert model.num_rows == 0


def test_cached_logits_come_from_training_mode():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    probe = GradientProbe(model)
    with probe.attached(30) as cache:
        logits = train(cache, model, list(range(30)))
    found = probe.scan(DATA, reuse=cache).residual
    torch.testing.assert_close(found, (logits.softmax(1) - torch.eye(4)[Y]).detach())
    assert not torch.allclose(found, probe.scan(DATA).residual)


def test_callable_losses_and_autocast_apply_to_cached_logits_as_to_a_scan(model):
    def loss(logits, labels):
        return nn.functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")

    probe = GradientProbe(model, loss=loss)
    with probe.attached(30) as cache:
        train(cache, model, list(range(30)))
    whole = probe.scan(DATA)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = probe.scan(DATA, reuse=cache)
    torch.testing.assert_close(found.residual, whole.residual)
    torch.testing.assert_close(found.losses, whole.losses)


def test_the_last_row_of_a_repeated_example_is_recorded(model):
    probe = GradientProbe(model)
    with probe.attached(30) as cache:
        cache.expect(torch.tensor([5, 5]), Y[[5, 5]])
        model(X[[3, 5]])
    found = probe.scan(DATA, reuse=cache, indices=[5])
    torch.testing.assert_close(found.residual, probe.scan(DATA, indices=[5]).residual)


def test_recording_does_not_change_training(model):
    model(X).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with GradientProbe(model, kind="last_layer").attached(30) as cache:
        train(cache, model, list(range(30))).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(expected, model.parameters(), strict=True))


def test_recomputation_in_the_backward_pass_does_not_count_as_a_pass(model):
    class Checkpointed(Network):
        def forward(self, x):
            return self.head(checkpoint(lambda h: self.body(h).relu(), x, use_reentrant=False))

    model = Checkpointed()
    whole = GradientProbe(model, kind="last_layer").scan(DATA)
    with GradientProbe(model, kind="last_layer").attached(30) as cache:
        for rows in ([0, 1], [2, 3]):
            train(cache, model, rows).sum().backward()
    assert cache.passes == 2
    found = GradientProbe(model, kind="last_layer").scan(DATA, reuse=cache, max_age=1)
    torch.testing.assert_close(found.inputs, whole.inputs)


def test_a_cache_can_be_continued_and_drops_an_announcement_without_a_pass(model):
    probe = GradientProbe(model)
    with probe.attached(30) as cache:
        train(cache, model, [0])
        cache.expect(torch.tensor([1]), Y[[1]])
    with probe.attached(into=cache) as same:
        assert same is cache
        model(X[[7]])  # not the pass that was announced before
        train(cache, model, [2])
    assert cache.ages[:3].tolist() == [1, -1, 0]


def test_a_pass_with_another_number_of_rows_is_refused_and_hooks_are_removed(model):
    with GradientProbe(model, kind="last_layer").attached(30) as cache:
        cache.expect(torch.arange(4), Y[:4])
        with pytest.raises(AugsubsetError, match="the 4 rows of its batch, got 3"):
            model(X[:3])
        model(X[:3])  # no longer announced
    assert_no_hooks(model)


def test_a_pass_on_other_inputs_than_announced_is_not_recorded(model):
    with GradientProbe(model).attached(30) as cache:
        batch = X[[3, 4]]
        cache.expect(torch.tensor([3, 4]), Y[[3, 4]], {"image": batch})
        model(X[:5])  # an unlabelled batch, in a semi-supervised loop
        model(batch.clone())
        assert cache.passes == 0
        model(batch.view_as(batch))
        model(batch)  # a second pass on it
    assert cache.passes == 1
    assert torch.nonzero(cache.ages == 0).flatten().tolist() == [3, 4]


class Scaled(Network):
    def forward(self, x):
        return 2 * super().forward(x)


class Dict(Network):
    def forward(self, x):
        return {"logits": super().forward(x)}


@pytest.mark.parametrize(
    ("model", "kind", "error", "reason"),
    [
        (Scaled(), "last_layer", ValueError, "must return the output of its last Linear layer"),
        (Dict(), "logits", TypeError, r"must be a \(B, C\) tensor of logits, got dict.*layer="),
    ],
)
def test_passes_without_the_logits_are_refused(model, kind, error, reason):
    with (
        GradientProbe(model, kind=kind).attached(30) as cache,
        pytest.raises(error, match=reason),
    ):
        train(cache, model, [0, 1])
    with GradientProbe(model, "head", kind=kind).attached(30) as cache:
        train(cache, model, [0, 1])
    assert cache.passes == 1


@pytest.mark.parametrize(
    ("indices", "labels", "error", "reason"),
    [
        ([30], [0], ValueError, r"indices must be in -1\.\.29, got 30"),
        ([-2], [0], ValueError, r"indices must be in -1\.\.29, got -2"),
        ([3], [0, 1], ValueError, "labels must be one per index"),
        ([3.0], [0], TypeError, "indices must be ints"),
        ([3], [0.5], TypeError, "labels must be ints"),
    ],
)
def test_bad_announcements_are_refused(indices, labels, error, reason):
    with pytest.raises(error, match=reason):
        LogitCache(30).expect(torch.tensor(indices), torch.tensor(labels))


def recorded(model, kind="logits", labels=Y):
    with GradientProbe(model, kind=kind).attached(30) as cache:
        cache.expect(torch.arange(30), labels)
        model(X)
    return cache


@pytest.mark.parametrize(
    ("make_probe", "make_cache", "error", "reason"),
    [
        (GradientProbe, lambda m: LogitCache(7), ValueError, "dataset's 30 examples, got 7"),
        (GradientProbe, lambda m: X, TypeError, "reuse must be a LogitCache, got Tensor"),
        (
            lambda m: GradientProbe(m, kind="last_layer"),
            recorded,
            ValueError,
            "reuse must hold inputs of the last layer",
        ),
        (
            lambda m: GradientProbe(m, ["body", "head"], kind="last_layer"),
            lambda m: recorded(m, "last_layer"),
            ValueError,
            "reuse must be None if earlier layers are probed",
        ),
        (
            GradientProbe,
            lambda m: recorded(m, labels=Y + 5),
            ValueError,
            r"labels must be in 0\.\.3",
        ),
    ],
)
def test_caches_that_do_not_fit_the_scan_are_refused(model, make_probe, make_cache, error, reason):
    with pytest.raises(error, match=reason):
        make_probe(model).scan(DATA, reuse=make_cache(model))


def test_the_cache_of_a_probe_of_another_kind_cannot_be_continued(model):
    cache = recorded(model)
    with (
        GradientProbe(model, kind="last_layer").attached(into=cache),
        pytest.raises(ValueError, match=r"as wide as in earlier passes, \[4\], got \[4, 5\]"),
    ):
        train(cache, model, [0])


@pytest.mark.parametrize(
    ("attach", "reason"),
    [
        (
            lambda m: GradientProbe(m, ["body", "head"], kind="last_layer").attached(30),
            "got earlier layers too",
        ),
        (lambda m: GradientProbe(m).attached(), "exactly one of num_examples and into"),
        (lambda m: GradientProbe(m).attached(0), "num_examples must be at least 1"),
    ],
)
def test_bad_arguments_to_attached_are_refused(model, attach, reason):
    with pytest.raises(ValueError, match=reason), attach(model):
        pass
    assert_no_hooks(model)


@pytest.mark.cuda
def test_recording_does_not_synchronise_the_device(model):
    model, x = model.cuda(), X.cuda()
    with GradientProbe(model, kind="last_layer").attached(30) as cache:
        cache.expect(torch.arange(30), Y)
        model(x)  # the first pass is compared, which synchronises
        cache.expect(torch.tensor([0, 0, -1]), Y[:3])
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x[:3])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert cache.ages[:2].tolist() == [0, 1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_passes_of_a_compiled_model_that_ran_before_are_recorded(backend):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    compiled = torch.compile(plain, backend=backend)
    compiled(X[:3]).sum().backward()
    probe = GradientProbe(compiled)
    for rows in ([0, 1, 2], [7, 8, 9]):  # attached twice, as by two epochs
        with probe.attached(30) as cache:
            train(cache, compiled, rows).sum().backward()
            train(cache, compiled, [4]).sum().backward()
        assert torch.nonzero(cache.ages >= 0).flatten().tolist() == sorted([*rows, 4])
        found = probe.scan(DATA, indices=rows, reuse=cache, max_age=9)
        torch.testing.assert_close(found.residual, GradientProbe(plain).scan(DATA).residual[rows])
    assert_no_hooks(compiled)


# Assignment to ranks.


@st.composite
def ages_of_ranks(draw):
    num_ranks = draw(st.integers(1, 4))
    n = draw(st.integers(num_ranks, 24))
    rows = st.lists(st.integers(-1, 5), min_size=n, max_size=n)
    return [torch.tensor(draw(rows), dtype=torch.int32) for _ in range(num_ranks)]


@given(ages_of_ranks())
def test_each_example_is_assigned_to_one_rank_and_every_rank_gets_some(ages):
    shares = [assign_to_rank(ages, rank).tolist() for rank in range(len(ages))]
    assert sorted(itertools.chain(*shares)) == list(range(len(ages[0])))
    assert all(shares)
    assert all(share == sorted(share) for share in shares)


def test_an_example_goes_to_the_rank_that_saw_it_last_and_the_rest_round_robin():
    ages = [
        torch.tensor([0, 4, -1, -1, -1, 3, -1, 9]),
        torch.tensor([1, 2, 0, -1, -1, 3, -1, -1]),
    ]
    assert assign_to_rank(ages, 0).tolist() == [0, 3, 5, 6, 7]
    assert assign_to_rank(ages, 1).tolist() == [1, 2, 4]


def test_without_examples_for_a_rank_all_are_assigned_round_robin():
    ages = [torch.zeros(5, dtype=torch.int32), torch.full((5,), -1, dtype=torch.int32)]
    assert assign_to_rank(ages, 0).tolist() == [0, 2, 4]
    assert assign_to_rank(ages, 1).tolist() == [1, 3]
