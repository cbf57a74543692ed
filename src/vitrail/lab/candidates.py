"""What a laboratory compares: networks by name and options, as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from ..errors import UserError
from ..factory import build_model
from ..models.mixers import MIXERS
from .own import import_mixer

#: the model that takes any mixer
HOST = "lab_plain"


@dataclass(frozen=True)
class Candidate:
    """One network of a comparison.

    Attributes:
        name: what tables and folders call it.
        model: a name of `timm.create_model`.
        model_options: of its constructor; plain values, as JSON gives them back.
    """

    name: str
    model: str
    model_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            plain = json.loads(json.dumps(self.model_options, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"Candidate {self.name}: its options are no plain values: {error}.") from error
        object.__setattr__(self, "model_options", plain)

    def build(self, num_classes: int) -> nn.Module:
        """The network with fresh weights.

        Raises:
            UserError: unknown model or option, or impossible value.
        """
        return build_model(self.model, self.model_options, num_classes)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Candidate:
        """Inverse of `to_dict`.

        Raises:
            UserError: other entries, or values of other types.
        """
        types = {"name": str, "model": str, "model_options": dict}
        if not isinstance(values, dict) or set(values) != set(types):
            raise UserError(f"A candidate has the entries {', '.join(types)}.")
        for name, kind in types.items():
            if not isinstance(values[name], kind):
                raise UserError(f"Candidate: {name}={values[name]!r} is not allowed; give a {kind.__name__}.")
        return cls(**values)


def candidates(
    mixers: Sequence[str], options: dict[str, Any] | None = None, mixer_options: dict[str, Any] | None = None
) -> list[Candidate]:
    """The plain network with each of several mixers.

    Args:
        mixers: names of `MIXERS`, or "module:Class" of a user's own, which is imported.
        options: of `lab_plain`, the same for all, such as {"stem_stride": 2}.
        mixer_options: such as {"window_size": 4}, for those of the mixers that have the option.

    Raises:
        UserError: unknown mixer, a mixer named twice, or an option that none of them has.
    """
    kinds = [import_mixer(name) for name in mixers]
    wanted = dict(mixer_options or {})
    for option in wanted:
        if not any(option in kind.options for kind in kinds):
            known = sorted({known for kind in kinds for known in kind.options})
            has = f"they have {', '.join(known)}" if known else "they have none"
            raise UserError(f"No mixer among {', '.join(mixers)} has an option {option!r}; {has}.")
    twice = sorted({kind.name for kind in kinds if sum(other is kind for other in kinds) > 1})
    if twice:
        raise UserError(f"Mixer {', '.join(twice)} is named twice.")
    found = []
    for kind in kinds:
        own = {name: value for name, value in wanted.items() if name in kind.options}
        values = {**(options or {}), "mixer": kind.name, **({"mixer_options": own} if own else {})}
        found.append(Candidate(kind.name, HOST, values))
    return found


#: the mixers that are compared where none is named: the floor, and the one of each paper
DEFAULT_MIXERS = ("identity", "ladder", "rasa", "pale_parallel", "ems", "mat", "partial")
#: in the place of names: all of them
ALL = "all"


def all_mixers() -> list[str]:
    """Names of all mixers that come with the library."""
    return [name for name, kind in MIXERS.items() if kind.made_of is None]
