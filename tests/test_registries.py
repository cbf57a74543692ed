"""What is registered in one place stands in every other place that needs it; a failure names the place."""

import dataclasses
import importlib.util
import typing
from collections.abc import Iterable
from pathlib import Path

from head_helpers import SMALL
from vitrail.config.data import OWNERS, DataName
from vitrail.config.tasks import TASK_GROUPS
from vitrail.config.train import Head, Task, TrainConfig
from vitrail.data import OPENERS
from vitrail.deploy.export.metadata import KINDS
from vitrail.factory import HEADS
from vitrail.flops.reported import GROUPS, PAPERS
from vitrail.metrics.stored_predictions import SCORES
from vitrail.models import FAMILIES, names
from vitrail.models.catalog import REPORTED_TOP1
from vitrail.tasks import TASKS, data_of, group_of, heads_of

ROOT = Path(__file__).parents[1]


def same(place: str, found: Iterable[str], wanted: Iterable[str]) -> None:
    """The names in a place are those that are registered."""
    found, wanted = set(found), set(wanted)
    assert wanted <= found, f"{place} lacks {', '.join(sorted(wanted - found))}"
    assert found <= wanted, f"{place} has {', '.join(sorted(found - wanted))}, which is not registered"


def test_heads():
    same("`Head` of config/train.py", typing.get_args(Head), HEADS)
    same("`heads` of the tasks in tasks/", {head for task in TASKS for head in heads_of(task)}, HEADS)
    same("`SMALL` of tests/head_helpers.py", SMALL, HEADS)


def test_data_sets():
    of_tasks = {name for task in TASKS for name in data_of(task)}
    same("`DataName` of config/data.py", typing.get_args(DataName), of_tasks | set(OPENERS))
    assert {name for owners in OWNERS.values() for name in owners} <= set(typing.get_args(DataName))


def test_tasks():
    dense = [task for task in TASKS if heads_of(task)]
    same("`Task` of config/train.py", typing.get_args(Task), TASKS)
    same("`TASK_GROUPS` of config/tasks.py", TASK_GROUPS, map(group_of, dense))
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    same("`TrainConfig` of config/train.py", fields & set(TASK_GROUPS), TASK_GROUPS)
    one_output = [task for task in dense if not all(HEADS[head].detector for head in heads_of(task))]
    same("`KINDS` of deploy/export/metadata.py", KINDS, ["classification", *one_output])
    assert set(SCORES) <= set(dense)


def test_networks():
    spec = importlib.util.spec_from_file_location("papers", ROOT / "docs" / "papers.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    same("`PAPERS` of flops/reported.py", PAPERS, [family for family in FAMILIES if family != "volo"])
    same("`TITLES` of docs/papers.py", pages.TITLES, GROUPS)
    same("flops/papers/", (path.stem for path in (ROOT / "src/vitrail/flops/papers").glob("*.csv")), GROUPS)
    same("docs/families/notes/", (path.stem for path in (ROOT / "docs/families/notes").glob("*.md")), PAPERS)
    same("docs/papers/notes/", (path.stem for path in (ROOT / "docs/papers/notes").glob("*.md")), GROUPS)
    assert set(REPORTED_TOP1) <= set(names())
