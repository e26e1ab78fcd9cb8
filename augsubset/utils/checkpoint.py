"""Checkpoint files, written atomically and verified when read."""

from __future__ import annotations

import glob
import io
import os
import pickle
import secrets
import zlib
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from os import PathLike
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where killed writes leave their files
    fcntl = None  # type: ignore[assignment]

__all__ = ["is_checkpoint", "load_checkpoint", "save_checkpoint", "write_whole"]

_MAGIC = b"augsubset checkpoint 1\n"
_ARRAY = "augsubset: a numpy array"  # the key of a dict that holds one as a tensor
_PLAIN = (type(None), bool, float, complex, str, bytes)


def write_whole(path: str | PathLike[str], content: bytes) -> None:
    """Write a file so that readers find either the old content or the new, never a part.

    Concurrent writes by signal handlers, threads or processes do not interfere: the last one to
    finish wins. A link is kept, and its target replaced. Files left by killed writes are removed.

    Raises:
        OSError: If it cannot be written, for example on a full disk; the old content is kept.
    """
    target = Path(os.path.realpath(path))
    _remove_abandoned(target)
    file = _create_partial(target)
    partial = Path(file.name)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _create_partial(target: Path) -> IO[bytes]:
    """Return a new file beside the target, with a lock that ends with its process at the latest."""
    while True:
        file = target.with_name(f"{target.name}.{secrets.token_hex(8)}.partial").open("xb")
        if fcntl is not None:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if Path(file.name).exists():
            return file
        file.close()  # before it was locked, another write removed it


def _remove_abandoned(target: Path) -> None:
    """Remove partial files that nobody has locked: their processes were killed."""
    if fcntl is None:
        return
    pattern = f"{glob.escape(target.name)}.{'[0-9a-f]' * 16}.partial"
    for partial in target.parent.glob(pattern):
        with suppress(OSError), partial.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def save_checkpoint(path: str | PathLike[str], **states: Any) -> None:
    """Write state dicts to one file, which a crash or a full disk cannot leave incomplete.

    On several ranks call it on one, since all have the same loader state. With ``recycle=`` each
    rank's state holds the logits of its own examples, so each must write its own file.

    Args:
        path: File to write; an older one is replaced.
        states: ``loader=loader.state_dict(), model=model.state_dict()`` and so on: tensors,
            numbers, strings and numpy arrays, in dicts, lists and tuples. numpy's numbers come
            back as Python's, a ``Path`` as a string, a ``defaultdict`` as a dict.

    Raises:
        TypeError: If :func:`load_checkpoint` would refuse a value; an older file is kept.
        OSError: If the file cannot be written; an older one is kept.

    Cost:
        The file's size in memory, and on disk beside the older file.
    """
    file = io.BytesIO()
    torch.save({name: _make_plain(state, name) for name, state in states.items()}, file)
    content = file.getvalue()
    write_whole(path, _MAGIC + zlib.crc32(content).to_bytes(4, "big") + content)


def _make_plain(value: Any, where: str) -> Any:
    """Return a value in types that ``torch.load`` reads without running code.

    Raises:
        TypeError: If it has none; ``where`` says which value it is.
    """
    kind = type(value)
    if kind in _PLAIN or (kind in (Tensor, nn.Parameter) and not vars(value)):
        return value
    if kind is int and value.bit_length() < 2040:  # longer ones take an opcode that is not read
        return value
    if kind in (list, tuple):
        return kind(_make_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind in (dict, OrderedDict, Counter, defaultdict):
        items = {
            _make_plain(key, f"a key of {where}"): _make_plain(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
        if kind is not OrderedDict:
            return Counter(items) if kind is Counter else items
        ordered = OrderedDict(items)
        vars(ordered).update(_make_plain(vars(value), f"vars({where})"))  # a module's versions
        return ordered
    if kind is np.ndarray and value.dtype.kind in "biufc" and value.dtype.isnative:
        with suppress(TypeError):  # a dtype that torch lacks
            return {_ARRAY: torch.from_numpy(value.copy())}
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSU":
        item = value.item()
        if not isinstance(item, np.generic):  # no Python number has the digits of a long double
            return item
    if isinstance(value, PurePath):
        return str(value)
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.PickleError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        hint = "its state_dict()" if hasattr(value, "state_dict") else "one of these"
        raise TypeError(
            f"{where} must be a tensor, number, string or array, or a dict, list or tuple of them, "
            f"got {kind.__name__}. Pass {hint} instead."
        ) from error
    return value


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
        raise ValueError(f"{path} must be a checkpoint by save_checkpoint, got another file.")
    if zlib.crc32(content[head:]).to_bytes(4, "big") != content[head - 4 : head]:
        raise ValueError(
            f"{path} must be complete, got {len(content)} bytes that are damaged or cut short. Use "
            "an older checkpoint."
        )
    try:
        states: dict[str, Any] = torch.load(
            io.BytesIO(content[head:]), map_location="cpu", weights_only=True
        )
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} must hold only tensors, numbers and strings: {error}") from error
    _restore_arrays(states)
    return states


def _restore_arrays(value: Any) -> Any:
    """Return a value of a checkpoint with the arrays that it was saved with; changes dicts."""
    kind = type(value)
    if kind is dict and value.keys() == {_ARRAY}:
        return value[_ARRAY].numpy()
    if kind in (list, tuple):
        return kind(_restore_arrays(item) for item in value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            value[key] = _restore_arrays(item)
    if kind is OrderedDict:
        _restore_arrays(vars(value))
    return value
