"""`vitrail benchmark`."""

from __future__ import annotations

from pathlib import Path

from ..benchmark.benchmark import benchmark as measure
from ..benchmark.benchmark import check_output, write
from ..benchmark.report import COLUMNS, cells, notes, title
from ..benchmark.settings import DEFAULT, Settings
from ..utils.progress import bar
from .parsing import Call, Parser, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("benchmark")
    made.add_argument("models", nargs="*", help="names or patterns of ours, random:NAME, timm:NAME, weights of ours")
    made.add_argument("--against", nargs="+", default=[], help="networks of timm")
    made.add_class_arguments(Settings, skip={"models", "against", "sizes"})
    made.add_argument("--output", help="file for the JSON document")
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    values = call.values
    output, models = values.pop("output"), values.pop("models") or ([] if values["against"] else list(DEFAULT))
    return benchmark(Settings(models, **values), output, call.as_json)


def benchmark(settings: Settings, output: str | None, as_json: bool) -> int:
    """Time networks side by side; see `Settings`."""
    settings.check()
    if output:
        check_output(Path(output))
    with bar("Measuring", settings.work()) as advance:
        document = measure(settings, advance)
    for note in notes(document):
        say(note)
    if output:
        write(document, Path(output))
    if as_json:
        return print_json(document)
    printed = new_table(*COLUMNS, title=title(document))
    for row in document["rows"]:
        printed.add_row(*cells(row))
    show(printed)
    return 0
