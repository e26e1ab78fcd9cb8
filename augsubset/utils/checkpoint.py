"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import io
import os
import pickle
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import torch

__all__ = ["is_checkpoint", "load_checkpoint", "save_checkpoint", "write_whole"]

_MAGIC = b"augsubset checkpoint 1\n"


def write_whole(path: str | PathLike[str], content: bytes) -> None:
    """Write a file so that whoever reads it finds the old content or the new, never a part.

    Raises:
        OSError: If it cannot be written, a full disk for one: what was there is still there.
    """
    target = Path(path)
    beside = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def save_checkpoint(path: str | PathLike[str], **states: Any) -> None:
    """Write state dicts to one file, which a crash or a full disk cannot leave in parts.

    On several ranks call it on one: all have the same loader state. With ``recycle=`` each holds
    what its own share of the examples said: then let each rank write a file of its own.

    Args:
        path: Where to.
        states: ``loader=loader.state_dict(), model=model.state_dict()`` and so on: what
            ``torch.load`` reads with ``weights_only=True``.

    Raises:
        OSError: If it cannot be written; an older checkpoint there is kept.

    Cost:
        The file once in memory, and once on the disk beside the older one.
    """
    file = io.BytesIO()
    torch.save(states, file)
    content = file.getvalue()
    write_whole(path, _MAGIC + zlib.crc32(content).to_bytes(4, "big") + content)


def is_checkpoint(path: str | PathLike[str]) -> bool:
    """Return whether a file begins as those of :func:`save_checkpoint` do."""
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def load_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, on the CPU and without running code from the file.

    Raises:
        ValueError: If the file is something else, cut short or damaged.
    """
    content = Path(path).read_bytes()
    head = len(_MAGIC) + 4
    if not content.startswith(_MAGIC):
        raise ValueError(f"{path} must be a checkpoint of save_checkpoint, got another file.")
    if zlib.crc32(content[head:]).to_bytes(4, "big") != content[head - 4 : head]:
        raise ValueError(
            f"{path} must be whole, got {len(content)} bytes that are damaged or cut short. Go "
            "back to an older checkpoint."
        )
    try:
        states: dict[str, Any] = torch.load(
            io.BytesIO(content[head:]), map_location="cpu", weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} must hold tensors, numbers and strings alone: {error}") from error
    return states
