"""Models that do unusual things are probed, trained on and diagnosed, and left as they were."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.data import DataLoader, TensorDataset

import augsubset
from augsubset import GradientProbe, RandomOps, SubsetAugmentLoader

N = 24
X = torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4
DATA = TensorDataset(X, Y)


class Strange(nn.Module):
    """A classifier of four classes; subclasses do something unusual in their forward pass."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 4)
        self.prepare()

    def prepare(self):
        pass

    def forward(self, x):
        x = x.flatten(1)
        self.observe(x)
        return self.head(x)

    def observe(self, x):
        pass


class Observer(Strange):
    """Quantisation-aware training: statistics per feature, of a size that the first batch sets."""

    def prepare(self):
        self.register_buffer("low", torch.zeros(0))
        self.register_buffer("num_batches", torch.zeros(()))

    def observe(self, x):
        self.low.resize_(x.shape[1])
        self.low.copy_(x.amin(0))
        self.num_batches += 1


class FilledLater(Strange):
    """A table that is made of the first batch."""

    def prepare(self):
        self.register_buffer("table", None)

    def observe(self, x):
        if self.table is None:
            self.table = x[:1].clone()


class RegisteredLater(Strange):
    def observe(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", x[:1].clone())


class KeepsActivations(Strange):
    def observe(self, x):
        self.seen = x


class HasLock(Strange):
    def prepare(self):
        self.lock = threading.Lock()

    def observe(self, x):
        with self.lock:
            pass


class Adapter(Strange):
    """A low-rank update that leaving training mode merges into the weight."""

    def prepare(self):
        self.down, self.up = nn.Linear(48, 2, bias=False), nn.Linear(2, 4, bias=False)

    def train(self, mode=True):
        if self.training and not mode:
            with torch.no_grad():
                self.head.weight += self.up.weight @ self.down.weight
        return super().train(mode)

    def forward(self, x):
        return self.head(x.flatten(1)) + self.up(self.down(x.flatten(1)))


class Tied(Strange):
    def prepare(self):
        self.first = nn.Linear(48, 48)
        self.second = nn.Linear(48, 48)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu()))


def with_buffer(make):
    """Return a model with a buffer that few operations are defined for."""

    def build():
        model = Strange()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such layouts are prototypes
            model.register_buffer("unusual", make())
        return model

    return build


def with_head(change):
    def build():
        model = Strange()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.head = change(model.head)
        return model

    return build


STRANGE = {
    "observer": Observer,
    "a buffer that is None at first": FilledLater,
    "a buffer that is registered in the forward pass": RegisteredLater,
    "kept activations": KeepsActivations,
    "a lock": HasLock,
    "an adapter": Adapter,
    "tied weights": Tied,
    "old weight norm": with_head(weight_norm),
    "weight norm": with_head(parametrizations.weight_norm),
    "spectral norm": with_head(parametrizations.spectral_norm),
    "orthogonal": with_head(parametrizations.orthogonal),
    "sparse": with_buffer(lambda: torch.eye(3).to_sparse()),
    "sparse rows": with_buffer(lambda: torch.eye(3).to_sparse_csr()),
    "nested": with_buffer(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "jagged": with_buffer(
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    ),
    "meta": with_buffer(lambda: torch.empty(3, device="meta")),
    "mkldnn": with_buffer(lambda: torch.ones(2, 2).to_mkldnn()),
    "quantised": with_buffer(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "a buffer made in inference mode": with_buffer(
        lambda: torch.inference_mode()(lambda: torch.ones(3))()
    ),
}

models = pytest.mark.parametrize("name", STRANGE)


def build(name):
    torch.manual_seed(0)
    return STRANGE[name]()


def snapshot(model):
    """Return parameters and buffers by name: themselves, and their values where they are plain."""
    found = {
        **dict(model.named_parameters()),
        **{
            f"{path}.{name}": buffer
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
        },
    }
    return {name: (value, read(value)) for name, value in found.items()}


def read(value):
    if value is None or value.is_meta:
        return None
    if value.is_nested:
        return [part.tolist() for part in value.unbind()]
    return (
        value.detach().to_dense().dequantize().tolist()
        if value.is_quantized or (value.layout != torch.strided)
        else value.detach().tolist()
    )


def assert_same(model, before):
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, (value, content) in before.items():
        assert after[name][0] is value, name
        assert after[name][1] == content, name


@models
def test_a_scan_leaves_a_strange_model_as_it_was(name):
    model = build(name)
    before = snapshot(model)
    assert len(GradientProbe(model).scan(DATA)) == N
    assert_same(model, before)


def make_loader(model):
    data = DataLoader(DATA, 8, shuffle=True)
    return SubsetAugmentLoader(data, model, RandomOps(), every=1, fraction=0.25)


@models
def test_a_strange_model_is_trained_on(name):
    model = build(name)
    loader = make_loader(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert [entry["epoch"] for entry in loader.history if entry["event"] == "selection"] == [0, 1]


CANNOT_BE_COPIED = ("a lock", "sparse rows", "nested", "mkldnn")


@models
@pytest.mark.filterwarnings("ignore::UserWarning")  # copies of rare layouts
def test_the_doctor_runs_on_a_strange_model_or_asks_for_a_step(name):
    model = build(name)
    loader, before = make_loader(model), snapshot(model)
    if name in CANNOT_BE_COPIED:
        with pytest.raises(ValueError, match=r"deepcopy\(\) can copy.*Pass step="):
            augsubset.doctor(loader, steps=1)
    else:
        augsubset.doctor(loader, steps=1)
    augsubset.doctor(loader, steps=1, step=lambda x, y: None)
    assert_same(model, before)


def test_all_buffers_are_restored_where_one_cannot_be():
    class Shared(Strange):
        def prepare(self):
            total = torch.zeros(1)
            self.register_buffer("spread", total.expand(3))  # which nothing can be written to
            self.register_buffer("total", total)

        def observe(self, x):
            self.total += 1

    model = Shared()
    with pytest.raises(RuntimeError, match="single memory location") as raised:
        GradientProbe(model).scan(DATA)
    assert raised.value.__notes__ == ["Raised while the buffer 'spread' was restored."]
    assert float(model.total) == 0
    assert model.training


@pytest.mark.parametrize("change", [torch.Tensor.neg_, torch.Tensor.exp_])
def test_a_loss_that_works_in_place_has_the_gradient_of_one_that_does_not(change):
    def in_place(logits, labels):
        return F.cross_entropy(change(logits), labels, reduction="none")

    def plain(logits, labels):
        return F.cross_entropy(change(logits.clone()), labels, reduction="none")

    found = GradientProbe(Strange(), loss=in_place)
    expected = GradientProbe(found.model, loss=plain)
    assert torch.equal(found.scan(DATA).residual, expected.scan(DATA).residual)
