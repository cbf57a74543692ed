"""Checks of the options of analyses; errors name the option, its value and what is allowed."""

from __future__ import annotations

from typing import Any, get_args

from ..errors import BadOption


def check_choice(option: str, value: Any, choices: Any) -> None:
    """Check that a value is one of a `Literal` type.

    Raises:
        BadOption: it is not.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise BadOption(f"{option}={value!r} is not allowed; choose one of {', '.join(map(str, allowed))}.")


def check_count(option: str, value: Any, least: int = 1) -> None:
    """Check that a value is a whole number of at least `least`.

    Raises:
        BadOption: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadOption(f"{option}={value!r} is not allowed; give a whole number, {least} or more.")
