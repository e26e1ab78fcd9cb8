"""A GPU in software: ``rows.cu`` built with g++, behind a driver that takes what CUDA's takes.

Tensors are those of ``stand_in``, so that what mixes devices fails, as it does on a GPU.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda.bindings.driver
import pytest
import torch

from augsubset.augment import random
from augsubset.augment.device import launch
from augsubset.augment.device.compiler import SOURCE
from tests.stand_in import DEVICE, StandInDevice

STREAM = 0x51DE
HARNESS = Path(__file__).parent / "augment"
_folder = tempfile.TemporaryDirectory(prefix="augsubset-tests-")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@lru_cache
def build(
    program: str,
    is_byte: bool,
    channels: int,
    flags: tuple[str, ...] = ("-shared", "-fPIC"),
    mutation: tuple[str, str] | None = None,
) -> Path:
    """Return a program of the harness, built around ``rows.cu`` or a mutant of it."""
    folder = Path(tempfile.mkdtemp(dir=_folder.name))
    text = SOURCE.read_text()
    if mutation is not None:
        before, after = mutation
        assert before in text
        text = text.replace(before, after)
    (folder / SOURCE.name).write_text(text)
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-pthread", *flags]
    options += [f"-DPIXEL_IS_BYTE={int(is_byte)}", f"-DCHANNELS={channels}"]
    options += [f"-I{folder}", f"-I{HARNESS}", "-o", str(folder / "built")]
    subprocess.run(["g++", *options, str(HARNESS / program)], check=True)
    return folder / "built"


class FakeDriver:
    """The functions of ``cuda.bindings.driver`` that are called, and a note of each launch.

    Args:
        mutation: Text to replace in ``rows.cu``.
    """

    def __init__(self, mutation: tuple[str, str] | None = None) -> None:
        self.CUresult = cuda.bindings.driver.CUresult
        self.error = self.CUresult.CUDA_SUCCESS
        self.mutation = mutation
        self.num_loaded = 0
        self.lanes: int | None = 4  # None: as many as are asked for
        self.launches: list[str] = []

    def find_cubin(self, is_byte: bool, channels: int, capability: tuple[int, int]) -> bytes:
        """Stand for the code: the path of a library."""
        assert capability == (9, 0)
        return bytes(build("host_rows.cpp", is_byte, channels, mutation=self.mutation))

    def cuModuleLoadData(self, cubin: bytes) -> tuple[Any, Any]:
        """Open the library."""
        self.num_loaded += 1
        return self.error, ctypes.CDLL(cubin.decode())

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any, Any]:
        """Return a kernel's handle."""
        return self.error, (module, name)

    def cuLaunchKernel(self, kernel: Any, *sizes_and_arguments: int) -> tuple[Any]:
        """Run on ``lanes`` threads; few, as tests have little time."""
        *grid, lanes, lanes_y, lanes_z, shared, stream, arguments, extra = sizes_and_arguments
        assert grid[1:] == [1, 1]
        assert (lanes_y, lanes_z, shared, extra) == (1, 1, 0, 0)
        assert 32 <= lanes <= 1024
        assert stream == STREAM
        # An array of addresses, one for each argument; there is one.
        (address,) = (ctypes.c_void_p * 1).from_address(arguments)
        library, name = kernel
        if self.error == self.CUresult.CUDA_SUCCESS:
            assert library.launch(name, grid[0], self.lanes or lanes, ctypes.c_void_p(address)) == 0
            self.launches.append(name.decode())
        return (self.error,)


@contextmanager
def fake_cuda(mutation: tuple[str, str] | None = None) -> Iterator[FakeDriver]:
    """Make ``DEVICE`` a GPU within the block."""
    driver = FakeDriver(mutation)
    stream = SimpleNamespace(cuda_stream=STREAM, query=lambda: True)
    with pytest.MonkeyPatch.context() as patch, StandInDevice(inverts=True):
        patch.setattr(launch, "_DEVICE_TYPES", (DEVICE.type,))
        patch.setattr(launch, "_loaded", {})
        patch.setattr(launch, "find_cubin", driver.find_cubin)
        patch.setattr(random, "_tables", {})
        patch.setattr(cuda.bindings, "driver", driver)
        patch.setattr(torch.cuda, "current_stream", lambda device: stream)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        patch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
        yield driver
