"""`vitrail models`."""

from __future__ import annotations

import dataclasses
import fnmatch

from ..errors import UserError, unknown
from ..models.catalog import catalog
from .parsing import Call, Parser, parser_of
from .printing import new_table, print_json, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("models")
    made.add_argument("pattern", nargs="?", default="*", help="shell pattern of names, such as 'mat_*'")
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    return models(**call.values, as_json=call.as_json)


def models(pattern: str = "*", as_json: bool = False) -> int:
    """List the networks whose name matches a shell pattern."""
    entries = [entry for entry in catalog() if fnmatch.fnmatchcase(entry.name, pattern)]
    if not entries:
        raise UserError(unknown("model", pattern, [entry.name for entry in catalog()]))
    if as_json:
        return print_json([dataclasses.asdict(entry) for entry in entries])
    rows = new_table("network", ">parameters", ">GMACs at 224", ">top-1 reported", "weights", "licence of the weights")
    for e in entries:
        top1 = "-" if e.top1 is None else f"{e.top1:.1f} %"
        rows.add_row(e.name, f"{e.params:,}", f"{e.gmacs:.3f}", top1, e.weights, e.licence or "-")
    show(rows)
    return 0
