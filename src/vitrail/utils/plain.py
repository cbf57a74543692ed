"""Conversion of data classes to nested dictionaries of plain values, and back with every type checked.

Every room may import this module; it imports only `errors` and `files`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import BadOption, UserError, nearest
from .files import shortened

T = TypeVar("T")

#: key of a field's `Limits` in its metadata
LIMITS = "limits"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of an option's values.

    Attributes:
        least: smallest value.
        most: largest value.
        above: exclusive lower bound.
        below: exclusive upper bound.
        rising: the numbers of a list must not decrease.
        filled: a list must not be empty.
        lengths: allowed numbers of entries; empty = any.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    rising: bool = False
    filled: bool = False
    lengths: tuple[int, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise `BadOption`, which names the option, its value and what is allowed."""
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, (list, tuple)):
            if self.filled and not value:
                raise BadOption(f"{name} [] must have an entry at least.")
            if self.lengths and len(value) not in self.lengths:
                counts = " or ".join(map(str, self.lengths))
                raise BadOption(f"{name} {shortened(list(value))} must have {counts} entries, not {len(value)}.")
            if self.rising and list(value) != sorted(value):
                raise BadOption(f"{name} {shortened(list(value))} must have the smaller number first.")
        wrong = [n for n in numbers if isinstance(n, (int, float)) and not self._allows(n)]
        if wrong:
            shown = shortened(list(value) if isinstance(value, tuple) else value)
            raise BadOption(f"{name} {shown} must be {self.in_words()}{' each' if len(numbers) > 1 else ''}.")

    def _allows(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def in_words(self) -> str:
        """The range in words, such as "above 0 and at most 10"."""
        ends = (("", self.least, " or more"), ("at most ", self.most, ""), ("above ", self.above, ""))
        ends = (ends[2], ends[0], ends[1], ("below ", self.below, ""))
        return " and ".join(f"{before}{end:,}{after}" for before, end, after in ends if end is not None)


def limited(default: Any, **limits: Any) -> Any:
    """A field of a data class with its default and its `Limits`, which `from_dict` checks."""
    return dataclasses.field(default=default, metadata=limits_of(**limits))


def limits_of(**limits: Any) -> dict[str, Limits]:
    """The metadata of a field with `Limits`."""
    return {LIMITS: Limits(**limits)}


#: names of Python's types in messages
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "null",
}


def to_dict(config: Any) -> dict[str, Any]:
    """A data class as nested dictionaries of plain values, ready for YAML and JSON (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """A data class from the dictionary that `to_dict` returned; missing entries keep their defaults.

    Args:
        cls: the data class.
        values: its plain values, unchecked.
        where: prefix of option names in messages, such as "optim.".

    Raises:
        UserError: an entry that does not exist (the nearest one is named), is missing and needed, or has a value of
            the wrong type or outside its limits.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where.rstrip('.') or cls.__name__} must hold options by name, not {shortened(values)}.")
    hints = typing.get_type_hints(cls)
    limits = {field.name: field.metadata.get(LIMITS, Limits()) for field in dataclasses.fields(typing.cast(Any, cls))}
    options: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            close = nearest(str(name), hints)
            hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(hints)}."
            raise UserError(f"Unknown option {shortened(f'{where}{name}')}: {hint}")
        if all(type(number) is int for number in (value if isinstance(value, (list, tuple)) else [value])):
            limits[name].check(f"{where}{name}", value)  # of numbers beyond 64 bits, too, the limit is named
        options[name] = typed(hints[name], value, f"{where}{name}")
        limits[name].check(f"{where}{name}", options[name])
    needed = [
        field.name
        for field in dataclasses.fields(typing.cast(Any, cls))
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for name in needed:
        if name not in options:
            raise UserError(f"{where}{name} is missing.")
    return cls(**options)


def typed(hint: Any, value: Any, name: str) -> Any:
    """A plain value converted to a type hint: lists become tuples and integers floats where the hint says so.

    Args:
        hint: of a data class's field: plain types, unions, Literal, list, tuple, dict, data classes.
        value: from YAML or JSON.
        name: of the option, for the message.

    Raises:
        UserError: the value has another type; the message names the option, the value and what is allowed.
    """
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, f"{name}.")
    kinds = alternatives(hint)
    for kind in kinds:
        fits, made = _fits(kind, value, name)
        if fits:
            return made
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    close = nearest(value, choices, 1) if isinstance(value, str) else []
    meant = f": did you mean {close[0]}?" if close else "."
    raise UserError(f"{name} must be {kind_of(hint)}, not {shortened(value)}{meant}")


def kind_of(hint: Any) -> str:
    """Description of a type hint for messages, such as "a whole number or null"."""
    kinds = alternatives(hint)
    # that a path may be a text goes without saying
    return " or ".join(_kind(kind) for kind in kinds if not (kind is str and Path in kinds))


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other hint itself."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _fits(kind: Any, value: Any, name: str) -> tuple[bool, Any]:
    """(True if a value fits a type, the value converted to it)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True, value
    if dataclasses.is_dataclass(kind):
        return (True, from_dict(typing.cast(type, kind), value, f"{name}.")) if isinstance(value, dict) else (False, 0)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args), value
    if origin is list or kind is list:
        item = args[0] if args else Any
        return (True, [typed(item, v, name) for v in value]) if isinstance(value, (list, tuple)) else (False, 0)
    if origin is tuple or kind is tuple:
        if not isinstance(value, (list, tuple)):
            return False, None
        hints = (args[0],) * len(value) if len(args) == 2 and args[1] is ... else args or (Any,) * len(value)
        if len(hints) != len(value):
            return False, None
        return True, tuple(typed(hint, v, name) for hint, v in zip(hints, value, strict=True))
    if origin is dict or kind is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value), value
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (True, float(value)) if is_number and _is_finite(value) else (False, None)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63, value
    if kind in (None, type(None)):
        return value is None, value
    return isinstance(value, kind), value


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _kind(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list or hint is list:
        return "a list" + (f" ({_kind(args[0])} each)" if args else "")
    if origin is tuple or hint is tuple:
        return f"a list of {len(args)}" if args and args[-1] is not ... else "a list"
    if origin is dict or hint is dict:
        return "options by name"
    return KINDS.get(hint, getattr(hint, "__name__", str(hint)))
