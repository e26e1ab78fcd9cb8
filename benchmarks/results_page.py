"""Write ``docs/results.md`` from the records: what was run, what was not, and what is resolved.

``python -m benchmarks.results_page [--data CIFAR10]`` reads ``benchmarks/results`` and writes the
page with its pictures; the gallery is drawn where the images are at hand. Nothing on the page is
typed in but the paper's own numbers and the words around ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.decisions_page import decision_table
from benchmarks.dynamics_page import dynamics_section, gallery_section, never_selected_section
from benchmarks.gain_page import gain_section
from benchmarks.grids_page import SHORT, grid_section, grids_but, in_short
from benchmarks.leads_page import leads_section
from benchmarks.own_runs_page import own_runs_section
from benchmarks.paper_page import PAPER, Estimates, paper_section
from benchmarks.rows_page import map_section
from benchmarks.tables import between
from benchmarks.times_page import times_section
from benchmarks.train import RESULTS, load_grid, load_results

__all__ = ["PAGE", "render"]

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
_ESTIMATES = Path(__file__).parent / "results" / "estimates.json"


def render(data: str | None = None) -> tuple[str, dict[str, Callable[[Path], None]]]:
    """Return the page, and what draws its pictures.

    Args:
        data: CIFAR-10, for the gallery.
    """
    estimates: Estimates = {}
    processor = ""
    if _ESTIMATES.is_file():
        record = json.loads(_ESTIMATES.read_text())
        estimates, processor = record["grids"], record["environment"]["device"]
    pictures: dict[str, Callable[[Path], None]] = {}
    papers = [name for table in PAPER["table"] for name in (table["grid"], table.get("steps", ""))]
    grids = grids_but(papers)
    lines = [
        "# Results",
        "",
        _scope(),
        "",
        "The paper's headline gaps, over max-loss on CIFAR-10, are 0.15 points at 10% and 0.06 at "
        "30%, with spreads as large. So this page asks with paired seeds, intervals, and the "
        "controls that the paper leaves out: as many gradient steps without augmentation, "
        "everything augmented in place, and a random subset drawn afresh each epoch.",
        "",
        "A difference is called resolved where the paired t test over the seeds, corrected by Holm "
        "for all questions of its table, is below 0.05; anything else is unresolved, and says "
        "nothing. Some questions were added after runs were seen, which by Holm's correction can "
        "only raise the p of the others. Accuracy is that after the last step. Arms of one seed "
        "share initial weights and order. An arm named *coreset* alone has cluster weights, "
        '`weights="cluster"`; with the library\'s default it is *coreset, uniform weights*. This '
        "page is written by "
        "`python -m benchmarks.results_page` from the records in "
        "`benchmarks/results`; a test holds it to them.",
        "",
        _records(),
        "",
        *in_short([*grids, *filter(None, papers)]),
        *(line for name in grids for line in grid_section(name)),
        *leads_section(),
        *dynamics_section(pictures),
        *own_runs_section(pictures),
        *gallery_section(pictures, data),
        *never_selected_section(),
        *times_section(pictures),
        *gain_section(pictures),
        "## The paper's tables",
        "",
        "The paper's settings: 200 epochs, batch and rate of its released recipe (it does not give "
        "them), crop and flip frozen for R = 20 epochs, two random operations of Wu et al. (2020), "
        "four copies, five runs. The paper's numbers as printed. "
        "Estimates are `python -m benchmarks.train GRID --estimate`, from two steps of each "
        f"network on one core of {processor or 'no machine yet'}. With `--device cuda` images stay "
        "on the GPU and networks run in bfloat16; a cell has its device on record, and pairs are "
        "of one kind of device. `--budget-minutes` ends a call between cells, or in one between "
        "epochs.",
        "",
        _left_of_short(),
        "",
        *(line for table in PAPER["table"] for line in paper_section(table, estimates)),
        *map_section(estimates),
    ]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n", pictures


def _scope() -> str:
    """Return what was run, and what that can tell."""
    short = "; ".join(filter(None, map(_in_short, SHORT)))
    at_size = "the paper's own tables were not run but where this page shows runs of them"
    if short:
        at_size = (
            "the paper's tables were run with its networks, all images and four copies only in "
            f"schedules of minutes, on a GPU: {short}"
        )
    return (
        "Does a coreset beat a random subset? Most of what was run here is small: 1,500 CIFAR-10 "
        "images (3,000 in two tables, 10,000 where only the subset is trained on), a small "
        "convolutional network, one augmented copy, five seeds, processors alone. Where a "
        "difference is resolved, it tells rules apart on these images: all seeds share them, and "
        "under noise their wrong labels, so that how much another sample would change is not "
        "known. It cannot tell whether the paper's numbers, of networks trained for 200 epochs on "
        "all images with four copies, hold: where ours is against the paper's order, it is so in "
        f"small or in few epochs, and {at_size}."
    )


def _left_of_short() -> str:
    """Return the command that goes on with the grids of few epochs, and what is left of them."""
    cells = {name: (load_results(load_grid(name)), load_grid(name).cells) for name in SHORT}
    left = {
        name: len(planned) - sum(map(len, found.values()))
        for name, (found, planned) in cells.items()
    }
    counts = ", ".join(f"`{name}` {left[name]} of {len(cells[name][1])}" for name in SHORT)
    return (
        f"On a GPU, `python -m benchmarks.train {' '.join(SHORT)} --data CIFAR10 --jobs 8` runs "
        f"the tables in few epochs, seed by seed, and goes on where it was stopped. Cells left: "
        f"{counts}."
    )


def _in_short(name: str) -> str:
    """Return the title of a grid of few epochs, and how many runs its arms have, if any."""
    grid = load_grid(name)
    found = load_results(grid)
    counts = sorted({len(found.get(cell.arm, ())) for cell in grid.cells})
    if not found:
        return ""
    runs = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    return f"{grid.title.split(':')[0].replace('Table', 'table')}, {runs} seeds an arm"


def _records() -> str:
    """Return what each record has, and how many lack some of it."""
    paths = sorted(RESULTS.glob("*/*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    older = sum("torchvision" not in each["environment"] for each in records)
    often = Counter(each["cell"]["evaluate_every"] for each in records)
    shown = ", ".join(f"{count} every {_nth(every)}" for every, count in often.most_common())
    return (
        f"{len(paths)} runs are on record, each with its whole configuration, commit, seed, "
        "processor or GPU, Python, torch, a digest of the data, the loss of each epoch and the "
        f"accuracy at each evaluation ({shown}). {older} of them, the first, do not name the "
        "versions of torchvision, NumPy and SciPy, nor the machine's cores and memory."
    )


def _nth(number: int) -> str:
    return {1: "epoch", 2: "2nd epoch", 3: "3rd epoch"}.get(number, f"{number}th epoch")


def main(arguments: list[str] | None = None) -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"))
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    text, pictures = render(given.data)
    given.out.write_text(text)
    choosing = given.out.parent / "choosing.md"
    if choosing.is_file():
        choosing.write_text(between(choosing.read_text(), "decisions", decision_table()))
    for name, draw in pictures.items():
        draw(given.out.parent / name)


if __name__ == "__main__":
    main()
