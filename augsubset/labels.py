"""What is known of a dataset before training: that it can be trained on, its classes, digests."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from augsubset.batch import (
    class_labels,
    digest_of_first,
    digest_of_tensor,
    is_classes,
    known_labels,
    known_targets,
)
from augsubset.pipeline import Delivery
from augsubset.probe.probe import GradientProbe
from augsubset.sampling.source import Source, opened
from augsubset.utils.progress import progress_bar

__all__ = ["Examples", "looked_at"]

_log = logging.getLogger(__name__)

_NUM_DIGESTED = 8  # examples by which a checkpoint's dataset is known


@dataclass(frozen=True, eq=False)
class Examples:
    """A dataset's examples, as far as the loader knows them.

    Args:
        classes: Each one's class, ``(n,)`` int64; ``None`` where labels are no classes.
        targets_digest: Of all labels that the dataset offers, or ``None``.
        digest: Of a few examples as they are fetched; ``None`` where two fetches of one differ.
    """

    classes: Tensor | None
    targets_digest: str | None
    digest: str | None

    @property
    def num_classes(self) -> int:
        """How many classes there are; one group where labels are none."""
        return 1 if self.classes is None else len(torch.unique(self.classes))


def looked_at(
    source: Source, delivery: Delivery, probe: GradientProbe | None, progress: bool
) -> Examples:
    """Fetch a few examples as training will, and refuse what would fail later.

    Args:
        source: Fetches.
        delivery: Makes of it what the model takes.
        probe: Tried on what it makes; ``None`` where no rule needs one.
        progress: Whether there is a bar where all are fetched for their classes.
    """
    batch, *spread = source.few(_NUM_DIGESTED)
    delivery.check_names(batch)
    x, y = delivery.original(batch)
    if probe is not None:
        probe.check(x, y)
    half = len(spread) // 2
    once, again = (
        digest_of_first(map(delivery.split, each)) for each in (spread[:half], spread[half:])
    )
    if once != again:
        _log.info(
            "an example fetched twice is not the same: checkpoints cannot tell this dataset "
            "from others of its length and labels"
        )
    classes = _classes(source, delivery, progress) if is_classes(y) else None
    targets = known_targets(source.dataset) if classes is None else classes
    return Examples(
        classes,
        None if targets is None else digest_of_tensor(targets),
        once if once == again else None,
    )


def _classes(source: Source, delivery: Delivery, progress: bool) -> Tensor:
    """Return every example's class: as the dataset offers them, or by fetching all once."""
    known = known_labels(source.dataset)
    if known is not None:
        return known
    _log.info("the dataset has no .targets or .labels: fetching every example for them")
    gathered = []
    loader = source.data_loader()
    with progress_bar(progress, len(loader), "gathering labels", "batch") as bar:
        for fetched in loader:
            batch, _ = opened(fetched)
            gathered.append(class_labels(delivery.split(batch).labels))
            if bar is not None:
                bar.update()
    return torch.cat(gathered)
