"""Checks of constructor options; errors name the option, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_choice(option: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise `ValueError` naming the option, the value and what is allowed, unless `value` is in `allowed`."""
    if value not in allowed:
        raise ValueError(f"{option}={value!r} is not allowed; choose one of {', '.join(repr(a) for a in allowed)}")


def per_stage(option: str, value: Any, stages: int = 4) -> tuple[Any, ...]:
    """One value a stage: a single value is repeated, a list or tuple must have `stages` entries.

    Raises:
        ValueError: when a list of another length is given.
    """
    if isinstance(value, (list, tuple)):
        if len(value) != stages:
            raise ValueError(f"{option}={value!r} has {len(value)} entries; give one value or {stages}, one per stage")
        return tuple(value)
    return (value,) * stages


def blocks_per_stage(depths: Any) -> tuple[int, ...]:
    """Number of blocks of each stage.

    Raises:
        ValueError: a list of another length, or a value that is not a number of blocks.
    """
    counts = per_stage("depths", depths)
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
        raise ValueError(f"depths={depths!r} is not allowed; a stage has a whole number of blocks, 0 or more")
    return counts


def check_divides(option: str, value: int, divisor: int, meaning: str) -> None:
    """Raise `ValueError` unless `divisor` divides `value`; `meaning` says what the divisor is."""
    if divisor <= 0 or value % divisor:
        raise ValueError(f"{option}={value!r} must be a multiple of {meaning}, which is {divisor}")
