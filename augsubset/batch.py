"""What a collated batch is made of: inputs, labels, other parts, and the rows of each."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "BatchParts",
    "class_labels",
    "digest_of_first",
    "digest_of_tensor",
    "is_classes",
    "known_labels",
    "known_targets",
    "map_tensors",
    "num_rows",
    "put_rows",
    "split_batch",
    "take_rows",
]

Name = str | int
_INPUT_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x")
_LABEL_NAMES = ("label", "labels", "target", "targets", "y")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element


class Split(NamedTuple):
    """A batch in parts.

    Args:
        inputs: A tensor, a list of tensors, or a dict of them.
        labels: int64 ``(B,)`` where they are classes; else whatever there was.
        others: Further parts that policies transform along.
    """

    inputs: Any
    labels: Any
    others: tuple[Any, ...]


class BatchParts:
    """Which parts of a batch are which, said by name or position.

    Args:
        inputs: A mapping's key, a named tuple's field, a position; or a list of these, for models
            that take several: the inputs are then a dict. ``None``: the first of a pair, or the
            one part with a usual name.
        labels: Likewise, one of them.
        others: Further parts that policies transform with the inputs, by name or position.
    """

    def __init__(
        self,
        inputs: Name | Sequence[Name] | None = None,
        labels: Name | None = None,
        others: Sequence[Name] = (),
    ) -> None:
        if isinstance(others, str):
            raise TypeError(f"others must be a list of names or positions, got {others!r}.")
        self._inputs, self._labels, self._others = inputs, labels, tuple(others)

    @property
    def others(self) -> tuple[Name, ...]:
        """Names of the further parts, as given."""
        return self._others

    def split(self, batch: Any) -> Split:
        """Return a batch in parts.

        Raises:
            TypeError: If the batch is no tuple, list or mapping.
            ValueError: If it does not say which part is which, or parts differ in rows.
        """
        x = {name: _part(batch, name) for name in self._inputs_in(batch)}
        inputs = x if _is_many(self._inputs) else next(iter(x.values()))
        labels = _part(batch, self._labels_in(batch))
        others = tuple(_part(batch, name) for name in self._others)
        n = num_rows(inputs)
        for name, part in (("labels", labels), *zip(self._others, others, strict=True)):
            if num_rows(part) != n:
                raise ValueError(f"{name} must be as many as the inputs {n}, got {num_rows(part)}.")
        return Split(inputs, labels.long() if is_classes(labels) else labels, others)

    def joined(self, batch: Any, split: Split) -> Any:
        """Return a batch of the same type with these parts in it."""
        named = dict(zip(self._others, split.others, strict=True))
        label = self._labels_in(batch)
        if label not in named:
            named[label] = split.labels
        names = self._inputs_in(batch)
        named |= split.inputs if _is_many(self._inputs) else {names[0]: split.inputs}
        if isinstance(batch, tuple) and hasattr(batch, "_replace"):
            fields = {_field(batch, name): part for name, part in named.items()}
            return batch._replace(**fields)
        if isinstance(batch, Mapping):
            whole: Any = copy.copy(batch)
            for name, part in named.items():
                whole[name] = part
            return whole
        parts = list(batch)
        for name, part in named.items():
            parts[int(name)] = part
        return type(batch)(parts)

    def label_of(self, batch: Any) -> Name:
        """Return the name or position of the labels."""
        return self._labels_in(batch)

    def _inputs_in(self, batch: Any) -> list[Name]:
        if self._inputs is None or isinstance(self._inputs, (str, int)):
            return [_named(batch, "inputs", self._inputs, _INPUT_NAMES, 0)]
        return list(self._inputs)

    def _labels_in(self, batch: Any) -> Name:
        return _named(batch, "labels", self._labels, _LABEL_NAMES, 1)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Return (inputs, labels) of a pair, or of a mapping with the usual names.

    Example:
        >>> split_batch({"image": torch.zeros(2, 3), "label": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    return BatchParts().split(batch)[:2]


def is_classes(labels: Any) -> bool:
    """Return whether labels are one class index an example."""
    return (
        isinstance(labels, Tensor)
        and labels.ndim == 1
        and not labels.is_floating_point()
        and labels.dtype != torch.bool
    )


def class_labels(labels: Any) -> Tensor:
    """Return the class of each row; all of one group where labels are anything else."""
    if is_classes(labels):
        return labels.detach().cpu().long()  # type: ignore[no-any-return]
    return torch.zeros(num_rows(labels), dtype=torch.int64)


def num_rows(part: Any) -> int:
    """Return the number of rows of a tensor, of a list, or of a dict of these."""
    if isinstance(part, Mapping):
        return num_rows(next(iter(part.values())))
    return len(part)


def map_tensors(function: Callable[[Tensor], Any], part: Any) -> Any:
    """Return the part with the function applied to each tensor in it."""
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, Mapping):
        mapped = {name: map_tensors(function, value) for name, value in part.items()}
        if type(part) is dict or not isinstance(part, MutableMapping):
            return mapped
        whole: Any = copy.copy(part)  # of the caller's own type, which may know more than its items
        for name, value in mapped.items():
            whole[name] = value
        return whole
    if isinstance(part, tuple) and hasattr(part, "_replace"):
        return type(part)(*(map_tensors(function, value) for value in part))
    if isinstance(part, (list, tuple)):
        return type(part)(map_tensors(function, value) for value in part)
    return part


def digest_of_tensor(tensor: Tensor) -> str:
    """Return a digest of shape, dtype and values; of the shape and dtype where it is sparse."""
    sha = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if tensor.layout == torch.strided:
        values = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(values.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def digest_of_first(batches: Iterable[Split]) -> str:
    """Return a digest of what is in tensors of the first row of each batch."""
    sha, first = hashlib.sha256(), torch.zeros(1, dtype=torch.int64)
    for parts in batches:
        for part in (parts.inputs, parts.labels, *parts.others):
            map_tensors(
                lambda tensor: sha.update(digest_of_tensor(tensor).encode()),
                take_rows(part, first, first),
            )
    return sha.hexdigest()


def take_rows(part: Any, positions: Tensor, on_device: Tensor) -> Any:
    """Return some rows; ``on_device`` holds the same positions where the tensors are."""
    if isinstance(part, Tensor):
        return part.index_select(0, on_device)
    if isinstance(part, Mapping):
        return {name: take_rows(value, positions, on_device) for name, value in part.items()}
    return [part[row] for row in positions.tolist()]


def put_rows(part: Any, positions: Tensor, on_device: Tensor, new: Any, in_place: bool) -> Any:
    """Return the part with those rows replaced, in its own memory or a copy's."""
    if isinstance(part, Tensor):
        bits = _BITS.get(part.element_size())
        if part.device.type != "cpu" or bits is None or part.requires_grad or new.requires_grad:
            put = part.index_copy_ if in_place else part.index_copy
            replaced: Tensor = put(0, on_device, new)
            return replaced
        replaced = part if in_place else part.clone()
        # By NumPy: on the host torch's index_copy_ takes some twenty times as long on bytes.
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


def _is_many(inputs: Any) -> bool:
    return inputs is not None and not isinstance(inputs, (str, int))


def _field(batch: Any, name: Name) -> str:
    return name if isinstance(name, str) else batch._fields[name]


def _part(batch: Any, name: Name) -> Any:
    """Return one part, or say what there is instead."""
    name = _named(batch, "every part", name, (), 0)
    if isinstance(batch, Mapping):
        return batch[name]
    return getattr(batch, name) if isinstance(name, str) else batch[name]


def _named(batch: Any, role: str, name: Name | None, usual: tuple[str, ...], position: int) -> Name:
    """Return the name or position of a part, or refuse to guess."""
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
                f"{usual}, got {found}. Pass {role}= to name the key."
            )
        return found[0]
    if len(batch) != 2:
        raise TypeError(
            "batches must be (inputs, labels) pairs or mappings, got "
            f"{type(batch).__name__} of {len(batch)} parts. If labels are missing, return them "
            "from the dataset; if there are more parts, pass inputs= and labels=, by position."
        )
    return position


def known_labels(dataset: Any) -> Tensor | None:
    """Return a dataset's class labels without fetching an item, where it offers them.

    ``None`` where :func:`known_targets` are anything but one whole number an example.
    """
    targets = known_targets(dataset)
    return targets.long() if targets is not None and is_classes(targets) else None


def known_targets(dataset: Any) -> Tensor | None:
    """Return what a dataset's examples are labelled with, without fetching one, if it offers that.

    Understands ``targets`` and ``labels`` (torchvision), ``TensorDataset`` (its last tensor),
    ``Subset`` of any of these and ``ConcatDataset`` of only these. ``None`` for others, and where
    such an attribute holds anything but numbers, as many an example: class names, boxes.
    """
    if isinstance(dataset, torch.utils.data.Subset):
        inner = known_targets(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [known_targets(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        are_alike = len(known) == len(parts) and len({part.shape[1:] for part in known}) == 1
        return torch.cat(known) if are_alike else None
    if isinstance(dataset, torch.utils.data.TensorDataset):
        values: Any = dataset.tensors[-1] if len(dataset.tensors) > 1 else None
    else:
        values = getattr(dataset, "targets", getattr(dataset, "labels", None))
    try:
        # By NumPy: of a list of arrays torch warns that it takes them one by one.
        values = np.asarray(values) if isinstance(values, (list, tuple)) else values
        targets = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    return targets if targets.shape[:1] == (len(dataset),) else None
