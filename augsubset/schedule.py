"""When a subset is chosen, by whom, and from which epoch on it is in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augsubset.distributed import Ranks
from augsubset.probe.logit_cache import dealt
from augsubset.selection import Certificate, RandomSelector, Selection, Selector
from augsubset.selection.gradients import LastLayerGradients
from augsubset.utils.checks import AugsubsetError, check_int, check_state

__all__ = ["Probed", "SelectionSchedule"]

_ARRAYS = ("indices", "weights", "gains", "clusters")


class Probed(NamedTuple):
    """What a probe found, and how much of it was recorded while training."""

    gradients: LastLayerGradients
    num_recycled: int = 0


class _Solving(NamedTuple):
    """A selection that a thread is at, and the epoch whose probe it is from."""

    epoch: int
    selection: Future[Selection]
    entry: dict[str, Any]


class SelectionSchedule:
    """A selection every so many epochs, solved at once or in a thread for the epoch after.

    Args:
        selector: The rule from ``start_epoch`` on; random before.
        every: Epochs between selections, R.
        start_epoch: First epoch of the schedule.
        budget: Examples to select.
        num_examples: Examples in the dataset.
        seed: Distinguishes runs.
        background: Solve in a thread while the epoch that probed trains on.
        probe: Measures the examples with these indices, ``None``: all.
        recorded: Returns how old what this process need not probe is, ``(n,)`` ints, -1 for what
            it must; ``None``: it must probe all.
        record: Called with an entry of the history and the selection, when it is put in force.
        ranks: Other processes that take part; ``None``: there are none.
        timeout: How long a rank waits for another.
    """

    def __init__(
        self,
        selector: Selector,
        *,
        every: int,
        start_epoch: int,
        budget: int,
        num_examples: int,
        seed: int,
        background: bool,
        probe: Callable[[Tensor | None], Probed],
        recorded: Callable[[], Tensor] | None,
        record: Callable[[dict[str, Any], Selection], None],
        ranks: Ranks | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        self.selector = selector
        self.latest: Selection | None = None
        """The selection in force from the next epoch that starts."""
        self.every = check_int("every", every, 1)
        self._start_epoch = check_int("start_epoch", start_epoch, 0)
        self._budget, self._num_examples, self._seed = budget, num_examples, seed
        self.background = background
        self._probe, self._recorded, self._record = probe, recorded, record
        self._ranks, self._timeout = ranks, timeout
        self._selected_period: int | None = None
        self._solving: _Solving | None = None

    def before(self, epoch: int) -> None:
        """Do what is due before an epoch: take over what was solved, select anew."""
        if self._solving is not None and self._solving.epoch < epoch:
            entry = self._solving.entry
            self._put_in_force(self._result_of(self._solving), entry)
        if self._period(epoch) != self._selected_period or self.latest is None:
            self._select(epoch, background=self.background and self.latest is not None)

    def after(self) -> None:
        """Raise what a thread raised, if it did: as early as an epoch's end."""
        solving = self._solving
        if solving and solving.selection.done() and solving.selection.exception():
            self._result_of(solving)

    def reselect(self, epoch: int, *, stands_for: int) -> Selection:
        """Select now, in force from ``epoch`` on; the one due at ``stands_for`` is done with it."""
        self._select(epoch, background=False)
        self._selected_period = self._period(stands_for)
        assert self.latest is not None
        return self.latest

    def _period(self, epoch: int) -> int:
        """Number the stretches of ``every`` epochs; negative before ``start_epoch``."""
        return (epoch - self._start_epoch) // self.every

    def _select(self, epoch: int, background: bool) -> None:
        """Probe now, and solve: now, or in a thread for the epoch after."""
        if self._solving is not None:
            self._result_of(self._solving)  # something newer is asked for
        selector = self.selector if epoch >= self._start_epoch else RandomSelector()
        entry: dict[str, Any] = {
            "event": "selection",
            "epoch": epoch,
            "in_force_from": epoch + background,
            "selector": type(selector).__name__,
        }
        begin = time.perf_counter()
        solve = self._prepared(selector, epoch, entry)
        entry["probe_seconds"] = time.perf_counter() - begin

        def timed() -> Selection:
            begin = time.perf_counter()
            try:
                found = solve()
            except Exception as error:
                error.add_note(f"Raised while {type(selector).__name__} selected, epoch {epoch}.")
                raise
            entry["solve_seconds"] = time.perf_counter() - begin
            if not isinstance(found, Selection):
                raise TypeError(
                    f"selector must return a Selection, got {type(found).__name__} from "
                    f"{type(selector).__name__}."
                )
            return found

        if background:
            thread = ThreadPoolExecutor(1, thread_name_prefix="augsubset-select")
            self._solving = _Solving(epoch, thread.submit(timed), entry)
            thread.shutdown(wait=False)
        else:
            self._put_in_force(timed(), entry)
        self._selected_period = self._period(epoch)

    def _prepared(
        self, selector: Selector, epoch: int, entry: dict[str, Any]
    ) -> Callable[[], Selection]:
        """Probe, and return what is left to do."""
        ranks, n = self._ranks, self._num_examples
        arguments: dict[str, Any] = {"budget": self._budget, "seed": self._seed, "epoch": epoch}
        entry["num_recycled"] = 0
        if not selector.needs_gradients:
            gradients = LastLayerGradients.unprobed(n)
            if ranks is None:
                return lambda: selector.select(gradients, **arguments)
            return lambda: _agreed(ranks, lambda: selector.select(gradients, **arguments))
        if ranks is None:
            gradients, entry["num_recycled"] = self._probe(None)
            return lambda: selector.select(gradients, **arguments)
        indices = self._shard(ranks)
        with ranks.phase("probing its shard"):
            shard, entry["num_recycled"] = self._probe(indices)
        together = getattr(selector, "select_on_ranks", None)
        if together is not None:
            return lambda: together(
                lambda: shard, group=ranks.group, timeout=self._timeout, **arguments
            )
        gradients = LastLayerGradients.merged(ranks.gather(shard))
        return lambda: _agreed(ranks, lambda: selector.select(gradients, **arguments))

    def _shard(self, ranks: Ranks) -> Tensor:
        """Return the examples that this rank measures."""
        if self._recorded is None:
            return torch.arange(ranks.rank, self._num_examples, ranks.world_size)
        return dealt(ranks.gather(self._recorded()), ranks.rank)

    def _result_of(self, solving: _Solving) -> Selection:
        """Wait for a thread's selection; after an error the next epoch selects anew."""
        self._solving = None
        try:
            return solving.selection.result()
        except BaseException:
            self._selected_period = None
            raise

    def _put_in_force(self, selection: Selection, entry: dict[str, Any]) -> None:
        if len(selection) > self._budget:
            raise ValueError(
                f"selection must hold at most budget={self._budget} examples, got "
                f"{len(selection)}. The length of an epoch is fixed."
            )
        if int(selection.indices.max()) >= self._num_examples:
            raise ValueError(
                f"selection must hold dataset indices below {self._num_examples}, got "
                f"{int(selection.indices.max())} from {entry['selector']}. Its indices are "
                "gradients.indices of the rows it chose."
            )
        self.latest = selection
        entry["num_selected"] = len(selection)
        entry["effective_sample_size"] = selection.effective_sample_size
        entry["digest"] = selection.digest
        if selection.certificate is not None:
            entry.update(vars(selection.certificate))
        self._record(entry, selection)

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return what the schedule would need to go on; waits for a thread that solves."""
        solved = None
        if self._solving is not None:
            solved = {
                "epoch": self._solving.epoch,
                "selection": pack_selection(self._solving.selection.result()),
                "entry": dict(self._solving.entry),
            }
        return {
            "selected_period": self._selected_period,
            "latest": pack_selection(self.latest),
            "solved": solved,
        }

    def checked(self, state: Any) -> dict[str, Any]:
        """Return a saved state as it will be taken over, or refuse it; nothing is changed."""
        check_state("state_dict", state, ("selected_period", "latest", "solved"))
        solved = None
        if state["solved"] is not None:
            check_state("state_dict", state["solved"], ("epoch", "selection", "entry"))
            done: Future[Selection] = Future()
            found = unpack_selection(state["solved"]["selection"], self._num_examples)
            assert found is not None
            done.set_result(found)
            solved = _Solving(state["solved"]["epoch"], done, dict(state["solved"]["entry"]))
        return {
            "_selected_period": state["selected_period"],
            "latest": unpack_selection(state["latest"], self._num_examples),
            "_solving": solved,
        }

    def take(self, checked: Mapping[str, Any]) -> None:
        """Take over what :meth:`checked` returned."""
        for name, value in checked.items():
            setattr(self, name, value)


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
    """Return the selection again, or refuse what is none or of another dataset.

    Raises:
        ValueError: If something is missing or the digest does not fit.
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


def _agreed(ranks: Ranks, select: Callable[[], Selection]) -> Selection:
    """Return what each rank selected by itself, or raise on all where they differ or one fails."""
    with ranks.phase("selecting"):
        selection = select()
    digests = ranks.gather(selection.digest)
    if len(set(digests)) > 1:
        raise AugsubsetError(
            f"ranks must agree on the selection, got digests {digests}. A rule must be a function "
            "of its arguments alone."
        )
    return selection
