"""``import augsubset`` loads neither reports nor adapters nor optional packages."""

import subprocess
import sys

import pytest

LAZY = (
    "augsubset.reporting",
    "augsubset.cli",
    "augsubset.demo",
    "augsubset.integrations",
    "augsubset.diagnostics",
    *("PIL", "accelerate", "kornia", "lightning", "matplotlib", "scipy", "torchvision", "tqdm"),
    *("tensorboard", "transformers"),
)


def run(code):
    """Return what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def is_lazy(name):
    return any(name == each or name.startswith(f"{each}.") for each in LAZY)


def test_importing_the_package_loads_no_lazy_module():
    # torch and numba load scipy and tqdm themselves where they are installed.
    steps = "import torch, numpy, numba", "import augsubset", "from augsubset import report"
    printed = run("import sys\n" + "\n".join(f"{step}\nprint(*sys.modules)" for step in steps))
    before, after, report = (set(line.split()) for line in printed.splitlines())
    assert "augsubset.loader" in after
    assert {name for name in after - before if is_lazy(name)} == set()
    assert "augsubset.reporting.page" in filter(is_lazy, report)


def test_lazy_functions_are_attributes_of_the_package():
    accesses = (
        "import augsubset; found = augsubset.{0}",
        "from augsubset import {0} as found",
        "import augsubset.reporting; found = augsubset.{0}",
        "import augsubset.reporting.doctor, augsubset; found = augsubset.{0}",
    )
    check = "assert callable(found) and found.__module__.startswith('augsubset.reporting.')"
    codes = [f"{each.format(name)}\n{check}" for each in accesses for name in ("doctor", "report")]
    # Each in a process that has loaded nothing of the package.
    run(f"""
import os, numba, numpy, torch
for code in {codes}:
    if os.fork() == 0:
        exec(code, {{}})
        os._exit(0)
    assert os.wait()[1] == 0, code
""")


def test_unknown_attributes_are_refused():
    import augsubset

    with pytest.raises(AttributeError, match="has no attribute 'no_such'"):
        augsubset.no_such  # noqa: B018
