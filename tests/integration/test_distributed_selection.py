"""One selection by several processes: equal to one process, and no hanging when one fails."""

import pytest

import augsubset
from tests.integration import launch

pytestmark = pytest.mark.distributed


def test_several_processes_select_what_one_does_or_fail_together():
    names = "exact", "parts", "failures", "disagreement", "missing"
    run = launch.torchrun("distributed_selection", 3, *names, timeout=280)
    launch.assert_all_said(run, 3, "of 3 is done")


def test_a_killed_rank_raises_on_the_others():
    launch.assert_all_but_rank_1_saw_it("distributed_selection", 2, "killed")


def test_an_uninitialised_group_is_refused():
    from augsubset.selection import select_coreset_distributed

    with pytest.raises(augsubset.AugsubsetError, match=r"torch\.distributed must be initialised"):
        select_coreset_distributed(lambda: None, fraction=0.1)
