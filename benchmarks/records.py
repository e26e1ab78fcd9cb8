"""Records of runs: a file of JSON lines for each grid, which several processes may append to.

A line is a record, or an environment that later records refer to. A record's cell holds what
differs from the defaults; numbers have five digits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["append", "as_lines", "read", "shorten"]

_DIGITS = 5


def shorten(value: Any) -> Any:
    """Return a JSON value with its numbers rounded to five digits, and lists for tuples."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: shorten(each) for key, each in value.items()}
    return [shorten(each) for each in value] if isinstance(value, (list, tuple)) else value


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, each with its environment; none if there is no file.

    A last line without its end was torn by a crash: it is left out, with a warning.

    Raises:
        ValueError: If another line is no JSON, or names an environment that no line before holds.
    """
    if not path.is_file():
        return []
    *lines, torn = path.read_text().split("\n")
    if torn:
        warnings.warn(f"{path.name}: the last line is torn and left out", stacklevel=2)
    found: list[dict[str, Any]] = []
    environments: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if "cell" not in entry:
                environments[entry["environment"]] = entry["values"]
                continue
            found.append({**entry, "environment": environments[entry["environment"]]})
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} must hold records, got line {number}: {error}.") from error
    return found


def as_lines(record: Mapping[str, Any], known: set[str]) -> str:
    """Return a record as lines: its own, after that of its environment where this is a new one.

    Args:
        record: With its environment.
        known: Environments that the file holds, added to.
    """
    record = shorten(record)
    values = json.dumps(record["environment"], sort_keys=True)
    name = hashlib.sha256(values.encode()).hexdigest()[:8]
    lines = [] if name in known else [{"environment": name, "values": record["environment"]}]
    known.add(name)
    lines.append({**record, "environment": name})
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record in one write, under a lock; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        with open(file, "rb", closefd=False) as before:
            whole = before.read()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            warnings.warn(f"{path.name}: the last line is torn and cut off", stacklevel=2)
            os.ftruncate(file, end)
        entries = [json.loads(line) for line in whole[:end].splitlines()]
        known = {entry["environment"] for entry in entries if "cell" not in entry}
        os.write(file, as_lines(record, known).encode())
        os.fsync(file)
    finally:
        os.close(file)  # and the lock is released
