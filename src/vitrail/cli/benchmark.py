"""`vitrail benchmark`."""

from __future__ import annotations

from pathlib import Path

from ..benchmark.benchmark import benchmark, check_output, write
from ..benchmark.report import COLUMNS, cells, notes, title
from ..benchmark.settings import DEFAULT, Settings
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
    output, models = values.pop("output"), values.pop("models") or ([] if values["against"] else list(DEFAULT))
    settings = Settings(models, **values)
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
    printed = new_table(*COLUMNS, title=title(document))
    for row in document["rows"]:
        printed.add_row(*cells(row))
    show(printed)
    return 0
