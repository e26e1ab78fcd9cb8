"""Measure what the diagnostics say of real networks: spectra, fidelity, alignment over training.

``python -m benchmarks.explain --data CIFAR10 --out benchmarks/results/explain.json`` trains the
paper's MLP and a small convolutional network on digits, and ResNet20 on three classes of CIFAR-10,
without strong augmentation, and looks at them before, while and after they are trained. ``--draw``
makes the pictures and tables of ``docs/diagnostics.md`` from the record.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import (
    CoresetSelector,
    GradientProbe,
    LastLayerGradients,
    MaxLossSelector,
    RandomOps,
    RandomSelector,
    RowKeys,
    SubsetAugmentLoader,
)
from augsubset.diagnostics import (
    alignment,
    distance_fidelity,
    full_gradients,
    spectrum_change,
    summed_gradient,
)
from augsubset.normalization import Normalization
from augsubset.selection import Selector
from benchmarks.datasets import ImageData, load_cifar10, load_digits_images
from benchmarks.harness import TrainingPlan, environment, train, unchanged
from benchmarks.models import build_model
from benchmarks.tables import between, table

__all__ = ["Setting", "draw", "fill", "main", "measure", "settings"]

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "explain.json"
STRENGTHS = {"weak": 2, "strong": 4}
"""Operations an image: the paper's Figure 2 samples two, and four."""
RULES: dict[str, Selector] = {
    "coreset": CoresetSelector(),
    "random": RandomSelector(),
    "max-loss": MaxLossSelector(),
}
FRACTION = 0.1


@dataclass(frozen=True)
class Setting:
    """A network, what it is trained on, and how much of it is looked at.

    Args:
        name: What it is called.
        model: Of :data:`benchmarks.models.MODELS`.
        data: To train on.
        plan: How.
        num_spectrum: Examples whose Jacobian is taken.
        num_fidelity: Examples whose full gradients are compared.
        layers: Names of further Linear layers to probe, with the last.
        every: Epochs between looks.
    """

    name: str
    model: str
    data: ImageData
    plan: TrainingPlan
    num_spectrum: int
    num_fidelity: int
    layers: tuple[str, ...] = ()
    every: int = 3


def settings(data: str | None, quick: bool = False) -> list[Setting]:
    """Return the settings; without CIFAR-10 those on digits, quickly some epochs of them."""
    digits = load_digits_images(300 if quick else 1200)
    epochs = 2 if quick else 15
    plan = TrainingPlan(epochs, 0.05)
    found = [
        Setting("MLP, digits", "mlp", digits, replace(plan, lr=0.1), 60, 300, ("1", "3")),
        Setting("convolutions, digits", "convnet", digits, plan, 60, 300),
    ]
    if data is not None:
        found.append(
            Setting("ResNet20, CIFAR-10", "resnet20", three_classes(data, 500), plan, 60, 300)
        )
    return (
        found if not quick else [replace(each, num_spectrum=9, num_fidelity=60) for each in found]
    )


def three_classes(path: str, count: int) -> ImageData:
    """Return some images of three classes of CIFAR-10: airplane, automobile and bird."""
    whole = load_cifar10(path)
    parts = {}
    for part in ("train", "test"):
        x, y = getattr(whole, f"x_{part}"), getattr(whole, f"y_{part}")
        rows = torch.cat([torch.nonzero(y == label)[:count, 0] for label in range(3)]).sort().values
        parts[f"x_{part}"], parts[f"y_{part}"] = x[rows], y[rows]
    return ImageData("cifar10, three classes", **parts, mean_std=whole.mean_std)


class Look:
    """What is measured of a model as it stands.

    Args:
        setting: Whose.
        model: In training.
    """

    def __init__(self, setting: Setting, model: nn.Module) -> None:
        self.setting, self.model = setting, model
        self.normalization = Normalization(setting.data.mean_std, None)
        self.x, self.y = setting.data.x_train, setting.data.y_train

    def spectra(self) -> dict[str, Any]:
        """Return the Jacobian's spectra, weakly and strongly augmented, for images of 3 classes."""
        rows = torch.nonzero(self.y < 3)[: self.setting.num_spectrum, 0]
        original = self.normalization.to_model(self.x[rows])
        found: dict[str, Any] = {}
        for strength, num_ops in STRENGTHS.items():
            augmented = RandomOps(num_ops=num_ops)(self.x[rows], RowKeys(0, 0, rows, 1))
            change = spectrum_change(
                self.model, original, self.normalization.to_model(augmented), max_elements=1 << 30
            )
            before = change.original.singular_values
            after = change.augmented.singular_values
            found["original"] = _rounded(before)
            found[strength] = {
                "singular_values": _rounded(after),
                "perturbation_norm": change.perturbation_norm,
                "perturbation_frobenius": change.perturbation_frobenius,
                "largest_shift": float(np.abs(after - before).max()),
                "decreasing": float((after < before).mean()),
            }
        return found

    def fidelity(self) -> dict[str, float]:
        """Return the rank correlation of distances, by what is probed."""
        some = slice(0, self.setting.num_fidelity)
        x, y = self.normalization.to_model(self.x[some]), self.y[some]
        full = full_gradients(self.model, x, y)
        probes = {
            "logits": GradientProbe(self.model),
            "last layer": GradientProbe(self.model, kind="last_layer"),
        }
        if self.setting.layers:
            layers = list(self.setting.layers)
            probes["several layers"] = GradientProbe(self.model, layers, kind="last_layer")
        data = TensorDataset(x, y)
        return {name: distance_fidelity(probe.scan(data), full) for name, probe in probes.items()}

    def alignments(self, epoch: int) -> dict[str, dict[str, float]]:
        """Return where each rule's gradient points beside that of all, augmented and not."""
        n = len(self.y)
        x = self.normalization.to_model(self.x)
        copies = RandomOps.paper()(self.x, RowKeys(0, epoch, torch.arange(n), 1))
        augmented = self.normalization.to_model(copies)
        gradients = GradientProbe(self.model).scan(TensorDataset(x, self.y))
        whole = [summed_gradient(self.model, images, self.y) for images in (x, augmented)]
        return {
            rule: self._aligned(selector, gradients, (x, augmented), whole, epoch)
            for rule, selector in RULES.items()
        }

    def _aligned(
        self,
        selector: Selector,
        gradients: LastLayerGradients,
        images: tuple[Tensor, Tensor],
        whole: list[Tensor],
        epoch: int,
    ) -> dict[str, float]:
        budget = round(FRACTION * len(self.y))
        selection = selector.select(gradients, budget=budget, seed=0, epoch=epoch)
        rows, weights = selection.indices, selection.weights
        found = {}
        for name, each, other in zip(("original", "augmented"), images, whole, strict=True):
            mine = summed_gradient(self.model, each[rows], self.y[rows], weights)
            found[f"{name}_cosine"], found[f"{name}_error"] = alignment(mine, other)
        return found


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def measure(setting: Setting, seed: int = 0) -> dict[str, Any]:
    """Train, and look before, now and then, and after."""
    model = build_model(setting.model, setting.data, seed)
    loader = SubsetAugmentLoader(
        DataLoader(setting.data.train_set, 64, shuffle=True),
        model,
        unchanged,
        fraction=1e-9,
        copies=1,
        every=10**6,
        selector=RandomSelector(),
        normalize=setting.data.mean_std,
        seed=seed,
    )
    look = Look(setting, model)
    found: dict[str, Any] = {"fidelity": {}, "alignment": {}, "spectrum": {}, "accuracy": {}}

    def at(epoch: int, accuracy: float | None) -> None:
        is_end = epoch in (0, setting.plan.epochs)
        if is_end or epoch % setting.every == 0:
            found["alignment"][epoch] = look.alignments(epoch)
        if is_end:
            found["fidelity"][epoch] = look.fidelity()
            found["spectrum"][epoch] = look.spectra()
            found["accuracy"][epoch] = accuracy
        print(f"{setting.name}, epoch {epoch}: accuracy {accuracy}", flush=True)

    at(0, None)
    train(
        model,
        loader,
        setting.data,
        setting.plan,
        after_epoch=lambda epoch, accuracy: at(epoch + 1, accuracy),
    )
    return found


def draw(found: Mapping[str, Any], docs: Path) -> None:
    """Draw the spectra and the alignments of a record's settings."""
    from benchmarks.pictures import COLOURS, new_figure, save_figure

    figure = new_figure(3.2 * len(found))
    grid = figure.subplots(2 * len(found), 2).reshape(len(found), 4)
    for line, (name, setting) in zip(grid, found.items(), strict=True):
        last = list(setting["spectrum"])[-1]
        for axis, (epoch, strength) in zip(
            line, (("0", "weak"), ("0", "strong"), (last, "weak")), strict=False
        ):
            spectrum = setting["spectrum"][epoch]
            before = np.array(spectrum["original"])
            after = np.array(spectrum[strength]["singular_values"])
            top = max(before.max(), after.max())
            bins = np.geomspace(top / 1e4, top * 1.01, 30)
            for values, label, colour in (
                (before, "original", "#8a939c"),
                (after, "augmented", COLOURS["coreset"]),
            ):
                axis.hist(np.maximum(values, bins[0]), bins, alpha=0.6, label=label, color=colour)
            axis.set(xscale="log", title=f"epoch {epoch}, {strength}")
        spectrum = setting["spectrum"][last]
        shifts = np.array(spectrum["weak"]["singular_values"]) - np.array(spectrum["original"])
        axis, decreasing = line[3], spectrum["weak"]["decreasing"]
        shifts /= spectrum["weak"]["perturbation_norm"]
        axis.hist(shifts, np.linspace(-1, 1, 41), density=True, color="#8a939c", label="measured")
        axis.step(
            [-1, 0, 1], [decreasing, decreasing, 1 - decreasing], color="black", label="assumed"
        )
        axis.set(title=f"shifts by the norm, epoch {last}")
        line[0].set_ylabel(name)
        for axis in line:
            axis.title.set_fontsize(9)
            axis.tick_params(labelsize=9)
            axis.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, fontsize=9)
    grid[0][3].legend(frameon=False, fontsize=9)
    save_figure(figure, docs / "diagnostics-spectrum.svg")

    figure = new_figure(2.2 * len(found) + 0.7)
    axes = figure.subplots(len(found), squeeze=False)[:, 0]
    for axis, (name, setting) in zip(axes, found.items(), strict=True):
        epochs = [int(epoch) for epoch in setting["alignment"]]
        for rule in RULES:
            colour = COLOURS[rule]
            for kind, style in (("original", "-"), ("augmented", "--")):
                values = [each[rule][f"{kind}_cosine"] for each in setting["alignment"].values()]
                axis.plot(epochs, values, style, color=colour, label=f"{rule}, {kind}", lw=1.5)
        axis.set(title=name, ylim=(min(0, axis.get_ylim()[0]), 1.02))
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("cosine with all's")
    axes[-1].set_xlabel("epoch")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    save_figure(figure, docs / "diagnostics-alignment.svg")


def fill(found: Mapping[str, Any], page: str) -> str:
    """Return the page with its tables as the record has them."""
    rows = []
    for name, setting in found.items():
        for epoch, spectrum in setting["spectrum"].items():
            for strength in STRENGTHS:
                each, largest = spectrum[strength], spectrum["original"][0]
                cells = [
                    f"{largest:.3g}",
                    f"{each['singular_values'][0]:.3g}",
                    f"{each['perturbation_norm']:.3g}",
                    f"{each['largest_shift']:.3g}",
                    f"{100 * each['decreasing']:.0f}%",
                ]
                rows.append(f"| {name} | {epoch} | {strength} | {' | '.join(cells)} |")
    columns = ["network", "epoch", "augmentation", "largest singular value", "augmented"]
    columns += ["norm of E", "largest shift", "that decrease"]
    page = between(page, "spectrum", table(columns, rows))
    kinds = ("logits", "last layer", "several layers")
    rows = [
        f"| {name} | {epoch} | "
        + " | ".join(f"{each[kind]:.3f}" if kind in each else "" for kind in kinds)
        + " |"
        for name, setting in found.items()
        for epoch, each in setting["fidelity"].items()
    ]
    page = between(page, "fidelity", table(["network", "epoch", *kinds], rows))
    rows = []
    for name, setting in found.items():
        for epoch, each in setting["alignment"].items():
            cells = [
                f"{each[rule][f'{kind}_cosine']:.3f}"
                for kind in ("original", "augmented")
                for rule in RULES
            ]
            rows.append(f"| {name} | {epoch} | {' | '.join(cells)} |")
    columns = ["network", "epoch", *RULES, *(f"{rule}, augmented" for rule in RULES)]
    return between(page, "alignment", table(columns, rows))


def main(arguments: list[str] | None = None) -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("AUGSUBSET_CIFAR10"), help="CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="two epochs on digits")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--draw", type=Path, help="folder of the pages: draw the record")
    given = parser.parse_args(arguments)
    if given.draw is not None:
        found = json.loads(RECORD.read_text())["settings"]
        draw(found, given.draw)
        page = given.draw / "diagnostics.md"
        page.write_text(fill(found, page.read_text()))
        return
    found = {
        setting.name: measure(setting)
        for setting in settings(None if given.quick else given.data, given.quick)
    }
    if given.out is not None:
        record = {"environment": environment(), "settings": found}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
