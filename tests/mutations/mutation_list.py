"""The deliberate mistakes, one TOML file a family.

A file names in `tests` what is expected to catch its mistakes, the likeliest first (files, folders or pytest's node
ids). A `[[mutation]]` has an `id`, one sentence `mistake`, the `file` below `src/vitrail`, its text `old`, which must
occur there exactly once, the text `new` in its place, and may name `tests` of its own.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FAMILIES = ("pslt", "lvt", "volo", "pale", "emsnet", "mat", "partialformer", "mixers", "layers", "flops")


class Misfit(ValueError):
    """The text to replace is not there exactly once, or the replacement changes nothing."""


@dataclass(frozen=True)
class Mutation:
    """One deliberate mistake."""

    family: str
    id: str
    mistake: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The text of `file` with the mistake in it.

        Raises:
            Misfit: the list no longer fits the sources.
        """
        found = text.count(self.old)
        if found != 1:
            raise Misfit(f"its text occurs {found} times in {self.file}")
        if self.old == self.new:
            raise Misfit("old and new are the same")
        return text.replace(self.old, self.new)


def read(family: str) -> list[Mutation]:
    """The mistakes of a family, in the order of its file."""
    listed = tomllib.loads((HERE / f"{family}.toml").read_text(encoding="utf-8"))
    entries = [{"tests": listed["tests"], **entry} for entry in listed["mutation"]]
    return [Mutation(family, **{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
