"""`vitrail train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import TrainConfig
from .parsing import Call, Parser, parser_of
from .printing import new_table, print_json, show


def parser() -> Parser:
    """Its options."""
    made = parser_of("train")
    made.recipe = TrainConfig
    made.add_argument("--config", action="config", help="recipe in YAML; options on the command line win over it")
    made.add_class_arguments(TrainConfig)
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    return train(TrainConfig(**call.values), call.as_json)


def train(config: TrainConfig, as_json: bool = False) -> int:
    """Train what the recipe and the options say; see `TrainConfig`."""
    from ..train import fit

    summary = fit(config)
    if as_json:
        return print_json(summary)
    _print_training(summary, Path(config.output))
    return 0


def _print_training(summary: dict[str, Any], output: Path) -> None:
    """The final metrics, and what the trained network says of held-back pictures."""
    metrics = new_table("metric", ">value", title=f"{summary['model']} in {output}")
    for name, value in summary["metrics"].items():
        if isinstance(value, (int, float)):
            metrics.add_row(name, f"{value:.4g}")
    show(metrics)
    rows = summary.get("examples", [])
    sure = ["probability"] if any("probability" in example for example in rows) else []
    columns = ("held-back picture", "truth", "prediction", *(f">{name}" for name in sure))
    examples = new_table(*columns, title="Predictions")
    for example in rows:
        mark = "" if example["truth"] == example["prediction"] or not sure else "  wrong"
        probability = [f"{100 * example[name]:.1f} %" for name in sure]
        examples.add_row(example["name"], example["truth"], example["prediction"] + mark, *probability)
    if rows:
        show(examples)
