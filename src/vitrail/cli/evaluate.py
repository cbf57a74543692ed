"""`vitrail evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail_commands import COMMANDS

from ..config.data import TRAINING_IMAGES, DataConfig
from ..config.tasks import InferenceConfig
from ..config.train import Task
from ..engine.option_rules import names, options_of
from ..errors import UserError
from .help_page import Page, sections_of
from .parsing import WEIGHTS, Call, Parser, parser_of
from .printing import new_table, print_json, show

#: options of a network that is run, which stored predictions are not
FOR_WEIGHTS = ("model", "batch_size", "device", "output", "runtime")


def parser() -> Parser:
    """Its options."""
    made = parser_of("evaluate", page)
    made.add_argument("weights", nargs="?", help=WEIGHTS + ", or a file of vitrail export")
    made.add_class_arguments(DataConfig, "data", help="which images; by default those the run was trained with")
    made.add_class_arguments(InferenceConfig, "inference", help="how a network with a head is used")
    made.add_function_arguments(evaluate, skip={"weights", "data", "inference", "as_json"})
    return made


def page(made: Parser, given: Mapping[str, Any]) -> Page:
    """The help page; with a task only the options of data and use that the task knows."""
    known = set(options_of(given["task"]) if "task" in given else names())
    sections = {
        title: [name for name in listed if name in known or not name.startswith(("data.", "inference."))]
        for title, listed in sections_of(made).items()
    }
    sections = {title: listed for title, listed in sections.items() if listed}
    return Page(
        f"{COMMANDS['evaluate']}\n\n`vitrail evaluate --task TASK --help` lists the options of one task", sections
    )


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    for_weights = sorted(n for n in call.typed if n.startswith("inference.") or n in FOR_WEIGHTS)
    if call.values["predictions"] is not None and for_weights:
        raise UserError(f"--{for_weights[0]} is for weights, not --predictions.")
    if call.values["predictions"] is None and "task" in call.typed:
        raise UserError("--task is for --predictions: weights say themselves what they were trained for.")
    data = call.values.pop("data")
    return evaluate(data=data if call.data_named else None, **call.values, as_json=call.as_json)


def evaluate(
    weights: str | None,
    data: DataConfig | None,
    predictions: str | None = None,
    task: Task = "classification",
    model: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    output: str | None = None,
    runtime: str = "auto",
    inference: InferenceConfig | None = None,
    as_json: bool = False,
) -> int:
    """Measure trained weights, or predictions that are stored already, on a data set.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file with --model, timm:MODEL, random:MODEL, or a
            file of vitrail export; None with `predictions`.
        predictions: COCO results (.json), panoptic results (.json and its folder of PNGs), a folder of masks, or
            embeddings (.npz), instead of weights.
        task: of the predictions; weights say their own.
        data: which images; None = those the run directory was trained with, its validation part.
        model: the network an authors' file belongs to.
        batch_size: images in one forward pass; None = 64 where the network sees all in one size, else 1, as others are
            padded.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        output: folder for metrics.json and what the task reports in addition, such as confusion.png or results.json.
        runtime: of an exported file: "auto" (by its ending), "torch", "onnxruntime", "openvino" or "executorch".
        inference: how a network with a head is used; None = the defaults.
        as_json: print one JSON document.
    """
    if (weights is None) == (predictions is None):
        raise UserError("Name either weights or --predictions FILE: what is to be measured?")
    if predictions is not None:
        return _stored(predictions, task, data, as_json)
    from ..engine.evaluate import evaluate as measure

    assert weights is not None
    metrics = measure(weights, data, model, batch_size, device, Path(output) if output else None, runtime, inference)
    if as_json:
        return print_json(metrics)
    measured_on = _named(data) if data else _part_of(weights)
    if "top1" not in metrics:
        return _print_metrics(metrics, f"{weights} on {measured_on}")
    totals = new_table("metric", ">value", title=f"{weights} on {measured_on}")
    for name in ("top1", "top5", "loss", "images"):
        totals.add_row(name, f"{metrics[name]:.4g}")
    show(totals)
    classes = new_table("class", ">accuracy", ">images")
    for row in metrics["per_class"]:
        classes.add_row(
            row["class"], "-" if row["accuracy"] is None else f"{row['accuracy']:.1f} %", str(row["images"])
        )
    show(classes)
    return 0


def _named(data: DataConfig) -> str:
    """What named data are called in titles."""
    return f"{TRAINING_IMAGES} of {data.name}" if data.deliberate else data.name


def _part_of(run: str) -> str:
    """What a run is measured on."""
    from ..checkpoint.run_dir import data_of_run

    data = data_of_run(run)
    return f"the {'training' if data is not None and data.measures_training else 'validation'} data of its run"


def _stored(predictions: str, task: str, data: DataConfig | None, as_json: bool) -> int:
    """Measure stored predictions; their metrics lie in [0, 1] as their data sets' own tools print them."""
    from ..metrics.stored_predictions import score

    metrics = score(task, Path(predictions), data)
    return print_json(metrics) if as_json else _print_metrics(metrics, f"{predictions}, {task}")


def _print_metrics(metrics: dict[str, Any], title: str) -> int:
    """Print metrics in [0, 1], and those of every class that occurs."""
    totals = new_table("metric", ">value", title=title)
    for name, value in metrics.items():
        if not isinstance(value, list):
            totals.add_row(name, str(value) if isinstance(value, int) else f"{value:.6f}")
    show(totals)
    rows = metrics.get("per_class", [])
    names = [key for key in (rows[0] if rows else {}) if key != "category"]
    rows = [row for row in rows if row[names[1]] is not None]  # classes that occur
    classes = new_table(*(name if name == "class" else f">{name}" for name in names))
    for row in rows:
        classes.add_row(*(_cell(row[name]) for name in names))
    if rows:
        show(classes)
    return 0


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
