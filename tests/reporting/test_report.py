"""The report: figures checked by hand, complete files, a self-contained page."""

import copy
import csv
import json
import re

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from augsubset import (
    AugsubsetError,
    LoaderOptions,
    RandomOps,
    RandomSelector,
    Selection,
    SubsetAugmentLoader,
    report,
    save_checkpoint,
)
from augsubset.cli import main
from augsubset.history import SelectionCounts
from augsubset.integrations.tensorboard import TensorBoardEvents
from augsubset.reporting import summarize, write_report
from augsubset.reporting.charts import Axes, draw_bars, draw_lines
from augsubset.reporting.page import render

N = 60
X = torch.randint(
    0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
Y = torch.arange(N) % 3


def make(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    inner = DataLoader(TensorDataset(X, Y), 20, shuffle=True)
    return SubsetAugmentLoader(
        inner, model, RandomOps.paper(), fraction=0.1, copies=2, every=1, **options
    )


def run(epochs=4, **options):
    loader = make(**options)
    for _ in range(epochs):
        list(loader)
    return loader


def chosen(*indices):
    return Selection.equally_weighted(torch.tensor(indices), 6)


# Counts.


def test_counts_compare_a_selection_with_earlier_ones():
    counts = SelectionCounts(torch.tensor([0, 0, 1, 1, 1, 2]))
    first = counts.add(chosen(0, 2))
    assert first == {"overlap": None, "covered": 2 / 6, "class_counts": [1, 1, 0]}
    second = counts.add(chosen(2, 3, 5))
    assert second["overlap"] == pytest.approx(1 / 3)
    assert second["covered"] == pytest.approx(4 / 6)
    assert second["class_counts"] == [0, 2, 1]
    assert counts.times.tolist() == [1, 0, 2, 1, 0, 1]
    assert counts.mass.tolist() == [3, 0, 5, 2, 0, 2]


def test_counts_resume_from_a_saved_state():
    labels = torch.zeros(6, dtype=torch.int64)
    counts, again = SelectionCounts(labels), SelectionCounts(labels)
    counts.add(chosen(0, 2))
    again.restore(again.check_state(counts.state_dict()))
    assert again.add(chosen(2, 3)) == counts.add(chosen(2, 3))
    assert torch.equal(again.times, counts.times)
    with pytest.raises(ValueError, match=r"counts must hold times of shape \(6,\)"):
        again.check_state({**counts.state_dict(), "times": torch.zeros(5, dtype=torch.int32)})
    with pytest.raises(ValueError, match="mass"):
        again.check_state({"times": counts.times, "previous": counts.state_dict()["previous"]})


def test_the_history_has_the_comparison_and_a_resumed_run_continues_it():
    loader = run(4)
    entries = [entry for entry in loader.history if entry["event"] == "selection"]
    assert entries[0]["overlap"] is None
    assert all(0 <= entry["overlap"] <= 1 for entry in entries[1:])
    covered = [entry["covered"] for entry in entries]
    assert covered == sorted(covered)
    assert all(sum(entry["class_counts"]) == 6 for entry in entries)
    first, second = run(2), make()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        list(second)
    assert torch.equal(
        second.state_dict()["counts"]["times"], loader.state_dict()["counts"]["times"]
    )


# Figures.


def test_a_summary_agrees_with_the_history():
    loader = run(4, selector=RandomSelector())
    found = json.loads(json.dumps(summarize(loader.state_dict())))
    times = loader.state_dict()["counts"]["times"]
    assert found["num_examples"] == N
    assert found["class_sizes"] == [20, 20, 20]
    assert len(found["selections"]) == len(found["epochs"]) == 4
    assert sum(found["times_selected"]) == N
    assert sum(count * number for count, number in enumerate(found["times_selected"])) == 24
    assert found["num_never"] == int((times == 0).sum()) == found["times_selected"][0]
    most = [entry["times"] for entry in found["most"]]
    assert most == sorted(times.tolist(), reverse=True)[: len(most)]
    assert all(times[entry["index"]] == 0 for entry in found["never"])
    assert min(entry["times"] for entry in found["least"]) >= 1


@pytest.mark.parametrize(
    ("originals", "rows", "full_rows"),
    [("all", 72, 180), ("unselected", 66, 120), ("selected", 18, 180), ("none", 12, 120)],
)
def test_savings_are_computed_from_unit_costs(originals, rows, full_rows):
    state = run(3, originals=originals).state_dict()
    for entry in state["history"]:
        if entry["event"] == "epoch":
            seconds = {"selection": 1.0, "loading": 1.0, "augmentation": 3.0, "step": 4.0}
            entry.update({f"{name}_seconds": value for name, value in seconds.items()})
            entry.update({"total_seconds": 9.0, "strong_seconds": 2.0})
    savings = summarize(state)["savings"]
    assert (savings["num_rows"], savings["num_rows_full"]) == (3 * rows, 3 * full_rows)
    assert (savings["num_copies"], savings["num_copies_full"]) == (3 * 12, 3 * 120)
    expected = 3 * (6.0 / rows * full_rows + 2.0 * 10)
    assert savings["full_seconds"] == pytest.approx(expected)
    assert savings["speed_up"] == pytest.approx(expected / 27)
    # A row costs 6 / rows and a copy 2 / 12: in place, each example costs one of each.
    assert savings["in_place_overhead"] == pytest.approx((2 / 12) / (6 / rows))
    assert savings["pays"] is True
    assert f"({expected / 27:.1f}x)" in savings["verdict"]


def test_the_page_states_the_savings_and_their_definition(tmp_path):
    loader = run(2)
    page = report(loader, tmp_path, images=0).read_text()
    assert f"<b>{summarize(loader.state_dict())['savings']['verdict']}</b>" in page
    assert "the report knows nothing about accuracy" in page
    assert "The doctor uses the same definition of savings for a forecast" in page


@pytest.mark.parametrize(
    ("pays", "headline"),
    [
        (True, "Augmenting a subset saved about 60% of the time of augmenting everything"),
        (False, "Augmenting a subset did not pay off in time here"),
    ],
)
def test_the_verdict_is_the_headline(pays, headline):
    figures = summarize(run(1).state_dict())
    figures["savings"] |= {"pays": pays, "speed_up": 2.5}
    assert re.search(r"<body>\s*<h1>(.*?)</h1>", render(figures, {}))[1] == headline


def test_classes_are_compared_only_where_the_selection_is_unbalanced():
    figures = summarize(run(1).state_dict())
    same = render(figures, {})
    assert "has the class balance of the data" in same
    assert "share of the latest selection" not in same
    figures["selections"][-1]["class_counts"] = [0, 2, 4]
    other = render({**figures, "class_names": {"2": "a <frog>"}}, {})
    assert "has the class balance of the data" not in other
    assert "a &lt;frog&gt;, share of the latest selection: 66.7%" in other
    assert "1, share of the latest selection: 33.3%" in other


def test_classes_have_the_datasets_names(tmp_path):
    class Named(TensorDataset):
        classes = ("cat", "dog", "a<b")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    data = Subset(Named(X, Y), range(N))
    loader = SubsetAugmentLoader(DataLoader(data, 20), model, RandomOps.paper(), every=1)
    list(loader)
    page = report(loader, tmp_path).read_text()
    assert re.search(r'alt="example \d+, dog, augmented copy 2"', page)
    assert ">a&lt;b</option>" in page
    assert "a<b" not in page
    names = json.loads((tmp_path / "report.json").read_text())["class_names"]
    assert names == {"0": "cat", "1": "dog", "2": "a<b"}


def test_settings_that_do_not_apply_are_left_out(tmp_path):
    page = report(run(1), tmp_path, images=0).read_text()
    assert "layout mixed, seed 0." in page
    assert "batch_size" not in page
    assert "None" not in page
    grouped = report(
        run(1, options=LoaderOptions(layout="grouped")), tmp_path, images=0
    ).read_text()
    assert "layout grouped, batch_size 20, seed 0." in grouped


def test_a_run_without_epochs_has_no_savings(tmp_path):
    loader = make()
    found = summarize(loader.state_dict())
    assert found["savings"] is None
    page = report(loader, tmp_path).read_text()
    assert "<h1>Nothing has been augmented yet</h1>" in page
    assert "No selection has been made yet" in page


# Files.


def test_a_report_is_a_page_json_and_csv(tmp_path):
    loader = run()
    page = report(loader, tmp_path / "there", images=5)
    assert {path.name for path in page.parent.iterdir()} == {
        *("index.html", "report.json", "selections.csv", "examples.csv")
    }
    figures = json.loads((page.parent / "report.json").read_text())
    assert figures == json.loads(json.dumps(summarize(loader.state_dict(), num_listed=5)))
    with (page.parent / "selections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["num_selected"]) for row in rows] == [6] * 4
    with (page.parent / "examples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == Y.tolist()
    times = loader.state_dict()["counts"]["times"].tolist()
    assert [int(row["times_selected"]) for row in rows] == times
    text = page.read_text()
    # Most, least and never selected, an original and two copies each.
    assert text.count("data:image/webp;base64,") == 3 * 5 * 3
    assert len(re.findall(r'alt="example \d+, class \d, original"', text)) == 15


def test_the_page_is_readable_without_scripts_and_fetches_nothing(tmp_path):
    text = report(run(), tmp_path).read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    without = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    for heading in (
        "What was selected, and when",
        "Class balance",
        "How well the subset represents the data",
        "Selected most often",
    ):
        assert f"<h2>{heading}</h2>" in without
    assert without.count("<svg") == 4
    assert "aria-label=" in without
    assert "Certificate" not in without
    assert text.count("<script>") == 1
    # The selection of a class is hidden until the script runs.
    assert without.count("<p hidden>Class: <select") == 3


def test_a_report_does_not_change_the_run(tmp_path):
    quiet, reported = make(), make()
    for loader in (quiet, reported):
        list(loader)
    state = torch.get_rng_state()
    report(reported, tmp_path, spectrum=2)
    assert torch.equal(torch.get_rng_state(), state)
    for mine, other in zip(quiet, reported, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_a_spectrum_is_shown_on_request(tmp_path):
    loader = run()
    page = report(loader, tmp_path, images=0, spectrum=4)
    assert "Singular values of the Jacobian" in page.read_text()
    spectrum = json.loads((tmp_path / "report.json").read_text())["spectrum"]
    assert len(spectrum["original"]) == len(spectrum["augmented"]) == 12
    assert "Singular values" not in report(loader, tmp_path, images=0).read_text()


def test_a_report_in_the_middle_of_an_epoch_is_refused(tmp_path):
    loader = make()
    batches = iter(loader)
    next(batches)
    with pytest.raises(AugsubsetError, match=r"while an epoch runs\. Call loader\.close"):
        report(loader, tmp_path)
    with pytest.raises(ValueError, match="images must be at least 0"):
        report(loader, tmp_path, images=-1)


class Words(Dataset):
    """Token ids and a label."""

    targets = Y.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        return torch.arange(8) + index, self.targets[index]


def test_examples_that_are_not_images_are_listed_by_index(tmp_path):
    model = nn.Sequential(nn.EmbeddingBag(100, 4), nn.Linear(4, 3))
    loader = SubsetAugmentLoader(
        DataLoader(Words(), 20), model, lambda x, rows: x.flip(1), fraction=0.1, copies=1
    )
    list(loader)
    text = report(loader, tmp_path).read_text()
    assert "Indices: " in text
    assert "data:image/" not in text


def test_gray_and_large_images_are_shown(tmp_path):
    x = torch.rand(N, 1, 100, 80)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8000, 3))
    loader = SubsetAugmentLoader(
        DataLoader(TensorDataset(x, Y), 20), model, RandomOps.cutout(), fraction=0.1, copies=1
    )
    list(loader)
    assert report(loader, tmp_path, images=2).read_text().count("data:image/webp") == 18
    assert report(loader, tmp_path, images=2).stat().st_size < 300_000


def test_a_run_of_200_epochs_on_50_000_examples_fits_a_page(tmp_path):
    counts = SelectionCounts(torch.arange(50_000) % 10)
    generator = torch.Generator().manual_seed(0)
    history = []
    for epoch in range(200):
        rows = torch.randperm(50_000, generator=generator)[:5000]
        entry = {"event": "selection", "epoch": epoch, "active_from": epoch, "selector": "Other"}
        entry |= {"num_selected": 5000, "effective_sample_size": 4000.0, "error": 2.0}
        entry |= {"gradient_error": 0.1, "gradient_norm": 3.0, "error_lower_bound": 1.0}
        history.append({**entry, **counts.add(Selection.equally_weighted(rows, 50_000))})
        entry = {"event": "epoch", "epoch": epoch, "num_rows": 70_000, "num_copies": 20_000}
        for bucket in ("selection", "loading", "augmentation", "strong", "step", "total"):
            entry[f"{bucket}_seconds"] = 1.0
        history.append(entry)
    state = {**make().state_dict(), "history": history, "counts": counts.state_dict()}
    state |= {"num_examples": 50_000, "budget": 5000, "copies": 4}
    page = write_report(tmp_path, summarize(state), state["counts"])
    assert page.stat().st_size < 1_000_000
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5_000_000
    assert summarize(state)["num_never"] == 0


def test_tensorboard_gets_the_same_numbers_and_pictures():
    written = {}

    class Writer:
        def add_scalar(self, tag, value, step):
            written[tag, step] = value

        def add_images(self, tag, images, step):
            written[tag, step] = images

    events = TensorBoardEvents(Writer())
    loader = run(3, on_event=events)
    selections = [entry for entry in loader.history if entry["event"] == "selection"]
    for entry in selections[1:]:
        assert written["augsubset/selection/overlap", entry["epoch"]] == entry["overlap"]
        assert written["augsubset/selection/covered", entry["epoch"]] == entry["covered"]
    events.add_pictures(loader, images=4)
    most = written["augsubset/most", 3]
    assert most.shape == (12, 3, 8, 8)
    assert most.dtype == torch.uint8
    index = summarize(loader.state_dict())["most"][0]["index"]
    assert torch.equal(most[0], X[index])
    assert not torch.equal(most[1], X[index])


def test_300_images_of_64_pixels_fit_a_page(tmp_path):
    """Photographs: parts of scikit-learn's two, which take more bytes than any drawing."""
    photos = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(100):
        side, photo = int(torch.randint(64, 400, (), generator=generator)), photos[len(parts) % 2]
        top, left = (
            int(torch.randint(0, most - side, (), generator=generator)) for most in (427, 640)
        )
        part = photo[None, :, top : top + side, left : left + side].float()
        parts.append(interpolate(part, 64, mode="area").round().to(torch.uint8)[0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))
    data = TensorDataset(torch.stack(parts), torch.arange(100) % 4)
    loader = SubsetAugmentLoader(DataLoader(data, 50), model, RandomOps.paper(), fraction=0.5)
    list(loader)
    page = report(loader, tmp_path, images=34)
    assert page.read_text().count("data:image/webp") == 3 * 34 * 3
    assert page.stat().st_size < 300_000


# Charts.


@pytest.mark.parametrize(
    ("top", "ticks"),
    [(97.0, "0 20 40 60 80 100"), (0.0731, "0 0.02 0.04 0.06 0.08"), (3.0, "0 1 2 3")],
)
def test_axes_have_round_ticks_and_titles(top, ticks):
    axes = Axes("across", "upwards", "what it shows")
    for chart in (
        draw_lines({"a": [(0, top / 2), (7, top)]}, axes),
        draw_bars({"a": [top]}, ["b"], axes),
    ):
        found = re.findall(r'text-anchor="end">([^<]*)</text>', chart)
        assert " ".join(found) == ticks
        assert ">across</text>" in chart
        assert ">upwards</text>" in chart
        assert 'role="img" aria-label="what it shows"' in chart


def test_epochs_are_whole_numbers():
    chart = draw_lines({"a": [(1, 0.5), (3, 1)]}, Axes("", "", ""))
    assert re.findall(r'text-anchor="middle">([^<]+)</text>', chart) == ["1", "2", "3"]


def test_a_logarithmic_axis_has_round_ticks_that_enclose_the_values():
    chart = draw_lines({"a": [(0, 0.9), (5, 0.03)]}, Axes("", "", "", logarithmic=True))
    found = re.findall(r'text-anchor="end">([^<]*)</text>', chart)
    assert found == ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]


# The command.


def test_the_command_reads_a_checkpoint(tmp_path, capsys):
    loader = run()
    for number, saved in enumerate(
        (loader.state_dict(), {"epoch": 3, "loader": loader.state_dict()})
    ):
        file, out = tmp_path / f"{number}.pt", tmp_path / str(number)
        torch.save(saved, file)
        assert main(["report", str(file), "--out", str(out)]) == 0
        assert f"wrote {out / 'index.html'}" in capsys.readouterr().out
        assert json.loads((out / "report.json").read_text())["num_examples"] == N
        assert "Indices: " in (out / "index.html").read_text()


def test_the_command_reads_what_save_checkpoint_wrote(tmp_path):
    save_checkpoint(tmp_path / "run.ckpt", loader=run().state_dict())
    assert main(["report", str(tmp_path / "run.ckpt"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"augsubset checkpoint 1\nhalf"])
def test_the_command_refuses_other_files(tmp_path, capsys, content):
    (tmp_path / "run.ckpt").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run.ckpt")])
    assert "run.ckpt must be" in capsys.readouterr().err


def test_the_command_shows_images_if_given_a_loader(tmp_path):
    torch.save(run().state_dict(), tmp_path / "run.pt")
    arguments = ["report", str(tmp_path / "run.pt"), "--loader", f"{__name__}:make"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--images", "2"]) == 0
    assert (tmp_path / "out" / "index.html").read_text().count("data:image/webp") == 18


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"model": {}}, "must hold the state of a SubsetAugmentLoader"), (None, "No such file")],
)
def test_the_command_refuses_a_checkpoint_without_a_loader(tmp_path, capsys, content, reason):
    if content is not None:
        torch.save(content, tmp_path / "run.pt")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run.pt")])
    assert reason in capsys.readouterr().err


def delete(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def put(value, *path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


MALFORMED = {  # of history 0 is a selection, 1 an epoch
    "no budget": delete("budget"),
    "no times": delete("counts", "times"),
    "no sizes": delete("counts", "class_sizes"),
    "too few sizes": delete("counts", "class_sizes", 0),
    "no event": delete("history", 0, "event"),
    "no share": delete("history", 0, "covered"),
    "no seconds": delete("history", 1, "loading_seconds"),
    "no rows": delete("history", 1, "num_rows"),
    "another layout": put("spiral", "layout"),
    "other originals": put("some", "originals"),
    "no examples": put(0, "num_examples"),
    "an infinite time": put(float("inf"), "history", 1, "total_seconds"),
    "an infinite error": put(float("inf"), "history", 0, "error"),
    "an error that is none": put(float("nan"), "history", 0, "error"),
    "an error of text": put("small", "history", 0, "error"),
    "a history of text": put("long ago", "history"),
    "an entry of text": put("long ago", "history", 0),
    "counts of text": put("many", "counts"),
    "too few counts": put(torch.zeros(3), "counts", "mass"),
    "a tensor for a number": put(torch.zeros(3), "history", 0, "overlap"),
}


@pytest.fixture(scope="module")
def saved():
    return run(2).state_dict()


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_state_is_refused_with_one_kind_of_error(tmp_path, capsys, saved, change):
    state = copy.deepcopy(saved)
    change(state)
    save_checkpoint(tmp_path / "run.ckpt", loader=state)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run.ckpt"), "--out", str(tmp_path / "out")])
    assert "state must be as a loader's state_dict() returned it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
