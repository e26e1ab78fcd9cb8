"""Real networks under the diagnostics: measured, drawn, and told as on record."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.explain import RECORD, RULES, STRENGTHS, draw, fill, main, measure, settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    setting = settings(None, quick=True)[0]
    small = replace(setting, plan=replace(setting.plan, epochs=1), num_fidelity=40)
    return json.loads(json.dumps({setting.name: measure(small)}))


def test_a_setting_is_looked_at_before_and_after(found):
    (setting,) = found.values()
    assert list(setting["spectrum"]) == list(setting["fidelity"]) == ["0", "1"]
    for spectrum in setting["spectrum"].values():
        for strength in STRENGTHS:
            assert spectrum[strength]["largest_shift"] <= spectrum[strength]["perturbation_norm"]
            assert len(spectrum[strength]["singular_values"]) == len(spectrum["original"]) == 90
    for each in setting["fidelity"].values():
        assert -1 <= each["logits"] < each["last layer"] < each["several layers"] <= 1
    for each in setting["alignment"].values():
        assert set(each) == set(RULES)
        assert all(-1 <= each[rule]["original_cosine"] <= 1 for rule in RULES)
        assert each["coreset"]["original_error"] < each["max-loss"]["original_error"]


def test_the_pictures_are_drawn_and_the_tables_filled(found, tmp_path):
    draw(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "diagnostics-alignment.svg",
        "diagnostics-spectrum.svg",
    }
    empty = "".join(f"<!-- {name} -->\n<!-- end -->\n" for name in ("spectrum", "fidelity"))
    page = fill(found, empty + "<!-- alignment -->\n<!-- end -->\n")
    assert page.count("| MLP, digits |") == 2 * 2 + 2 + 2


def test_the_page_says_what_is_on_record():
    record = json.loads(RECORD.read_text())
    page = (ROOT / "docs" / "diagnostics.md").read_text()
    assert fill(record["settings"], page) == page
    name = next(iter(record["settings"]))
    record["settings"][name]["fidelity"]["0"]["logits"] += 0.01
    assert fill(record["settings"], page) != page


def test_the_record_is_drawn_by_command(tmp_path):
    kept = (ROOT / "docs" / "diagnostics.md").read_text()
    (tmp_path / "diagnostics.md").write_text(kept.replace("| 0 |", "| zero |"))
    main(["--draw", str(tmp_path)])
    assert (tmp_path / "diagnostics.md").read_text() == kept
    assert (tmp_path / "diagnostics-spectrum.svg").stat().st_size > 10_000
