"""Checkpoint files, written atomically and verified when read."""

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
    """Write a file so that readers find either the old content or the new, never a part.

    Raises:
        OSError: If it cannot be written, for example on a full disk; the old content is kept.
    """
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def save_checkpoint(path: str | PathLike[str], **states: Any) -> None:
    """Write state dicts to one file, which a crash or a full disk cannot leave incomplete.

    On several ranks call it on one, since all have the same loader state. With ``recycle=`` each
    rank's state holds the logits of its own examples, so each must write a file of its own.

    Args:
        path: File to write; an older one is replaced.
        states: ``loader=loader.state_dict(), model=model.state_dict()`` and so on: what
            ``torch.load`` reads with ``weights_only=True``.

    Raises:
        OSError: If the file cannot be written; an older one is kept.

    Cost:
        The file's size in memory, and on disk beside the older file.
    """
    file = io.BytesIO()
    torch.save(states, file)
    content = file.getvalue()
    write_whole(path, _MAGIC + zlib.crc32(content).to_bytes(4, "big") + content)


def is_checkpoint(path: str | PathLike[str]) -> bool:
    """Return whether a file has the header of :func:`save_checkpoint`."""
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def load_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """Return what :func:`save_checkpoint` wrote, on the CPU, without running code from the file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a checkpoint, truncated or damaged.
    """
    content = Path(path).read_bytes()
    head = len(_MAGIC) + 4
    if not content.startswith(_MAGIC):
        raise ValueError(f"{path} must be a checkpoint of save_checkpoint, got another file.")
    if zlib.crc32(content[head:]).to_bytes(4, "big") != content[head - 4 : head]:
        raise ValueError(
            f"{path} must be complete, got {len(content)} bytes that are damaged or cut short. Go "
            "back to an older checkpoint."
        )
    try:
        states: dict[str, Any] = torch.load(
            io.BytesIO(content[head:]), map_location="cpu", weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} must hold only tensors, numbers and strings: {error}") from error
    return states
