"""`vitrail explain`."""

from __future__ import annotations

from typing import Any

from ..analysis.explain import Explanation, explain
from .parsing import Call, Parser, help_of, parser_of
from .printing import completed, new_table, print_json, say, show


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
    """Explain, and print the findings and on standard error which images could not be read.

    Raises:
        UserError: none could.
    """
    values = {{"class": "class_name"}.get(name, name): value for name, value in call.values.items()}
    found = explain(**values, note=say)
    results = completed("Explaining", found)
    if call.as_json:
        return print_json([_record(result) for result in results])
    read = len(found) - sum(result.error is not None for result in results)
    rows = new_table("image", "found")
    for result in results:
        if result.analysis is not None:
            rows.add_row(result.path or f"{read} images", result.analysis.summary())
    show(rows)
    if save := call.values["save"]:
        count = sum(result.saved is not None for result in results)
        say(f"{count} drawing{'s' if count != 1 else ''} in {save}")
    return 0


def _record(result: Explanation) -> dict[str, Any]:
    """A result as plain values."""
    told = {} if result.analysis is None else result.analysis.to_dict()
    return {"path": result.path, **told, "error": result.error, "saved": result.saved}
