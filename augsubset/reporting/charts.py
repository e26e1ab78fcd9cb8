"""Charts as inline SVG, in the page's colours, with values as tooltips."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["draw_bars", "draw_lines", "draw_stacked"]

_WIDTH, _HEIGHT = 640.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 8.0, 12.0, 26.0
_COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)")

Points = Sequence[tuple[float, float]]


def draw_lines(
    series: Mapping[str, Points],
    *,
    top: float | None = None,
    percent: bool = False,
    logarithmic: bool = False,
) -> str:
    """Return a line chart with a legend; an empty string if there are no points.

    Args:
        series: Points (x, y) by name.
        top: Upper end of the y axis; by default the largest value.
        percent: Whether to print values as percentages.
        logarithmic: Whether the y axis is logarithmic.
    """
    points = [point for each in series.values() for point in each]
    if not points:
        return ""
    xs = [x for x, _ in points]
    first, last = min(xs), max(max(xs), min(xs) + 1)
    high = top if top is not None else max(max(y for _, y in points), 1e-12)
    low = max(min(y for _, y in points), high / 1e6) if logarithmic else 0.0

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - first) / (last - first)
        if logarithmic:
            up = math.log(max(y, low) / low) / max(math.log(high / low), 1e-12)
        else:
            up = y / high
        return _scale_x(along), _scale_y(up)

    drawn = []
    for (name, each), colour in zip(series.items(), _COLOURS, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in each))
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(each) <= 200:
            for point in each:
                x, y = place(*point)
                tooltip = html.escape(f"{name}, {point[0]:g}: {_format(point[1], percent)}")
                drawn.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">'
                    f"<title>{tooltip}</title></circle>"
                )
    ticks = [low * (high / low) ** (i / 4) if logarithmic else high * i / 4 for i in range(5)]
    return _draw_chart(
        drawn,
        [(_scale_y(i / 4), _format(tick, percent)) for i, tick in enumerate(ticks)],
        [(_scale_x(0), f"{first:g}", "start"), (_scale_x(1), f"{last:g}", "end")],
    ) + _draw_legend(list(series))


def draw_bars(
    groups: Mapping[str, Sequence[float]], names: Sequence[str], *, percent: bool = False
) -> str:
    """Return a bar chart, with the bars of a group side by side.

    Args:
        groups: Values of each group, by label.
        names: Name of each value in a group.
        percent: Whether to print values as percentages.
    """
    high = max((value for group in groups.values() for value in group), default=0) or 1
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    drawn, labels = [], []
    every = -(-len(groups) // 20)  # more labels would overlap
    for place, (label, group) in enumerate(groups.items()):
        begin, each = _LEFT + place * width + width * 0.1, width * 0.8 / len(group)
        for offset, (value, name) in enumerate(zip(group, names, strict=True)):
            y = _scale_y(value / high)
            tooltip = html.escape(f"{label}, {name}: {_format(value, percent)}")
            drawn.append(
                f'<rect x="{begin + offset * each:.1f}" y="{y:.1f}" width="{each:.1f}" '
                f'height="{_scale_y(0) - y:.1f}" fill="{_COLOURS[offset]}">'
                f"<title>{tooltip}</title></rect>"
            )
        if place % every == 0:
            labels.append((begin + width * 0.4, label, "middle"))
    ticks = [(_scale_y(i / 4), _format(high * i / 4, percent)) for i in range(5)]
    legend = _draw_legend(names) if len(names) > 1 else ""
    return _draw_chart(drawn, ticks, labels) + legend


def draw_stacked(columns: Sequence[tuple[float, Sequence[float]]], names: Sequence[str]) -> str:
    """Return a stacked bar chart.

    Args:
        columns: Position on the x axis and parts of each column.
        names: Name of each part.
    """
    high = max(sum(parts) for _, parts in columns) or 1
    width = (_WIDTH - _LEFT - _RIGHT) / len(columns)
    drawn = []
    for place, (at, parts) in enumerate(columns):
        below = 0.0
        for part, name, colour in zip(parts, names, _COLOURS, strict=True):
            y = _scale_y((below + part) / high)
            tooltip = html.escape(f"{at:g}, {name.split(' (')[0]}: {part:.3g} s")
            drawn.append(
                f'<rect x="{_LEFT + place * width:.1f}" y="{y:.1f}" width="{width * 0.92:.1f}" '
                f'height="{_scale_y(below / high) - y:.1f}" fill="{colour}">'
                f"<title>{tooltip}</title></rect>"
            )
            below += part
    ticks = [(_scale_y(i / 4), _format(high * i / 4, False)) for i in range(5)]
    ends = [
        (_scale_x(0), f"{columns[0][0]:g}", "start"),
        (_scale_x(1), f"{columns[-1][0]:g}", "end"),
    ]
    return _draw_chart(drawn, ticks, ends if len(columns) > 1 else ends[:1]) + _draw_legend(names)


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
    labels: Sequence[tuple[float, str, str]],
) -> str:
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
        'stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in ticks
    )
    below = "".join(
        f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{html.escape(text)}</text>'
        for x, text, anchor in labels
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img">{grid}{"".join(drawn)}{below}'
        "</svg>\n"
    )


def _draw_legend(names: Sequence[str]) -> str:
    entries = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for name, colour in zip(names, _COLOURS, strict=False)
    )
    return f'<div class="legend">{entries}</div>\n'
