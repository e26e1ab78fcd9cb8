"""One launch on a GPU, run in software: the CPU's bits, and how it is loaded and launched."""

import ctypes
import logging
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import call, patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from augsubset import Op, RandomOps, RowKeys
from augsubset.augment import OPS
from augsubset.augment.device import compiler, launch
from augsubset.augment.draws import OpDraws
from augsubset.augment.engine import Engine
from augsubset.augment.ops import select_ops
from tests.fake_cuda import DEVICE, STREAM, build, fake_cuda, needs_compiler
from tests.stand_in import StandInDevice

POLICIES = {
    "paper": RandomOps.paper(),
    "wu2020": RandomOps.wu2020(every=3),
    "randaugment": RandomOps.randaugment(25),
    "trivial": RandomOps.trivial(),
    "autoaugment": RandomOps.autoaugment("svhn"),
    "augmix": RandomOps.augmix(),
    "cutout": RandomOps.cutout(fill=(0.1, 0.9, 0.5)),
    "noise": RandomOps.noise(),
    "rarely": RandomOps(probability=0.2),
    "every op": RandomOps(tuple(OPS), 3),
}
DTYPES = [torch.uint8, torch.float32]
GPU = torch.device("cuda")


def images(count, channels, height, width, dtype, seed=0):
    """Images in turn random, smooth, of few levels, and constant; bytes and floats at their ends.

    Floats are multiples of 1/255 or of 1/16, where rounding has ties, or anything; zeros have
    either sign.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, channels, height, width, generator=generator)
    x[1::4] = torch.linspace(0, 1, x[0].numel()).view_as(x[0])
    x[2::4] = (x[2::4] * 3).round() / 3
    x[3::4] = x[3::4, :1, :1, :1].round()
    if dtype == torch.uint8:
        return (x * 255).round().to(torch.uint8)
    x[::3] = (x[::3] * 255).round() / 255
    x[1::3] = (x[1::3] * 16).round() / 16
    x[(x == 0) & (torch.rand(x.shape, generator=generator) < 0.5)] = -0.0
    return x


def as_bits(x):
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def differing(found, expected):
    """Return how many values differ in a bit."""
    found = getattr(found, "inner", found).cpu()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    return int((as_bits(found) != as_bits(expected)).sum())


def run_op(name, x, where=lambda x: x):
    """Run one operation at magnitudes over its range, one for each image."""
    op, count = OPS[name], len(x)
    magnitude = np.linspace(op.low, op.high, count, dtype=np.float32)
    magnitude = np.round(magnitude) if op.integral else magnitude
    spare = np.random.default_rng(0).random((count, 1, 2)).astype(np.float32)
    draws = OpDraws(np.zeros((count, 1), np.int64), magnitude[:, None], spare)
    return Engine(select_ops(name))(where(x), draws)


def count_differences(dtype, channels, sizes, device=DEVICE, count=16):
    """Return values that differ by operation, where any do."""
    found = {}
    for name in OPS:
        if channels not in (OPS[name].channels or (channels,)):
            continue
        for size in sizes:
            x = images(count, channels, *size, dtype)
            on_device = run_op(name, x, lambda x: x.to(device))
            if wrong := differing(on_device, run_op(name, x)):
                found[name, size] = wrong
    return found


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_operation_has_the_bits_of_the_cpu(dtype, channels):
    sizes = [(1, 1), (2, 3), (7, 5), (33, 25)]
    with fake_cuda() as driver:
        assert count_differences(dtype, channels, sizes) == {}
    assert len(driver.launches) >= 20 * len(sizes)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lanes", [None, pytest.param(1024, marks=pytest.mark.slow), 1])
def test_the_number_of_lanes_changes_nothing(dtype, lanes):
    with fake_cuda() as driver:
        driver.lanes = lanes
        assert count_differences(dtype, 3, [(26, 25)], count=2) == {}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2047, 4097), (1, (1 << 23) - 1), ((1 << 23) - 1, 1)])
def test_the_largest_images_have_the_bits_of_the_cpu(dtype, size):
    with fake_cuda():
        assert count_differences(dtype, 1, [size], count=2) == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_kernels_on_a_device_have_them_too(dtype):
    for name in OPS:
        for size in ((7, 5), (33, 25)):
            x = images(16, 3, *size, dtype)
            with StandInDevice(inverts=True):
                on_device = run_op(name, x, lambda x: x.to(DEVICE))
            assert differing(on_device, run_op(name, x)) == 0, name


@needs_compiler
@given(
    name=st.sampled_from(sorted(POLICIES)),
    count=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)
@example(name="paper", count=200, channels=3, size=(32, 32), dtype=torch.uint8, seed=0)
@example(name="paper", count=200, channels=3, size=(32, 32), dtype=torch.float32, seed=0)
@example(name="every op", count=8, channels=3, size=(96, 90), dtype=torch.uint8, seed=0)
@example(name="wu2020", count=8, channels=1, size=(90, 96), dtype=torch.float32, seed=0)
def test_policies_have_the_bits_of_the_cpu_in_one_launch(name, count, channels, size, dtype, seed):
    x, policy = images(count, channels, *size, dtype, seed), POLICIES[name]
    rows = RowKeys(seed, 3, torch.arange(count), 1)
    expected = policy(x, rows)
    with fake_cuda() as driver:
        found = policy(x.to(DEVICE), rows)
    assert differing(found, expected) == 0
    assert driver.launches == ["augment_rows"]
    assert policy.engine_name == "one launch"


@needs_compiler
def test_masks_move_with_their_images_on_the_device():
    x, masks = images(30, 3, 16, 12, torch.uint8), torch.arange(30 * 192).reshape(30, 16, 12) % 7
    rows, policy = RowKeys(0, 0, torch.arange(30), 1), RandomOps.paper(mask_fill=255)
    _, expected = policy(x, rows, masks)
    with fake_cuda() as driver:
        _, found = policy(x.to(DEVICE), rows, masks.to(DEVICE))
    assert torch.equal(found.inner, expected)
    assert driver.launches == ["augment_rows"] * 2


MUTANTS = {
    "ties": ("rintf", "roundf"),
    "rounding": ("rintf(p[0]", "floorf(p[0]"),
    "threshold": ("value >= threshold", "value > threshold"),
    "white": ("p[0] - 1.f", "p[0]"),
    "constant images": ("high > low ?", "high >= low ?"),
    "step": ("(below + step / 2)", "below"),
    "few pixels": ("step == 0 ? level", "step == 0 ? 0"),
    "gray levels": ("if (PIXEL_IS_BYTE) value = floorf(value);", ""),
    "order of sums": (
        "value = value + gray * p[1];\n",
        "value = gray * p[1] + value + 0.5f * p[0];",
    ),
    "mean": ("1048576ll", "1048575ll"),
    "borders": ("row == 0 ||", ""),
    "rectangle": ("column < p[3]", "column <= p[3]"),
    "colours": ("num_params >= 4 + CHANNELS", "false"),
    "reflection": ("2 * (count - 1) - at", "2 * count - 1 - at"),
    "noise": ("i / 4 + 1", "i / 4 + 2"),
    "levels": ("255.999f", "256.f"),
    "sign of no mean": ("float add = p[2];", "float add = 0.f;"),
    "sign of the least": ("lows[0] + 0.f", "lows[0]"),
    "number of kernels": ("slot < count", "slot < 1"),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name):
    x, rows = images(40, 3, 8, 8, torch.uint8), RowKeys(0, 0, torch.arange(40), 1)
    policies = [POLICIES["every op"], POLICIES["cutout"]]
    expected = [policy(x, rows) for policy in policies]
    with fake_cuda(MUTANTS[name]):
        found = (
            differing(p(x.to(DEVICE), rows), y) for p, y in zip(policies, expected, strict=True)
        )
        assert any(found) or any(count_differences(d, 3, [(5, 6), (26, 25)]) for d in DTYPES)


@needs_compiler
def test_every_barrier_is_needed_and_none_is_missing():
    """Under ThreadSanitizer all operations after one another are free of races, as they are."""
    program = build("host_races.cpp", False, 3, ("-g", "-fsanitize=thread"))

    def run(line):
        return subprocess.run([program, str(line)], capture_output=True).returncode

    lines = compiler.SOURCE.read_text().splitlines()
    barriers = [at for at, line in enumerate(lines, 1) if "__syncthreads()" in line]
    assert len(barriers) == 11
    assert run(0) == 0
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, barriers)) == [66] * 11


FORBIDDEN = re.compile(r"\bfma\.\S*|\bmad\S*\.f32|\S*approx\S*|\bdiv\.full\S*|\S*\.ftz\S*")


@pytest.mark.parametrize(
    "capability", [(8, 0), *(pytest.param((major, 0), marks=pytest.mark.slow) for major in (9, 10))]
)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("is_byte", [False, True])
def test_nvrtc_makes_no_instruction_that_changes_bits(capability, channels, is_byte):
    pytest.importorskip("cuda.bindings.nvrtc")
    ptx = compiler.compile_rows(is_byte, channels, capability, as_ptx=True).decode()
    assert FORBIDDEN.findall(ptx) == []
    assert "div.rn.f32" in ptx
    # So few registers a lane that blocks of 1,024 can be launched.
    assert ptx.count(".maxntid 1024") == len(launch._KERNELS)
    entries = dict(re.findall(r"\.entry (\w+)\(\s*\.param \.align 8 \.b8 \w+\[(\d+)\]", ptx))
    assert set(launch._KERNELS) <= set(entries)
    assert {int(size) for size in entries.values()} == {ctypes.sizeof(launch.Arguments)}


def test_the_search_for_instructions_can_fail(monkeypatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setattr(compiler, "_FLAGS", ("--use_fast_math",))
    ptx = compiler.compile_rows(False, 3, (9, 0), as_ptx=True).decode()
    found = " ".join(FORBIDDEN.findall(ptx))
    assert "fma." in found
    assert re.search(r"div\.(approx|full)", found)


def test_compiled_code_is_kept_on_disk(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = compiler.find_cubin(True, 1, (9, 0))
    assert code[:4] == b"\x7fELF"
    (kept,) = (tmp_path / "augsubset").iterdir()
    monkeypatch.setattr(compiler, "compile_rows", None)
    assert compiler.find_cubin(True, 1, (9, 0)) == code == kept.read_bytes()
    for other in ((False, 1, (9, 0)), (True, 3, (9, 0)), (True, 1, (8, 0))):
        with pytest.raises(TypeError):
            compiler.find_cubin(*other)  # is not what was kept: it would be compiled
    changed = tmp_path / "rows.cu"
    changed.write_text(compiler.SOURCE.read_text() + "\n")
    monkeypatch.setattr(compiler, "SOURCE", changed)
    with pytest.raises(TypeError):
        compiler.find_cubin(True, 1, (9, 0))


def test_code_is_compiled_anew_where_nothing_can_be_written(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings.nvrtc")
    (tmp_path / "augsubset").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "compile_rows", lambda *_: b"compiled")
    assert compiler.find_cubin(True, 1, (9, 0)) == b"compiled"


def test_errors_of_the_compiler_are_told(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(RuntimeError, match="invalid value for --gpu-architecture"):
        compiler.compile_rows(True, 3, (1, 0))


@needs_compiler
def test_code_is_loaded_once_for_a_device_dtype_and_number_of_channels():
    policy, rows = RandomOps.paper(), RowKeys(0, 0, torch.arange(4), 1)
    with fake_cuda() as driver:
        for channels in (3, 3, 1, 3):
            policy(images(4, channels, 8, 8, torch.uint8).to(DEVICE), rows)
        assert driver.num_loaded == 2
        policy(images(4, 3, 8, 8, torch.float32).to(DEVICE), rows)
        assert driver.num_loaded == 3


def test_code_is_loaded_on_each_device():
    devices = [torch.device("meta", index) for index in (0, 1, 0)]
    with fake_cuda() as driver, patch.object(torch.cuda, "device") as enter:
        for device in devices:
            assert not isinstance(launch._load(device, True, 3), str)
    assert driver.num_loaded == 2
    assert enter.call_args_list == [call(device) for device in devices[:2]]


@needs_compiler
def test_handles_are_neither_pickled_nor_forked(monkeypatch):
    policy, rows = RandomOps.paper(), RowKeys(0, 0, torch.arange(4), 1)
    x = images(4, 3, 8, 8, torch.uint8)
    with fake_cuda() as driver:
        expected = policy(x.to(DEVICE), rows)
        again = pickle.loads(pickle.dumps(policy))
        assert torch.equal(again(x.to(DEVICE), rows).inner, expected.inner)
        monkeypatch.setattr(os, "getpid", lambda: 1)  # as after a fork
        policy(x.to(DEVICE), rows)
        assert driver.num_loaded == 2


def run_without(policy, caplog, times=2):
    """Run a policy by torch kernels on the device; return the log."""
    x, rows = images(6, 3, 8, 8, torch.uint8), RowKeys(0, 0, torch.arange(6), 1)
    expected = policy(x, rows)
    with fake_cuda() as driver, caplog.at_level(logging.WARNING):
        for _ in range(times):
            found = policy(x.to(DEVICE), rows)
    assert driver.launches == []
    assert policy.engine_name == "torch kernels"
    assert torch.equal(found.inner, expected)
    return [record.message for record in caplog.records]


def test_torch_kernels_run_without_cuda_bindings(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    (said,) = run_without(RandomOps.paper(), caplog)
    assert "200 launches a batch instead of one: ModuleNotFoundError" in said


def test_torch_kernels_run_where_the_compiler_fails(monkeypatch, caplog):
    def fail(self, *_):
        raise RuntimeError("NVRTC: it is too old")

    monkeypatch.setattr("tests.fake_cuda.FakeDriver.find_cubin", fail)
    (said,) = run_without(RandomOps.paper(), caplog)
    assert said.endswith("RuntimeError: NVRTC: it is too old.")


@needs_compiler
def test_torch_kernels_run_where_the_driver_refuses_the_code(monkeypatch, caplog):
    def refuse(self, cubin):
        return self.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None

    monkeypatch.setattr("tests.fake_cuda.FakeDriver.cuModuleLoadData", refuse)
    (said,) = run_without(RandomOps.paper(), caplog)
    assert said.endswith("the driver returned CUDA_ERROR_NO_BINARY_FOR_GPU.")


def test_torch_kernels_run_on_rocm(monkeypatch, caplog):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    (said,) = run_without(RandomOps.paper(), caplog)
    assert said.endswith("it needs CUDA.")


def test_torch_kernels_run_operations_of_the_users_own(caplog):
    mine = Op(lambda x, _: 1 - x)
    (said,) = run_without(RandomOps({"mine": mine, "rotate": OPS["rotate"]}, 1), caplog)
    assert said.endswith("it knows the built-in operations alone.")


@needs_compiler
def test_torch_kernels_run_on_images_beyond_32_bits(monkeypatch, caplog):
    largest = torch.empty(1, 1, 1, (1 << 23) - 1, dtype=torch.uint8)
    with fake_cuda():
        assert launch.find_obstacle(largest.to(DEVICE)) != "images are too large"
        assert launch.find_obstacle(F.pad(largest, (0, 1)).to(DEVICE)) == "images are too large"
    monkeypatch.setattr(launch, "_MAX_PIXELS", 64)
    (said,) = run_without(RandomOps.paper(), caplog)
    assert said.endswith("images are too large.")


@needs_compiler
def test_a_launch_that_fails_is_an_error():
    policy, rows = RandomOps.paper(), RowKeys(0, 0, torch.arange(4), 1)
    x = images(4, 3, 8, 8, torch.uint8)
    with fake_cuda() as driver:
        policy(x.to(DEVICE), rows)
        driver.error = driver.CUresult.CUDA_ERROR_LAUNCH_FAILED
        with pytest.raises(RuntimeError, match="cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED"):
            policy(x.to(DEVICE), rows)


THROUGH_BINDINGS = """
import ctypes, sys
driver = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # first: what asks for it gets this one
import cuda.bindings
from cuda.bindings import driver as bindings
import torch
from augsubset import RandomOps, RowKeys
from tests.augment.test_device import DTYPES, differing, images
from tests.fake_cuda import DEVICE, fake_cuda

policy, rows = RandomOps.paper(), RowKeys(0, 0, torch.arange(8), 1)
error = ctypes.c_int.in_dll(driver, "error_to_return")
with fake_cuda():
    cuda.bindings.driver = bindings  # in place of the fake
    for dtype in DTYPES:
        x = images(8, 3, 9, 7, dtype)
        assert differing(policy(x.to(DEVICE), rows), policy(x, rows)) == 0
    assert ctypes.c_int.in_dll(driver, "num_launches").value == 2
    error.value = bindings.CUresult.CUDA_ERROR_LAUNCH_FAILED
    try:
        policy(x.to(DEVICE), rows)
    except RuntimeError as raised:
        assert str(raised).startswith("cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED"), raised
    else:
        raise AssertionError("a launch that failed was no error")
    other = images(8, 1, 9, 7, dtype)  # its code is not loaded yet
    policy(other.to(DEVICE), rows)
    assert policy.engine_name == "torch kernels"
"""


@pytest.mark.slow
@needs_compiler
def test_nvidias_bindings_pass_a_driver_what_the_fake_one_gets():
    flags = "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-DSTREAM={STREAM}"
    library = build("fake_driver.cpp", True, 3, flags)
    subprocess.run([sys.executable, "-c", THROUGH_BINDINGS, str(library)], check=True)


# With a GPU: `make test-gpu`.


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_on_a_gpu_every_operation_has_the_bits_of_the_cpu(dtype, channels):
    sizes = [(1, 1), (2, 3), (7, 5), (33, 25), (224, 224)]
    assert count_differences(dtype, channels, sizes, GPU) == {}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POLICIES)
def test_on_a_gpu_policies_have_the_bits_of_the_cpu(name, dtype):
    policy = POLICIES[name]
    for count, size in ((512, 32), (24, 224)):
        x, rows = images(count, 3, size, size, dtype), RowKeys(1, 2, torch.arange(count), 1)
        found = policy(x.to(GPU), rows)
        assert policy.engine_name == "one launch"
        assert differing(found, policy(x, rows)) == 0


@pytest.mark.cuda
def test_on_a_gpu_streams_and_threads_change_nothing():
    x, rows = images(256, 3, 32, 32, torch.uint8), RowKeys(1, 2, torch.arange(256), 1)
    policy, there = RandomOps.paper(), x.cuda()
    expected = policy(x, rows)

    def run(_):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            found = policy(there, rows)
        stream.synchronize()
        return differing(found, expected)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(40))) == [0] * 40


@pytest.mark.cuda
def test_on_several_gpus_each_loads_its_own_code():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    x, rows = images(64, 3, 32, 32, torch.uint8), RowKeys(1, 2, torch.arange(64), 1)
    policy = RandomOps.paper()
    for number in (1, 0, 1):
        assert differing(policy(x.to(f"cuda:{number}"), rows), policy(x, rows)) == 0


@pytest.mark.cuda
def test_on_a_gpu_a_graph_replays_what_it_captured():
    x, rows = images(64, 3, 32, 32, torch.uint8), RowKeys(1, 2, torch.arange(64), 1)
    policy, there = RandomOps.paper(), x.cuda()
    expected = policy(x, rows)
    policy(there, rows)  # loads the code
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = policy(there, rows)
    for _ in range(3):
        found.zero_()
        for _ in range(8):  # takes the memory of a plan that nobody holds
            torch.full((64 * 20,), -1, dtype=torch.int32).pin_memory()
        graph.replay()
        assert differing(found, expected) == 0
