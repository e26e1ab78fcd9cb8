"""Cache of training-time logits, so that the next scan can reuse them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augsubset.utils.checks import AugsubsetError, check_int, check_state
from augsubset.utils.torch_utils import map_tensors, to_device_async

__all__ = ["LogitCache", "assign_to_rank"]


class LogitCache:
    """Logits from training, and how many training passes ago each example was seen.

    :meth:`GradientProbe.attached` creates and fills it. Call :meth:`expect` before each training
    pass to say which examples are in the batch; passes in evaluation mode, or without that call,
    are not recorded.

    The logits are those of training mode (dropout, batch statistics, base augmentation) and of
    the weights at that step: an estimate of what a scan would find now.

    Args:
        num_examples: Size of the dataset, n.

    Attributes:
        passes: Number of training passes recorded so far.

    Raises:
        TypeError: If ``num_examples`` is not an int.
        ValueError: If it is below 1.

    Cost:
        One indexed copy of the logits per pass, on the model's device and without a device sync.
        Memory for n (C + d) floats there; d is 0 unless inputs of the last layer are recorded.
    """

    def __init__(self, num_examples: int) -> None:
        check_int("num_examples", num_examples, 1)
        self.passes = 0
        self._seen = torch.full((num_examples,), -1, dtype=torch.int64)
        self._labels = torch.zeros(num_examples, dtype=torch.int64)
        self._values: list[Tensor] = []
        self._expected: tuple[Tensor, Tensor] | None = None
        self._inputs: list[Tensor] = []

    def __len__(self) -> int:
        """Return the size of the dataset, n."""
        return len(self._seen)

    @property
    def ages(self) -> Tensor:
        """Training passes since each example was recorded, -1 if it never was; ``(n,)`` int64."""
        return torch.where(self._seen < 0, -1, self.passes - self._seen)

    def is_expecting(self, inputs: Any) -> bool:
        """Return whether a pass on these inputs was announced, and has not run yet."""
        given: list[Tensor] = []
        map_tensors(given.append, inputs)
        return self._expected is not None and (
            not self._inputs or any(_is_same(a, b) for a in given for b in self._inputs)
        )

    @property
    def has_inputs(self) -> bool:
        """Whether inputs of the last layer were recorded as well."""
        return len(self._values) > 1

    @property
    def device(self) -> torch.device:
        """Device of the logits: that of the model in the first pass, the CPU before."""
        return self._values[0].device if self._values else torch.device("cpu")

    def clear(self) -> None:
        """Forget what was recorded, because the examples are no longer the same."""
        self._seen.fill_(-1)

    def expect(self, indices: Tensor, labels: Tensor, inputs: Any = None) -> None:
        """Announce the examples of the next training pass; replaces an earlier announcement.

        Args:
            indices: Dataset index of each row, -1 for rows not to record (augmented copies,
                padding). ``(B,)`` ints, best on the CPU: on another device this call synchronises.
            labels: Class of each row, likewise.
            inputs: Tensors of any nesting, one of which the model will be given: passes on
                others in between are not recorded. ``None``: the next pass is meant.

        Raises:
            TypeError: If either is not an integer tensor.
            ValueError: If lengths differ or an index is out of range.
        """
        indices, labels = indices.detach().cpu(), labels.detach().cpu()
        if indices.shape != labels.shape or indices.ndim != 1:
            raise ValueError(
                f"labels must be one per index {tuple(indices.shape)}, got {tuple(labels.shape)}."
            )
        for name, value in (("indices", indices), ("labels", labels)):
            if value.is_floating_point() or value.dtype == torch.bool:
                raise TypeError(f"{name} must be ints, got dtype {value.dtype}.")
        if len(indices) and not -1 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise ValueError(
                f"indices must be in -1..{len(self) - 1}, got {int(indices.min())} to "
                f"{int(indices.max())}."
            )
        self._expected, self._inputs = (indices.long(), labels.long()), []
        map_tensors(self._inputs.append, inputs)

    def cancel(self) -> None:
        """Undo :meth:`expect`."""
        self._expected, self._inputs = None, []

    def record(self, values: Sequence[Tensor]) -> None:
        """Store the outputs of an announced training pass; does nothing if none was announced.

        Args:
            values: Logits ``(B, C)``, optionally followed by inputs of the last layer ``(B, d)``.

        Raises:
            AugsubsetError: If the number of rows is not the one announced.
            ValueError: If widths or the number of tensors differ from earlier passes.
        """
        if self._expected is None:
            return
        indices, labels = self._expected
        self.cancel()
        if len(values[0]) != len(indices):
            raise AugsubsetError(
                f"the model must return logits of the {len(indices)} rows of its batch, got "
                f"{len(values[0])}. With recycle=, give it the batch as the loader yielded it; "
                "with attached(), call expect() right before the model."
            )
        # The last row of a repeated example: assigning all would leave the winner to the device.
        distinct, from_end = np.unique(indices.numpy()[::-1], return_index=True)
        rows = torch.from_numpy(len(indices) - 1 - from_end[distinct >= 0])
        if not self._values:
            self._values = [
                torch.zeros(len(self), value.shape[1], device=value.device) for value in values
            ]
        widths = [value.shape[1] for value in values]
        stored_widths = [stored.shape[1] for stored in self._values]
        if widths != stored_widths:
            raise ValueError(
                f"values must be as wide as in earlier passes, {stored_widths}, got {widths}. "
                "Use one LogitCache per probe."
            )
        examples = indices[rows]
        for stored, value in zip(self._values, values, strict=True):
            picked = value.detach()[to_device_async(rows, value.device)]
            target = to_device_async(examples, stored.device)
            stored[target] = picked.to(stored.device, torch.float32)
        self._labels[examples] = labels[rows]
        self.passes += 1
        self._seen[examples] = self.passes

    def rows(self, positions: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return recorded values of some examples, on :attr:`device`, and labels, on the CPU."""
        values = [stored[positions.to(stored.device)] for stored in self._values]
        return values, self._labels[positions]

    def state_dict(self) -> dict[str, Any]:
        """Return the contents for a checkpoint: references, not copies."""
        return {
            "passes": self.passes,
            "seen": self._seen,
            "labels": self._labels,
            "values": list(self._values),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: If a key is missing or the size of the dataset differs.
        """
        check_state("logit_cache", state, ("passes", "seen", "labels", "values"))
        if len(state["seen"]) != len(self):
            raise ValueError(
                f"logit_cache must hold the dataset's {len(self)} examples, got "
                f"{len(state['seen'])}."
            )
        self.passes = check_int("passes", state["passes"], 0)
        self._seen, self._labels = state["seen"].clone(), state["labels"].clone()
        self._values = [value.clone() for value in state["values"]]
        self.cancel()


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are one, also as views: DistributedDataParallel passes a view."""
    if tensor is other or tensor.shape != other.shape:
        return tensor is other
    are_plain = tensor.layout == other.layout == torch.strided
    return are_plain and 0 != tensor.data_ptr() == other.data_ptr()


def assign_to_rank(ages: Sequence[Tensor], rank: int) -> Tensor:
    """Return the examples that one rank probes; each example is assigned to exactly one rank.

    A recorded example goes to the rank that recorded it last, the others round-robin. If that
    leaves a rank without examples, all are assigned round-robin.

    Args:
        ages: From each rank, passes since it recorded an example, -1 if never; ``(n,)`` ints.
        rank: The rank to assign to.

    Returns:
        Ascending dataset indices, int64.

    Example:
        >>> assign_to_rank([torch.tensor([2, -1, -1, -1]), torch.tensor([1, -1, 5, -1])], rank=0)
        tensor([1])
    """
    stacked = torch.stack(list(ages))
    owners = torch.where(stacked < 0, torch.iinfo(stacked.dtype).max, stacked).argmin(0)
    unseen = torch.nonzero((stacked < 0).all(0)).flatten()
    owners[unseen] = torch.arange(len(unseen)) % len(ages)
    if len(torch.unique(owners)) < len(ages):
        owners = torch.arange(stacked.shape[1]) % len(ages)
    return torch.nonzero(owners == rank).flatten()
