"""Residuals for nothing: remember what the model said of examples while it trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augsubset.utils.checks import AugsubsetError, check_int, check_state
from augsubset.utils.torch_utils import sent

__all__ = ["Harvest", "dealt"]


class Harvest:
    """Logits of ordinary training passes, with the pass in which each row was last seen.

    Made by :meth:`GradientProbe.attached`. Before each training pass, :meth:`expect` says which
    examples come; evaluation passes, and passes that nobody announced, are not recorded.

    What is recorded comes from training mode (dropout, batch statistics, the base augmentation)
    and from the weights of that moment: an estimate of what a scan would find now.

    Args:
        num_examples: Examples in the dataset, n.

    Attributes:
        passes: Training passes recorded so far.

    Raises:
        TypeError: If ``num_examples`` is no int.
        ValueError: If it is below 1.

    Cost:
        An indexed copy of a batch's logits a pass, on the model's device and without waiting for
        it; n (C + d) floats there, d where inputs of the last layer are kept.
    """

    def __init__(self, num_examples: int) -> None:
        check_int("num_examples", num_examples, 1)
        self.passes = 0
        self._seen = torch.full((num_examples,), -1, dtype=torch.int64)
        self._labels = torch.zeros(num_examples, dtype=torch.int64)
        self._values: list[Tensor] = []
        self._expected: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of examples, n."""
        return len(self._seen)

    @property
    def ages(self) -> Tensor:
        """Passes since each row was recorded, -1 if it never was; ``(n,)`` int64."""
        return torch.where(self._seen < 0, -1, self.passes - self._seen)

    @property
    def is_expecting(self) -> bool:
        """Whether a pass was announced that has not come."""
        return self._expected is not None

    @property
    def has_inputs(self) -> bool:
        """Whether inputs of the last layer were recorded, beside the logits."""
        return len(self._values) > 1

    @property
    def device(self) -> torch.device:
        """Where the rows are: the model's device in its first pass, the CPU before."""
        return self._values[0].device if self._values else torch.device("cpu")

    def expect(self, indices: Tensor, labels: Tensor) -> None:
        """Say which examples the next training pass is of; it takes the place of what was said.

        Args:
            indices: Dataset index of each row, -1 for rows to leave out (augmented copies,
                padding). ``(B,)`` ints, on the CPU: on a device they are waited for.
            labels: Class of each row, likewise.

        Raises:
            TypeError: If one of them is not of ints.
            ValueError: If lengths differ or an index is out of range.
        """
        indices, labels = indices.detach().cpu(), labels.detach().cpu()
        if indices.shape != labels.shape or indices.ndim != 1:
            raise ValueError(
                f"labels must be one an index {tuple(indices.shape)}, got {tuple(labels.shape)}."
            )
        for name, value in (("indices", indices), ("labels", labels)):
            if value.is_floating_point() or value.dtype == torch.bool:
                raise TypeError(f"{name} must be ints, got dtype {value.dtype}.")
        if len(indices) and not -1 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise ValueError(
                f"indices must be in -1..{len(self) - 1}, got {int(indices.min())} to "
                f"{int(indices.max())}."
            )
        self._expected = (indices.long(), labels.long())

    def cancel(self) -> None:
        """Drop what was announced and did not come."""
        self._expected = None

    def record(self, values: Sequence[Tensor]) -> None:
        """Store what a training pass gave; nothing, where no pass was announced.

        Args:
            values: Logits ``(B, C)``, and where kept the inputs of the last layer ``(B, d)``.

        Raises:
            AugsubsetError: If the pass has another number of rows than was announced.
            ValueError: If it is wider or holds more than passes before it.
        """
        if self._expected is None:
            return
        indices, labels = self._expected
        self._expected = None
        if len(values[0]) != len(indices):
            raise AugsubsetError(
                f"the pass must be of the {len(indices)} examples that were announced, got "
                f"{len(values[0])}. Call expect() right before the model."
            )
        # Of an example that comes twice the last row counts, on any device.
        distinct, from_end = np.unique(indices.numpy()[::-1], return_index=True)
        rows = torch.from_numpy(len(indices) - 1 - from_end[distinct >= 0])
        if not self._values:
            self._values = [
                torch.zeros(len(self), value.shape[1], device=value.device) for value in values
            ]
        widths, stored_widths = ([each.shape[1] for each in of] for of in (values, self._values))
        if widths != stored_widths:
            raise ValueError(
                f"a pass must give values as wide as before, {stored_widths}, got {widths}. "
                "Begin a Harvest for each probe."
            )
        at = indices[rows]
        for stored, value in zip(self._values, values, strict=True):
            picked = value.detach()[sent(rows, value.device)]
            stored[sent(at, stored.device)] = picked.to(stored.device, torch.float32)
        self._labels[at] = labels[rows]
        self.passes += 1
        self._seen[at] = self.passes

    def rows(self, positions: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return recorded values of some examples, on their device, and labels, on the CPU."""
        values = [stored[positions.to(stored.device)] for stored in self._values]
        return values, self._labels[positions]

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, for a checkpoint; references, not copies."""
        return {
            "passes": self.passes,
            "seen": self._seen,
            "labels": self._labels,
            "values": list(self._values),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: If it is of another number of examples, or something is missing.
        """
        check_state("harvest", state, ("passes", "seen", "labels", "values"))
        if len(state["seen"]) != len(self):
            raise ValueError(
                f"harvest must be of the dataset's {len(self)} examples, got {len(state['seen'])}."
            )
        self.passes = check_int("passes", state["passes"], 0)
        self._seen, self._labels = state["seen"].clone(), state["labels"].clone()
        self._values = [value.clone() for value in state["values"]]
        self._expected = None


def dealt(ages: Sequence[Tensor], rank: int) -> Tensor:
    """Return the examples that one of several processes measures; each falls to one of them.

    What was recorded falls to who did so last, the rest to all in turn. Where a process would have
    nothing to measure, all examples are dealt in turn.

    Args:
        ages: Of each process: passes since it recorded an example, -1 if it did not. ``(n,)`` ints
        rank: Which process.

    Returns:
        Ascending indices, int64.

    Example:
        >>> dealt([torch.tensor([2, -1, -1, -1]), torch.tensor([1, -1, 5, -1])], rank=0)
        tensor([1])
    """
    stacked = torch.stack(list(ages))
    owners = torch.where(stacked < 0, torch.iinfo(stacked.dtype).max, stacked).argmin(0)
    rest = torch.nonzero((stacked < 0).all(0)).flatten()
    owners[rest] = torch.arange(len(rest)) % len(ages)
    if len(torch.unique(owners)) < len(ages):
        owners = torch.arange(stacked.shape[1]) % len(ages)
    return torch.nonzero(owners == rank).flatten()
