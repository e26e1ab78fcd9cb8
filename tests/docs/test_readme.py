"""The docs' code runs, links lead somewhere, and figures are those on record."""

import json
import os
import re
import socket
import types
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import RandomOps, SubsetAugmentLoader, batch
from benchmarks.grid import load_grid, load_results
from benchmarks.records import read
from benchmarks.tables import figure_row, write_tables
from benchmarks.train import pace

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network when imported
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    (page.name, number, code)
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def of_a_readers_own():
    """What README's snippets are about: somebody's model, data set and optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    x = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8)
    return {
        "model": model,
        "train_set": TensorDataset(x, torch.arange(80) % 4),
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "num_epochs": 2,
    }


def of_the_first_page():
    """What there is after the first page's loop, which the other pages go on from."""
    torch.manual_seed(0)
    (loop,) = (
        code for page, _, code in SNIPPETS if page == "start.md" and "num_epochs = 3" in code
    )
    names = {}
    exec(compile(loop, "start.md", "exec"), names)
    return names


def be_the_only_rank(monkeypatch):
    """Set what torchrun would."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in (world | {"MASTER_ADDR": "localhost"}).items():
        monkeypatch.setenv(name, str(value))


def write_photos(folder):
    """Write JPEGs of two classes, each of another size."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def fit_as_keras(batches, *, steps_per_epoch, epochs, shuffle):
    """Take from a generator what Keras's ``Model.fit`` takes: a batch ahead of training."""
    assert not shuffle
    assert isinstance(batches, types.GeneratorType)
    taken = [next(batches) for _ in range(steps_per_epoch * epochs + 1)]
    assert all(isinstance(x, torch.Tensor) and len(x) == len(y) for x, y in taken)


def mark(page, number, code):
    marks = pytest.mark.slow if "resnet18" in code else ()
    return pytest.param(page, number, code, id=f"{page}-{number}", marks=marks)


@pytest.mark.parametrize(("page", "number", "code"), [mark(*each) for each in SNIPPETS])
def test_snippets_run(page, number, code, tmp_path, monkeypatch):
    """Each from the names that its page says it has, and no other."""
    monkeypatch.chdir(tmp_path)  # where it leaves its files
    if "init_process_group" in code:
        be_the_only_rank(monkeypatch)
        write_photos(tmp_path / "photos")
    names = of_a_readers_own() if page == "README.md" else of_the_first_page()
    model = names["model"]
    model.fit = fit_as_keras
    before = model[1].weight.clone()
    exec(compile(code.replace("num_workers=2", "num_workers=0"), page, "exec"), names)
    if "optimizer.step()" in code and names["model"] is model:
        assert not torch.equal(before, model[1].weight)


def test_a_resumed_run_repeats_albumentations_with_the_line_that_the_page_names():
    (code,) = (code for page, _, code in SNIPPETS if page == "adopt.md" and "# the line" in code)

    def resumes(code):
        names = of_the_first_page()
        exec(compile(code, "adopt.md", "exec"), names)

        def epoch():
            data = DataLoader(names["Augmented"](names["train_set"]), 64, shuffle=True)
            policy = RandomOps.randaugment()
            return SubsetAugmentLoader(data, names["model"], policy, seed=0)

        torch.manual_seed(0)
        loader = epoch()
        running = iter(loader)
        next(running)
        again = epoch()
        again.load_state_dict(loader.state_dict())
        pairs = zip(running, again, strict=True)
        return all(torch.equal(a, b) for (a, _), (b, _) in pairs)

    assert resumes(code)
    without = "\n".join(line for line in code.splitlines() if "# the line" not in line)
    assert not resumes(without)


def test_the_pages_name_the_keys_that_are_found_without_being_named():
    text = " ".join((ROOT / "docs" / "loader.md").read_text().split())
    for usual in (batch._INPUT_NAMES, batch._LABEL_NAMES):
        *first, last = (f"`{name}`" for name in usual)
        assert f"{', '.join(first)} or {last}" in text


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", page.read_text())
    return [link for link in found if link and "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    missing = [link for link in links(page) if not (page.parent / link).exists()]
    assert missing == []


def test_every_guarantee_links_to_its_tests():
    text = (ROOT / "docs" / "guarantees.md").read_text()
    items = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(items) >= 22
    for item in items:
        (path,), names = (
            re.findall(r"\]\(\.\./(tests/[^)]+)\)", item),
            re.findall(r"`(test_\w+)`", item),
        )
        assert names
        for name in names:
            assert f"def {name}(" in (ROOT / path).read_text(), item


def test_the_table_in_the_readme_is_the_one_on_record():
    results = load_results(load_grid("small-steps"))
    text = (ROOT / "README.md").read_text()
    steps, found = set(), []
    for label, arm in (
        ("nothing", "none"),
        ("a random 30%, extra copies", "random 30%"),
        ("a coreset of 30%, extra copies", "coreset, uniform weights 30%"),
        ("everything, extra copies", "full, appended"),
        ("everything, replacing the originals", "full, in place"),
    ):
        runs = [run["result"] for run in results[arm].values()]
        last = [100 * run["accuracies"][-1] for run in runs]
        (augmented,) = {run["augmented"] for run in runs}
        steps |= {run["steps"] for run in runs}
        found.append((mean(last), augmented))
        seconds = median(run["seconds"]["total"] for run in runs)
        augmenting = median(
            run["seconds"]["augmentation"] / run["seconds"]["total"] for run in runs
        )
        assert augmenting < 0.06  # "about a twentieth"
        figures = (
            f"{mean(last):.1f} ± {stdev(last):.1f} | {len(runs)} | {augmented:,} | {seconds:.0f}"
        )
        assert f"| {label} | {figures} |" in text
    assert len(steps) == 1  # "every row takes as many training steps"
    (nothing, _), (subset, some), _, (everything, all_of_them), (in_place, _) = found
    assert subset - nothing > (everything - nothing) / 2  # "more than half"
    assert some < all_of_them / 2  # "less than half"
    assert in_place == max(accuracy for accuracy, _ in found)


TABLES = ["performance", "augmentation", "loader", "adopt"]


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_figures_are_what_the_records_give(tmp_path, name):
    kept = (ROOT / "docs" / f"{name}.md").read_text()
    for page in TABLES:
        text = (ROOT / "docs" / f"{page}.md").read_text()
        text = text.replace("| met |", "| better than that |").replace(" → ", " to ")
        (tmp_path / f"{page}.md").write_text(text)
    assert (tmp_path / f"{name}.md").read_text() != kept
    write_tables(tmp_path, ROOT / "benchmarks" / "results")
    assert (tmp_path / f"{name}.md").read_text() == kept


def test_a_figure_is_shown_with_its_target_and_whether_it_was_met():
    figure = {"name": "cost", "value": 0.12345, "unit": "share", "better": "lower"}
    missed = figure_row({**figure, "target": 0.1, "met": False})
    assert missed == "| cost | 12.3% | ≤ 10.0% | **missed** |"
    assert figure_row({**figure, "target": None, "met": None}) == "| cost | 12.3% |  |  |"


def test_the_augmentation_figures_in_the_readme_are_those_on_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "augmentation.json").read_text())
    figures = record["augmentation"]["figures"]
    promised = "plan in one loop|than (albumentations|torchvision)|over a table|time of an image"
    held = [each for each in figures if re.search(promised, each["name"]) and each["target"]]
    assert len(held) == 14
    assert all(each["met"] for each in held)
    values = {each["name"]: each["value"] for each in figures}
    text = " ".join((ROOT / "README.md").read_text().split())
    grouped = values["512 rows, 32 px: faster than kornia grouped"]
    per_sample = values["512 rows, 32 px: faster than torchvision per sample"]
    assert f"are {grouped:.1f} times faster than Kornia's modules" in text
    assert f"and {per_sample:.1f} times faster than torchvision's RandAugment" in text
    page = " ".join((ROOT / "docs" / "augmentation.md").read_text().split())
    assert f"one core of an {record['environment']['device']}" in page
    tenth = values["512 rows, 32 px: 10% of the rows: cost over that of all"]
    assert f"a tenth of 512 rows costs {tenth:.2f} of all" in page


def test_what_an_epoch_took_on_a_gpu_before_is_what_is_on_record():
    # The first of each run selects and captures graphs.
    epochs = [
        each
        for record in read(ROOT / "benchmarks" / "results" / "times-gpu.jsonl")
        if record["cell"]["arm"] == "full"
        for each in record["result"]["epoch_seconds"][1:]
    ]
    total, share = re.findall(r"\d+\.\d+", pace([{}, *epochs]))
    page = " ".join((ROOT / "docs" / "augmentation.md").read_text().split())
    assert f"at most half the {float(total):.2f} s that it took on an H200" in page
    assert f"a share of at most 0.15 instead of {share};" in page


def test_the_loaders_overhead_is_half_of_what_it_was():
    results = ROOT / "benchmarks" / "results"
    before, now = (
        json.loads((results / f"{name}.json").read_text())["workloads"]["overhead"][0]["value"]
        for name in ("loader-before", "loader")
    )
    assert now <= before / 2
    assert f"{before:.0f} us before one loop" in (ROOT / "docs" / "loader.md").read_text()


def test_two_operations_at_224_pixels_take_the_share_of_before_that_was_asked():
    results = ROOT / "benchmarks" / "results"
    before, now = (
        json.loads((results / f"{name}.json").read_text())["augmentation"]["measured"]["64 at 224"]
        for name in ("augmentation-before", "augmentation")
    )
    before, now = before["microseconds_an_image"], now["microseconds_an_image"]
    assert now <= before * 90 / 161
    page = " ".join((ROOT / "docs" / "augmentation.md").read_text().split())
    assert f"It was {before:.0f} us on the same machine" in page


def test_the_selection_figures_in_the_readme_are_those_on_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "selection.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    figures = {figure["name"]: figure for figure in record["workloads"]["real"]["figures"]}
    for name, peer in (("submodlib", "submodlib"), ("apricot", "apricot")):
        value = figures[f"30%: faster than {name}"]["value"]
        assert f"{value:.0f} times faster than {peer}" in text


def test_the_gpus_seconds_stand_beside_the_processors():
    results = ROOT / "benchmarks" / "results"
    cpu, gpu = (
        json.loads((results / f"{name}.json").read_text())["workloads"]["real"]["measured"]
        for name in ("selection", "selection-gpu")
    )
    at_10, at_30 = (cpu[share]["ours"]["seconds"]["median"] for share in ("10%", "30%"))
    text = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert f"take {at_10:.2f} s and {at_30:.2f} s" in text
    on_10, on_30 = (gpu[share]["seconds"]["median"] for share in ("10%", "30%"))
    assert f"took {on_30 / on_10:.1f} times as long" in text
    assert on_10 < at_10
    assert on_30 > at_30


def test_what_recycling_costs_and_how_stale_it_is_is_on_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "recycled.json").read_text())["recycled"]
    page = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert f"takes {record['cost_of_recording'] - 1:.0%} of an epoch" in page
    assert f"a scan of {record['scan_seconds']:.1f} s" in page
    assert f"by {record['mean_residual_moved']:.2f} where their norm is" in page
    assert f"norm is {record['mean_residual_norm']:.2f}" in page
    assert f"(correlation {record['correlation']:.2f})" in page
    assert f"costs {record['recycled_over_scan']:.2f} times what one from the scan" in page
    assert f"costs {record['random_over_scan']:.2f} times as much" in page
    assert 0.45 < record["mean_age_in_epochs"] < 0.55
    kept = (record["random_over_scan"] - record["recycled_over_scan"]) / (
        record["random_over_scan"] - 1
    )
    assert 0.2 < kept < 0.3


def test_the_cost_model_in_the_docs_is_the_one_on_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    text = (ROOT / "docs" / "scale.md").read_text()
    for each in [*record["fitted"], *record["checked"]]:
        job, measured, model = each["job"], each["measured"], each["predicted"]
        cells = [f"{job['examples']:,}", f"{job['classes']:,}", str(job["ranks"])]
        cells += [f"{of['seconds']:.2f} s" for of in (measured, model)]
        cells += [f"{of['received_bytes'] / 2**20:.1f} MiB" for of in (measured, model)]
        cells += [f"{of['memory_bytes'] / 2**20:.0f} MiB" for of in (measured, model)]
        assert f"| {' | '.join(cells)} |" in text
    for each in record["asked"]:
        job, model = each["job"], each["predicted"]
        cells = [f"{job['examples']:,}", f"{job['classes']:,}", str(job["ranks"])]
        cells += [f"{model['seconds']:,.0f} s", f"{model['memory_bytes'] / 2**30:.1f} GiB"]
        cells += [f"{model['received_bytes'] / 2**30:.1f} GiB"]
        assert f"| {' | '.join(cells)} |" in text
