"""The site: everything public is in its reference, every page is reached, and it builds."""

import html
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import augsubset

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "api.md").read_text()


@pytest.mark.parametrize("name", augsubset.__all__)
def test_every_public_name_is_in_the_reference(name):
    assert re.search(rf"::\s+augsubset\.{name}$", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("room", ["diagnostics", "diagnostics.theory"])
def test_every_public_name_of_diagnostics_is_in_the_reference(room):
    assert f"automodule:: augsubset.{room}\n   :members:" in REFERENCE
    module = importlib.import_module(f"augsubset.{room}")
    assert all(inspect.getdoc(getattr(module, name)) for name in module.__all__)


def test_the_table_of_the_loaders_arguments_has_each_once():
    table = REFERENCE.split("## The loader")[1].split("```")[0]
    named = re.findall(r"`(\w+)`", table)
    assert sorted(named) == sorted(inspect.signature(augsubset.SubsetAugmentLoader).parameters)


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), ids=lambda path: path.name)
def test_pictures_can_be_read_on_a_phone_and_on_a_dark_page(picture):
    """Text has eight of 358 pixels or more; exponents are smaller."""
    text = picture.read_text()
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])
    sizes = {float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)}
    assert min(sizes - {6.3}) * 358 / width >= 8
    ground, *_ = re.findall(r'<path d="M 0 [\d.]+ L?\s*[^"]*" style="fill: (#\w+|none)', text)
    assert ground == "#ffffff" or "#7d8590" in text  # a gray that reads on both


def test_every_page_is_in_the_contents():
    named = re.findall(r"^[a-z-]+$", (DOCS / "index.md").read_text(), re.MULTILINE)
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert sorted(named) == sorted(pages)


def build(folder, out):
    """Build as ``make docs`` does."""
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", "html"]
    return subprocess.run([*command, folder, out], capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_without_a_network(tmp_path):
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {page.stem: page.read_text() for page in tmp_path.glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= set(pages)
    assert "Class budgets" in pages["guarantees"]
    assert "Sainte-Lague" in pages["api"]
    assert "SubsetAugmentLoader" in pages["api"]
    assert "--- cifar_plain.py" in html.unescape(re.sub("<[^>]+>", "", pages["adopt"]))
    assert not any(str(DOCS) in text for text in pages.values())
    # What a page loads lies beside it: no fonts, scripts or styles from elsewhere.
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?:[^\"]+)\"", text)
        assert loaded == [], name


@pytest.mark.slow
def test_a_link_to_nowhere_is_an_error(tmp_path):
    """The control."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "conf.py").write_text((DOCS / "conf.py").read_text())
    (folder / "index.md").write_text("# A page\n\n[nothing](elsewhere.md#there)\n")
    done = build(folder, tmp_path / "site")
    assert done.returncode != 0
    assert "elsewhere" in done.stderr
