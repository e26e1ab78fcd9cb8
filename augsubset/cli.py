"""The command-line interface: one function for each subcommand of ``augsubset``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from augsubset.demo.command import add_demo_arguments, run_demo
from augsubset.loader import SubsetAugmentLoader
from augsubset.reporting import doctor, report, summarize, write_report
from augsubset.reporting.preview import PRESETS, find_images, preview
from augsubset.selection import select_coreset
from augsubset.utils.checkpoint import is_checkpoint, load_checkpoint, write_whole

__all__ = ["main"]

_OURS = (TypeError, ValueError, ImportError, OSError)


class _UsageError(Exception):
    """What the caller of the command got wrong; everything else is shown with its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit status."""
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    script_arguments: list[str] = []
    if "--" in given_arguments:
        place = given_arguments.index("--")
        given_arguments, script_arguments = given_arguments[:place], given_arguments[place + 1 :]
    parser = _build_parser()
    given = parser.parse_args(given_arguments)
    if given.command is None:
        parser.print_help()
        return 0
    given.script_arguments = script_arguments
    try:
        output = given.run(given)
    except _UsageError as error:
        parser.exit(2, f"augsubset {given.command}: error: {error}\n")
    sys.stdout.write(f"{output}\n")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="augsubset", description="Strong data augmentation of a selected part of the data."
    )
    parser.add_argument("--version", action="version", version=f"augsubset {version('augsubset')}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    def add(name: str, run: Any, summary: str, details: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=details,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    target = "module:function or path/to/script.py:function"
    command = add(
        "doctor",
        _run_doctor,
        "measure a training loop and say whether subset augmentation would pay off",
        "Calls a function that returns a SubsetAugmentLoader, and measures its loop. What follows "
        "-- are the script's own arguments, its sys.argv[1:].",
    )
    command.add_argument("target", metavar="SCRIPT:FUNCTION", help=target)
    command.add_argument("--steps", type=_count, default=50, help="number of batches to measure")
    command = add(
        "report",
        _run_report,
        "write a report on what a run selected, as a page, JSON and CSV",
        "Reads a checkpoint that holds a loader's state. With --loader, a function that "
        "constructs the loader, the page includes images.",
    )
    command.add_argument("run_file", metavar="RUN", type=Path, help="a saved checkpoint")
    command.add_argument("--loader", help=target)
    command.add_argument("--out", type=Path, default=Path("augsubset-report"), help="folder")
    command.add_argument("--images", type=int, default=12, help="per list, with --loader")
    command.add_argument("--spectrum", type=int, default=0, help="examples, with --loader")
    command = add(
        "preview",
        _run_preview,
        "show what a policy makes of your own images, as a page",
        f"A policy is one of {', '.join(PRESETS)}, or module:object (or path/to/script.py:object) "
        "for a policy of your own or a Kornia module.",
    )
    command.add_argument("policy", metavar="POLICY", help="name, or module:object")
    command.add_argument("path", metavar="IMAGE|FOLDER", type=Path, help="what to augment")
    command.add_argument("--out", type=Path, default=Path("preview.html"), help="the page")
    command.add_argument("--images", type=_count, default=12, help="at most this many of a folder")
    command.add_argument("--copies", type=_count, default=5, help="augmented copies of each image")
    command.add_argument("--size", type=_count, default=224, help="pixels of the longer side")
    command = add(
        "select",
        _run_select,
        "select a coreset from gradients in a file",
        "Reads an (n, d) array, one gradient (or any feature vector) per example, and writes the "
        "selection as an .npz that numpy reads: indices, weights (cluster sizes), gains and "
        "clusters (the representative of each row).",
    )
    command.add_argument("gradients", metavar="GRADIENTS.npy", type=Path, help="(n, d) floats")
    command.add_argument("--labels", metavar="LABELS.npy", type=Path, help="(n,) classes, integers")
    command.add_argument("--fraction", type=float, default=0.1, help="share to select, in (0, 1]")
    command.add_argument("--out", type=Path, default=Path("selection.npz"), help="file")
    command = add(
        "demo",
        _run_demo,
        "train a small network six ways and show what augmenting a subset costs and gains",
        "Trains on scikit-learn's handwritten digits, in under four minutes on two cores, or on "
        'your own arrays. Needs the extra: pip install "augsubset[demo]".',
    )
    add_demo_arguments(command)
    return parser


def _count(text: str) -> int:
    """Return a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn errors about what was given to the command into usage errors."""
    try:
        yield
    except _OURS as error:
        raise _UsageError(str(error)) from error


def _run_doctor(given: argparse.Namespace) -> str:
    with _script_environment(given.target, given.script_arguments):
        return str(doctor(_make_loader(given.target), given.steps))


def _run_report(given: argparse.Namespace) -> str:
    with _usage_errors():
        state = _find_state(_read_checkpoint(given.run_file), given.run_file)
        if given.loader is None:
            return f"wrote {write_report(given.out, summarize(state), state['counts'])}"
    with _script_environment(given.loader, given.script_arguments):
        loader = _make_loader(given.loader)
        with _usage_errors():
            loader.load_state_dict(state)
        return f"wrote {report(loader, given.out, images=given.images, spectrum=given.spectrum)}"


def _run_preview(given: argparse.Namespace) -> str:
    with _usage_errors():
        files = find_images(given.path, given.images)
        if given.policy not in PRESETS and ":" not in given.policy:
            raise ValueError(
                f"policy must be one of {', '.join(PRESETS)} or module:object, got "
                f"{given.policy!r}."
            )
    with _script_environment(given.policy, given.script_arguments):
        policy = PRESETS[given.policy]() if given.policy in PRESETS else _import(given.policy)
        page = preview(policy, files, name=given.policy, copies=given.copies, size=given.size)
    with _usage_errors():
        write_whole(given.out, page.encode())
    return f"wrote {given.out}"


def _run_select(given: argparse.Namespace) -> str:
    with _usage_errors():
        gradients = np.load(given.gradients, allow_pickle=False)
        labels = None if given.labels is None else np.load(given.labels, allow_pickle=False)
        selection = select_coreset(gradients, labels, fraction=given.fraction)
        selection.save(given.out)
    return f"{selection}\n{selection.certificate}\nwrote {given.out}"


def _run_demo(given: argparse.Namespace) -> str:
    with _usage_errors():
        return run_demo(given)


def _read_checkpoint(path: Path) -> Any:
    """Return the contents of a checkpoint, written by save_checkpoint or torch.save."""
    if is_checkpoint(path):
        return load_checkpoint(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, IndexError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} must be a checkpoint by torch.save or save_checkpoint: {error}"
        ) from error


def _find_state(saved: Any, path: Path) -> Mapping[str, Any]:
    """Return the loader's state, saved on its own or as an entry of a larger checkpoint."""
    states = [saved, *saved.values()] if isinstance(saved, Mapping) else []
    for state in states:
        if isinstance(state, Mapping) and {"history", "counts", "num_examples"} <= set(state):
            return state
    raise ValueError(f"{path} must hold the state of a SubsetAugmentLoader, got none.")


@contextmanager
def _script_environment(target: str, arguments: Sequence[str]) -> Iterator[None]:
    """Run a block as if the user's script had been started: its sys.argv, its sys.path."""
    script = target.rpartition(":")[0]
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent) if script.endswith(".py") else "")
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _make_loader(target: str) -> SubsetAugmentLoader:
    """Return the loader that the user's function constructs."""
    loader = _import(target)()
    if not isinstance(loader, SubsetAugmentLoader):
        raise _UsageError(
            f"{target} must return a SubsetAugmentLoader, got {type(loader).__name__}."
        )
    return loader


def _import(target: str) -> Any:
    """Return the object that ``module:name`` or ``file.py:name`` names."""
    module_name, colon, name = target.rpartition(":")
    if not colon:
        raise _UsageError(f"target must be module:function or file.py:function, got {target!r}.")
    if module_name.endswith(".py"):
        path = Path(module_name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise _UsageError(f"target must name an existing script, got {module_name!r}.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # spawned workers look it up
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # If the user's own code lacks a module, they need to see its traceback.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise _UsageError(f"target must name a module, got {module_name!r}: {error}") from error
    if not hasattr(module, name):
        raise _UsageError(f"target must name a function, got no attribute {name!r} in it.")
    return getattr(module, name)
