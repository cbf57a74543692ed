"""`vitrail explain`."""

from __future__ import annotations

from typing import Any

from ..analysis.explain import Explanation, explain
from .parsing import Call, Parser, help_of, parser_of
from .printing import JsonList, new_table, say, show, taken


def parser() -> Parser:
    """Its options."""
    made = parser_of("explain")
    made.add_argument("weights", help=help_of(explain, "weights"))
    made.add_argument("images", nargs="+", help=help_of(explain, "images"))
    # a Python function cannot have a parameter of this name
    made.add_argument("--class", type=str | None, default=None, help=help_of(explain, "class_name"))
    made.add_argument("--against", nargs="+", default=None, help=help_of(explain, "against"))
    made.add_argument("--at", type=list[tuple[int, int]] | None, default=None, help=help_of(explain, "at"))
    made.add_function_arguments(explain, skip={"weights", "images", "class_name", "against", "at", "note"})
    return made


def run(call: Call) -> int:
    """Explain, and print the findings and on standard error which images were skipped.

    Raises:
        UserError: all were.
    """
    values = {{"class": "class_name"}.get(name, name): value for name, value in call.values.items()}
    found = explain(**values, note=say)
    if call.as_json:
        records = JsonList()
        taken("Explaining", found, lambda result: records.add(_record(result)), done="explained")
        return records.print()
    told: list[tuple[str | None, str]] = []
    drawings: list[str] = []

    def tell(result: Explanation) -> None:
        if result.analysis is not None:
            told.append((result.path, result.analysis.summary()))
        if result.saved is not None:
            drawings.append(result.saved)

    count = taken("Explaining", found, tell, done="explained")
    rows = new_table("image", "found")
    for path, summary in told:
        rows.add_row(path or f"{count} image{'s' if count != 1 else ''}", summary)
    show(rows)
    if save := call.values["save"]:
        say(f"{len(drawings)} drawing{'s' if len(drawings) != 1 else ''} in {save}")
    return 0


def _record(result: Explanation) -> dict[str, Any]:
    """A result as plain values."""
    told = {} if result.analysis is None else result.analysis.to_dict()
    return {"path": result.path, **told, "error": result.error, "saved": result.saved}
