"""`vitrail report`."""

from __future__ import annotations

from typing import Any

from vitrail_commands import COMMANDS

from ..config.data import DataConfig
from ..report.parts import plain_metrics
from ..report.report import report
from .help_page import OWN_DATA, Page, sections_of
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("report", page)
    made.add_argument("run", help=help_of(report, "run"))
    made.add_class_arguments(DataConfig, "data", help=help_of(report, "data"))
    made.add_function_arguments(report, skip={"run", "data"})
    return made


def page(made: Parser, given: Any) -> Page:
    """The help page."""
    return Page(COMMANDS["report"], sections_of(made), defaults={"data.name": OWN_DATA})


def run(call: Call) -> int:
    """Write the page, and print its metrics; returns the exit code."""
    values = call.values
    data = values.pop("data")
    found = report(values.pop("run"), data if call.data_named else None, **values)
    if call.as_json:
        return print_json(found)
    for sentence in found["notes"]:
        say(sentence)
    rows = new_table("metric", ">value", title=f"{found['run']}: {found['output']}")
    for name, value in plain_metrics(found["metrics"]).items():
        rows.add_row(name, f"{value:.4g}")
    show(rows)
    return 0
