"""The augmentation benchmark's peers, its meter, and the gallery."""

import inspect
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from augsubset import RandomOps, RowKeys
from augsubset.augment import OPS
from benchmarks import augmentation, gallery
from benchmarks.datasets import load_digits_images
from benchmarks.measuring import Figure


def test_calls_are_counted_without_views():
    x = torch.ones(4, 4)
    assert augmentation.calls_of(lambda: x[1:].view(-1).expand(2, -1)) == 0
    assert augmentation.calls_of(lambda: (x + 1).mul_(2)) == 2


def test_the_peers_apply_every_operation_to_its_own_rows(monkeypatch):
    ran = []

    class Adding(torch.nn.Module):
        def __init__(self, amount):
            super().__init__()
            self.amount = amount

        def forward(self, x):
            ran.append(len(x))
            return x + self.amount / 255

    monkeypatch.setattr(augmentation, "KORNIA_OPS", tuple(Adding(2**bit) for bit in range(4)))
    x = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    chosen = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [0, 2], [1, 3]])
    expected = [2**a + 2**b for a, b in chosen.tolist()]
    assert augmentation.kornia_grouped(x, chosen)[:, 0, 0, 0].tolist() == expected
    assert sum(ran) == 12
    ran.clear()
    assert augmentation.kornia_gated(x, chosen)[:, 0, 0, 0].tolist() == expected
    assert ran == [6] * 8


def test_albumentations_gives_each_image_two_operations_of_fourteen():
    some_of, ran = augmentation.make_albumentations(), []
    some_of.set_random_seed(0)
    images = augmentation.stand_in(60).permute(0, 2, 3, 1).contiguous().numpy()
    assert len(some_of.transforms) == len(augmentation.KORNIA_OPS)
    for op in some_of.transforms:
        changed = op(image=images[0])["image"]
        assert changed.shape == images[0].shape
        assert changed.dtype == np.uint8
        assert (changed != images[0]).any()
        call = op.apply_with_params
        op.apply_with_params = lambda *args, op=op, call=call, **named: (
            ran.append(id(op)) or call(*args, **named)
        )
    for number, image in enumerate(images, 1):
        some_of(image=image)
        assert len(ran) == 2 * number
        assert len(set(ran[-2:])) == 2
    assert len(set(ran)) == 14


@pytest.mark.parametrize(("unit", "fails"), [("calls", True), ("runs", True), ("x", False)])
def test_a_miscounted_figure_fails_the_run_and_a_slow_one_does_not(
    unit, fails, tmp_path, monkeypatch
):
    def measured(images, repeats, quick):
        torch.set_num_threads(1)
        return {"figures": [Figure("a figure", 3.0, unit, "lower", 2.0).as_record()]}

    monkeypatch.setattr(augmentation, "on_one_core", measured)
    threads, out = torch.get_num_threads(), tmp_path / "out.json"
    with pytest.raises(SystemExit, match="a figure") if fails else nullcontext():
        augmentation.main(["--quick", "--out", str(out)])
    assert torch.get_num_threads() == threads
    assert json.loads(out.read_text())["augmentation"]["figures"][0]["value"] == 3.0


@pytest.mark.parametrize("name", OPS)
def test_every_operation_is_shown_from_weak_to_strong(name):
    op = OPS[name]
    shown = gallery.at_levels(op, load_digits_images(4).x_train[0])
    assert len(shown) == (6 if op.signed else 3)


def test_the_gallery_shows_every_published_policy():
    """A preset is a method of RandomOps that returns a policy."""
    presets = {
        name
        for name, made in inspect.getmembers(RandomOps, inspect.isroutine)
        if not name.startswith("_") and "options" in inspect.signature(made).parameters
    }
    assert {"paper", "wu2020", "noise"} <= presets
    shown = {label.removeprefix("RandomOps.").split("(")[0] for label in gallery.POLICIES}
    assert shown == {*presets, "CropFlip", "K.RandomAffine, K.ColorJiggle"}
    for dataset in ("cifar10", "imagenet", "svhn"):
        assert f'RandomOps.autoaugment("{dataset}")' in gallery.POLICIES


def test_the_picture_of_the_docs_is_of_real_images(capsys, monkeypatch):
    monkeypatch.delenv("AUGSUBSET_CIFAR10", raising=False)
    before = (gallery.DOCS / "policies.png").read_bytes()
    gallery.main([])
    assert "are left as they are" in capsys.readouterr().out
    assert (gallery.DOCS / "policies.png").read_bytes() == before


def test_the_pictures_are_drawn(tmp_path):
    gallery.main(["--out", str(tmp_path)])
    heights = {}
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        heights[path.stem] = pixels.shape[0]
        assert 0.02 < (pixels < 128).mean() < 0.9
    assert 300 < heights["augmentations"] < heights["policies"] < heights["operations"]


@pytest.mark.parametrize("quick", [True, False])
def test_on_a_device_peers_are_left_out_where_it_is_quick(monkeypatch, quick):
    monkeypatch.setattr(augmentation, "LARGE", 40)
    large = [(rows, 40 if size == 224 else size) for rows, size in augmentation.ON_DEVICE]
    targets = dict(zip(large, augmentation.ON_DEVICE.values(), strict=True))
    monkeypatch.setattr(augmentation, "ON_DEVICE", targets)
    monkeypatch.setattr(augmentation, "_timed_on", _time_by_way)
    found, figures = augmentation.on_device(
        augmentation.stand_in(64), torch.device("cpu"), 1, quick
    )
    assert list(found) == [f"{rows} at {size}" for rows, size in targets]
    peers = ["compiled", "kornia grouped", "torchvision per batch"]
    assert list(found["64 at 32"]) == ["one launch", "eager", *([] if quick else peers)]
    assert list(found["64 at 40"]) == ["one launch", "eager"]
    by_name = {figure.name: figure for figure in figures}
    assert len(by_name) == 2 * len(targets)
    faster = by_name["64 rows, 32 px: faster than eager"]
    assert (faster.value, faster.target) == (8.0, 30.0)
    # Two operations read and write 64 x 3 x 1,024 bytes; a copy takes 1 ms for 2 x 2**20 of them.
    over = by_name["64 rows, 32 px: the launch over the bandwidth limit"]
    assert over.value == pytest.approx(0.25 / (4 * 64 * 3072 / 2**21))


def _time_by_way(device, call, repeats):
    """Stand in for times on a device: 8 ms by torch kernels, 1 ms for all else."""
    is_eager = isinstance(call.func, RandomOps) and call.func.engine.codes is None
    times = {"milliseconds": 8.0 if is_eager else 1.0, "kernel_milliseconds": 0.25}
    return {**times, "raw": [1.0], "launches": 1}


def test_a_policy_by_kernels_takes_no_other_way():
    policy, rows = augmentation.by_kernels(), RowKeys(0, 0, torch.arange(4), 1)
    policy(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), rows)
    assert policy.engine_name == "torch kernels"


def test_a_table_is_timed_if_it_gives_the_same_bytes(monkeypatch):
    x = augmentation.stand_in(4)
    figures, _ = augmentation.beside_a_table(x, 1)
    assert [figure.name.split(",")[0] for figure in figures] == ["brightness", "solarize"]
    monkeypatch.setattr(augmentation, "_look_up", lambda x, table, out: out.fill(7))
    with pytest.raises(RuntimeError, match="other bytes for brightness"):
        augmentation.beside_a_table(x, 1)


def test_a_plan_is_timed_at_three_sizes(monkeypatch):
    monkeypatch.setattr(augmentation, "CALLS", 1)
    figures, measured = augmentation.planning(1)
    sizes = [
        f"{rows} rows, {kind} copies"
        for rows in (64, 512, 4096)
        for kind in ("half of them", "all")
    ]
    assert list(measured) == sizes
    assert [figure.target for figure in figures[::2]] == [10, 10, 40, 40, 320, 320]
