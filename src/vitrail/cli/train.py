"""`vitrail train`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vitrail_commands import COMMANDS

from ..config.data import TRAINING_IMAGES, DataConfig, DataName
from ..config.tasks import TASK_GROUPS
from ..config.train import TrainConfig
from ..engine.named_weights import with_named_weights
from ..engine.option_rules import check, drop_ineffective, names, option, options_of
from ..engine.trainer import fit
from ..errors import UserError, printable
from ..tasks import TASKS, data_of, heads_of
from .help_page import Page, options
from .parsing import Call, Parser, parser_of
from .printing import new_table, print_json, say, show

#: options by name within one option
OPEN = ("model_options.", "head_options.")


#: sections of the help page; of a group of options its name stands for all of them
SECTIONS = {
    "options": ("task", "config", "print_config", "help"),
    "network": ("model", "model_options", "head", "head_options", "init", "pretrained", "freeze", "batch_norm"),
    "data": ("data", "image_size", "mean", "std", "crop_pct"),
    "augmentation and loss": (
        *("augment", *TASK_GROUPS),
        *("smoothing", "token_labels", "token_loss_weight", "token_ground_truth", "token_swap_axes"),
    ),
    "teacher": ("teacher", "distill"),
    "length and batches": ("epochs", "iterations", "max_steps", "batch_size", "accumulate"),
    "optimiser": ("lr", "optim", "ema_decay", "ema_warmup"),
    "validation": ("eval_every", "keep", "patience", "inference"),
    "run": ("output", "resume", "overwrite", "checkpoint_every", "tracker", "device", "precision", "seed"),
    "speed": ("tf32", "compile", "pin_memory", "prefetch"),
}
#: command lines on the help page, and what they do
EXAMPLES = {
    "vitrail train": "a classifier of digits, minutes on a CPU",
    "vitrail train --config configs/photos.yaml --data.root photos": "a folder per class",
    "vitrail train --config configs/finetune.yaml --init WEIGHTS --data.root photos": "the same from trained weights",
    "vitrail train --config configs/mini/detection.yaml --data.root coco": "boxes, in COCO's layout",
    "vitrail train --config runs/a/config.yaml --output runs/a --resume": "go on with a stopped run",
}


def parser() -> Parser:
    """Its options."""
    made = parser_of("train", page)
    made.recipe = TrainConfig
    made.add_argument("--config", action="config", help="recipe in YAML; options on the command line win over it")
    made.add_class_arguments(TrainConfig)
    return made


def page(made: Parser, given: Mapping[str, Any]) -> Page:
    """The help page: the options of the task that is given, otherwise those of every task."""
    task = given.get("task")
    shown = set(options_of(task)) if task else set.intersection(*(set(options_of(one)) for one in TASKS))
    own = set(names())
    listed = [action.dest for action in options(made) if action.dest not in own or action.dest in shown]
    sections = {
        title: [name for part in parts for name in listed if part in (name, name.partition(".")[0])]
        for title, parts in SECTIONS.items()
    }
    sections = {title: found for title, found in sections.items() if found}
    if task:
        about = f"{COMMANDS['train']}\n\noptions of {task}; `vitrail train --help` lists the tasks"
        choices = {"head": heads_of(task), "data.name": data_of(task)}
        return Page(about, sections, choices, {} if DataConfig.name in data_of(task) else {"data.name": None})
    rows = "\n".join(f"  {one:<{max(map(len, TASKS))}}  {_serves(one)}" for one in TASKS)
    return Page(
        f"{COMMANDS['train']}\n\nBelow are the options of every task; a task has more: `vitrail train --task detection "
        f"--help`\n\ntasks:\n{rows}\n\nexamples:\n{_examples()}",
        sections,
    )


def _examples() -> str:
    """The command lines of `EXAMPLES`, each below what it does."""
    return "\n".join(f"  # {does}\n  {line}" for line, does in EXAMPLES.items())


def _serves(task: str) -> str:
    """Data and heads of a task in a line."""
    heads = f"; heads: {', '.join(heads_of(task))}" if heads_of(task) else ""
    return f"data: {', '.join(data_of(task))}{heads}"


def run(call: Call) -> int:
    """Train what the recipe and the options say, and print the metrics; returns the exit code."""
    config, left_out = drop_ineffective(with_named_weights(TrainConfig(**call.values)), call.typed)
    config, assumed = with_data_of_root(config, call)
    for note in (*left_out, *assumed):
        say(note)
    check(config, *given(call))
    summary = fit(config)
    if call.as_json:
        return print_json(summary)
    _print_training(summary, config)
    return 0


def with_data_of_root(config: TrainConfig, call: Call) -> tuple[TrainConfig, list[str]]:
    """The run with the layout that `--data.root` alone means: a folder per class, or the one that its task reads.

    Returns:
        The run, and a sentence if a layout was assumed.

    Raises:
        UserError: the root is a file, which no default layout has.
    """
    root = config.data.root
    if root is None or "data.name" in call.typed or "data.name" in call.recipe:
        return config, []
    if os.path.isfile(root):
        raise UserError(f"--data.root {printable(root)} is a file: name its layout by --data, such as --data cifar10.")
    layouts = data_of(config.task)
    layout = "folder" if "folder" in layouts else layouts[0]
    changed = replace(config, data=replace(config.data, name=cast(DataName, layout)))
    note = f"--data {layout} is assumed, as --data.root names a folder and --data no other layout"
    if layout == "folder" and not call.recipe:
        note += "; the other options are those for digits: --config configs/photos.yaml has some for photographs"
    return changed, [f"{note}."]


def given(call: Call) -> tuple[set[str], set[str]]:
    """Names of the options that were given deliberately, and of those that a recipe states.

    A default on the command line that takes a recipe's value back is not deliberate, nor is what a run's config.yaml
    states, which has every option.
    """
    default = TrainConfig()
    typed = {name.partition(".")[0] if name.startswith(OPEN) else name for name in call.typed}
    taken_back = {n for n in typed & set(call.recipe) if option(TrainConfig(**call.values), n) == option(default, n)}
    return typed - taken_back, set() if set(names()) <= set(call.recipe) else set(call.recipe)


def _print_training(summary: dict[str, Any], config: TrainConfig) -> None:
    """The final metrics, and what the trained network says of the images it was measured on."""
    learned = summary["measured_on"] == TRAINING_IMAGES
    where = f"{summary['model']} in {Path(config.output)}{f', measured on {TRAINING_IMAGES}' if learned else ''}"
    metrics = new_table("metric", ">value", title=where)
    for name, value in summary["metrics"].items():
        if value is None or isinstance(value, (int, float)):
            metrics.add_row(name, "-" if value is None else f"{value:.4g}")
    show(metrics)
    rows = summary.get("examples", [])
    sure = ["probability"] if any("probability" in example for example in rows) else []
    columns = (
        "training image" if learned else "validation image",
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
