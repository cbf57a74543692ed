"""Plain values with their types checked: what comes back is what went in, or one sentence that names the option."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vitrail.checkpoint.description import WeightsMeta
from vitrail.config.train import TrainConfig
from vitrail.errors import UserError
from vitrail.utils.plain import from_dict, to_dict, typed


@dataclass
class Inner:
    x: float = 1.0
    kind: Literal["a", "b"] = "a"


@dataclass
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    size: int | tuple[int, int] | None = None
    many: list[float] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    on: bool = False


def test_round_trips():
    value = Outer("n", Inner(2.0, "b"), (3, 4), [1.0, 2.5], {"a": [1]}, True)
    assert from_dict(Outer, to_dict(value)) == value
    assert from_dict(TrainConfig, to_dict(TrainConfig())) == TrainConfig()
    meta = WeightsMeta("mat_1", classes=["a", "b"])
    assert from_dict(WeightsMeta, to_dict(meta)) == meta


def test_whole_numbers_become_floats_and_lists_tuples():
    assert typed(float, 3, "x") == 3.0
    assert typed(int | tuple[int, int] | None, [3, 4], "x") == (3, 4)
    assert typed(tuple[float, ...] | None, [1, 2, 3], "x") == (1.0, 2.0, 3.0)
    assert from_dict(Outer, {"name": "n", "many": [1]}).many == [1.0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": 5}, "name must be a text, not 5"),
        ({}, "name is missing"),
        ({"name": "n", "inner": None}, "inner must hold options by name, not None"),
        ({"name": "n", "inner": {"x": "1"}}, "inner.x must be a number, not '1'"),
        ({"name": "n", "inner": {"x": True}}, "inner.x must be a number, not True"),
        ({"name": "n", "inner": {"x": float("nan")}}, "inner.x must be a number, not nan"),
        ({"name": "n", "inner": {"x": 10**400}}, "inner.x must be a number"),
        ({"name": "n", "inner": {"kind": "c"}}, "inner.kind must be one of a, b, not 'c'"),
        ({"name": "n", "inner": {"kindd": "a"}}, "Unknown option 'inner.kindd': did you mean kind"),
        ({"name": "n", "size": [1]}, "size must be a whole number or a list of 2 or null"),
        ({"name": "n", "size": True}, "size must be a whole number or a list of 2 or null, not True"),
        ({"name": "n", "size": ["a", 1]}, "size must be a whole number, not 'a'"),
        ({"name": "n", "many": "x"}, "many must be a list"),
        ({"name": "n", "many": {"a": 1}}, "many must be a list"),
        ({"name": "n", "free": [1]}, "free must be options by name, not"),
        ({"name": "n", "free": {1: 2}}, "free must be options by name, not"),
        ({"name": "n", "on": 1}, "on must be true or false, not 1"),
        ([], "Outer must hold options by name"),
        (None, "Outer must hold options by name"),
    ],
)
def test_wrong_types(values, says):
    with pytest.raises(UserError, match=says.replace("[", r"\[")):
        from_dict(Outer, values)
