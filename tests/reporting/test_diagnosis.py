"""From given unit costs to the table, the verdict, the advice and the warning."""

import re
from dataclasses import replace

import pytest

from augsubset.reporting.cost_model import PARTS
from augsubset.reporting.diagnosis import Measured, Settings, diagnose
from augsubset.sampling import EpochPlan

# 100 examples of which 10 get 4 copies: an epoch of 140 rows and 40 copies, or 500 and 400 in full.
PLAN = EpochPlan(
    num_examples=100,
    budget=10,
    copies=4,
    originals="all",
    weights="cluster",
    layout="mixed",
    batch_size=None,
    shuffle=True,
    seed=0,
)
SETTINGS = Settings(
    PLAN,
    every=5,
    num_workers=0,
    batch_size=20,
    num_replicas=1,
    is_resident=False,
    background=False,
    recycle=None,
    max_weight=None,
)
MEASURED = Measured(
    loading=0.01,
    augmentation=0.05,
    step=0.02,
    probe=5.0,
    solve=10.0,
    effective_sample_size=8.0,
    num_selected=10,
)
PLAN_NAMES = set(vars(PLAN)) - {"batch_size"}


def make_diagnosis(**changes):
    """Diagnose the above with other seconds, settings or plan, each by its name."""
    plan = {name: changes.pop(name) for name in set(changes) & PLAN_NAMES}
    seconds = {name: changes.pop(name) for name in set(changes) & set(vars(MEASURED))}
    if plan.get("layout") == "grouped":
        plan["batch_size"] = SETTINGS.batch_size
    settings = replace(SETTINGS, plan=replace(PLAN, **plan), **changes)
    return diagnose(replace(MEASURED, **seconds), settings)


def parts(cost):
    return [getattr(cost, part) for part in PARTS]


# Costs.


def test_each_part_costs_its_unit_cost_times_its_count():
    found = make_diagnosis()
    assert parts(found.none) == pytest.approx([1.0, 0.0, 2.0, 0.0, 0.0])
    assert parts(found.subset) == pytest.approx([1.4, 2.0, 2.8, 1.0, 2.0])
    assert parts(found.full) == pytest.approx([5.0, 20.0, 10.0, 0.0, 0.0])
    assert parts(found.in_place) == pytest.approx([1.0, 5.0, 2.0, 0.0, 0.0])
    totals = [found.none, found.subset, found.full, found.in_place]
    assert [cost.total for cost in totals] == pytest.approx([3.0, 9.2, 35.0, 8.0])
    assert found.subset.selection == pytest.approx(3.0)
    assert found.speed_up == pytest.approx(35 / 9.2)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_in_the_total(part):
    assert make_diagnosis(**{part: 0.0}).subset.total < make_diagnosis().subset.total - 0.9


@pytest.mark.parametrize(
    ("originals", "rows", "full_rows"),
    [("all", 140, 500), ("unselected", 130, 400), ("selected", 50, 500), ("none", 40, 400)],
)
def test_steps_follow_the_rows_of_the_plan(originals, rows, full_rows):
    found = make_diagnosis(originals=originals)
    assert found.subset.step == pytest.approx(rows * 0.02)
    assert found.full.step == pytest.approx(full_rows * 0.02)
    assert found.none.step == pytest.approx(100 * 0.02)


def test_ranks_share_the_rows():
    one, four = make_diagnosis(), make_diagnosis(num_replicas=4)
    assert parts(four.subset)[:3] == pytest.approx([value / 4 for value in parts(one.subset)[:3]])
    assert parts(four.subset)[3:] == pytest.approx(parts(one.subset)[3:])
    assert four.none.total == pytest.approx(one.none.total / 4)


def test_overlap_follows_the_settings():
    assert make_diagnosis().subset.overlap == make_diagnosis().full.overlap == 0.0
    workers = make_diagnosis(num_workers=2)
    assert workers.subset.overlap == pytest.approx(1.4)
    assert workers.none.overlap == pytest.approx(1.0)
    thread = make_diagnosis(background=True)
    assert thread.subset.overlap == pytest.approx((1.4 + 2.0 + 2.8) / 5)
    assert thread.full.overlap == 0.0


# The table.


def read_table(text):
    """Return the numbers of a printed table by row and column."""
    head, *rows = text.splitlines()[:5]
    columns = head.removeprefix("seconds per epoch").split()
    return {
        row[:16].strip(): dict(zip(columns, map(float, row[16:].split()), strict=True))
        for row in rows
    }


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"background": True}])
def test_the_columns_of_the_table_add_up_to_its_total(options):
    found = make_diagnosis(**options)
    rows = read_table(str(found))
    assert list(rows) == ["none", "subset", "full", "in place"]
    for name, row in rows.items():
        expected = getattr(found, name.replace(" ", "_"))
        assert [row[part] for part in PARTS] == pytest.approx(parts(expected), abs=6e-4)
        assert row.pop("total") == pytest.approx(expected.total, abs=6e-4)
        assert sum(row.values()) == pytest.approx(expected.total, abs=4e-3)


def test_the_caption_explains_the_total():
    plain = make_diagnosis(every=1).table
    assert plain.endswith("total: the sum of the five parts.")
    assert "overlap" not in plain
    assert make_diagnosis().table.endswith("; probe and solve are averaged over every=5 epochs.")
    workers = make_diagnosis(num_workers=2).table
    assert "minus the overlap, in which workers load during augmentation and steps" in workers
    assert "solves" not in workers
    both = make_diagnosis(num_workers=2, background=True).table
    assert "augmentation and steps and a thread solves during training;" in both


# The verdict.


def test_it_pays_off_if_the_subset_is_faster_and_in_place_is_not_cheap():
    found = make_diagnosis()
    assert found.pays
    # 9.2 of 35 s, and 8 instead of 3 in place.
    assert "would save 74% of the time of augmenting everything" in found.sentence
    assert "(3.8x)" in found.sentence
    assert "in place instead would cost 167% more than no augmentation" in found.sentence


def test_it_does_not_pay_off_if_selections_cost_as_much():
    found = make_diagnosis(probe=100.0)
    # 8.2 + 20 of 35 s.
    assert found.speed_up == pytest.approx(35 / 28.2)
    assert found.pays
    found = make_diagnosis(probe=150.0)
    assert not found.pays
    assert "would not pay off here: it would take 109% of the time" in found.sentence


def test_it_does_not_pay_off_if_augmenting_in_place_is_cheap():
    found = make_diagnosis(augmentation=0.002)
    assert found.speed_up > 1
    assert not found.pays
    # 0.2 on top of 3 s.
    assert "in place instead would cost only 7% more than no augmentation" in found.sentence
    assert make_diagnosis(augmentation=0.0031).savings.is_cheap_in_place is False


# Advice.

# Loading takes longest, but does not hide augmenting in place.
LOADS = {"loading": 1.0, "augmentation": 1.5, "step": 0.1}
IN_PLACE = {"originals": "none", "copies": 1, "budget": 100}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"loading": 1.0, "augmentation": 0.2}, "num_workers= of your DataLoader, since"),
        (
            {"loading": 1.0, "augmentation": 0.2, "is_resident": True},
            "nothing, since the data is on the device",
        ),
        ({**LOADS, "num_workers": 2}, 'layout=, to "grouped"'),
        ({**LOADS, "num_workers": 2, "layout": "grouped"}, "num_workers=.*more than 2"),
        ({**LOADS, "num_workers": 2, "batch_size": 4}, "num_workers=.*more than 2"),
        ({**LOADS, "num_workers": 2, "copies": 1, "budget": 9}, "num_workers=.*than 2"),
        ({"augmentation": 1.0}, "fraction=, or a policy of fewer operations"),
        ({"step": 1.0, "augmentation": 0.2}, "copies=, since extra copies are extra steps"),
        ({"step": 1.0, "augmentation": 0.2, "copies": 1, "budget": 11}, "fraction=, since extra"),
        ({"step": 1.0, "augmentation": 0.2, "copies": 1, "budget": 9}, "nothing, since most steps"),
        ({"probe": 50.0}, r"every=, or LoaderOptions\(recycle=\.\.\.\) to probe fewer"),
        ({"probe": 50.0, "recycle": 2}, "every=$"),
        ({"solve": 50.0}, r"every=, or LoaderOptions\(background=True\)"),
        ({"solve": 50.0, "background": True}, "every=$"),
        ({"augmentation": 0.0}, r'fraction=, to 1.0 with originals="none", copies=1'),
        ({"augmentation": 0.0, "budget": 100}, 'originals=, to "none" with copies=1'),
        ({"augmentation": 0.0, **IN_PLACE, "copies": 2}, "copies=, to 1"),
        ({"augmentation": 0.0, **IN_PLACE}, "nothing, since every example is augmented in place"),
        ({"budget": 100}, "fraction=, which selects everything"),
        (IN_PLACE, "fraction=, which selects everything"),
    ],
)
def test_the_verdict_names_the_setting_to_change_first(changes, advice):
    found = make_diagnosis(**changes)
    assert re.match(advice, found.advice)
    assert found.sentence.endswith(f" Change first: {found.advice}.")


# The warning.


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, "max_weight="),
        ({"max_weight": 9.0}, "max_weight= below 9"),
        ({"weights": "resample"}, "max_weight="),
        ({"weights": "resample", "max_weight": 9.0}, "max_weight= below 9"),
    ],
)
def test_uneven_weights_cause_a_warning(settings, change):
    found = make_diagnosis(effective_sample_size=2.4, **settings)
    assert re.search(
        r"Weights are as uneven as if \d+% of an epoch's samples counted: that costs accuracy "
        rf'where labels are correct\. Consider weights="uniform" or CoresetSelector\({change}\)\.$',
        str(found),
    )


def test_there_is_no_warning_if_weights_are_even_or_uniform():
    even = {"effective_sample_size": 10.0}
    assert make_diagnosis(**even).warning is None
    assert make_diagnosis(effective_sample_size=1.0, weights="uniform").warning is None
    assert str(make_diagnosis(**even)).endswith(make_diagnosis(**even).sentence)


def test_unevenness_is_that_of_all_rows():
    # 100 originals of weight 1 and 40 copies of weight 2.5.
    even = make_diagnosis(effective_sample_size=10.0)
    assert even.unevenness == pytest.approx(140 * (100 + 40 * 2.5**2) / 200**2)
    # 0.35 + 8.75 / e, for e effective examples: the docs name 1.3.
    assert make_diagnosis(effective_sample_size=9.25).warning is None
    assert make_diagnosis(effective_sample_size=9.18).warning is not None
    # Ten examples of which five carry all the weight, copies of 5 each.
    half = make_diagnosis(effective_sample_size=5.0)
    assert half.unevenness == pytest.approx(140 * (100 + 20 * 5**2) / 200**2)
    # Copies that outweigh the originals by far, and under a cap.
    heavy = make_diagnosis(effective_sample_size=10.0, budget=5, copies=1)
    assert heavy.unevenness == pytest.approx(105 * (100 + 5 * 20**2) / 200**2)
    assert heavy.warning is not None
    capped = make_diagnosis(effective_sample_size=10.0, budget=5, copies=1, weight_kept=0.1)
    assert capped.unevenness == pytest.approx(105 * (100 + 5 * 2**2) / 110**2)
    assert capped.warning is None
    # Drawn copies: 40 beside 100 originals, all of half of the examples.
    drawn = make_diagnosis(effective_sample_size=5.0, weights="resample")
    assert drawn.unevenness == pytest.approx(140 * (100 + 20 * 2**2) / 140**2)
