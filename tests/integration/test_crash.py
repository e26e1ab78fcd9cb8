"""A run that is killed or preempted, and restarted, ends as if it had not been."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from augsubset import SubsetAugmentLoader
from benchmarks import crashes

pytestmark = pytest.mark.slow  # runs are killed and started again, processes each


@pytest.fixture(scope="module")
def fresh():
    """A process that may be forked: in one whose autograd has threads, a child's cannot run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def assert_as_uninterrupted(outcome, kills):
    assert outcome.kills == kills
    assert outcome.rows > 4 * crashes.N
    assert (outcome.mismatched, outcome.lost, outcome.twice) == (0, 0, 0)
    assert outcome.same_weights


@pytest.mark.parametrize(("layout", "workers"), [("mixed", 0), ("grouped", 2)])
def test_a_killed_run_ends_with_the_stream_and_weights_of_an_uninterrupted_one(
    layout, workers, fresh
):
    run = fresh.submit(crashes.kill_and_resume, layout, workers, kills=2, seed=0)
    assert_as_uninterrupted(run.result(), 2)


@pytest.mark.parametrize(("weights", "workers"), [("cluster", 0), ("uniform", 2)])
def test_a_run_that_breaks_and_saves_on_sigterm_does_too(weights, workers, fresh):
    run = fresh.submit(
        crashes.kill_and_resume,
        *("mixed", workers),
        kills=2,
        seed=0,
        by=signal.SIGTERM,
        save_every=1000,  # the save after the break is the only one
        weights=weights,
    )
    assert_as_uninterrupted(run.result(), 2)


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {"weights": "resample", "draws": True}),
        (2, {"background": True, "every": 1}),
        (2, {"originals": "unselected", "recycle": 1, "every": 1}),
    ],
)
def test_a_killed_run_that_draws_recycles_or_solves_meanwhile_does_too(workers, options, fresh):
    run = fresh.submit(crashes.kill_and_resume, "mixed", workers, 6, seed=1, **options)
    assert_as_uninterrupted(run.result(), 6)


def forgetful(state):
    return {**state, "position": 0}


def skipping(state):
    return {**state, "position": state["position"] + 8}


def altered(change, seed):
    """Kill and resume where loaders take over a state that is changed first."""
    load = SubsetAugmentLoader.load_state_dict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SubsetAugmentLoader, "load_state_dict", lambda self, state: load(self, change(state))
        )
        return crashes.kill_and_resume("mixed", 0, kills=2, seed=seed)


# A kill before the first checkpoint leaves nothing to see, so five seeds are tried. What was
# altered trains on to other selections, so that rows are both lost and twice, but more of them one
# or the other.


def test_the_comparison_sees_a_loader_that_forgets_where_it_was(fresh):
    outcomes = (fresh.submit(altered, forgetful, seed).result() for seed in range(5))
    assert any(
        outcome.twice > outcome.lost and outcome.mismatched and not outcome.same_weights
        for outcome in outcomes
    )


def test_the_comparison_sees_a_loader_that_skips_a_batch(fresh):
    outcomes = (fresh.submit(altered, skipping, seed).result() for seed in range(5))
    assert any(outcome.lost > outcome.twice for outcome in outcomes)


def test_only_what_was_killed_before_it_ended_counts_as_killed():
    def ended(code, seconds):
        def run():
            time.sleep(seconds)
            os._exit(code)

        child = get_context("fork").Process(target=run)
        child.start()
        time.sleep(0.2)
        child.kill()
        return crashes._was_killed(child)

    assert ended(0, seconds=30)
    assert not ended(0, seconds=0)
    with pytest.raises(RuntimeError, match="the training run ended with status"):
        ended(1, seconds=0)


def test_the_runs_are_as_long_as_they_say(tmp_path):
    crashes.train(tmp_path, "mixed", 0)
    steps = crashes._steps(tmp_path)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert torch.load(tmp_path / "weights", weights_only=True)
