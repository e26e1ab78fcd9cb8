"""Draw a demo's record as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

COLOURS = {
    "none": "#8c8c8c",
    "full": "#222222",
    "random": "#2a78b5",
    "max-loss": "#d1742a",
    "coreset": "#2b8a4b",
    "none-steps": "#b9a3d6",
}
BUCKETS = {"selection": "#2b8a4b", "step": "#9aa7b5", "augmentation": "#d1742a"}
BUCKET_LABELS = {"selection": "selection", "step": "gradient steps", "augmentation": "augmentation"}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap;
        font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
svg { max-width: 100%; height: auto; }
.strip { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 12rem; } figcaption { font-size: .75rem; color: #555; }
figure img { width: 3.8rem; height: 3.8rem; image-rendering: pixelated; border: 1px solid #ccc; }
.note { color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Gallery:
    """An image and two copies, ``(C, H, W)`` uint8, with what to say of it."""

    images: list[Tensor]
    caption: str


def render_page(record: dict[str, Any], galleries: list[Gallery]) -> str:
    """Return the page; everything is inline, nothing is fetched."""
    setting, rows = record["setting"], record["summary"]
    environment = record["environment"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>augsubset: {html.escape(environment["data"]["name"])}</title>
<style>{STYLE}</style></head><body>
<h1>Augmenting {setting["fraction"]:.0%} of the training images, or all of them</h1>
<p>The same {html.escape(setting["model"])} from the same initial weights, trained
{setting["epochs"]} epochs on {html.escape(environment["data"]["name"])}. Each augmented image
gives {setting["copies"]} copies; the subset is chosen anew every {setting["every"]} epochs.</p>
<div class="wide">{_table(rows)}</div>
<p class="note">Share of gain: how much of the way from no strong augmentation to full augmentation
an arm goes, n/a where that way is not positive. Seconds are of one run; fetching batches is in the
total alone, evaluation in none. Arms differ in gradient steps too: copies are appended rows.
<strong>{html.escape(record["caveat"])}</strong></p>
<h2>Test accuracy after each epoch</h2>
{_svg(_curves(record))}
<h2>Where the time goes</h2>
{_svg(_bars(record))}
{_strip(galleries)}
<p class="note">augsubset {html.escape(environment["augsubset"])} at
{html.escape(environment["commit"])}, torch {html.escape(environment["torch"])}, on
{html.escape(environment["device"])}, {environment["threads"]} threads.</p>
</body></html>
"""


def _table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "",
        "test accuracy, %",
        "lowest to highest",
        "share of full gain, %",
        "augmented examples",
        "gradient steps",
        "selection, s",
        "gradient steps, s",
        "augmentation, s",
        "total, s",
        "speed-up over full",
    )
    lines = []
    for row in rows:
        share, speed_up, seconds = row["share_of_gain"], row["speed_up"], row["seconds"]
        low, high = 100 * min(row["accuracies"]), 100 * max(row["accuracies"])
        cells = (
            row["label"],
            f"{100 * row['accuracy']:.2f}",
            f"{low:.2f} to {high:.2f}" if len(row["accuracies"]) > 1 else "n/a",
            "n/a" if share is None else f"{100 * share:.0f}",
            f"{row['augmented']:.0f}",
            f"{row['steps']:.0f}",
            f"{seconds['selection']:.2f}",
            f"{seconds['step']:.2f}",
            f"{seconds['augmentation']:.2f}",
            f"{seconds['total']:.2f}",
            "n/a" if speed_up is None else f"{speed_up:.2f}x",
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def render_picture(record: dict[str, Any]) -> Figure:
    """Return the accuracy curves and the time bars side by side, for a README."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_curves(left, record["runs"])
    draw_bars(right, _seconds(record))
    return figure


def _curves(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    _draw_curves(figure.subplots(), record["runs"])
    return figure


def _bars(record: dict[str, Any]) -> Figure:
    seconds = _seconds(record)
    figure = Figure(figsize=(8, 0.5 * len(seconds) + 1.1), layout="constrained")
    draw_bars(figure.subplots(), seconds)
    return figure


def _seconds(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["arm"]: row["seconds"] for row in record["summary"]}


def _draw_curves(axes: Axes, runs: dict[str, list[dict[str, Any]]]) -> None:
    longest = min(len(run["accuracies"]) for arms in runs.values() for run in arms)
    for name, seeds in runs.items():
        accuracies = 100 * np.array([run["accuracies"] for run in seeds])
        # An arm with more, shorter epochs is drawn over the same axis of training progress.
        epochs = np.linspace(0, longest, accuracies.shape[1] + 1)[1:]
        axes.plot(epochs, accuracies.mean(0), color=COLOURS[name], label=name, lw=1.8)
        axes.fill_between(
            epochs, accuracies.min(0), accuracies.max(0), color=COLOURS[name], alpha=0.12, lw=0
        )
    finals = [100 * run["accuracies"][-1] for arms in runs.values() for run in arms]
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.set_ylim(max(0.0, min(finals) - 25), min(100.0, max(finals) + 3))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_bars(axes: Axes, seconds: Mapping[str, Mapping[str, float]]) -> None:
    """Draw three-part bars of where the seconds of each arm went, an arm a row."""
    left = np.zeros(len(seconds))
    for bucket, colour in BUCKETS.items():
        width = np.array([spent[bucket] for spent in seconds.values()])
        axes.barh(list(seconds), width, left=left, color=colour, label=BUCKET_LABELS[bucket])
        left += width
    axes.invert_yaxis()
    axes.set(xlabel="seconds a run")
    # Above, since a bar may end in any corner.
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(BUCKETS))
    axes.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "augsubset"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :]


def _strip(galleries: list[Gallery]) -> str:
    if not galleries:
        return ""
    figures = "".join(
        "<figure>"
        + "".join(f'<img alt="" src="{_png(image)}">' for image in gallery.images)
        + f"<figcaption>{html.escape(gallery.caption)}</figcaption></figure>"
        for gallery in galleries
    )
    return (
        "<h2>The most selected images, each with two of its augmented copies</h2>"
        f'<div class="strip">{figures}</div>'
    )


def _png(image: Tensor) -> str:
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
