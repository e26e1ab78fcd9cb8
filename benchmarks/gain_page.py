"""The section on what is gained and how much faster: figures 1 and 4 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.paper_page import PAPER, gain_of, printed_of, share_of_gain, table_of, where
from benchmarks.pictures import new_figure, save_figure
from benchmarks.times_page import ratio_of
from benchmarks.train import load_grid, load_results

__all__ = ["gain_section", "gains", "speed_ups"]

_TABLE = "Table 1: CIFAR-10, ResNet20"
_RULES = ("random", "max-loss", "coreset", "coreset, weights of mean 1")
_SHARES = ("5%", "10%", "15%", "20%", "25%", "30%")

Bars = Mapping[str, Mapping[str, float]]  # by rule, then by share


def gain_section(pictures: dict[str, Callable[[Path], None]]) -> list[str]:
    """Return accuracy gained and times as fast, by share and rule; nothing before both are run."""
    panels = {"the paper": _by_rule(_printed_gains())}
    panels |= {f"ours {where(name)}": bars for name, bars in gains().items()}
    faster = speed_ups()
    if len(panels) == 1 or not faster:
        return []
    speeds = {
        "the paper": _by_rule(PAPER["faster"]),
        "ours, augmented one by one (`times`)": faster,
    }
    pictures["results-gain.svg"] = lambda path: draw_gain(panels, speeds, path)
    return [
        "## Speed-up against accuracy",
        "",
        "Figures 1 and 4 of the paper, of CIFAR-10: above, the share of full augmentation's gain "
        "over none, at equal epochs, where copies are also steps; below, times as fast as full "
        "augmentation with four copies, ours on one core with R = 2. Bars below zero are cut off "
        "at -100%; what of the differences is resolved is in the tables, as are spreads.",
        "",
        "![Share of the gain and speed-up, by share and rule](results-gain.svg)",
        "",
    ]


def gains() -> dict[str, Bars]:
    """Return shares of full augmentation's gain at equal epochs, in percent, by grid."""
    table, found = table_of(_TABLE), {}
    for name in (table["grid"], "table1-cifar10-short", "small-epochs"):
        results = load_results(load_grid(name))
        shares = {arm: gain_of(results, arm) for arm in printed_of(table)}
        bars = _by_rule({arm: share for arm, share in shares.items() if share is not None})
        if bars:
            found[name] = bars
    return found


def _printed_gains() -> dict[str, float]:
    values = {arm: float(text.split()[0]) for arm, text in table_of(_TABLE)["values"].items()}
    low, high = values["none"], values["full, appended"]
    return {arm: share_of_gain(low, high, value) for arm, value in values.items()}


def speed_ups() -> Bars:
    """Return times as fast as full augmentation, augmented one by one."""
    results = load_results(load_grid("times"))
    full = results.get("full, one by one")
    if full is None:
        return {}
    ends = ", one by one"
    return _by_rule(
        {
            arm.removesuffix(ends): ratio_of(full, runs)[0]
            for arm, runs in results.items()
            if arm.endswith(ends)
        }
    )


def _by_rule(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return values of arms that are named by a rule and a share, by both."""
    found: dict[str, dict[str, float]] = {}
    for arm, value in values.items():
        rule, _, share = arm.rpartition(" ")
        if rule in _RULES and share in _SHARES:
            found.setdefault(rule, {})[share] = value
    return found


def draw_gain(panels: Mapping[str, Bars], speeds: Mapping[str, Bars], path: Path) -> None:
    """Draw bars by share, a colour a rule: gains above, speed-ups below."""
    from benchmarks.page import COLOURS

    colours = {**COLOURS, "coreset, weights of mean 1": "#9fd3ae"}
    columns = max(len(panels), len(speeds))
    figure = new_figure(3.9 * columns, 5.4)
    rows = figure.subplots(2, columns, squeeze=False)
    for axis in rows[1][len(speeds) :]:
        axis.set_visible(False)
    labelled = {}
    for line, (row, label) in enumerate(
        ((panels, "share of the gain, %"), (speeds, "times as fast as full"))
    ):
        for axis, (title, bars) in zip(rows[line], row.items(), strict=False):
            rules = [rule for rule in _RULES if rule in bars]
            shares = [share for share in _SHARES if any(share in bars[rule] for rule in rules)]
            width = 0.8 / len(rules)
            for number, rule in enumerate(rules):
                shift = (number - (len(rules) - 1) / 2) * width
                at = [i + shift for i, share in enumerate(shares) if share in bars[rule]]
                values = [max(bars[rule][share], -100.0) for share in shares if share in bars[rule]]
                labelled[rule] = axis.bar(at, values, width, color=colours[rule])
            axis.axhline(0, color="#222222", lw=0.8)
            axis.set(title=title.replace("`", ""), ylabel=label)
            axis.set_xticks(range(len(shares)), shares)
            axis.title.set_fontsize(9)
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        labelled.values(), labelled, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    save_figure(figure, path)
