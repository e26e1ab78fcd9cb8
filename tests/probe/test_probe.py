"""GradientProbe: its gradients, the layer it finds, and that it leaves the model unchanged."""

import random
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from augsubset.probe import GradientProbe

X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 4
DATA = TensorDataset(X, Y)


class Registered(nn.Module):
    """Layers registered in another order than they run in, and one that does not run."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Linear(6, 5)
        self.unused = nn.Linear(5, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.drop.eval()  # frozen by the user

    def forward(self, x):
        self.calls += 1
        return self.head(self.drop(self.norm(self.body(x)).relu()))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Registered()
    model.train()
    model.drop.eval()
    F.cross_entropy(model(X), Y).backward()
    return model


def reference_residual(model, loss):
    """Gradient of each example's loss with respect to its logits, one autograd call per example."""
    model = deepcopy(model).eval()
    rows = []
    for x, y in zip(X, Y, strict=True):
        logits = model(x[None]).detach().double().requires_grad_()
        rows.append(torch.autograd.grad(loss(logits, y[None]), logits)[0][0])
    return torch.stack(rows)


def half_squared_error(logits, labels):
    return 0.5 * (logits - F.one_hot(labels, 4)).square().sum()


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("cross_entropy", F.cross_entropy),
        ("mse", half_squared_error),
        (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, reduction="none"), None),
    ],
)
def test_residuals_match_autograd(model, loss, reference):
    gradients = GradientProbe(model, loss=loss).scan(DATA, batch_size=7)
    if reference is None:

        def reference(z, y):
            return F.cross_entropy(z, y, label_smoothing=0.1)

    expected = reference_residual(model, reference)
    assert float((gradients.residual - expected).abs().max()) < 1e-6
    assert torch.equal(gradients.indices, torch.arange(30))
    assert torch.equal(gradients.labels, Y)
    logits = deepcopy(model).eval()(X).detach()
    losses = [float(reference(logits[i : i + 1], Y[i : i + 1])) for i in range(30)]
    assert gradients.losses.tolist() == pytest.approx(losses, abs=1e-5)


def test_the_scan_does_not_depend_on_batch_size_or_how_data_is_passed(model):
    probe = GradientProbe(model)
    whole = probe.scan(DATA)
    for data in (DataLoader(DATA, batch_size=4), DataLoader(DATA, batch_size=30)):
        torch.testing.assert_close(probe.scan(data).residual, whole.residual)


def snapshot(model):
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        },
        "flags": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
    }


def assert_unchanged(model, before):
    after = snapshot(model)
    assert after["flags"] == before["flags"]
    assert after["hooks"] == before["hooks"]
    for kind in ("state", "gradients"):
        assert after[kind].keys() == before[kind].keys()
        for name, value in before[kind].items():
            assert torch.equal(after[kind][name], value), name


def test_a_scan_leaves_model_and_random_generators_unchanged(model):
    before = snapshot(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    GradientProbe(model).scan(DATA, batch_size=8)
    assert_unchanged(model, before)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_the_guard_detects_a_model_that_does_change(model):
    before = snapshot(model)
    model(X)
    with pytest.raises(AssertionError):
        assert_unchanged(model, before)


@pytest.mark.parametrize("layer", ["auto", "head"])
def test_a_scan_that_fails_leaves_the_model_unchanged_too(model, layer):
    before = snapshot(model)
    bad = TensorDataset(X, torch.full((30,), 9))
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3"):
        GradientProbe(model, layer).scan(bad)
    assert_unchanged(model, before)


class Reassigning(Registered):
    def forward(self, x):
        self.calls = self.calls + 1
        return self.head(self.body(x))


def test_buffers_that_a_model_reassigns_are_restored():
    model = Reassigning()
    buffer = model.calls
    GradientProbe(model).scan(DATA)
    assert model.calls is buffer
    assert float(buffer) == 0


class Merging(nn.Linear):
    """Merges a factor into the weight on leaving training mode, as adapters do."""

    def train(self, mode=True):
        if self.training and not mode:
            with torch.no_grad():
                self.weight.mul_(3)
        return super().train(mode)


def test_the_train_method_of_modules_is_not_called():
    model = nn.Sequential(Merging(6, 4))
    before = snapshot(model)
    GradientProbe(model).scan(DATA)
    assert_unchanged(model, before)


@pytest.mark.parametrize("lazy", [nn.LazyLinear(4), nn.LazyBatchNorm1d()])
def test_lazy_modules_are_refused(lazy):
    with pytest.raises(ValueError, match="model must be initialised, got the lazy parameter"):
        GradientProbe(nn.Sequential(lazy)).scan(DATA)


def test_a_model_that_draws_in_evaluation_mode_gives_the_same_scan_twice(model):
    class Noisy(Registered):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    torch.manual_seed(0)
    probe = GradientProbe(Noisy())
    assert torch.equal(probe.scan(DATA).residual, probe.scan(DATA).residual)


def test_the_last_linear_layer_is_found_by_execution_order(model):
    probe = GradientProbe(model)
    assert probe.layer_name is None
    probe.scan(DATA)
    assert probe.layer_name == "head"
    registered_last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    assert registered_last == "unused"


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("logits", "auto"),
        ("logits", "2"),
        ("last_layer", "auto"),
        ("last_layer", "2"),
        ("last_layer", ["0", "2"]),
    ],
)
def test_a_compiled_model_that_ran_before_is_probed(kind, layer, backend):
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    compiled = deepcopy(plain)
    compiled.compile(backend=backend)  # in place: names stay
    for is_training in (True, False):
        compiled.train(is_training)(X[:8]).sum().backward()  # without hooks
    expected = GradientProbe(plain, layer, kind=kind).scan(DATA, batch_size=8)
    probe = GradientProbe(compiled, layer, kind=kind)
    for _ in range(2):
        found = probe.scan(DATA, batch_size=8)
        assert probe.layer_name == "2"
        torch.testing.assert_close(found.residual, expected.residual)
        for ours, theirs in zip(found.factors, expected.factors, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_named_layers_output_is_the_logits_whatever_the_model_returns(model):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return {"logits": self.inner(x), "more": 1}

    expected = GradientProbe(model).scan(DATA).residual
    wrapped = Wrapped()
    for layer in ("inner.head", model.head):
        probe = GradientProbe(wrapped, layer)
        assert torch.equal(probe.scan(DATA).residual, expected)
        assert probe.layer_name == "inner.head"
    by_forward = GradientProbe(wrapped, forward=lambda m, x: m(x)["logits"])
    assert torch.equal(by_forward.scan(DATA).residual, expected)


def test_a_model_without_a_linear_layer_is_probed_too():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    probe = GradientProbe(model)
    data = TensorDataset(torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1]))
    assert probe.scan(data).residual.shape == (5, 3)
    assert probe.layer_name is None


def test_autocast_applies_to_the_model_and_not_to_the_residual(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = GradientProbe(model).scan(DATA)
    full = GradientProbe(model).scan(DATA)
    assert half.residual.dtype == torch.float32
    difference = float((half.residual - full.residual).abs().max())
    assert 0 < difference < 0.02
    # A softmax in bfloat16 would not add up to one so closely.
    assert float(half.residual.sum(1).abs().max()) < 1e-6


@pytest.mark.cuda
def test_the_probe_runs_on_the_models_device(model):
    expected = GradientProbe(model).scan(DATA).residual
    found = GradientProbe(model.cuda()).scan(DATA)
    assert found.residual.device.type == "cpu"
    torch.testing.assert_close(found.residual, expected, rtol=1e-3, atol=1e-4)


def test_dict_items_with_usual_names_are_accepted(model):
    class Dicts(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            return {"image": X[index], "label": int(Y[index])}

    found = GradientProbe(model).scan(Dicts()).residual
    assert torch.equal(found, GradientProbe(model).scan(DATA).residual)


def test_a_layer_that_does_not_run_is_refused(model):
    with pytest.raises(
        ValueError, match="layer must run in the model's forward pass, got layer='unused'"
    ):
        GradientProbe(model, "unused").scan(DATA)


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda m: GradientProbe(lambda x: x), TypeError, "model must be a torch.nn.Module"),
        (
            lambda m: GradientProbe(m, "heads"),
            ValueError,
            r"got layer='heads'\. Candidates: \['body', 'head', 'unused'\]",
        ),
        (lambda m: GradientProbe(m, nn.Linear(1, 1)), ValueError, "Candidates: .'body', 'head'"),
        (
            lambda m: GradientProbe(m, "norm"),
            TypeError,
            "layer must be a torch.nn.Linear, got BatchNorm1d",
        ),
        (
            lambda m: GradientProbe(m, kind="features"),
            ValueError,
            "kind must be one of 'logits', 'last_layer'",
        ),
        (
            lambda m: GradientProbe(m, ["body", "head"]),
            ValueError,
            'layer must be one layer for kind="logits"',
        ),
        (
            lambda m: GradientProbe(m, ["head", "head"], kind="last_layer"),
            ValueError,
            "layer must name distinct layers",
        ),
        (
            lambda m: GradientProbe(m, [], kind="last_layer"),
            ValueError,
            "a list of at least one",
        ),
        (
            lambda m: GradientProbe(m, ["body", "auto"], kind="last_layer"),
            ValueError,
            "layer must be a Linear layer of the model, got layer='auto'",
        ),
        (
            lambda m: GradientProbe(m, loss="hinge"),
            ValueError,
            "loss must be one of 'cross_entropy', 'mse'",
        ),
    ],
)
def test_bad_arguments_are_refused_at_construction(model, make, error, reason):
    with pytest.raises(error, match=reason):
        make(model)


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    "output",
    [lambda x: {"logits": x}, lambda x: (x, x), lambda x: x[:, :, None], lambda x: x[:-1]],
)
def test_outputs_that_are_not_logits_are_refused_with_a_hint(output):
    with pytest.raises(TypeError, match=r"output must be a \(B, C\) tensor.*forward=lambda"):
        GradientProbe(Returns(output)).scan(DATA)


@pytest.mark.parametrize(
    ("scan", "error", "reason"),
    [
        (
            lambda p: p.scan(DataLoader(DATA, shuffle=True)),
            ValueError,
            "data must be complete and in dataset order",
        ),
        (
            lambda p: p.scan(DataLoader(DATA, drop_last=True)),
            ValueError,
            "data must be complete and in dataset order",
        ),
        (
            lambda p: p.scan(
                DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, True))
            ),
            ValueError,
            "data must be complete and in dataset order",
        ),
        (
            lambda p: p.scan(DataLoader(DATA, sampler=SequentialSampler(range(10)))),
            ValueError,
            "data must be complete and in dataset order",
        ),
        (lambda p: p.scan(TensorDataset(X[:0], Y[:0])), ValueError, "got an empty dataset"),
        (lambda p: p.scan(TensorDataset(X)), TypeError, "If labels are missing"),
        (lambda p: p.scan(DATA, progress=1), ValueError, "progress must be one of False, True"),
        (lambda p: p.scan(DATA, indices=[30]), ValueError, r"indices must be in 0\.\.29, got 30"),
        (lambda p: p.scan(DATA, indices=[1, 1]), ValueError, "indices must be distinct"),
        (lambda p: p.scan(DATA, indices=[-1]), ValueError, r"indices must be in 0\.\.29, got -1"),
        (lambda p: p.scan(DATA, indices=[]), ValueError, "indices must name at least one"),
        (lambda p: p.scan(DATA, indices=[True]), TypeError, "indices must be a list of ints"),
        (lambda p: p.scan(DATA, indices=[0.5]), TypeError, "indices must be a list of ints"),
        (
            lambda p: p.scan(TensorDataset(X * torch.nan, Y)),
            ValueError,
            "gradients must be finite, got 30 non-finite rows, first at index 0",
        ),
    ],
)
def test_bad_data_is_refused(model, scan, error, reason):
    with pytest.raises(error, match=reason):
        scan(GradientProbe(model))


def test_a_loss_that_reduces_is_refused(model):
    with pytest.raises(ValueError, match="loss must return one value per example"):
        GradientProbe(model, loss=F.cross_entropy).scan(DATA)


# Gradients with respect to the weights of the last layer and of earlier ones.


def weight_gradients(model, layers):
    """Each example's gradient in the weights of some layers, one backward pass per example."""
    model = deepcopy(model).eval()
    rows = []
    for x, y in zip(X, Y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        weights = [dict(model.named_modules())[name].weight.grad for name in layers]
        rows.append(torch.cat([weight.flatten() for weight in weights]).double())
    return torch.stack(rows)


@pytest.mark.parametrize("layer", ["auto", "head", ["head"], ["body", "head"]])
def test_last_layer_distances_are_those_of_weight_gradients(model, layer):
    before = snapshot(model)
    gradients = GradientProbe(model, layer, kind="last_layer").scan(DATA, batch_size=7)
    assert_unchanged(model, before)
    names = ["body", "head"] if len(layer) == 2 else ["head"]
    rows = weight_gradients(model, names)
    every = torch.arange(30)
    expected = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    found = gradients.distances(every, every)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max())
    assert gradients.inputs.shape == (30, 5)
    assert len(gradients.earlier) == len(names) - 1


def test_earlier_layers_may_be_frozen_or_precede_an_in_place_activation():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.ReLU(True), nn.Linear(5, 4)
    )
    names = ["0", "2", "4"]
    rows = weight_gradients(model, names)
    expected = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    every = torch.arange(30)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        found = GradientProbe(model, names, kind="last_layer").scan(DATA).distances(every, every)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.max())
    assert all(parameter.grad is None for parameter in model.parameters())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return 2 * self.head(x)


class PerToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.head = nn.Linear(2, 4)

    def forward(self, x):
        return self.head(self.body(x.reshape(len(x), 3, 2))).mean(1)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(input=self.body(input=x).relu())


class ScaledInPlace(TwoLayers):
    def forward(self, x):
        return super().forward(x).mul_(2)


class Auxiliary(TwoLayers):
    """The Linear layer that runs last is not the one whose output is returned."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(5, 4)

    def forward(self, x):
        features = self.body(x)
        logits = self.head(features)
        self.auxiliary(features)
        return logits


class Detached(TwoLayers):
    def forward(self, x):
        return self.head(self.body(x).detach())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        return self.head(self.head(x))


class Pooled(PerToken):
    def forward(self, x):
        return self.head(self.body(x.reshape(len(x), 3, 2)).mean(1))


class HeadInputScaled(TwoLayers):
    """Modifies the input of the head in place, after the head has run."""

    def forward(self, x):
        features = self.body(x)
        logits = self.head(features)
        with torch.no_grad():
            features.mul_(3)
        return logits


def test_in_place_operations_after_a_layer_do_not_change_what_is_captured():
    torch.manual_seed(0)
    model, after_output, after_input = TwoLayers(), ScaledInPlace(), HeadInputScaled()
    after_output.load_state_dict(model.state_dict())
    expected = GradientProbe(model, "head", kind="last_layer").scan(DATA)
    found = GradientProbe(after_output, "head", kind="last_layer").scan(DATA)
    assert torch.equal(found.residual, expected.residual)
    assert torch.equal(found.inputs, expected.inputs)
    features = after_input.body(X).detach()
    for layer in ("auto", "head"):
        found = GradientProbe(after_input, layer, kind="last_layer").scan(DATA)
        torch.testing.assert_close(found.inputs, features)


@pytest.mark.parametrize("layers", [["0", "1", "2"], ["1", "0", "2"], ["0", "2"]])
def test_gradients_reach_every_earlier_layer_of_a_stack_in_the_order_given(layers):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 4))
    model[1].requires_grad_(False)
    gradients = GradientProbe(model, layers, kind="last_layer").scan(DATA, batch_size=8)
    widths = [(left.shape[1], right.shape[1]) for left, right in gradients.earlier]
    assert widths == [(model[int(n)].out_features, model[int(n)].in_features) for n in layers[:-1]]
    rows = weight_gradients(model.requires_grad_(True), layers)
    expected = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    every = torch.arange(30)
    found = gradients.distances(every, every)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.max())


def test_layers_called_by_keyword_are_captured():
    model = TwoLayers()
    gradients = GradientProbe(model, ["body", "head"], kind="last_layer").scan(DATA)
    assert torch.equal(gradients.earlier[0][1], X)
    torch.testing.assert_close(gradients.inputs, model.body(X).relu().detach())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "loss", ["cross_entropy", lambda z, y: F.cross_entropy(z, y, reduction="none")]
)
def test_the_callers_grad_mode_does_not_matter(mode, loss):
    probe = GradientProbe(TwoLayers(), ["body", "head"], kind="last_layer", loss=loss)
    expected = probe.scan(DATA)
    with mode():
        found = probe.scan(DATA)
    assert torch.equal(found.residual, expected.residual)
    assert torch.equal(found.earlier[0][0], expected.earlier[0][0])


def test_logits_cast_to_float32_after_the_head_count_as_its_output():
    class Upcast(TwoLayers):
        def forward(self, x):
            return super().forward(x).float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = GradientProbe(Upcast(), kind="last_layer").scan(DATA)
    assert found.inputs.dtype == torch.float32


def test_logits_that_are_not_finite_are_refused_with_the_reason():
    data = TensorDataset(X * torch.nan, Y)
    with pytest.raises(ValueError, match="gradients must be finite"):
        GradientProbe(TwoLayers(), kind="last_layer").scan(data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: GradientProbe(Scaled(), kind="last_layer"),
            "must return the output of its last Linear",
        ),
        (
            lambda: GradientProbe(PerToken(), "head", kind="last_layer"),
            r"inputs of the last layer must be \(B, d\), got shape \(30, 3, 2\)",
        ),
        (
            lambda: GradientProbe(Registered(), ["unused", "head"], kind="last_layer"),
            r"earlier layers must run once per forward pass, .* got 'unused' run on \[\]",
        ),
        (
            lambda: GradientProbe(PerToken(), ["body", "head"], kind="last_layer"),
            r"inputs of the last layer must be \(B, d\)",
        ),
        (
            lambda: GradientProbe(Pooled(), ["body", "head"], kind="last_layer"),
            r"earlier layers must run once per forward pass, .* got 'body' run on \[\(30, 3, 2\)\]",
        ),
        (
            lambda: GradientProbe(Registered(), ["head", "body"], kind="last_layer"),
            "earlier layers must come before the logits, .* got 'head'",
        ),
        (
            lambda: GradientProbe(Detached(), ["body", "head"], kind="last_layer"),
            "earlier layers must come before the logits, .* got 'body'",
        ),
        (
            lambda: GradientProbe(Twice(), "head", kind="last_layer"),
            "the last layer must run once per forward pass, got 2 runs",
        ),
        (
            lambda: GradientProbe(Auxiliary(), kind="last_layer"),
            r"must return the output of its last Linear .* one of \['auxiliary', 'body', 'head'\]",
        ),
        (
            lambda: GradientProbe(ScaledInPlace(), kind="last_layer"),
            "must return the output of its last Linear",
        ),
    ],
)
def test_layers_whose_gradient_is_not_an_outer_product_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make().scan(DATA)


def test_given_indices_are_probed_in_the_order_given(model):
    probe = GradientProbe(model)
    whole, some = probe.scan(DATA), probe.scan(DATA, indices=[7, 2, 29], batch_size=2)
    assert some.indices.tolist() == [7, 2, 29]
    torch.testing.assert_close(some.residual, whole.residual[[7, 2, 29]])
    loader = DataLoader(DATA, batch_size=4)
    for chosen in (range(1, 30, 3), np.arange(1, 30, 3), torch.arange(1, 30, 3)):
        found = probe.scan(loader, indices=chosen)
        assert found.indices.tolist() == list(chosen)
        assert torch.equal(found.labels, Y[1::3])
        torch.testing.assert_close(found.residual, whole.residual[1::3])


def test_the_generator_of_a_dataloader_is_restored(model):
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    loader = DataLoader(DATA, batch_size=10, generator=generator)
    GradientProbe(model).scan(loader)
    assert torch.equal(generator.get_state(), before)
    next(iter(loader))  # control: iterating does draw from it
    assert not torch.equal(generator.get_state(), before)


def test_progress_is_shown_only_when_asked(model, capsys):
    GradientProbe(model).scan(DATA)
    assert capsys.readouterr().err == ""
    GradientProbe(model).scan(DATA, batch_size=10, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_progress_without_tqdm_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'pip install "augsubset\[progress\]"'):
        GradientProbe(model).scan(DATA, progress=True)


def test_an_averaged_copy_can_be_probed_instead_of_the_model(model):
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.25))
    averaged.update_parameters(model)
    first = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight *= -1
    averaged.update_parameters(model)
    by_hand = deepcopy(model)
    with torch.no_grad():
        by_hand.head.weight.copy_(0.25 * first + 0.75 * model.head.weight)
    before, before_averaged = snapshot(model), snapshot(averaged)
    found = GradientProbe(averaged).scan(DATA).residual
    assert_unchanged(model, before)
    assert_unchanged(averaged, before_averaged)
    torch.testing.assert_close(found, GradientProbe(by_hand).scan(DATA).residual)
    assert not torch.allclose(found, GradientProbe(model).scan(DATA).residual)
    named = GradientProbe(averaged, "module.head", kind="last_layer").scan(DATA)
    assert torch.equal(named.residual, found)
