"""`vitrail predict`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.tasks import InferenceConfig
from ..errors import UserError
from ..utils.progress import bar
from .parsing import WEIGHTS, Call, Parser, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("predict")
    made.add_argument("weights", help=WEIGHTS + ", or a file of vitrail export")
    made.add_argument("images", nargs="+", help="image files, folders or globs")
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
    top_k: int | None = None,
    save: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    runtime: str = "auto",
    white: float | None = None,
    inference: InferenceConfig | None = None,
    as_json: bool = False,
) -> int:
    """Say what is in images: classes, or what the network's head finds.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file with --model, timm:MODEL, random:MODEL, or a
            file of vitrail export.
        images: files, folders or globs.
        model: the network an authors' file belongs to.
        top_k: classes listed an image (classification); default 5.
        save: folder for annotated copies of the images, and what they cannot hold, such as maps of classes; replaces
            nothing there but what predict wrote before.
        batch_size: images in one forward pass (classification); default 16.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        runtime: of an exported file: "auto" (by its ending), "torch", "onnxruntime", "openvino" or "executorch".
        white: sample value that is white in images of more than 8 bits a sample, such as 4095; default: as in the
            images the network learned from, or by the largest sample of the images given.
        inference: how a network with a head is used; None = the defaults.
        as_json: print one JSON document.
    """
    from ..checkpoint.format import meta_of
    from ..checkpoint.load import notes, pick_device
    from ..data.images import left_out_sentence
    from ..deploy.export.runtime import open_any
    from ..engine.predict import collect, predict_dense
    from ..engine.predict import predict as run

    folder = Path(save) if save else None
    left_out: Counter[str] = Counter()
    paths = collect(images, left_out, folder)
    if sentence := left_out_sentence(left_out, ", ".join(images[:3])):
        say(sentence)
    network = open_any(weights, model, runtime)
    for note in notes(network):
        say(f"{weights}: {note}")
    chosen = pick_device(device, network)
    meta = meta_of(network)
    if meta.head is None:
        if inference is not None:
            inference.check("classification")
        found = run(
            network, paths, **_given(top_k=top_k, batch_size=batch_size), save=folder, device=chosen, white=white
        )
    else:
        for name in _given(top_k=top_k, batch_size=batch_size):
            raise UserError(f"--{name} is for classification; {weights} is a network for {meta.task}.")
        found = predict_dense(network, paths, folder, chosen, inference, white=white)
    return _print(_collected(found, len(paths)), meta.head is not None, save, as_json)


def _given(**options: int | None) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def _collected(found: Iterable[Any], count: int) -> list[Any]:
    """All results, with a bar while they come."""
    results = []
    with bar("Predicting", count) as advance:
        for result in found:
            results.append(result)
            advance()
    return results


def _print(results: list[Any], with_head: bool, save: str | None, as_json: bool) -> int:
    """What was found, and on standard error which images could not be read.

    Raises:
        UserError: none could.
    """
    failed = [result for result in results if result.error]
    for result in failed:
        say(f"skipped: {result.error}")
    if len(failed) == len(results):
        raise UserError(f"None of the {len(results)} images could be read.")
    if as_json:
        return print_json([_record(result) for result in results])
    show(_findings(results) if with_head else _classes(results))
    if save:
        say(f"{len(results) - len(failed)} annotated images in {save}")
    return 0


def _record(result: Any) -> dict[str, Any]:
    """A result as plain values."""
    values = {name: value for name, value in vars(result).items() if name != "prediction"}
    prediction = getattr(result, "prediction", None)
    return {**values, **(prediction.to_dict() if prediction is not None else {})}


def _findings(results: list[Any]) -> Any:
    rows = new_table("image", "found")
    for result in results:
        if result.prediction is not None:
            rows.add_row(result.path, result.prediction.summary())
    return rows


def _classes(results: list[Any]) -> Any:
    rows = new_table("image", "prediction", ">probability", "then")
    for result in (r for r in results if not r.error):
        ranked = [f"{c} {100 * p:.1f} %" for c, p in zip(result.classes, result.probabilities, strict=True)]
        first = f"{100 * result.probabilities[0]:.1f} %"
        rows.add_row(result.path, result.classes[0], first, ", ".join(ranked[1:3]))
    return rows
