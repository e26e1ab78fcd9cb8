"""Figures that are the same bytes each time that they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["COLOURS", "WIDTH", "new_figure", "save_figure"]

WIDTH = 5.4  # inches: shrunk to the width of a phone, 9 pt can still be read
COLOURS = {
    "none": "#8c8c8c",
    "full": "#222222",
    "random": "#2a78b5",
    "max-loss": "#d1742a",
    "coreset": "#2b8a4b",
}


def new_figure(height: float) -> Any:
    """Return a figure of that height, in inches, as wide as all are."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, without the date and with text as text."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "augsubset"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=100)
