"""`vitrail reproduce`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby

from ..flops.reproduce import Result, count_rows, reproduce, result_columns, verdicts
from ..flops.runs import Comparison, RunRows, compare_runs
from ..utils.progress import bar
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, show, write_line


def parser() -> Parser:
    """Its options."""
    made = parser_of("reproduce")
    made.add_argument("family", nargs="?", help=help_of(reproduce, "family"))
    made.add_function_arguments(reproduce, skip={"family"})
    made.add_argument("--runs", nargs="+", default=[], help=help_of(compare_runs, "runs"))
    return made


def run(call: Call) -> int:
    """Print the papers' tables and our own counts, or runs beside printed results; returns the exit code.

    The code is 1 if a count is not that of a correct build.
    """
    runs = call.values.pop("runs")
    if runs:
        count_rows(**call.values)  # refuses an unknown family or table
        return _print_runs(list(compare_runs(runs, **call.values)), call.as_json)
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


def _print_runs(found: Sequence[RunRows], as_json: bool) -> int:
    """Print runs beside the printed rows about their networks; returns the exit code."""
    if as_json:
        return print_json({"runs": [dataclasses.asdict(run) for run in found]})
    for run in found:
        size = "{}x{}".format(*run.input_size)
        title = f"{run.run}: {run.model}{f' under {run.head}' if run.head else ''}, {run.task}, {size}"
        if run.rows:
            _show_comparisons(title, run.rows)
        else:
            write_line(f"{title}: no printed row: {run.why_none}.")
        write_line("")
    return 0


def _show_comparisons(title: str, rows: Sequence[Comparison]) -> None:
    """Print the rows about one run, a line a result, and under them what is unlike the paper's protocol."""
    printed = new_table("table", "row", "result", ">reported", ">run", ">difference", title=title)
    for r in rows:
        for result in r.results.values():
            heading = f"{result['label']}, {result['unit']}" if result["unit"] else result["label"]
            printed.add_row(
                *(f"{r.family} {r.table}", r.row, heading),
                result["printed"] + ("*" if result["caveat"] else ""),
                *(_number(result["run"], ".2f"), _number(result["difference"], "+.2f")),
            )
    show(printed)
    for r in rows:
        write_line(f"  {r.table}, {r.row}: {'; '.join(r.unlike) or 'nothing found unlike the paper'}")
    for caveat in dict.fromkeys(result["caveat"] for r in rows for result in r.results.values() if result["caveat"]):
        write_line(f"  * {caveat}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
