"""Charts as inline SVG, in the page's colours, with values as tooltips."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Axes", "draw_bars", "draw_lines", "draw_shares", "draw_stacked"]

_WIDTH, _HEIGHT = 640.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 14.0, 42.0, 52.0
_COLOURS = tuple(f"var(--{name})" for name in "abcdef")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axes:
    """What a chart shows, in words.

    Args:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        description: For readers who do not see the chart.
        percent: Whether to print values as percentages.
        logarithmic: Whether the vertical axis of a line chart is logarithmic.
    """

    x: str
    y: str
    description: str
    percent: bool = False
    logarithmic: bool = False


def draw_lines(series: Mapping[str, Points], axes: Axes, *, top: float | None = None) -> str:
    """Return a line chart with a legend; an empty string if there are no points.

    Args:
        series: Points (x, y) by name.
        axes: Titles and scale.
        top: Upper end of the y axis; by default the first round number above all values.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    first, last = min(xs), max(max(xs), min(xs) + 1)
    if axes.logarithmic:
        high = max(*ys, 1e-12)
        ticks = _choose_log_ticks(max(min(ys), high / 1e6), high)
    else:
        ticks = _choose_ticks(0, top if top is not None else max(*ys, 1e-12))

    def measure(y: float) -> float:
        """Return the height of a value, as a share of the axis."""
        if axes.logarithmic:
            return math.log(max(y, ticks[0]) / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return y / ticks[-1]

    drawn = []
    for (name, each), colour in zip(series.items(), _COLOURS, strict=False):
        places = [(_scale_x((x - first) / (last - first)), _scale_y(measure(y))) for x, y in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(each) <= 200:
            for point, (x, y) in zip(each, places, strict=True):
                tooltip = html.escape(f"{name}, {point[0]:g}: {_format(point[1], axes.percent)}")
                drawn.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">'
                    f"<title>{tooltip}</title></circle>"
                )
    below = [tick for tick in _choose_ticks(first, last, 1.0) if first <= tick <= last]
    return _draw_chart(
        drawn,
        [(_scale_y(measure(tick)), _format(tick, axes.percent)) for tick in ticks],
        [(_scale_x((tick - first) / (last - first)), f"{tick:g}") for tick in below],
        axes,
    ) + _draw_legend(list(series))


def draw_bars(groups: Mapping[str, Sequence[float]], names: Sequence[str], axes: Axes) -> str:
    """Return a bar chart, with the bars of a group side by side.

    Args:
        groups: Values of each group, by label.
        names: Name of each value in a group.
        axes: Titles and scale.
    """
    ticks = _choose_ticks(0, max(value for group in groups.values() for value in group) or 1)
    width = (_WIDTH - _LEFT - _RIGHT) / len(groups)
    drawn, labels = [], []
    every = -(-len(groups) // 12)  # more labels would overlap
    for place, (label, group) in enumerate(groups.items()):
        begin, each = _LEFT + place * width + width * 0.1, width * 0.8 / len(group)
        for offset, (value, name) in enumerate(zip(group, names, strict=True)):
            y = _scale_y(value / ticks[-1])
            tooltip = html.escape(f"{label}, {name}: {_format(value, axes.percent)}")
            drawn.append(
                f'<rect x="{begin + offset * each:.1f}" y="{y:.1f}" width="{each:.1f}" '
                f'height="{_scale_y(0) - y:.1f}" fill="{_COLOURS[offset]}">'
                f"<title>{tooltip}</title></rect>"
            )
        if place % every == 0:
            labels.append((begin + width * 0.4, label if len(label) <= 8 else f"{label[:7]}…"))
    legend = _draw_legend(names) if len(names) > 1 else ""
    return _draw_chart(drawn, _place(ticks, axes.percent), labels, axes) + legend


def draw_stacked(
    columns: Sequence[tuple[float, Sequence[float]]], names: Sequence[str], axes: Axes
) -> str:
    """Return a stacked bar chart, in seconds.

    Args:
        columns: Position on the x axis and parts of each column.
        names: Name of each part.
        axes: Titles.
    """
    ticks = _choose_ticks(0, max(sum(parts) for _, parts in columns) or 1)
    width = (_WIDTH - _LEFT - _RIGHT) / len(columns)
    drawn, labels = [], []
    every = -(-len(columns) // 12)
    for place, (at, parts) in enumerate(columns):
        below = 0.0
        for part, name, colour in zip(parts, names, _COLOURS, strict=False):
            y = _scale_y((below + part) / ticks[-1])
            tooltip = html.escape(f"{at:g}, {name.split(' (')[0]}: {part:.3g} s")
            drawn.append(
                f'<rect x="{_LEFT + place * width:.1f}" y="{y:.1f}" width="{width * 0.92:.1f}" '
                f'height="{_scale_y(below / ticks[-1]) - y:.1f}" fill="{colour}">'
                f"<title>{tooltip}</title></rect>"
            )
            below += part
        if place % every == 0:
            labels.append((_LEFT + (place + 0.46) * width, f"{at:g}"))
    return _draw_chart(drawn, _place(ticks, False), labels, axes) + _draw_legend(names)


def draw_shares(rows: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Return horizontal stacked bars of seconds, one below the other; they fit any width.

    Args:
        rows: Parts of each bar, by label.
        names: Name of each part.
    """
    longest = max(sum(parts) for parts in rows.values()) or 1
    drawn = []
    for label, parts in rows.items():
        bars = "".join(
            f'<i style="width:{100 * part / longest:.2f}%;background:{colour}" '
            f'title="{html.escape(name)}: {part:.2f} s"></i>'
            for part, name, colour in zip(parts, names, _COLOURS, strict=False)
        )
        drawn.append(
            f"<div>{html.escape(label)}: {sum(parts):.2f} s</div><div class='bar'>{bars}</div>"
        )
    return f'<div class="bars">{"".join(drawn)}</div>{_draw_legend(names)}'


def _choose_ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Return four to seven round numbers, at least ``least`` apart, that enclose a range."""
    rough = max((high - low) / 5, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _choose_log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers of a logarithmic scale that enclose a range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(powers) <= 3 else (1,)
    marks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    first = max(place for place, mark in enumerate(marks) if mark <= low * 1.001)
    last = min((place for place, mark in enumerate(marks) if mark >= high * 0.999))
    return marks[first : max(last, first + 1) + 1]


def _place(ticks: Sequence[float], percent: bool) -> list[tuple[float, str]]:
    return [(_scale_y(tick / ticks[-1]), _format(tick, percent)) for tick in ticks]


def _scale_x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _scale_y(share: float) -> float:
    return _HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _format(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value:,.0f}" if value == int(value) and value < 1e9 else f"{value:.3g}"


def _draw_chart(
    drawn: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    labels: Sequence[tuple[float, str]],
    axes: Axes,
) -> str:
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
        'stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in ticks
    )
    below = "".join(
        f'<text x="{x:.1f}" y="{_HEIGHT - 30}" text-anchor="middle">{html.escape(text)}</text>'
        for x, text in labels
    )
    titles = (
        f'<text class="title" x="0" y="16">{html.escape(axes.y)}</text>'
        f'<text class="title" x="{_scale_x(0.5):.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(axes.x)}</text>"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{html.escape(axes.description)}">{grid}{"".join(drawn)}{below}{titles}'
        "</svg>\n"
    )


def _draw_legend(names: Sequence[str]) -> str:
    entries = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for name, colour in zip(names, _COLOURS, strict=False)
    )
    return f'<div class="legend">{entries}</div>\n'
