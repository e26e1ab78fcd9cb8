"""The history as TensorBoard scalars."""

from __future__ import annotations

from typing import Any

__all__ = ["TensorBoardEvents"]


class TensorBoardEvents:
    """Write every number of each event: pass one as ``on_event=`` to the loader.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``.
        prefix: Of the tags: ``prefix/selection/error`` and so on, over epochs.

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
