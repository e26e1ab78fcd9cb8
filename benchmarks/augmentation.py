"""Time of augmenting some rows of a batch, beside Kornia, torchvision and albumentations.

``python -m benchmarks.augmentation --data CIFAR10 --out FILE`` takes each row two operations of
fourteen on one core, in turn with the peers on the same images, and prints a line a figure: the
value, its target, met or MISSED. ``--quick`` leaves the large images out, and times Kornia's own
modules less often. With ``--device cuda`` it compares one launch with eager kernels and with the
time that memory takes, at five sizes of a batch; without ``--quick`` with the peers as well, at 32
pixels.

Kornia's modules draw per row, but a batch gets one list of them; here they get the rows of each
operation, as a user would group them, or all rows behind a gate. torchvision's RandAugment runs
image by image on PIL, conversions left out, as in a dataset's transform; so does albumentations, on
arrays ``(H, W, C)``, two of the same fourteen, with OpenCV on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import kornia
import kornia.augmentation as K
import numba
import numpy as np
import torch
import torch.nn.functional as F
from kornia.augmentation.auto import RandAugment
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from augsubset import (
    CropFlip,
    KorniaModule,
    RandomOps,
    RandomSelector,
    RowKeys,
    SubsetAugmentLoader,
)
from augsubset.augment import OPS, kernels_cpu
from augsubset.augment.engine import Engine
from augsubset.augment.params import PrepareContext
from augsubset.augment.plan import count_columns
from augsubset.delivery import list_tables, plan_batch
from augsubset.sampling import pack
from benchmarks.datasets import ImageData, load_cifar10
from benchmarks.harness import environment
from benchmarks.measuring import Figure, in_turn, summary, times

NUM_OPS = 2
LARGE = 224
# The peers' nearest to the fourteen, at the strongest of the same ranges where they are the same.
KORNIA_OPS: tuple[nn.Module, ...] = (
    K.RandomRotation(30.0, resample="nearest", p=1.0),
    K.RandomShear((-17.0, 17.0), resample="nearest", p=1.0),
    K.RandomShear((0.0, 0.0, -17.0, 17.0), resample="nearest", p=1.0),
    K.RandomTranslate((-0.45, 0.45), None, resample="nearest", p=1.0),
    K.RandomTranslate(None, (-0.45, 0.45), resample="nearest", p=1.0),
    K.RandomBrightness((0.1, 1.9), p=1.0),
    K.RandomContrast((0.1, 1.9), p=1.0),
    K.RandomSaturation((0.1, 1.9), p=1.0),
    K.RandomSharpness(0.9, p=1.0),
    K.RandomPosterize((4, 8), p=1.0),
    K.RandomSolarize(0.5, 0.0, p=1.0),
    K.RandomAutoContrast(p=1.0),
    K.RandomEqualize(p=1.0),
    K.RandomInvert(p=1.0),
)


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp_(0, 1) * 255).round_().to(torch.uint8)


def _on_bytes(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return _to_bytes(call(x.float() / 255))


def kornia_grouped(x: Tensor, chosen: Tensor) -> Tensor:
    """Give Kornia's modules the rows of each operation, one group after the other."""
    out = x.float() / 255
    for slot in range(NUM_OPS):
        for number, module in enumerate(KORNIA_OPS):
            rows = (chosen[:, slot] == number).nonzero().squeeze(1)
            if len(rows):
                rows = rows.to(x.device)
                out[rows] = module(out[rows])
    return _to_bytes(out)


def kornia_gated(x: Tensor, chosen: Tensor) -> Tensor:
    """Give each of Kornia's modules all rows, and keep the result of some: what ``p=`` does."""
    out = x.float() / 255
    chosen = chosen.to(x.device)
    for slot in range(NUM_OPS):
        for number, module in enumerate(KORNIA_OPS):
            out = torch.where((chosen[:, slot] == number)[:, None, None, None], module(out), out)
    return _to_bytes(out)


def make_albumentations() -> Any:
    """Return albumentations' nearest to two of the fourteen, drawn anew for each image."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network when imported
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    # Affine maps take the nearest pixel, black outside.
    affine = partial(A.Affine, interpolation=cv2.INTER_NEAREST, p=1)
    same = (1.0, 1.0)
    ops = [
        A.Rotate((-30, 30), interpolation=cv2.INTER_NEAREST, p=1),
        affine(shear={"x": (-17, 17), "y": 0}),
        affine(shear={"x": 0, "y": (-17, 17)}),
        affine(translate_percent={"x": (-0.45, 0.45), "y": 0}),
        affine(translate_percent={"x": 0, "y": (-0.45, 0.45)}),
        A.ColorJitter((0.1, 1.9), same, same, (0, 0), p=1),
        A.ColorJitter(same, (0.1, 1.9), same, (0, 0), p=1),
        A.ColorJitter(same, same, (0.1, 1.9), (0, 0), p=1),
        A.Sharpen(p=1),
        A.Posterize((4, 7), p=1),
        A.Solarize((0, 1), p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
        A.InvertImg(p=1),
    ]
    return A.SomeOf(ops, n=NUM_OPS, replace=False, p=1)


class CountCalls(TorchDispatchMode):
    """Count ATen calls that are no views: what a device would launch a kernel for, or copy."""

    VIEWS = frozenset(
        "aten." + name
        for name in (
            *("alias", "as_strided", "detach", "diagonal", "expand", "permute", "select", "slice"),
            *("split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"),
            *("_unsafe_view", "_reshape_alias", "split_with_sizes", "narrow"),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, and count it."""
        self.count += str(func.overloadpacket) not in self.VIEWS
        return func(*args, **(kwargs or {}))


def calls_of(call: Callable[[], Any]) -> int:
    """Return how many ATen calls something makes."""
    with CountCalls() as counter:
        call()
    return counter.count


def drawing_of(policy: RandomOps, x: Tensor, rows: RowKeys) -> Callable[[], Any]:
    """Return the part of a policy's call that decides what each row gets."""
    return lambda: policy._plan(rows, *x.shape[-2:])


def by_kernels(**options: Any) -> RandomOps:
    """Return the paper's policy by torch kernels, on any device."""
    policy = RandomOps.paper(**options)
    policy.engine._loop_of = policy.engine.codes = None
    return policy


def median(raw: list[float]) -> float:
    """Return the median."""
    return statistics.median(raw)


def against_peers(
    x: Tensor,
    repeats: int,
    targets: dict[str, float],
    name: str,
    gated: bool = False,
    compiled: bool = False,
) -> tuple[list[Figure], dict[str, Any]]:
    """Time a policy on all rows of ``x`` beside the peers, in turn."""
    num_rows = len(x)
    rows = RowKeys(0, 0, torch.arange(num_rows), 1)
    chosen = torch.argsort(
        torch.rand(num_rows, len(KORNIA_OPS), generator=torch.Generator().manual_seed(0)), 1
    )[:, :NUM_OPS]
    policy = RandomOps.paper()
    keys = iter([RowKeys(0, epoch, rows.index, 1) for epoch in range(repeats + 1)])
    pil = v2.RandAugment(NUM_OPS, 9)
    images = [to_pil_image(image) for image in x]
    some_of, arrays = make_albumentations(), list(x.permute(0, 2, 3, 1).contiguous().numpy())
    calls: dict[str, Callable[[], Any]] = {
        # Other operations each time, as the peers draw them.
        "augsubset": lambda: policy(x, next(keys)),
        "drawing": drawing_of(policy, x, rows),
        "copying": x.clone,
        "its own kernels": partial(by_kernels(), x, rows),
        "kornia grouped": partial(kornia_grouped, x, chosen),
        "torchvision per sample": lambda: [pil(image) for image in images],
        "albumentations per sample": lambda: [some_of(image=image) for image in arrays],
    }
    if gated:
        calls["kornia gated"] = partial(kornia_gated, x, chosen)
    if compiled:
        calls["its own kernels, compiled"] = partial(RandomOps.paper(compiled=True), x, rows)
    for call in calls.values():
        call()
    raw = in_turn(calls, repeats)
    mine = median(raw["augsubset"])
    figures = [
        Figure(
            f"{name}faster than {peer}",
            median(raw[peer]) / mine,
            "x",
            "higher",
            targets.get(peer),
        )
        for peer in calls
        if peer not in ("augsubset", "drawing", "copying")
    ]
    each = mine / num_rows * 1e6
    figures.append(Figure(f"{name}time of an image", each, "us", "lower", targets.get("time")))
    ratio, most = mine / median(raw["copying"]), targets.get("copying")
    figures.append(Figure(f"{name}time of an image over that of a copy", ratio, "x", "lower", most))
    drawing = median(raw["drawing"]) / mine
    figures.append(
        Figure(f"{name}drawing's share", drawing, "share", "lower", targets.get("drawing"))
    )
    measured = {peer: summary(seconds) for peer, seconds in raw.items()}
    return figures, {
        "rows": num_rows,
        "microseconds_an_image": each,
        "seconds": measured,
        "calls": {peer: calls_of(calls[peer]) for peer in ("its own kernels", "kornia grouped")},
    }


def op_by_op(x: Tensor, repeats: int) -> dict[str, Any]:
    """Time each operation beside Kornia's function for it, where there is one of the same meaning.

    Ours are timed by the loops, where there are any, and by the kernels, on bytes and on floats.
    Kornia's take floats alone: as they are, and with bytes made floats and bytes again.
    """
    rows = len(x)
    factor = torch.full((rows,), 1.5)
    matrix = torch.tensor([[0.9, -0.4, 6.0], [0.4, 0.9, -5.0]]).expand(rows, -1, -1).contiguous()
    warp = partial(
        kornia.geometry.transform.warp_affine,
        M=matrix,
        dsize=tuple(x.shape[-2:]),
        mode="nearest",
        align_corners=False,
    )
    peers: dict[str, Callable[[Tensor], Tensor]] = {
        "rotate": warp,
        "brightness": lambda u: kornia.enhance.adjust_brightness_accumulative(u, factor),
        "contrast": lambda u: kornia.enhance.adjust_contrast_with_mean_subtraction(u, factor),
        "color": lambda u: kornia.enhance.adjust_saturation_with_gray_subtraction(u, factor),
        "sharpness": lambda u: kornia.enhance.sharpness(u, factor),
        "posterize": lambda u: kornia.enhance.posterize(u, torch.full((rows,), 4)),
        "solarize": lambda u: kornia.enhance.solarize(u, torch.full((rows,), 0.5)),
        "autocontrast": lambda u: kornia.enhance.normalize_min_max(u),
        "equalize": kornia.enhance.equalize,
        "invert": kornia.enhance.invert,
        "horizontal_flip": kornia.geometry.transform.hflip,
        "gaussian_blur": lambda u: kornia.filters.gaussian_blur2d(u, (5, 5), torch.ones(rows, 2)),
    }
    floats = x.float() / 255
    found = {}
    for name, peer in peers.items():
        op = OPS[name]
        context = PrepareContext(np.zeros((rows, 2), np.float32), *x.shape[-2:])
        params = torch.from_numpy(op.compute_params(np.full(rows, op.high, np.float32), context))
        calls: dict[str, Callable[[], Any]] = {
            "bytes": partial(op.run, x, params),
            "floats": partial(op.run, floats, params),
            "kornia": partial(peer, floats),
            "kornia, bytes": partial(_on_bytes, peer, x),
        }
        if op.apply in kernels_cpu.KERNELS:
            loop, slot = np.full((rows, 1), kernels_cpu.KERNELS[op.apply]), params.numpy()[:, None]
            calls["loops, bytes"] = partial(kernels_cpu.run_rows, x, loop, slot)
            calls["loops, floats"] = partial(kernels_cpu.run_rows, floats, loop, slot)
        for call in calls.values():
            call()
        raw = in_turn(calls, repeats)
        found[name] = {key: median(seconds) / rows * 1e6 for key, seconds in raw.items()}
        shown = ", ".join(f"{key} {value:.2f}" for key, value in found[name].items())
        print(f"{name}, microseconds an image: {shown}", flush=True)
    return found


@numba.njit
def _look_up(x: Any, table: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        out[i] = table[x[i]]


def beside_a_table(x: Tensor, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Time operations on single bytes beside looking them up, the table itself left out."""
    figures, measured, rows = [], {}, len(x)
    every_byte = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    for name in ("brightness", "solarize"):
        op = OPS[name]
        context = PrepareContext(np.zeros((rows, 2), np.float32), *x.shape[-2:])
        params = op.compute_params(np.full(rows, op.high, np.float32), context)
        table = op.run(every_byte, torch.from_numpy(params[:1]))[0, 0, 0].numpy()
        loop = np.full((rows, 1), kernels_cpu.KERNELS[op.apply])
        arithmetic = partial(kernels_cpu.run_rows, x, loop, params[:, None])
        out = torch.empty_like(x)
        look_up = partial(_look_up, x.view(-1).numpy(), table, out.view(-1).numpy())
        look_up()
        if not torch.equal(arithmetic(), out):
            raise RuntimeError(f"a table gives other bytes for {name}.")
        raw = in_turn({"arithmetic": arithmetic, "table": look_up}, repeats)
        measured[name] = {
            way: summary([each / rows for each in seconds]) for way, seconds in raw.items()
        }
        ratio = median(raw["arithmetic"]) / median(raw["table"])
        figures.append(Figure(f"{name}, {LARGE} px: over a table", ratio, "x", "lower", 1.0))
    return figures, measured


def selected_rows(x: Tensor, repeats: int, name: str) -> tuple[list[Figure], dict[str, Any]]:
    """Time a loader's augmentation of a batch where all, a tenth or none of the rows are copies."""
    num_rows = len(x)
    dataset = TensorDataset(x, torch.arange(num_rows) % 10)
    loader = SubsetAugmentLoader(
        DataLoader(dataset, num_rows),
        nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)),
        RandomOps.paper(),
        selector=RandomSelector(),
    )
    loops = loader.pipeline.loops
    assert loops is not None
    deliver = partial(loops.augment, seeds=(0, 0), in_place=True)
    counts: dict[str, int] = {}
    copy_of_share = {}
    for share in (0.0, 0.1, 1.0):
        copy = (torch.arange(num_rows) < share * num_rows).long()[torch.randperm(num_rows)]
        copy_of_share[f"{share:.0%}"] = copy
        keys = pack(0, copy, torch.arange(num_rows)).numpy()
        with patch.object(Engine, "replace", side_effect=Engine.replace, autospec=True) as ran:
            deliver(x.clone(), keys)
        counts[f"{share:.0%}"] = ran.call_count
    raw: dict[str, list[float]] = {share: [] for share in copy_of_share}
    for epoch in range(repeats):
        for share, copy in copy_of_share.items():
            keys = pack(epoch, copy, torch.arange(num_rows)).numpy()
            batch = x.clone()  # as in the loader: just made, and nobody else's
            raw[share] += times(partial(deliver, batch, keys), 1, warm_up=False)
    if counts != {"0%": 0, "10%": 1, "100%": 1}:
        raise RuntimeError(f"rows must be written over once a batch that has any, got {counts}.")
    ratio = median(raw["10%"]) / median(raw["100%"])
    each = median(raw["100%"]) / num_rows * 1e6
    return [
        Figure(f"{name}time of a copy in a loader's batch", each, "us", "lower"),
        Figure(f"{name}10% of the rows: cost over that of all", ratio, "x", "lower", 0.2),
        Figure(f"{name}no rows: runs of the engine", counts["0%"], "runs", "lower", 0),
    ], {share: summary(seconds) for share, seconds in raw.items()}


def through_kornia(x: Tensor, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Time Kornia's own modules keyed by row, beside a plain call and one seeded for the batch."""
    figures: list[Figure] = []
    measured: dict[str, Any] = {}
    four = (K.RandomHorizontalFlip(), K.RandomAffine(15.0), K.RandomGrayscale(p=0.2))
    modules: dict[str, nn.Module] = {
        "RandomAffine": K.RandomAffine(20.0, (0.1, 0.1), (0.8, 1.2), 10.0),
        "RandomHorizontalFlip": K.RandomHorizontalFlip(),
        "four in a row": K.AugmentationSequential(*four, K.RandomGaussianBlur((3, 3), (0.1, 2.0))),
        "ColorJiggle": K.ColorJiggle(0.2, 0.2, 0.2, 0.2),
    }

    def measure(
        name: str, calls: dict[str, Callable[[], Any]], repeats: int = repeats
    ) -> Callable[[str, str], float]:
        for call in calls.values():
            call()
        raw = in_turn(calls, repeats)
        measured[name] = {each: summary(seconds) for each, seconds in raw.items()}
        return lambda one, other: median(raw[one]) / median(raw[other])

    # Ratios near 1 take many calls.
    for num_rows, most, often in ((64, 1.3, 15 * repeats), (512, 1.1, 4 * repeats)):
        floats = x[:num_rows].float() / 255
        rows = RowKeys(0, 0, torch.arange(num_rows), 1)

        # Other keys each time: at p=0.5 their draws decide how much is done.
        keys = [RowKeys(0, epoch, torch.arange(num_rows), 1) for epoch in range(often + 1)]

        def each_time(
            policy: KorniaModule, x: Tensor = floats, keys: Sequence[RowKeys] = keys
        ) -> Callable[[], Any]:
            left = iter(keys)
            return lambda: policy(x, next(left))

        for name, module in modules.items():
            where = f"Kornia's {name}, {num_rows} rows: keyed over"
            ratio = measure(
                f"{name}, {num_rows} rows",
                {
                    "keyed": each_time(KorniaModule(module)),
                    "batch": each_time(KorniaModule(module, per_row=False)),
                    "plain": partial(module, floats),
                },
                often,
            )
            is_held = name in ("RandomAffine", "four in a row")
            target = most if is_held else None
            figures.append(Figure(f"{where} plain", ratio("keyed", "plain"), "x", "lower", target))
            target = 1.0 if is_held and num_rows == 64 else None
            found = ratio("keyed", "batch")
            figures.append(Figure(f"{where} one seed a batch", found, "x", "lower", target))
    tenth = torch.arange(len(x) // 10)
    affine = KorniaModule(K.RandomAffine(20.0, p=1.0))
    auto, built_in = KorniaModule(RandAugment(2, 10)), RandomOps.randaugment()
    ratio = measure(
        "others",
        {
            "selected": partial(affine, floats[tenth], rows[tenth]),
            "p=0.1": partial(K.RandomAffine(20.0, p=0.1), floats),
            "auto": partial(auto, floats, rows),
            "built in": partial(built_in, floats, rows),
        },
    )
    name = "Kornia's RandomAffine, 10% of 512 rows: faster than its p=0.1"
    figures.append(Figure(name, ratio("p=0.1", "selected"), "x", "higher", 3.0))
    name = "Kornia's RandAugment, keyed, 512 rows: over RandomOps.randaugment"
    figures.append(Figure(name, ratio("auto", "built in"), "x", "lower"))
    return figures, measured


def on_one_core(images: Tensor, repeats: int, quick: bool) -> dict[str, Any]:
    """Measure everything that needs no device."""
    torch.set_num_threads(1)
    figures: list[Figure] = []
    measured: dict[str, Any] = {
        "versions": {name: version(name) for name in ("kornia", "pillow", "albumentations")}
    }

    def add(name: str, found: tuple[list[Figure], dict[str, Any]]) -> None:
        for figure in found[0]:
            print(figure, flush=True)
        figures.extend(found[0])
        measured[name] = found[1]

    few = {"kornia grouped": 3.0, "albumentations per sample": 15.0}
    add("plan", planning(repeats))
    add("64 at 32", against_peers(images[:64], repeats, few, "64 rows, 32 px: "))
    calls = measured["64 at 32"]["calls"]["its own kernels"]
    add("calls", ([Figure("64 rows: ATen calls by kernels", calls, "calls", "lower", 250)], {}))
    many = {
        "kornia grouped": 1.3,
        "kornia gated": 8.0,
        "torchvision per sample": 2.5,
        "drawing": 0.05,
    }
    name = "512 rows, 32 px: "
    all_peers = against_peers(images[:512], repeats, many, name, gated=True, compiled=not quick)
    add("512 at 32", all_peers)
    add("selected at 32", selected_rows(images[:512], repeats, name))
    add("kornia", through_kornia(images[:512], 2 if quick else repeats))
    measured["operations"] = op_by_op(images[:512], repeats)
    if not quick:
        large = F.interpolate(images[:512].float(), LARGE, mode="bilinear").round_().to(torch.uint8)
        fewer, name = max(3, repeats // 3), f"64 rows, {LARGE} px: "
        targets = {
            "time": 90.0,
            "copying": 8.0,
            "kornia grouped": 1.3,
            "torchvision per sample": 6.0,
            "albumentations per sample": 4.5,
        }
        add(f"64 at {LARGE}", against_peers(large[:64], fewer, targets, name))
        add("tables", beside_a_table(large[:64], repeats))
        add(f"64 selected at {LARGE}", selected_rows(large[:64], repeats, name))
        name = f"512 rows, {LARGE} px: "
        add(f"selected at {LARGE}", selected_rows(large, fewer, name))
    return {"figures": [figure.as_record() for figure in figures], "measured": measured}


# By rows and pixels: how much faster than eager kernels one launch should be, and how many times as
# long as its memory traffic it may take; so few small images take as long as any launch.
ON_DEVICE: dict[tuple[int, int], tuple[float, float | None]] = {
    (64, 32): (30.0, None),
    (512, 32): (25.0, 15.0),
    (4096, 32): (12.0, 5.0),
    (64, LARGE): (15.0, 20.0),
    (256, LARGE): (10.0, 8.0),
}


def on_device(
    images: Tensor, device: torch.device, repeats: int, quick: bool
) -> tuple[dict[str, Any], list[Figure]]:
    """Time batches on a GPU: one launch, eager kernels, and at 32 pixels the peers if not quick."""
    found: dict[str, Any] = {}
    figures: list[Figure] = []
    speed = _measure_bandwidth(device)
    for (num_rows, size), (faster, over) in ON_DEVICE.items():
        x = images[:num_rows].to(device)
        if size != x.shape[-1]:
            x = F.interpolate(x.float(), size, mode="bilinear").round_().to(torch.uint8)
        rows = RowKeys(0, 0, torch.arange(num_rows), 1)
        policy = RandomOps.paper()
        calls: dict[str, Callable[[], Any]] = {
            "one launch": partial(policy, x, rows),
            "eager": partial(by_kernels(), x, rows),
        }
        if not quick and size == 32:
            chosen = torch.argsort(torch.rand(num_rows, len(KORNIA_OPS)), 1)[:, :NUM_OPS]
            calls |= {
                "compiled": partial(RandomOps.paper(compiled=True), x, rows),
                "kornia grouped": partial(kornia_grouped, x, chosen),
                "torchvision per batch": partial(v2.RandAugment(NUM_OPS, 9), x),
            }
        entry = {name: _timed_on(device, call, repeats) for name, call in calls.items()}
        if device.type == "cuda" and policy.engine_name != "one launch":
            raise RuntimeError(f"one launch must be possible on {device}; the log says why not.")
        # Each of the two operations reads and writes all pixels.
        limit = 2 * NUM_OPS * x.numel() / speed
        name = f"{num_rows} rows, {size} px: "
        mine = entry["one launch"]
        ratio = entry["eager"]["milliseconds"] / mine["milliseconds"]
        figures += [
            Figure(f"{name}faster than eager", ratio, "x", "higher", faster),
            Figure(
                f"{name}the launch over the bandwidth limit",
                mine["kernel_milliseconds"] / 1e3 / limit,
                *("x", "lower", over),
            ),
        ]
        found[f"{num_rows} at {size}"] = entry
        shown = ", ".join(f"{way} {each['milliseconds']:.3g}" for way, each in entry.items())
        print(f"{name}ms {shown}; its launch {mine['kernel_milliseconds']:.3g}", flush=True)
        for figure in figures[-2:]:
            print(figure, flush=True)
    return found, figures


def _measure_bandwidth(device: torch.device) -> float:
    """Return how many bytes a second a copy on the device reads and writes."""
    source = torch.zeros(1 << 28 if device.type == "cuda" else 1 << 20, dtype=torch.uint8)
    source = source.to(device)
    target = torch.empty_like(source)
    seconds = _timed_on(device, partial(target.copy_, source), 10)["milliseconds"] / 1e3
    return 2 * source.numel() / float(seconds)


def _timed_on(device: torch.device, call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Return milliseconds of a call by events, the kernels that it launches, and their time."""
    for _ in range(3):
        call()
    torch.cuda.synchronize(device)
    raw = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        raw.append(begin.elapsed_time(end))
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        torch.cuda.synchronize(device)
    events = [event for event in profile.key_averages() if event.device_time_total > 0]
    kernels = [event for event in events if not event.key.startswith("Mem")]  # copies, fills
    return {
        "milliseconds": median(raw),
        "raw": raw,
        "launches": sum(event.count for event in events),
        "kernel_milliseconds": sum(event.device_time_total for event in kernels) / 1e3,
    }


CALLS = 50


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(CALLS):
        call()


def planning(repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Time the plan of a batch: operations, crops and indices from its keys, and its weights.

    And operations and crops as each policy plans them, in turn.
    """
    figures: list[Figure] = []
    measured: dict[str, Any] = {}
    policy, base = RandomOps.paper(), CropFlip()
    tables = policy.tables
    assert tables is not None
    sizes = ((64, 10.0), (512, 40.0), (4096, 320.0))
    for (num_rows, most), every in itertools.product(sizes, (2, 1)):
        # One of two rows is a copy, then each.
        copy = (torch.arange(num_rows) % every == 0).long()
        keys = pack(3, copy, torch.arange(num_rows))
        lines = np.empty((num_rows, count_columns(tables.num_slots, tables.num_params)), np.int32)
        copies = RowKeys(0, 3, keys, 1)[copy == 1]
        drawing = drawing_of(policy, torch.empty(len(copies), 3, 32, 32), copies)
        small = torch.zeros(num_rows, 1, 1, 1, dtype=torch.uint8)  # next to nothing to crop
        given = (0, 1), list_tables(policy, base), (32, 32), lines
        given += np.empty(num_rows, np.int64), np.ones(num_rows, np.float32)
        given += (np.empty(num_rows, np.float32),)
        one = partial(plan_batch, keys.numpy(), *given, is_byte=True, is_resident=False)
        calls: dict[str, Callable[[], Any]] = {
            "one loop": one,
            "in turn": lambda: (drawing(), base(small, RowKeys(1, 3, keys, 1))),  # noqa: B023
        }
        for call in calls.values():
            call()
        # Many calls at a time, in turn: microseconds are few beside the clock and cold caches.
        blocks = {name: partial(_repeat, call) for name, call in calls.items()}
        taken = in_turn(blocks, max(repeats, 50))
        raw = {name: [each / CALLS for each in seconds] for name, seconds in taken.items()}
        name = f"{num_rows} rows" + (", half of them copies" if every == 2 else ", all copies")
        measured[name] = {each: summary(seconds) for each, seconds in raw.items()}
        mine = median(raw["one loop"])
        ratio = median(raw["in turn"]) / mine
        figures += [
            Figure(f"{name}: the plan in one loop", mine * 1e6, "us", "lower", most),
            Figure(f"{name}: that of each policy in turn, over it", ratio, "x", "higher"),
        ]
    return figures, measured


def stand_in(num_images: int) -> Tensor:
    """Return smooth synthetic images, where no real ones are named."""
    coarse = torch.rand(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, 32, mode="bilinear")
    return (fine * 255).round_().to(torch.uint8)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; with ``--out`` also write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augmentation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("AUGSUBSET_CIFAR10"),
        help="CIFAR-10: a torchvision root or an .npz; without, synthetic images",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="32 pixels alone")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    data: ImageData | None = None if given.data is None else load_cifar10(given.data)
    images = stand_in(4096) if data is None else data.x_train[:4096]
    threads = torch.get_num_threads()
    extra: dict[str, Any] = {}
    try:
        if given.device == "cpu":
            result = on_one_core(images, given.repeats, given.quick)
        else:
            device = torch.device(given.device)
            result, figures = on_device(images, device, given.repeats, given.quick)
            extra = {"figures": [figure.as_record() for figure in figures]}
        record = {"environment": environment(data), "augmentation": result, **extra}
    finally:
        torch.set_num_threads(threads)
    if given.out is not None:
        given.out.write_text(json.dumps(record) + "\n")  # thousands of raw times
    counted = (each for each in result.get("figures", ()) if each["unit"] in ("calls", "runs"))
    if missed := [each["name"] for each in counted if each["met"] is False]:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
