"""Two added lines, none changed: the loop runs as README prints it, whatever the data."""

from difflib import unified_diff

import pytest
import torch
from torch import nn

from tests.integration import launch, printed_loop


def count_changes(before, after):
    """Return (removed, added) lines."""
    difference = list(unified_diff(before.splitlines(), after.splitlines(), n=0))[2:]
    return sum(line[0] == "-" for line in difference), sum(line[0] == "+" for line in difference)


def test_it_adds_two_lines_to_the_plain_loop_and_changes_none():
    assert count_changes(printed_loop.PLAIN, printed_loop.LOOP) == (0, 2)
    assert "        loss = F.cross_entropy(model(x), y)\n" in printed_loop.PLAIN
    assert "augsubset" not in printed_loop.PLAIN


def test_the_count_sees_a_changed_line():
    changed = printed_loop.LOOP.replace("F.cross_entropy", "F.mse_loss")
    assert count_changes(printed_loop.PLAIN, changed) == (1, 3)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", printed_loop.DATASETS)
def test_it_runs(name, num_workers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    loader, steps = printed_loop.run(name, model, num_workers)
    assert steps == 2 * len(loader)
    epochs = [entry for entry in loader.history if entry["event"] == "epoch"]
    n, k = len(loader.dataset), len(loader.selection)
    assert [entry["num_rows"] for entry in epochs] == [n + 4 * k] * 2
    assert [entry["num_copies"] for entry in epochs] == [4 * k] * 2
    assert all(entry["completed"] for entry in epochs)


@pytest.mark.distributed
def test_it_runs_on_two_ranks():
    run = launch.torchrun("distributed_loader", 2, "printed")
    launch.assert_all_said(run, 2, "of 2 is done")
