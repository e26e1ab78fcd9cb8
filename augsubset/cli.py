"""The command-line interface: ``augsubset doctor`` and ``augsubset report``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from augsubset.loader import SubsetAugmentLoader
from augsubset.reporting import doctor, report, summarize, write_report
from augsubset.utils.checkpoint import is_checkpoint, load_checkpoint

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="augsubset", description="Subset augmentation.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor_parser = commands.add_parser(
        "doctor",
        help="measure a training loop and say whether subset augmentation would pay off",
        description="Calls a function that returns a SubsetAugmentLoader, and measures its loop.",
    )
    doctor_parser.add_argument("target", help="module:function, or path/to/script.py:function")
    doctor_parser.add_argument("--steps", type=int, default=50, help="number of batches to measure")
    report_parser = commands.add_parser(
        "report",
        help="write a report on what a run selected, as a page, JSON and CSV",
        description="Reads a checkpoint that holds a loader's state. With --loader, a function "
        "that constructs the loader, the page includes images.",
    )
    report_parser.add_argument("run", type=Path, help="file of torch.save or save_checkpoint")
    report_parser.add_argument("--loader", help="module:function, or path/to/script.py:function")
    report_parser.add_argument("--out", type=Path, default=Path("augsubset-report"), help="folder")
    report_parser.add_argument("--images", type=int, default=12, help="per list, with --loader")
    report_parser.add_argument("--spectrum", type=int, default=0, help="examples, with --loader")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if given.command == "doctor":
            output = str(doctor(_make_loader(given.target), given.steps))
        else:
            output = f"wrote {_write_report(given)}"
    except (TypeError, ValueError, ImportError, AttributeError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{output}\n")
    return 0


def _write_report(given: argparse.Namespace) -> Path:
    """Write the report on a checkpoint, and return the page."""
    state = _find_state(_read_checkpoint(given.run), given.run)
    if given.loader is None:
        return write_report(given.out, summarize(state), state["counts"])
    loader = _make_loader(given.loader)
    loader.load_state_dict(state)
    return report(loader, given.out, images=given.images, spectrum=given.spectrum)


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


def _make_loader(target: str) -> SubsetAugmentLoader:
    """Return the loader that the user's function constructs."""
    loader = _import_function(target)()
    if not isinstance(loader, SubsetAugmentLoader):
        raise TypeError(f"{target} must return a SubsetAugmentLoader, got {type(loader).__name__}.")
    return loader


def _import_function(target: str) -> Callable[[], Any]:
    """Import ``module:function`` or ``file.py:function``."""
    module_name, colon, name = target.rpartition(":")
    if not colon:
        raise ValueError(f"target must be module:function or file.py:function, got {target!r}.")
    if module_name.endswith(".py"):
        path = Path(module_name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ValueError(f"target must name an existing script, got {module_name!r}.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # spawned workers look it up
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, "")
        module = importlib.import_module(module_name)
    function: Callable[[], Any] = getattr(module, name)
    return function
