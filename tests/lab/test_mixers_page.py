"""docs/mixers.md: every mixer and ablation with its options, and examples that run."""

import json
import re
from pathlib import Path

from vitrail.lab.ablations import HOSTS
from vitrail.models.mixers import MIXERS

PAGE = (Path(__file__).parents[2] / "docs" / "mixers.md").read_text(encoding="utf-8")


def test_it_lists_every_mixer():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", PAGE, re.M)
    expected = [
        (name, kind.description, ", ".join(f"`{o}` {json.dumps(v)}" for o, v in kind.options.items()) or "-")
        for name, kind in MIXERS.items()
    ]
    assert rows == expected


def test_it_lists_every_ablation():
    for family, host in HOSTS.items():
        names = [row.name if row.source == "ours" else f"{row.name} ({row.source})" for row in host.ablations]
        assert f"| `{family}` | {', '.join(names)} |" in PAGE


def test_its_examples_run(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(block, names)
    assert type(names["network"].stages[0].blocks[0].mixer) is names["Average"]
    notes = capsys.readouterr().out.splitlines()
    assert [note.partition(":")[0] for note in notes] == ["window", "identity"]
    assert all(note.endswith("of the budget. True") for note in notes)
