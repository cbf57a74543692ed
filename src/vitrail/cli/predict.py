"""`vitrail predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.task_config import InferenceConfig
from ..errors import UserError
from ..progress import bar
from .parsing import WEIGHTS, Call, Parser, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("predict")
    made.add_argument("weights", help=WEIGHTS + ", or a file of vitrail export")
    made.add_argument("images", nargs="+", help="picture files, folders or globs")
    made.add_class_arguments(InferenceConfig, "inference", help="how a network with a head is used")
    made.add_function_arguments(predict, skip={"weights", "images", "inference", "as_json"})
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    return predict(**call.values, as_json=call.as_json)


def predict(
    weights: str,
    images: list[str],
    model: str | None = None,
    top_k: int = 5,
    save: str | None = None,
    batch_size: int = 16,
    device: str = "auto",
    runtime: str = "auto",
    inference: InferenceConfig | None = None,
    as_json: bool = False,
) -> int:
    """Say what is in pictures: classes, or what the network's head finds.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file with --model, timm:MODEL, random:MODEL, or a
            file of vitrail export.
        images: files, folders or globs.
        model: the network an authors' file belongs to.
        top_k: classes listed a picture (classification).
        save: folder for annotated copies of the pictures, and what they cannot hold, such as maps of classes.
        batch_size: pictures in one forward pass (classification).
        device: "auto", "cpu", "cuda", "cuda:1", ...
        runtime: of an exported file: "auto" (by its ending), "torch", "onnxruntime", "openvino" or "executorch".
        inference: how a network with a head is used.
        as_json: print one JSON document.
    """
    from ..deploy.runtimes import open_any
    from ..networks import pick_device, remarks
    from ..predict import collect, find
    from ..predict import predict as run
    from ..weights import meta_of

    if top_k < 1:
        raise UserError(f"--top_k {top_k} must be at least 1.")
    paths = collect(images)
    network = open_any(weights, model, runtime)
    for remark in remarks(network):
        say(f"{weights}: {remark}")
    folder, chosen = Path(save) if save else None, pick_device(device)
    with_head = meta_of(network).head is not None
    if not with_head and inference is not None:
        inference.check("classification")
    found = (
        find(network, paths, folder, chosen, inference)
        if with_head
        else run(network, paths, top_k, folder, batch_size, chosen)
    )
    return _print(_collected(found, len(paths)), with_head, save, as_json)


def _collected(found: Iterable[Any], count: int) -> list[Any]:
    """All results, with a bar while they come."""
    results = []
    with bar("Predicting", count) as advance:
        for result in found:
            results.append(result)
            advance()
    return results


def _print(results: list[Any], with_head: bool, save: str | None, as_json: bool) -> int:
    """What was found, and on standard error which pictures could not be read.

    Raises:
        UserError: none could.
    """
    failed = [result for result in results if result.error]
    for result in failed:
        say(f"skipped: {result.error}")
    if len(failed) == len(results):
        raise UserError(f"None of the {len(results)} pictures could be read.")
    if as_json:
        return print_json([_record(result) for result in results])
    show(_findings(results) if with_head else _classes(results))
    if save:
        print(f"{len(results) - len(failed)} annotated pictures in {save}", file=sys.stderr)
    return 0


def _record(result: Any) -> dict[str, Any]:
    """A result as plain values."""
    values = {name: value for name, value in vars(result).items() if name != "finding"}
    finding = getattr(result, "finding", None)
    return {**values, **(finding.record() if finding is not None else {})}


def _findings(results: list[Any]) -> Any:
    pictures = new_table("picture", "found")
    for result in results:
        if result.finding is not None:
            pictures.add_row(result.path, result.finding.sentence())
    return pictures


def _classes(results: list[Any]) -> Any:
    pictures = new_table("picture", "prediction", ">probability", "then")
    for result in (r for r in results if not r.error):
        ranked = [f"{c} {100 * p:.1f} %" for c, p in zip(result.classes, result.probabilities, strict=True)]
        first = f"{100 * result.probabilities[0]:.1f} %"
        pictures.add_row(result.path, result.classes[0], first, ", ".join(ranked[1:3]))
    return pictures
