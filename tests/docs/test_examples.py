"""The scripts under docs/examples: how far apart the two of a pair are, and that all run."""

import os
import re
import runpy
import subprocess
import sys
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.fake_cifar10 import write_fake_cifar10

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PLAIN, OURS = (EXAMPLES / f"cifar_{name}.py" for name in ("plain", "augsubset"))
TOPICS = sorted(path.stem.removesuffix("_plain") for path in EXAMPLES.glob("*_plain.py"))
ADDED_LINES = {
    "cifar": 2,
    "timm": 2,
    "text": 2,
    "detection": 2,
    "ddp": 2,
    "accelerate": 3,
    "lightning": 4,
    "trainer": 4,
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


# What gloo does now and then, without this library too, when one rank leaves before another; the
# launcher then ends the others. Such a run says nothing, and is made again.
GLOO_ABORT = "terminate called without an active exception"


def scripts(*topics):
    """Both scripts of each, as parameters."""
    found = [EXAMPLES / f"{topic}_{name}.py" for topic in topics for name in ("plain", "augsubset")]
    return pytest.mark.parametrize("script", found, ids=lambda script: script.stem)


def changed_lines(before: str, after: str) -> tuple[int, int]:
    """Return (removed, added), blank lines included."""
    difference = list(unified_diff(before.splitlines(), after.splitlines(), n=0))[2:]
    return sum(line[0] == "-" for line in difference), sum(line[0] == "+" for line in difference)


def run_here(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "2", *arguments])
    monkeypatch.syspath_prepend(str(script.parent))  # as python does with a script's folder
    runpy.run_path(str(script), run_name="__main__")


def run_apart(command):
    """Run a script in a process of its own, as a user would, and return what it printed.

    Frameworks keep state in their process, and some warn of what is theirs.
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, *map(str, command), "--epochs", "2"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        if GLOO_ABORT not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def assert_two_epochs(printed):
    lines = printed.splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        assert re.match(rf"epoch {epoch}: test (accuracy|error) \d+\.\d\d%", line), line


@pytest.mark.slow
def test_cluster_weights_change_the_loop_and_the_loss_too(tmp_path, monkeypatch, capsys):
    """``weights="cluster"`` takes its argument, and two changed lines in the loop."""
    lines = {
        "RandomOps, SubsetAugmentLoader\n": "RandomOps, SubsetAugmentLoader, weighted_loss\n",
        "RandomOps.randaugment(), denorm": 'RandomOps.paper(), weights="cluster", denorm',
        "for x, y in loader:": "for x, y, w in loader:",
        "F.cross_entropy(model(x), y)": (
            'weighted_loss(F.cross_entropy(model(x), y, reduction="none"), w)'
        ),
    }
    text = OURS.read_text()
    for before, after in lines.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    script = tmp_path / "weighing.py"
    script.write_text(text)
    assert changed_lines(PLAIN.read_text(), text) == (2, 4)
    write_fake_cifar10(tmp_path, monkeypatch)
    run_here(script, monkeypatch, "--root", str(tmp_path), "--workers", "0")
    assert_two_epochs(capsys.readouterr().out)


def test_the_count_sees_another_line():
    added = ADDED_LINES["cifar"]
    assert changed_lines(PLAIN.read_text(), OURS.read_text() + "\nprint()\n") == (0, added + 2)


@pytest.mark.parametrize("topic", TOPICS)
def test_adopting_it_adds_lines_and_changes_none(topic):
    """Two lines in a plain loop, up to four under a framework.

    Not counted is the augmentation itself in ``toy.py``: whoever augments boxes or texts needs one
    anyway, with this library or another.
    """
    plain, ours = ((EXAMPLES / f"{topic}_{name}.py").read_text() for name in ("plain", "augsubset"))
    assert changed_lines(plain, ours) == (0, ADDED_LINES[topic])
    assert "augsubset" not in plain
    assert "SubsetAugmentLoader(" in ours or " prepare(" in ours


def test_every_pair_is_among_those_that_run_below():
    assert sorted(ADDED_LINES) == TOPICS
    assert sorted(path.name for path in EXAMPLES.glob("*_augsubset.py")) == [
        f"{topic}_augsubset.py" for topic in TOPICS
    ]


@pytest.mark.slow
@scripts("cifar")
def test_both_cifar_scripts_run(script, tmp_path, monkeypatch, capsys):
    write_fake_cifar10(tmp_path, monkeypatch)
    run_here(script, monkeypatch, "--root", str(tmp_path), "--workers", "0")
    assert_two_epochs(capsys.readouterr().out)


@scripts("detection", "text")
def test_scripts_on_other_data_run(script, monkeypatch, capsys):
    run_here(script, monkeypatch)
    assert_two_epochs(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["accelerate", "lightning", "timm", "trainer"])
def test_scripts_with_other_libraries_run(topic):
    """Ours: the plain ones are the same without the added lines."""
    assert_two_epochs(run_apart([EXAMPLES / f"{topic}_augsubset.py"]))


@pytest.mark.distributed
def test_the_script_for_several_ranks_runs_on_two():
    assert_two_epochs(run_apart([*TORCHRUN, EXAMPLES / "ddp_augsubset.py"]))


def test_resuming_the_trainer_takes_the_three_lines_that_the_page_names():
    ours = (EXAMPLES / "trainer_augsubset.py").read_text()
    lines = {
        "from sklearn": "from augsubset.integrations.transformers import SubsetAugmentCallback\n",
        "            report_to": "            ignore_data_skip=True,\n",
        "            compute_metrics": "            callbacks=[SubsetAugmentCallback()],\n",
    }
    resumable = ours
    for before, line in lines.items():
        resumable = resumable.replace(before, line + before)
    compile(resumable, "trainer", "exec")
    assert changed_lines(ours, resumable) == (0, 3)
    page = (EXAMPLES.parent / "adopt.md").read_text()
    for line in lines.values():
        assert f"`{line.strip().rstrip(',')}`" in page
