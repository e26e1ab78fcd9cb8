"""The side stream: what is made on it, when, and who waits for whom."""

from contextlib import contextmanager
from itertools import count

import pytest
import torch

from augsubset import RandomOps
from augsubset.batch import BatchSpec
from augsubset.normalization import Normalization
from augsubset.pipeline import BatchPipeline, ReadyBatch

CUDA = torch.device("cuda")


class FakeStream:
    """Notes what is asked of it."""

    def __init__(self, name, said, device=CUDA):
        self.name, self.said, self.device = name, said, device

    def wait_stream(self, other):
        self.said.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def said(monkeypatch):
    """What happened on a machine with a GPU, as far as streams go, in order."""
    said, made = [], count()
    running = [FakeStream("main", said)]

    def new_stream(device):
        return FakeStream(f"side {next(made)}", said, device)

    @contextmanager
    def within(stream):
        running.append(stream)
        yield
        running.pop()

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: running[-1])
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda part, stream: said.append(f"batch {int(part)} is used on {stream.name}"),
    )

    def batches(number):
        for index in range(number):
            said.append(f"batch {index} is made on {running[-1].name}")
            yield ReadyBatch(torch.tensor(index), None, None, None, 0)

    return said, batches


def make_pipeline():
    return BatchPipeline(
        BatchSpec(), Normalization(None, None), RandomOps.paper(), None, seed=0, owns_batches=True
    )


def trained(said, batches):
    for batch in batches:
        said.append(f"step {int(batch.output)}")


def test_the_next_batch_is_made_before_the_model_has_the_last(said):
    said, batches = said
    trained(said, make_pipeline().prefetch(batches(3), CUDA))
    assert said == [
        "batch 0 is made on side 0",
        "main waits for side 0",
        "batch 0 is used on main",
        "side 0 waits for main",
        "batch 1 is made on side 0",
        "step 0",
        "main waits for side 0",
        "batch 1 is used on main",
        "side 0 waits for main",
        "batch 2 is made on side 0",
        "step 1",
        "main waits for side 0",
        "batch 2 is used on main",
        "side 0 waits for main",
        "step 2",
    ]


def test_one_stream_serves_all_epochs_on_a_device(said):
    said, batches = said
    one = make_pipeline()
    for _ in range(3):
        trained(said, one.prefetch(batches(2), CUDA))
    assert {line.rsplit(" on ", 1)[1] for line in said if "made" in line} == {"side 0"}
    trained(said, one.prefetch(batches(1), torch.device("cuda", 1)))
    assert said[-5] == "batch 0 is made on side 1"


def test_on_the_cpu_nothing_is_made_ahead(said):
    said, batches = said
    trained(said, make_pipeline().prefetch(batches(2), torch.device("cpu")))
    assert said == ["batch 0 is made on main", "step 0", "batch 1 is made on main", "step 1"]
