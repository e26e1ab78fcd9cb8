"""Loaders inside other people's trainers: one order, exact resume, their checkpoints."""

import csv
import itertools
import weakref
from multiprocessing import active_children
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from augsubset import (
    AugsubsetError,
    BatchSpec,
    GradientProbe,
    LoaderOptions,
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentDataset,
    SubsetAugmentLoader,
    WeightedCoresetSampler,
    weighted_loss,
)
from augsubset.integrations import accelerate, lightning
from augsubset.integrations.lightning import SubsetAugmentCallback
from augsubset.integrations.tensorboard import TensorBoardEvents
from augsubset.integrations.transformers import SubsetAugmentCallback as HuggingFaceCallback
from augsubset.sampling import KeyedCollate
from tests.contracts import assert_order_pure, assert_same_batches, values_of

pytestmark = pytest.mark.filterwarnings("default")  # what frameworks warn of is their affair

N = 40
X = torch.randint(
    0, 256, (N, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
DATA = TensorDataset(X, torch.arange(N) % 3)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 3))


OPTIONS = {"fraction": 0.2, "copies": 2, "every": 2}


def make(model=None, *, batch_size=8, drop_last=False, **options):
    loader = DataLoader(DATA, batch_size, shuffle=True, drop_last=drop_last)
    model = make_model() if model is None else model
    return SubsetAugmentLoader(loader, model, RandomOps.paper(), **{**OPTIONS, **options})


def accelerated(accelerator=None, model=None, *, batch_size=8, drop_last=False, **options):
    """The same, as accelerate shards it."""
    accelerator = Accelerator(cpu=True) if accelerator is None else accelerator
    loader = DataLoader(DATA, batch_size, shuffle=True, drop_last=drop_last)
    model = make_model() if model is None else model
    return accelerate.prepare(
        accelerator, loader, model, RandomOps.paper(), **{**OPTIONS, **options}
    )


LAYOUTS, ORIGINALS = ("mixed", "grouped"), ("all", "unselected", "selected", "none")
WEIGHTS = ("uniform", "cluster", "unscaled", "resample")
# Each choice once: all of them together are in test_resume.
KINDS = list(zip(LAYOUTS * 2, ORIGINALS, WEIGHTS, strict=True))
of_every_kind = pytest.mark.parametrize(("layout", "originals", "weights"), KINDS)


def kind(layout, originals, weights):
    """Options of a loader."""
    return {"originals": originals, "weights": weights, "options": LoaderOptions(layout=layout)}


def sampler_kind(layout, originals, weights):
    """The same of a sampler, which scales no weights."""
    weights = "cluster" if weights == "unscaled" else weights
    return {"layout": layout, "originals": originals, "weights": weights, "batch_size": 8}


on_each_rank = pytest.mark.parametrize(("num_replicas", "rank"), [(1, 0), (2, 0), (2, 1)])


# The parts in other loaders.


def parts(loader_class=DataLoader, num_workers=0, **options):
    selection = Selection.equally_weighted(torch.tensor([3, 30, 7, 12]), N)
    sampler = WeightedCoresetSampler(DATA, selection, copies=2, **options)
    return loader_class(
        SubsetAugmentDataset(DATA),
        batch_size=8,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=KeyedCollate(torch.utils.data.default_collate),
    )


def keys_of(batches):
    return [keys.tolist() for _, keys in batches]


def stops(length, num_workers):
    """Numbers of batches after which to stop; with workers, whose start takes its time, one."""
    middle = length // 2 + 1
    return {middle} if num_workers else {1, middle, length}


@of_every_kind
@on_each_rank
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torchdatas_stateful_loader_resumes_the_sampler(
    layout, originals, weights, num_replicas, rank, num_workers
):
    options = sampler_kind(layout, originals, weights)
    options |= {"num_replicas": num_replicas, "rank": rank, "num_workers": num_workers}
    expected = keys_of(parts(**{**options, "num_workers": 0}))
    for stop in stops(len(expected), num_workers):
        first = parts(StatefulDataLoader, **options)
        running = iter(first)
        before = keys_of([next(running) for _ in range(stop)])
        state = first.state_dict()
        again = parts(StatefulDataLoader, **options)
        again.load_state_dict(state)
        assert before + keys_of(again) == expected
        del running


class Stateful(StatefulDataLoader):
    """torchdata's, whose epoch is its sampler's."""

    def set_epoch(self, epoch):
        self.sampler.set_epoch(epoch)


@of_every_kind
@on_each_rank
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torchdatas_stateful_loader_resumes_within_a_later_epoch(
    layout, originals, weights, num_replicas, rank, num_workers
):
    def epoch_of(loader, epoch):
        loader.set_epoch(epoch)
        return keys_of(loader)

    options = sampler_kind(layout, originals, weights)
    options |= {"num_replicas": num_replicas, "rank": rank, "num_workers": num_workers}
    expected = [epoch_of(parts(Stateful, **{**options, "num_workers": 0}), e) for e in range(3)]
    for stop in stops(len(expected[1]), num_workers):
        first = parts(Stateful, **options)
        assert epoch_of(first, 0) == expected[0]
        first.set_epoch(1)
        running = iter(first)
        before = keys_of([next(running) for _ in range(stop)])
        state = first.state_dict()
        again = parts(Stateful, **options)
        again.load_state_dict(state)
        assert before + epoch_of(again, 1) == expected[1]
        assert epoch_of(again, 2) == expected[2]
        del running


@of_every_kind
@pytest.mark.parametrize("adapter", ["plain", "accelerate", "lightning", "torchdata"])
def test_the_order_of_every_adapter_depends_on_seed_epoch_and_selection_alone(
    adapter, layout, originals, weights
):
    options = kind(layout, originals, weights)
    make_one = {
        "plain": lambda: make(**options),
        "accelerate": lambda: accelerated(**options),
        "lightning": lambda: lightning.prepare(
            trainer(), DataLoader(DATA, 8, shuffle=True), make_model(), RandomOps.paper(), **options
        ),
        "torchdata": lambda: parts(Stateful, **sampler_kind(layout, originals, weights)),
    }[adapter]
    read = keys_of if adapter == "torchdata" else values_of
    orders = assert_order_pure(make_one, read=read)
    assert orders[0] != orders[1]


@of_every_kind
@on_each_rank
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_accelerates_skip_first_batches_leaves_the_rest(
    layout, originals, weights, num_replicas, rank, num_workers
):
    def loader_at(epoch, num_workers=num_workers):
        options = sampler_kind(layout, originals, weights)
        loader = parts(num_workers=num_workers, num_replicas=num_replicas, rank=rank, **options)
        loader.sampler.set_epoch(epoch)
        return loader

    expected = [keys_of(loader_at(epoch, num_workers=0)) for epoch in range(3)]
    assert expected[0] != expected[1]
    for epoch, stop in itertools.product(range(2), stops(len(expected[0]), num_workers)):
        again = loader_at(epoch)
        assert keys_of(skip_first_batches(again, stop)) == expected[epoch][stop:]
        again.sampler.set_epoch(epoch + 1)
        assert keys_of(again) == expected[epoch + 1]


def test_skip_first_batches_refuses_a_whole_loader_and_says_what_to_do():
    for loader in (make(), accelerated()):
        assert not hasattr(loader, "sampler")
        with pytest.raises(AttributeError, match=r"which skips|load_state\(\) skipped"):
            skip_first_batches(loader, 1)


# accelerate.


def test_a_prepared_loader_passes_through_accelerate_and_names_the_last_batch():
    accelerator = Accelerator(cpu=True)
    prepared = accelerated(accelerator)
    assert accelerator.prepare(prepared) is prepared
    expected = list(make())
    last = []
    found = []
    for batch in prepared:
        found.append(batch)
        last.append(accelerator.gradient_state.end_of_dataloader)
    assert_same_batches(found, expected)
    assert last == [False] * (len(expected) - 1) + [True]
    assert len(prepared) == len(expected)


def test_accelerates_accumulation_steps_at_the_end_of_an_epoch():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    prepared = accelerated(accelerator, model)
    synced = []
    for x, y in prepared:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            synced.append(accelerator.sync_gradients)
            optimizer.step()
            optimizer.zero_grad()
    assert synced == [False, False, False, True, False, False, True]  # 7 batches


@of_every_kind
@pytest.mark.parametrize("stop", [1, None, "and two"])
def test_accelerates_checkpoints_hold_the_loader(tmp_path, stop, layout, originals, weights):
    options = kind(layout, originals, weights)
    loader = make(**options)
    stop = {1: 1, None: len(loader), "and two": len(loader) + 2}[stop]
    whole = [batch for _ in range(3) for batch in loader]
    accelerator = Accelerator(cpu=True)
    prepared = accelerated(accelerator, **options)
    before = []
    while len(before) < stop:
        for batch in prepared:
            before.append(batch)
            if len(before) == stop:
                break
    accelerator.save_state(tmp_path)
    accelerator.free_memory()
    accelerator = Accelerator(cpu=True)
    prepared = accelerated(accelerator, **options)
    accelerator.load_state(tmp_path)
    after = []
    while prepared.epoch < 3:
        last = None
        for batch in prepared:
            after.append(batch)
            last = accelerator.gradient_state.end_of_dataloader
        assert last in (True, None)
    assert_same_batches([*before, *after], whole)


def test_what_was_let_go_of_is_neither_kept_nor_saved(tmp_path):
    """As where a batch size is found by trying."""
    accelerator = Accelerator(cpu=True)
    models, model, loader = [], None, None
    for batch_size in (16, 8):
        del model, loader
        accelerator.free_memory()
        assert not any(model() for model in models)
        model = make_model()
        models.append(weakref.ref(model))
        loader = accelerated(accelerator, model, batch_size=batch_size)
    running = iter(loader)
    next(running)
    accelerator.save_state(tmp_path)
    accelerator = Accelerator(cpu=True)
    again = accelerated(accelerator)
    accelerator.load_state(tmp_path)
    assert_same_batches(list(again), list(running))


def test_an_accelerator_may_have_several_loaders(tmp_path):
    accelerator = Accelerator(cpu=True)
    loaders = [accelerated(accelerator, seed=seed) for seed in (1, 2)]
    for loader in loaders:
        list(loader)
    running = iter(loaders[1])
    next(running)
    accelerator.save_state(tmp_path)
    accelerator = Accelerator(cpu=True)
    again = [accelerated(accelerator, seed=seed) for seed in (1, 2)]
    accelerator.load_state(tmp_path)
    assert [each.epoch for each in again] == [each.epoch for each in loaders] == [1, 1]
    assert_same_batches(list(again[1]), list(running))
    accelerator = Accelerator(cpu=True)
    one = accelerated(accelerator)
    with pytest.raises(AugsubsetError, match=r"must be of 1 SubsetAugmentLoaders.*, got one of 2"):
        accelerator.load_state(tmp_path)
    assert one.epoch == 0


def test_accelerates_own_loader_gets_no_workers():
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True)
    )
    loader = DataLoader(DATA, 8, num_workers=1, persistent_workers=True)
    ours = accelerate.prepare(accelerator, loader, make_model(), RandomOps.paper(), **OPTIONS)
    assert not active_children()
    list(ours)
    assert len(active_children()) == 1


def test_accelerates_helper_needs_an_accelerator():
    arguments = DataLoader(DATA, 8), make_model(), RandomOps.paper()
    with pytest.raises(TypeError, match=r"must be an accelerate\.Accelerator, got NoneType"):
        accelerate.prepare(None, *arguments)
    with pytest.raises(TypeError, match=r"must be an accelerate\.Accelerator, got Accelerator"):
        accelerate.prepare(Accelerator, *arguments)


def shared_by(num_processes, process_index, **options):
    """An accelerator of one of several processes, of which there is this one alone."""

    class One:
        def prepare_data_loader(self, loader):
            return prepare_data_loader(
                loader, num_processes=num_processes, process_index=process_index, **options
            )

        def register_for_checkpointing(self, loader):
            pass

    Accelerator(cpu=True)  # what it prepares needs its state
    return One()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("n", [29, 32, 40])
def test_each_step_has_the_rows_that_accelerate_deals_in_it(n, split, drop_last):
    """A copy of each example, in order: as accelerate deals the data itself."""
    data = TensorDataset(X[:n], torch.arange(n) % 3)
    plain = DataLoader(data, batch_size=6, drop_last=drop_last)
    indices = DataLoader(torch.arange(n), batch_size=6, drop_last=drop_last)
    options = {"copies": 1, "originals": "none", "fraction": 1.0, "weights": "cluster"}
    options["batch"] = BatchSpec(return_index=True)
    ours, theirs = [], []
    for rank in range(3):
        one = shared_by(3, rank, split_batches=split)
        loader = accelerate.prepare(one, plain, make_model(), RandomOps.paper(), **options)
        dealt = one.prepare_data_loader(indices)
        assert len(loader) == len(dealt)
        assert loader.batch_size == (2 if split else 6)
        assert loader.total_batch_size == dealt.total_batch_size
        ours.append([(w, index.tolist()) for *_, w, index in loader])
        theirs.append([batch.tolist() for batch in dealt])
    seen = []
    for step in range(len(theirs[0])):
        rows = [
            index
            for share in ours
            for weight, index in zip(*share[step], strict=True)
            if weight > 0 or drop_last
        ]
        dealt = [index for share in theirs for index in share[step]]
        repeated = len(dealt) - len(rows)
        assert repeated == 0 or (step == len(theirs[0]) - 1 and not drop_last)
        assert sorted(rows) == sorted(dealt[: len(rows)] if repeated else dealt)
        seen += rows
    assert len(seen) == len(set(seen)) == (len(seen) if drop_last else n)


@pytest.mark.parametrize("options", [{}, {"use_seedable_sampler": True}])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_that_accelerate_prepared_already_is_the_same(shuffle, options):
    one = shared_by(2, 1, **options)
    plain = DataLoader(DATA, 8, shuffle=shuffle, drop_last=True)
    for loader in (plain, one.prepare_data_loader(plain)):
        ours = accelerate.prepare(one, loader, make_model(), RandomOps.paper(), **OPTIONS)
        sampler = ours.loader.row_sampler
        assert (sampler.num_replicas, sampler.rank) == (2, 1)
        assert (sampler.plan.shuffle, sampler.drop_last) == (shuffle, True)
        assert ours.batch_size == 8


def test_what_accelerate_does_not_shard_so_is_refused():
    def refused(error, match, loader, **options):
        with pytest.raises(error, match=match):
            accelerate.prepare(
                shared_by(2, 0, **options), loader, make_model(), RandomOps.paper(), **OPTIONS
            )

    refused(TypeError, "must be a torch DataLoader, got SubsetAugmentLoader", make())
    plain = DataLoader(DATA, 8)
    options = {"dispatch_batches": True, "put_on_device": True}
    refused(ValueError, "accelerate must shard, got dispatch_batches=True", plain, **options)

    class Endless(IterableDataset):
        def __iter__(self):
            yield 0

    endless = DataLoader(Endless(), 8)
    refused(TypeError, "map-style dataset, got an IterableDataset", endless)
    prepared = prepare_data_loader(endless, num_processes=2, process_index=0)
    refused(ValueError, "accelerate must shard, got .* or an IterableDataset", prepared)
    twice = DataLoader(DATA, 8, sampler=DistributedSampler(DATA, 2, 0))
    refused(ValueError, "sharded already, got a DistributedSampler with num_replicas=2", twice)
    skipped = skip_first_batches(shared_by(2, 0).prepare_data_loader(plain), 1)
    refused(ValueError, "batch_sampler=SkipBatchSampler", skipped)

    class Own(BatchSampler):
        pass

    own = DataLoader(DATA, batch_sampler=Own(RandomSampler(DATA), 8, False))
    refused(ValueError, "got batch_sampler=Own", own)
    prepared = prepare_data_loader(own, num_processes=2, process_index=0)
    refused(ValueError, "got batch_sampler=Own", prepared)


def test_a_loader_that_accelerate_prepared_needs_the_helper():
    prepared = Accelerator(cpu=True).prepare(DataLoader(DATA, batch_size=8, shuffle=True))
    reason = r"got the subclass accelerate\.data_loader\.DataLoaderShard\. .*accelerate\.prepare"
    with pytest.raises(TypeError, match=reason):
        SubsetAugmentLoader(prepared, make_model(), RandomOps.paper())


# Lightning.


class Module(L.LightningModule):
    """Collects what the loop got."""

    def __init__(self, stop=None, folder=None, **options):
        super().__init__()
        self.options = options
        self.net = make_model()
        self.stop, self.folder = stop, folder
        self.seen = []

    def forward(self, x):
        return self.net(x)

    def train_dataloader(self):
        return lightning.prepare(
            self.trainer,
            DataLoader(DATA, batch_size=8, shuffle=True),
            self,
            RandomOps.paper(),
            **{**OPTIONS, **self.options},
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)

    def training_step(self, batch, batch_idx):
        x, y, *w = batch
        self.seen.append(tuple(part.clone() for part in batch))
        losses = F.cross_entropy(self(x), y, reduction="none")
        return weighted_loss(losses, *w) if w else losses.mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.seen) == self.stop:
            self.trainer.save_checkpoint(self.folder / "stopped.ckpt")
            self.trainer.should_stop = True
            raise KeyboardInterrupt


def trainer(**options):
    return L.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "callbacks": [SubsetAugmentCallback()],
            "devices": 1,
            "logger": False,
            "max_epochs": 3,
            **options,
        },
    )


def test_lightning_trains_on_every_batch_of_every_epoch():
    module = Module(selector=RandomSelector())
    trainer().fit(module)
    loader = make(module, selector=RandomSelector())
    assert_same_batches(module.seen, [batch for _ in range(3) for batch in loader])


@of_every_kind
@pytest.mark.parametrize("stop", ["first batch", "last batch", "second epoch"])
def test_lightning_resumes_after_any_batch(tmp_path, stop, layout, originals, weights):
    options = kind(layout, originals, weights)
    length = len(make(**options))
    stop = {"first batch": 1, "last batch": length, "second epoch": length + 1}[stop]
    whole = Module(**options)
    trainer().fit(whole)
    first = Module(stop, tmp_path, **options)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer().fit(first)
    again = Module(**options)
    trainer().fit(again, ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    assert_same_batches([*first.seen, *again.seen], whole.seen)
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_after_lightning_stopped_in_an_epoch_goes_on_in_it(tmp_path):
    """As early stopping, or a signal that sets ``should_stop``, leaves a run."""

    class Stopping(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.trainer.should_stop = len(self.seen) == self.stop

    whole = Module()
    trainer().fit(whole)
    stop = len(make()) + 2
    first, again = Stopping(stop), Module()
    stopped = trainer()
    stopped.fit(first)
    assert len(first.seen) == stop
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    state = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["augsubset"]["loader"]
    assert (state["epoch"], state["position"]) == (1, 2 * 8)
    trainer().fit(again, ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    assert_same_batches([*first.seen, *again.seen], whole.seen)


def test_lightning_logs_the_figures_of_each_selection_once(tmp_path):
    logger = CSVLogger(tmp_path)
    module = Module(selector=RandomSelector())
    trainer(logger=logger, log_every_n_steps=1).fit(module)
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("augsubset/num_selected")]
    # Every second epoch of three: at the end of the first and of the third.
    length = len(make(module, selector=RandomSelector()))
    assert [int(row["step"]) for row in rows] == [length, 3 * length]
    assert [float(row["augsubset/num_selected"]) for row in rows] == [8, 8]
    assert float(rows[1]["augsubset/covered"]) > float(rows[0]["augsubset/covered"])


def test_lightning_logs_each_selection_once_whatever_is_resumed(tmp_path):
    """Also those of an epoch that a stop did not let end."""

    def logged(folder):
        with open(folder / "lightning_logs" / "version_0" / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row.get("augsubset/num_selected")]
        return [float(row["augsubset/epoch"]) for row in rows]

    def fit(folder, stop=None, **options):
        module = Module(stop, tmp_path, selector=RandomSelector(), every=1)
        trainer(logger=CSVLogger(folder), log_every_n_steps=1).fit(module, **options)

    fit(tmp_path / "whole")
    length = len(make(selector=RandomSelector()))
    for stop in (length, length + 2):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(tmp_path / f"first {stop}", stop)
        resume = {"ckpt_path": tmp_path / "stopped.ckpt", "weights_only": True}
        fit(tmp_path / f"again {stop}", **resume)
        before = logged(tmp_path / f"first {stop}") if stop > length else []
        assert [*before, *logged(tmp_path / f"again {stop}")] == logged(tmp_path / "whole")


class Epochs(Module):
    """Collects Lightning's epoch and the loader's with each batch."""

    def __init__(self, *arguments, lr=0.05, **options):
        super().__init__(*arguments, **{"selector": RandomSelector(), **options})
        self.lr, self.epochs = lr, []

    def training_step(self, batch, batch_idx):
        self.epochs.append((self.current_epoch, self.trainer.train_dataloader.epoch))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

    def test_dataloader(self):
        return DataLoader(TensorDataset(X.float(), torch.arange(N) % 3), 8)

    def test_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize("stop", range(1, 7))
def test_an_epoch_that_lightning_ends_early_resumes_as_it_went_on(tmp_path, stop):
    whole = Epochs()
    trainer(limit_train_batches=3).fit(whole)
    assert whole.epochs == [(epoch, epoch) for epoch in range(3) for _ in range(3)]
    first, again = Epochs(stop, tmp_path), Epochs()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(limit_train_batches=3).fit(first)
    resume = {"ckpt_path": tmp_path / "stopped.ckpt", "weights_only": True}
    trainer(limit_train_batches=3).fit(again, **resume)
    assert_same_batches([*first.seen, *again.seen], whole.seen)


def test_the_loaders_epoch_is_lightnings_wherever_a_run_begins(tmp_path):
    ended = trainer(max_epochs=2)
    module = Epochs()
    ended.fit(module)
    ended.save_checkpoint(tmp_path / "ended.ckpt")
    # One trainer goes on.
    ended.fit_loop.max_epochs = 4
    ended.fit(module)
    assert sorted(set(module.epochs)) == [(epoch, epoch) for epoch in range(4)]
    # A test of a checkpoint leaves nothing to a run that begins anew.
    other, module = trainer(max_epochs=2), Epochs()
    resume = {"ckpt_path": tmp_path / "ended.ckpt", "weights_only": True}
    other.test(module, **resume, verbose=False)
    other.fit(module)
    assert sorted(set(module.epochs)) == [(0, 0), (1, 1)]
    assert [e["epoch"] for e in other.train_dataloader.history if e["event"] == "epoch"] == [0, 1]
    # A checkpoint from before there was a loader of ours.
    checkpoint = torch.load(tmp_path / "ended.ckpt", weights_only=True)
    del checkpoint["augsubset"]
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
    torch.save(checkpoint, tmp_path / "plain.ckpt")
    module = Epochs()
    trainer(max_epochs=4).fit(module, ckpt_path=tmp_path / "plain.ckpt", weights_only=True)
    assert sorted(set(module.epochs)) == [(2, 2), (3, 3)]


def test_lightnings_tuner_runs_and_leaves_the_run_as_it_was(tmp_path):
    alone = Epochs()
    trainer(max_epochs=1).fit(alone)
    module = Epochs()
    tuned = trainer(max_epochs=1, default_root_dir=tmp_path)
    Tuner(tuned).lr_find(module, num_training=5, update_attr=False)
    module.seen.clear()
    tuned.fit(module)
    assert_same_batches(module.seen, alone.seen)


@pytest.mark.parametrize("name", ["overfit_batches", "reload_dataloaders_every_n_epochs"])
def test_what_lightning_would_change_in_silence_is_refused(name):
    with pytest.raises(AugsubsetError, match=f"{name} must be 0, got 1: "):
        trainer(**{name: 1}).fit(Epochs())


def test_without_the_callback_a_run_cannot_be_resumed(tmp_path, caplog):
    def fit(**options):
        plain = trainer(max_epochs=1, callbacks=[])
        plain.fit(Epochs(), **options)
        return plain

    with caplog.at_level("WARNING", "augsubset"):
        fit().save_checkpoint(tmp_path / "ended.ckpt")
    assert "no SubsetAugmentCallback" in caplog.text
    with pytest.raises(AugsubsetError, match=r"must have a SubsetAugmentCallback .* to resume"):
        fit(ckpt_path=tmp_path / "ended.ckpt", weights_only=True)


def test_lightnings_helper_needs_a_trainer():
    arguments = DataLoader(DATA, 8), make_model(), RandomOps.paper()
    with pytest.raises(TypeError, match="must be a lightning Trainer, got NoneType"):
        lightning.prepare(None, *arguments)
    with pytest.raises(TypeError, match="must be a lightning Trainer, got the class Trainer"):
        lightning.prepare(L.Trainer, *arguments)


def test_lightning_without_our_loader_is_refused():
    class Plain(Module):
        def train_dataloader(self):
            return DataLoader(TensorDataset(X.float(), torch.arange(N) % 3, torch.ones(N)), 8)

    with pytest.raises(AugsubsetError, match="must return a SubsetAugmentLoader, got DataLoader"):
        trainer().fit(Plain())


def test_a_loader_that_does_not_know_of_lightnings_ranks_is_refused():
    class Elsewhere(Module):
        def train_dataloader(self):
            sampler = DistributedSampler(DATA, num_replicas=2, rank=0)
            loader = DataLoader(DATA, batch_size=8, sampler=sampler)
            return SubsetAugmentLoader(loader, self, RandomOps.paper())

    reason = r"Trainer's 1 shards, got one for 2\. Construct it in train_dataloader\(\)"
    with pytest.raises(AugsubsetError, match=reason):
        trainer().fit(Elsewhere())


def test_lightning_says_how_many_share_the_data_and_which_share_is_whose():
    """Under tensor parallelism fewer than there are ranks."""
    loader = DataLoader(DATA, batch_size=8, shuffle=True, drop_last=True)
    shares = SimpleNamespace(
        distributed_sampler_kwargs={"num_replicas": 2, "rank": 1},
        callbacks=[SubsetAugmentCallback()],
    )
    sampler = lightning.prepare(shares, loader, make_model(), RandomOps.paper()).row_sampler
    assert (sampler.num_replicas, sampler.rank) == (2, 1)
    assert (sampler.plan.shuffle, sampler.drop_last) == (True, True)
    own = DataLoader(DATA, batch_size=8, sampler=DistributedSampler(DATA, 4, 3))
    sampler = lightning.prepare(shares, own, make_model(), RandomOps.paper()).row_sampler
    assert (sampler.num_replicas, sampler.rank) == (4, 3)
    with pytest.raises(TypeError, match="must be a torch DataLoader, got list"):
        lightning.prepare(shares, [], make_model(), RandomOps.paper())


# Hugging Face's Trainer.


class Scores(nn.Module):
    """A model as the Trainer wants it: a dict in, loss and logits out."""

    def __init__(self):
        super().__init__()
        self.net = make_model()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class RecordingTrainer(Trainer):
    """Collects what the loop got."""

    def __init__(self, *arguments, kind, **options):
        super().__init__(*arguments, **options)
        self.kind = kind

    def get_train_dataloader(self):
        probe = GradientProbe(self.model, forward=lambda model, x: model.net(x))
        items = [{"x": X[i], "labels": i % 3} for i in range(N)]
        loader = DataLoader(items, batch_size=8, shuffle=True)
        self.seen = []
        options = {**OPTIONS, "probe": probe, "batch": BatchSpec(whole=True), **self.kind}
        return SubsetAugmentLoader(loader, self.model, RandomOps.paper(), **options)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch, *w = inputs if isinstance(inputs, tuple) else (inputs,)
        self.seen.append(tuple(part.clone() for part in (batch["x"], batch["labels"], *w)))
        outputs = model(**batch)
        if not w:
            return outputs["loss"]
        losses = F.cross_entropy(outputs["logits"], batch["labels"], reduction="none")
        return weighted_loss(losses, *w)


def trained(
    folder,
    *,
    callback=None,
    accumulate=1,
    skip=True,
    resume=None,
    stop=None,
    save="steps",
    kind=None,
):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=3,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        gradient_accumulation_steps=accumulate,
        save_strategy=save,
        save_steps=1000 if stop is None else stop,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ignore_data_skip=skip,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop = state.global_step == stop

    callback = HuggingFaceCallback() if callback is None else callback
    callbacks = [callback, Stop()]
    trainer = RecordingTrainer(Scores(), arguments, callbacks=callbacks, kind=kind or {})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


USUAL = ("mixed", "all", "uniform")


@pytest.mark.parametrize(
    ("layout", "originals", "weights"),
    [pytest.param(*each, marks=() if each == USUAL else pytest.mark.slow) for each in KINDS],
)
def test_the_trainer_resumes_after_any_batch(tmp_path, layout, originals, weights):
    chosen = kind(layout, originals, weights)
    whole = trained(tmp_path / "whole", kind=chosen)
    assert len(whole.seen[0]) == (3 if weights in ("cluster", "unscaled") else 2)
    length = len(whole.seen) // 3
    for stop in (1, length, length + 2):
        folder = tmp_path / str(stop)
        first = trained(folder, stop=stop, kind=chosen)
        assert len(first.seen) == stop
        again = trained(folder, resume=True, kind=chosen)
        assert_same_batches([*first.seen, *again.seen], whole.seen)
        for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_checkpoint_after_the_trainer_broke_off_an_epoch_goes_on_in_it(tmp_path):
    """It saves at the end of an epoch, which ``should_training_stop`` cut short."""
    whole = trained(tmp_path / "whole")
    stop = len(whole.seen) // 3 + 2
    first = trained(tmp_path / "cut", stop=stop, save="epoch")
    assert len(first.seen) == stop
    again = trained(tmp_path / "cut", resume=True)
    assert_same_batches([*first.seen, *again.seen], whole.seen)


def test_a_trainer_that_could_not_resume_exactly_is_refused(tmp_path):
    with pytest.raises(AugsubsetError, match="must have ignore_data_skip=True"):
        trained(tmp_path, skip=False)
    with pytest.raises(AugsubsetError, match="must divide the epoch's 7 batches, got 4"):
        trained(tmp_path, accumulate=4)
    trained(tmp_path, stop=1)
    (tmp_path / "checkpoint-1" / "augsubset.ckpt").rename(tmp_path / "augsubset.ckpt")
    with pytest.raises(AugsubsetError, match=r"must hold .* state, got no .*checkpoint-1"):
        trained(tmp_path, resume=True)
    moved = HuggingFaceCallback(resume_from=tmp_path)
    assert len(trained(tmp_path, callback=moved, resume=True).seen) == 3 * 7 - 1

    class Plain(RecordingTrainer):
        def get_train_dataloader(self):
            return DataLoader([{"x": torch.rand(3, 6, 6), "labels": 0}])

    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    with pytest.raises(AugsubsetError, match="must return a SubsetAugmentLoader, got DataLoader"):
        Plain(Scores(), arguments, callbacks=[HuggingFaceCallback()], kind={}).train()


def test_a_trainer_that_knows_of_other_ranks_than_the_loader_is_refused():
    """On processors it makes no group without use_cpu=True, and the loader shards all the same."""
    of_two = DataLoader(DATA, 8, sampler=DistributedSampler(DATA, 2, 0))
    loader = SubsetAugmentLoader(of_two, make_model(), RandomOps.paper())
    config = SimpleNamespace(split_batches=False, dispatch_batches=None)
    arguments = SimpleNamespace(
        world_size=1,
        ignore_data_skip=True,
        gradient_accumulation_steps=1,
        accelerator_config=config,
    )
    with pytest.raises(AugsubsetError, match="for the Trainer's 1 ranks, got one for 2"):
        HuggingFaceCallback().on_train_begin(
            arguments, SimpleNamespace(global_step=0), None, train_dataloader=loader
        )
    arguments.world_size = 2
    HuggingFaceCallback().on_train_begin(
        arguments, SimpleNamespace(global_step=0), None, train_dataloader=loader
    )
    for name in ("split_batches", "dispatch_batches"):
        arguments.accelerator_config = SimpleNamespace(**{**vars(config), name: True})
        with pytest.raises(AugsubsetError, match="neither split_batches nor dispatch_batches"):
            HuggingFaceCallback().on_train_begin(
                arguments, SimpleNamespace(global_step=0), None, train_dataloader=loader
            )


# TensorBoard.


def test_tensorboard_gets_the_numbers_of_each_event(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    class Writer:
        def __init__(self):
            self.scalars = {}

        def add_scalar(self, tag, value, step):
            self.scalars[tag, step] = value

    writer = Writer()
    loader = make(on_event=TensorBoardEvents(writer))
    list(loader)
    certificate = loader.selection.certificate
    assert writer.scalars["augsubset/selection/error", 0] == certificate.error
    assert writer.scalars["augsubset/epoch/num_rows", 0] == N + 16
    assert ("augsubset/selection/digest", 0) not in writer.scalars
    with SummaryWriter(tmp_path) as real:
        list(make(on_event=TensorBoardEvents(real)))
    assert list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="writer must have add_scalar, got int"):
        TensorBoardEvents(3)
