"""`vitrail evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail_commands import COMMANDS

from ..checkpoint.run_dir import data_of_run
from ..config.data import TRAINING_IMAGES, DataConfig
from ..config.tasks import InferenceConfig
from ..config.train import Task
from ..engine.evaluate import evaluate, with_kind_of
from ..engine.option_rules import names, options_of
from ..errors import UserError
from ..metrics.stored_predictions import score
from .help_page import OWN_DATA, Page, sections_of
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, say, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("evaluate", page)
    made.add_argument("weights", nargs="?", help=help_of(evaluate, "weights") + "; none with --predictions")
    made.add_class_arguments(DataConfig, "data", help=help_of(evaluate, "data"))
    made.add_class_arguments(InferenceConfig, "inference", help=help_of(evaluate, "inference"))
    made.add_argument("--predictions", type=str | None, help=help_of(score, "predictions") + ", instead of weights")
    made.add_argument(
        "--task", type=Task, default="classification", help=help_of(score, "task") + "; weights say their own"
    )
    made.add_function_arguments(evaluate, skip={"weights", "data", "inference", "timed"})
    return made


def page(made: Parser, given: Mapping[str, Any]) -> Page:
    """The help page; with a task only the options of data and use that the task knows."""
    known = set(options_of(given["task"]) if "task" in given else names())
    sections = {
        title: [name for name in listed if name in known or not name.startswith(("data.", "inference."))]
        for title, listed in sections_of(made).items()
    }
    sections = {title: listed for title, listed in sections.items() if listed}
    about = f"{COMMANDS['evaluate']}\n\n`vitrail evaluate --task TASK --help` lists the options of one task"
    return Page(about, sections, defaults={"data.name": OWN_DATA})


def run(call: Call) -> int:
    """Measure, and print the metrics; returns the exit code.

    Raises:
        UserError: weights and stored predictions are both named, or neither, or an option of the other.
    """
    values = call.values
    weights, predictions, task, data = (values.pop(name) for name in ("weights", "predictions", "task", "data"))
    for_weights = sorted(name for name in call.typed if name.partition(".")[0] in values)
    if predictions is not None and for_weights:
        raise UserError(f"--{for_weights[0]} is for weights, not --predictions.")
    if predictions is None and "task" in call.typed:
        raise UserError("--task is for --predictions: weights say themselves what they were trained for.")
    if (weights is None) == (predictions is None):
        raise UserError("Name either weights or --predictions FILE: what is to be measured?")
    named = data if call.data_named else None
    if predictions is not None:
        metrics = score(task, predictions, named)
        return print_json(metrics) if call.as_json else _print_metrics(metrics, f"{predictions}, {task}")
    if named is not None and "data.name" not in call.typed:
        named = with_kind_of(named, weights)
    rates: list[float] = []
    metrics = evaluate(weights, named, **values, timed=rates.append)
    inputs = "crops" if "boxes" in metrics else "images"  # of persons with keypoints
    if call.as_json:
        return print_json({**metrics, f"{inputs}_per_second": round(rates[0], 2)})
    say(f"{rates[0]:.1f} {inputs}/s, reading and preprocessing included")
    title = f"{weights} on {_named(named) if named else _part_of(weights)}"
    return _print_classification(metrics, title) if "top1" in metrics else _print_metrics(metrics, title)


def _named(data: DataConfig) -> str:
    """What named data are called in titles."""
    return f"{TRAINING_IMAGES} of {data.name}" if data.validates_on_training_split else data.name


def _part_of(run: str) -> str:
    """What a run is measured on."""
    data = data_of_run(run)
    return f"the {'training' if data is not None and data.measures_training else 'validation'} data of its run"


def _print_classification(metrics: dict[str, Any], title: str) -> int:
    """Print accuracies in %, and those of every class with images; how many have none was said."""
    totals = new_table("metric", ">value", title=title)
    for name in ("top1", "top5", "loss", "ece", "images"):
        totals.add_row(name, f"{metrics[name]:.4g}")
    show(totals)
    classes = new_table("class", ">accuracy", ">images")
    for row in metrics["per_class"]:
        if row["images"]:
            classes.add_row(row["class"], f"{row['accuracy']:.1f} %", str(row["images"]))
    show(classes)
    return 0


def _print_metrics(metrics: dict[str, Any], title: str) -> int:
    """Print metrics in [0, 1], and those of every class; - where the data has none of it."""
    totals = new_table("metric", ">value", title=title)
    for name, value in metrics.items():
        if not isinstance(value, list):
            totals.add_row(name, f"{value:.6f}" if isinstance(value, float) else _cell(value))
    show(totals)
    rows = metrics.get("per_class", [])
    names = [key for key in (rows[0] if rows else {}) if key != "category"]
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
