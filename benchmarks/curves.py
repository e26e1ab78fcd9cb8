"""Time and memory of one selection against n, k, d and the number of classes, beside the peers'.

Every point is one process of its own: imports and compilation done, then one selection, timed, with
its peak memory. A peer's curve ends at the first point that takes longer than the limit. apricot,
which compiles anew in every fit, is made to keep what it compiled.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter
from torch import Tensor

from augsubset import select_coreset
from benchmarks.measuring import PeakMemory
from benchmarks.peers import PEERS, compiled_once, solve_by_class
from benchmarks.pictures import WIDTH
from benchmarks.residuals import softmax_residuals

__all__ = ["AXES", "Point", "draw", "measure_point", "sweep"]

LIMIT_SECONDS = 20.0
STARTING_SECONDS = 60.0  # what a process may take to import and compile
METHODS = {"ours, exact": "lazy", "ours, in parts": "partitioned"}


@dataclass(frozen=True)
class Point:
    """One selection: which tool, on how many synthetic residuals."""

    tool: str
    n: int = 5000
    k: int = 500
    d: int = 10
    classes: int = 1


@dataclass(frozen=True)
class Axis:
    """A curve's horizontal axis: what varies, and the points of each tool, cheapest first."""

    label: str
    given: str
    exact: tuple[Point, ...]
    in_parts: tuple[Point, ...] = ()

    def points(self, tool: str) -> Iterable[Point]:
        """Return a tool's points."""
        chosen = self.in_parts if tool == "ours, in parts" else self.exact
        return (Point(**{**asdict(point), "tool": tool}) for point in chosen)


AXES = {
    "n": Axis(
        "examples n",
        "one class, k = n / 10, d = 10",
        tuple(Point("", n, n // 10) for n in (500, 1000, 2000, 5000, 10_000, 20_000)),
        tuple(Point("", n, n // 10) for n in (20_000, 50_000, 100_000, 300_000, 1_000_000)),
    ),
    "k": Axis(
        "selected k",
        "one class, n = 5,000, d = 10",
        tuple(Point("", k=5000 * percent // 100) for percent in (1, 2, 5, 10, 20, 50)),
    ),
    "d": Axis(
        "features d",
        "one class, n = 5,000, k = 500",
        tuple(Point("", d=d) for d in (2, 10, 32, 100, 316, 1000)),
    ),
    "classes": Axis(
        "classes",
        "n = 10,000 in all, k = 1,000, d = 10",
        tuple(Point("", 10_000, 1000, 10, classes) for classes in (1000, 100, 10, 1)),
    ),
}
TOOLS = (*METHODS, *PEERS)


def measure_point(point: Point) -> dict[str, float]:
    """Return seconds and extra bytes of one selection in this process, compiled beforehand."""
    labels = torch.arange(point.n) % point.classes
    x = torch.empty(point.n, point.d)
    for c in range(point.classes):
        x[c :: point.classes] = softmax_residuals(
            len(x[c :: point.classes]), point.d, c, c % point.d
        )
    # As many of each class as a proportional deal gives.
    like = torch.cat(
        [
            torch.arange(c, point.n, point.classes)[: max(1, point.k // point.classes)]
            for c in range(point.classes)
        ]
    )

    def select(rows: Tensor, labels: Tensor, like: Tensor) -> None:
        if point.tool in PEERS:
            solve_by_class(point.tool, rows, labels, like)
        else:
            method: Any = METHODS[point.tool]
            select_coreset(rows, labels, budget=len(like), method=method)

    with compiled_once():
        select(x[:50], torch.zeros(50, dtype=torch.int64), torch.arange(5))
        with PeakMemory() as memory:
            begin = time.perf_counter()
            select(x, labels, like)
            seconds = time.perf_counter() - begin
    return {"seconds": seconds, "extra_bytes": memory.extra_bytes}


def sweep(
    axes: Mapping[str, Axis] = AXES,
    tools: Iterable[str] = TOOLS,
    limit: float = LIMIT_SECONDS,
) -> dict[str, Any]:
    """Measure every curve, a process a point.

    Returns:
        By axis and tool the measured points, and where a peer stopped.

    Raises:
        subprocess.CalledProcessError: If a point fails; ours has no limit and must not.
    """
    tools = tuple(tools)
    curves: dict[str, Any] = {}
    for name, axis in axes.items():
        curves[name] = {"label": axis.label, "given": axis.given, "limit_seconds": limit}
        curves[name]["tools"] = {}
        for tool in tools:
            curve: dict[str, Any] = {"points": [], "stopped_at": None}
            for point in axis.points(tool):
                found = _in_process(point, limit if tool in PEERS else None)
                if found is None:
                    curve["stopped_at"] = asdict(point)
                    break
                curve["points"].append({**asdict(point), **found})
                print(
                    f"  {name}={getattr(point, name):<8} {tool:15} {found['seconds']:9.3f} s "
                    f"{found['extra_bytes'] / 1e6:8.0f} MB",
                    flush=True,
                )
                if tool in PEERS and found["seconds"] > limit:
                    curve["stopped_at"] = asdict(point)
                    break
            if curve["points"] or curve["stopped_at"] is not None:
                curves[name]["tools"][tool] = curve
    return curves


def _in_process(point: Point, limit: float | None) -> dict[str, float] | None:
    """Measure a point in a fresh process; ``None`` where it took longer than the limit."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.curves", "--point", json.dumps(asdict(point))],
            cwd=Path(__file__).parents[1],
            timeout=None if limit is None else limit + STARTING_SECONDS,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------ picture

# Grey that reads on white and on near-black; the same for the lines.
INK = "#7d8590"
COLOURS = {
    "ours, exact": "#2f81f7",
    "ours, in parts": "#2da44e",
    "submodlib": "#e5534b",
    "apricot": "#c69026",
}


def draw(curves: Mapping[str, Any], path: Path) -> None:
    """Write the picture: a row an axis, seconds and memory, all logarithmic."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "augsubset",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(style):
        picture = Picture(figsize=(WIDTH, 2.3 * len(curves) + 1), layout="constrained")
        grid = picture.subplots(len(curves), 2, squeeze=False, sharex="row", sharey="col")
        for (left, right), (name, axis) in zip(grid, curves.items(), strict=True):
            _curve(left, name, axis, "seconds", 1)
            _curve(right, name, axis, "extra_bytes", 1e6)
            left.set_title(axis["given"], fontsize=9, color=INK)
            left.set_xlabel(axis["label"])
            right.set_xlabel(axis["label"])
        grid[0][0].set_ylabel("time of one selection (s)")
        grid[0][1].set_ylabel("peak extra memory (MB, ≥ 1)")
        lines = {
            line.get_label(): line
            for axes in grid.flat
            for line in axes.get_lines()
            if not str(line.get_label()).startswith("_")
        }
        limit = min(axis["limit_seconds"] for axis in curves.values())
        tools = [tool for axis in curves.values() for tool in axis["tools"].values()]
        stops = any(tool["stopped_at"] is not None for tool in tools)
        crosses = f"A cross: this point took more than {limit:g} s,\nor the peer's next one would"
        picture.legend(
            lines.values(),
            lines.keys(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            title=crosses if stops else None,
        )
        is_svg = path.suffix == ".svg"
        picture.savefig(
            path, dpi=150, transparent=True, metadata={"Date": None} if is_svg else None
        )


def _curve(axes: Axes, name: str, axis: Mapping[str, Any], quantity: str, unit: float) -> None:
    for tool, curve in axis["tools"].items():
        if not curve["points"]:
            axes.text(0.03, 0.95, f"{tool}: none in time", transform=axes.transAxes, va="top")
            continue
        points = sorted(curve["points"], key=lambda point: point[name])
        x = [point[name] for point in points]
        # A log axis has no zero: what is below the resolution is drawn there.
        y = [max(point[quantity] / unit, 1e-3 if unit == 1 else 1.0) for point in points]
        axes.plot(x, y, marker="o", markersize=3.5, color=COLOURS[tool], label=tool)
        if curve["stopped_at"] is not None:
            last = curve["points"][-1]
            axes.plot(
                last[name],
                max(last[quantity] / unit, 1e-3),
                marker="x",
                markersize=9,
                markeredgewidth=2,
                color=COLOURS[tool],
            )
    axes.set(xscale="log", yscale="log")
    if math.log10(max(axes.get_xlim()) / min(axes.get_xlim())) > 1:
        axes.xaxis.set_major_formatter(LogFormatterSciNotation())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=INK, alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def main(arguments: list[str] | None = None) -> None:
    """Measure one point, for :func:`sweep`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--point", type=json.loads, required=True, help="a Point, as JSON")
    given = parser.parse_args(arguments)
    print(json.dumps(measure_point(Point(**given.point))))


if __name__ == "__main__":
    main()
