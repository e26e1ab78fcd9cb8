"""Write a report as a self-contained page, with its figures as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from augsubset.loader import SubsetAugmentLoader
from augsubset.reporting.doctor import check_loader
from augsubset.reporting.page import render
from augsubset.reporting.pictures import (
    Picture,
    find_class_names,
    make_pictures,
    measure_spectrum,
)
from augsubset.reporting.summary import refuse_malformed_states, summarize
from augsubset.utils.checkpoint import write_whole
from augsubset.utils.checks import AugsubsetError, check_int
from augsubset.utils.rng import forked_rng

__all__ = ["choose_pictures", "report", "write_report"]


def report(
    loader: SubsetAugmentLoader, path: str | PathLike[str], *, images: int = 12, spectrum: int = 0
) -> Path:
    """Write a report on what a loader has selected so far and how much time that saved.

    Args:
        loader: A loader between two epochs.
        path: A folder, created if it does not exist.
        images: Number of examples to show in each of three lists (most, least and never selected),
            each with two augmented copies.
        spectrum: Number of selected examples over which to compute the singular values of the
            Jacobian, original and augmented (needs scipy); 0: leave the section out.

    Returns:
        The page, ``index.html`` in the folder: a single file without external resources.

    Raises:
        TypeError: If a number is not an int, or ``loader`` is not a ``SubsetAugmentLoader``.
        ValueError: If one is negative.
        ImportError: If images are to be shown and Pillow is not installed
            (``pip install "augsubset[report]"``), or scipy for a spectrum.
        AugsubsetError: While an epoch runs.

    Cost:
        Fetches each example shown once; a spectrum takes one backward pass per output and example.
    """
    check_int("images", images, 0)
    check_int("spectrum", spectrum, 0)
    with _prepare(loader):
        state = loader.state_dict()
        figures = summarize(state, num_listed=images or 12)
        names = find_class_names(loader.dataset)
        if named := {str(c): names[c] for c in figures["classes"] if c in names}:
            figures["class_names"] = named
        pictures = _make_lists(loader, figures) if images else {}
        if spectrum and figures["most"]:
            chosen = torch.nonzero(state["counts"]["times"] > 0).squeeze(1)[:spectrum]
            figures["spectrum"] = measure_spectrum(loader, chosen.tolist())
    classes = loader.info.classes
    labels = None if classes is None else classes.tolist()
    return write_report(path, figures, state["counts"], pictures, labels)


def choose_pictures(loader: SubsetAugmentLoader, images: int = 12) -> dict[str, list[Picture]]:
    """Return the ``most``, ``least`` and ``never`` selected examples as the report shows them.

    Args:
        loader: A loader between two epochs.
        images: Number of examples per list.

    Returns:
        Lists by name; empty if the inputs are not images.

    Raises:
        AugsubsetError: While an epoch runs.
    """
    check_int("images", images, 1)
    with _prepare(loader):
        return _make_lists(loader, summarize(loader.state_dict(), num_listed=images))


def _make_lists(
    loader: SubsetAugmentLoader, figures: Mapping[str, Any]
) -> dict[str, list[Picture]]:
    return {
        name: make_pictures(loader, [entry["index"] for entry in figures[name]])
        for name in ("most", "least", "never")
    }


@contextmanager
def _prepare(loader: SubsetAugmentLoader) -> Iterator[None]:
    """Check that no epoch runs, and leave the caller's random number generators unchanged."""
    check_loader(loader)
    if loader.is_running:
        raise AugsubsetError(
            "a report cannot be written while an epoch runs. Call loader.close() first."
        )
    device = loader.prober.device
    loader.source.to(device)
    with forked_rng(loader.seed, [device]):
        yield


def write_report(
    path: str | PathLike[str],
    figures: Mapping[str, Any],
    counts: Mapping[str, Any],
    pictures: Mapping[str, Sequence[Picture]] | None = None,
    labels: Sequence[int] | None = None,
) -> Path:
    """Write ``index.html``, ``report.json``, ``selections.csv`` and ``examples.csv``.

    Args:
        path: A folder, created if it does not exist.
        figures: From :func:`summarize`.
        counts: Selection counts, from the loader's state.
        pictures: By list: ``most``, ``least`` and ``never`` selected.
        labels: Class of each example, for the CSV.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the figures are of a malformed state; nothing is written.
        OSError: If a file cannot be written; none is left incomplete.
    """
    with refuse_malformed_states():
        contents = _format_files(figures, counts, pictures or {}, labels)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return folder / "index.html"


def _format_files(
    figures: Mapping[str, Any],
    counts: Mapping[str, Any],
    pictures: Mapping[str, Sequence[Picture]],
    labels: Sequence[int] | None,
) -> dict[str, bytes]:
    """Return the content of each file."""
    scalars = [
        {key: value for key, value in entry.items() if not isinstance(value, (list, dict))}
        for entry in figures["selections"]
    ]
    names = list(dict.fromkeys(key for entry in scalars for key in entry))
    times, mass = counts["times"].tolist(), counts["mass"].tolist()
    columns = ["index", "times_selected", "mass"] + ([] if labels is None else ["label"])
    rows = zip(range(len(times)), times, mass, *([] if labels is None else [labels]), strict=True)
    selections = ([entry.get(name, "") for name in names] for entry in scalars)
    return {
        "report.json": json.dumps(figures, indent=1).encode(),
        "selections.csv": _format_csv(names, selections),
        "examples.csv": _format_csv(columns, rows),
        "index.html": render(figures, pictures).encode(),
    }


def _format_csv(columns: Sequence[str], rows: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()
