"""The package's own exception, and the one check that every enumerated argument goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["AugsubsetError", "check_choice"]


class AugsubsetError(RuntimeError):
    """A right call at the wrong time, such as a second live iterator over one loader.

    Bad values raise :class:`ValueError` and bad types :class:`TypeError` instead.
    """


def check_choice(name: str, value: Any, choices: Sequence[Any], hint: str = "") -> None:
    """Refuse a value that is not one of the known ones, and name those.

    Args:
        name: The argument's name, as the caller wrote it.
        value: What was passed.
        choices: Everything that exists today.
        hint: What to do instead; appended to the message.

    Raises:
        ValueError: If ``value`` equals none of ``choices`` (``True`` does not equal ``1`` here).
    """
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    known = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{name} must be one of {known}, got {name}={value!r}. {hint}".rstrip())
