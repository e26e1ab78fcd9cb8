"""The training loop of the benchmarks: schedules, stopping, and what it accounts for."""

import re
import subprocess

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from augsubset import RandomOps, SubsetAugmentLoader
from benchmarks import harness
from benchmarks.datasets import load_digits_images, tail_classes
from benchmarks.harness import TrainingPlan, evaluate, train, unchanged
from benchmarks.models import build_model


def test_the_learning_rate_warms_up_and_falls():
    cosine = TrainingPlan(epochs=10, lr=1.0, warmup=2)
    assert [cosine.lr_at(t) for t in (1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    steps = TrainingPlan(epochs=10, lr=1.0, warmup=0, milestones=(5, 8))
    assert [steps.lr_at(t) for t in (0, 4.9, 5, 9)] == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize("weights", ["uniform", "cluster"])
def test_training_learns_and_accounts_for_every_row(weights):
    data = load_digits_images(100)
    model = build_model("convnet", data, 0)
    dataset = TensorDataset(data.x_train, data.y_train)
    loader = SubsetAugmentLoader(
        DataLoader(dataset, batch_size=20, shuffle=True),
        model,
        RandomOps.paper(),
        fraction=0.2,
        copies=2,
        weights=weights,
        normalize=data.mean_std,
    )
    result = train(model, loader, data, TrainingPlan(4, 0.1))
    assert (result.steps, result.rows, result.augmented) == (28, 560, 160)
    assert len(result.accuracies) == 4
    assert result.accuracies[-1] > 0.5
    parts = [result.seconds[b] for b in ("selection", "loading", "augmentation", "step")]
    assert sum(parts) == pytest.approx(result.seconds["total"])
    totals = [epoch["total"] for epoch in result.epoch_seconds]
    assert len(totals) == len(result.losses)
    assert sum(totals) == pytest.approx(result.seconds["total"])


def model_and_loader(data):
    model = build_model("convnet", data, 0)
    loader = SubsetAugmentLoader(
        DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=20, shuffle=True),
        model,
        unchanged,
        fraction=1.0,
        originals="none",
        copies=1,
        normalize=data.mean_std,
    )
    return model, loader


def trained(plan, **options):
    data = load_digits_images(100)
    model, loader = model_and_loader(data)
    return train(model, loader, data, plan, **options)


@pytest.mark.parametrize("steps", [3, 5, 12])
def test_a_plan_in_steps_takes_exactly_these(steps):
    result = trained(TrainingPlan(2, 0.1, steps=steps), evaluate_every=100)
    assert result.steps == steps
    assert result.evaluated_at == [steps]  # the end is always evaluated
    assert len(result.losses) == -(-steps // 5)


def test_a_plan_in_seconds_stops_at_them():
    plan = TrainingPlan(2, 0.1, seconds=0.2)
    result = trained(plan, evaluate_every=10**6)
    assert result.steps >= 1
    assert result.seconds["total"] >= 0.2


def test_the_schedule_is_stretched_over_steps():
    plan = TrainingPlan(10, 1.0, warmup=0, steps=40)
    assert plan.done(20, steps_an_epoch=7, seconds=0.0) == 0.5
    assert TrainingPlan(10, 1.0).done(20, steps_an_epoch=8, seconds=0.0) == 0.25
    assert TrainingPlan(10, 1.0, seconds=4.0).done(20, steps_an_epoch=8, seconds=3.0) == 0.75


def test_the_first_rate_is_not_zero_and_the_last_is():
    plan, rates = TrainingPlan(2, 1.0, warmup=0), []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        trained(plan)
    assert len(rates) == 10
    assert 0.9 < rates[0] < 1
    assert rates[-1] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


def test_low_precision_keeps_weights_in_full():
    result = trained(TrainingPlan(4, 0.1, precision="bfloat16"))
    full = trained(TrainingPlan(4, 0.1))
    assert result.losses[-1] == pytest.approx(full.losses[-1], rel=0.1)
    assert result.losses[-1] != full.losses[-1]  # it was another arithmetic


def test_accuracies_of_classes_and_of_the_tail():
    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()

    data = load_digits_images(20)
    is_zero = float((data.y_test == 0).double().mean())
    accuracy, in_classes = evaluate(First(), data)
    assert accuracy == pytest.approx(is_zero)
    assert in_classes.tolist() == [1.0] + [0.0] * 9
    assert trained(TrainingPlan(1, 0.1)).tail_accuracy is None
    long = load_digits_images(1000).long_tailed(20)
    tail = tail_classes(long.y_train, 10)
    assert tail.tolist() == [7, 8, 9]
    model, loader = model_and_loader(long)
    result = train(model, loader, long, TrainingPlan(2, 0.1))
    _, in_classes = evaluate(model, long)
    assert result.balanced_accuracy == pytest.approx(float(in_classes.mean()))
    assert result.tail_accuracy == pytest.approx(float(in_classes[7:].mean()))
    assert result.tail_accuracy != pytest.approx(result.balanced_accuracy)


def test_a_commit_is_dirty_where_anything_but_records_differs_from_it(tmp_path, monkeypatch):
    code, record = tmp_path / "benchmarks" / "a.py", tmp_path / "benchmarks" / "results" / "r.json"
    record.parent.mkdir(parents=True)
    code.write_text("1")
    record.write_text("{}")
    monkeypatch.setattr(harness, "__file__", str(code))
    assert harness._commit() == "unknown"
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    clean = harness._commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    record.unlink()
    assert harness._commit() == clean
    code.write_text("2")
    assert harness._commit() == f"{clean}-dirty"
