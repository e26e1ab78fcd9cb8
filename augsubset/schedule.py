"""When a subset is selected, on which ranks or in which thread, and from which epoch it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augsubset.distributed import Ranks
from augsubset.history import Event
from augsubset.labels import DatasetInfo
from augsubset.probe import assign_to_rank
from augsubset.prober import Prober
from augsubset.selection import (
    LastLayerGradients,
    RandomSelector,
    Selection,
    Selector,
)
from augsubset.state import pack_selection, unpack_selection
from augsubset.utils.checks import AugsubsetError, check_int, check_state

__all__ = ["NewSelection", "SelectionSchedule"]


class NewSelection(NamedTuple):
    """A selection, its entry in the history, and what to call once it is in use."""

    selection: Selection
    entry: Event
    confirm: Callable[[], None]


class _Pending(NamedTuple):
    """A selection being solved in a thread, for the epoch after its probe."""

    epoch: int
    solution: Future[Selection]
    entry: Event


class SelectionSchedule:
    """Selects every R epochs, at once or in a thread while the epoch that probed continues.

    Holds no selection: it hands each one over, and remembers only what is pending. A selection
    counts as handed over when it is confirmed: a state saved before (by a signal handler, or by a
    thread while an epoch waits for a solve) still leads to the same one.

    Args:
        selector: Used from ``start_epoch`` on, a random subset before; ``None``: everything is
            selected, once and for all.
        prober: Measures gradients of the training set.
        every: Epochs between selections, R.
        start_epoch: First epoch of the schedule.
        budget: Examples to select.
        info: The dataset's labels; examples without one are not selected.
        seed: Distinguishes runs.
        background: Solve in a thread; the selection is used from the next epoch on.
        ranks: Other processes that take part; ``None``: there are none.
        timeout: How long a rank waits for another.
    """

    def __init__(
        self,
        selector: Selector | None,
        prober: Prober,
        *,
        every: int,
        start_epoch: int,
        budget: int,
        info: DatasetInfo,
        seed: int,
        background: bool,
        ranks: Ranks | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        self.selector = selector
        self.every = check_int("every", every, 1)
        self.background = background
        self._prober = prober
        self._start_epoch = check_int("start_epoch", start_epoch, 0)
        self._budget, self._info, self._seed = budget, info, seed
        self._ranks, self._timeout = ranks, timeout
        self._has_selected = False
        self._selected_period: int | None = None
        self._pending: _Pending | None = None

    @property
    def selector_name(self) -> str:
        """The selector's class, or "everything"."""
        return _name(self.selector)

    def set_seed(self, seed: int) -> None:
        """Seed selections from now on."""
        self._seed = seed

    def before_epoch(self, epoch: int) -> Iterator[NewSelection]:
        """Yield the selections that are due before an epoch: a pending one, then a new one."""
        pending = self._pending
        if pending is not None and pending.epoch < epoch:
            yield NewSelection(self._wait_for(pending), pending.entry, self._clear_pending)
        if self.is_due(epoch):
            yield from self._select(
                epoch, self._period(epoch), background=self.background and self._has_selected
            )

    def after_epoch(self) -> None:
        """Raise a pending solve's error as early as the epoch's end."""
        pending = self._pending
        if pending and pending.solution.done() and pending.solution.exception():
            self._wait_for(pending)

    def reselect(self, epoch: int, *, stands_for: int) -> NewSelection:
        """Select now, for ``epoch`` on; the selection due at ``stands_for`` is then done."""
        (new,) = self._select(epoch, self._period(stands_for), background=False)
        return new

    def _clear_pending(self) -> None:
        self._pending = None

    def is_due(self, epoch: int) -> bool:
        """Return whether an epoch begins with a new selection."""
        if self.selector is None:
            return not self._has_selected  # another selection of everything would be the same
        return not self._has_selected or self._period(epoch) != self._selected_period

    def _period(self, epoch: int) -> int:
        """Number the stretches of ``every`` epochs; negative before ``start_epoch``."""
        return (epoch - self._start_epoch) // self.every

    def _select(self, epoch: int, period: int, *, background: bool) -> Iterator[NewSelection]:
        """Probe now; solve now, or in a thread for the epoch after; ``period`` is then done."""
        if self._pending is not None:
            self._wait_for(self._pending)  # superseded, but its error is not lost
            self._pending = None
        selector = self.selector
        if selector is not None and epoch < self._start_epoch:
            selector = RandomSelector()
        entry: Event = {
            "event": "selection",
            "epoch": epoch,
            "active_from": epoch + background,
            "selector": _name(selector),
            "num_recycled": 0,
        }
        begin = time.perf_counter()
        solve = self._probe(selector, epoch, entry)
        entry["probe_seconds"] = time.perf_counter() - begin

        def run() -> Selection:
            begin = time.perf_counter()
            try:
                selection = solve()
            except Exception as error:
                error.add_note(f"Raised while {_name(selector)} selected, epoch {epoch}.")
                raise
            entry["solve_seconds"] = time.perf_counter() - begin
            selection = self._include_unlabelled(selection)
            _describe(selection, entry)
            return selection

        if background:
            thread = ThreadPoolExecutor(1, thread_name_prefix="augsubset-select")
            self._pending = _Pending(epoch, thread.submit(run), entry)
            self._selected_period = period
            thread.shutdown(wait=False)
            return

        def confirm() -> None:
            self._has_selected, self._selected_period = True, period

        yield NewSelection(run(), entry, confirm)

    def _probe(
        self, selector: Selector | None, epoch: int, entry: Event
    ) -> Callable[[], Selection]:
        """Measure gradients where the selector needs them, and return what is left to do."""
        ranks = self._ranks
        if self._info.refresh():
            self._prober.forget()
        candidates = self._info.candidates
        n = len(candidates)
        budget = min(self._budget, n)
        arguments: dict[str, Any] = {"budget": budget, "seed": self._seed, "epoch": epoch}
        if selector is None:
            return lambda: Selection.equally_weighted(candidates, n, epoch=epoch)
        if not selector.needs_gradients:
            unprobed = LastLayerGradients.unprobed(n, self._info.groups[candidates])
            gradients = replace(unprobed, indices=candidates)
        elif ranks is None:
            every = n == self._info.num_examples
            gradients, entry["num_recycled"] = self._prober.measure(None if every else candidates)
            if self._learn_classes([(gradients.indices, gradients.labels)]):
                return self._probe(selector, epoch, entry)
        else:
            indices = self._choose_shard(ranks, candidates)
            with ranks.phase("probing its shard"):
                shard, entry["num_recycled"] = self._prober.measure(indices)
            if self._info.has_classes and self._info.classes is None:
                parts = ranks.gather((shard.indices, shard.labels))
                if self._learn_classes(parts):
                    return self._probe(selector, epoch, entry)
            together = getattr(selector, "select_on_ranks", None)
            if together is not None:
                return lambda: together(
                    lambda: shard, group=ranks.group, timeout=self._timeout, **arguments
                )
            gradients = LastLayerGradients.merged(ranks.gather(shard))
        if ranks is None:
            return lambda: selector.select(gradients, **arguments)
        return lambda: _select_on_each(ranks, lambda: selector.select(gradients, **arguments))

    def _learn_classes(self, parts: Sequence[tuple[Tensor, Tensor]]) -> bool:
        """Store the labels that the first probe saw; return whether it has to be repeated."""
        if not self._info.has_classes or self._info.classes is not None:
            return False
        indices, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        return self._info.learn(indices, labels)

    def _include_unlabelled(self, selection: Selection) -> Selection:
        """Return a selection among the candidates as one of the dataset."""
        candidates, n = self._info.candidates, self._info.num_examples
        if len(candidates) == n or len(getattr(selection, "clusters", ())) != len(candidates):
            return selection
        clusters = torch.full((n,), -1)
        clusters[candidates] = selection.clusters
        return replace(selection, clusters=clusters)

    def _choose_shard(self, ranks: Ranks, candidates: Tensor) -> Tensor:
        """Return the candidates that this rank measures."""
        ages = self._prober.recorded_ages()
        if ages is None:
            return candidates[ranks.rank :: ranks.world_size]
        mine = assign_to_rank(ranks.gather(ages), ranks.rank)
        return mine[torch.isin(mine, candidates)]

    def _wait_for(self, pending: _Pending) -> Selection:
        """Return a thread's selection; after an error the next epoch selects anew."""
        try:
            return pending.solution.result()
        except BaseException:
            self._pending = self._selected_period = None
            raise

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule needs to resume; waits for a solve in the background."""
        pending = self._pending
        return {
            "has_selected": self._has_selected,
            "selected_period": self._selected_period,
            "pending": None
            if pending is None
            else {
                "epoch": pending.epoch,
                "selection": pack_selection(pending.solution.result()),
                "entry": dict(pending.entry),
            },
        }

    def check_state(self, state: Any) -> dict[str, Any]:
        """Return what :meth:`restore` takes of a saved state, or raise if it does not fit."""
        check_state("state_dict", state, ("has_selected", "selected_period", "pending"))
        pending = None
        if state["pending"] is not None:
            check_state("state_dict", state["pending"], ("epoch", "selection", "entry"))
            done: Future[Selection] = Future()
            selection = unpack_selection(state["pending"]["selection"], self._info.num_examples)
            assert selection is not None
            done.set_result(selection)
            pending = _Pending(state["pending"]["epoch"], done, dict(state["pending"]["entry"]))
        return {
            "_has_selected": bool(state["has_selected"]),
            "_selected_period": state["selected_period"],
            "_pending": pending,
        }

    def restore(self, checked: Mapping[str, Any]) -> None:
        """Restore what :meth:`check_state` returned."""
        for name, value in checked.items():
            setattr(self, name, value)


def _name(selector: Selector | None) -> str:
    return "everything" if selector is None else type(selector).__name__


def _describe(selection: Any, entry: Event) -> None:
    """Add a selection's figures to its entry in the history."""
    if not isinstance(selection, Selection):
        raise TypeError(
            f"selector must return a Selection, got {type(selection).__name__} from "
            f"{entry['selector']}."
        )
    entry["num_selected"] = len(selection)
    entry["digest"] = selection.digest
    entry["effective_sample_size"] = selection.effective_sample_size
    if selection.certificate is not None:
        entry.update(vars(selection.certificate))


def _select_on_each(ranks: Ranks, select: Callable[[], Selection]) -> Selection:
    """Return what every rank selected by itself; raise on all if they differ or one fails."""
    with ranks.phase("selecting"):
        selection = select()
    digests = ranks.gather(selection.digest)
    if len(set(digests)) > 1:
        raise AugsubsetError(
            f"ranks must agree on the selection, got digests {digests}. A selector must be a "
            "function of its arguments alone."
        )
    return selection
