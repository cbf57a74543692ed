"""The catalog and the command that writes it, on one network: the table of all of them is counted again elsewhere."""

import json
import runpy
import sys
from importlib import resources

from vitrail import models
from vitrail.cli import main
from vitrail.models.catalog import catalog


def test_the_command_prints_the_table_row_by_row(monkeypatch, capsys):
    monkeypatch.setattr(models, "names", lambda: ["emsnet_xxtiny"])
    monkeypatch.delitem(sys.modules, "vitrail.models.catalog")
    runpy.run_module("vitrail.models.catalog", run_name="__main__")
    table = resources.files("vitrail.models").joinpath("catalog.csv").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in table if line.startswith("emsnet_xxtiny,")]
    assert capsys.readouterr().out.splitlines() == [table[0], row]


def test_what_is_uncertain_about_an_accuracy_stands_beside_it(capsys):
    assert {entry.name for entry in catalog() if entry.caveat} == {"mat_1"}
    assert main(["models", "mat_*"]) == 0
    out = capsys.readouterr().out
    assert "76.2* %" in out
    assert "  * mat_1: the row of MAT-1 in Table 4.4 is damaged" in out
    assert "*" not in next(line for line in out.splitlines() if "mat_2" in line)
    assert main(["models", "mat_1", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert "damaged" in entry["caveat"]
