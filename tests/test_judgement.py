"""What follows from given seconds: the table, the verdict, the advice, the warning."""

import re
from dataclasses import replace

import pytest

from augsubset.reporting.cost_model import PARTS, EpochCost, Measured, Settings, judge
from augsubset.reporting.savings import Savings, epoch_counts
from augsubset.sampling import EpochPlan

# 100 examples of which 10 get 4 copies: 140 rows and 40 copies an epoch, 500 and 400 of all.
PLAN = EpochPlan(
    num_examples=100,
    budget=10,
    copies=4,
    raw="all",
    mode="weight",
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
    world_size=1,
    has_rule=True,
    is_resident=False,
    background=False,
    recycle=None,
    weights="paper",
    max_weight=None,
)
MEASURED = Measured(
    loading=0.01,
    augmentation=0.05,
    step=0.02,
    probe=5.0,
    solve=10.0,
    effective_sample_size=8.0,
    num_sampled=10,
)
PLAN_NAMES = set(vars(PLAN)) - {"batch_size"}


def judged(**changes):
    """Judge the above with other seconds, settings or plan, each by its name."""
    plan = {name: changes.pop(name) for name in set(changes) & PLAN_NAMES}
    seconds = {name: changes.pop(name) for name in set(changes) & set(vars(MEASURED))}
    if plan.get("layout") == "grouped":
        plan["batch_size"] = SETTINGS.batch_size
    settings = replace(SETTINGS, plan=replace(PLAN, **plan), **changes)
    return judge(replace(MEASURED, **seconds), settings)


def parts(cost):
    return [getattr(cost, part) for part in PARTS]


# What an epoch costs.


def test_each_part_of_each_epoch_is_its_price_times_its_number():
    found = judged()
    assert parts(found.none) == pytest.approx([1.0, 0.0, 2.0, 0.0, 0.0])
    assert parts(found.subset) == pytest.approx([1.4, 2.0, 2.8, 1.0, 2.0])
    assert parts(found.full) == pytest.approx([5.0, 20.0, 10.0, 0.0, 0.0])
    assert parts(found.in_place) == pytest.approx([1.0, 5.0, 2.0, 0.0, 0.0])
    totals = [found.none, found.subset, found.full, found.in_place]
    assert [cost.total for cost in totals] == pytest.approx([3.0, 9.2, 35.0, 8.0])
    assert found.subset.selection == pytest.approx(3.0)
    assert found.speed_up == pytest.approx(35 / 9.2)


@pytest.mark.parametrize("part", PARTS)
def test_no_part_is_left_out_of_the_total(part):
    assert judged(**{part: 0.0}).subset.total < judged().subset.total - 0.9


@pytest.mark.parametrize(
    ("raw", "rows", "of_all"),
    [("all", 140, 500), ("unselected", 130, 400), ("selected", 50, 500), ("none", 40, 400)],
)
def test_rows_are_those_that_the_plan_has(raw, rows, of_all):
    found = judged(raw=raw)
    assert found.subset.step == pytest.approx(rows * 0.02)
    assert found.full.step == pytest.approx(of_all * 0.02)
    assert found.none.step == pytest.approx(100 * 0.02)


@pytest.mark.parametrize(
    ("raw", "rows", "fetched"),
    [
        # 10 groups of 5, and what was not selected fills the batches: no filler.
        ("all", 140, 100),
        # 10 groups of 5, 4 a batch: 3 batches, 10 fillers.
        ("selected", 60, 10 + 10),
        # 10 groups of 4, 5 a batch: no filler.
        ("none", 40, 10),
    ],
)
def test_grouped_rows_of_an_example_are_fetched_once(raw, rows, fetched):
    plan = replace(PLAN, raw=raw, layout="grouped", batch_size=20)
    assert epoch_counts(plan, 10) == (fetched, rows, 40)


def test_ranks_share_the_rows():
    one, four = judged(), judged(num_replicas=4)
    assert parts(four.subset)[:3] == pytest.approx([value / 4 for value in parts(one.subset)[:3]])
    assert parts(four.subset)[3:] == pytest.approx(parts(one.subset)[3:])
    assert four.none.total == pytest.approx(one.none.total / 4)


# What runs at once.


def cost(**seconds):
    return EpochCost(**{**dict.fromkeys(PARTS, 0.0), **seconds})


@pytest.mark.parametrize(
    ("beside", "overlap", "total"),
    [({}, 0.0, 15.0), ({"loads_beside": True}, 3.0, 12.0)],
)
def test_workers_load_beside_augmentation_and_step(beside, overlap, total):
    found = cost(loading=5.0, augmentation=1.0, step=2.0, probe=3.0, solve=4.0, **beside)
    assert (found.overlap, found.total) == (overlap, total)


@pytest.mark.parametrize(("solve", "overlap"), [(1.0, 1.0), (4.0, 2.5)])
def test_a_thread_solves_beside_one_epoch_in_several(solve, overlap):
    # 10 s of training, every fourth epoch beside a solve: at most 2.5 s an epoch are hidden.
    found = cost(step=10.0, solve=solve, solves_beside=0.25)
    assert found.overlap == overlap
    assert found.total == 10.0 + solve - overlap


def test_settings_say_what_runs_at_once():
    assert judged().subset.overlap == judged().full.overlap == 0.0
    workers = judged(num_workers=2)
    assert workers.subset.overlap == pytest.approx(1.4)
    assert workers.none.overlap == pytest.approx(1.0)
    thread = judged(background=True)
    assert thread.subset.overlap == pytest.approx((1.4 + 2.0 + 2.8) / 5)
    assert thread.full.overlap == 0.0


def test_what_is_hidden_is_no_bottleneck():
    assert cost(loading=4.0, augmentation=3.0, step=2.0).bottleneck == "loading"
    beside = cost(loading=4.0, augmentation=3.0, step=2.0, loads_beside=True)
    assert beside.bottleneck == "augmentation"
    assert cost(loading=9.0, augmentation=3.0, step=2.0, loads_beside=True).bottleneck == "loading"
    for part in PARTS:
        assert cost(**{**dict.fromkeys(PARTS, 1.0), part: 2.0}).bottleneck == part
    assert cost(step=10.0, solve=9.0, solves_beside=1.0).bottleneck == "step"
    assert cost(step=10.0, solve=11.0, solves_beside=1.0).bottleneck == "solve"


# The table.


def read_table(text):
    """Return the numbers of a printed table by row and column."""
    head, *rows = text.splitlines()[:5]
    columns = head.removeprefix("seconds an epoch").split()
    return {
        row[:16].strip(): dict(zip(columns, map(float, row[16:].split()), strict=True))
        for row in rows
    }


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"background": True}])
def test_the_columns_of_the_table_add_up_to_its_total(options):
    found = judged(**options)
    rows = read_table(str(found))
    assert list(rows) == ["none", "subset", "full", "in place"]
    for name, row in rows.items():
        expected = getattr(found, name.replace(" ", "_"))
        assert [row[part] for part in PARTS] == pytest.approx(parts(expected), abs=6e-4)
        assert row.pop("total") == pytest.approx(expected.total, abs=6e-4)
        assert sum(row.values()) == pytest.approx(expected.total, abs=4e-3)


def test_the_table_says_in_words_what_its_total_is():
    plain = judged(every=1).table
    assert plain.endswith("total: the sum of the five parts.")
    assert "overlap" not in plain
    assert judged().table.endswith("a probe and a solve are spread over every=5 epochs.")
    workers = judged(num_workers=2).table
    assert "less the overlap, in which workers load beside augmentation and step" in workers
    assert "solves" not in workers
    both = judged(num_workers=2, background=True).table
    assert "augmentation and step and a thread solves beside training;" in both


# The verdict.


def test_it_pays_where_the_subset_is_faster_and_in_place_is_not_cheap():
    found = judged()
    assert found.pays
    # 9.2 of 35 s, and 8 instead of 3 in place.
    assert "would save 74% of the time of augmenting everything" in found.sentence
    assert "(3.8x)" in found.sentence
    assert "in place instead would cost 167% more than no augmentation" in found.sentence


def test_it_does_not_pay_where_selections_cost_as_much():
    found = judged(probe=100.0)
    # 8.2 + 20 of 35 s.
    assert found.speed_up == pytest.approx(35 / 28.2)
    assert found.pays
    found = judged(probe=150.0)
    assert not found.pays
    assert "would not pay here: it would take 109% of the time" in found.sentence


def test_it_does_not_pay_where_augmenting_in_place_is_cheap():
    found = judged(augmentation=0.002)
    assert found.speed_up > 1
    assert not found.pays
    # 0.2 beside 3 s.
    assert "in place instead would cost only 7% more than no augmentation" in found.sentence
    assert judged(augmentation=0.0031).savings.is_cheap_in_place is False


def test_a_verdict_is_of_epochs_to_come_or_of_a_run():
    pays = Savings(seconds=10.0, seconds_of_all=40.0, over_none=0.5)
    slow = Savings(seconds=10.0, seconds_of_all=11.0, over_none=0.5)
    cheap = Savings(seconds=10.0, seconds_of_all=40.0, over_none=0.1)
    assert [each.pays for each in (pays, slow, cheap)] == [True, False, False]
    assert "saved about 75%" in pays.verdict(is_forecast=False)
    assert "would have cost 50% more" in pays.verdict(is_forecast=False)
    assert "did not pay here: it took about 91%" in slow.verdict(is_forecast=False)
    assert "did not pay here: augmenting every example" in cheap.verdict(is_forecast=False)
    assert "would have cost only 10% more" in cheap.verdict(is_forecast=False)
    assert "would save 75%" in pays.verdict(is_forecast=True)
    assert Savings(10.0, 12.0, 0.5).pays
    assert not Savings(10.0, 11.9, 0.5).pays


# What to change first.

# Loading takes longest, and yet augmenting in place is not hidden behind it.
LOADS = {"loading": 1.0, "augmentation": 1.5, "step": 0.1}
IN_PLACE = {"raw": "none", "copies": 1, "budget": 100, "has_rule": False}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"loading": 1.0, "augmentation": 0.2}, "num_workers= of your DataLoader, since"),
        (
            {"loading": 1.0, "augmentation": 0.2, "is_resident": True},
            "nothing, since data are on the device",
        ),
        ({**LOADS, "num_workers": 2}, 'layout=, to "grouped"'),
        ({**LOADS, "num_workers": 2, "layout": "grouped"}, "num_workers=.*more than 2"),
        ({**LOADS, "num_workers": 2, "batch_size": 4}, "num_workers=.*more than 2"),
        ({**LOADS, "num_workers": 2, "copies": 1, "budget": 9}, "num_workers=.*than 2"),
        ({"augmentation": 1.0}, "fraction=, or a policy of fewer operations"),
        ({"step": 1.0, "augmentation": 0.2}, "copies=, since appended rows are steps"),
        ({"step": 1.0, "augmentation": 0.2, "copies": 1, "budget": 11}, "fraction=, since append"),
        ({"step": 1.0, "augmentation": 0.2, "copies": 1, "budget": 9}, "nothing, since most steps"),
        ({"probe": 50.0}, "every=, or recycle= to probe fewer"),
        ({"probe": 50.0, "recycle": 2}, "every=$"),
        ({"solve": 50.0}, "every=, or background=True to solve meanwhile"),
        ({"solve": 50.0, "background": True}, "every=$"),
        ({"augmentation": 0.0}, r'selector=, to AllSelector\(\) with raw="none", copies=1'),
        ({"augmentation": 0.0, "budget": 100}, 'raw=, to "none" with copies=1'),
        ({"augmentation": 0.0, **IN_PLACE, "copies": 2}, "copies=, to 1"),
        ({"augmentation": 0.0, **IN_PLACE}, "nothing, since every example is augmented in place"),
        ({"budget": 100}, "fraction=, which leaves nobody out"),
        ({"budget": 100, "has_rule": False}, r"selector=, since AllSelector\(\) leaves nobody out"),
        (IN_PLACE, r"selector=, since AllSelector\(\) leaves nobody out"),
    ],
)
def test_every_verdict_names_the_setting_to_change_first_or_says_none(changes, advice):
    found = judged(**changes)
    assert re.match(advice, found.advice)
    assert found.sentence.endswith(f" Change first: {found.advice}.")


# The weights.


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, 'Consider max_weight= or weights="uniform".'),
        ({"weights": "unscaled"}, 'Consider max_weight= or weights="uniform".'),
        ({"max_weight": 9.0}, 'Consider max_weight= below 9 or weights="uniform".'),
        ({"mode": "sample"}, "Consider max_weight=."),
        ({"mode": "sample", "max_weight": 9.0}, "Consider max_weight= below 9."),
    ],
)
def test_a_low_effective_sample_size_is_warned_of(settings, advice):
    found = judged(effective_sample_size=2.4, **settings)
    assert str(found).endswith(
        "The weights count like 2 of 10 selected examples: few carry most of it. " + advice
    )


def test_nothing_is_warned_of_where_weights_are_even_or_none():
    assert judged(effective_sample_size=2.5).warning is None
    assert judged(effective_sample_size=1.0, weights="uniform").warning is None
    assert judged().warning is None
    assert str(judged()).endswith(judged().sentence)


def test_copies_that_outweigh_the_originals_are_warned_of():
    # 100 originals; 5 copies share as much weight, 20 times an original's, 10 copies 10 times.
    heavy = {"budget": 5, "copies": 1}
    words = (
        "On average a copy weighs as much as 20 originals: few images carry much of the loss. "
        'Consider weights="uniform".'
    )
    assert judged(**heavy).warning == words
    assert judged(**heavy, raw="unselected").warning == words
    assert judged(**heavy, weights="unscaled").warning == words
    assert "as much as 10 originals" in judged(budget=10, copies=1).warning
    # Both: few of the selected carry most, and copies are heavy.
    both = judged(**heavy, effective_sample_size=1.0).warning
    assert both.startswith("The weights count like 1 of 10")
    assert both.endswith(words)
    # A cap leaves a part of the weight.
    assert "as much as 12 originals" in judged(**heavy, weight_kept=0.6).warning
    assert judged(**heavy, weight_kept=0.4).warning is None
    # Lighter copies; equal weights; no originals that weigh 1; weights that are drawn, not given.
    assert judged(budget=5, copies=4).warning is None
    for settings in (
        {"weights": "uniform"},
        {"raw": "selected"},
        {"raw": "none"},
        {"mode": "sample"},
    ):
        assert judged(**heavy, **settings).warning is None
