"""The demo's page: its conclusion first, then the table, the curves, the time and the images."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from augsubset.augment import RandomOps, RowKeys
from augsubset.demo.data import Images
from augsubset.demo.results import name_arms
from augsubset.reporting.charts import Axes, draw_lines, draw_shares
from augsubset.reporting.document import make_document
from augsubset.reporting.pictures import render_images
from augsubset.selection import Selection

__all__ = ["render_page", "show_most_selected"]

_PARTS = {
    "step": "gradient steps",
    "augmentation": "augmentation",
    "selection": "selection",
    "loading": "fetching",
}


def render_page(record: Mapping[str, Any], gallery: str) -> str:
    """Return the page.

    Args:
        record: As written to ``results.json``.
        gallery: From :func:`show_most_selected`.
    """
    setting, summary, data = record["setting"], record["summary"], record["data"]
    labels = name_arms(setting["fraction"])
    paragraphs = "".join(
        f"<p><b>{question}</b> {html.escape(answer)}</p>\n"
        for question, answer in record["conclusion"].items()
    )
    num_seeds = len(record["seeds"])
    environment = ", ".join(f"{name} {value}" for name, value in record["environment"].items())
    body = f"""<h1>{html.escape(record["headline"])}</h1>
{paragraphs}<p class="note">One small network on {data["num_train"]:,} images of
{html.escape(data["name"])}, {num_seeds} {"seed" if num_seeds == 1 else "seeds"}: an illustration
of the method, which says little about other data and networks.</p>
<h2>Six ways to train the same network</h2>
<p>All start from the same weights and see every original image in each of {setting["epochs"]}
epochs. They differ in which images also get {setting["copies"]} augmented copies, chosen again
every {"epoch" if setting["every"] == 1 else f"{setting['every']} epochs"}.</p>
{_render_table(summary, labels)}
<p class="note">Accuracy on {data["num_test"]:,} test images: the mean over the seeds, with the
lowest and the highest. Seconds are the median training time of a run, selection and augmentation
included, evaluation not.</p>
<h2>Test error during training</h2>
{_draw_errors(record, labels)}<p class="note">Mean over the seeds. Lower is better; the axis is
logarithmic, so that late differences are visible. Compare lines at the same number of steps: a
line that ends further right was trained for longer.</p>
<h2>Where the time goes</h2>
{_draw_time(summary, labels)}{gallery}
<p class="note">{html.escape(environment)}. The same figures are in results.json.</p>
"""
    return make_document("augsubset: the demo", body)


def _render_table(summary: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    lines = []
    for name, row in summary.items():
        low, high = 100 * min(row["accuracies"]), 100 * max(row["accuracies"])
        lines.append(
            f"<tr><td>{html.escape(labels[name])}</td>"
            f"<td>{100 * row['accuracy']:.2f}<small>{low:.1f} to {high:.1f}</small></td>"
            f"<td>{row['steps']:.0f}</td><td>{row['seconds']['total']:.2f}</td></tr>"
        )
    heads = ("augmented", "accuracy, %", "gradient steps", "seconds")
    head = "".join(f"<th>{each}</th>" for each in heads)
    return (
        f'<table class="fits"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def _draw_errors(record: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    series = {}
    for name, runs in record["runs"].items():
        errors = zip(*(run["accuracies"] for run in runs), strict=True)
        points = zip(runs[0]["steps"], errors, strict=True)
        series[labels[name]] = [(float(step), 1 - fmean(accuracies)) for step, accuracies in points]
    finals = ", ".join(f"{name} {100 * points[-1][1]:.1f}%" for name, points in series.items())
    axes = Axes(
        "gradient steps",
        "test error",
        f"Test error against gradient steps, at the end: {finals}",
        percent=True,
        logarithmic=True,
    )
    return draw_lines(series, axes)


def _draw_time(summary: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    rows = {
        labels[name]: [row["seconds"][part] for part in _PARTS] for name, row in summary.items()
    }
    return draw_shares(rows, tuple(_PARTS.values()))


def show_most_selected(
    images: Images, selections: Sequence[tuple[int, Selection]], seed: int, count: int = 10
) -> str:
    """Return the images that a coreset selected most often, each with two of its copies."""
    times = torch.zeros(len(images.x_train), dtype=torch.int64)
    weight = torch.zeros(len(images.x_train), dtype=torch.float64)
    last = torch.zeros(len(images.x_train), dtype=torch.int64)
    for epoch, selection in selections:
        times[selection.indices] += 1
        weight[selection.indices] += selection.weights
        last[selection.indices] = epoch
    order = sorted(range(len(times)), key=lambda i: (-int(times[i]), -float(weight[i]), i))
    policy, figures = RandomOps.paper(), []
    for index in order[:count]:
        image = images.x_train[index : index + 1]
        rows = [RowKeys(seed, int(last[index]), index, copy) for copy in (1, 2)]
        shown = [image[0], *(policy(image, row)[0] for row in rows)]
        label = f"class {int(images.y_train[index])}"
        mean = float(weight[index]) / max(int(times[index]), 1)
        figures.append(
            f"<figure>{render_images(shown, f'an image of {label}')}<figcaption>{label}: selected "
            f"in {int(times[index])} of {len(selections)} selections, for {mean:.0f} images with "
            "similar gradients</figcaption></figure>"
        )
    return (
        "<h2>The images that the coreset selected most often</h2>\n<p>Each followed by two of the "
        f'augmented copies that were trained on.</p>\n<div class="strip">{"".join(figures)}</div>'
    )
