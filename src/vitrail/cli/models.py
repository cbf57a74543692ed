"""`vitrail models`."""

from __future__ import annotations

import dataclasses

from ..models.catalog import catalog
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, show, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("models")
    made.add_argument("pattern", nargs="?", default="*", help=help_of(catalog, "pattern"))
    return made


def run(call: Call) -> int:
    """List the networks; returns the exit code."""
    entries = catalog(**call.values)
    if call.as_json:
        return print_json([dataclasses.asdict(entry) for entry in entries])
    rows = new_table("network", ">parameters", ">GMACs at 224", ">top-1 reported", "weights", "licence of the weights")
    for e in entries:
        top1 = "-" if e.top1 is None else f"{e.top1:.1f}{'*' if e.caveat else ''} %"
        rows.add_row(e.name, f"{e.params:,}", f"{e.gmacs:.3f}", top1, e.weights, e.licence or "-")
    show(rows)
    for entry in entries:
        if entry.caveat:
            write_line(f"  * {entry.name}: {entry.caveat}")
    return 0
