"""Loaders on several ranks, started by torchrun: one order, one selection, no hanging."""

from functools import partial

import pytest

from tests.integration import launch

pytestmark = pytest.mark.distributed
torchrun = partial(launch.torchrun, "distributed_loader")
assert_all_said = launch.assert_all_said


@pytest.mark.parametrize("num_processes", [2, 4])
def test_ranks_train_as_one_process_does(num_processes):
    names = ("losses", "tails", "recycled", "resumed")
    more = ("compiled", "guards", "background", "unshown", "spread", "doctored")
    names += ("fewer_shares",) if num_processes == 4 else more
    assert_all_said(torchrun(num_processes, *names), num_processes, f"of {num_processes} is done")


def test_what_fails_on_one_rank_is_raised_on_all_within_a_minute():
    """NaN on one, a rule that raises on one, fewer examples than ranks."""
    assert_all_said(torchrun(3, "failures", timeout=60), 3, "of 3 is done")


def test_ranks_of_accelerate_and_lightning_share_one_order():
    assert_all_said(torchrun(2, "with_accelerate", "with_lightning"), 2, "checked its share")


@pytest.mark.parametrize(
    ("framework", "num_processes"),
    [("accelerate", 3), ("lightning", 2), ("trainer", 2)],
)
def test_ranks_of_every_framework_resume_within_an_epoch(framework, num_processes):
    run = torchrun(num_processes, f"{framework}_resumed")
    assert_all_said(run, num_processes, "resumed")


@pytest.mark.parametrize(
    ("num_processes", "when"),
    [
        *[(2, "while_probing"), (2, "while_solving"), (2, "in_the_background")],
        (3, "while_exchanging"),
    ],
)
def test_a_rank_killed_during_selection_raises_on_the_others_within_a_minute(num_processes, when):
    launch.assert_all_but_rank_1_saw_it("distributed_loader", num_processes, f"killed_{when}")
