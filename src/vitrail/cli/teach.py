"""`vitrail teach`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitrail_commands import COMMANDS

from ..config.train import TrainConfig
from ..engine.make_token_labels import check_learned_division
from ..engine.option_rules import check, drop_ineffective, names
from ..engine.teach import DECIDING, OTHERS, Outputs, teach
from ..errors import UserError
from ..tasks import data_of
from .help_page import Page, options
from .parsing import Call, Parser, help_of, parser_of
from .printing import print_json, say, write_line
from .train import SECTIONS

#: options of a run that do not change what the teacher sees: a recipe may state them
LEFT_OUT = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.name not in (*DECIDING, *OTHERS))


def parser() -> Parser:
    """Its options."""
    made = parser_of("teach", page)
    made.recipe, made.left_out = TrainConfig, LEFT_OUT
    made.add_argument("teacher", help=help_of(TrainConfig, "teacher").partition(":")[0])
    made.add_argument("--config", action="config", help="recipe of the run in YAML; options on the command line win")
    made.add_argument("--output", required=True, help="folder of the outputs, which `vitrail train --teacher` takes")
    made.add_argument("--outputs", type=Outputs, default="scores", help=help_of(teach, "outputs"))
    made.add_class_arguments(TrainConfig, skip=set(LEFT_OUT))
    return made


def page(made: Parser, given: Mapping[str, Any]) -> Page:
    """The help page: the options of `vitrail train` that decide what the teacher sees, by its sections."""
    listed = [action.dest for action in options(made)]
    sections = {"options": ["teacher", "output", "outputs", "config", "print_config", "help"]}
    taken = set(sections["options"])
    for title, parts in SECTIONS.items():
        found = [name for part in parts for name in listed if part in (name, name.partition(".")[0])]
        found = [name for name in found if name not in taken]
        if found:
            sections[title] = found
    return Page(COMMANDS["teach"], sections, {"data.name": data_of("classification")})


def run(call: Call) -> int:
    """Cache the outputs, and print how many; returns the exit code."""
    task = call.recipe.get("task", "classification")
    if task != "classification":
        raise UserError(f"--config: task {task}: a teacher's outputs are cached for classification alone.")
    values = dict(call.values)
    outputs = values.pop("outputs")
    config, left_out = drop_ineffective(TrainConfig(**values), call.typed)
    for note in left_out:
        say(note)
    typed = set(call.typed) & set(names())
    check(config, typed)
    check_learned_division(config.data, {name.removeprefix("data.") for name in typed})
    report = teach(config, outputs)
    if call.as_json:
        return print_json(dataclasses.asdict(report))
    write_line(
        f"{report.made:,} outputs of {report.teacher} made and {report.kept:,} kept, of {report.epochs} epochs, in "
        f"{report.folder} ({report.megabytes:,.1f} MB)"
    )
    return 0
