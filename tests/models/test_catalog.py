"""The catalog and the command that writes it, on one network: the table of all of them is counted again elsewhere."""

import json
import runpy
import sys
from importlib import resources

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail import models
from vitrail.cli import main
from vitrail.models.alternatives import ALTERNATIVES, alternative_to
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


def test_alternatives_cost_what_the_table_says():
    for one in ALTERNATIVES:
        cfg = timm.get_pretrained_cfg(one.name)
        assert cfg is not None
        assert cfg.has_weights
        with torch.device("meta"):
            network = timm.create_model(one.name).eval()
        assert sum(parameter.numel() for parameter in network.parameters()) == one.params
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, 224, 224, device="meta"))
        assert round(counter.get_total_flops() / 2e9, 4) == one.gmacs


def test_alternative_is_the_strongest_of_equal_cost():
    assert alternative_to(1, 0.1) is None
    for params, gmacs in ((6_713_664, 0.3844), (9_257_302, 1.971), (85_324_776, 15.5)):
        best = alternative_to(params, gmacs)
        assert best is not None
        assert (best.gmacs / gmacs, best.params / params) <= (1.1, 1.6)
        stronger = [one for one in ALTERNATIVES if one.top1 > best.top1]
        assert all(one.gmacs > 1.1 * gmacs or one.params > 1.6 * params for one in stronger)


def test_models_name_weights_and_alternatives(capsys):
    assert main(["models", "lvt", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["load"].endswith("vitrail train --model lvt --init FILE")
    assert entry["alternative"]["name"] == "timm:efficientformerv2_s1.snap_dist_in1k"
    assert main(["models", "mat_1", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["weights"], entry["load"]) == ("architecture only", "")
