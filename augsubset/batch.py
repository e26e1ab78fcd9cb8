"""What a collated batch is made of: inputs, labels, other parts, and the rows of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augsubset.utils.checks import check_choice
from augsubset.utils.torch_utils import map_tensors

__all__ = [
    "BatchParts",
    "BatchSpec",
    "class_labels",
    "get_device",
    "is_classes",
    "num_rows",
    "put_rows",
    "split_batch",
    "take_rows",
]

Name = str | int
_INPUT_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
_LABEL_NAMES = ("label", "labels", "target", "targets", "y")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


class BatchParts(NamedTuple):
    """A batch taken apart.

    Args:
        inputs: A tensor, a list of tensors, or a dict of them.
        labels: int64 ``(B,)`` if they are classes; otherwise as collated.
        others: Further parts that are transformed together with the inputs.
    """

    inputs: Any
    labels: Any
    others: tuple[Any, ...]


@dataclass(frozen=True)
class BatchSpec:
    """Which part of a batch is which, and in what form a batch is yielded.

    Needed only where a batch is neither an (inputs, labels) pair nor a dict with usual names.

    Args:
        inputs: Key of a dict, field of a named tuple, or position in a tuple; a list of these for
            models with several inputs, which then arrive as a dict. ``None``: the first of a
            pair, or the one part with a usual name (``image``, ``pixel_values``, ``x``, ...).
        labels: Likewise, for the labels. One class index per example is selected per class;
            anything else (floats, several labels per row, boxes) forms one group, and needs a
            ``probe`` that knows the loss, or a selector without gradients. Or a tensor of all
            examples' classes, ``(n,)`` integers, where reading the dataset for them would take
            long; the labels of a batch are then found as with ``None``.
        others: Keys, fields or positions of parts that policies transform together with the
            inputs: masks, boxes. Policies are then called as
            ``(x, rows, *others) -> (x, *others)``; ours take integer masks ``(B, H, W)``. These
            parts are yielded where they were: as the labels, or with ``whole=True``.
        whole: Yield batches in the structure that the collate function returned, with augmented
            inputs and all tensors on the device, instead of ``(x, y)``.
        return_index: Yield each row's dataset index as well, last.

    Raises:
        TypeError: If ``others`` is a string, or a tensor of labels does not hold integers.
        ValueError: If a flag is not a bool.

    Example:
        >>> spec = BatchSpec(inputs="pixels", labels="species", return_index=True)
        >>> batch = {"pixels": torch.zeros(2, 3), "species": torch.tensor([0, 1]), "id": [7, 8]}
        >>> spec.split(batch).labels
        tensor([0, 1])
    """

    inputs: Name | Sequence[Name] | None = None
    labels: Name | Tensor | None = None
    others: Sequence[Name] = ()
    whole: bool = False
    return_index: bool = False

    def __post_init__(self) -> None:
        """Validate once."""
        if isinstance(self.others, str):
            raise TypeError(f"others must be a list of names or positions, got {self.others!r}.")
        if isinstance(self.labels, Tensor) and not is_classes(self.labels):
            raise TypeError(
                "labels must be a name, a position or a tensor of one integer per example, got "
                f"shape {tuple(self.labels.shape)}, {self.labels.dtype}."
            )
        object.__setattr__(self, "others", tuple(self.others))
        check_choice("whole", self.whole, (False, True))
        check_choice("return_index", self.return_index, (False, True))

    def split(self, batch: Any) -> BatchParts:
        """Return a batch in parts.

        Raises:
            TypeError: If the batch is neither a tuple, a list nor a mapping.
            ValueError: If a part cannot be identified, or parts differ in their number of rows.
        """
        named = {name: _get_part(batch, name) for name in self._find_inputs(batch)}
        inputs = named if self._has_many_inputs else next(iter(named.values()))
        labels = _get_part(batch, self.find_labels(batch))
        others = tuple(_get_part(batch, name) for name in self.others)
        n = num_rows(inputs)
        for name, part in (("labels", labels), *zip(self.others, others, strict=True)):
            if num_rows(part) != n:
                raise ValueError(
                    f"{name} must have as many rows as the inputs, {n}, got {num_rows(part)}."
                )
        return BatchParts(inputs, labels.long() if is_classes(labels) else labels, others)

    def join(self, batch: Any, parts: BatchParts) -> Any:
        """Return a batch of the same type with these parts in it."""
        named = dict(zip(self.others, parts.others, strict=True))
        label = self.find_labels(batch)
        if label not in named:
            named[label] = parts.labels
        names = self._find_inputs(batch)
        named |= parts.inputs if self._has_many_inputs else {names[0]: parts.inputs}
        if isinstance(batch, tuple) and hasattr(batch, "_replace"):
            fields: Any = getattr(batch, "_fields")  # noqa: B009 - mypy knows a plain tuple only
            return batch._replace(
                **{n if isinstance(n, str) else fields[n]: part for n, part in named.items()}
            )
        if isinstance(batch, Mapping):
            joined: Any = copy.copy(batch)
            for name, part in named.items():
                joined[name] = part
            return joined
        values = list(batch)
        for name, part in named.items():
            values[int(name)] = part
        return type(batch)(values)

    def find_labels(self, batch: Any) -> Name:
        """Return the key, field or position of the labels."""
        return _find_name(batch, "labels", self.label_name, _LABEL_NAMES, 1)

    def check_names(self, batch: Any) -> None:
        """Raise if parts would be transformed that are not yielded.

        Raises:
            ValueError: If ``others`` names more than the labels and ``whole`` is not set.
        """
        label = self.find_labels(batch)
        if not self.whole and any(name != label for name in self.others):
            raise ValueError(
                f"others must name the labels {label!r} alone without whole=True, got "
                f"{list(self.others)}: the other parts would be transformed but not yielded."
            )

    def check_unmixed(self, batch: Any, item: Any) -> None:
        """Raise if a batch has labels for mixtures of its items, as MixUp and CutMix make them.

        Args:
            batch: As collated.
            item: Its first item; anything without an integer label passes.

        Raises:
            ValueError: If the item's label is an integer, and the batch's are soft or in pairs.
        """
        is_sequence = isinstance(item, (tuple, list)) and isinstance(batch, (tuple, list))
        if is_sequence and len(batch) == len(item) + 2 and isinstance(batch[-1], float):
            name: Name = 1 if self.label_name is None else self.label_name
            labels: Any = batch[1:]
        else:
            name = self.find_labels(batch)
            labels = _get_part(batch, name)
        if isinstance(labels, Tensor):
            are_mixed = labels.is_floating_point() and labels.ndim == 2
            are_mixed = are_mixed and bool(((labels > 0) & (labels < 1)).any())  # or one-hot
            got = f"floats of shape {tuple(labels.shape)}"
        else:
            parts = labels if isinstance(labels, (tuple, list)) else ()
            are_mixed = any(isinstance(part, Tensor) and part.ndim for part in parts)
            got = "several parts"
        try:
            own = torch.as_tensor(_get_part(item, name)) if are_mixed else None
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return
        if own is not None and own.ndim == 0 and is_classes(own[None]):
            raise ValueError(
                f"collate_fn must keep the label of each example, an integer, got {got}: it seems "
                "to mix examples (MixUp, CutMix), so copies would be made from mixtures. Mix in "
                "the loop, after the loader: for x, y in loader: x, y = mixup(x, y)."
            )

    @property
    def label_name(self) -> Name | None:
        """The labels' name or position, if there is one."""
        return None if isinstance(self.labels, Tensor) else self.labels

    @property
    def classes(self) -> Tensor | None:
        """The class of every example, if it was given; ``(n,)`` int64."""
        return class_labels(self.labels) if isinstance(self.labels, Tensor) else None

    @property
    def _has_many_inputs(self) -> bool:
        return self.inputs is not None and not isinstance(self.inputs, (str, int))

    def _find_inputs(self, batch: Any) -> list[Name]:
        if self.inputs is None or isinstance(self.inputs, (str, int)):
            return [_find_name(batch, "inputs", self.inputs, _INPUT_NAMES, 0)]
        return list(self.inputs)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return (inputs, labels) of a pair, or of a mapping with the usual names.

    Example:
        >>> split_batch({"image": torch.zeros(2, 3), "label": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    return BatchSpec().split(batch)[:2]


def is_classes(labels: Any) -> bool:
    """Return whether labels are one class index per example."""
    return (
        isinstance(labels, Tensor)
        and labels.ndim == 1
        and not (labels.is_floating_point() or labels.is_complex())
        and labels.dtype != torch.bool
    )


def class_labels(labels: Any) -> Tensor:
    """Return the class of each row; zeros, a single group, if labels are not class indices."""
    if is_classes(labels):
        return labels.detach().cpu().long()  # type: ignore[no-any-return]
    return torch.zeros(num_rows(labels), dtype=torch.int64)


def num_rows(part: Any) -> int:
    """Return the number of rows of a tensor, of a list, or of a dict of these."""
    if isinstance(part, Mapping):
        return num_rows(next(iter(part.values())))
    return len(part)


def get_device(part: Any) -> torch.device:
    """Return the device of the first tensor in a part, the CPU if there is none."""
    found: list[torch.device] = []
    map_tensors(lambda tensor: found.append(tensor.device), part)
    return found[0] if found else torch.device("cpu")


def take_rows(part: Any, positions: Tensor, on_device: Tensor) -> Any:
    """Return copies of some rows; ``on_device`` holds their positions on the part's device."""
    if isinstance(part, Tensor):
        return part.index_select(0, on_device)
    if isinstance(part, Mapping):
        return {name: take_rows(value, positions, on_device) for name, value in part.items()}
    return [map_tensors(torch.clone, part[row]) for row in positions.tolist()]


def put_rows(part: Any, positions: Tensor, on_device: Tensor, new: Any, in_place: bool) -> Any:
    """Return the part with those rows replaced, in its own memory or in a copy."""
    if isinstance(part, Tensor):
        bits = _BITS.get(part.element_size())
        if part.device.type != "cpu" or bits is None or part.requires_grad or new.requires_grad:
            put = part.index_copy_ if in_place else part.index_copy
            replaced: Tensor = put(0, on_device, new)
            return replaced
        replaced = part if in_place else part.clone()
        # NumPy, because torch's index_copy_ takes about twenty times as long on bytes on the CPU.
        replaced.view(bits).numpy()[positions.numpy()] = new.view(bits).numpy()
        return replaced
    if isinstance(part, Mapping):
        return {
            name: put_rows(value, positions, on_device, new[name], in_place)
            for name, value in part.items()
        }
    rows = list(part)
    for row, value in zip(positions.tolist(), new, strict=True):
        rows[row] = value
    return rows


def _get_part(batch: Any, name: Name) -> Any:
    """Return one part, or raise with the parts that exist."""
    name = _find_name(batch, "every part", name, (), 0)
    if isinstance(batch, Mapping):
        return batch[name]
    return getattr(batch, name) if isinstance(name, str) else batch[name]


def _find_name(
    batch: Any, role: str, name: Name | None, usual: tuple[str, ...], position: int
) -> Name:
    """Return the name or position of a part, or raise where it is ambiguous."""
    fields = getattr(batch, "_fields", ())
    if isinstance(batch, Mapping):
        known: list[Any] = list(batch)
    elif isinstance(batch, (tuple, list)):
        known = [*range(len(batch)), *fields]
    else:
        raise TypeError(
            "batches must be (inputs, labels) pairs or mappings, got "
            f"{type(batch).__name__}. If labels are missing, return them from the dataset."
        )
    if name is not None:
        if name not in known:
            raise ValueError(f"{role} must name a part of the batch {known}, got {role}={name!r}.")
        return name
    if isinstance(batch, Mapping) or (fields and len(batch) != 2):
        found = [key for key in usual if key in known]
        if len(found) != 1:
            raise ValueError(
                f"{role} must be found among the batch's keys {known} by one of the names "
                f"{usual}, got {found}. Pass batch=BatchSpec({role}=...) to name the key."
            )
        return found[0]
    if len(batch) != 2:
        raise TypeError(
            "batches must be (inputs, labels) pairs or mappings, got "
            f"{type(batch).__name__} of {len(batch)} parts. If labels are missing, return them "
            "from the dataset; if there are more parts, pass "
            "batch=BatchSpec(inputs=..., labels=...), by position."
        )
    return position
