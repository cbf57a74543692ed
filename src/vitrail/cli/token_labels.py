"""`vitrail token_labels`."""

from __future__ import annotations

import dataclasses

from ..engine.make_token_labels import make_token_labels
from .parsing import Call, Parser, help_of, parser_of
from .printing import print_json, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("token_labels")
    made.add_argument("teacher", help=help_of(make_token_labels, "teacher"))
    made.add_function_arguments(make_token_labels, skip={"teacher"})
    return made


def run(call: Call) -> int:
    """Make the label maps, and print how many; returns the exit code."""
    made = make_token_labels(**call.values)
    if call.as_json:
        return print_json(dataclasses.asdict(made))
    rows, columns = made.grid
    write_line(
        f"{made.made:,} label maps of {rows}x{columns} places by {made.teacher} in {made.folder}, {made.kept:,} kept"
    )
    return 0
