"""`vitrail models`."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..checkpoint.sources import TIMM
from ..models.alternatives import Alternative, alternative_to
from ..models.catalog import Entry, catalog
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
    others = [alternative_to(entry.params, entry.gmacs) for entry in entries]
    if call.as_json:
        return print_json([_plain(entry, other) for entry, other in zip(entries, others, strict=True)])
    rows = new_table("network", ">parameters", ">GMACs at 224", ">top-1 reported", "weights", "timm's of equal cost")
    for e, other in zip(entries, others, strict=True):
        top1 = "-" if e.top1 is None else f"{e.top1:.1f}{'*' if e.caveat else ''} %"
        there = "-" if other is None else f"{other.name} {other.top1:.1f} %"
        rows.add_row(e.name, f"{e.params:,}", f"{e.gmacs:.3f}", top1, e.weights, there)
    show(rows)
    for entry in entries:
        if entry.licence:
            write_line(f"  {entry.name}: {entry.weights}, licence: {entry.licence}; {_how_to_load(entry)}")
    write_line(
        "  architecture only: nobody published weights; train it, or start from the network of "
        "timm in the last column (most multiply-adds: a tenth more, parameters: 60 % more) with trained weights, by "
        "--model NAME --pretrained; dist = trained with a teacher"
    )
    for entry in entries:
        if entry.caveat:
            write_line(f"  * {entry.name}: {entry.caveat}")
    return 0


def _plain(entry: Entry, other: Alternative | None) -> dict[str, Any]:
    """A network as plain values."""
    alternative = None if other is None else {**dataclasses.asdict(other), "name": f"{TIMM}{other.name}"}
    return {**dataclasses.asdict(entry), "load": _how_to_load(entry), "alternative": alternative}


def _how_to_load(entry: Entry) -> str:
    """How a network's trained weights are loaded; empty where there are none."""
    if not entry.licence:
        return ""
    return f"vitrail predict FILE IMAGE --model {entry.name}, or vitrail train --model {entry.name} --init FILE"
