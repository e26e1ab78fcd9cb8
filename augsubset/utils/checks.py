"""The package's own exception, and common checks of arguments."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["AugsubsetError", "check_choice", "check_int", "check_number", "check_state"]


class AugsubsetError(RuntimeError):
    """A valid call in an invalid state, such as a second live iterator over one loader.

    Bad values raise :class:`ValueError` and bad types :class:`TypeError` instead.
    """


def check_choice(name: str, value: Any, choices: Sequence[Any], hint: str = "") -> None:
    """Check that a value is one of the valid choices.

    Args:
        name: Name of the argument.
        value: Its value.
        choices: The valid values.
        hint: What to do instead; appended to the error message.

    Raises:
        ValueError: If no choice has the same type and value: ``True`` does not equal ``1`` here.
    """
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return
    known = ", ".join(repr(choice) for choice in choices)
    raise ValueError(f"{name} must be one of {known}, got {name}={value!r}. {hint}".rstrip())


def check_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return an integer of any type, such as numpy's, as an int.

    Raises:
        TypeError: If it is not an integer; a bool is not.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}.")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bounds}, got {name}={number}.")
    return number


def check_number(name: str, value: Any) -> None:
    """Check that a value is a real number, of Python or numpy.

    Raises:
        TypeError: If it is not; a bool is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}.")


def check_state(
    name: str, state: Any, keys: Iterable[str], same: Mapping[str, Any] | None = None
) -> None:
    """Check that a saved state is complete and belongs to the same run.

    Args:
        name: Name of the argument.
        state: Its value.
        keys: Keys that it must have.
        same: Values that it must agree with.

    Raises:
        TypeError: If it is not a mapping.
        ValueError: If a key is missing or a value differs.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a mapping, got {type(state).__name__}.")
    missing = sorted(set(keys) - set(state))
    if missing:
        raise ValueError(f"{name} must be a saved state, got one without {missing}.")
    for key, value in (same or {}).items():
        if state[key] != value:
            raise ValueError(
                f"{name} must come from a run with the same {key}, got {key}={state[key]!r} for "
                f"{key}={value!r} here."
            )
