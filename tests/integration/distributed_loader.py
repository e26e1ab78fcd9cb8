"""Run by torchrun: a loader on several ranks, a model under DistributedDataParallel."""

import itertools
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import kornia.augmentation as K
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from augsubset import (
    AugsubsetError,
    BatchSpec,
    CoresetSelector,
    GradientProbe,
    LoaderOptions,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    SubsetAugmentLoader,
    doctor,
)
from augsubset.distributed import Ranks
from augsubset.selection import distributed
from tests.contracts import assert_same_batches, saved_and_read
from tests.integration import printed_loop

N = 60
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=GENERATOR)
Y = torch.arange(N) % 3
BACKEND = "eager"  # of torch.compile: what it traces is tested here, not what it makes of that
SHORT = timedelta(seconds=20)
OPTIONS = {"fraction": 0.2, "copies": 3, "every": 2, "options": LoaderOptions(timeout=SHORT)}
ROUNDING = {2: 0.0, 3: 1e-6}  # of weights: how gradients of three are added depends on buckets


def say(text):
    sys.stdout.write(f"rank {dist.get_rank()} {text}\n")
    sys.stdout.flush()


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 3))


def make(model, batch_size, *, sampler=None, data=None, augment=None, **options):
    data = TensorDataset(X, Y) if data is None else data
    loader = DataLoader(data, batch_size, sampler=sampler, shuffle=None if sampler else True)
    augment = augment or RandomOps.paper()
    return SubsetAugmentLoader(loader, model, augment, **{**OPTIONS, **options})


def train(model, loader, num_epochs=3):
    """Return the loss of each step, averaged over ranks, and each selection's digest."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    while loader.epoch < num_epochs:
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    total = torch.stack(losses)
    if isinstance(model, DistributedDataParallel):
        dist.all_reduce(total)
        total /= dist.get_world_size()
    digests = [e["digest"] for e in loader.history if e["event"] == "selection"]
    return total, digests


def alone(monkeypatch, **options):
    """The run of one process with the batches of all ranks."""
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        patch.delenv("WORLD_SIZE")
        model = make_model()
        return train(model, make(model, 8 * world(), **options))


def world():
    return dist.get_world_size()


def losses(monkeypatch):
    """Losses of DDP equal those of one process: 96 rows an epoch divide evenly."""
    kornias = K.AugmentationSequential(K.RandomAffine(20.0), K.ColorJiggle(0.2, 0.2, 0.2))
    selectors = CoresetSelector(), MaxLossSelector(), RandomSelector()
    for options in (
        *({"selector": selector} for selector in selectors),
        {"selector": RandomSelector(), "augment": kornias},
    ):
        model = DistributedDataParallel(make_model())
        found, digests = train(model, make(model, 8, **options))
        expected, same_digests = alone(monkeypatch, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert digests == same_digests or type(options["selector"]) is not RandomSelector
        assert len(digests) == 2


def unshown(monkeypatch):
    """Labels that the first probe tells select what known ones do, also where one is missing."""
    for missing in ([], [7]):
        labels = Y.clone()
        labels[missing] = -1
        digests = set()
        for data in (list(zip(X, labels, strict=True)), TensorDataset(X, labels)):
            loader = make(make_model(), 8, data=data)
            assert (loader.info.classes is None) == isinstance(data, list)
            for _ in loader:
                pass
            assert loader.info.classes.tolist() == labels.tolist()
            assert not set(missing) & set(loader.selection.indices.tolist())
            digests.add(loader.selection.digest)
        assert len(digests) == 1


def printed(monkeypatch):
    """The loop as printed, over every kind of data, with and without workers."""
    for name, num_workers in itertools.product(printed_loop.DATASETS, (0, 2)):
        torch.manual_seed(0)
        model = DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
        loader, steps = printed_loop.run(name, model, num_workers)
        assert loader.num_replicas == world()
        assert steps == 2 * len(loader)
        n, k = len(loader.dataset), len(loader.selection)
        rows = sum(entry["num_rows"] for entry in loader.history if entry["event"] == "epoch")
        assert rows == 2 * -(-(n + 4 * k) // world())


def rows_of(loader):
    """Index, weight and pixels of each row of an epoch: pixels tell copies apart."""
    return [
        (index, weight, image)
        for x, _, *w, indices in loader
        for index, weight, image in zip(
            indices.tolist(),
            *(each.tolist() for each in w or [torch.ones(len(x))]),
            x.tolist(),
            strict=True,
        )
    ]


def in_turn(shares, unit):
    """Rows of all ranks as one process has them: a unit of each rank after the other."""
    steps = range(0, len(shares[0]), unit)
    return [row for at in steps for share in shares for row in share[at : at + unit]]


def tails(monkeypatch):
    """Uneven tails are filled up: by weight 0, or by further copies of what is selected."""
    data = TensorDataset(X[: N - 3], Y[: N - 3])
    for layout, drop_last, weights in itertools.product(
        ("mixed", "grouped"), (False, True), ("uniform", "cluster")
    ):
        options = {
            "weights": weights,
            "batch": BatchSpec(return_index=True),
            "options": LoaderOptions(layout=layout, timeout=SHORT),
            "selector": RandomSelector(),
        }
        sampler = DistributedSampler(data, drop_last=drop_last)
        loader = make(make_model(), 8, sampler=sampler, data=data, **options)
        mine, shares = rows_of(loader), [None] * world()
        dist.all_gather_object(shares, mine)
        found = in_turn(shares, 8 if layout == "grouped" else 1)
        with monkeypatch.context() as patch:
            patch.setattr(dist, "is_initialized", lambda: False)
            patch.delenv("WORLD_SIZE")
            expected = rows_of(make(make_model(), 8, data=data, **options))
        num_rows = N - 3 + 3 * loader.row_sampler.budget
        num_weighed = sum(weight > 0 for _, weight, _ in expected)
        assert num_weighed == (num_rows if weights == "cluster" else len(expected))
        if drop_last:
            assert len(expected) - 8 * world() < len(found) <= len(expected)
            assert found == expected[: len(found)]
        else:
            assert found[: len(expected)] == expected
            for index, weight, _ in found[len(expected) :]:
                assert weight == (weights == "uniform")
                assert weights == "cluster" or index in loader.selection.indices


def fewer_shares(monkeypatch):
    """Half as many shares as ranks, as with tensor parallelism: every two have the same."""
    half = world() // 2
    share = DistributedSampler(TensorDataset(X, Y), half, dist.get_rank() // 2)
    options = {"batch": BatchSpec(return_index=True), "selector": RandomSelector()}
    loader = make(make_model(), 8, sampler=share, **options)
    running = iter(loader)
    next(running)
    state = saved_and_read(loader.state_dict())
    assert (state["num_replicas"], state["position"]) == (half, 8 * half)
    again = make(make_model(), 8, sampler=share, **options)
    again.load_state_dict(state)
    assert rows_of(again) == rows_of(running)
    found = gathered(rows_of(loader))
    assert found[::2] == found[1::2]
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        patch.delenv("WORLD_SIZE")
        one = make(make_model(), 8, **options)
        _, second = rows_of(one), rows_of(one)
    assert in_turn(found[::2], 1) == second


def spread(monkeypatch):
    """Models that ranks hold together are refused where they would be probed; else they train."""

    def fsdp1(model):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))

    def tensor_parallel(model):
        parallelize_module(model, mesh, {"1": ColwiseParallel(), "3": RowwiseParallel()})
        return model

    mesh = init_device_mesh("cpu", (world(),))
    kinds = {
        "is a DTensor": (lambda model: fully_shard(model, mesh=mesh), tensor_parallel),
        "FullyShardedDataParallel in it": (fsdp1,),
    }
    for reason, wraps in kinds.items():
        for wrapped in wraps:
            with pytest.raises(AugsubsetError, match=f"must be whole on each rank.*{reason}"):
                make(wrapped(make_model()), 8)
            model = make_model()
            loader = make(model, 8)
            model = wrapped(model)  # in place, where it is no wrapper
            if reason == "is a DTensor":
                with pytest.raises(AugsubsetError, match=f"must be whole on each rank.*{reason}"):
                    next(iter(loader))
            if wrapped is not tensor_parallel:  # whose ranks have the same rows
                found, _ = train(model, make(model, 8, selector=RandomSelector()), num_epochs=1)
                assert found.isfinite().all()


def compiled(monkeypatch):
    """The probe goes through DDP and torch.compile to the same gradients, and waits for nobody."""
    expected = GradientProbe(make_model()).scan(TensorDataset(X.float(), Y))
    plain = nn.Sequential(*make_model(), nn.BatchNorm1d(3))
    for model in (
        DistributedDataParallel(make_model()),
        torch.compile(DistributedDataParallel(make_model()), backend="eager"),
        DistributedDataParallel(torch.compile(make_model(), backend="eager")),
    ):
        model(X[:2].float()).sum().backward()
        for kind in ("logits", "last_layer"):
            found = GradientProbe(model, kind=kind).scan(TensorDataset(X.float(), Y))
            torch.testing.assert_close(found.residual, expected.residual)
    # Buffers would be sent at each forward pass: as many as this rank has batches, and no other.
    model = DistributedDataParallel(plain)
    model(X[:4].float()).sum().backward()
    number = 2 + 5 * dist.get_rank()
    GradientProbe(model).scan(TensorDataset(X[:number].float(), Y[:number]), batch_size=1)
    dist.barrier()


@torch.no_grad()
def negate(model):
    for parameter in model.parameters():
        parameter.neg_()


def recycled(monkeypatch):
    """What any rank saw in training is probed by none, through wrappers too."""

    def trained(wrapped, num_epochs=3, **options):
        batches = []
        model = wrapped(make_model())
        model(X[:8].float()).sum().backward()  # what is compiled knows of no hooks
        model.zero_grad()
        loader = make(model, 8, every=1, **options, options=LoaderOptions(recycle=1, timeout=SHORT))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        while loader.epoch < num_epochs:
            stance = "fail_on_recompile" if loader.epoch else "default"
            for x, y in loader:
                with torch.compiler.set_stance(stance):
                    logits = model(x)
                loss = F.cross_entropy(logits, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                batches.append(x)
            model.eval()
            model(X[:5].float())  # an evaluation, whose passes are nobody's
            model.train()
        selections = [e for e in loader.history if e["event"] == "selection"]
        numbers = torch.tensor([e["num_recycled"] for e in selections])
        dist.all_reduce(numbers)
        return numbers.tolist(), [e["digest"] for e in selections], torch.cat(batches)

    expected = trained(DistributedDataParallel)
    assert expected[0] == [0, N, N]
    for wrapped in (
        lambda model: torch.compile(DistributedDataParallel(model), backend=BACKEND),
        lambda model: DistributedDataParallel(torch.compile(model, backend=BACKEND)),
    ):
        found = trained(wrapped)
        assert found[0] == expected[0]
        assert found[1] == expected[1]
        assert torch.equal(found[2], expected[2])
    model = DistributedDataParallel(make_model())
    options = {"every": 1, "options": LoaderOptions(recycle=1, timeout=SHORT)}
    found, _ = train(model, make(model, 8, **options))
    torch.testing.assert_close(found, alone(monkeypatch, **options)[0], rtol=1e-5, atol=1e-6)
    # Each rank goes on from what it saw itself.
    loader = make(model, 8, **options)
    train(model, loader, num_epochs=1)
    running = iter(loader)
    for _ in range(2):
        model(next(running)[0])
    state = saved_and_read(loader.state_dict())

    def next_digest(loader, rest):
        for x, _ in rest:
            model(x)
        negate(model)  # a scan would now find something else
        following = iter(loader)
        next(following)
        following.close()
        negate(model)
        return loader.selection.digest

    digest = next_digest(loader, running)
    again = make(model, 8, **options)
    again.load_state_dict(state)
    assert next_digest(again, again) == digest
    # Copies alone are nothing to recycle: what nobody saw is assigned to all in turn.
    assert trained(DistributedDataParallel, originals="none")[0] == [0, 0, 0]


def resumed(monkeypatch):
    """A state saved on one number of ranks goes on with another, and mid-epoch."""
    model = make_model()
    loader = make(model, 8, batch=BatchSpec(return_index=True))
    running = iter(loader)
    first = next(running)
    states = [None] * world()
    dist.all_gather_object(states, {**loader.state_dict(), "history": []})
    assert len({str(sorted((k, str(v)) for k, v in state.items())) for state in states}) == 1
    assert loader.state_dict()["position"] == 8 * world()
    again = make(model, 8, batch=BatchSpec(return_index=True))
    again.load_state_dict(saved_and_read(loader.state_dict()))
    for ours, theirs in zip(again, running, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        patch.delenv("WORLD_SIZE")
        single = make(model, 8, batch=BatchSpec(return_index=True))
        single.load_state_dict(saved_and_read(states[0]))
        left = [row for batch in single for row in batch[-1].tolist()]
    rows = [None] * world()
    dist.all_gather_object(rows, first[-1].tolist())
    counts = torch.bincount(torch.tensor([i for each in rows for i in each] + left), minlength=N)
    selected = set(loader.selection.indices.tolist())
    assert counts.tolist() == [4 if i in selected else 1 for i in range(N)]


class OfRank(RandomSelector):
    def select(self, gradients, *, budget, seed, epoch):
        return super().select(gradients, budget=budget, seed=dist.get_rank(), epoch=epoch)


def disagreements(rank):
    """What ranks may be given differently by mistake, by the name that the error has for it."""
    odd = rank % 2
    return {
        "seed": {"seed": odd},
        "every": {"every": 1 + odd},
        "copies": {"copies": 1 + odd},
        "weights": {"weights": ("uniform", "cluster")[odd]},
        "budget": {"fraction": (0.2, 0.3)[odd]},
        "batch_size": {"batch_size": 8 + odd},
        "selector": {"selector": (CoresetSelector(), MaxLossSelector())[odd]},
        "labels_digest": {"data": TensorDataset(X, Y.roll(odd))},
        "example_digest": {"data": TensorDataset(X.roll(odd * 3, 0), Y)},
    }


def guards(monkeypatch):
    """Missing and double sharding are named on the first batch, on every rank."""
    rank = dist.get_rank()
    same = DistributedSampler(TensorDataset(X, Y), num_replicas=world(), rank=0)
    with pytest.raises(AugsubsetError, match=r"got rank=0 in . of .*sharding is missing"):
        next(iter(make(make_model(), 8, sampler=same)))
    none = DistributedSampler(TensorDataset(X, Y), num_replicas=1, rank=0)
    with pytest.raises(ValueError, match="got a DistributedSampler with num_replicas=1"):
        make(make_model(), 8, sampler=none)
    twice = make(make_model(), 4)  # a batch or more for each rank that shards again
    batch_sampler = twice._batches.batch_sampler
    twice._batches = DataLoader(
        twice._batches.dataset,
        batch_sampler=_Every(batch_sampler),
        collate_fn=twice._batches.collate_fn,
    )
    with pytest.raises(AugsubsetError, match="shards this loader a second time"):
        next(iter(twice))
    next(iter(make(make_model(), 8)))
    for name, options in disagreements(rank).items():
        reason = rf"the same {name}, got .* on ranks \[0.*\]; .* on ranks \[1"
        with pytest.raises(AugsubsetError, match=reason):
            make(make_model(), **{"batch_size": 8, **options})
    other = make(make_model(), 8, selector=OfRank())
    with pytest.raises(AugsubsetError, match="ranks must agree on the selection"):
        next(iter(other))
    # A loader in use that is given other checkpoints on other ranks.
    used, states = make(make_model(), 4), []
    running = iter(used)
    for _ in range(2):
        next(running)
        states.append(used.state_dict())
    running.close()
    used.load_state_dict(states[rank % 2])
    with pytest.raises(AugsubsetError, match="the same position, got"):
        next(iter(used))
    used.set_epoch(5 + rank % 2)
    with pytest.raises(AugsubsetError, match=r"the same epoch, got 5 on ranks \[0"):
        next(iter(used))
    again = make(make_model(), 4)
    again.load_state_dict(states[0])
    next(iter(again))


def doctored(monkeypatch):
    """One rank alone may call the doctor, and then all train on as if it had not."""

    def trained(called):
        # Buffers, which the wrapper's forward pass sends, as its backward pass does gradients.
        plain = make_model()
        model = DistributedDataParallel(nn.Sequential(*plain[:2], nn.BatchNorm1d(8), *plain[2:]))
        loader = make(model, 8)
        for _ in range(2):
            if called and dist.get_rank() == 0:
                found = doctor(loader, steps=2)
                # A rank's share of 96 rows.
                assert found.settings.num_replicas == loader.world_size == world()
                assert found.subset.step == pytest.approx(found.none.step * 96 / N)
            losses, _ = train(model, loader, num_epochs=loader.epoch + 1)
        return losses

    assert torch.equal(trained(called=True), trained(called=False))
    # In training it waits for other ranks, and on the host refuses to.
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3), nn.SyncBatchNorm(3))
    loader = make(model, 8)
    if dist.get_rank() == 0:
        doctor(loader, steps=1)
    assert model[2].training
    dist.barrier()


class _Every:
    """Batches as somebody who shards them again would leave them to this rank."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches) // world()

    def __iter__(self):
        return itertools.islice(self.batches, dist.get_rank(), None, world())


def failures(monkeypatch):
    """What fails on one rank is raised on all."""

    class Broken(RandomSelector):
        def select(self, gradients, **arguments):
            if dist.get_rank() == 1:
                raise OSError("disk")
            return super().select(gradients, **arguments)

    error = OSError if dist.get_rank() == 1 else AugsubsetError
    with pytest.raises(error, match="disk"):
        next(iter(make(make_model(), 8, selector=Broken())))

    class TooEarly(RandomSelector):
        def select(self, gradients, **arguments):
            if dist.get_rank() == 1:
                raise AugsubsetError("no server yet")
            return super().select(gradients, **arguments)

    with pytest.raises(AugsubsetError, match="no server yet"):  # told, not waited for
        next(iter(make(make_model(), 8, selector=TooEarly())))

    class Differs(RandomSelector):
        def select(self, gradients, *, budget, seed, epoch):
            return super().select(gradients, budget=budget, seed=dist.get_rank(), epoch=epoch)

    with pytest.raises(AugsubsetError, match="ranks must agree on the selection"):
        next(iter(make(make_model(), 8, selector=Differs())))
    model = make_model()
    if dist.get_rank() == 1:
        with torch.no_grad():
            model[1].weight.fill_(float("nan"))
    error = ValueError if dist.get_rank() == 1 else AugsubsetError
    with pytest.raises(error, match="gradients must be finite"):
        next(iter(make(model, 8)))
    few = TensorDataset(X[:1], Y[:1])
    if world() > 1:
        with pytest.raises(ValueError, match="at least one example per rank, got 1 for"):
            make(make_model(), 8, data=few)


def background(monkeypatch):
    """Solving in a thread on all ranks while DDP trains."""
    model = DistributedDataParallel(make_model())
    _, digests = train(
        model, make(model, 8, every=1, options=LoaderOptions(background=True)), num_epochs=4
    )
    gathered = [None] * world()
    dist.all_gather_object(gathered, digests)
    assert all(each == digests for each in gathered)
    assert len(digests) == 3  # the fourth, asked for in epoch 3, is used from epoch 4


def assert_union_is_one_epoch(loader, mine):
    """What ranks got together is each row of an epoch once."""
    gathered = [None] * world()
    dist.all_gather_object(gathered, mine)
    counts = torch.bincount(torch.tensor([i for each in gathered for i in each]), minlength=N)
    selected = set(loader.selection.indices.tolist())
    assert counts.tolist() == [4 if i in selected else 1 for i in range(N)]


def with_accelerate(monkeypatch):
    """accelerate's ranks share one order, and each knows its last batch."""
    from accelerate import Accelerator

    from augsubset.integrations.accelerate import prepare

    accelerator = Accelerator(cpu=True)
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True)
    model, loader = accelerator.prepare(make_model(), loader)
    prepared = prepare(
        accelerator, loader, model, RandomOps.paper(), **OPTIONS, batch=BatchSpec(return_index=True)
    )
    assert prepared.num_replicas == world()
    mine, ends = [], []
    for x, y, index in prepared:
        accelerator.backward(F.cross_entropy(model(x), y))
        mine += index.tolist()
        ends.append(accelerator.gradient_state.end_of_dataloader)
    assert ends == [False] * (len(prepared) - 1) + [True]
    assert_union_is_one_epoch(prepared, mine)


def with_lightning(monkeypatch):
    """Lightning's ranks share one order."""
    import lightning as L

    from augsubset.integrations.lightning import SubsetAugmentCallback, prepare

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.mine = make_model(), []

        def forward(self, x):
            return self.net(x)

        def train_dataloader(self):
            self.loader = prepare(
                self.trainer,
                DataLoader(TensorDataset(X, Y), 8, shuffle=True),
                self,
                RandomOps.paper(),
                **OPTIONS,
                batch=BatchSpec(return_index=True),
            )
            assert self.loader.num_replicas == world()
            return self.loader

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

        def training_step(self, batch, batch_idx):
            x, y, index = batch
            self.mine += index.tolist()
            return F.cross_entropy(self(x), y)

        def on_train_end(self):
            assert_union_is_one_epoch(self.loader, self.mine)
            say("checked its share")

    trainer = L.Trainer(
        accelerator="cpu",
        devices=world(),
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SubsetAugmentCallback()],
    )
    trainer.fit(Module())


@contextmanager
def shared_folder():
    """A folder that all ranks know of."""
    with tempfile.TemporaryDirectory() as mine:
        folder = [mine]
        dist.broadcast_object_list(folder)
        yield Path(folder[0])
        dist.barrier()


def assert_resumes(run):
    """Stopped after any batch and resumed in a fresh trainer, ranks get the same batches.

    Args:
        run: Trains three epochs, ``(folder, stop, resume)``: up to so many batches, or from the
            checkpoint that such a run left. Returns batches and weights.
    """
    with shared_folder() as folder:
        whole, weights = run(folder / "whole", None, False)
    assert len({len(each) for each in gathered(whole)}) == 1
    assert not torch.equal(whole[0][0], gathered(whole[0][0])[1 - dist.get_rank() % 2])
    length = len(whole) // 3
    for stop in (1, length, length + 2):
        with shared_folder() as folder:
            first, _ = run(folder, stop, False)
            assert len(first) == stop
            dist.barrier()
            again, found = run(folder, None, True)
        assert_same_batches([*first, *again], whole)
        for ours, theirs in zip(found, weights, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING[world()])
    say("resumed")


def gathered(value):
    """What each rank has."""
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def accelerate_resumed(monkeypatch):
    """By ``save_state`` and ``load_state``."""
    from accelerate import Accelerator

    from augsubset.integrations.accelerate import prepare

    def run(folder, stop, resume):
        accelerator = Accelerator(cpu=True)
        model = make_model()
        loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True)
        loader = prepare(accelerator, loader, model, RandomOps.paper(), **OPTIONS)
        model, optimizer = accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        )
        if resume:
            accelerator.load_state(folder)
        seen = []
        while loader.epoch < 3 and len(seen) != stop:
            for x, y in loader:
                optimizer.zero_grad()
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                seen.append((x, y))
                if len(seen) == stop:
                    break
        if stop:
            accelerator.save_state(folder)
        accelerator.free_memory()
        return seen, [parameter.detach() for parameter in model.parameters()]

    assert_resumes(run)


def lightning_resumed(monkeypatch):
    """By a checkpoint of its Trainer."""
    from tests.integration.test_frameworks import Module, trainer

    def run(folder, stop, resume):
        module = Module(stop, folder)
        options = {"ckpt_path": folder / "stopped.ckpt", "weights_only": True} if resume else {}
        try:
            trainer(devices=world(), strategy="ddp").fit(module, **options)
        except (KeyboardInterrupt, SystemExit):
            assert stop
        return module.seen, [parameter.detach() for parameter in module.parameters()]

    assert_resumes(run)


def trainer_resumed(monkeypatch):
    """By the checkpoints of Hugging Face's Trainer."""
    from tests.integration.test_frameworks import trained

    def run(folder, stop, resume):
        trainer = trained(folder, stop=stop, resume=resume or None)
        return trainer.seen, [parameter.detach() for parameter in trainer.model.parameters()]

    assert_resumes(run)


def die(*arguments, **options):
    """Be killed while the others wait."""
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def gone():
    """Rank 1 dies, and who is left says so: rank 0 meets everybody, the others rank 0 alone."""
    reason = r"no answer after \d+\.\d s on rank [23]: a rank is gone"
    if dist.get_rank() == 0:
        reason = r"must take part, got rank 1 gone after \d+\.\d s on rank 0"
    with pytest.raises(AugsubsetError, match=reason):
        yield
    say("saw it")


def killed_while_probing(monkeypatch):
    """A rank that dies raises on the others."""
    loader = make(make_model(), 8, options=LoaderOptions(timeout=timedelta(minutes=30)))
    if dist.get_rank() == 1:
        loader.prober.measure = die
    with gone():
        next(iter(loader))


def killed_while_solving(monkeypatch):
    """Also in the middle of its classes."""
    loader = make(make_model(), 8, options=LoaderOptions(timeout=timedelta(minutes=30)))
    if dist.get_rank() == 1:
        monkeypatch.setattr(distributed, "solve", die)
    with gone():
        next(iter(loader))


def killed_while_exchanging(monkeypatch):
    """Also after all have met: then nobody can tell who."""
    ranks = Ranks.make_group(timedelta(minutes=30))
    if ranks.rank == 1:
        monkeypatch.setattr(dist, "all_gather_object", die)
    with pytest.raises(AugsubsetError, match=r"no answer after \d+\.\d s .*: a rank is gone"):
        ranks.gather(ranks.rank)
    say("saw it")


def killed_in_the_background(monkeypatch):
    """Also in a thread, beside an epoch that the others go through."""
    loader = make(
        make_model(),
        8,
        every=1,
        options=LoaderOptions(background=True, timeout=timedelta(minutes=30)),
    )
    assert len(list(loader)) == len(loader)
    if dist.get_rank() == 1:
        monkeypatch.setattr(distributed, "solve", die)
    with gone():
        for _ in range(2):
            assert len(list(loader)) == len(loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with pytest.MonkeyPatch.context() as patch:
        for name in sys.argv[1:]:
            globals()[name](patch)
    say(f"of {world()} is done")
    dist.destroy_process_group()
