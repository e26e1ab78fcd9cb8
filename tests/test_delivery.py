"""A batch in one launch: bit-identical to policies and normalisation in turn, and little else."""

import itertools
import weakref
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from augsubset import BatchSpec, CropFlip, Op, RandomOps, RowKeys, delivery
from augsubset.augment import OPS
from augsubset.augment.plan import COUNT, KERNELS, SOURCE, count_columns
from augsubset.delivery import list_tables, plan_batch
from augsubset.normalization import Normalization
from augsubset.pipeline import BatchPipeline
from augsubset.sampling import ResidentRows, TensorBatches
from augsubset.sampling.keys import FIRST_REPEAT, LAST_FILLER, PADDING, pack
from augsubset.utils import torch_utils
from augsubset.utils.torch_utils import keep_if_captured, to_device_async
from benchmarks.augmentation import CountCalls
from tests.fake_cuda import DEVICE, fake_cuda, needs_compiler
from tests.stand_in import StandInDevice

CPU, GPU = torch.device("cpu"), torch.device("cuda")
POLICIES = {
    "paper": RandomOps.paper(),
    "every op": RandomOps(tuple(OPS), 3, every=2),
    "rarely": RandomOps(probability=0.3),
    # Weights of this width add up to more than 1, in the last bit.
    "one": RandomOps({"blur": OPS["gaussian_blur"].between(0.64, 0.64)}, 1),
    "autoaugment": RandomOps.autoaugment("cifar10"),
}
BASES = {
    "none": None,
    "crop": CropFlip(3, flip=0.3, every=3),
    "far": CropFlip(40),
    "flip": CropFlip(0),
    "reflect": CropFlip(2, padding_mode="reflect"),
}
# Copy numbers of originals, copies, repeated originals, fillers and padding.
COPIES = (0, 1, 2, 0, FIRST_REPEAT, LAST_FILLER, PADDING, 3)


def statistics(channels):
    return [0.4, 0.0, 1.0][:channels], [0.2, 1e-6, 0.7][:channels]


def make_batch(count, channels, height, width, is_byte, seed=0):
    x = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))
    x[::2] = (x[::2] * 4096).round() / 4096  # ties of float16
    x[1] *= 1e-6  # subnormal as float16
    x[2::8] = 1  # a blurred copy exceeds it
    x = (x * 255).round().to(torch.uint8) if is_byte else x
    copy = torch.tensor(COPIES).repeat(-(-count // len(COPIES)))[:count]
    keys = pack(5, copy, torch.arange(count) * 1_000_003)
    return (x, torch.arange(count) % 10), keys, torch.rand(count)


def make_pipeline(augment, base=None, spec=None, **normalization):
    given = {"normalize": None, "denormalize": None, **normalization}
    spec = BatchSpec() if spec is None else spec
    return BatchPipeline(spec, Normalization(**given), augment, base, seed=7, owns_batches=False)


def as_bits(x):
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def take_back(x):
    """Return a tensor of either device on the CPU."""
    return getattr(x, "inner", x).cpu()


def assert_same(found, expected):
    for mine, other in zip(found.output, expected.output, strict=True):
        assert mine.device.type != "cpu"
        assert mine.dtype == other.dtype
        assert torch.equal(take_back(mine), other)
    formats = torch.contiguous_format, torch.channels_last
    for layout in formats:
        found_as, expected_as = (
            x.output[0].is_contiguous(memory_format=layout) for x in (found, expected)
        )
        assert found_as == expected_as
    assert torch.equal(as_bits(take_back(found.output[0])), as_bits(expected.output[0]))


@needs_compiler
@given(
    augment=st.sampled_from(sorted(POLICIES)),
    base=st.sampled_from(sorted(BASES)),
    count=st.integers(2, 24),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    is_byte=st.booleans(),
    is_normalised=st.booleans(),
    dtype=st.sampled_from([None, torch.float32, torch.float16, torch.bfloat16]),
    channels_last=st.booleans(),
)
@example("paper", "crop", 64, 3, (32, 32), True, True, None, False)
@example("paper", "reflect", 64, 3, (32, 32), False, True, torch.float16, True)
@example("one", "none", 16, 1, (9, 7), False, False, None, False)
@example("every op", "far", 40, 3, (8, 30), True, False, torch.bfloat16, True)
def test_a_batch_in_one_launch_is_that_of_policies_and_normalisation_in_turn(
    augment, base, count, channels, size, is_byte, is_normalised, dtype, channels_last
):
    batch, keys, weights = make_batch(count, channels, *size, is_byte)
    given = {"normalize": statistics(channels)} if is_normalised else {}
    pipeline = make_pipeline(
        POLICIES[augment],
        BASES[base],
        BatchSpec(return_index=True),
        channels_last=channels_last,
        dtype=dtype,
        **given,
    )
    loops, pipeline.loops = pipeline.loops, None
    before = batch[0].clone()
    expected = pipeline.process(batch, keys, weights, CPU)
    pipeline.loops = loops
    fails = {"side_effect": AssertionError("a policy plans")}
    with patch.object(RandomOps, "_plan", **fails), patch.object(CropFlip, "__call__", **fails):
        planned_at_once = pipeline.process(batch, keys, weights, CPU)
    assert torch.equal(as_bits(planned_at_once.output[0]), as_bits(expected.output[0]))
    assert planned_at_once.num_copies == expected.num_copies
    assert torch.equal(batch[0], before)
    with fake_cuda() as driver:
        found = pipeline.process(batch, keys, weights, DEVICE)
        assert_same(found, expected)
    assert driver.launches == ["deliver_rows"]
    assert torch.equal(batch[0], before)
    assert torch.equal(found.originals, expected.originals)
    assert found.num_copies == expected.num_copies > 0
    assert POLICIES[augment].engine_name == "one launch"


class CountCopies(TorchDispatchMode):
    """Count copies between devices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.count += args[0].device != result.device
        return result


@needs_compiler
@pytest.mark.parametrize("is_byte", [True, False])
@pytest.mark.parametrize("count", [63, 64])
@pytest.mark.parametrize("labels", ["classes", "soft", "bools"])
def test_a_batch_takes_two_copies_one_launch_and_few_calls(is_byte, count, labels):
    (x, y), keys, weights = make_batch(count, 3, 16, 16, is_byte)
    one_hot = torch.nn.functional.one_hot(y)
    batch = x, {"classes": y, "soft": one_hot.float(), "bools": one_hot > 0}[labels]
    spec = BatchSpec(return_index=True)
    fused = make_pipeline(POLICIES["paper"], CropFlip(), spec, normalize=statistics(3))
    general = make_pipeline(POLICIES["paper"], lambda x, rows: x, spec, normalize=statistics(3))
    found = {}
    with fake_cuda() as driver:
        for name, pipeline in (("fused", fused), ("general", general)):
            pipeline.process(batch, keys, weights, DEVICE)  # loads the code
            driver.launches.clear()
            with CountCopies() as copies, CountCalls() as calls:
                made = pipeline.process(batch, keys, weights, DEVICE)
                assert made.num_copies > 0
            found[name] = copies.count, len(driver.launches), calls.count
        with patch.object(CountCalls, "VIEWS", frozenset()), CountCalls() as with_views:
            fused.process(batch, keys, weights, DEVICE)
    copies, launches, calls = found["fused"]
    assert copies == 2
    assert launches == 1
    assert calls <= with_views.count <= 12
    assert found["general"][0] > copies
    assert found["general"][1] == 1  # the policy's
    assert found["general"][2] > 2 * calls


def test_weights_may_be_changed_in_place_while_autograd_holds_the_labels():
    (x, labels), keys, weights = make_batch(16, 3, 8, 8, True)
    made = delivery.Delivery.make(POLICIES["paper"], CropFlip(), Normalization(None, None))
    given = {"labels": labels, "weights": weights.numpy(), "with_index": True}
    y, w, index = made.stage(x, keys.numpy(), (0, 1), CPU, **given).parts
    logits = torch.zeros(16, 10, requires_grad=True)
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    w /= w.sum()
    index += 1
    (losses * w).sum().backward()
    assert torch.equal(y, labels)
    assert torch.equal(w, weights / weights.sum())
    assert torch.equal(index, torch.arange(16) * 1_000_003 + 1)


@needs_compiler
def test_images_that_are_on_the_device_are_not_copied():
    batch, keys, _ = make_batch(16, 3, 8, 8, True)
    pipeline = make_pipeline(POLICIES["paper"], CropFlip())
    expected = pipeline.process(batch, keys, None, CPU)
    with fake_cuda():
        there = batch[0].to(DEVICE), batch[1]
        assert_same(pipeline.process(there, keys, None, DEVICE), expected)
        with CountCopies() as copies:
            pipeline.process(there, keys, None, DEVICE)
    assert copies.count == 1


@needs_compiler
def test_resident_images_are_found_by_index_and_never_gathered():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 9, 8, 3), generator=generator, dtype=torch.uint8)
    data = TensorBatches(TensorDataset(images.permute(0, 3, 1, 2), torch.arange(50)), resident=True)
    keys = pack(2, torch.tensor([0, 1, 2, 3] * 4), torch.randperm(50, generator=generator)[:16])
    pipeline = make_pipeline(POLICIES["paper"], CropFlip(), normalize=statistics(3))
    expected = pipeline.process(*data.__getitems__(keys.tolist()), None, CPU)
    with fake_cuda() as driver:
        data.to(DEVICE)
        batch, _ = data.__getitems__(keys.tolist())
        assert type(batch[0]) is ResidentRows
        pipeline.process(batch, keys, None, DEVICE)  # loads the code
        driver.launches.clear()
        with CountCopies() as copies, CountCalls() as calls:
            found = pipeline.process(batch, keys, None, DEVICE)
        assert_same(found, expected)
    assert (copies.count, driver.launches) == (1, ["deliver_rows"])
    assert calls.count <= 6
    assert batch[0]._gathered is None


@needs_compiler
def test_resident_images_go_the_general_way_gathered_once():
    x, y = images = make_batch(20, 3, 6, 5, True)[0]
    data = TensorBatches(TensorDataset(x, y), resident=True)
    keys = pack(1, torch.tensor([0, 1] * 6), torch.arange(12) + 7)
    pipeline = make_pipeline(RandomOps.augmix(), CropFlip())
    expected = pipeline.process(*data.__getitems__(keys.tolist()), None, CPU)
    with fake_cuda() as driver:
        data.to(DEVICE)
        batch, _ = data.__getitems__(keys.tolist())
        assert (batch[0].shape, batch[0].dtype, batch[0].device) == ((12, 3, 6, 5), x.dtype, DEVICE)
        assert_same(pipeline.process(batch, keys, None, DEVICE), expected)
        assert batch[0].gather_rows() is batch[0].gather_rows()
    assert driver.launches == ["augment_rows"]
    assert torch.equal(x, images[0])


def test_a_plan_points_into_data_of_any_size():
    policy, base = POLICIES["paper"], CropFlip()
    tables = policy.tables
    index = torch.tensor([0, 7, 2**31 - 1, 2**31, 2**33 + 5, 2**36 - 1])
    lines = np.zeros((6, count_columns(tables.num_slots, tables.num_params)), np.int32)
    nothing = np.empty(0, np.int64), *[np.empty(0, np.float32)] * 2
    given = (0, 0), list_tables(policy, base), (8, 8), lines, *nothing
    plan_batch(pack(1, 1, index).numpy(), *given, is_byte=True, is_resident=True)
    assert lines[:, :2].copy().view(np.int64)[:, 0].tolist() == index.tolist()
    plan_batch(pack(1, 1, index).numpy(), *given, is_byte=True, is_resident=False)
    assert lines[:, :2].copy().view(np.int64)[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize("name", ["paper", "every op", "autoaugment"])
def test_blocks_of_a_plan_hold_what_each_row_gets_alone(name):
    policy, crop = POLICIES[name], CropFlip(2)
    keys = pack(3, torch.arange(600) % 3 % 2, torch.arange(600) * 7).numpy()
    width = count_columns(policy.tables.num_slots, policy.tables.num_params)
    given = (1, 2), list_tables(policy, crop), (9, 8)

    def plan(keys):
        lines = np.zeros((len(keys), width), np.int32)
        nothing = np.empty(0, np.int64), *[np.empty(0, np.float32)] * 2
        return plan_batch(keys, *given, lines, *nothing, is_byte=True, is_resident=False), lines

    num_copies, together = plan(keys)
    alone = [plan(keys[i : i + 1]) for i in range(600)]
    assert num_copies == sum(count for count, _ in alone) == 200
    assert np.array_equal(together[:, SOURCE], np.arange(600))
    rows = np.concatenate([line for _, line in alone])
    for i in range(600):  # what lies behind a row's operations is not read
        first, count = KERNELS + policy.tables.num_slots, rows[i, COUNT]
        params = range(first, first + count * policy.tables.num_params)
        used = [*range(COUNT, KERNELS + count), *params]
        assert np.array_equal(together[i, used], rows[i, used])


@needs_compiler
def test_labels_of_any_dtype_go_along():
    (x, _), keys, weights = make_batch(6, 3, 8, 8, True)
    pipeline = make_pipeline(POLICIES["paper"])
    for labels in (
        torch.rand(6, dtype=torch.complex128),
        torch.rand(12)[::2],
        torch.rand(6, 4).bfloat16(),
        torch.rand(6) < 0.5,
        torch.rand(4, 6).T,
        torch.zeros(6, 0),
        torch.rand(6, requires_grad=True),
        torch.rand(6, 2).to_sparse(),
        torch.rand(6, 3, dtype=torch.complex64).conj(),
        torch._neg_view(torch.rand(6)),  # as the imaginary parts of conjugates
        [{"box": torch.rand(2)} for _ in range(6)],
    ):
        expected = pipeline.process((x, labels), keys, None, CPU).output[1]
        with fake_cuda() as driver:
            found = pipeline.process((x, labels), keys, weights, DEVICE).output[1]
        assert driver.launches == ["deliver_rows"]
        if isinstance(labels, list):
            for mine, other in zip(found, expected, strict=True):
                assert torch.equal(mine["box"].inner, other["box"])
        else:
            assert torch.equal(found.inner.to_dense(), expected.to_dense())


GENERAL = {
    "a policy of the user's own": {"augment": lambda x, rows: x},
    "an operation of the user's own": {"augment": RandomOps({"mine": Op(lambda x, _: 1 - x)}, 1)},
    "a mixture": {"augment": RandomOps.augmix()},
    "another base": {"base": RandomOps(["crop"], 1)},
    "a dataset that normalises": {"denormalize": ([0.0] * 3, [1.0] * 3)},
    "the batch's own structure": {"spec": BatchSpec(whole=True)},
    "masks": {"spec": BatchSpec(others=[1])},
    "doubles": {"dtype": torch.float64},
    "a dtype of the images": {"images": torch.float64},
}


@needs_compiler
@pytest.mark.parametrize("name", GENERAL)
def test_all_else_takes_the_general_path(name):
    given = {"augment": POLICIES["paper"], **GENERAL[name]}
    (x, _), keys, _ = make_batch(12, 3, 8, 8, False)
    x = x.to(given.pop("images", torch.float32))
    y = torch.arange(12 * 64).view(12, 8, 8) % 5 if name == "masks" else torch.arange(12)
    pipeline = make_pipeline(**given)
    expected = pipeline.process((x, y), keys, None, CPU).inputs
    with fake_cuda() as driver:
        found = pipeline.process((x, y), keys, None, DEVICE).inputs
    assert "deliver_rows" not in driver.launches
    assert torch.equal(found.inner, expected)


@pytest.mark.parametrize("device", [CPU, DEVICE])
@pytest.mark.parametrize("count", [5, 7])
def test_each_image_needs_a_key(device, count):
    batch, _, _ = make_batch(6, 3, 8, 8, True)
    with fake_cuda(), pytest.raises(ValueError, match=f"one entry per image, 6, got {count}"):
        make_pipeline(POLICIES["paper"]).process(
            batch, pack(0, 1, torch.arange(count)), None, device
        )


def test_what_a_policy_refuses_it_refuses_on_the_device():
    (x, y), keys, _ = make_batch(6, 2, 8, 8, True)
    with fake_cuda(), pytest.raises(ValueError, match="channels"):
        make_pipeline(POLICIES["paper"]).process((x, y), keys, None, DEVICE)
    (x, y), keys, _ = make_batch(6, 3, 8, 8, True)
    base = CropFlip(8, padding_mode="reflect")
    with fake_cuda(), pytest.raises(ValueError, match="padding must be smaller"):
        make_pipeline(POLICIES["paper"], base).process((x, y), keys, None, DEVICE)


MUTANTS = {
    "halves to even": ("+ ((bits >> 13) & 1u)", ""),
    "subnormals": ("rintf(fabsf(value)", "floorf(fabsf(value)"),
    "bfloat16": ("0x7fffu + ", "0x8000u + "),
    "mirrored": ("width - 1 - x", "width - 2 - x"),
    "outside": ("y < height && x >= 0", "y <= height && x >= 0"),
    "reflected": ("y = mirror(y, height)", "y = mirror(y, width)"),
    "shift": ("a.statistics[CHANNELS + c];\n    if", "a.statistics[c];\n    if"),
    "layout": ("i * CHANNELS + c", "c * size + i"),
    "clamped copies": ("PIXEL_IS_BYTE && count == 0", "PIXEL_IS_BYTE"),
    "clamped floats": ("scratch[1][i] = clamp_to_pixel((float)from[i])", "scratch[1][i] = from[i]"),
    "buffers": ("scratch[slot % 2]", "scratch[0]"),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name):
    reach = {"dtype": torch.bfloat16 if name == "bfloat16" else torch.float16}
    reach["channels_last"] = name == "layout"
    ways = itertools.product((True, False), BASES, ("every op", "one"), ("float32", "half", "norm"))

    def is_wrong(is_byte, base, augment, way):
        batch, keys, _ = make_batch(40, 3, 12, 7, is_byte)
        batch[0][:4] *= 1 if is_byte else 1.0002  # rounding that is clamped
        options = {} if way == "float32" else reach
        options = {**reach, "normalize": statistics(3)} if way == "norm" else options
        pipeline = make_pipeline(POLICIES[augment], BASES[base], **options)
        expected = pipeline.process(batch, keys, None, CPU).inputs
        with fake_cuda(MUTANTS[name]):
            found = pipeline.process(batch, keys, None, DEVICE).inputs
        return not torch.equal(found.inner, expected)

    assert any(is_wrong(*way) for way in ways)


def test_bytes_are_divided_on_the_device_as_on_the_cpu():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pipeline = make_pipeline(POLICIES["paper"])
    with StandInDevice(inverts=True):
        there = x.to(DEVICE)
        assert torch.equal(pipeline.preprocess(x, DEVICE).inner, pipeline.preprocess(x, CPU))
        assert not torch.equal((there / 255).inner, x / 255)  # as CUDA divides by a number


@needs_compiler
def test_what_a_graph_copies_at_each_replay_is_kept(monkeypatch):
    batch, keys, weights = make_batch(16, 3, 8, 8, True)
    pipeline = make_pipeline(POLICIES["paper"])
    copied = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(copied))

    def keep(pinned, device):
        copied.append(weakref.ref(pinned))
        return keep_if_captured(pinned, GPU)

    monkeypatch.setattr(delivery, "keep_if_captured", keep)
    with fake_cuda():
        pipeline.process(batch, keys, weights, DEVICE)
    assert copied[0]() is not None
    copied.clear()
    values = torch.zeros(3)
    freed = weakref.ref(keep_if_captured(values, GPU))
    del values
    assert freed() is None


def test_what_is_pinned_for_a_copy_is_kept_for_a_graph(monkeypatch):
    values, kept = torch.arange(3), []

    def keep(pinned, device):
        kept.append(pinned)
        return SimpleNamespace(to=lambda device, non_blocking: pinned)

    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch_utils, "keep_if_captured", keep)
    assert to_device_async(values, GPU) is kept[0]
    assert kept[0] is not values


# With a GPU: `make test-gpu`.


@pytest.mark.cuda
@pytest.mark.parametrize("base", [CropFlip(3), lambda x, rows: x], ids=["one launch", "in turn"])
def test_on_a_gpu_a_graph_replays_the_batch_that_it_captured(base):
    batch, keys, weights = make_batch(64, 3, 32, 32, True)
    pipeline = make_pipeline(POLICIES["paper"], base)
    expected = pipeline.process(batch, keys, weights, CPU)
    pipeline.process(batch, keys, weights, GPU)  # loads the code
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = pipeline.process(batch, keys, weights, GPU)
    for part in found.output:
        part.zero_()
    for size in (64, 64 * 20, 3 * 64 * 32 * 32):  # takes memory that nobody holds
        torch.full((size,), 99, dtype=torch.uint8).pin_memory()
    graph.replay()
    assert_same(found, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("is_byte", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_on_a_gpu_a_batch_is_that_of_the_cpu(base, is_byte, channels_last, dtype):
    for augment, (count, size) in itertools.product(POLICIES, ((256, 32), (8, 224))):
        batch, keys, weights = make_batch(count, 3, size, size, is_byte)
        options = {"normalize": statistics(3), "channels_last": channels_last, "dtype": dtype}
        spec = BatchSpec(return_index=True)
        pipeline = make_pipeline(POLICIES[augment], BASES[base], spec, **options)
        expected = pipeline.process(batch, keys, weights, CPU)
        found = pipeline.process(batch, keys, weights, GPU)
        assert POLICIES[augment].engine_name == "one launch"
        assert_same(found, expected)


@pytest.mark.cuda
@pytest.mark.parametrize("is_byte", [False, True])
def test_under_a_sanitizer(is_byte):
    """Every operation, alone and delivered, on few rows: compute-sanitizer takes its time."""
    batch, keys, weights = make_batch(40, 3, 33, 25, is_byte)
    rows = RowKeys(7, 5, torch.arange(40), 1)
    policy = POLICIES["every op"]
    assert torch.equal(take_back(policy(batch[0].to(GPU), rows)), policy(batch[0], rows))
    pipeline = make_pipeline(policy, BASES["reflect"])
    expected = pipeline.process(batch, keys, weights, CPU)
    assert_same(pipeline.process(batch, keys, weights, GPU), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("augment", ["paper", "augmix"])
def test_on_a_gpu_resident_images_are_those_of_the_cpu(augment):
    policy = RandomOps.augmix() if augment == "augmix" else POLICIES[augment]
    (x, y), _, _ = make_batch(50, 3, 32, 32, True)
    data = TensorBatches(TensorDataset(x, y), resident=True)
    keys = pack(2, torch.tensor([0, 1] * 16), torch.arange(32) + 9)
    pipeline = make_pipeline(policy, CropFlip())
    expected = pipeline.process(*data.__getitems__(keys.tolist()), None, CPU)
    data.to(GPU)
    assert_same(pipeline.process(*data.__getitems__(keys.tolist()), None, GPU), expected)
