"""Write the tables of figures in the docs from the records: ``python -m benchmarks.tables``.

A page says between ``<!-- figures -->`` and ``<!-- end -->`` what a record holds, and nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.examples import times_as_long

__all__ = ["between", "figure_row", "main", "write_tables"]

ROOT = Path(__file__).resolve().parents[1]
OPERATION_KINDS = {
    "loops, bytes": "loops: bytes",
    "loops, floats": "floats",
    "bytes": "kernels: bytes",
    "floats": "floats",
    "kornia, bytes": "Kornia: bytes and back",
    "kornia": "floats",
}


LOOPS = {
    "cifar": "plain, CIFAR-10",
    "ddp": "DistributedDataParallel, torchrun",
    "lightning": "Lightning",
    "accelerate": "accelerate",
    "trainer": "Hugging Face Trainer",
    "timm": "timm model",
    "detection": "detection, boxes",
    "text": "text classification",
}


def shown(value: float, unit: str) -> str:
    """Write three digits of a value, with its unit."""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return {"x": f"{text}x", "share": f"{100 * value:.1f}%"}.get(unit, f"{text} {unit}".strip())


def figure_row(figure: dict[str, Any], workload: str | None = None) -> str:
    """Return a line of a table: figure, measured, target, met or missed."""
    bound = {"higher": "≥", "lower": "≤"}[figure["better"]]
    target = figure["target"]
    cells = [
        *([] if workload is None else [workload]),
        figure["name"],
        shown(figure["value"], figure["unit"]),
        "" if target is None else f"{bound} {shown(target, figure['unit'])}",
        {None: "", True: "met", False: "**missed**"}[figure["met"]],
    ]
    return f"| {' | '.join(cells)} |"


def between(text: str, name: str, lines: list[str]) -> str:
    """Return the text with these lines after the marker of that name, up to the end marker.

    Raises:
        ValueError: If there is no such marker, or no end of it.
    """
    start = text.index(f"<!-- {name} -->")
    end = text.index("<!-- end -->", start)
    return "\n".join([f"{text[:start]}<!-- {name} -->", "", *lines, "", text[end:]])


def table(columns: list[str], rows: list[str]) -> list[str]:
    """Return a table's lines."""
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *rows]


def pairs_table(results: Path) -> list[str]:
    """Return a line a pair of scripts: what the library did to accuracy and time."""
    pairs = json.loads((results / "examples.json").read_text())
    rows = []
    for topic, loop in LOOPS.items():
        pair = pairs[topic]
        plain, ours = (
            f"{mean(pair[kind]):.1f} ± {stdev(pair[kind]):.1f}" for kind in ("plain", "augsubset")
        )
        scripts = (f"[{kind}](examples/{topic}_{kind}.py)" for kind in ("plain", "augsubset"))
        rows.append(
            f"| {loop} | {', '.join(scripts)} | {pair['figure']} {plain} → {ours} "
            f"| {times_as_long(pair):.1f}x |"
        )
    return table(["your loop", "scripts", "test figure, %", "time"], rows)


def write_tables(docs: Path, results: Path) -> None:
    """Bring the tables of four pages in line with six records.

    Args:
        docs: Folder of the pages, overwritten.
        results: Folder of the records.
    """
    selection, selection_on_gpu, augmentation, on_gpu, loader = (
        json.loads((results / f"{name}.json").read_text())
        for name in (
            "selection",
            "selection-gpu",
            "augmentation",
            "augmentation-gpu",
            "loader",
        )
    )
    columns = ["figure", "measured", "target", ""]

    page = docs / "performance.md"
    text = page.read_text()
    for name, record in (("figures", selection), ("on a GPU", selection_on_gpu)):
        rows = [
            figure_row(figure, workload)
            for workload, entry in record["workloads"].items()
            for figure in entry["figures"]
        ]
        text = between(text, name, table(["workload", *columns], rows))
    page.write_text(text)

    page = docs / "augmentation.md"
    rows = [figure_row(figure) for figure in augmentation["augmentation"]["figures"]]
    text = between(page.read_text(), "figures", table(columns, rows))
    operations = augmentation["augmentation"]["measured"]["operations"]
    rows = [
        f"| {name} | "
        f"{' | '.join(f'{each[kind]:.2f}' if kind in each else '' for kind in OPERATION_KINDS)} |"
        for name, each in operations.items()
    ]
    named = ["operation", *OPERATION_KINDS.values()]
    text = between(text, "operations", table(named, rows))
    ways = list(next(iter(on_gpu["augmentation"].values())))
    rows = []
    for batch, each in on_gpu["augmentation"].items():
        times = {way: f"{each[way]['milliseconds']:.2f} ({each[way]['launches']})" for way in each}
        cells = (times.get(way, "") for way in ways)  # few ways at large sizes
        rows.append(f"| {batch.replace(' at ', ', ')} | {' | '.join(cells)} |")
    page.write_text(between(text, "on a GPU", table(["rows, px", *ways], rows)))

    page = docs / "adopt.md"
    page.write_text(between(page.read_text(), "pairs", pairs_table(results)))

    page = docs / "loader.md"
    rows = [figure_row(figure) for each in loader["workloads"].values() for figure in each]
    page.write_text(between(page.read_text(), "figures", table(columns, rows)))


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description="Tables of figures, from the records."
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    options = parser.parse_args()
    write_tables(options.docs, ROOT / "benchmarks" / "results")


if __name__ == "__main__":
    main()
