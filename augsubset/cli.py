"""The command ``augsubset``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from augsubset.loader import SubsetAugmentLoader

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
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        loader = _function(given.target)()
    except (ValueError, ImportError, AttributeError, OSError) as error:
        parser.error(str(error))
    if not isinstance(loader, SubsetAugmentLoader):
        parser.error(
            f"{given.target} must return a SubsetAugmentLoader, got {type(loader).__name__}."
        )
    sys.stdout.write(f"{loader.doctor(given.steps)}\n")
    return 0


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
