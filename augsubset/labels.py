"""What is known of a dataset before training: its labels, its classes, and digests of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from augsubset.batch import BatchParts, class_labels, is_classes, take_rows
from augsubset.pipeline import BatchPipeline
from augsubset.probe import GradientProbe
from augsubset.sampling import Source, unpack
from augsubset.selection import budget_from_fraction
from augsubset.utils.checks import AugsubsetError
from augsubset.utils.progress import progress_bar
from augsubset.utils.torch_utils import map_tensors

__all__ = ["DatasetInfo", "find_labels", "find_targets", "inspect_dataset"]

_log = logging.getLogger(__name__)

_NUM_DIGESTED = 8  # examples that identify a checkpoint's dataset
_NO_LABELS = (
    "labels must name the class of at least one example, got only negative ones, which mark "
    "unlabelled examples: nothing could be selected."
)


@dataclass(eq=False)
class DatasetInfo:
    """What the loader knows of a dataset.

    Args:
        dataset: The user's.
        num_examples: n.
        has_classes: Whether labels are class indices.
        classes: Class of each example, ``(n,)`` int64, negative for unlabelled ones; ``None`` if
            there are none, or they are not shown and nothing has needed them yet.
        are_shown: Whether the dataset shows these classes as attributes.
        targets_digest: Digest of all labels, ``None`` if the dataset does not expose them.
        digest: Digest of a few fetched examples; ``None`` if fetching one twice gives different
            results.
        visited: Examples that training may visit: dataset indices, ascending.
    """

    dataset: Any
    num_examples: int
    has_classes: bool
    classes: Tensor | None
    are_shown: bool
    targets_digest: str | None
    digest: str | None
    visited: Tensor

    @property
    def groups(self) -> Tensor:
        """Class of each example; a single group if there are no classes, or none known."""
        if self.classes is None:
            return torch.zeros(self.num_examples, dtype=torch.int64)
        return self.classes

    @property
    def candidates(self) -> Tensor:
        """Examples that may be selected: visited, with a label; dataset indices, ascending."""
        return self.visited[self.groups[self.visited] >= 0]

    @property
    def num_classes(self) -> int:
        """Number of classes, or 1 group."""
        return len(torch.unique(self.groups[self.candidates]))

    def learn(self, indices: Tensor, labels: Tensor) -> bool:
        """Store the labels of visited examples; return whether some are unlabelled.

        Raises:
            ValueError: If all are.
        """
        self.classes = labels.new_full((self.num_examples,), -1)
        self.classes[indices] = labels
        if not len(self.candidates):
            raise ValueError(_NO_LABELS)
        missing = len(indices) - len(self.candidates)
        if missing:
            _log.warning(
                "%d of %d examples are unlabelled, which was not known at construction: fraction "
                "refers to all. Pass batch=BatchSpec(labels=...) to refer to the labelled ones",
                missing,
                len(indices),
            )
        return missing > 0

    def refresh(self) -> bool:
        """Read the labels that the dataset exposes; return whether they have changed.

        Digests stay: they identify the dataset that the run began with.
        """
        now = find_labels(self.dataset) if self.are_shown else None
        if now is None or now.shape != self.groups.shape or torch.equal(now, self.groups):
            return False
        before, self.classes = self.num_classes, now
        _log.info("labels of the dataset have changed since they were last read")
        if not len(self.candidates):
            raise AugsubsetError(_NO_LABELS)
        if self.num_classes != before:
            _log.warning(
                "the dataset now has %d classes, not %d; the number of examples to select stays "
                "as it was at construction",
                self.num_classes,
                before,
            )
        return True


def inspect_dataset(
    source: Source,
    pipeline: BatchPipeline,
    probe: GradientProbe,
    selector: Any,
    fraction: float,
    device: torch.device,
    progress: bool,
) -> DatasetInfo:
    """Fetch a few examples as training will, and raise what would otherwise fail later.

    Args:
        source: Fetches the examples.
        pipeline: Prepares them for the model.
        probe: Tried on two of them, if the selector needs gradients.
        selector: Chooses the subset; ``None`` if there is nothing to choose.
        fraction: Of the examples to select: where it holds one of each possible class, how many
            there are need not be known yet, and the first probe tells.
        device: Where the policies are tried.
        progress: Show a bar if all examples have to be fetched for their classes.
    """
    samples = [(batch, unpack(keys)[2]) for batch, keys in source.fetch_samples(_NUM_DIGESTED)]
    batch, *spread = (batch for batch, _ in samples)
    pipeline.spec.check_names(batch)
    half = len(spread) // 2
    for each in (batch, *spread[:half]):
        pipeline.try_policies(each, device)
    x, y = pipeline.prepare_originals(batch)
    needs_probe = selector is not None and selector.needs_gradients
    most_classes = probe.check(x, y) if needs_probe else None
    pipeline.check_masks(batch)
    digest, again = (
        _digest_first_rows(map(pipeline.spec.split, each))
        for each in (spread[:half], spread[half:])
    )
    if digest != again:
        _log.info(
            "fetching an example twice gives different results: a checkpoint cannot recognise "
            "this dataset by its examples, only by its length and labels"
        )
    classes, are_shown = _find_classes(source, pipeline, samples)
    visited = source.candidates
    enough = budget_from_fraction(fraction, len(visited), 1)
    can_wait = most_classes is not None and enough >= most_classes
    if not needs_probe:
        can_wait = selector is None or not getattr(selector, "needs_labels", True)
    if classes is None and is_classes(y) and not can_wait:
        classes = _gather_classes(source, pipeline, progress)
    if classes is not None and not bool((classes[visited] >= 0).any()):
        raise ValueError(_NO_LABELS)
    targets = find_targets(source.dataset) if classes is None else classes
    return DatasetInfo(
        source.dataset,
        len(source),
        is_classes(y),
        classes,
        are_shown,
        None if targets is None else _digest_tensor(targets),
        digest if digest == again else None,
        visited,
    )


def find_labels(dataset: Any) -> Tensor | None:
    """Return a dataset's class labels without fetching an item, ``None`` if it has none.

    ``None`` also where :func:`find_targets` are anything but one integer per example.
    """
    targets = find_targets(dataset)
    return targets.long() if targets is not None and is_classes(targets) else None


def find_targets(dataset: Any) -> Tensor | None:
    """Return a dataset's labels of any kind without fetching an item, ``None`` if it has none.

    Understands ``targets`` and ``labels`` (torchvision), ``TensorDataset`` (its last tensor),
    ``Subset`` of any of these and ``ConcatDataset`` of only these. ``None`` for others, and where
    such an attribute holds anything but numbers, one row per example: class names, boxes.
    """
    if isinstance(dataset, Subset):
        inner = find_targets(dataset.dataset)
        return (
            None if inner is None else inner[torch.as_tensor(np.asarray(dataset.indices, np.int64))]
        )
    if isinstance(dataset, ConcatDataset):
        parts = [find_targets(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        are_alike = len(known) == len(parts) and len({part.shape[1:] for part in known}) == 1
        return torch.cat(known) if are_alike else None
    if isinstance(dataset, TensorDataset):
        values: Any = dataset.tensors[-1] if len(dataset.tensors) > 1 else None
    else:
        values = _get_attribute(dataset, "targets")
        values = _get_attribute(dataset, "labels") if values is None else values
    try:
        # By NumPy: torch warns that converting a list of arrays is slow.
        values = np.asarray(values) if isinstance(values, (list, tuple)) else values
        targets = torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    return targets if targets.shape[:1] == (len(dataset),) else None


def _get_attribute(dataset: Any, name: str) -> Any:
    """Return an attribute, ``None`` if there is none or it raises."""
    try:
        return getattr(dataset, name, None)
    except Exception:  # noqa: BLE001 - a property may raise anything
        return None


def _find_classes(
    source: Source, pipeline: BatchPipeline, samples: Sequence[tuple[Any, Tensor]]
) -> tuple[Tensor | None, bool]:
    """Return classes that are given or shown, if items carry them too; and whether it was shown.

    Raises:
        ValueError: If classes are given that are not those of the items.
    """
    given = pipeline.spec.classes
    known = find_labels(source.dataset) if given is None else given
    if known is None:
        return None, False
    fetched = ((pipeline.spec.split(batch).labels, rows) for batch, rows in samples)
    if len(known) == len(source) and all(
        is_classes(labels) and torch.equal(labels, known[rows]) for labels, rows in fetched
    ):
        return known, given is None
    if given is not None:
        raise ValueError(
            f"labels must be the classes of the {len(source)} items, in their order, got "
            f"{len(given)} classes, or some that differ from those of the items."
        )
    _log.info("labels of items differ from .targets or .labels")
    return None, False


def _gather_classes(source: Source, pipeline: BatchPipeline, progress: bool) -> Tensor:
    """Return the class of every visited example by fetching all of them once, else -1."""
    _log.info("the dataset does not expose its labels: fetching every example for its class")
    classes = torch.full((len(source),), -1)
    indices: Any = source.candidates.tolist()
    loader = source.make_loader(indices, persistent_workers=False)
    with progress_bar(progress, len(loader), "gathering labels", "batch") as bar:
        for batch, keys in loader:
            classes[unpack(keys)[2]] = class_labels(pipeline.spec.split(batch).labels).cpu()
            if bar is not None:
                bar.update()
    return classes


def _digest_tensor(tensor: Tensor) -> str:
    """Return a digest of shape, dtype and values; of shape and dtype alone if it is sparse."""
    sha = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if tensor.layout == torch.strided:
        values = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(values.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _digest_first_rows(batches: Iterable[BatchParts]) -> str:
    """Return a digest of the tensors in the first row of each batch."""
    sha, first = hashlib.sha256(), torch.zeros(1, dtype=torch.int64)
    for parts in batches:
        for part in (parts.inputs, parts.labels, *parts.others):
            map_tensors(
                lambda tensor: sha.update(_digest_tensor(tensor).encode()),
                take_rows(part, first, first),
            )
    return sha.hexdigest()
