"""`vitrail reproduce`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from ..flops.reproduce import Result, count_rows, reproduce, result_columns, verdicts
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
    for (family, table), rows in groupby(results, key=lambda result: (result.family, result.table)):
        _show_table(f"{family} {table}", list(rows))
    write_line(", ".join(f"{number} {verdict}" for verdict, number in found.items()))
    return 1 if found["wrong"] else 0


def _show_table(title: str, rows: Sequence[Result]) -> None:
    """Print one table of a paper, and under it what there is to say about its rows."""
    results = result_columns(rows)
    sources = any(r.source for r in rows)
    printed = new_table(
        *("row", "network", ">M reported", ">M counted", ">%", ">G reported", ">G counted", ">%"),
        *(f">{label}" for label in results.values()),
        *(["printed in"] if sources else []),
        "verdict",
        title=title,
    )
    for r in rows:
        params, flops = (_number(value, "+.2f") for value in r.differences)
        printed.add_row(
            *(r.row, r.model or "-"),
            *(r.printed_params or "-", _number(r.params, ".4f"), params),
            *(r.printed_flops or "-", _number(r.flops, ".4f"), flops),
            *(r.printed_result(name) for name in results),
            *([r.source] if sources else []),
            r.verdict,
        )
    show(printed)
    for r in rows:
        if r.verdict not in ("match", "config"):
            write_line(f"  {r.row}: {r.verdict}: {r.reason}")
    for caveat in dict.fromkeys(caveat for r in rows for caveat in r.caveats):
        write_line(f"  * {caveat}")
    write_line("")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
