"""Compile ``rows.cu`` for a GPU with NVRTC, once per machine: results are kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["SOURCE", "compile_rows", "find_cubin"]

SOURCE = Path(__file__).with_name("rows.cu")

# Fused multiply-adds, fast division and flushing of subnormals would all change bits.
_FLAGS = ("--fmad=false", "--prec-div=true", "--ftz=false", "--std=c++17")


def _find_folder() -> Path:
    """Return where compiled code is kept, which XDG_CACHE_HOME may move."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "augsubset"


def find_cubin(is_byte: bool, channels: int, capability: tuple[int, int]) -> bytes:
    """Return compiled code from the disk, or compile it and keep it there.

    Args:
        is_byte: Whether pixels are uint8, not float32.
        channels: Channels of an image.
        capability: Of the GPU, such as (9, 0).

    Cost:
        About a second, once per machine and set of arguments.
    """
    from cuda.bindings import nvrtc

    options = _list_options(is_byte, channels, capability)
    version = nvrtc.nvrtcVersion()[1:]
    content = repr((SOURCE.read_text(), options, version)).encode()
    path = _find_folder() / f"rows-{hashlib.sha256(content).hexdigest()[:32]}.cubin"
    with suppress(OSError):
        return path.read_bytes()
    code = compile_rows(is_byte, channels, capability)
    with suppress(OSError):  # a read-only home: compiled anew by each process
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(code)
        os.replace(name, path)  # whole at once, for processes that start together
    return code


def compile_rows(
    is_byte: bool, channels: int, capability: tuple[int, int], *, as_ptx: bool = False
) -> bytes:
    """Return ``rows.cu`` compiled: machine code, or PTX to read.

    Args:
        is_byte: As in :func:`find_cubin`.
        channels: As in :func:`find_cubin`.
        capability: As in :func:`find_cubin`.
        as_ptx: Whether to return PTX.

    Raises:
        ImportError: If ``cuda-bindings`` is not installed.
        RuntimeError: If NVRTC is not, does not know the GPU, or reports an error.
    """
    from cuda.bindings import nvrtc

    options = _list_options(is_byte, channels, capability)
    if as_ptx:
        options[0] = options[0].replace("sm_", "compute_")
    error, program = nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), b"rows.cu", 0, [], [])
    _check(error)
    try:
        (error,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC: {error.name}. {log.decode().strip(chr(0))}")
        measure, read = (
            (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
            if as_ptx
            else (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        )
        error, size = measure(program)
        _check(error)
        code = b" " * size  # filled in place
        _check(read(program, code)[0])
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _list_options(is_byte: bool, channels: int, capability: tuple[int, int]) -> list[str]:
    architecture = f"--gpu-architecture=sm_{capability[0]}{capability[1]}"
    return [architecture, *_FLAGS, f"-DPIXEL_IS_BYTE={int(is_byte)}", f"-DCHANNELS={channels}"]


def _check(error: object) -> None:
    if int(error) != 0:  # type: ignore[call-overload]
        raise RuntimeError(f"NVRTC: {error}")
