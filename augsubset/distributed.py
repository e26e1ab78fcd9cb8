"""Collectives with a timeout; an error on one rank is raised on all."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from augsubset.utils.checks import AugsubsetError, check_int
from augsubset.utils.rng import MAX_SEED

__all__ = ["Ranks", "check_world_size", "choose_seed", "world_size"]


def world_size() -> int:
    """Return the number of ranks of torch.distributed, 1 if it is not initialised.

    Raises:
        AugsubsetError: If a launcher started several processes and torch.distributed is not
            initialised yet: each would assume that it is the only one.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched.isdecimal() and int(launched) > 1 and "RANK" in os.environ:
        raise AugsubsetError(
            f"torch.distributed must be initialised first, got WORLD_SIZE={launched} from a "
            "launcher: every rank would train on everything. Call "
            "torch.distributed.init_process_group before the loader is constructed."
        )
    return 1


class _CollectiveError(AugsubsetError):
    """A collective failed: the other ranks raise as well, or are gone."""


def check_world_size(expected: int) -> None:
    """Raise if the number of ranks is another than a loader was constructed for."""
    if world_size() != expected:
        raise AugsubsetError(
            f"the number of ranks must stay {expected}, got {world_size()}. Construct the loader "
            "after init_process_group; in Lightning, by prepare() in the hook train_dataloader()."
        )


class Ranks:
    """A group of processes, and the values they exchange.

    Values travel over gloo, from CPU to CPU; with another backend a gloo group is created, by a
    collective call.

    Args:
        group: The processes; ``None``: all.
        timeout: How long a rank waits for the slowest before it raises.

    Raises:
        AugsubsetError: If torch.distributed is not initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: timedelta) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise AugsubsetError(
                "torch.distributed must be initialised before a distributed selection. Call "
                "torch.distributed.init_process_group, or use select_coreset."
            )
        self._timeout = timeout
        self.group: Any = group
        if dist.get_backend(group) != "gloo":
            self.group = dist.new_group(
                dist.get_process_group_ranks(group or dist.group.WORLD),
                timeout=timeout,
                backend="gloo",
                use_local_synchronization=True,
            )
        self.rank = dist.get_rank(self.group)
        self.world_size = dist.get_world_size(self.group)

    def meet(self) -> None:
        """Wait for all ranks, up to the timeout: a collective without one of them would hang."""
        with self.together():
            dist.monitored_barrier(self.group, self._timeout, wait_all_ranks=True)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order."""
        self.meet()
        values: list[Any] = [None] * self.world_size
        with self.together():
            dist.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a collective call; if it fails, raise which rank is gone or late."""
        begin = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            raise _CollectiveError(self._explain(error, time.monotonic() - begin)) from error

    def _explain(self, error: RuntimeError, seconds: float) -> str:
        """Return why a call failed; before the timeout that is always a rank that died."""
        if seconds >= self._timeout.total_seconds():
            return (
                f"every rank must take part within {self._timeout}, got on rank {self.rank}: "
                f"{error}"
            )
        here = f"after {seconds:.1f} s on rank {self.rank}"
        # Rank 0 meets each of the others, and they meet it alone.
        if dead := re.search(r"Ranks ([\d, ]+) failed to pass", str(error)):
            return f"every rank must take part, got rank {dead[1]} gone {here}. Its log says why."
        return (
            f"every rank must take part within {self._timeout}, got no answer {here}: a rank is "
            f"gone, or timed out waiting for another. {error}"
        )

    @classmethod
    def make_group(cls, timeout: timedelta) -> Ranks:
        """Return all ranks in a new group, whose calls do not mix with the trainer's.

        A collective call.
        """
        group: Any = dist.new_group(timeout=timeout, backend="gloo")
        return cls(group, timeout)

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """Raise on every rank if the block raised on one, so that no rank goes on alone."""
        error: Exception | None = None
        try:
            yield
        except _CollectiveError:
            raise
        except Exception as raised:  # noqa: BLE001 - whatever it is, the others wait for us
            error = raised
        failures = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise _CollectiveError(f"rank {rank} failed while {what}: {failure}")

    def check_same(self, mine: Mapping[str, Any]) -> None:
        """Raise on all ranks if they differ in one of these named values; a collective call.

        Raises:
            AugsubsetError: Naming the first that differs, and which ranks have what.
        """
        every = self.gather(dict(mine))
        for name in mine:
            values = [each.get(name) for each in every]
            distinct = [value for i, value in enumerate(values) if value not in values[:i]]
            if len(distinct) > 1:
                found = "; ".join(
                    f"{value!r} on ranks {[i for i, each in enumerate(values) if each == value]}"
                    for value in distinct
                )
                raise AugsubsetError(
                    f"ranks must have the same {name}, got {found}. Give all the same arguments, "
                    "data and checkpoint."
                )

    def check_shares(self, rank: int, expected: Sequence[Sequence[int]], first: Any) -> None:
        """Check that each rank's first keys are the start of its own share of one order.

        Args:
            rank: The share that this process should have.
            expected: The first keys of each share.
            first: The first keys that arrived.

        Raises:
            AugsubsetError: On all ranks, if the data is not sharded, or sharded twice.
        """
        if self.world_size % len(expected):
            raise AugsubsetError(
                f"ranks must share the order evenly, got num_replicas={len(expected)} for "
                f"{self.world_size} ranks: sharding is missing."
            )
        shares = self.gather((rank, [list(keys) for keys in expected], list(first)))
        for other, (share, order, keys) in enumerate(shares):
            sharing = sum(each[0] == share for each in shares)
            if sharing != self.world_size // len(expected):
                raise AugsubsetError(
                    f"each rank must have its own share, got rank={share} in {sharing} of "
                    f"{self.world_size} processes: sharding is missing."
                )
            if order != shares[0][1]:
                raise AugsubsetError(
                    f"ranks must share one order from the same position, got rank {other} unlike "
                    "rank 0. Give all ranks the same seed, data and checkpoint."
                )
            if keys != order[share]:
                raise AugsubsetError(
                    f"rank {other} must begin with its share of the order, got other rows: "
                    "something else shards this loader a second time."
                )


def choose_seed(seed: int | None, found: int | None, ranks: Ranks | None) -> int:
    """Return the seed of a run: as given, as found, or torch's; of these two rank 0's on all ranks.

    Nothing is drawn: torch reports its seed, even if none was set.

    Args:
        seed: The loader's argument.
        found: What the user's DataLoader was seeded with.
        ranks: The processes that train together; a collective call where there are any.
    """
    if found is None:
        found = torch.initial_seed() & MAX_SEED
    if ranks is not None:
        found = ranks.gather(found)[0]
    return found if seed is None else check_int("seed", seed, 0, MAX_SEED)
