"""An optional progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(show: bool, total: int, what: str, unit: str) -> Iterator[Any]:
    """Show a progress bar if asked to; call its ``update()`` for each unit of work done.

    Yields:
        A tqdm bar, or ``None`` if ``show`` is False.

    Raises:
        ImportError: If ``show`` is True and tqdm is not installed.
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
