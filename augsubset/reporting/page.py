"""Render the report page: one file, readable without scripts, on a phone and in dark mode."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from augsubset.reporting.charts import draw_bars, draw_lines, draw_stacked
from augsubset.reporting.pictures import Picture, encode_png
from augsubset.reporting.summary import BUCKETS

__all__ = ["render"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2328; --soft: #5c6770; --line: #d5dbe0; --paper: #fff;
  --a: #2b8a4b; --b: #d1742a; --c: #2a78b5; --d: #9aa7b5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --soft: #9ba6af; --line: #3a444c;
  --paper: #14191d; --a: #58b878; --b: #e69a5c; --c: #66aee0; --d: #76838f; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { max-width: 42rem; } .note { color: var(--soft); font-size: .9rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem;
  margin: 1rem 0; } .facts div { border-top: 3px solid var(--a); padding-top: .3rem; }
.facts b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: normal; vertical-align: bottom; } td { white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: .3rem 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figcaption { font-size: .75rem; color: var(--soft); }
figure img { width: 31%; margin-right: 2%; image-rendering: pixelated; aspect-ratio: 1; }
summary { cursor: pointer; } select { font: inherit; }
@media (max-width: 36rem) { svg text { font-size: 19px; } }
"""

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

_MAX_CLASSES = 40
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
        _render_certificate(figures),
        _render_time(figures),
        _render_spectrum(figures),
        *(_render_list(name, figures, pictures.get(name, ())) for name in _LISTS),
        _render_table(figures),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>augsubset: what the run selected</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{''.join(parts)}<script>{_SCRIPT}</script></body></html>\n"
    )


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
        f"<h1>What the run selected for augmentation</h1>\n"
        f'<div class="facts">{cells}</div>\n{_render_savings(figures)}'
    )


def _render_savings(figures: Mapping[str, Any]) -> str:
    """Describe what was saved, or say that nothing was augmented."""
    savings = figures["savings"]
    if savings is None:
        return "<p>Nothing has been augmented yet, so no savings can be estimated.</p>\n"
    share = figures["seconds"]["selection"] / max(savings["seconds"], 1e-9)
    return (
        f"<p>The run trained on {savings['num_copies']:,} augmented copies; augmenting every "
        f"example would have made {savings['num_copies_full']:,}. Selection took {share:.1%} of "
        f"the epochs' {_format_duration(savings['seconds'])}. At this run's cost per fetched "
        "example, row and copy, waiting for workers included, augmenting everything would have "
        f"taken about {_format_duration(savings['full_seconds'])}. <b>{savings['verdict']}</b> "
        "This is an estimate; augmenting everything was not run.</p>\n<p class='note'>The doctor "
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
        top=1.0,
        percent=True,
    )
    counts = {
        str(count): (number,) for count, number in enumerate(times) if len(times) <= 40 or number
    }
    return (
        "<h2>What was selected, and when</h2>\n"
        f"{chart}<p class='note'>Horizontal axis: a selection's first active epoch.</p>\n"
        "<h2>How often each example was selected</h2>\n"
        f"{draw_bars(counts, ('examples',))}<p class='note'>{figures['num_never']:,} of "
        f"{figures['num_examples']:,} examples were never selected.</p>\n"
    )


def _render_classes(figures: Mapping[str, Any]) -> str:
    sizes, selections = figures["class_sizes"], figures["selections"]
    counts = selections[-1]["class_counts"] if selections else []
    if len(sizes) < 2 or len(counts) != len(sizes):  # labels may have changed since
        return ""
    total, selected = sum(sizes), sum(counts)
    shares = {
        str(label): (size / total, count / selected)
        for label, size, count in zip(figures["classes"], sizes, counts, strict=True)
    }
    note = ""
    if len(shares) > _MAX_CLASSES:
        apart = sorted(shares, key=lambda label: -abs(shares[label][1] - shares[label][0]))
        shares = {label: shares[label] for label in sorted(apart[:_MAX_CLASSES], key=int)}
        note = f"<p class='note'>The {_MAX_CLASSES} classes whose shares differ most.</p>"
    chart = draw_bars(shares, ("share of the data", "share of the latest selection"), percent=True)
    return f"<h2>Class balance</h2>\n{chart}{note}\n"


def _render_certificate(figures: Mapping[str, Any]) -> str:
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
        "cost: upper bound on the gradient error": relative("error"),
        "gradient error of the coreset": relative("gradient_error"),
        "lower bound on the cost of any subset of this size": relative("error_lower_bound"),
    }
    chart = draw_lines({name: points for name, points in series.items() if points})
    return (
        f"<h2>Certificate</h2>\n{chart}<p class='note'>Relative to the norm of the full "
        "gradient: 1 means no better than a zero gradient.</p>\n"
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
    names = [f"{bucket} ({_format_duration(seconds[bucket])})" for bucket in BUCKETS]
    unit = "one epoch" if step == 1 else f"{step} epochs"
    return (
        f"<h2>Where the time went</h2>\n{draw_stacked(columns, names)}"
        f"<p class='note'>Seconds; a bar is {unit}. Step: everything outside the loader.</p>\n"
    )


def _render_spectrum(figures: Mapping[str, Any]) -> str:
    spectrum = figures.get("spectrum")
    if spectrum is None:
        return ""
    series = {
        name: [(float(place), float(value)) for place, value in enumerate(spectrum[name], 1)]
        for name in ("original", "augmented")
    }
    return (
        f"<h2>Singular values of the Jacobian</h2>\n{draw_lines(series, logarithmic=True)}"
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
    labels = sorted({picture.label for picture in pictures if picture.label is not None})
    choice = ""
    if len(labels) > 1:
        options = "".join(f'<option value="{label}">{label}</option>' for label in labels)
        choice = (
            f'<p hidden>Class: <select data-of="{name}"><option value="">all</option>{options}'
            "</select></p>\n"
        )
    shown = "".join(_render_picture(picture, by_index[picture.index]) for picture in pictures)
    return f'{title}{choice}<div class="strip" id="{name}">{shown}</div>\n'


def _render_picture(picture: Picture, entry: Mapping[str, Any]) -> str:
    alts = ["original"] + ["augmented copy"] * (len(picture.images) - 1)
    images = "".join(
        f'<img src="{encode_png(image)}" alt="{alt}">'
        for image, alt in zip(picture.images, alts, strict=True)
    )
    label = "" if picture.label is None else f", class {picture.label}"
    times = f", {_format_times(entry['times'])}" if entry["times"] else ""
    return (
        f'<figure data-label="{"" if picture.label is None else picture.label}">{images}'
        f"<figcaption>{picture.index}{label}{times}</figcaption></figure>"
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
        "error": "cost",
        "gradient_error": "gradient error",
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


def _format_duration(seconds: float) -> str:
    """Return seconds in a readable unit: 12 s, 3.4 min, 5.6 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
