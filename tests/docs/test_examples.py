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


def test_adopting_it_adds_two_lines_and_changes_two():
    removed, added = changed_lines(PLAIN.read_text(), OURS.read_text())
    assert (removed, added) == (2, 4)


def test_sampling_instead_of_weighing_adds_two_lines_and_changes_none(
    tmp_path, monkeypatch, capsys
):
    """The weighing script with the plain one's loop and loss."""
    text = OURS.read_text().replace(", weighted_loss", "").replace("x, y, w in", "x, y in")
    text = text.replace("STD))\n    optim", 'STD), mode="sample")\n    optim')
    loss = re.compile(r"^ +loss = .*$", re.MULTILINE)
    text = loss.sub(loss.search(PLAIN.read_text())[0], text)
    script = tmp_path / "sampling.py"
    script.write_text(text)
    assert 'mode="sample"' in text
    assert changed_lines(PLAIN.read_text(), script.read_text()) == (0, 2)
    write_fake_cifar10(tmp_path, monkeypatch)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    run_here(script, monkeypatch, "--root", str(tmp_path), "--workers", "0")
    assert_two_epochs(capsys.readouterr().out)


def test_the_count_sees_another_line():
    assert changed_lines(PLAIN.read_text(), OURS.read_text() + "\nprint()\n") == (2, 6)


@pytest.mark.parametrize("topic", TOPICS)
def test_adopting_it_takes_at_most_five_lines(topic):
    """Of the script. Not counted is what it imports from ``policies.py``.

    That is the augmentation itself, which whoever augments boxes or texts has to have anyway, with
    this library or another; the pair shows what it takes to put one in.
    """
    plain, ours = ((EXAMPLES / f"{topic}_{name}.py").read_text() for name in ("plain", "augsubset"))
    removed, added = changed_lines(plain, ours)
    assert removed <= added <= 5
    assert "augsubset" not in plain
    assert "SubsetAugmentLoader(" in ours or " prepare(" in ours


def test_every_pair_is_among_those_that_run_below():
    known = ["cifar", "detection", "text", "timm", "accelerate", "lightning", "trainer", "ddp"]
    assert sorted(known) == TOPICS
    assert sorted(path.name for path in EXAMPLES.glob("*_augsubset.py")) == [
        f"{topic}_augsubset.py" for topic in TOPICS
    ]


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
@scripts("accelerate", "lightning", "timm", "trainer")
def test_scripts_with_other_libraries_run(script):
    assert_two_epochs(run_apart([script]))


@pytest.mark.distributed
@pytest.mark.parametrize(
    "script",
    ["accelerate_augsubset", "ddp_plain", "ddp_augsubset", "trainer_augsubset"],
)
def test_scripts_run_on_two_ranks(script):
    """Ours, and the one that runs on nothing else."""
    assert_two_epochs(run_apart([*TORCHRUN, EXAMPLES / f"{script}.py"]))


@pytest.mark.distributed
def test_a_script_that_starts_its_own_ranks_runs_on_two():
    assert_two_epochs(run_apart([EXAMPLES / "lightning_augsubset.py", "--devices", "2"]))


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
