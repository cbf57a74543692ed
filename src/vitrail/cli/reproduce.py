"""`vitrail reproduce`."""

from __future__ import annotations

import dataclasses

from ..flops.reproduce import count_rows, reproduce, verdicts
from ..utils.progress import bar
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, show, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("reproduce")
    made.add_argument("family", nargs="?", help=help_of(reproduce, "family"))
    made.add_function_arguments(reproduce, skip={"family"})
    return made


def run(call: Call) -> int:
    """Print the papers' tables and our own counts; returns 1 if a count is not that of a correct build."""
    results = []
    with bar("Counting", count_rows(**call.values)) as advance:
        for result in reproduce(**call.values):
            results.append(result)
            advance()
    found = verdicts(results)
    if call.as_json:
        print_json({"totals": found, "rows": [dataclasses.asdict(result) for result in results]})
        return 1 if found["wrong"] else 0
    printed = new_table("table", "row", "network", ">M reported", ">M counted", ">G reported", ">G counted", "verdict")
    for r in results:
        counted = ["-" if value is None else f"{value:.4f}" for value in (r.params, r.flops)]
        printed.add_row(
            f"{r.family} {r.table}",
            r.row,
            r.model,
            r.printed_params or "-",
            counted[0],
            r.printed_flops or "-",
            counted[1],
            r.verdict if r.verdict in ("match", "config") else f"{r.verdict}: {r.reason}",
        )
    show(printed)
    write_line(", ".join(f"{number} {verdict}" for verdict, number in found.items()))
    return 1 if found["wrong"] else 0
