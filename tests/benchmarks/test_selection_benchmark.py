"""The selection benchmark's own arithmetic, its meters and its gate."""

import dataclasses
import json
import mmap
import time

import numpy as np
import pytest
import torch

from augsubset import LastLayerGradients, select_coreset
from benchmarks import curves, peers, selection, workloads
from benchmarks.datasets import load_cifar10
from benchmarks.measuring import Figure, PeakMemory, in_turn, regressions, summary, times
from benchmarks.residuals import load, probed, save, softmax_residuals, trained_network
from tests.benchmarks.test_datasets import write_npz


@pytest.fixture
def gradients():
    generator = torch.Generator().manual_seed(0)
    return LastLayerGradients.from_residual(
        torch.randn(90, 3, generator=generator), torch.arange(90) % 4
    )


# Arithmetic.


def test_error_of_a_coreset_is_its_certificates(gradients):
    chosen = select_coreset(gradients, fraction=0.2)
    error = workloads.error_of(gradients, chosen.indices)
    assert error == pytest.approx(chosen.certificate.error, rel=1e-5)


def test_random_subsets_have_the_same_class_budgets(gradients):
    chosen = select_coreset(gradients, fraction=0.2).indices
    at_random = workloads.random_with_budgets(gradients, chosen, 1)
    counts = [torch.bincount(gradients.labels[subset]) for subset in (chosen, at_random)]
    assert torch.equal(*counts)
    assert len(torch.unique(at_random)) == len(chosen)


def test_summaries_keep_every_value():
    assert summary([3.0, 1.0, 2.0]) == {"raw": [3.0, 1.0, 2.0], "median": 2.0, "iqr": 1.0}
    assert summary([5.0]) == {"raw": [5.0], "median": 5.0, "iqr": 0.0}


def test_the_call_that_compiles_is_not_timed():
    calls = []
    assert len(times(lambda: calls.append(1), 3)) == 3
    assert len(calls) == 4


def test_calls_in_turn_alternate():
    calls = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert [len(raw) for raw in seconds.values()] == [2, 2]


def test_the_certificates_share_is_a_share(gradients):
    threads = torch.get_num_threads()
    (figure,) = workloads.certificate_share(gradients, 0.2, 2).figures
    assert 0 < figure.value < 1
    assert torch.get_num_threads() == threads


def test_squared_distances_of_outer_products_are_held_against_the_formed_ones(gradients):
    outer = dataclasses.replace(gradients, inputs=torch.rand(90, 5))
    assert workloads.last_layer_distances(outer).figures[0].met
    # The control: distances of other inputs are told apart.
    honest = LastLayerGradients.distances
    wrong = dataclasses.replace(gradients, inputs=torch.rand(90, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastLayerGradients, "distances", lambda _, *at: honest(wrong, *at))
        assert not workloads.last_layer_distances(outer).figures[0].met


# Judgement.


@pytest.mark.parametrize(
    ("value", "better", "target", "met"),
    [
        (60.0, "higher", 60.0, True),
        (59.9, "higher", 60.0, False),
        (1.02, "lower", 1.02, True),
        (1.03, "lower", 1.02, False),
        (1.0, "lower", None, None),
    ],
)
def test_a_figure_is_met_on_its_better_side(value, better, target, met):
    figure = Figure("f", value, "x", better, target)
    assert figure.met is met
    assert figure.as_record()["met"] is met
    assert ("MISSED" in str(figure)) is (met is False)


def record_of(*figures):
    return {"w": {"figures": [figure.as_record() for figure in figures]}}


HIGHER, LOWER = Figure("up", 40.0, "x", "higher"), Figure("down", 0.3, "share", "lower")


def test_the_gate_passes_the_record_itself():
    assert regressions({"w": [HIGHER, LOWER]}, record_of(HIGHER, LOWER)) == []


@pytest.mark.parametrize("factor", [1.9, 2.1])
def test_the_gate_fails_ratios_twice_as_bad(factor):
    worse = [
        dataclasses.replace(HIGHER, value=HIGHER.value / factor),
        dataclasses.replace(LOWER, value=LOWER.value * factor),
    ]
    found = regressions({"w": worse}, record_of(HIGHER, LOWER))
    assert [line.split(":")[0] for line in found] == (["w, up", "w, down"] if factor > 2 else [])


def test_the_gate_passes_what_got_better():
    better = [dataclasses.replace(HIGHER, value=400.0), dataclasses.replace(LOWER, value=0.03)]
    assert regressions({"w": better}, record_of(HIGHER, LOWER)) == []


def test_the_gate_compares_no_seconds():
    seconds = Figure("s", 1.0, "s", "lower")
    slow = dataclasses.replace(seconds, value=100.0)
    assert regressions({"w": [slow]}, record_of(seconds)) == []


@pytest.mark.parametrize("now", [[HIGHER], [HIGHER, LOWER, Figure("new", 1.0, "x", "lower")]])
def test_the_gate_refuses_a_record_of_other_ratios(now):
    with pytest.raises(KeyError, match="must hold the same ratios"):
        regressions({"w": now}, record_of(HIGHER, LOWER))


def test_the_committed_record_holds_what_the_quick_form_measures():
    before = json.loads(selection.RECORD.read_text())["workloads"]
    assert list(before) == list(workloads.QUICK)
    assert {figure["unit"] for entry in before.values() for figure in entry["figures"]} <= {
        "x",
        "share",
        "",
    }


# Meters.


def test_peak_memory_sees_what_was_freed_again():
    # From the kernel: a hole that an earlier test left in the heap would be reused unseen.
    with PeakMemory() as memory, mmap.mmap(-1, 100_000_000) as pages:
        np.frombuffer(pages, np.uint8)[:] = 1  # touched, so resident
        time.sleep(0.1)  # a peak shorter than a sample may escape
    assert 80e6 < memory.extra_bytes < 200e6


def test_peak_memory_of_nothing_is_little():
    with PeakMemory() as memory:
        pass
    assert memory.extra_bytes < 20e6


def test_a_million_points_worth_of_memory_counts_from_before_the_first_group():
    figures = workloads.million(workloads.Setting(), n=6000).figures
    assert [figure.unit for figure in figures] == ["s", "MB", "s", "MB"]
    assert all(figure.value > 0 for figure in figures)


# Peers.


@pytest.fixture
def installed_peers():
    for module in ("submodlib", "apricot"):
        pytest.importorskip(module)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_pick_distinct_rows_within_each_class(name, installed_peers, gradients, capfd):
    like = select_coreset(gradients, fraction=0.2).indices
    run = peers.solve_by_class(name, gradients.residual, gradients.labels, like)
    assert capfd.readouterr().out == ""
    assert len(torch.unique(run.positions)) == len(like)
    counts = [torch.bincount(gradients.labels[part]) for part in (run.positions, like)]
    assert torch.equal(*counts)
    assert (0 < run.compiling < run.seconds) is (name == "apricot")
    # Greedy on a near objective: far from random.
    ours, theirs = (workloads.error_of(gradients, part) for part in (like, run.positions))
    assert theirs < 1.3 * ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_apricot_compiles_once_when_told(installed_peers):
    rows, labels, like = torch.rand(30, 2), torch.zeros(30, dtype=torch.int64), torch.arange(3)
    with peers.compiled_once():
        compiling = [
            peers.solve_by_class("apricot", rows, labels, like).compiling for _ in range(2)
        ]
    assert compiling[1] < 0.05 * compiling[0]


# Curves.


def curve(tool, *seconds, stopped=None):
    points = [
        {"tool": tool, "n": 10 ** (i + 2), "k": 10, "d": 10, "classes": 1, "seconds": s}
        for i, s in enumerate(seconds)
    ]
    return {"points": [{**p, "extra_bytes": 2e6} for p in points], "stopped_at": stopped}


@pytest.fixture
def curves_record(tmp_path):
    axis = {"label": "examples n", "given": "d = 10", "limit_seconds": 20.0}
    axis["tools"] = {
        "ours, exact": curve("ours, exact", 0.01, 0.1, 1.0),
        "submodlib": curve("submodlib", 0.1, 30.0, stopped={"n": 1000}),
        "apricot": curve("apricot", stopped={"n": 100}),
    }
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"workloads": {"curves": {"measured": {"n": axis}}}}))
    return path


@pytest.mark.parametrize("name", ["cost.svg", "cost.png"])
def test_a_record_is_drawn_again(curves_record, tmp_path, name):
    out = tmp_path / name
    selection.main(["--plot", str(curves_record), "--picture", str(out)])
    assert out.stat().st_size > 1000
    if name.endswith("svg"):
        drawn = out.read_text()
        for text in ("time of one selection (s)", "examples n", "apricot: none in time", "20 s"):
            assert text in drawn


def test_a_point_gives_its_seconds_and_bytes():
    found = curves.measure_point(curves.Point("ours, exact", 400, 40, 3, 4))
    assert found["seconds"] > 0
    assert found["extra_bytes"] >= 0


def test_a_peer_stops_at_the_limit_and_ours_does_not(monkeypatch, capsys):
    cost = {"submodlib": [1.0, 30.0, 1.0], "ours, exact": [30.0, 40.0, 50.0], "apricot": [None]}

    def instead(point, limit):
        seconds = cost[point.tool].pop(0)
        return None if seconds is None else {"seconds": seconds, "extra_bytes": 0}

    monkeypatch.setattr(curves, "_in_process", instead)
    axis = dataclasses.replace(curves.AXES["n"], exact=curves.AXES["n"].exact[:3], in_parts=())
    tools = curves.sweep({"n": axis}, limit=20.0)["n"]["tools"]
    assert {tool: len(found["points"]) for tool, found in tools.items()} == {
        "ours, exact": 3,
        "submodlib": 2,
        "apricot": 0,
    }
    assert tools["submodlib"]["stopped_at"]["n"] == 1000
    assert tools["ours, exact"]["stopped_at"] is None
    assert "n=1000" in capsys.readouterr().out


# The command.


def fake_quick(value):
    def quick():
        figure = Figure("up", value, "x", "higher")
        yield "w", workloads.Result([figure], {"seconds": [1.0]}, [])

    return quick


def test_the_quick_form_is_held_to_the_record_that_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(selection.peers, "versions", dict)
    record, out = tmp_path / "record.json", tmp_path / "out.json"
    monkeypatch.setattr(selection, "quick", fake_quick(10.0))
    selection.main(["--quick", "--accept", "--record", str(record)])
    selection.main(["--quick", "--record", str(record), "--out", str(out)])
    assert "no ratio is worse" in capsys.readouterr().out
    assert json.loads(out.read_text())["environment"]["data"] is None
    monkeypatch.setattr(selection, "quick", fake_quick(4.7))
    with pytest.raises(SystemExit, match=r"w, up: 4\.7, on record 10"):
        selection.main(["--quick", "--record", str(record), "--out", str(out)])
    # What failed is written all the same.
    assert json.loads(out.read_text())["workloads"]["w"]["figures"][0]["value"] == 4.7


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "real"], "--data is needed for real"),
        (["--device", "cuda", "--only", "errors"], "--device is for real, imagenet, million"),
        (["--accept"], "--accept goes with --quick"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, reason, capsys, monkeypatch):
    monkeypatch.delenv("AUGSUBSET_CIFAR10", raising=False)
    with pytest.raises(SystemExit):
        selection.main(arguments)
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_a_workload_runs_in_a_process_of_its_own_on_a_networks_residuals(tmp_path, capsys):
    write_npz(tmp_path / "c.npz", n=200)
    out = tmp_path / "record.json"
    arguments = f"--only errors --data {tmp_path / 'c.npz'} --out {out}"
    selection.main(arguments.split())
    printed = capsys.readouterr().out
    assert "error over random's" in printed
    record = json.loads(out.read_text())
    assert record["environment"]["data"]["name"] == "cifar10"
    assert record["workloads"]["errors"]["measured"]["selected"] == 20
    assert set(record["environment"]["peers"]) == {"submodlib-py", "apricot-select"}


def test_what_is_measured_is_kept_when_a_later_workload_fails(tmp_path, monkeypatch, capsys):
    def in_fresh_process(name, setting):
        if name == "million":
            raise KeyboardInterrupt
        return selection.entry_of(workloads.Result([], {"of": name}, []), 1.0)

    monkeypatch.setattr(selection, "in_fresh_process", in_fresh_process)
    monkeypatch.setattr(selection.peers, "versions", dict)
    out = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        selection.main(["--only", "imagenet", "million", "--out", str(out)])
    kept = json.loads(out.read_text())
    assert kept["workloads"]["imagenet"]["measured"] == {"of": "imagenet"}
    assert set(kept["workloads"]) == {"imagenet"}
    assert "commit" in kept["environment"]


def test_without_the_peers_what_needs_none_is_measured_all_the_same(monkeypatch):
    def version(name):
        raise selection.peers.PackageNotFoundError(name)

    monkeypatch.setattr(selection.peers, "version", version)
    assert selection.peers.versions() == {"submodlib-py": None, "apricot-select": None}


@pytest.mark.slow
def test_a_worker_that_fails_is_no_blank_cell(tmp_path):
    with pytest.raises(selection.subprocess.CalledProcessError):
        selection.in_fresh_process("errors", workloads.Setting("cpu", tmp_path / "missing.npz"))


def test_probed_inputs_make_the_residuals(tmp_path):
    """The saved inputs are those of the last layer: its logits give the residuals back."""
    write_npz(tmp_path / "c.npz")
    data = load_cifar10(tmp_path / "c.npz")
    model = trained_network(data)
    gradients = probed(model, data)
    save(gradients, tmp_path / "g.npz")
    again = load(tmp_path / "g.npz")
    assert torch.equal(again.residual, gradients.residual)
    logits = model.head(again.inputs).detach()
    expected = logits.softmax(1) - torch.nn.functional.one_hot(again.labels, 10)
    assert torch.allclose(again.residual, expected, atol=1e-5)


def test_synthetic_residuals_sum_to_nothing_and_lean_to_their_label():
    residual = softmax_residuals(500, 10, seed=3, label=4)
    assert torch.allclose(residual.sum(1), torch.zeros(500), atol=1e-5)
    assert bool((residual[:, 4] < 0).all())
    assert torch.equal(residual, softmax_residuals(500, 10, seed=3, label=4))
