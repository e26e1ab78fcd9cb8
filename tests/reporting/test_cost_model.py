"""The cost of an epoch, and the verdict on what a subset saves."""

import pytest

from augsubset.reporting.cost_model import PARTS, EpochCost, Savings, count_epoch
from augsubset.sampling import EpochPlan


@pytest.mark.parametrize(
    ("originals", "rows", "fetched"),
    [
        # 10 groups of 5, and unselected originals fill the batches: no fillers.
        ("all", 140, 100),
        # 10 groups of 5, 4 per batch: 3 batches, 10 fillers.
        ("selected", 60, 10 + 10),
        # 10 groups of 4, 5 per batch: no fillers.
        ("none", 40, 10),
    ],
)
def test_grouped_rows_of_an_example_are_fetched_once(originals, rows, fetched):
    # 100 examples of which 10 get 4 copies.
    shape = {"num_examples": 100, "budget": 10, "copies": 4, "batch_size": 20}
    options = {"weights": "cluster", "layout": "grouped", "shuffle": True, "seed": 0}
    plan = EpochPlan(originals=originals, **shape, **options)
    assert count_epoch(plan, 10) == (fetched, rows, 40)


def make_cost(**seconds):
    return EpochCost(**{**dict.fromkeys(PARTS, 0.0), **seconds})


@pytest.mark.parametrize(
    ("options", "overlap", "total"),
    [({}, 0.0, 15.0), ({"has_workers": True}, 3.0, 12.0)],
)
def test_workers_load_in_parallel_with_augmentation_and_steps(options, overlap, total):
    found = make_cost(loading=5.0, augmentation=1.0, step=2.0, probe=3.0, solve=4.0, **options)
    assert (found.overlap, found.total) == (overlap, total)


@pytest.mark.parametrize(("solve", "overlap"), [(1.0, 1.0), (4.0, 2.5)])
def test_a_thread_solves_in_parallel_with_one_epoch_in_several(solve, overlap):
    # 10 s of training, a solve in every fourth epoch: at most 2.5 s per epoch are hidden.
    found = make_cost(step=10.0, solve=solve, background_solves=0.25)
    assert found.overlap == overlap
    assert found.total == 10.0 + solve - overlap


def test_hidden_parts_are_not_the_bottleneck():
    assert make_cost(loading=4.0, augmentation=3.0, step=2.0).bottleneck == "loading"
    parallel = make_cost(loading=4.0, augmentation=3.0, step=2.0, has_workers=True)
    assert parallel.bottleneck == "augmentation"
    assert (
        make_cost(loading=9.0, augmentation=3.0, step=2.0, has_workers=True).bottleneck == "loading"
    )
    for part in PARTS:
        assert make_cost(**{**dict.fromkeys(PARTS, 1.0), part: 2.0}).bottleneck == part
    assert make_cost(step=10.0, solve=9.0, background_solves=1.0).bottleneck == "step"
    assert make_cost(step=10.0, solve=11.0, background_solves=1.0).bottleneck == "solve"


def test_a_verdict_is_a_forecast_or_about_a_finished_run():
    pays = Savings(seconds=10.0, full_seconds=40.0, in_place_overhead=0.5)
    slow = Savings(seconds=10.0, full_seconds=11.0, in_place_overhead=0.5)
    cheap = Savings(seconds=10.0, full_seconds=40.0, in_place_overhead=0.1)
    assert [each.pays for each in (pays, slow, cheap)] == [True, False, False]
    assert "saved about 75%" in pays.verdict(is_forecast=False)
    assert "would have cost 50% more" in pays.verdict(is_forecast=False)
    assert "did not pay off here: it took about 91%" in slow.verdict(is_forecast=False)
    assert "did not pay off here: augmenting every example" in cheap.verdict(is_forecast=False)
    assert "would have cost only 10% more" in cheap.verdict(is_forecast=False)
    assert "would save 75%" in pays.verdict(is_forecast=True)
    assert Savings(10.0, 12.0, 0.5).pays
    assert not Savings(10.0, 11.9, 0.5).pays
