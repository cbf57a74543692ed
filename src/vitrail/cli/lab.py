"""`vitrail lab`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail_commands import COMMANDS

from ..config.train import TrainConfig
from ..engine.option_rules import drop_ineffective, names, option
from ..errors import UserError
from ..lab.laboratory import run_lab
from ..lab.options import MAY_DIFFER, NOT_SHARED, LabConfig, check_recipe
from ..lab.plan import PAGE, RESULTS
from ..lab.table import COLUMNS, NEIGHBOURS, cells, lines, neighbour_cells, title
from ..tasks import data_of
from ..utils.files import shortened
from .help_page import Page, options
from .parsing import Call, Parser, help_of, parser_of
from .printing import new_table, print_json, say, show
from .train import SECTIONS

#: options of the laboratory itself
OWN = ("mixers", "host", "host_options", "mixer_options", "equal", "budget", "seeds")


def parser() -> Parser:
    """Its options."""
    made = parser_of("lab", page)
    made.recipe, made.left_out = TrainConfig, NOT_SHARED
    made.add_argument("--config", action="config", help="recipe in YAML; options on the command line win over it")
    made.add_class_arguments(LabConfig)
    made.add_argument("--output", required=True, help=help_of(run_lab, "output"))
    made.add_argument("--wait", type=bool, default=True, help=help_of(run_lab, "wait"))
    made.add_class_arguments(TrainConfig, skip=set(NOT_SHARED))
    return made


def page(made: Parser, given: Mapping[str, Any]) -> Page:
    """The help page: the laboratory's options, then those of the recipe by the sections of `vitrail train`."""
    listed = [action.dest for action in options(made)]
    first = {"options": ("config", "print_config", "help"), "laboratory": (*OWN, "output", "wait")}
    sections = {
        heading: [name for part in parts for name in listed if part in (name, name.partition(".")[0])]
        for heading, parts in {
            **first,
            **{name: parts for name, parts in SECTIONS.items() if name != "options"},
        }.items()
    }
    shown: set[str] = set()
    for listing in sections.values():
        listing[:] = [name for name in listing if name not in shown]
        shown.update(listing)
    return Page(
        COMMANDS["lab"],
        {heading: listing for heading, listing in sections.items() if listing},
        {"data.name": data_of("classification")},
    )


def run(call: Call) -> int:
    """Train and measure what is left, and print the table; returns the exit code."""
    values = dict(call.values)
    options = LabConfig(**{name: values.pop(name) for name in OWN})
    output, wait = values.pop("output"), values.pop("wait")
    recipe, typed = _recipe(call, TrainConfig(**values))
    if not call.recipe and call.typed <= {"output", "wait", *MAY_DIFFER}:
        places = {name: option(recipe, name) for name in MAY_DIFFER if name in typed}
        document = run_lab(output=output, wait=wait, places=places, note=say)
    else:
        check_recipe(recipe, typed)
        document = run_lab(options, recipe, output=output, wait=wait, note=say)
    if os.environ.get("RANK", "0") != "0":  # of several processes of one launcher the first one prints
        return 0
    if call.as_json:
        return print_json(document)
    ranking = new_table(*COLUMNS, title=title(document))
    for row in document["rows"]:
        ranking.add_row(*cells(row))
    show(ranking)
    neighbours = new_table(*NEIGHBOURS)
    for one in document["comparisons"]:
        neighbours.add_row(*neighbour_cells(one))
    if document["comparisons"]:
        show(neighbours)
    for line in lines(document):
        say(line)
    if document["complete"]:
        say(f"{Path(output) / PAGE} and {RESULTS} hold all results.")
    return 0


def _recipe(call: Call, recipe: TrainConfig) -> tuple[TrainConfig, set[str]]:
    """The recipe of all runs, and the names of its options that were typed; says what of a file is left out."""
    task = call.recipe.get("task", "classification")
    if task != "classification":
        raise UserError(f"--config: task {task} cannot be compared: the laboratory trains classifiers.")
    for name, value in call.recipe.items():
        if name.partition(".")[0] in NOT_SHARED and name != "task":
            say(f"the recipe's --{name} {shortened(value)} is left out: the laboratory says it for each run.")
    recipe, dropped = drop_ineffective(recipe, call.typed)
    for sentence in dropped:
        say(sentence)
    return recipe, set(call.typed) & set(names())
