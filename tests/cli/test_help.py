"""Help pages: the front page, and a command's options by task."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import vitrail_cli
import vitrail_commands
from vitrail.cli import main
from vitrail.cli.parsing import read
from vitrail.cli.train import EXAMPLES, SECTIONS, parser
from vitrail.config.data import DataConfig
from vitrail.config.train import GROUPS, TrainConfig
from vitrail.engine.option_rules import check, names
from vitrail.errors import UserError
from vitrail.tasks import TASKS, data_of, heads_of
from vitrail.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"], ["--json", "help"], ["--debug", "--help"]])
def test_front_page(capsys, argv):
    assert vitrail_cli.main(argv) == 0
    page = capsys.readouterr().out
    assert page == vitrail_commands.usage()
    assert all(f"\n  {command} " in page for command in ("train", "predict", "help", "version"))


@pytest.mark.parametrize("argv", [["version"], ["--version"], ["--json", "version"]])
def test_version(capsys, argv):
    assert vitrail_cli.main(argv) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", vitrail_commands.COMMANDS)
def test_help_of_a_command(capsys, command):
    with pytest.raises(SystemExit) as ended:
        vitrail_cli.main(["help", command])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vitrail {command}")


@pytest.mark.parametrize("command", vitrail_commands.COMMANDS)
def test_every_help_says_that_json_is_printed(capsys, command):
    assert re.search(r"^  --json +print one JSON document", page(capsys, command), re.MULTILINE)


def test_the_help_of_train_has_examples_that_are_read(capsys):
    text = page(capsys, "train")
    for line in EXAMPLES:
        assert f"\n  {line}\n" in text
        recipe = line.replace("runs/a/config.yaml", "configs/digits.yaml").replace("configs/", f"{ROOT}/configs/")
        call = read(parser(), recipe.split()[2:])  # every option and recipe exists
        assert "--output" not in line or call.values["resume"]


def test_help_of_an_unknown_command(mistake):
    assert "Unknown command 'trian': did you mean train" in mistake("trian", "--help")
    assert vitrail_cli.main(["help", "trian"]) == 2
    assert main(["--halp"]) == 2


# ---- options of a task ------------------------------------------------------------------------------------------


def page(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def shown(text: str) -> list[str]:
    """Names of a run's options on a help page, each once."""
    found = [name if name != "data" else "data.name" for name in re.findall(r"^  --([\w.]+)", text, re.MULTILINE)]
    return [name for name in found if name in set(names())]


def accepted(task: str) -> set[str]:
    """Options that are taken with a head and data of a task."""
    found = set()
    for head in heads_of(task) or (None,):
        for data in data_of(task):
            run = replace(TrainConfig(), task=task, head=head, data=DataConfig(data))
            for name in names():
                try:
                    check(run, {name})
                except UserError as error:
                    if re.search("is for --task|is not for|is not allowed for --data|a task without", str(error)):
                        continue
                found.add(name)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_help_of_a_task_names_the_options_it_takes(capsys, task):
    text = page(capsys, "train", "--task", task)
    assert len(shown(text)) == len(set(shown(text)))
    assert set(shown(text)) == accepted(task)
    assert shown(text)[0] == "task"
    heads = ", ".join(heads_of(task))
    assert f"one of {heads}" in " ".join(text.split()) if heads else "--head" not in text
    default = "default: digits" if "digits" in data_of(task) else "required"
    assert f"one of {', '.join(data_of(task))}; {default})" in " ".join(text.split())


def test_evaluate_shows_the_options_of_a_task(capsys):
    own = {name for name in accepted("keypoints") if name.startswith(("data.", "inference."))}
    found = [name for name in shown(page(capsys, "evaluate", "--task", "keypoints")) if "." in name]
    assert len(found) == len(own)
    assert set(found) == own
    assert "--inference.window" in page(capsys, "evaluate")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_the_data_of_a_run_are_the_default(capsys, command):
    text = " ".join(page(capsys, command).partition("--data NAME")[2].split())
    assert "default: those of the run)" in text.partition("--data.root")[0]


def test_the_help_without_a_task_names_the_options_of_every_task(capsys):
    text = page(capsys, "train")
    assert set(shown(text)) == set.intersection(*map(accepted, TASKS))
    assert shown(text)[0] == "task"
    assert "vitrail train --task detection --help" in text
    for task in TASKS:
        row = next(line for line in text.splitlines() if line.startswith(f"  {task} "))
        assert all(name in row for name in (*heads_of(task), *data_of(task)))


def test_the_task_of_a_recipe_counts(capsys, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task: reid\ndata: {name: market1501}\n")
    assert page(capsys, "train", "--config", str(recipe)) == page(capsys, "train", "--task", "reid")


def test_every_option_stands_in_one_section():
    parts = [part for section in SECTIONS.values() for part in section]
    assert len(parts) == len(set(parts))
    own = {name for name in names() if "." not in name} | set(GROUPS)
    assert set(parts) - {"config", "print_config", "help"} == own


@pytest.mark.parametrize("command", vitrail_commands.COMMANDS)
def test_every_option_has_a_sentence_and_its_values(capsys, command):
    argv = ["--task", "classification"] if command == "train" else []
    text = page(capsys, command, *argv)
    for entry in re.split(r"\n(?=  --|\n|[a-z])", text.partition("switches:")[0]):
        if entry.startswith("  --") and not entry.startswith(("  --config", "  --print_config")):
            assert re.search(r"[a-z]{3}.* \((.+; )?(default: |required)", " ".join(entry.split())[len("  --") :]), entry
