"""A run that is killed with SIGKILL and restarted ends as if it had not been."""

import pytest
import torch

from augsubset import SubsetAugmentLoader
from benchmarks import crashes


@pytest.mark.parametrize("layout", ["mixed", "grouped"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_with_the_stream_and_weights_of_an_uninterrupted_one(layout, workers):
    outcome = crashes.kill_and_resume(layout, workers, kills=3, seed=0)
    assert outcome.kills >= 1
    assert outcome.rows > 4 * crashes.N
    assert (outcome.mismatched, outcome.lost, outcome.same_weights) == (0, 0, True)


def test_the_comparison_sees_a_loader_that_forgets_where_it_was(monkeypatch):
    load = SubsetAugmentLoader.load_state_dict

    def forgetful(self, state):
        load(self, {**state, "position": 0})

    monkeypatch.setattr(SubsetAugmentLoader, "load_state_dict", forgetful)
    outcomes = [crashes.kill_and_resume("mixed", 0, kills=3, seed=seed) for seed in range(3)]
    assert any(outcome.mismatched or not outcome.same_weights for outcome in outcomes)


def test_the_runs_are_as_long_as_they_say(tmp_path):
    crashes.train(tmp_path, "mixed", 0)
    steps = crashes._steps(tmp_path)
    assert [step for step, _ in steps] == list(range(1, len(steps) + 1))
    assert torch.load(tmp_path / "weights", weights_only=True)
