"""Faults that their process does not get over, each run in one of its own by ``test_faults``."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from augsubset import (
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentLoader,
    load_checkpoint,
    save_checkpoint,
)


class Dying(Dataset):
    """Its worker is killed, as by the system when memory is short."""

    targets = tuple(index % 3 for index in range(40))
    is_whole = False

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 30 and not self.is_whole:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 6, 6), index % 3


class DyingUnlabelled(Dying):
    """Of which each item is fetched to learn its label."""

    targets = None


def a_loader(dataset, num_workers=1, is_persistent=False, **options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    workers = {"num_workers": num_workers, "persistent_workers": is_persistent}
    loader = DataLoader(dataset, batch_size=8, shuffle=True, **workers)
    return SubsetAugmentLoader(loader, model, RandomOps.paper(), **options)


WORKERS = [(1, False), (1, True), (2, True)]


def killed():
    """An error and not a hang: torch's own, or the broken pipe to what the worker had sent."""
    return pytest.raises((RuntimeError, ConnectionError), match=r"DataLoader worker|reset by peer")


def a_worker_that_is_killed(folder):
    """While it trains. The next epoch is whole, and so is the one after."""
    for workers in WORKERS:
        dataset = Dying()
        loader = a_loader(dataset, *workers, selector=RandomSelector())
        with killed():
            list(loader)
        dataset.is_whole = True
        for _ in range(2):
            assert len(list(loader)) == len(loader)


def a_worker_that_is_killed_while_probing(folder):
    """The loader is not left half way: it selects when the data is whole again."""
    for workers in WORKERS:
        dataset = Dying()
        loader = a_loader(dataset, *workers)
        with killed():
            next(iter(loader))
        assert loader.selection is None
        dataset.is_whole = True
        assert len(list(loader)) == len(loader)


def a_worker_that_is_killed_while_labels_are_gathered(folder):
    """At construction."""
    with killed():
        a_loader(DyingUnlabelled(), fraction=0.01)


def fill_the_disk():
    """Let files end at 1000 bytes: writing more fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def a_full_disk_under_a_checkpoint(folder):
    """The older one is kept, and nothing beside it."""
    path = folder / "run.ckpt"
    save_checkpoint(path, step=torch.tensor(7))
    fill_the_disk()
    with pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, step=torch.zeros(1000))
    assert load_checkpoint(path)["step"] == 7
    assert list(folder.iterdir()) == [path]


def and_under_a_selection(folder):
    """Likewise."""
    path = folder / "selection.npz"
    path.write_bytes(b"older")
    fill_the_disk()
    with pytest.raises(OSError, match="File too large"):
        Selection.equally_weighted(torch.arange(3), 900).save(path)
    assert path.read_bytes() == b"older"


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
