"""Adapter for TensorBoard: the history as scalars, and the report's images."""

from __future__ import annotations

from typing import Any

import torch

from augsubset.loader import SubsetAugmentLoader
from augsubset.reporting import choose_pictures

__all__ = ["TensorBoardEvents"]


class TensorBoardEvents:
    """Write every number of each event; pass an instance as the loader's ``on_event=``.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.
        prefix: Prefix of the tags: ``prefix/selection/error`` and so on, over epochs.

    Raises:
        TypeError: If the writer has no ``add_scalar``.
    """

    def __init__(self, writer: Any, prefix: str = "augsubset") -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must have add_scalar, got {type(writer).__name__}.")
        self._writer, self._prefix = writer, prefix

    def __call__(self, entry: dict[str, Any]) -> None:
        """Write one entry of the history."""
        for name, value in entry.items():
            if name != "epoch" and isinstance(value, (int, float)):
                tag = f"{self._prefix}/{entry['event']}/{name}"
                self._writer.add_scalar(tag, float(value), entry["epoch"])

    def add_pictures(self, loader: SubsetAugmentLoader, *, images: int = 12) -> None:
        """Write the report's images: most, least and never selected examples, with copies.

        Args:
            loader: A loader between two epochs.
            images: Number of examples per list.

        Raises:
            TypeError: If the writer has no ``add_images``.
            AugsubsetError: While an epoch runs.
        """
        if not callable(getattr(self._writer, "add_images", None)):
            raise TypeError(f"writer must have add_images, got {type(self._writer).__name__}.")
        for name, pictures in choose_pictures(loader, images).items():
            if pictures:
                shown = torch.stack([image for each in pictures for image in each.images])
                self._writer.add_images(f"{self._prefix}/{name}", shown, loader.epoch)
