"""Grids: what a file means, what a cell runs, and that a run that stops goes on."""

import json
import time
from dataclasses import replace

import pytest
import torch

from augsubset import Selection
from benchmarks import cells
from benchmarks import train as training
from benchmarks.cells import Cell, Costs, OneByOne, build, data_of, run_cell
from benchmarks.datasets import load_imagenet
from benchmarks.grid import grid_names, load_grid, load_results
from benchmarks.models import build_model
from benchmarks.train import main, pace, run_grid
from tests.benchmarks.test_datasets import write_image

TINY = {"limit": 60, "epochs": 2, "batch_size": 30, "lr": 0.05, "base": "none", "copies": 1}


def cell(**values):
    return Cell.of({"arm": "some", "seed": 0, "fraction": 0.2, "every": 1, **TINY, **values})


def run(**values):
    chosen = cell(**values)
    return run_cell(chosen, data_of(chosen, None))


def write_grid(path, arms, seeds="[0, 1]"):
    lines = ["title = 'tiny'", f"seeds = {seeds}", "[setting]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in TINY.items()]
    path.write_text("\n".join([*lines, arms]))
    return path


RANDOM = "[[arm]]\nname = '{rule} {share}'\nrule = 'random'\nfraction = [0.2, 0.5]\n"


# Files.


@pytest.mark.parametrize("name", grid_names())
def test_every_grid_on_file_is_one(name):
    grid = load_grid(name)
    assert grid.title
    by_arm = {}
    for each in grid.cells:
        if each.seed in grid.seeds:
            by_arm.setdefault(each.arm, []).append(each.seed)
    assert len({tuple(seeds) for seeds in by_arm.values()}) == 1  # all arms paired, none twice


def test_lists_are_alternatives_and_seeds_come_first(tmp_path):
    grid = load_grid(write_grid(tmp_path / "g.toml", RANDOM))
    assert [(c.arm, c.seed) for c in grid.cells] == [
        ("random 20%", 0),
        ("random 50%", 0),
        ("random 20%", 1),
        ("random 50%", 1),
    ]


def test_a_share_is_spelled_one_way(tmp_path):
    arm = RANDOM.replace("[0.2, 0.5]", "[0.001, 0.005, 0.05, 0.3, 1.0]")
    grid = load_grid(write_grid(tmp_path / "g.toml", arm, "[0]"))
    shares = [each.arm.removeprefix("random ") for each in grid.cells]
    assert shares == ["0.1%", "0.5%", "5%", "30%", "100%"]


def test_a_grid_may_be_another_with_other_settings(tmp_path):
    control = "[[arm]]\nname = 'control'\nfraction = 0.5\n"
    write_grid(tmp_path / "one.toml", RANDOM + control)
    own = "title = 'more'\nlike = 'one'\nwithout = ['control']\n[setting]\npasses = 3\n"
    (tmp_path / "more.toml").write_text(own)
    one, more = load_grid(tmp_path / "one.toml"), load_grid(tmp_path / "more.toml")
    assert (more.name, more.title) == ("more", "more")
    kept = [each for each in one.cells if each.arm != "control"]
    assert list(more.cells) == [replace(each, passes=3) for each in kept]
    (tmp_path / "more.toml").write_text(own + "[[arm]]\nname = 'mine'\nfraction = 0.7\n")
    *others, mine = (each.arm for each in load_grid(tmp_path / "more.toml").cells if each.seed == 0)
    assert (set(others), mine) == ({each.arm for each in kept}, "mine")  # added, none is lost
    (tmp_path / "more.toml").write_text(own.replace("'control'", "'controls'"))
    with pytest.raises(
        ValueError, match=r"without and only must name arms of one, got \['controls'\]"
    ):
        load_grid(tmp_path / "more.toml")


@pytest.mark.parametrize("name", [name for name in grid_names() if name.endswith("-steps")])
def test_what_is_at_equal_steps_is(name):
    """All arms of one data set take as many steps."""
    steps = {}
    for each in load_grid(name).cells:
        steps.setdefault((each.imbalance, each.noise_kind), set()).add(each.plan(1000).steps)
    assert all(len(found) == 1 and None not in found for found in steps.values())


def test_files_that_are_no_grids_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_grid("nothing")
    arm = "[[arm]]\nname = 'a'\nfractoin = 0.1\n"
    with pytest.raises(ValueError, match=r"got \['fractoin'\]"):
        load_grid(write_grid(tmp_path / "g.toml", arm))
    with pytest.raises(ValueError, match="cells must differ, got twice"):
        load_grid(write_grid(tmp_path / "g.toml", RANDOM, "[0, 0]"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "oracle"}, "rule must be one of"),
        ({"strong": "mixup"}, "strong must be one of"),
        ({"base": "stale"}, "base must be one of"),
        ({"rule": "all"}, "fraction must be 1 for"),
        ({"passes": 2, "seconds": 1.0}, "must not both be given"),
        ({"shadows": [{"rule": "oracle", "fraction": 0.1}]}, "rule must be one of"),
    ],
)
def test_cells_that_could_not_run_are_refused_at_once(values, message):
    with pytest.raises(ValueError, match=message):
        cell(**values)


# Cells.


def test_keys_differ_where_cells_do_and_not_by_names_or_devices():
    plain = cell()
    same = cell(arm="another", device="cuda", precision="bfloat16", threads=1, workers=0)
    assert plain.key == same.key
    others = [
        cell(seed=1),
        cell(every=2),
        cell(rule_options={"similarity": "exp"}),
        cell(noise=0.5),
        cell(strong="strength", strong_options={"by": "time"}),
    ]
    assert len({plain.key, *(each.key for each in others)}) == 6


def test_a_cell_is_told_by_what_is_not_the_default():
    some = cell(rule="random", milestones=[1, 2])
    assert Cell.of(json.loads(json.dumps(some.values()))) == some
    assert Cell(arm="plain", seed=3).values() == {"arm": "plain", "seed": 3}


def made_of(monkeypatch, **values):
    """Return what a cell gives its loader, its options, its rule and its probe."""
    given = {}
    names = ("SubsetAugmentLoader", "LoaderOptions", "make_rule", "GradientProbe")
    make = {name: getattr(cells, name) for name in names}

    def noting(name):
        def made(*args, **options):
            given[name] = args[1] if name == "make_rule" else options
            return make[name](*args, **options)

        return made

    for name in make:
        monkeypatch.setattr(cells, name, noting(name))
    chosen = cell(rule="coreset", **values)
    build(chosen, data_of(chosen, None))
    return given


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("fraction", 0.4), ("copies", 3), ("every", 7), ("start_epoch", 5), ("seed", 4)),
        *(("originals", "selected"), ("weights", "cluster"), ("max_weight", 2.0), ("recycle", 2)),
        *(("channels_last", True), ("resident", True)),
    ],
)
def test_a_setting_reaches_the_loader(monkeypatch, setting, value):
    part = {
        **dict.fromkeys(("start_epoch", "recycle", "channels_last", "resident"), "LoaderOptions"),
        "max_weight": "make_rule",
    }.get(setting, "SubsetAugmentLoader")
    by_default = made_of(monkeypatch)[part].get(setting)
    monkeypatch.undo()
    assert made_of(monkeypatch, **{setting: value})[part][setting] == value
    assert by_default != value


@pytest.mark.parametrize("kind", ["logits", "last_layer"])
def test_the_kind_of_gradient_reaches_the_probe(monkeypatch, kind):
    assert made_of(monkeypatch, kind=kind)["GradientProbe"]["kind"] == kind


def test_a_frozen_base_keeps_its_draws_and_a_fresh_one_does_not(monkeypatch):
    def base(**values):
        monkeypatch.undo()
        return made_of(monkeypatch, **values)["SubsetAugmentLoader"]["base"]

    assert base(base="frozen", base_every=6).every == 6
    assert base(base="fresh", base_every=6).every == 1
    assert base(base="none") is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("epochs", 9), ("lr", 0.3), ("momentum", 0.5), ("weight_decay", 0.2), ("warmup", 3)),
        *(("milestones", [1, 2]), ("seconds", 7.0), ("precision", "bfloat16")),
    ],
)
def test_a_setting_reaches_the_plan(setting, value):
    planned = getattr(cell(**{setting: value}).plan(60), setting)
    assert planned == (tuple(value) if isinstance(value, list) else value)
    assert getattr(cell().plan(60), setting) != planned


def test_a_device_brings_what_it_is_good_at_and_its_runs_are_the_grids(tmp_path, monkeypatch):
    """Images on it, networks in bfloat16, channels last, and found under the grid's names."""
    monkeypatch.setattr(training, "run_cell", ran := Ran())
    path, out = write_grid(tmp_path / "g.toml", RANDOM), tmp_path / "out"
    main([str(path), "--out", str(out), "--device", "cuda"])
    assert len(ran.cells) == 4
    for each in ran.cells:
        assert (each.device, each.precision) == ("cuda", "bfloat16")
        assert each.channels_last
        assert each.resident
    found = load_results(load_grid(path), out)
    assert {len(by_seed) for by_seed in found.values()} == {2}


class Ran:
    """In the place of runs: what was to be run."""

    def __init__(self):
        self.cells = []

    def __call__(self, cell, data, before_epoch):
        self.cells.append(cell)
        result = {"accuracies": [0.5], "epoch_seconds": []}
        return {"cell": cell.values(), "environment": {}, "result": result}


def test_what_selects_everything_is_not_observed():
    assert run(rule="all", fraction=1.0, observe=True)["dynamics"]["selections"] == {}
    assert "error" in run(rule="random", observe=True)["dynamics"]["selections"]


def test_a_cell_is_a_function_of_itself():
    first, again = run(rule="coreset"), run(rule="coreset")
    other = run(rule="coreset", seed=1)
    keys = ("accuracies", "losses", "steps", "rows", "augmented")
    assert all(first["result"][key] == again["result"][key] for key in keys)
    assert first["dynamics"] == again["dynamics"]
    assert first["result"]["losses"] != other["result"]["losses"]
    assert first["environment"]["data"]["name"] == "digits"
    json.dumps(first)


def test_arms_of_one_seed_start_from_the_same_weights_and_order():
    # One batch before anything was selected differently: the same loss to the last bit.
    arms = {"strong": "none", "batch_size": 60, "epochs": 1, "originals": "none", "fraction": 1.0}
    losses = {rule: run(rule=rule, **arms)["result"]["losses"][0] for rule in ("all", "random")}
    assert losses["all"] == pytest.approx(losses["random"], rel=1e-5)


def test_equal_passes_are_equal_steps():
    found = {
        originals: run(rule="random", originals=originals, passes=2.0)["result"]["steps"]
        for originals in ("all", "unselected", "none", "selected")
    }
    assert set(found.values()) == {2 * 4}


def test_settings_see_the_rows_that_they_should():
    # 60 examples, 12 selected, 2 copies, one selection.
    rows = {
        originals: run(rule="random", originals=originals, copies=2, epochs=1)["result"]["rows"]
        for originals in ("all", "unselected", "none", "selected")
    }
    assert rows == {"all": 84, "unselected": 72, "none": 24, "selected": 36}


def test_copies_that_are_not_augmented_do_not_count():
    assert run(rule="random", strong="none")["result"]["augmented"] == 0
    assert run(rule="random")["result"]["augmented"] == 2 * 12


def test_every_selection_is_recorded():
    record = run(rule="random", observe=True, epochs=3)["dynamics"]
    assert record["selections"]["epoch"] == [0, 1, 2]
    assert all(0 < error < 1 for error in record["selections"]["error"])
    assert "overlap_with_max_loss" in record["selections"]
    plain = run(rule="random")["dynamics"]["selections"]
    assert "error" not in plain


def test_noise_tails_and_shadows_reach_the_record():
    noisy = run(rule="coreset", noise=0.5)["dynamics"]["selections"]
    assert 0 < noisy["clean_share"][0] < 1
    tail = run(rule="coreset", limit=None, imbalance=10, epochs=1)["dynamics"]["selections"]
    assert 0 < tail["tail_recall"][0] < 1
    shadows = [{"rule": "max-loss", "fraction": 0.3}]
    found = run(rule="random", shadows=shadows)["dynamics"]["shadows"]["max-loss 0.3"]
    assert found["selections"]["num_selected"] == [18, 18]


def test_weights_of_another_task_are_started_from(tmp_path):
    data = data_of(cell(), None)
    other = build_model("convnet", replace(data, y_test=data.y_test + 5), 7)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    model, _, _ = build(cell(init=str(tmp_path / "other.pt")), data)
    assert torch.equal(model.features[0][0].weight, other.features[0][0].weight)
    assert model.head.weight.shape[0] == 10
    torch.save(build_model("resnet20", data, 0).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="own names"):
        build(cell(init=str(tmp_path / "other.pt")), data)


def test_a_rule_that_rotates_probes_only_now_and_then():
    chosen = cell(rule="rotating", rule_options={"every": 2}, epochs=4)
    data, scans = data_of(chosen, None), []
    original = training.run_cell.__globals__["GradientProbe"].scan

    def scan(self, *args, **kwargs):
        scans.append(1)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("augsubset.probe.probe.GradientProbe.scan", scan)
        record = run_cell(chosen, data)
    assert len(scans) == 2
    assert len(record["dynamics"]["selections"]["epoch"]) == 4


def test_one_by_one_is_torchvision_a_row():
    from augsubset import RowKeys

    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    rows = RowKeys(0, 1, torch.arange(3), 1)
    policy = OneByOne()
    torch.manual_seed(1)
    first = policy(x, rows)
    torch.manual_seed(2)
    assert torch.equal(first, policy(x, rows))
    assert first.shape == x.shape
    assert not torch.equal(first, x)


# Runs.


def test_a_run_that_stopped_goes_on(tmp_path, capsys):
    grid, out = load_grid(write_grid(tmp_path / "g.toml", RANDOM)), tmp_path / "out"
    main([str(tmp_path / "g.toml"), "--out", str(out), "--budget-minutes", "0"])
    assert "4 cells are left" in capsys.readouterr().out
    run_grid(replace(grid, cells=grid.cells[:1]), out)
    before = (out / "g.jsonl").read_text()
    main([str(tmp_path / "g.toml"), "--out", str(out)])
    shown = capsys.readouterr().out
    assert "1 of 4 cells are done" in shown
    assert "all cells are done" in shown
    assert (out / "g.jsonl").read_text().startswith(before)
    results = load_results(grid, out)
    assert {arm: sorted(by_seed) for arm, by_seed in results.items()} == {
        "random 20%": [0, 1],
        "random 50%": [0, 1],
    }


def test_a_budget_starts_nothing_that_would_be_over_it(tmp_path, monkeypatch):
    grid = load_grid(write_grid(tmp_path / "g.toml", RANDOM))
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(self, cell):
        now[0] += 50
        return cell.arm, 50.0

    monkeypatch.setattr(training._Run, "__call__", run)
    left = run_grid(grid, tmp_path / "out", budget_minutes=2.0)
    assert left == 2  # a third would end at 150 of 120 seconds


@pytest.mark.parametrize(("times", "left"), [([0.0, 30.0, 90.0], 4), ([0.0, 30.0, 59.0], 3)])
def test_a_cell_stops_before_an_epoch_that_is_over_the_budget(
    times, left, tmp_path, monkeypatch, capsys
):
    """Also the first one, of which nobody knows how long it takes; what is done is kept."""
    path, out = write_grid(tmp_path / "g.toml", RANDOM), tmp_path / "out"
    now = iter([*times, 90.0])  # the budget is set, then two epochs begin; another cell's is late
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(now))
        main([str(path), "--out", str(out), "--budget-minutes", "1"])
    shown = capsys.readouterr().out
    assert f"{left} cells are left" in shown
    assert "a cell was stopped" in shown
    assert sum(map(len, load_results(load_grid(path), out).values())) == 4 - left
    main([str(path), "--out", str(out)])
    assert "all cells are done" in capsys.readouterr().out


def test_files_are_not_kept_on_a_device(tmp_path, monkeypatch):
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            write_image(tmp_path / part / name / "0.JPEG", 9, (40, 30))
    monkeypatch.setattr(training, "run_cell", ran := Ran())
    arm = "[[arm]]\nname = 'some'\nrule = 'random'\n"
    path = tmp_path / "g.toml"
    path.write_text(f"title = 'files'\nseeds = [0]\n[setting]\ndata = 'imagenet'\n{arm}")
    main([str(path), "--out", str(tmp_path / "out"), "--data", str(tmp_path), "--device", "cuda"])
    assert [(each.device, each.resident) for each in ran.cells] == [("cuda", False)]


def test_a_call_changes_where_cells_run_and_not_what_they_are(tmp_path, capsys):
    path, out = str(write_grid(tmp_path / "g.toml", RANDOM)), tmp_path / "out"
    main([path, "--out", str(out), "--precision", "bfloat16", "--channels-last"])
    records = [each for arm in load_results(load_grid(path), out).values() for each in arm.values()]
    assert all(each["cell"]["precision"] == "bfloat16" for each in records)
    assert all(each["cell"]["channels_last"] for each in records)
    main([path, "--out", str(out)])
    assert "4 of 4 cells are done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_budget_ends_cells_side_by_side_and_they_go_on_the_same(tmp_path, capsys, monkeypatch):
    path, out = str(write_grid(tmp_path / "g.toml", RANDOM)), tmp_path / "out"
    with monkeypatch.context() as patch:  # time is up once a cell is done
        patch.setattr(time, "perf_counter", lambda: 1e9 if list(out.glob("*")) else 0.0)
        main([path, "--out", str(out), "--jobs", "2", "--budget-minutes", "5"])
    assert "2 cells are left" in capsys.readouterr().out
    main([path, "--out", str(out), "--jobs", "2"])
    assert "all cells are done" in capsys.readouterr().out
    main([path, "--out", str(tmp_path / "alone")])
    grid = load_grid(path)
    found, alone = load_results(grid, out), load_results(grid, tmp_path / "alone")
    assert {len(by_seed) for by_seed in found.values()} == {2}
    for arm, by_seed in found.items():
        for seed, record in by_seed.items():
            assert record["result"]["losses"] == alone[arm][seed]["result"]["losses"]


class LowestIndices:
    """A user's rule: the first examples, whatever their gradients."""

    needs_gradients = False

    def __init__(self, offset=0):
        self.offset = offset

    def select(self, gradients, *, budget, seed, epoch):
        indices = torch.arange(self.offset, self.offset + budget)
        ones = torch.ones(budget, dtype=torch.float64)
        none = torch.full((len(gradients),), -1)
        return Selection(indices, ones, 0 * ones, none, epoch=epoch)


def test_a_users_own_rule_goes_through_a_grid(tmp_path):
    rule = f"{__name__}:LowestIndices"
    arm = f"[[arm]]\nname = 'own'\nrule = '{rule}'\nrule_options = {{offset = 5}}\n"
    path, out = write_grid(tmp_path / "g.toml", arm + "fraction = 0.2\n"), tmp_path / "out"
    main([str(path), "--out", str(out)])
    results = load_results(load_grid(path), out)
    for record in results["own"].values():
        found = record["dynamics"]
        assert sorted(index for index, _ in found["most_selected"]) == list(range(5, 15))
        assert found["times_selected"] == [48, 12]


def test_images_in_folders_go_through_a_cell(tmp_path):
    for number in range(24):
        for part, count in (("train", 3), ("val", 1)):
            for k in range(count):
                path = tmp_path / part / f"n{number % 2:02}" / f"{number}-{k}.JPEG"
                write_image(path, 9 * number, (40, 30))
    chosen = replace(cell(data="imagenet", rule="coreset", batch_size=12), limit=None)
    data = load_imagenet(tmp_path, size=24)
    record = run_cell(chosen, data)
    assert record["result"]["augmented"] > 0
    assert record["environment"]["data"] == {"name": "imagenet", "sha256": data.digest}
    assert len(record["dynamics"]["selections"]["epoch"]) == 2
    with pytest.raises(ValueError, match="limit, imbalance and noise must not be given"):
        data_of(cell(data="imagenet"), tmp_path)


def test_only_grids_of_times_keep_and_print_those_of_epochs(tmp_path, capsys):
    path = write_grid(tmp_path / "g.toml", RANDOM, seeds="[0]")
    timed = tmp_path / "timed.toml"
    timed.write_text("times = true\n" + path.read_text())
    found = {}
    for grid in (path, timed):
        main([str(grid), "--out", str(tmp_path)])
        results = load_results(load_grid(grid), tmp_path)
        found[grid.stem] = [each[0]["result"].get("epoch_seconds") for each in results.values()]
    assert found["g"] == [None, None]
    printed = capsys.readouterr().out
    assert printed.count("an epoch takes") == 2
    assert all(f"; {pace(epochs)}\n" in printed for epochs in found["timed"])


def test_the_pace_of_epochs_leaves_the_first_out():
    first, second, third = (
        {"loading": a, "augmentation": b, "step": c, "total": a + b + c}
        for a, b, c in ((9.0, 9.0, 9.0), (1.0, 2.0, 4.0), (1.0, 1.0, 8.0))
    )
    expected = "an epoch takes 8.500 s, loading and augmentation 0.50 of its steps"
    assert pace([first, second, third]) == expected


def test_what_a_cell_ran_on_is_on_record():
    found = run(rule="random", resident=True)["environment"]
    assert {"torch", "torchvision", "numpy", "scipy", "cores", "memory_gib"} <= set(found)
    assert found["data"]["name"] == "digits"


def test_a_cell_that_fails_is_said_and_not_written(tmp_path):
    grid = load_grid(write_grid(tmp_path / "g.toml", RANDOM.replace("0.5", "1.5")))
    with pytest.raises(ValueError, match="fraction must be"):
        run_grid(grid, tmp_path / "out")
    assert set(load_results(grid, tmp_path / "out")) <= {"random 20%"}


def test_an_estimate_needs_no_run(tmp_path, capsys):
    path = write_grid(tmp_path / "g.toml", RANDOM)
    main([str(path), "--estimate", "--out", str(tmp_path / "hours.json")])
    record = json.loads((tmp_path / "hours.json").read_text())
    assert record["grids"]["g"]["hours"] > 0
    assert "g: 0.0 h" in capsys.readouterr().out


def test_grids_that_are_estimated_together_share_what_was_measured(tmp_path, monkeypatch):
    measured = []

    def costs_of(cell, data, num_examples):
        measured.append(cell.model)
        return Costs(1.0, 0.0, 0.0)

    monkeypatch.setattr(training, "costs_of", costs_of)
    paths = [write_grid(tmp_path / f"{name}.toml", RANDOM) for name in ("one", "two")]
    main([*map(str, paths), "--estimate"])
    assert measured == ["convnet"]


def test_costs_add_up():
    costs = Costs(row=1.0, copy=10.0, selection=100.0)
    # 60 originals, 12 selected, 2 copies: 84 rows, 24 copies; every second epoch a selection.
    found = cell(rule="coreset", copies=2, epochs=4, every=2)
    assert costs.of(found, 60) == 4 * (84 + 240 + 50)
    assert costs.of(cell(rule="random", copies=2, epochs=4), 60) == 4 * (84 + 240)
    assert costs.of(cell(rule="random", copies=2, epochs=4, strong="none"), 60) == 4 * 84
    observed = cell(rule="random", copies=2, epochs=4, every=2, observe=True)
    assert costs.of(observed, 60) == 4 * (84 + 240 + 50)
    # Two passes of 60 rows are 4 steps an epoch; one epoch of the 48 + 12 rows in place is 2.
    in_place = cell(rule="random", originals="unselected", epochs=4, passes=2)
    assert costs.of(in_place, 60) == 8 * (60 + 120)
    assert costs.of(cell(seconds=7.0), 60) == 7.0


CHOICE = """
[[arm]]
name = "share {share}"
rule = "random"
fraction = [0.2, 0.5]
[[arm]]
name = "none"
rule = "all"
fraction = 1.0
strong = "none"
originals = "none"
[[choice]]
name = "best"
of = ["share 20%", "share 50%"]
seeds = "0-1"
[[primary]]
name = "Does it gain?"
first = "best"
second = "none"
margin = 0.5
"""


def test_a_choice_is_made_before_its_arm_is_run_on_the_seeds_that_are_asked(tmp_path):
    path, out = write_grid(tmp_path / "g.toml", CHOICE, '"2-3"'), tmp_path / "out"
    assert run_grid(load_grid(path), out) == 0
    grid = load_grid(path)
    results = load_results(grid, out)
    best = grid.chosen("best", results)
    ran = {arm: sorted(runs) for arm, runs in results.items()}
    (other,) = {"share 20%", "share 50%"} - {best}
    assert ran == {best: [0, 1, 2, 3], other: [0, 1], "none": [2, 3]}
    means = {
        arm: sum(results[arm][seed]["result"]["accuracies"][-1] for seed in (0, 1))
        for arm in (best, other)
    }
    assert means[best] >= means[other]


def test_only_the_seeds_that_are_asked_for_are_run(tmp_path):
    path, out = write_grid(tmp_path / "g.toml", RANDOM, '"0-3"'), tmp_path / "out"
    main([str(path), "--out", str(out), "--seeds", "2-3"])
    results = load_results(load_grid(path), out)
    assert {arm: sorted(runs) for arm, runs in results.items()} == {
        "random 20%": [2, 3],
        "random 50%": [2, 3],
    }


def test_records_say_what_was_declared_before_the_first(tmp_path):
    path, out = write_grid(tmp_path / "g.toml", CHOICE, '"2-3"'), tmp_path / "out"
    grid = load_grid(path)
    run_grid(replace(grid, cells=grid.cells[:1]), out)
    ((record,),) = (runs.values() for runs in load_results(grid, out).values())
    assert record["grid"] == grid.digest
    assert load_grid(write_grid(path, CHOICE, '"2-9"')).digest == grid.digest  # more seeds
    changed = CHOICE.replace("margin = 0.5", "margin = 0.6")
    assert load_grid(write_grid(path, changed, '"2-3"')).digest != grid.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("margin = 0.5", "margin = 0", "margin must be above 0"),
        ('second = "none"', 'second = "nothing"', r"must name arms or choices, got \['nothing'\]"),
        ('"0-1"', '"1-2"', r"must not be those of a choice, got \[2\]"),
    ],
)
def test_questions_that_make_no_sense_are_refused(tmp_path, old, new, message):
    path = write_grid(tmp_path / "g.toml", CHOICE.replace(old, new), '"2-3"')
    with pytest.raises(ValueError, match=message):
        load_grid(path)
    question = CHOICE[CHOICE.index("[[primary]]") :]
    with pytest.raises(ValueError, match="at most 5 primary questions, got 6"):
        load_grid(write_grid(path, CHOICE + 5 * question, '"2-3"'))


def test_records_of_the_same_cell_in_another_grid_count(tmp_path):
    write_grid(tmp_path / "one.toml", RANDOM)
    run_grid(load_grid(tmp_path / "one.toml"), tmp_path / "out")
    arm = "reuse = ['one']\n[setting]"
    path = write_grid(tmp_path / "two.toml", RANDOM.replace("{rule}", "other {rule}"))
    path.write_text(path.read_text().replace("[setting]", arm))
    found = load_results(load_grid(path), tmp_path / "out")
    assert {arm: sorted(runs) for arm, runs in found.items()} == {
        "other random 20%": [0, 1],
        "other random 50%": [0, 1],
    }


def test_an_estimate_says_what_seeds_can_detect(tmp_path, capsys):
    path = write_grid(tmp_path / "g.toml", CHOICE, '"2-6"')
    path.write_text("spread = 1.0\n" + path.read_text())
    main([str(path), "--estimate"])
    assert "5 seeds, a spread of 1 points: a difference of 1.68 points" in capsys.readouterr().out


GPU = {"device": "cuda", "precision": "bfloat16", "channels_last": True, "resident": True}


@pytest.mark.cuda
def test_a_cell_runs_on_the_device():
    options = {"model": "resnet20", "base": "frozen", "base_every": 2, "strong": "wu2020"}
    found, on_host = run(rule="coreset", **options, **GPU), run(rule="coreset", **options)
    assert found["result"]["steps"] == on_host["result"]["steps"]
    assert found["environment"]["device"] == torch.cuda.get_device_name()
    # The first selections are of the same residuals, but for rounding.
    first, theirs = (each["result"]["losses"][0] for each in (found, on_host))
    assert first == pytest.approx(theirs, rel=0.05)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node", "ignore:Attempting to run cuBLAS")
def test_graphs_train_as_the_network_itself_does():
    """The same losses, with an epoch's last, smaller batch; and buffers as they were before."""
    options = {"model": "resnet20", "rule": "coreset", "epochs": 3, **GPU}
    graphs, plain = run(graphed=True, **options), run(**options)
    assert graphs["result"]["steps"] == plain["result"]["steps"]
    assert graphs["result"]["losses"] == pytest.approx(plain["result"]["losses"], rel=0.02)


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match='graphed must be False on device="cpu"'):
        cell(graphed=True)
