"""The training set's gradients, as the schedule asks for them: probed, or seen in training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from augsubset.pipeline import BatchPipeline, ReadyBatch
from augsubset.probe import GradientProbe, LogitCache
from augsubset.sampling import Source
from augsubset.selection import LastLayerGradients
from augsubset.utils.checks import check_int
from augsubset.utils.torch_utils import get_model_device, map_tensors

__all__ = ["Prober"]

_log = logging.getLogger(__name__)

_NUM_COMPARED = 8  # images of which the first training pass is compared with what was yielded


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
        has_classes: Whether labels are one class index per example.
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
        has_classes: bool,
        batches_per_epoch: int,
    ) -> None:
        if recycle is not None and not has_classes:
            raise ValueError(
                "recycle must be None where labels are not one class index per example, got "
                f"recycle={recycle}."
            )
        self.model, self.probe = model, probe
        self.recycle = None if recycle is None else check_int("recycle", recycle, 1)
        self._source, self._pipeline = source, pipeline
        self._device, self._progress = device, progress
        self._watch: tuple[Any, torch.Size, Tensor] | None = None
        self._has_watched = probe.has_own_forward  # which may normalise by itself
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
        before = self._cache.passes
        recording = self.probe.attached(into=self._cache) if self.recycle else nullcontext()
        try:
            with recording:
                yield
        finally:
            self._stop_watching()
        self._has_watched = True  # a whole epoch is enough, whatever the model was given in it
        if self.recycle is not None and self._cache.passes == before:
            _log.warning(
                "recycle=%d recorded nothing in epoch %d: the loader's model was not called in "
                "training mode on the yielded inputs themselves. Mixed or converted inputs do not "
                "count. All examples will be probed anew",
                self.recycle,
                epoch,
            )

    def expect(self, batch: ReadyBatch) -> None:
        """Announce the batch that the model is about to see."""
        self._stop_watching()
        if self.recycle is not None:
            self._cache.expect(batch.originals, batch.labels, batch.inputs)
        if not self._has_watched and _are_float_images(batch.inputs):
            # Of a few images a copy, since the loop may normalise in place.
            hook = self.model.register_forward_pre_hook(self._compare_inputs, with_kwargs=True)
            images = batch.inputs[:_NUM_COMPARED].clone()
            self._watch = hook, batch.inputs.shape, images

    def _compare_inputs(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Warn if the first training pass on a batch's images has them normalised further."""
        given: list[Tensor] = []
        map_tensors(given.append, (args, kwargs))
        if self._watch is None or not model.training:
            return
        _, shape, images = self._watch
        alike = [part for part in given if part.shape == shape]
        if not alike:  # another batch, or resized: perhaps the next pass
            return
        self._stop_watching()
        self._has_watched = True
        found = _find_normalization(images, alike[0][:_NUM_COMPARED])
        if found is not None:
            mean, std = found
            if max(map(abs, mean)) < 0.01 and min(std) == max(std) == 255:
                warnings.warn(
                    "the model is given the yielded images divided by 255 once more: they are in "
                    "[0, 1] already. Take / 255 out of the loop.",
                    stacklevel=2,
                )
                return
            warnings.warn(
                "the model is given the yielded images scaled and shifted further, as by "
                f"(mean, std) = {found}. The probe does not do that, so it measures gradients of "
                "other inputs. If they are normalised in the loop, pass normalize= to the loader "
                "instead; otherwise give the probe a forward= that does the same.",
                stacklevel=2,
            )

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch[0].remove()
            self._watch = None

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
        """Restore what :meth:`check_state` returned."""
        self._cache = cache


def _are_float_images(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.is_floating_point()


def _find_normalization(images: Tensor, given: Tensor) -> tuple[list[float], list[float]] | None:
    """Return the (mean, std) per channel that lead from images to what the model was given.

    ``None`` if that is the same up to rounding, or something else, such as mixed images.
    """
    if len(images) < 2:
        return None
    x, z = (part.detach().transpose(0, 1).flatten(1).double().cpu() for part in (images, given))
    x_mean, z_mean = x.mean(1, keepdim=True), z.mean(1, keepdim=True)
    scale = ((x - x_mean) * (z - z_mean)).sum(1, keepdim=True) / (x - x_mean).square().sum(
        1, keepdim=True
    )
    shift = z_mean - scale * x_mean
    error = (x * scale + shift - z).abs().amax(1, keepdim=True)
    spread = z.amax(1, keepdim=True) - z.amin(1, keepdim=True)
    is_affine = bool((error <= 0.01 * spread).all() and (scale > 0).all())  # half precision rounds
    if not is_affine or bool(((z - x).abs() <= 0.01 * spread).all()):
        return None
    mean, std = -shift / scale, 1 / scale
    return [round(float(m), 4) for m in mean], [round(float(s), 4) for s in std]
