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


def loaded_by(code):
    """Return the modules that a fresh interpreter has loaded after running some code."""
    command = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def is_lazy(name):
    return any(name == each or name.startswith(f"{each}.") for each in LAZY)


def test_importing_the_package_loads_no_lazy_module():
    # torch and numba load scipy and tqdm themselves where they are installed.
    by_dependencies = loaded_by("import torch, numpy, numba")
    by_package = loaded_by("import augsubset")
    assert "augsubset.loader" in by_package
    assert {name for name in by_package - by_dependencies if is_lazy(name)} == set()


def test_the_check_of_lazy_modules_sees_one():
    assert "augsubset.reporting.page" in filter(is_lazy, loaded_by("from augsubset import report"))


@pytest.mark.parametrize("name", ["doctor", "report"])
@pytest.mark.parametrize(
    "access",
    [
        "import augsubset; found = augsubset.{0}",
        "from augsubset import {0} as found",
        "import augsubset.reporting; found = augsubset.{0}",
        "import augsubset.reporting.doctor, augsubset; found = augsubset.{0}",
    ],
)
def test_lazy_functions_are_attributes_of_the_package(name, access):
    check = "assert callable(found) and found.__module__.startswith('augsubset.reporting.')"
    loaded_by(f"{access.format(name)}\n{check}")


def test_unknown_attributes_are_refused():
    import augsubset

    with pytest.raises(AttributeError, match="has no attribute 'no_such'"):
        augsubset.no_such  # noqa: B018
