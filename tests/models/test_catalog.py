"""The command that writes the catalogue, on one network: the table of all of them is counted again elsewhere."""

import runpy
import sys
from importlib import resources

from vitrail import models


def test_the_command_prints_the_table_row_by_row(monkeypatch, capsys):
    monkeypatch.setattr(models, "names", lambda: ["emsnet_xxtiny"])
    monkeypatch.delitem(sys.modules, "vitrail.models.catalog")
    runpy.run_module("vitrail.models.catalog", run_name="__main__")
    table = resources.files("vitrail.models").joinpath("catalog.csv").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in table if line.startswith("emsnet_xxtiny,")]
    assert capsys.readouterr().out.splitlines() == [table[0], row]
