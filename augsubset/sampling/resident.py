"""A batch of images that are on the device already, gathered when somebody reads it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from augsubset.utils.torch_utils import to_device_async

__all__ = ["ResidentRows"]


class ResidentRows(Tensor):
    """Rows of a tensor on the device: a tensor like any other, gathered by its first use.

    One launch that augments a batch finds the rows itself, and needs no gathered copy.

    Args:
        source: All images. ``(n, C, H, W)``
        dataset_indices: Of the rows, on the CPU. ``(B,)`` int64
    """

    source: Tensor
    dataset_indices: Tensor
    _gathered: Tensor | None

    @staticmethod
    def __new__(cls, source: Tensor, dataset_indices: Tensor) -> ResidentRows:
        """Return rows of which nothing is gathered yet."""
        shape = len(dataset_indices), *source.shape[1:]
        made: ResidentRows = Tensor._make_wrapper_subclass(
            cls, shape, dtype=source.dtype, device=source.device
        )
        made.source, made.dataset_indices, made._gathered = source, dataset_indices, None
        return made

    def gather_rows(self) -> Tensor:
        """Return the rows, an ordinary tensor; the same one each time."""
        if self._gathered is None:
            on_device = to_device_async(self.dataset_indices, self.source.device)
            self._gathered = self.source.index_select(0, on_device)
        return self._gathered

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run any operation on the gathered rows."""
        args, kwargs = tree_map_only(ResidentRows, ResidentRows.gather_rows, (args, kwargs or {}))
        return func(*args, **kwargs)
