"""`vitrail benchmark`."""

from __future__ import annotations

from pathlib import Path

from ..benchmark.benchmark import benchmark, check_output, write
from ..benchmark.paper_tables import LIST, RATES, TIMES, tables
from ..benchmark.report import cells_of, columns, notes, title
from ..benchmark.settings import DEFAULT, Settings
from ..errors import UserError
from ..utils.progress import bar
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("benchmark")
    made.add_argument("models", nargs="*", help=help_of(Settings, "models"))
    made.add_argument("--against", nargs="+", default=[], help=help_of(Settings, "against"))
    made.add_class_arguments(Settings, skip={"models", "against", "sizes"})
    made.add_argument("--output", help="file for the JSON document")
    return made


def run(call: Call) -> int:
    """Time networks side by side, and print a row each; returns the exit code."""
    values = call.values
    if values["options_of"] == LIST:
        return _list_tables(call)
    output, models = values.pop("output"), values.pop("models")
    named = models or values["against"] or values["options_of"]
    settings = Settings(models if named else list(DEFAULT), **values)
    settings.check()
    if output:
        check_output(Path(output))
    with bar("Measuring", settings.work()) as advance:
        document = benchmark(settings, advance)
    for note in notes(document):
        say(note)
    if output:
        write(document, Path(output))
    if call.as_json:
        return print_json(document)
    printed = new_table(*columns(document), title=title(document))
    for row in document["rows"]:
        printed.add_row(*cells_of(document, row))
    show(printed)
    return 0


def _list_tables(call: Call) -> int:
    """Print the tables whose networks can be timed; every other option is refused.

    Raises:
        UserError: another option is given, too.
    """
    others = sorted(call.typed - {"options_of"}) + call.values["models"]
    if others:
        raise UserError(f"--options_of {LIST} times nothing: leave {others[0]} out.")
    found = [
        {
            "name": name,
            "tasks": sorted({row.run_task for row in rows}),
            "rows": len(rows),
            "printed": sorted({metric for row in rows for metric in row.results} & {*TIMES, *RATES}),
        }
        for name, rows in tables().items()
    ]
    if call.as_json:
        return print_json(found)
    printed = new_table("table", ">rows", "tasks", "printed speed")
    for table in found:
        printed.add_row(
            table["name"], str(table["rows"]), ", ".join(table["tasks"]), ", ".join(table["printed"]) or "-"
        )
    show(printed)
    return 0
