"""`vitrail predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..config.tasks import InferenceConfig
from ..engine.predict import FileResult, predict
from ..engine.predict_to_file import FileSummary, predict_to_file
from ..errors import UserError
from ..structures import ClassProbabilities
from .parsing import Call, Parser, help_of, parser_of
from .printing import JsonList, Rows, completed, new_table, print_json, say, show, taken

#: options of results in a file
OF_FILES = ("output", "shard", "coco_images")


def parser() -> Parser:
    """Its options."""
    made = parser_of("predict")
    made.add_argument("weights", help=help_of(predict, "weights"))
    made.add_argument("images", nargs="+", help=help_of(predict, "images"))
    made.add_class_arguments(InferenceConfig, "inference", help=help_of(predict, "inference"))
    made.add_function_arguments(predict, skip={"weights", "images", "inference", "note"})
    for name in OF_FILES:
        made.add_argument(f"--{name}", type=str | None, help=help_of(predict_to_file, name))
    return made


def run(call: Call) -> int:
    """Predict, and print the results and on standard error which images could not be read.

    Raises:
        UserError: none could.
    """
    of_files = {name: call.values.pop(name) for name in OF_FILES}
    if of_files["output"] is not None:
        if call.values.pop("save") is not None:
            raise UserError("--output writes results and --save annotated images: give one of them.")
        return _show_file(predict_to_file(**call.values, **of_files, note=say), call.as_json)
    for name in set(OF_FILES) & call.typed:
        raise UserError(f"--{name} is for results in a file: name it with --output FILE.")
    found = predict(**call.values, note=say)
    is_classifier = found.meta.head is None
    if call.as_json:
        records = JsonList()
        taken("Predicting", found, lambda result: records.add(_record(result, is_classifier)))
        return records.print()
    results = completed("Predicting", found)
    show(_classes(results) if is_classifier else _findings(results))
    if save := call.values["save"]:
        say(f"{sum(not result.error for result in results)} annotated images in {save}")
    return 0


def _show_file(done: FileSummary, as_json: bool) -> int:
    """Print what a prediction into a file did.

    Raises:
        UserError: no image could be read.
    """
    for error in done.errors:
        say(f"could not be read: {error}")
    if done.failed > len(done.errors):
        say(f"and {done.failed - len(done.errors):,} more images could not be read: see {done.output}.")
    if done.complete:
        say(
            f"{done.output} was complete: the same images by name, weights and options; delete it to predict them anew."
        )
    if as_json:
        print_json(asdict(done))
    else:
        rate = "-" if done.images_per_second is None else f"{done.images_per_second:.1f}"
        rows = new_table("file", "shard", ">images", ">not readable", ">resumed", ">images/s")
        rows.add_row(done.output, done.shard, f"{done.images:,}", f"{done.failed:,}", f"{done.resumed:,}", rate)
        show(rows)
    if done.left_out:
        say(f"{done.left_out:,} images are left out: the file of --coco_images does not list them.")
    if done.images and done.failed == done.images:
        raise UserError(f"None of the {done.images:,} images of {done.output} could be read.")
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
