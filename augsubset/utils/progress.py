"""A bar with an estimate of the time left, for those who asked for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(show: bool, total: int, what: str, unit: str) -> Iterator[Any]:
    """Show how many units of some work are done, if asked; the work calls ``update()``.

    Yields:
        tqdm's bar, or ``None``.

    Raises:
        ImportError: If one is asked for without tqdm.
    """
    if not show:
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            'progress=True needs tqdm, which is not installed: pip install "augsubset[progress]".'
        ) from error
    with tqdm(total=total, desc=what, unit=unit) as bar:
        yield bar
