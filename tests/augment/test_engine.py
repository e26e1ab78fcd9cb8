"""The engine: which kernels run, how often and on which rows, eager and compiled."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from augsubset import CropFlip, LoaderOptions, Op, RandomOps, RowKeys, SubsetAugmentLoader
from augsubset.augment import OPS
from augsubset.augment.engine import Engine
from augsubset.augment.ops import select_ops
from augsubset.delivery import Loops
from augsubset.sampling.keys import pack
from benchmarks.augmentation import by_kernels, calls_of


def images(count, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def keys(count, epoch=0):
    return RowKeys(0, epoch, torch.arange(count), 1)


class Recording:
    """A user's function that records how many rows it gets, and marks them."""

    def __init__(self, mark):
        self.mark = mark
        self.rows = []

    def __call__(self, x, _):
        self.rows.append(len(x))
        return x + self.mark / 255


def test_each_kernel_runs_once_per_slot_on_its_own_rows():
    kernels = [Recording(1), Recording(16)]
    policy = RandomOps({"a": Op(kernels[0]), "b": Op(kernels[1])}, 2, replacement=True)
    out = policy(torch.zeros(300, 1, 2, 2, dtype=torch.uint8), keys(300))
    assert [len(kernel.rows) for kernel in kernels] == [2, 2]
    assert sum(kernels[0].rows) + sum(kernels[1].rows) == 600
    assert sorted(out.unique().tolist()) == [2, 17, 32]
    assert int((out[:, 0, 0, 0] == 17).sum()) > 100  # rows return to their places


def test_operations_that_share_a_kernel_run_together():
    engine = Engine(select_ops("rotate", "shear_x", "translate_y", "brightness"))
    assert len(engine._kernels) == 2


def test_rows_without_an_operation_are_bit_identical():
    x = images(64)
    out = RandomOps(probability=0.3)(x, keys(64))
    untouched = (out == x).flatten(1).all(1)
    assert 20 < int(untouched.sum()) < 50  # 0.7 squared of 64, and operations too weak to show
    assert torch.equal(RandomOps(probability=0.0)(x, keys(64)), x)


def test_the_number_of_calls_does_not_grow_with_the_batch():
    policy = by_kernels()
    few, many = (calls_of(lambda n=n: policy(images(n), keys(n))) for n in (64, 512))
    assert few <= 250
    assert many <= few + 20


def small_loader(policy, **options):
    dataset = TensorDataset(images(40, 8), torch.arange(40) % 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    return SubsetAugmentLoader(DataLoader(dataset, 8, shuffle=True), model, policy, **options)


class Forbidden(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran")


def test_without_copies_in_a_batch_no_op_runs_at_all():
    loader = small_loader(RandomOps.paper())
    rows = RowKeys(0, 0, torch.arange(8), 0)
    x = images(8, 8)
    calls = calls_of(lambda: loader.pipeline.augment_copies(x, (), rows))
    assert calls <= 6  # reads the keys on the CPU
    assert loader.pipeline.augment_copies(x, (), rows)[0] is x
    none, policy = x[:0], RandomOps.paper()
    no_keys = keys(0)
    with Forbidden():
        assert policy(none, no_keys) is none
        assert CropFlip()(none, no_keys) is none


@pytest.mark.parametrize(
    ("policy", "is_planned"),
    [
        (RandomOps.paper(), True),
        (RandomOps(["rotate"], 1), True),
        (RandomOps.autoaugment("cifar10"), True),
        (RandomOps.noise(), True),
        (RandomOps.augmix(), False),
        (type("Own", (RandomOps,), {"__call__": lambda self, x, rows: x.flip(0)})(), False),
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "change",
    [torch.clone, lambda x: x / 255, lambda x: x.contiguous(memory_format=torch.channels_last)],
    ids=["bytes", "floats", "channels last"],
)
def test_copies_are_augmented_within_their_batch(policy, is_planned, in_place, change):
    x, is_copy = change(images(40, 8)), torch.arange(40) % 3 > 0
    pipeline = small_loader(policy).pipeline
    assert (pipeline.loops is not None and pipeline.loops.can_take(x)) == is_planned
    rows, base = RowKeys(7, 2, torch.arange(40), torch.arange(40) % 3), CropFlip(2)
    before = x.clone()
    if is_planned:
        keys = pack(2, rows.copy, rows.index).numpy()
        found, crops, count = Loops.make(policy, base).augment(x, keys, (7, 8), in_place)
        assert torch.equal(
            base.crop(found, crops), base(found, RowKeys(8, 2, rows.index, rows.copy))
        )
    else:
        found, _, count = pipeline.augment_copies(x, (), rows, in_place)
    assert count == is_copy.sum()
    assert (found is x) == in_place
    assert torch.equal(x, before) != in_place
    assert torch.equal(found[is_copy], policy(before[is_copy], rows[is_copy]))
    assert torch.equal(found[~is_copy], before[~is_copy])


def test_rows_are_written_over_only_where_each_has_a_key():
    loops, x = Loops.make(RandomOps.paper(), None), images(8, 8)
    before = x.clone()
    for count in (7, 9):
        with pytest.raises(ValueError, match=f"one entry per image, 8, got {count}"):
            loops.augment(x, pack(0, 1, torch.arange(count)).numpy(), (0, 0), in_place=True)
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="images must be in"):
        loops.augment(x + 0.5, pack(0, 1, torch.arange(8)).numpy(), (0, 0), in_place=True)
    assert not any(map(loops.can_take, (x.double(), x[0], x.to("meta"), [x])))
    originals = pack(0, 0, torch.arange(8)).numpy()
    assert loops.augment(x, originals, (0, 0))[0] is x
    assert torch.equal(x, before)
    two = images(8, 8)[:, :2].contiguous()
    for dtype in (torch.uint8, torch.float32):
        with pytest.raises(ValueError, match="1 or 3 channels for 'brightness'"):
            loops.augment((two / 255).to(dtype), pack(0, 1, torch.arange(8)).numpy(), (0, 0))


def test_a_planned_batch_is_augmented_without_gradients_or_autocast():
    x, rows = images(8, 8) / 255, pack(0, 1, torch.arange(8)).numpy()
    loops = Loops.make(RandomOps(["gaussian_blur"], 1), None)
    expected, _, _ = loops.augment(x, rows, (0, 0))
    assert not expected[0].equal(x[0])
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, _, _ = loops.augment(x, rows, (0, 0))
    assert torch.equal(found, expected)
    found.sum().backward()
    assert not x.grad.any()


def test_what_prepares_operations_runs_outside_autocast():
    seen = []

    def prepare(magnitude, forms, context):
        seen.append(torch.is_autocast_enabled("cpu"))
        return magnitude[:, None]

    policy = RandomOps({"own": replace(OPS["solarize"], prepare=prepare)}, 1)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        policy(images(8, 8), keys(8))
    assert policy.engine_name == "compiled loops"
    assert seen
    assert not any(seen)


def test_a_kernel_that_would_read_more_parameters_than_are_prepared_is_refused():
    short = replace(OPS["rotate"], prepare=lambda magnitude, forms, context: magnitude[:, None])
    with pytest.raises(ValueError, match="prepare of operation 'short' must return 6 parameters"):
        RandomOps({"short": short}, 1)


def test_the_loader_yields_channels_last_on_request():
    for x, _ in small_loader(RandomOps.paper(), options=LoaderOptions(channels_last=True)):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert not x.is_contiguous()
    plain = [x for x, _ in small_loader(RandomOps.paper())]
    last = [
        x for x, _ in small_loader(RandomOps.paper(), options=LoaderOptions(channels_last=True))
    ]
    assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))


def test_preprocess_is_what_training_does_to_an_original():
    statistics = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    loader = small_loader(RandomOps.paper(), normalize=statistics, originals="all", fraction=0.1)
    by_hand = images(40, 8).float() / 255
    by_hand = (by_hand - torch.tensor(statistics[0])[:, None, None]) / torch.tensor(statistics[1])[
        :, None, None
    ]
    prepared = loader.preprocess(images(40, 8))
    torch.testing.assert_close(prepared, by_hand)
    seen = {tuple(row.flatten().tolist()) for x, _ in loader for row in x}
    assert {tuple(row.flatten().tolist()) for row in prepared} <= seen
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        loader.preprocess(images(40, 8).float())


def test_preprocess_of_other_data_is_what_training_does_to_it():
    levels, unit = images(40, 8), images(40, 8).float() / 255
    plain = small_loader(RandomOps.paper())
    torch.testing.assert_close(plain.preprocess(levels), unit)
    assert torch.equal(plain.preprocess(unit), unit)
    last = small_loader(RandomOps.paper(), options=LoaderOptions(channels_last=True))
    assert torch.equal(last.preprocess(levels), plain.preprocess(levels))
    assert last.preprocess(levels).is_contiguous(memory_format=torch.channels_last)
    # A dataset that is already normalised comes back unchanged up to rounding.
    statistics = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    mean, std = (torch.tensor(part)[:, None, None] for part in statistics)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    dataset = TensorDataset((unit - mean) / std, torch.arange(40) % 4)
    normalised = SubsetAugmentLoader(
        DataLoader(dataset, 8), model, RandomOps.paper(), denormalize=statistics
    )
    seen = normalised.preprocess(dataset.tensors[0])
    torch.testing.assert_close(seen, dataset.tensors[0], atol=1e-5, rtol=1e-5)


EVERY_OP = partial(RandomOps, tuple(OPS), 2, replacement=True)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "unit"), [(EVERY_OP, False), (RandomOps.augmix, True)])
def test_compiled_kernels_are_compiled_once_for_any_number_of_rows(policy, unit):
    compiled, eager = policy(compiled=True), policy()
    x = images(600) / 255 if unit else images(600)
    compiled(x, keys(600))
    torch.compiler.set_stance("fail_on_recompile")
    try:
        for count in (1, 2, 3, 7, 32, 64, 151, 300):
            rows = keys(count, epoch=count)
            found, expected = compiled(x[:count], rows), eager(x[:count], rows)
            difference = (found.float() - expected.float()).abs() * (255 if unit else 1)
            assert float((difference <= 1.001).float().mean()) > 0.97
        # A row's result does not depend on the rest of the batch, compiled or not.
        rows = keys(600)
        together = compiled(x, rows)
        order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
        parts = [compiled(x[part], rows[part]) for part in order.split([1, 6, 93, 500])]
        assert torch.equal(torch.cat(parts), together[order])
    finally:
        torch.compiler.set_stance("default")
        torch.compiler.reset()


def test_a_users_operation_that_fails_is_named():
    def halved(x, magnitude):
        return x[:, :, ::2]

    policy = RandomOps({"halved": Op(halved), "rotate": OPS["rotate"].between(0, 10)})
    x = torch.rand(5, 3, 8, 8)
    with pytest.raises(ValueError, match="ops must keep the shape") as caught:
        policy(x, RowKeys(0, 0, torch.arange(5), 1))
    (note,) = caught.value.__notes__
    assert note.startswith("Raised by operation 'halved' on images (")
