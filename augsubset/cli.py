"""The command ``augsubset``."""

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
from augsubset.reporting import summary, write_report
from augsubset.utils.checkpoint import is_checkpoint, load_checkpoint

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return the exit status."""
    parser = argparse.ArgumentParser(prog="augsubset", description="Subset augmentation.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="measure a loop and say whether subset augmentation would pay in it",
        description="Calls a function of yours that returns a SubsetAugmentLoader, and measures.",
    )
    doctor.add_argument("target", help="module:function, or path/to/script.py:function")
    doctor.add_argument("--steps", type=int, default=50, help="batches to measure")
    report = commands.add_parser(
        "report",
        help="write what a run selected as a page, JSON and CSV",
        description="Reads a checkpoint that holds a loader's state; with --loader, which makes "
        "the loader again, the page has pictures.",
    )
    report.add_argument("run", type=Path, help="a checkpoint, by torch.save or save_checkpoint")
    report.add_argument("--loader", help="module:function, or path/to/script.py:function")
    report.add_argument("--out", type=Path, default=Path("augsubset-report"), help="folder")
    report.add_argument("--images", type=int, default=12, help="of each list, with --loader")
    report.add_argument("--spectrum", type=int, default=0, help="examples, with --loader")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        if given.command == "doctor":
            said = str(_loader(given.target).doctor(given.steps))
        else:
            said = f"wrote {_reported(given)}"
    except (TypeError, ValueError, ImportError, AttributeError, OSError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{said}\n")
    return 0


def _reported(given: argparse.Namespace) -> Path:
    """Write the report of a checkpoint."""
    state = _loader_state(_read(given.run), given.run)
    if given.loader is None:
        return write_report(given.out, summary(state), state["tally"])
    loader = _loader(given.loader)
    loader.load_state_dict(state)
    return loader.report(given.out, images=given.images, spectrum=given.spectrum)


def _read(path: Path) -> Any:
    """Return what a checkpoint holds, by whichever of the two it was written."""
    if is_checkpoint(path):
        return load_checkpoint(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, IndexError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path} must be a checkpoint by torch.save or save_checkpoint: {error}"
        ) from error


def _loader_state(saved: Any, path: Path) -> Mapping[str, Any]:
    """Return a loader's state, saved by itself or as an entry of something else."""
    states = [saved, *saved.values()] if isinstance(saved, Mapping) else []
    for state in states:
        if isinstance(state, Mapping) and {"history", "tally", "num_examples"} <= set(state):
            return state
    raise ValueError(f"{path} must hold the state of a SubsetAugmentLoader, got none.")


def _loader(target: str) -> SubsetAugmentLoader:
    """Return what a function of the user's makes."""
    loader = _function(target)()
    if not isinstance(loader, SubsetAugmentLoader):
        raise TypeError(f"{target} must return a SubsetAugmentLoader, got {type(loader).__name__}.")
    return loader


def _function(target: str) -> Callable[[], Any]:
    """Return what ``module:function`` or ``file.py:function`` names."""
    module_name, colon, name = target.rpartition(":")
    if not colon:
        raise ValueError(f"target must be module:function or file.py:function, got {target!r}.")
    if module_name.endswith(".py"):
        path = Path(module_name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ValueError(f"target must name a script that is there, got {module_name!r}.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # workers that are spawned look it up
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, "")
        module = importlib.import_module(module_name)
    function: Callable[[], Any] = getattr(module, name)
    return function
