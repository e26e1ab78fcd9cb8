"""Render the report page: the verdict, then what was selected, how well, and at what cost."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from augsubset.reporting.charts import Axes, draw_bars, draw_lines, draw_stacked
from augsubset.reporting.document import format_duration, make_document
from augsubset.reporting.pictures import Picture, render_images
from augsubset.reporting.summary import BUCKETS

__all__ = ["render"]

# The only use of a script: filter the images by class.
_SCRIPT = """
for (const choice of document.querySelectorAll("select[data-of]")) {
  choice.parentElement.hidden = false;
  choice.addEventListener("change", () => {
    for (const figure of document.querySelectorAll("#" + choice.dataset.of + " figure"))
      figure.hidden = choice.value !== "" && figure.dataset.label !== choice.value;
  });
}
"""

_MAX_CLASSES = 40  # in the chart of class balance
_LISTS = {
    "most": "Selected most often",
    "least": "Selected least often, at least once",
    "never": "Never selected: an even sample",
}


def render(figures: Mapping[str, Any], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return a report as HTML.

    Args:
        figures: From :func:`~augsubset.reporting.summarize`, with ``spectrum`` if requested.
        pictures: By list: ``most``, ``least`` and ``never`` selected.
    """
    parts = [
        _render_head(figures),
        _render_coverage(figures),
        _render_classes(figures),
        _render_fit(figures),
        _render_time(figures),
        _render_spectrum(figures),
        *(_render_list(name, figures, pictures.get(name, ())) for name in _LISTS),
        _render_table(figures),
    ]
    return make_document("augsubset: what the run selected", "".join(parts), _SCRIPT)


def _render_head(figures: Mapping[str, Any]) -> str:
    n, selections = figures["num_examples"], figures["selections"]
    last = selections[-1] if selections else None
    facts = [("examples", f"{n:,}"), ("classes", f"{len(figures['class_sizes']):,}")]
    facts += [("epochs", f"{len(figures['epochs']):,}"), ("selections", f"{len(selections):,}")]
    if last is not None:
        facts.append(("share selected", f"{last['num_selected'] / n:.1%}"))
        facts.append(("selected at least once", f"{last['covered']:.1%}"))
    cells = "".join(f"<div>{name}<b>{value}</b></div>" for name, value in facts)
    return (
        f"<h1>{_make_headline(figures['savings'])}</h1>\n{_render_savings(figures)}"
        f'<div class="facts">{cells}</div>\n'
    )


def _make_headline(savings: Mapping[str, Any] | None) -> str:
    if savings is None:
        return "Nothing has been augmented yet"
    if not savings["pays"]:
        return "Augmenting a subset did not pay off in time here"
    share = 1 - 1 / savings["speed_up"]
    return f"Augmenting a subset saved about {share:.0%} of the time of augmenting everything"


def _render_savings(figures: Mapping[str, Any]) -> str:
    """Describe what was saved, or say that nothing was augmented."""
    savings = figures["savings"]
    if savings is None:
        return "<p>No savings can be estimated before the first augmented copy.</p>\n"
    share = figures["seconds"]["selection"] / max(savings["seconds"], 1e-9)
    return (
        f"<p><b>{savings['verdict']}</b></p>\n"
        "<p>This is about time alone: the report knows nothing about accuracy. To see whether the "
        "subset trains as good a model, compare with a run that augments everything and one with "
        "a random subset of the same size.</p>\n"
        f"<p>The run trained on {savings['num_copies']:,} augmented copies; augmenting every "
        f"example would have made {savings['num_copies_full']:,}. Selection took {share:.1%} of "
        f"the epochs' {format_duration(savings['seconds'])}. At this run's cost per fetched "
        "example, row and copy, waiting for workers included, augmenting everything would have "
        f"taken about {format_duration(savings['full_seconds'])}: an estimate, it was not "
        "run.</p>\n<p class='note'>The doctor "
        "uses the same definition of savings for a forecast, which averages selections over the "
        "epochs between them and times each part separately. The figures here include the "
        "selections that were made and the waiting times that occurred.</p>\n"
    )


def _render_coverage(figures: Mapping[str, Any]) -> str:
    selections = figures["selections"]
    if not selections:
        return "<h2>What was selected, and when</h2><p>No selection has been made yet.</p>"
    at = [entry["active_from"] for entry in selections]
    covered = [(x, entry["covered"]) for x, entry in zip(at, selections, strict=True)]
    overlap = [
        (x, entry["overlap"])
        for x, entry in zip(at, selections, strict=True)
        if entry["overlap"] is not None
    ]
    times = figures["times_selected"]
    chart = draw_lines(
        {"selected so far": covered, "also in the previous selection": overlap},
        Axes(
            "first epoch of a selection",
            "share of examples",
            f"Coverage over time: {covered[-1][1]:.1%} of the examples were selected so far.",
            percent=True,
        ),
        top=1.0,
    )
    counts = {
        str(count): (number,) for count, number in enumerate(times) if len(times) <= 40 or number
    }
    never = f"{figures['num_never']:,} of {figures['num_examples']:,} examples were never selected."
    bars = draw_bars(
        counts, ("examples",), Axes("times selected", "number of examples", f"How often: {never}")
    )
    return (
        f"<h2>What was selected, and when</h2>\n{chart}"
        f"<h2>How often each example was selected</h2>\n{bars}<p class='note'>{never}</p>\n"
    )


def _render_classes(figures: Mapping[str, Any]) -> str:
    """Compare classes, only where the selection does not have the data's class balance."""
    sizes, selections = figures["class_sizes"], figures["selections"]
    counts = selections[-1]["class_counts"] if selections else []
    if len(sizes) < 2 or len(counts) != len(sizes):  # labels may have changed since
        return ""
    total, selected = sum(sizes), sum(counts)
    # Every class has one at least, and quotas are whole numbers.
    expected = [max(1.0, selected * size / total) for size in sizes]
    if all(abs(count - each) <= 1 for count, each in zip(counts, expected, strict=True)):
        return (
            "<h2>Class balance</h2>\n<p>The latest selection has the class balance of the data, "
            "to within one example per class.</p>\n"
        )
    names = figures.get("class_names", {})
    shares = {
        names.get(str(label), str(label)): (size / total, count / selected)
        for label, size, count in zip(figures["classes"], sizes, counts, strict=True)
    }
    note = ""
    if len(shares) > _MAX_CLASSES:
        differences = {name: abs(chosen - given) for name, (given, chosen) in shares.items()}
        kept = set(sorted(differences, key=differences.__getitem__)[-_MAX_CLASSES:])
        shares = {name: each for name, each in shares.items() if name in kept}
        note = f"<p class='note'>The {_MAX_CLASSES} classes whose shares differ most.</p>"
    axes = Axes("class", "share", "Share of each class in data and selection", percent=True)
    chart = draw_bars(shares, ("share of the data", "share of the latest selection"), axes)
    return f"<h2>Class balance</h2>\n{chart}{note}\n"


def _render_fit(figures: Mapping[str, Any]) -> str:
    """Show the certificates: how far the coresets' gradients are from those of the data."""
    entries = [entry for entry in figures["selections"] if entry.get("error") is not None]
    if not entries:
        return ""
    norm = [max(entry.get("gradient_norm") or 0.0, 1e-30) for entry in entries]

    def relative(key: str) -> list[tuple[float, float]]:
        return [
            (entry["active_from"], entry[key] / by)
            for entry, by in zip(entries, norm, strict=True)
            if entry.get(key) is not None
        ]

    series = {
        "guaranteed: the error is at most this": relative("error"),
        "measured error": relative("gradient_error"),
        "no subset of this size could guarantee less than this": relative("error_lower_bound"),
    }
    measured = series["measured error"]
    sentence = ""
    if measured:
        sentence = (
            f"The latest selection, weighted by cluster size, misses the gradient of the whole "
            f"data by {measured[-1][1]:.1%} of its length. "
        )
    axes = Axes("first epoch of a selection", "error / length of the full gradient", sentence)
    chart = draw_lines({name: points for name, points in series.items() if points}, axes)
    return (
        f"<h2>How well the subset represents the data</h2>\n<p>{sentence}0 would be a perfect "
        f"approximation; 1 is no better than a zero gradient.</p>\n{chart}"
    )


def _render_time(figures: Mapping[str, Any]) -> str:
    epochs, seconds = figures["epochs"], figures["seconds"]
    if not epochs:
        return ""
    # At most a hundred bars, however many epochs.
    step = -(-len(epochs) // 100)
    columns = [
        (
            epochs[first]["epoch"],
            [
                sum(entry[f"{bucket}_seconds"] for entry in epochs[first : first + step])
                for bucket in BUCKETS
            ],
        )
        for first in range(0, len(epochs), step)
    ]
    names = [f"{bucket} ({format_duration(seconds[bucket])})" for bucket in BUCKETS]
    unit = "one epoch" if step == 1 else f"{step} epochs"
    axes = Axes("epoch", "seconds", f"Seconds by part: {', '.join(names)}")
    return (
        f"<h2>Where the time went</h2>\n{draw_stacked(columns, names, axes)}"
        f"<p class='note'>A bar is {unit}. Step: everything outside the loader.</p>\n"
    )


def _render_spectrum(figures: Mapping[str, Any]) -> str:
    spectrum = figures.get("spectrum")
    if spectrum is None:
        return ""
    series = {
        name: [(float(place), float(value)) for place, value in enumerate(spectrum[name], 1)]
        for name in ("original", "augmented")
    }
    axes = Axes(
        "rank", "singular value", "Singular values, original and augmented", logarithmic=True
    )
    return (
        f"<h2>Singular values of the Jacobian</h2>\n{draw_lines(series, axes)}"
        f"<p class='note'>Over {spectrum['num_examples']} selected examples, in descending order. "
        "Augmentation moves no singular value by more than the perturbation's norm, "
        f"{spectrum['perturbation_norm']:.3g}.</p>\n"
    )


def _render_list(name: str, figures: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    entries = figures[name]
    if not entries:
        return ""
    title = f"<h2>{_LISTS[name]}</h2>\n"
    if not pictures:
        indices = ", ".join(
            f"{entry['index']} ({_format_times(entry['times'])})"
            if entry["times"]
            else str(entry["index"])
            for entry in entries
        )
        return f"{title}<p>Indices: {indices}.</p>\n"
    by_index = {entry["index"]: entry for entry in entries}
    labels = {picture.label: _name_class(picture) for picture in pictures}
    choice = ""
    if len(labels) > 1 and None not in labels:
        options = "".join(
            f'<option value="{label}">{html.escape(labels[label])}</option>'
            for label in sorted(labels, key=lambda label: label or 0)
        )
        choice = (
            f'<p hidden>Class: <select data-of="{name}"><option value="">all</option>{options}'
            "</select></p>\n"
        )
    shown = "".join(_render_picture(picture, by_index[picture.index]) for picture in pictures)
    return f'{title}{choice}<div class="strip" id="{name}">{shown}</div>\n'


def _name_class(picture: Picture) -> str:
    if picture.name is not None:
        return picture.name
    return "" if picture.label is None else f"class {picture.label}"


def _render_picture(picture: Picture, entry: Mapping[str, Any]) -> str:
    words = [f"example {picture.index}", _name_class(picture)]
    what = ", ".join(word for word in words if word)
    times = f", selected {_format_times(entry['times'])}" if entry["times"] else ""
    label = "" if picture.label is None else picture.label
    return (
        f'<figure data-label="{label}">{render_images(picture.images, what)}'
        f"<figcaption>{html.escape(what)}{times}</figcaption></figure>"
    )


def _format_times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _render_table(figures: Mapping[str, Any]) -> str:
    columns = {
        "active_from": "from epoch",
        "selector": "selector",
        "num_selected": "selected",
        "effective_sample_size": "effective sample size",
        "overlap": "also in the previous selection",
        "covered": "selected so far",
        "error": "guaranteed error",
        "gradient_error": "measured error",
        "probe_seconds": "probe, s",
        "solve_seconds": "solve, s",
    }
    head = "".join(f"<th>{title}</th>" for title in columns.values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{_format_cell(entry.get(name))}</td>" for name in columns) + "</tr>"
        for entry in figures["selections"]
    )
    setting = ", ".join(
        f"{name} {html.escape(str(value))}" for name, value in figures["setting"].items()
    )
    return (
        f"<h2>All selections</h2>\n<details><summary>{len(figures['selections'])} selections"
        f'</summary><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        f"</table></div></details>\n<p class='note'>Settings: {setting}. The same figures are in "
        "report.json, selections.csv and examples.csv.</p>\n"
    )


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
