"""The two scripts under docs/examples: how far apart they are, and that both run."""

import runpy
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.fake_cifar10 import write_fake_cifar10

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PLAIN, OURS = (EXAMPLES / f"cifar_{name}.py" for name in ("plain", "augsubset"))


def changed_lines(before: str, after: str) -> tuple[int, int]:
    """Return (removed, added), blank lines included."""
    difference = list(unified_diff(before.splitlines(), after.splitlines(), n=0))[2:]
    return sum(line[0] == "-" for line in difference), sum(line[0] == "+" for line in difference)


def test_adopting_it_adds_two_lines_and_changes_two():
    removed, added = changed_lines(PLAIN.read_text(), OURS.read_text())
    assert (removed, added) == (2, 4)


def test_the_count_sees_another_line():
    assert changed_lines(PLAIN.read_text(), OURS.read_text() + "\nprint()\n") == (2, 6)


@pytest.mark.parametrize("script", [PLAIN, OURS], ids=lambda script: script.stem)
def test_both_scripts_run(script, tmp_path, monkeypatch, capsys):
    write_fake_cifar10(tmp_path, monkeypatch)
    arguments = [str(script), "--root", str(tmp_path), "--epochs", "2", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("test accuracy" in line for line in lines)
