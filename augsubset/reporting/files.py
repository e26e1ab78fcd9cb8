"""Write a report: a page that fetches nothing, and what it says as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from augsubset.pipeline import Delivery
from augsubset.reporting.page import render
from augsubset.reporting.pictures import Picture, pictures_of, spectrum_of
from augsubset.reporting.summary import summary
from augsubset.sampling.source import Source
from augsubset.utils.checkpoint import write_whole

__all__ = ["Shown", "run_pictures", "write_report", "write_run"]


class Shown(NamedTuple):
    """What a report can show beside figures.

    Args:
        model: The user's.
        source: Their data.
        delivery: Their policies.
        labels: Class of each example; ``None`` where there are none.
        device: Where the model is.
    """

    model: nn.Module
    source: Source
    delivery: Delivery
    labels: Tensor | None
    device: torch.device


def run_pictures(figures: Mapping[str, Any], shown: Shown) -> dict[str, list[Picture]]:
    """Return pictures of the examples that a summary lists."""
    seed = figures["setting"]["seed"]
    return {
        name: pictures_of(
            shown.source,
            shown.delivery,
            [entry["index"] for entry in figures[name]],
            shown.labels,
            seed=seed,
        )
        for name in ("most", "least", "never")
    }


def write_run(
    path: str | PathLike[str],
    state: Mapping[str, Any],
    shown: Shown,
    *,
    images: int,
    spectrum: int,
) -> Path:
    """Write the report of a loader: its state, and pictures of its data."""
    figures = summary(state, num_listed=images or 12)
    pictures = run_pictures(figures, shown) if images else {}
    if spectrum and figures["most"]:
        chosen = torch.nonzero(state["tally"]["times"] > 0).squeeze(1)[:spectrum]
        figures["spectrum"] = spectrum_of(
            shown.model,
            shown.source,
            shown.delivery,
            chosen.tolist(),
            shown.device,
            seed=state["seed"],
        )
    labels = None if shown.labels is None else shown.labels.tolist()
    return write_report(path, figures, state["tally"], pictures, labels)


def write_report(
    path: str | PathLike[str],
    figures: Mapping[str, Any],
    tally: Mapping[str, Any],
    pictures: Mapping[str, Sequence[Picture]] | None = None,
    labels: Sequence[int] | None = None,
) -> Path:
    """Write ``index.html``, ``report.json``, ``selections.csv`` and ``examples.csv``.

    Args:
        path: A folder, made if it is not there.
        figures: Of :func:`~augsubset.reporting.summary`.
        tally: Of the loader's state: counts of each example.
        pictures: By list: most, least and never selected.
        labels: Class of each example, for the CSV.

    Returns:
        The page.

    Raises:
        OSError: If the folder cannot be written; files are whole or not there.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    scalars = [
        {key: value for key, value in entry.items() if not isinstance(value, (list, dict))}
        for entry in figures["selections"]
    ]
    names = list(dict.fromkeys(key for entry in scalars for key in entry))
    times, mass = tally["times"].tolist(), tally["mass"].tolist()
    columns = ["index", "times_selected", "mass"] + ([] if labels is None else ["label"])
    rows = zip(range(len(times)), times, mass, *([] if labels is None else [labels]), strict=True)
    page = folder / "index.html"
    write_whole(folder / "report.json", json.dumps(figures, indent=1).encode())
    write_whole(
        folder / "selections.csv",
        _csv(names, ([entry.get(name, "") for name in names] for entry in scalars)),
    )
    write_whole(folder / "examples.csv", _csv(columns, rows))
    write_whole(page, render(figures, pictures or {}).encode())
    return page


def _csv(columns: Sequence[str], rows: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()
