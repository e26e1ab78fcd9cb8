"""Harvest: what training passes leave behind, and that a scan may build on it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from augsubset import AugsubsetError, GradientProbe
from augsubset.probe.logit_cache import Harvest, dealt

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 4
DATA = TensorDataset(X, Y)


class Network(nn.Module):
    """Says the same in training and in evaluation mode, and counts what it was asked."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)
        self.num_asked = 0

    def forward(self, x):
        self.num_asked += len(x)
        return self.head(self.body(x).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Network()


def assert_no_hooks(model):
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def train(harvest, model, rows):
    """Announce a training pass, then run it; a row of -1 is some other image."""
    harvest.expect(torch.tensor(rows), Y[rows])
    return model(X[rows])


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("logits", "auto"), ("logits", "head"), ("last_layer", "auto"), ("last_layer", "head")],
)
def test_training_passes_are_recorded_with_their_age(model, kind, layer):
    probe = GradientProbe(model, layer, kind=kind)
    with probe.attached(30) as harvest:
        for rows in ([0, 1, 2], [3, 4, -1], [0, 5, 6]):
            train(harvest, model, rows)
        model(X[:5])  # nobody announced it
        model.eval()
        train(harvest, model, [9])  # evaluation
        probe.scan(DATA)
        assert harvest.is_expecting
        model.train()
    assert_no_hooks(model)
    assert harvest.passes == 3
    assert harvest.ages[:8].tolist() == [0, 2, 2, 1, 1, 0, 0, -1]
    assert int((harvest.ages >= 0).sum()) == 7

    whole = probe.scan(DATA)
    assert whole.ages is None
    model.num_asked = 0
    found = probe.scan(DATA, reuse=harvest, max_age=1)
    assert model.num_asked == 30 - 5  # rows of age 2 and -1 alone
    assert torch.equal(found.indices, torch.arange(30))
    assert torch.equal(found.labels, Y)
    torch.testing.assert_close(found.residual, whole.residual)
    torch.testing.assert_close(found.losses, whole.losses)
    if kind == "last_layer":
        torch.testing.assert_close(found.inputs, whole.inputs)
    assert found.ages.tolist() == [0, 0, 0, 1, 1] + 25 * [0]


def test_given_indices_come_in_their_order_wherever_they_are_from(model):
    probe = GradientProbe(model)
    with probe.attached(30) as harvest:
        train(harvest, model, [3, 6])
        train(harvest, model, [6])
    loader = DataLoader(DATA, batch_size=4)
    for data in (DATA, loader):
        some = probe.scan(data, reuse=harvest, max_age=1, indices=[6, 9, 3, 1])
        assert some.indices.tolist() == [6, 9, 3, 1]
        assert some.ages.tolist() == [0, 0, 1, 0]
        torch.testing.assert_close(some.residual, probe.scan(DATA).residual[[6, 9, 3, 1]])
    with pytest.raises(ValueError, match="data must come in order"):
        probe.scan(DataLoader(DATA, shuffle=True), reuse=harvest)


def test_with_nothing_fresh_it_is_a_full_scan(model):
    probe = GradientProbe(model)
    with probe.attached(30) as harvest:
        pass
    found, whole = probe.scan(DATA, reuse=harvest), probe.scan(DATA)
    assert torch.equal(found.residual, whole.residual)
    assert torch.equal(found.ages, torch.zeros(30, dtype=torch.int64))


def test_with_everything_fresh_the_model_is_not_asked_and_rows_are_of_older_weights(model):
    probe = GradientProbe(model)
    old = probe.scan(DATA).residual
    with probe.attached(30) as harvest:
        train(harvest, model, list(range(30)))
    with torch.no_grad():
        model.head.weight *= -1
    assert not torch.allclose(probe.scan(DATA).residual, old)
    model.num_asked = 0
    torch.testing.assert_close(probe.scan(DATA, reuse=harvest).residual, old)
    assert model.num_asked == 0


def test_recorded_rows_come_from_training_mode():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    probe = GradientProbe(model)
    with probe.attached(30) as harvest:
        logits = train(harvest, model, list(range(30)))
    found = probe.scan(DATA, reuse=harvest).residual
    torch.testing.assert_close(found, (logits.softmax(1) - torch.eye(4)[Y]).detach())
    assert not torch.allclose(found, probe.scan(DATA).residual)


def test_a_callable_loss_and_autocast_apply_to_recorded_rows_as_to_a_scan(model):
    def loss(logits, labels):
        return nn.functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")

    probe = GradientProbe(model, loss=loss)
    with probe.attached(30) as harvest:
        train(harvest, model, list(range(30)))
    whole = probe.scan(DATA)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = probe.scan(DATA, reuse=harvest)
    torch.testing.assert_close(found.residual, whole.residual)
    torch.testing.assert_close(found.losses, whole.losses)


def test_of_an_example_that_comes_twice_the_last_row_counts(model):
    probe = GradientProbe(model)
    with probe.attached(30) as harvest:
        harvest.expect(torch.tensor([5, 5]), Y[[5, 5]])
        model(X[[3, 5]])
    found = probe.scan(DATA, reuse=harvest, indices=[5])
    torch.testing.assert_close(found.residual, probe.scan(DATA, indices=[5]).residual)


def test_training_is_what_it_would_have_been(model):
    model(X).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with GradientProbe(model, kind="last_layer").attached(30) as harvest:
        train(harvest, model, list(range(30))).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(expected, model.parameters(), strict=True))


def test_recomputation_in_the_backward_pass_is_no_pass_of_its_own(model):
    class Checkpointed(Network):
        def forward(self, x):
            return self.head(checkpoint(lambda h: self.body(h).relu(), x, use_reentrant=False))

    model = Checkpointed()
    whole = GradientProbe(model, kind="last_layer").scan(DATA)
    with GradientProbe(model, kind="last_layer").attached(30) as harvest:
        for rows in ([0, 1], [2, 3]):
            train(harvest, model, rows).sum().backward()
    assert harvest.passes == 2
    found = GradientProbe(model, kind="last_layer").scan(DATA, reuse=harvest, max_age=1)
    torch.testing.assert_close(found.inputs, whole.inputs)


def test_a_harvest_goes_on_and_forgets_what_did_not_come(model):
    probe = GradientProbe(model)
    with probe.attached(30) as harvest:
        train(harvest, model, [0])
        harvest.expect(torch.tensor([1]), Y[[1]])
    with probe.attached(into=harvest) as same:
        assert same is harvest
        model(X[[7]])  # not the pass that was announced before
        train(harvest, model, [2])
    assert harvest.ages[:3].tolist() == [1, -1, 0]


def test_a_pass_of_another_length_is_refused_and_the_hooks_are_gone(model):
    with GradientProbe(model, kind="last_layer").attached(30) as harvest:
        harvest.expect(torch.arange(4), Y[:4])
        with pytest.raises(AugsubsetError, match="the 4 examples that were announced, got 3"):
            model(X[:3])
        model(X[:3])  # no longer announced
    assert_no_hooks(model)


class Scaled(Network):
    def forward(self, x):
        return 2 * super().forward(x)


class Dict(Network):
    def forward(self, x):
        return {"logits": super().forward(x)}


@pytest.mark.parametrize(
    ("model", "kind", "error", "reason"),
    [
        (Scaled(), "last_layer", ValueError, "must be that of its last Linear layer"),
        (Dict(), "logits", TypeError, r"must be a \(B, C\) tensor of logits, got dict.*layer="),
    ],
)
def test_passes_without_the_logits_are_refused(model, kind, error, reason):
    with (
        GradientProbe(model, kind=kind).attached(30) as harvest,
        pytest.raises(error, match=reason),
    ):
        train(harvest, model, [0, 1])
    with GradientProbe(model, "head", kind=kind).attached(30) as harvest:
        train(harvest, model, [0, 1])
    assert harvest.passes == 1


@pytest.mark.parametrize(
    ("indices", "labels", "error", "reason"),
    [
        ([30], [0], ValueError, r"indices must be in -1\.\.29, got 30"),
        ([-2], [0], ValueError, r"indices must be in -1\.\.29, got -2"),
        ([3], [0, 1], ValueError, "labels must be one an index"),
        ([3.0], [0], TypeError, "indices must be ints"),
        ([3], [0.5], TypeError, "labels must be ints"),
    ],
)
def test_bad_announcements_are_refused(indices, labels, error, reason):
    with pytest.raises(error, match=reason):
        Harvest(30).expect(torch.tensor(indices), torch.tensor(labels))


def recorded(model, kind="logits", labels=Y):
    with GradientProbe(model, kind=kind).attached(30) as harvest:
        harvest.expect(torch.arange(30), labels)
        model(X)
    return harvest


@pytest.mark.parametrize(
    ("make_probe", "make_harvest", "error", "reason"),
    [
        (GradientProbe, lambda m: Harvest(7), ValueError, "dataset's 30 examples, got 7"),
        (GradientProbe, lambda m: X, TypeError, "reuse must be a Harvest, got Tensor"),
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
            "reuse must be None where earlier layers are probed",
        ),
        (
            GradientProbe,
            lambda m: recorded(m, labels=Y + 5),
            ValueError,
            r"labels must be in 0\.\.3",
        ),
    ],
)
def test_harvests_that_do_not_fit_the_scan_are_refused(
    model, make_probe, make_harvest, error, reason
):
    with pytest.raises(error, match=reason):
        make_probe(model).scan(DATA, reuse=make_harvest(model))


def test_a_harvest_of_another_probe_is_not_gone_on_with(model):
    harvest = recorded(model)
    with (
        GradientProbe(model, kind="last_layer").attached(into=harvest),
        pytest.raises(ValueError, match=r"values as wide as before, \[4\], got \[4, 5\]"),
    ):
        train(harvest, model, [0])


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
def test_recording_is_refused_where_it_cannot_be(model, attach, reason):
    with pytest.raises(ValueError, match=reason), attach(model):
        pass
    assert_no_hooks(model)


@pytest.mark.cuda
def test_recording_does_not_wait_for_the_device(model):
    model, x = model.cuda(), X.cuda()
    with GradientProbe(model, kind="last_layer").attached(30) as harvest:
        harvest.expect(torch.arange(30), Y)
        model(x)  # the first pass is compared, which waits
        harvest.expect(torch.tensor([0, 0, -1]), Y[:3])
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x[:3])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert harvest.ages[:2].tolist() == [0, 1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_passes_of_a_model_that_was_compiled_and_run_before_are_recorded(backend):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    compiled = torch.compile(plain, backend=backend)
    compiled(X[:3]).sum().backward()
    probe = GradientProbe(compiled)
    for rows in ([0, 1, 2], [7, 8, 9]):  # attached a second time, as each epoch does
        with probe.attached(30) as harvest:
            train(harvest, compiled, rows).sum().backward()
            train(harvest, compiled, [4]).sum().backward()
        assert torch.nonzero(harvest.ages >= 0).flatten().tolist() == sorted([*rows, 4])
        found = probe.scan(DATA, indices=rows, reuse=harvest, max_age=9)
        torch.testing.assert_close(found.residual, GradientProbe(plain).scan(DATA).residual[rows])
    assert_no_hooks(compiled)


# Between ranks.


@st.composite
def ages_of_ranks(draw):
    num_ranks = draw(st.integers(1, 4))
    n = draw(st.integers(num_ranks, 24))
    rows = st.lists(st.integers(-1, 5), min_size=n, max_size=n)
    return [torch.tensor(draw(rows), dtype=torch.int32) for _ in range(num_ranks)]


@given(ages_of_ranks())
def test_each_example_falls_to_one_rank_and_no_rank_is_without(ages):
    shares = [dealt(ages, rank).tolist() for rank in range(len(ages))]
    assert sorted(itertools.chain(*shares)) == list(range(len(ages[0])))
    assert all(shares)
    assert all(share == sorted(share) for share in shares)


def test_an_example_falls_to_the_rank_that_saw_it_last_and_the_rest_to_all():
    ages = [
        torch.tensor([0, 4, -1, -1, -1, 3, -1, 9]),
        torch.tensor([1, 2, 0, -1, -1, 3, -1, -1]),
    ]
    assert dealt(ages, 0).tolist() == [0, 3, 5, 6, 7]
    assert dealt(ages, 1).tolist() == [1, 2, 4]


def test_a_rank_that_all_others_outran_measures_a_share_all_the_same():
    ages = [torch.zeros(5, dtype=torch.int32), torch.full((5,), -1, dtype=torch.int32)]
    assert dealt(ages, 0).tolist() == [0, 2, 4]
    assert dealt(ages, 1).tolist() == [1, 3]
