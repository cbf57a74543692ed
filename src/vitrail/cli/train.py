"""`vitrail train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.data import TRAINING_IMAGES
from ..config.train import TrainConfig
from ..engine.option_rules import check, names, option, settle
from .parsing import Call, Parser, parser_of
from .printing import new_table, print_json, say, show

#: options by name within one option
OPEN = ("model_options.", "head_options.")


def parser() -> Parser:
    """Its options."""
    made = parser_of("train")
    made.recipe = TrainConfig
    made.add_argument("--config", action="config", help="recipe in YAML; options on the command line win over it")
    made.add_class_arguments(TrainConfig)
    return made


def run(call: Call) -> int:
    """Do it; returns the exit code."""
    config, left_out = settle(TrainConfig(**call.values), call.typed)
    for note in left_out:
        say(note)
    check(config, *given(call))
    return train(config, call.as_json)


def given(call: Call) -> tuple[set[str], set[str]]:
    """Names of the options that were given deliberately, and of those that a recipe states.

    A default on the command line that takes a recipe's value back is not deliberate, nor is what a run's config.yaml
    states, which has every option.
    """
    usual = TrainConfig()
    typed = {name.partition(".")[0] if name.startswith(OPEN) else name for name in call.typed}
    taken_back = {n for n in typed & set(call.recipe) if option(TrainConfig(**call.values), n) == option(usual, n)}
    return typed - taken_back, set() if set(names()) <= set(call.recipe) else set(call.recipe)


def train(config: TrainConfig, as_json: bool = False) -> int:
    """Train what the recipe and the options say; see `TrainConfig`."""
    from ..engine.trainer import fit

    summary = fit(config)
    if as_json:
        return print_json(summary)
    _print_training(summary, config)
    return 0


def _print_training(summary: dict[str, Any], config: TrainConfig) -> None:
    """The final metrics, and what the trained network says of the images it was measured on."""
    learned = summary["measured_on"] == TRAINING_IMAGES
    where = f"{summary['model']} in {Path(config.output)}{f', measured on {TRAINING_IMAGES}' if learned else ''}"
    metrics = new_table("metric", ">value", title=where)
    for name, value in summary["metrics"].items():
        if isinstance(value, (int, float)):
            metrics.add_row(name, f"{value:.4g}")
    show(metrics)
    rows = summary.get("examples", [])
    sure = ["probability"] if any("probability" in example for example in rows) else []
    columns = (
        "training image" if learned else "held-back picture",
        "truth",
        "prediction",
        *(f">{name}" for name in sure),
    )
    examples = new_table(*columns, title=f"Predictions of {TRAINING_IMAGES}" if learned else "Predictions")
    for example in rows:
        mark = "" if example["truth"] == example["prediction"] or not sure else "  wrong"
        probability = [f"{100 * example[name]:.1f} %" for name in sure]
        examples.add_row(example["name"], example["truth"], example["prediction"] + mark, *probability)
    if rows:
        show(examples)
