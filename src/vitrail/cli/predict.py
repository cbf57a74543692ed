"""`vitrail predict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config.tasks import InferenceConfig
from ..engine.predict import FileResult, predict
from ..structures import ClassProbabilities
from .parsing import Call, Parser, help_of, parser_of
from .printing import Rows, completed, new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("predict")
    made.add_argument("weights", help=help_of(predict, "weights"))
    made.add_argument("images", nargs="+", help=help_of(predict, "images"))
    made.add_class_arguments(InferenceConfig, "inference", help=help_of(predict, "inference"))
    made.add_function_arguments(predict, skip={"weights", "images", "inference", "note"})
    return made


def run(call: Call) -> int:
    """Predict, and print the results and on standard error which images could not be read.

    Raises:
        UserError: none could.
    """
    found = predict(**call.values, note=say)
    results = completed("Predicting", found)
    is_classifier = found.meta.head is None
    if call.as_json:
        return print_json([_record(result, is_classifier) for result in results])
    show(_classes(results) if is_classifier else _findings(results))
    if save := call.values["save"]:
        say(f"{sum(not result.error for result in results)} annotated images in {save}")
    return 0


def _record(result: FileResult, is_classifier: bool) -> dict[str, Any]:
    """A result as plain values."""
    empty = {"classes": [], "probabilities": []} if is_classifier else {}
    prediction = empty if result.prediction is None else result.prediction.to_dict()
    return {"path": result.path, **prediction, "error": result.error, "saved": result.saved}


def _findings(results: Sequence[FileResult]) -> Rows:
    rows = new_table("image", "found")
    for result in results:
        if result.prediction is not None:
            rows.add_row(result.path, result.prediction.summary())
    return rows


def _classes(results: Sequence[FileResult]) -> Rows:
    rows = new_table("image", "prediction", ">probability", "then")
    for result in results:
        if isinstance(found := result.prediction, ClassProbabilities):
            ranked = [f"{c} {100 * p:.1f} %" for c, p in zip(found.classes, found.probabilities, strict=True)]
            rows.add_row(result.path, found.classes[0], f"{100 * found.probabilities[0]:.1f} %", ", ".join(ranked[1:3]))
    return rows
