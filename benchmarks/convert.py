"""Turn records of old, a JSON file each, into a file of JSON lines for each grid.

``python -m benchmarks.convert OLD NEW`` reads ``OLD/GRID/*.json``, writes ``NEW/GRID.jsonl``, and
checks that what is read back is what was there, to five digits. Seconds of each epoch are kept
where a grid is about times.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from benchmarks.dynamics import as_columns
from benchmarks.grid import load_grid
from benchmarks.records import as_lines, read, shorten

__all__ = ["convert", "main"]


def convert(folder: Path, path: Path, *, times: bool) -> int:
    """Convert one grid's records, and return how many there are.

    Args:
        folder: Of the old records.
        path: Of the new ones; overwritten.
        times: Whether the seconds of each epoch are kept.

    Raises:
        ValueError: If what is read back differs.
    """
    old = [json.loads(each.read_text()) for each in folder.glob("*.json")]
    old.sort(key=lambda record: (record["cell"]["seed"], record["cell"]["arm"]))
    known: set[str] = set()
    path.write_text("".join(as_lines(_converted(record, times), known) for record in old))
    for before, after in zip(old, read(path), strict=True):
        if _restored(after, times) != shorten(_expected(before, times)):
            raise ValueError(f"{path} must hold what {folder} does, got another {after['cell']}.")
    return len(old)


def _todays(values: dict[str, Any]) -> dict[str, Any]:
    """Return a cell's values in today's words."""
    values = {{"raw": "originals"}.get(name, name): value for name, value in values.items()}
    return {**values, "weights": "cluster"} if values.get("weights") == "paper" else values


def _converted(record: dict[str, Any], times: bool) -> dict[str, Any]:
    expected = _expected(record, times)
    dynamics = {**expected["dynamics"]}
    tracks = [dynamics, *dynamics.get("shadows", {}).values()]
    for track in tracks:
        track["selections"] = as_columns(track["selections"])
    return {**expected, "cell": Cell(**expected["cell"]).values(), "dynamics": dynamics}


def _expected(record: dict[str, Any], times: bool) -> dict[str, Any]:
    result = {k: v for k, v in record["result"].items() if times or k != "epoch_seconds"}
    copied = json.loads(json.dumps({**record, "result": result}))
    return {**copied, "cell": vars(Cell.of(_todays(record["cell"])))}  # with fields added since


def _restored(record: dict[str, Any], times: bool) -> dict[str, Any]:
    """Return a record as it was before it was converted."""
    tracks = [record["dynamics"], *record["dynamics"].get("shadows", {}).values()]
    for track in tracks:
        columns = track["selections"]
        track["selections"] = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    return {**record, "cell": shorten(vars(Cell.of(record["cell"])))}


def main(arguments: list[str] | None = None) -> None:
    """Convert all grids of a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convert", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    total = 0
    for folder in sorted(given.old.iterdir()):
        times = load_grid(folder.name).times
        count = convert(folder, given.new / f"{folder.name}.jsonl", times=times)
        print(f"{folder.name}: {count} records, equal when read back")
        total += count
    print(f"{total} records")


if __name__ == "__main__":
    main()
