"""Time and memory of selection against its targets, beside submodlib and apricot.

``python -m benchmarks.selection --data CIFAR10 --out FILE`` measures every workload, each in a
fresh process, and prints a line a figure: the value, its target, met or MISSED. What is measured is
written as each workload ends, so that a stop loses one. ``--quick`` measures the ratios alone, at a
small size on synthetic residuals, and fails where one is worse than half of that on record.

A ratio's two sides always run in one process, one after the other: seconds depend on the machine,
and ratios less so. Peers come from the ``bench`` extra. A failed measurement raises.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import curves, peers, residuals
from benchmarks.datasets import ImageData, load_cifar10
from benchmarks.harness import environment
from benchmarks.measuring import Figure, regressions
from benchmarks.workloads import NEED_DATA, ON_DEVICE, WORKLOADS, Result, Setting, quick

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "selection-quick.json"
PICTURE = ROOT / "docs" / "selection-cost.svg"
NUM_TRAINED_ON = 10_000


def entry_of(result: Result, seconds: float) -> dict[str, Any]:
    """Return a workload's part of the record."""
    return {
        "figures": [figure.as_record() for figure in result.figures],
        "measured": result.measured,
        "notes": result.notes,
        "total_seconds": seconds,
    }


def figures_of(entry: Mapping[str, Any]) -> list[Figure]:
    """Return the figures of a workload's part of the record."""
    names = ("name", "value", "unit", "better", "target")
    return [Figure(**{name: each[name] for name in names}) for each in entry["figures"]]


def print_figures(workload: str, entry: Mapping[str, Any]) -> None:
    """Print a line a figure, losses as well as wins."""
    for figure in figures_of(entry):
        print(f"{workload:16} {figure}", flush=True)


def in_fresh_process(name: str, setting: Setting) -> dict[str, Any]:
    """Run a workload where no earlier one has left memory or compiled code behind."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "benchmarks.selection", "--worker", name]
        command += ["--device", setting.device, "--out", str(out)]
        if setting.residuals is not None:
            command += ["--residuals", str(setting.residuals)]
        subprocess.run(command, cwd=ROOT, check=True)
        entry: dict[str, Any] = json.loads(out.read_text())
    return entry


def worker(name: str, setting: Setting, out: Path) -> None:
    """Run one workload here and write its part of the record."""
    begin = time.perf_counter()
    result = WORKLOADS[name](setting)
    out.write_text(json.dumps(entry_of(result, time.perf_counter() - begin)))


def run_full(
    names: list[str],
    device: str,
    data: ImageData | None,
    picture: Path,
    keep: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Measure workloads one by one, printing and keeping as each ends."""
    entries: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        saved = None
        if data is not None and any(name in NEED_DATA for name in names):
            limited = data.limited(min(NUM_TRAINED_ON, len(data.x_train)))
            print(f"training a ResNet20 for an epoch on {len(limited.x_train)} images", flush=True)
            saved = Path(scratch) / "residuals.npz"
            residuals.save(residuals.probed(residuals.trained_network(limited), data), saved)
        for name in names:
            if name == "curves":
                begin = time.perf_counter()
                measured = curves.sweep()
                curves.draw(measured, picture)
                entries[name] = entry_of(
                    Result([], measured, ["Synthetic residuals; a process a point."]),
                    time.perf_counter() - begin,
                )
                print(f"{name:16} {picture}")
            else:
                entries[name] = in_fresh_process(name, Setting(device, saved))
                print_figures(name, entries[name])
            keep(entries)
    return entries


def run_quick() -> dict[str, Any]:
    """Measure the quick form's ratios in this process."""
    entries: dict[str, Any] = {}
    begin = now = time.perf_counter()
    for name, result in quick():
        before, now = now, time.perf_counter()
        entries[name] = entry_of(result, now - before)
        print_figures(name, entries[name])
    print(f"{now - begin:.0f} s in all")
    return entries


def check_against(entries: Mapping[str, Any], record: Path) -> None:
    """Exit with the list of ratios that are worse than half of those on record."""
    before = json.loads(record.read_text())["workloads"]
    worse = regressions({name: figures_of(entry) for name, entry in entries.items()}, before)
    if worse:
        sys.exit(f"worse than half of {record.name}:\n  " + "\n  ".join(worse))
    print(f"no ratio is worse than half of {record.name}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=(__doc__ or "").split("\n")[0]
    )
    names = [*WORKLOADS, "curves"]
    parser.add_argument("--quick", action="store_true", help="small sizes, held to the record")
    parser.add_argument(
        "--accept", action="store_true", help="with --quick: write the record instead"
    )
    parser.add_argument("--record", type=Path, default=RECORD, help="what --quick is held to")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--data",
        default=os.environ.get("AUGSUBSET_CIFAR10"),
        help="CIFAR-10: a torchvision root or an .npz (default: $AUGSUBSET_CIFAR10)",
    )
    parser.add_argument("--device", default="cpu", help=f"for {', '.join(ON_DEVICE)}")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="redraw the curves of a record")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where curves are drawn")
    parser.add_argument("--worker", choices=list(WORKLOADS), help=argparse.SUPPRESS)
    parser.add_argument("--residuals", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.accept and not given.quick:
        parser.error("--accept goes with --quick")
    if given.only is None:
        given.only = names if given.device == "cpu" else list(ON_DEVICE)
    if given.device != "cpu" and (wrong := set(given.only) - set(ON_DEVICE)):
        parser.error(f"--device is for {', '.join(ON_DEVICE)}, not for {', '.join(sorted(wrong))}")
    if not (given.quick or given.plot or given.worker) and given.data is None:
        needed = [name for name in given.only if name in NEED_DATA]
        if needed:
            parser.error(f"--data is needed for {', '.join(needed)}: a CIFAR-10 root or an .npz")
    return given


def main(arguments: list[str] | None = None) -> None:
    """Run and print; with ``--out`` also write JSON."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    if given.worker is not None:
        worker(given.worker, Setting(given.device, given.residuals), given.out)
        return
    if given.plot is not None:
        curves.draw(
            json.loads(given.plot.read_text())["workloads"]["curves"]["measured"], given.picture
        )
        return
    data = None
    if not given.quick and any(name in NEED_DATA for name in given.only):
        data = load_cifar10(given.data)

    def keep(entries: Mapping[str, Any]) -> None:
        record = {
            "environment": {**environment(data), "peers": peers.versions()},
            "workloads": entries,
        }
        for out in (given.out, given.record if given.accept else None):
            if out is not None:
                out.write_text(json.dumps(record, indent=1) + "\n")

    if given.quick:
        entries = run_quick()
        keep(entries)
        if not given.accept:
            check_against(entries, given.record)
        return
    entries = run_full(given.only, given.device, data, given.picture, keep)
    judged = [figure.met for entry in entries.values() for figure in figures_of(entry)]
    print(f"{judged.count(True)} met, {judged.count(False)} missed")


if __name__ == "__main__":
    main()
