"""Imports point one way; only ``augment`` knows Kornia; the public names are sorted."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import augsubset

ROOT = Path(augsubset.__file__).parent

# From the bottom to the top: a room may import those above it in this list, and `utils`.
# `selection`, `sampling`, `augment` and `loss` know nothing of each other.
ALLOWED = {
    "utils": set(),
    "loss": set(),
    "batch": set(),
    "normalization": set(),
    "distributed": set(),
    "augment": set(),
    "sampling": set(),
    "selection": {"distributed"},
    "probe": {"batch", "selection"},
    "history": {"selection"},
    "delivery": {"augment", "batch", "normalization", "sampling"},
    "pipeline": {"augment", "batch", "delivery", "history", "normalization", "sampling"},
    "labels": {"batch", "pipeline", "probe", "sampling", "selection"},
    "options": {"batch", "probe", "sampling", "selection"},
    "prober": {"pipeline", "probe", "sampling", "selection"},
    "state": {"selection"},
    "schedule": {"distributed", "history", "labels", "probe", "prober", "selection", "state"},
    "loader": {
        *("batch", "distributed", "history", "labels", "normalization", "options", "pipeline"),
        *("probe", "prober", "sampling", "schedule", "selection", "state"),
    },
    "diagnostics": {"probe", "selection"},
    "reporting": {"augment", "diagnostics", "loader", "pipeline", "sampling", "selection"},
    "integrations": {"loader", "reporting", "sampling"},
    "demo": {"augment", "loader", "normalization", "reporting", "selection"},
    "cli": {"demo", "loader", "reporting", "selection"},
    "__main__": {"cli"},
}


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


def imported_names(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
    return names


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        room = room_of(path, root)
        if room == "__init__":
            continue
        allowed = ALLOWED[room] | {"utils", room}
        for name in imported_names(path):
            package, _, rest = name.partition(".")
            if package == "augsubset" and rest.partition(".")[0] not in allowed:
                found.append(f"{room} imports {name}")
            if package == "kornia" and room != "augment":
                found.append(f"{room} imports kornia")
    return found


def test_imports_point_one_way():
    assert violations(ROOT) == []


def test_no_import_that_is_allowed_points_upward():
    rooms = list(ALLOWED)
    for room, allowed in ALLOWED.items():
        assert all(rooms.index(each) < rooms.index(room) for each in allowed), room


@pytest.mark.parametrize(
    "line", ["import kornia", "from augsubset.probe import GradientProbe", "import augsubset"]
)
def test_the_import_check_sees_a_violation(tmp_path, line):
    (tmp_path / "selection").mkdir()
    (tmp_path / "selection" / "greedy.py").write_text(line + "\n")
    assert len(violations(tmp_path)) == 1


def test_public_names_are_sorted_and_exist():
    assert augsubset.__all__ == sorted(augsubset.__all__)
    assert all(hasattr(augsubset, name) for name in augsubset.__all__)


def test_selection_works_without_kornia_or_a_dataset_in_sight():
    code = (
        "import sys; sys.modules['kornia'] = None\n"
        "import types; package = types.ModuleType('augsubset')\n"
        f"package.__path__ = [{str(ROOT)!r}]; sys.modules['augsubset'] = package\n"
        "import torch; from augsubset.selection import select_coreset\n"
        "assert len(select_coreset(torch.rand(9, 2), budget=2)) == 2\n"
        "assert not {'augsubset.sampling', 'augsubset.probe'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
