"""`vitrail evaluate`."""

from __future__ import annotations

from pathlib import Path

from ..data.config import DataConfig
from .parsing import WEIGHTS, Call, Parser, parser_of
from .printing import new_table, print_json, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("evaluate")
    made.add_argument("weights", help=WEIGHTS + ", or a file of vitrail export")
    made.add_class_arguments(DataConfig, "data", help="which images; by default those the run was trained with")
    made.add_function_arguments(evaluate, skip={"weights", "data", "as_json"})
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    data = call.values.pop("data")
    return evaluate(data=data if call.data_named else None, **call.values, as_json=call.as_json)


def evaluate(
    weights: str,
    data: DataConfig | None,
    model: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    output: str | None = None,
    runtime: str = "auto",
    as_json: bool = False,
) -> int:
    """Measure trained weights on a data set.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file with --model, timm:MODEL, random:MODEL, or a
            file of vitrail export.
        data: which images; None = those the run directory was trained with, its held-back part.
        model: the network an authors' file belongs to.
        batch_size: images in one forward pass.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        output: folder for metrics.json and confusion.png.
        runtime: of an exported file: "auto" (by its ending), "torch", "onnxruntime", "openvino" or "executorch".
        as_json: print one JSON document.
    """
    from ..evaluate import evaluate as measure

    metrics = measure(weights, data, model, batch_size, device, Path(output) if output else None, runtime)
    if as_json:
        return print_json(metrics)
    totals = new_table(
        "metric", ">value", title=f"{weights} on {data.name if data else 'the held-back data of its run'}"
    )
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
