"""The training set's gradients, as the schedule asks for them: probed, or seen in training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from augsubset.pipeline import BatchPipeline, ReadyBatch
from augsubset.probe import GradientProbe, LogitCache
from augsubset.sampling import Source
from augsubset.selection import LastLayerGradients
from augsubset.utils.checks import check_int
from augsubset.utils.torch_utils import get_model_device

__all__ = ["Prober"]

_log = logging.getLogger(__name__)


class Prober:
    """Measures the training set, reusing logits of recent training passes where that is asked for.

    Args:
        model: In training.
        probe: Measures gradients.
        source: The training set.
        pipeline: Prepares its batches.
        device: Where batches go; ``None`` asks the model each time.
        progress: Whether to show a bar.
        recycle: Epochs for which logits of training passes are reused; ``None``: never.
        batches_per_epoch: Training passes in an epoch.

    Raises:
        ValueError: If ``recycle`` is out of range or the probe cannot observe training passes.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: GradientProbe,
        source: Source,
        pipeline: BatchPipeline,
        *,
        device: torch.device | None,
        progress: bool,
        recycle: int | None,
        batches_per_epoch: int,
    ) -> None:
        self.model, self.probe = model, probe
        self.recycle = None if recycle is None else check_int("recycle", recycle, 1)
        self._source, self._pipeline = source, pipeline
        self._device, self._progress = device, progress
        self._cache = LogitCache(len(source))
        self._max_age = (self.recycle or 0) * batches_per_epoch
        if recycle is not None:
            with probe.attached(into=self._cache):
                pass  # raises now for a probe that cannot observe training

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self._device or get_model_device(self.model)

    def measure(self, indices: Tensor | None = None) -> tuple[LastLayerGradients, int]:
        """Return gradients of some examples or of all, and how many came from training passes.

        Args:
            indices: Dataset indices, one rank's shard; ``None``: all.

        Raises:
            AugsubsetError: If a shard is asked for and the model is split over ranks.
        """
        if indices is not None:
            self.probe.check_alone()  # the model may have been sharded since construction
        self._source.to(self.device)
        ages = self.recorded_ages()
        reuse: Any = {} if ages is None else {"reuse": self._cache, "max_age": self._max_age}
        gradients = self.probe.scan(
            self._source.make_loader(),
            prepare=lambda fetched: self._pipeline.prepare_originals(fetched[0]),
            indices=indices,
            progress=self._progress,
            **reuse,
        )
        if ages is None:
            return gradients, 0
        return gradients, int(((ages if indices is None else ages[indices]) >= 0).sum())

    def recorded_ages(self) -> Tensor | None:
        """Return the age of each example's reusable logits in training passes, -1 without any.

        ``None`` if nothing is reused.

        Shape:
            ``(n,)`` int32.
        """
        if self.recycle is None:
            return None
        ages = self._cache.ages
        return torch.where(ages <= self._max_age, ages, -1).int()

    @contextmanager
    def observe_epoch(self, epoch: int) -> Iterator[None]:
        """Record the logits of training passes inside the block, if they are reused at all."""
        if self.recycle is None:
            yield
            return
        before = self._cache.passes
        with self.probe.attached(into=self._cache):
            yield
        if self._cache.passes == before:
            _log.warning(
                "recycle=%d recorded nothing in epoch %d: the model that the loader was given did "
                "not get the yielded inputs themselves, in training mode. Mixed or converted ones "
                "do not count. All examples will be probed anew",
                self.recycle,
                epoch,
            )

    def expect(self, batch: ReadyBatch) -> None:
        """Announce the batch that the model is about to see."""
        if self.recycle is not None:
            self._cache.expect(batch.originals, batch.labels, batch.inputs)

    def forget(self) -> None:
        """Reuse nothing that was recorded so far: examples or their labels have changed."""
        self._cache.clear()

    def state_dict(self, share: Mapping[str, int]) -> dict[str, Any] | None:
        """Return the recorded logits and this rank's share; ``None`` if nothing is reused."""
        return None if self.recycle is None else {**self._cache.state_dict(), **share}

    def check_state(self, state: Any, share: Mapping[str, int]) -> LogitCache:
        """Return what :meth:`restore` takes of a saved state, or raise if it does not fit."""
        cache = LogitCache(len(self._source))
        if self.recycle is None or state is None:
            return cache
        cache.load_state_dict(state)
        there = {name: state.get(name) for name in share}
        if there != share:
            _log.warning(
                "reused logits were recorded by %s, and this is %s: the next selection may "
                "differ from that of an uninterrupted run",
                there,
                dict(share),
            )
        return cache

    def restore(self, cache: LogitCache) -> None:
        """Take over what :meth:`check_state` returned."""
        self._cache = cache
