"""`vitrail compare`."""

from __future__ import annotations

from typing import Any

from vitrail_commands import COMMANDS

from ..config.data import DataConfig
from ..report.compare import compare
from ..report.parts import HEADLINES
from .help_page import OWN_DATA, Page, sections_of
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("compare", page)
    made.add_argument("sources", nargs="+", help=help_of(compare, "sources"))
    made.add_class_arguments(DataConfig, "data", help=help_of(compare, "data"))
    made.add_function_arguments(compare, skip={"sources", "data"})
    return made


def page(made: Parser, given: Any) -> Page:
    """The help page."""
    return Page(COMMANDS["compare"], sections_of(made), defaults={"data.name": OWN_DATA})


def run(call: Call) -> int:
    """Write the page, and print a row a network; returns the exit code."""
    values = call.values
    data = values.pop("data")
    found = compare(values.pop("sources"), data if call.data_named else None, **values)
    if call.as_json:
        return print_json(found)
    for sentence in found["notes"]:
        say(sentence)
    rows = new_table("network", "model", ">metric", ">parameters, M", ">multiply-adds, G", title=found["output"])
    for one in found["networks"]:
        metric = next((name for name in HEADLINES.get(one["task"], ()) if name in one["metrics"]), None)
        costs = one["costs"]
        counts = ["-", "-"] if costs is None else [f"{costs['params'] / 1e6:.3f}", f"{costs['macs'] / 1e9:.3f}"]
        rows.add_row(
            one["name"],
            one["model"] or "-",
            "-" if metric is None else f"{metric} {one['metrics'][metric]:.4g}",
            *counts,
        )
    show(rows)
    return 0
