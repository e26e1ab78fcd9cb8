"""The page: one file, readable without scripts, on a phone, in the dark."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from augsubset.reporting.charts import bars, lines, stacked
from augsubset.reporting.pictures import Picture, as_png
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

# The one thing that a script adds: pictures of one class at a time.
_SCRIPT = """
for (const choice of document.querySelectorAll("select[data-of]")) {
  choice.parentElement.hidden = false;
  choice.addEventListener("change", () => {
    for (const figure of document.querySelectorAll("#" + choice.dataset.of + " figure"))
      figure.hidden = choice.value !== "" && figure.dataset.label !== choice.value;
  });
}
"""

_MOST_CLASSES = 40
_LISTS = {
    "most": "Most selected",
    "least": "Least selected, but once",
    "never": "Never selected: a spread",
}


def render(figures: Mapping[str, Any], pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return a report as HTML.

    Args:
        figures: Of :func:`~augsubset.reporting.summary`, with ``spectrum`` if that was asked for.
        pictures: By list: most, least and never selected.
    """
    parts = [
        _head(figures),
        _when(figures),
        _classes(figures),
        _certificate(figures),
        _time(figures),
        _spectrum(figures),
        *(_list(name, figures, pictures.get(name, ())) for name in _LISTS),
        _table(figures),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>augsubset: what the run selected</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{''.join(parts)}<script>{_SCRIPT}</script></body></html>\n"
    )


def _head(figures: Mapping[str, Any]) -> str:
    n, selections = figures["num_examples"], figures["selections"]
    last = selections[-1] if selections else None
    facts = [("examples", f"{n:,}"), ("classes", f"{len(figures['class_sizes']):,}")]
    facts += [("epochs", f"{len(figures['epochs']):,}"), ("selections", f"{len(selections):,}")]
    if last is not None:
        facts.append(("selected each time", f"{last['num_selected'] / n:.1%}"))
        facts.append(("selected at least once", f"{last['covered']:.1%}"))
    cells = "".join(f"<div>{name}<b>{value}</b></div>" for name, value in facts)
    return (
        f"<h1>What the run selected for augmentation</h1>\n"
        f'<div class="facts">{cells}</div>\n{_savings(figures)}'
    )


def _savings(figures: Mapping[str, Any]) -> str:
    """Say in words what was saved, or that nothing was."""
    savings = figures["savings"]
    if savings is None:
        return "<p>Nothing was augmented yet, so there is nothing to say of savings.</p>\n"
    share = figures["seconds"]["selection"] / max(savings["seconds"], 1e-9)
    return (
        f"<p>{savings['num_copies']:,} augmented copies were trained on; of all examples there "
        f"would have been {savings['num_copies_of_all']:,}. Selecting took {share:.1%} of the "
        f"{_duration(savings['seconds'])} that the epochs took. At what a fetched example, a row "
        "and a copy cost here, waits for workers included, augmenting everything would have taken "
        f"about {_duration(savings['seconds_of_all'])}. <b>{savings['verdict']}</b> An estimate, "
        "not a run.</p>\n<p class='note'>The doctor defines savings alike, but forecasts: there "
        "selections are spread over all epochs between them, and parts are timed by themselves, "
        "where here are the selections and the waits that there were.</p>\n"
    )


def _when(figures: Mapping[str, Any]) -> str:
    selections = figures["selections"]
    if not selections:
        return "<h2>What was selected, and when</h2><p>No selection was made yet.</p>"
    at = [entry["in_force_from"] for entry in selections]
    covered = [(x, entry["covered"]) for x, entry in zip(at, selections, strict=True)]
    overlap = [
        (x, entry["overlap"])
        for x, entry in zip(at, selections, strict=True)
        if entry["overlap"] is not None
    ]
    times = figures["times_selected"]
    chart = lines(
        {"selected so far": covered, "in the selection before too": overlap}, top=1.0, percent=True
    )
    counts = {
        str(count): (number,) for count, number in enumerate(times) if len(times) <= 40 or number
    }
    return (
        "<h2>What was selected, and when</h2>\n"
        f"{chart}<p class='note'>Shares, by the epoch from which a selection was in force.</p>\n"
        "<h2>How often each example was selected</h2>\n"
        f"{bars(counts, ('examples',))}<p class='note'>{figures['num_never']:,} of "
        f"{figures['num_examples']:,} examples never.</p>\n"
    )


def _classes(figures: Mapping[str, Any]) -> str:
    sizes, selections = figures["class_sizes"], figures["selections"]
    if len(sizes) < 2 or not selections:
        return ""
    counts = selections[-1]["class_counts"]
    total, selected = sum(sizes), sum(counts)
    shares = {
        str(label): (size / total, count / selected)
        for label, (size, count) in enumerate(zip(sizes, counts, strict=True))
    }
    note = ""
    if len(shares) > _MOST_CLASSES:
        apart = sorted(shares, key=lambda label: -abs(shares[label][1] - shares[label][0]))
        shares = {label: shares[label] for label in sorted(apart[:_MOST_CLASSES], key=int)}
        note = f"<p class='note'>The {_MOST_CLASSES} classes that differ most.</p>"
    chart = bars(shares, ("of the data", "of the last selection"), percent=True)
    return f"<h2>Class balance</h2>\n{chart}{note}\n"


def _certificate(figures: Mapping[str, Any]) -> str:
    entries = [entry for entry in figures["selections"] if entry.get("error") is not None]
    if not entries:
        return ""
    norm = [max(entry.get("gradient_norm") or 0.0, 1e-30) for entry in entries]

    def of(key: str) -> list[tuple[float, float]]:
        return [
            (entry["in_force_from"], entry[key] / by)
            for entry, by in zip(entries, norm, strict=True)
            if entry.get(key) is not None
        ]

    series = {
        "cost: bound on what the coreset's gradient misses": of("error"),
        "what it misses": of("gradient_error"),
        "least cost of any subset of this size": of("error_lower_bound"),
    }
    chart = lines({name: points for name, points in series.items() if points})
    return (
        f"<h2>Certificate</h2>\n{chart}<p class='note'>By the norm of all examples' summed "
        "gradient: what misses as much as 1 says no more than nothing.</p>\n"
    )


def _time(figures: Mapping[str, Any]) -> str:
    epochs, seconds = figures["epochs"], figures["seconds"]
    if not epochs:
        return ""
    # A long run's epochs in at most a hundred bars.
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
    names = [f"{bucket} ({_duration(seconds[bucket])})" for bucket in BUCKETS]
    unit = "an epoch" if step == 1 else f"{step} epochs"
    return (
        f"<h2>Where the time went</h2>\n{stacked(columns, names)}"
        f"<p class='note'>Seconds, {unit} a bar. Step: what the training loop did itself.</p>\n"
    )


def _spectrum(figures: Mapping[str, Any]) -> str:
    spectrum = figures.get("spectrum")
    if spectrum is None:
        return ""
    series = {
        name: [(float(place), float(value)) for place, value in enumerate(spectrum[name], 1)]
        for name in ("original", "augmented")
    }
    return (
        f"<h2>Singular values of the Jacobian</h2>\n{lines(series, logarithmic=True)}"
        f"<p class='note'>Of {spectrum['num_examples']} selected examples, largest first. The "
        f"perturbation's norm is {spectrum['perturbation_norm']:.3g}: none moved by more.</p>\n"
    )


def _list(name: str, figures: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    entries = figures[name]
    if not entries:
        return ""
    title = f"<h2>{_LISTS[name]}</h2>\n"
    if not pictures:
        indices = ", ".join(
            f"{entry['index']} ({_times(entry['times'])})"
            if entry["times"]
            else str(entry["index"])
            for entry in entries
        )
        return f"{title}<p>By index: {indices}.</p>\n"
    by_index = {entry["index"]: entry for entry in entries}
    labels = sorted({picture.label for picture in pictures if picture.label is not None})
    choice = ""
    if len(labels) > 1:
        options = "".join(f'<option value="{label}">{label}</option>' for label in labels)
        choice = (
            f'<p hidden>Class: <select data-of="{name}"><option value="">all</option>{options}'
            "</select></p>\n"
        )
    shown = "".join(_picture(picture, by_index[picture.index]) for picture in pictures)
    return f'{title}{choice}<div class="strip" id="{name}">{shown}</div>\n'


def _picture(picture: Picture, entry: Mapping[str, Any]) -> str:
    alts = ["original", *("augmented copy" for _ in picture.images[1:])]
    images = "".join(
        f'<img src="{as_png(image)}" alt="{alt}">'
        for image, alt in zip(picture.images, alts, strict=True)
    )
    label = "" if picture.label is None else f", class {picture.label}"
    times = f", {_times(entry['times'])}" if entry["times"] else ""
    return (
        f'<figure data-label="{"" if picture.label is None else picture.label}">{images}'
        f"<figcaption>{picture.index}{label}{times}</figcaption></figure>"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _table(figures: Mapping[str, Any]) -> str:
    columns = {
        "in_force_from": "from epoch",
        "selector": "rule",
        "num_selected": "selected",
        "effective_sample_size": "effective sample size",
        "overlap": "in the one before",
        "covered": "selected so far",
        "error": "cost",
        "gradient_error": "gradient error",
        "probe_seconds": "probe, s",
        "solve_seconds": "solve, s",
    }
    head = "".join(f"<th>{title}</th>" for title in columns.values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(entry.get(name))}</td>" for name in columns) + "</tr>"
        for entry in figures["selections"]
    )
    setting = ", ".join(
        f"{name} {html.escape(str(value))}" for name, value in figures["setting"].items()
    )
    return (
        f"<h2>Every selection</h2>\n<details><summary>{len(figures['selections'])} selections"
        f'</summary><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        f"</table></div></details>\n<p class='note'>Setting: {setting}. The same figures are in "
        "report.json, selections.csv and examples.csv.</p>\n"
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _duration(seconds: float) -> str:
    """Return seconds in words: 12 s, 3.4 min, 5.6 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
