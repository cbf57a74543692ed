"""No option of any task is taken and forgotten: see `option_walk`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from command_walk import COMMANDS, options_of, walk_command
from option_walk import TASKS, Row, plain_run, walk, write_data
from vitrail.config.train import Head
from vitrail.config.train import Task as TaskName
from vitrail.engine.option_rules import names, tasks_of, with_option
from vitrail.engine.trainer import Trainer, fit
from vitrail.factory import HEADS
from vitrail.tasks import TASKS as MADE


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("walk")
    write_data(folder)
    return folder


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[] if t in ("classification", "keypoints") else [pytest.mark.slow]) for t in TASKS]
)
def test_every_option_has_an_effect_or_is_refused(base, task):
    rows: list[Row] = list(walk(task, base))
    assert [row.name for row in rows] == list(names())
    assert [row for row in rows if row.verdict == "ignored"] == []
    foreign = [row for row in rows if task not in (tasks_of(row.name) or [task])]
    assert {row.verdict for row in foreign} == {"refused"}
    # what is refused of the task's own is refused for its value or its place, not for the task
    own = [row for row in rows if row not in foreign and row.name != "task"]
    assert not [row for row in own if "is for --task" in row.detail]
    assert Counter(row.verdict for row in rows)["effective"] > 40


def test_options_that_the_loop_reads(base, monkeypatch):
    """How often is measured and saved: the loop reads these for every task alike."""
    seen: Counter[str] = Counter()
    for name in ("evaluate_epoch", "save_state"):
        original = getattr(Trainer, name)
        monkeypatch.setattr(Trainer, name, lambda t, n=name, o=original: (seen.update([n]), o(t))[1])

    def counts(name: str, value: int) -> Counter[str]:
        seen.clear()
        config = with_option(with_option(plain_run("classification", base), "epochs", 2), "overwrite", True)
        fit(with_option(config, name, value))
        return Counter(seen)

    plain = counts("eval_every", 1)
    assert plain["evaluate_epoch"] == 2
    assert counts("eval_every", 2)["evaluate_epoch"] == 1
    assert counts("checkpoint_every", 1)["save_state"] > plain["save_state"]


QUICK = [
    ("evaluate", "parts"),
    ("explain", "gradcam"),
    ("token_labels", "parts"),
    ("token_labels", "flat"),
]


@pytest.mark.parametrize(
    ("command", "label"), [*QUICK, *(pytest.param(command, None, marks=pytest.mark.slow) for command in COMMANDS)]
)
def test_every_option_of_a_command_has_an_effect_or_is_refused(base, command, label):
    rows = list(walk_command(command, base, () if label is None else (label,)))
    assert {row.name for row in rows} == set(options_of(command))
    assert [row for row in rows if row.verdict == "ignored"] == []
    assert Counter(row.verdict for row in rows)["effective"] > 3


def test_choices_are_what_exists():
    import typing

    assert set(typing.get_args(Head)) == set(HEADS)
    assert set(typing.get_args(TaskName)) == set(MADE)
