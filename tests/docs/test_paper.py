"""The map of the paper: each of its systems has a line, and each line's command exists."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.grid import grid_names

ROOT = Path(__file__).parents[2]
LINES = re.findall(
    r"^\| (.+?) \|.*?\| `([^`|]+)` \|", (ROOT / "docs" / "paper.md").read_text(), re.M
)


def test_each_system_has_a_line():
    assert [name for name, _ in LINES if re.fullmatch(r"S\d+", name)] == [
        f"S{number}" for number in range(1, 29)
    ]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0])
def test_the_command_of_a_line_exists(line):
    words = shlex.split(line[1])
    if words[:2] == ["augsubset", "report"]:
        return
    assert words[:2] == ["python", "-m"], words
    if words[2] == "pytest":
        path, _, name = words[3].partition("::")
        text = (ROOT / path).read_text()
        assert f"def {name}(" in text or not name
        if "-k" in words:
            assert words[words.index("-k") + 1] in text
        return
    assert find_spec(words[2]) is not None
    if words[2] == "benchmarks.train":
        grids = [word for word in words[3:] if not word.startswith("--")]
        assert grids
        assert set(grids) <= set(grid_names())
