"""A loader's state: what a checkpoint contains, and how a loader restores it.

The loader is above this module, so it is passed without its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from augsubset.selection import Certificate, Selection
from augsubset.utils.checks import check_int, check_state
from augsubset.utils.rng import MAX_SEED
from augsubset.utils.torch_utils import map_tensors

__all__ = ["get_setting", "make_state", "pack_selection", "restore_state", "unpack_selection"]

_VERSION = 5
_ARRAYS = ("indices", "weights", "gains", "clusters")
_PARTS = ("example_digest", "selection", "active", "schedule", "logits", "history", "counts")


def make_state(loader: Any, epoch: int, position: int) -> dict[str, Any]:
    """Return the state of a loader at a position of an epoch."""
    # First: it waits for a pending selection, which a training thread then uses and confirms.
    schedule = loader.schedule.state_dict()
    sampler = loader.row_sampler
    selection, active = sampler.selection, sampler.active
    return {
        "version": _VERSION,
        **_get_identity(loader),
        "example_digest": loader.info.digest,
        "epoch": epoch,
        "position": position if loader.count_batches(position) else len(loader.plan),
        "num_replicas": loader.num_replicas,
        "schedule": schedule,
        "selection": pack_selection(selection),
        # The selection of the epoch in the middle, if it is not the latest.
        "active": pack_selection(None if active is selection else active),
        "logits": loader.prober.state_dict(sampler.share),
        "history": [dict(entry) for entry in loader.history],
        "counts": loader.counts.state_dict(),
    }


def restore_state(loader: Any, state: Mapping[str, Any]) -> tuple[int, int]:
    """Check all of a state, then restore it; return its epoch and position.

    Raises:
        TypeError: If it is not a mapping.
        ValueError: If it does not fit. Nothing is changed then.
    """
    sampler, identity, n = loader.row_sampler, _get_identity(loader), len(loader.source)
    check_state("state_dict", state, ("version",))
    if state["version"] != _VERSION:
        raise ValueError(
            f"state_dict must be of version {_VERSION}, got version {state['version']}: it was "
            "saved by another version of augsubset, and cannot be resumed by this one."
        )
    state = map_tensors(Tensor.cpu, state)  # from torch.load(map_location=) on an accelerator
    check_state("state_dict", state, (*_PARTS, *identity))
    seed = check_int("seed", state["seed"], 0, MAX_SEED)
    if not loader.is_seed_given:
        del identity["seed"]
    # Digests are compared where both sides have one: not of labels that nothing has read.
    here = {**identity, "example_digest": loader.info.digest}
    same = {
        name: value
        for name, value in here.items()
        if not (name.endswith("_digest") and None in (value, state[name]))
    }
    check_state("state_dict", state, (), same=same)
    epoch, position = sampler.check_position(state)
    selection = unpack_selection(state["selection"], n)
    active = unpack_selection(state["active"], n) or selection
    if position and active is None:
        raise ValueError("state_dict must hold a selection in the middle of an epoch.")
    schedule = loader.schedule.check_state(state["schedule"])
    logits = loader.prober.check_state(state["logits"], sampler.share)
    counts = loader.counts.check_state(state["counts"])
    history = [dict(entry) for entry in state["history"]]
    if seed != loader.seed:
        _set_seed(loader, seed)
    if active is not None:
        sampler.set_selection(active)
    sampler.seek(epoch, position)  # in the middle of an epoch it continues with the active one
    if selection is not None:
        sampler.set_selection(selection)
    loader.schedule.restore(schedule)
    loader.prober.restore(logits)
    loader.counts.restore(counts)
    loader.history[:] = history
    return epoch, position


def _set_seed(loader: Any, seed: int) -> None:
    """Give a checkpoint's seed to everything that draws."""
    loader.seed = seed
    for part in (loader.source, loader.pipeline, loader.row_sampler, loader.schedule):
        part.set_seed(seed)
    loader.plan = loader.row_sampler.plan
    # Workers that persist hold a copy of the dataset with the seed before.
    loader._batches = loader.source.make_loader(loader.row_sampler, drop_last=loader.drop_last)


def get_setting(loader: Any) -> dict[str, Any]:
    """Return what ranks that train together must have in common."""
    return {
        **_get_identity(loader),
        "example_digest": loader.info.digest,
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "selector": loader.schedule.selector_name,
        "every": loader.schedule.every,
        "start_epoch": loader.options.start_epoch,
        "background": loader.options.background,
        "recycle": loader.options.recycle,
    }


def _get_identity(loader: Any) -> dict[str, Any]:
    """Return what must be equal for keys and positions to mean the same rows."""
    return {**loader.row_sampler.identity, "labels_digest": loader.info.targets_digest}


def pack_selection(selection: Selection | None) -> dict[str, Any] | None:
    """Return a selection as tensors and numbers, which ``torch.load`` reads without pickle."""
    if selection is None:
        return None
    certificate = selection.certificate
    return {
        **{name: getattr(selection, name) for name in _ARRAYS},
        "epoch": selection.epoch,
        "certificate": None if certificate is None else dict(vars(certificate)),
        "digest": selection.digest,
    }


def unpack_selection(state: Any, num_examples: int) -> Selection | None:
    """Return a packed selection, or raise if it is damaged or of another dataset.

    Raises:
        ValueError: If something is missing, the digest does not match, or the dataset's length.
    """
    if state is None:
        return None
    check_state("selection", state, (*_ARRAYS, "epoch", "certificate", "digest"))
    certificate = state["certificate"]
    if certificate is not None:
        check_state("certificate", certificate, [field.name for field in fields(Certificate)])
        certificate = Certificate(**certificate)
    selection = Selection(
        **{name: state[name] for name in _ARRAYS}, epoch=state["epoch"], certificate=certificate
    )
    if selection.digest != state["digest"]:
        raise ValueError(
            f"selection must have the digest {state['digest']}, got {selection.digest}: the "
            "checkpoint was altered or damaged."
        )
    if len(selection.clusters) != num_examples:
        raise ValueError(
            f"selection must be of this dataset of {num_examples} examples, got one of "
            f"{len(selection.clusters)}."
        )
    return selection
