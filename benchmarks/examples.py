"""Each pair of docs/examples over several seeds: what the library does to accuracy and time."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torchvision.datasets import cifar

from benchmarks.datasets import ImageData, load_cifar10
from benchmarks.harness import environment

__all__ = ["compare", "main", "times_as_long"]

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
EPOCHS = {"timm": 8, "cifar": 4}  # others: the scripts' own 20


def compare(topic: str, seeds: list[int], arguments: list[str]) -> dict[str, Any]:
    """Run both scripts of a pair in every seed, one after the other.

    Args:
        topic: Of the pair.
        seeds: One run of each script per seed.
        arguments: For the scripts.

    Returns:
        Final figures in percent and seconds of each run, imports included, and a verdict.
    """
    kinds = ("plain", "augsubset")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    names = set()
    for seed in seeds:
        for kind in kinds:
            printed = _run_apart(EXAMPLES / f"{topic}_{kind}.py", seed, arguments)
            *_, (name, figure) = re.findall(r"test (accuracy|error) ([\d.]+)%", printed)
            names.add(name)
            found[kind].append(float(figure))
            seconds[kind].append(max(map(float, re.findall(r"took ([\d.]+) s", printed))))
    (name,) = names
    sign = -1 if name == "error" else 1
    lost = sign * (mean(found["plain"]) - mean(found["augsubset"]))
    return {"figure": name, **found, "seconds": seconds, "ok": lost <= stdev(found["plain"])}


def times_as_long(pair: Mapping[str, Any]) -> float:
    """Return the median over seeds of how many times as long the script with the library took."""
    both = zip(pair["seconds"]["augsubset"], pair["seconds"]["plain"], strict=True)
    return median(ours / plain for ours, plain in both)


def _run_apart(script: Path, seed: int, arguments: list[str]) -> str:
    """Run a script in a process of its own, or two ranks; return what it printed."""
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launcher = ranks if script.stem.startswith("ddp") else []
    command = [sys.executable, *launcher, "-m", "benchmarks.examples", "--script", str(script)]
    done = subprocess.run(
        [*command, "--seeds", str(seed), "--", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed in seed {seed}:\n{done.stderr}")
    return done.stdout


def write_cifar_root(data: ImageData, root: Path, limit: int | None) -> None:
    """Write the first training images, and all test images, in the format that torchvision reads.

    Args:
        data: CIFAR-10.
        root: An existing folder.
        limit: How many training images; ``None``: all of them.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    x, y = data.x_train[:limit], data.y_train[:limit]
    batches = [*zip(x.tensor_split(5), y.tensor_split(5), strict=True), (data.x_test, data.y_test)]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, (images, labels) in zip(names, batches, strict=True):
        batch = {"data": images.flatten(1).numpy(), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))


def _run_here(script: str, seed: int, arguments: list[str]) -> None:
    """Run a script with the seeds that it sets shifted."""
    seeded = torch.manual_seed
    torch.manual_seed = lambda number: seeded(int(number) + 1000 * seed)
    torch.manual_seed(0)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(EXAMPLES))
    warnings.simplefilter("ignore")
    # A part of CIFAR-10 does not have the checksums that torchvision expects.
    cifar.check_integrity = lambda path, md5=None: Path(path).is_file()
    begin = time.perf_counter()
    runpy.run_path(script, run_name="__main__")
    print(f"took {time.perf_counter() - begin:.2f} s")


def main(arguments: list[str] | None = None) -> int:
    """Print a table and write the record; 1 if a script ends one deviation below its twin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", help="pairs; all that need no data by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cifar", help="CIFAR-10, a root or an .npz, for the pair of that name")
    parser.add_argument("--limit", type=int, help="train the CIFAR-10 pair on so many images")
    parser.add_argument("--out", type=Path, help="the record, as JSON; other pairs in it are kept")
    parser.add_argument("--script", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args(arguments)
    if given.script:
        _run_here(given.script, given.seeds[0], given.topics + rest)
        return 0
    known = sorted(path.stem.removesuffix("_plain") for path in EXAMPLES.glob("*_plain.py"))
    topics = given.topics or [topic for topic in known if topic != "cifar" or given.cifar]
    setting = environment(device="cpu")
    pairs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        if "cifar" in topics:
            write_cifar_root(load_cifar10(given.cifar), Path(root), given.limit)
        for topic in topics:
            options = ["--epochs", str(EPOCHS[topic])] if topic in EPOCHS else []
            options += ["--root", root, "--workers", "0"] if topic == "cifar" else []
            pair = pairs[topic] = compare(topic, given.seeds, options) | {"environment": setting}
            if topic == "cifar":
                pair["training images"] = given.limit or 50_000
            both = (f"{mean(pair[k]):.2f} ± {stdev(pair[k]):.2f}" for k in ("plain", "augsubset"))
            print(
                f"{topic:<12}{pair['figure']:<10}" + "  ".join(both),
                f"  time {times_as_long(pair):.2f}x",
                "" if pair["ok"] else "LOWER",
                flush=True,
            )
    if given.out:
        kept = json.loads(given.out.read_text()) if given.out.exists() else {}
        given.out.write_text(json.dumps(kept | pairs, indent=1) + "\n")
    return int(not all(pair["ok"] for pair in pairs.values()))


if __name__ == "__main__":
    sys.exit(main())
