"""The command: help, the user's own scripts, previews of policies, selections from files."""

import re
import subprocess
import sys

import kornia.augmentation as K
import numpy as np
import pytest
import torch

from augsubset import RandomOps, RowKeys, Selection, select_coreset
from augsubset.cli import main
from augsubset.reporting.preview import PRESETS

SCRIPT = """
import argparse
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from augsubset import RandomOps, SubsetAugmentLoader

parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=30)
given = parser.parse_args()

class Data(TensorDataset):
    def __getitem__(self, index):
        if given.rows == 13:
            raise ValueError("a fault of the dataset")
        return super().__getitem__(index)

def make():
    if given.rows == 7:
        raise ValueError("a fault of the script")
    data = Data(torch.zeros(given.rows, 3, 6, 6, dtype=torch.uint8), torch.arange(given.rows) % 3)
    print(f"{given.rows} rows for {sys.argv[0]}")
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    return SubsetAugmentLoader(DataLoader(data, 8, shuffle=True), model, RandomOps.paper())
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "some_training_script.py"
    path.write_text(SCRIPT)
    yield path
    sys.modules.pop("some_training_script", None)


@pytest.mark.parametrize("command", [[], ["--help"]])
def test_the_command_alone_prints_its_help(command, capsys):
    try:
        status = main(command)
    except SystemExit as exit_:
        status = exit_.code
    assert status == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("doctor", "report", "preview", "select", "demo"))


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "augsubset", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"augsubset \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("doctor", "number of batches to measure (default: 50)"),
        ("report", "folder (default: augsubset-report)"),
        ("preview", "the page (default: preview.html)"),
        ("select", "share to select, in (0, 1] (default: 0.1)"),
        ("demo", "passes over the images (default: 12)"),
    ],
)
def test_help_shows_defaults(command, default, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert default in " ".join(capsys.readouterr().out.split())


# The user's own script.


def test_a_script_gets_its_own_arguments(script, capsys):
    argv, path = sys.argv, list(sys.path)
    assert main(["doctor", f"{script}:make", "--steps", "1", "--", "--rows", "40"]) == 0
    out = capsys.readouterr().out
    assert f"40 rows for {script}" in out
    assert "seconds per epoch" in out
    assert (sys.argv, sys.path) == (argv, path)
    assert main(["doctor", f"{script}:make", "--steps", "1"]) == 0
    assert f"30 rows for {script}" in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "fault"), [("7", "script"), ("13", "dataset")])
def test_an_error_in_the_users_code_keeps_its_traceback(script, rows, fault):
    with pytest.raises(ValueError, match=f"a fault of the {fault}") as caught:
        main(["doctor", f"{script}:make", "--", "--rows", rows])
    assert any(str(entry.path) == str(script) for entry in caught.traceback)


def test_a_module_that_the_script_lacks_is_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        main(["doctor", "lacking:make"])


# Previews.


@pytest.fixture
def images(tmp_path):
    from PIL import Image

    folder = tmp_path / "images" / "a class"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (20, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number} & more.png")
    (folder / "notes.txt").write_text("no image")
    return folder.parent


my_module = K.RandomHorizontalFlip(p=1.0)


@pytest.mark.parametrize("policy", [*PRESETS, "tests.test_cli:my_module"])
def test_a_preview_shows_images_and_their_copies(images, tmp_path, policy, capsys):
    out = tmp_path / "page.html"
    command = ["preview", policy, str(images), "--out", str(out), "--images", "2", "--copies", "3"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    page = out.read_text()
    assert page.count("data:image/webp") == 2 * (1 + 3)
    assert "0 &amp; more.png, original" in page
    assert "3 &amp; more.png, augmented copy 3" in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)


def test_a_preview_shows_what_the_policy_makes_of_the_image(images, tmp_path):
    """The bytes are those of the policy called by hand."""
    from PIL import Image

    from augsubset.reporting.pictures import encode_image

    file, out = images / "a class" / "0 & more.png", tmp_path / "page.html"
    assert main(["preview", "randaugment", str(file), "--out", str(out), "--copies", "1"]) == 0
    with Image.open(file) as image:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    augmented = RandomOps.randaugment()(x[None], RowKeys(0, 0, 0, 1))[0]
    assert encode_image(augmented) in out.read_text()
    assert encode_image(augmented) != encode_image(x)


@pytest.mark.parametrize(
    ("policy", "path", "reason"),
    [
        ("no-such", "images", "policy must be one of paper, wu2020"),
        ("paper", "nowhere", "must be an image or a folder with images"),
        ("tests.test_cli:no_such", "images", "no attribute 'no_such'"),
    ],
)
def test_a_preview_of_nothing_is_refused(images, policy, path, reason, capsys):
    with pytest.raises(SystemExit):
        main(["preview", policy, str(images.parent / path)])
    assert reason in capsys.readouterr().err


# Selections.


def test_a_selection_is_made_from_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    gradients, labels = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 4
    np.save(tmp_path / "g.npy", gradients)
    np.save(tmp_path / "y.npy", labels)
    command = ["select", str(tmp_path / "g.npy"), "--fraction", "0.25"]
    for extra, given in (([], None), (["--labels", str(tmp_path / "y.npy")], labels)):
        out = tmp_path / "selection.npz"
        assert main([*command, *extra, "--out", str(out)]) == 0
        expected = select_coreset(gradients, given, fraction=0.25)
        assert Selection.load(out).digest == expected.digest
        printed = capsys.readouterr().out
        assert "Selection(10 of 40" in printed
        assert f"wrote {out}" in printed
        with np.load(out) as archive:  # readable without this package
            assert archive["indices"].tolist() == expected.indices.tolist()


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--fraction", "2"], "fraction must be"), (["--labels", "nowhere.npy"], "No such file")],
)
def test_an_impossible_selection_is_refused(tmp_path, options, reason, capsys):
    np.save(tmp_path / "g.npy", np.zeros((5, 2), np.float32))
    with pytest.raises(SystemExit) as exit_:
        main(["select", str(tmp_path / "g.npy"), *options, "--out", str(tmp_path / "s.npz")])
    assert exit_.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "s.npz").exists()
