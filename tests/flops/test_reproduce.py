import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from vitrail.cli import main
from vitrail.errors import UserError
from vitrail.flops import reproduce as module
from vitrail.flops.reported import COMPETITORS, GROUPS, read_rows
from vitrail.flops.reproduce import compare, reproduce, verdicts

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("reported", "counted", "verdict"),
    [
        ("4.3", 4.26654, "match"),
        ("16.0", 16.066864, "truncated"),
        ("2.0", 1.9247, "residual"),
        ("22", 21.748712, "match"),
        ("0.5", 0.55, "truncated"),
        ("0.6", 0.55, "match"),
        ("0.7", 0.65, "match"),  # half up, whichever neighbour is even
    ],
)
def test_values_are_compared_at_their_own_precision(reported, counted, verdict):
    assert compare(reported, counted) == verdict


@pytest.mark.parametrize("family", GROUPS)
def test_every_row_has_the_expected_counts_and_the_page_says_so(family):
    results = list(reproduce(family))
    assert [(r.table, r.row, r.reason) for r in results if r.verdict == "wrong"] == []
    assert verdicts(results)["rows"] == len(read_rows(family))
    assert all(r.reason for r in results if r.verdict in ("residual", "not_countable"))
    page = runpy.run_path(str(DOCS / "papers.py"))["page"]
    assert (DOCS / "papers" / f"{family}.md").read_text(encoding="utf-8") == page(family, results)


def test_heads_on_other_networks_have_the_printed_sizes():
    (swin,) = (r for r in reproduce(COMPETITORS, "UperNet") if r.row == "Swin-T")
    assert (swin.printed_params, round(swin.params, 2), swin.verdict) == ("59.9", 59.94, "match")
    assert (swin.printed_flops, round(swin.flops)) == ("945", 945)
    resnet = next(reproduce(COMPETITORS, "RetinaNet"))
    # the printed 21.3 M leave out stem and first stage, 157,504 parameters
    assert (resnet.row, round(resnet.params + 0.157504, 2), round(resnet.params, 2)) == ("ResNet-18", 21.41, 21.25)
    assert "freezes" in resnet.reason


def test_the_competitors_cover_every_head_that_others_print():
    rows = read_rows(COMPETITORS)
    heads = ("retinanet", "mask_rcnn", "semantic_fpn", "upernet", "ssdlite", "simple_baseline", "panoptic_fpn")
    assert {row["head"] for row in rows} == {*heads, "linear"}
    assert sum(row["verdict"] == "match" for row in rows) >= 60


def test_the_competitors_say_in_which_table_they_were_read():
    for row in read_rows(COMPETITORS):
        assert re.search(r"Table \d|[Tt]ables? of|\btable$", row["source"]), (row["table"], row["row"], row["source"])
        # heads on other networks are never among the classifiers that the six papers compare
        assert row["head"] == "linear" or "six papers" not in row["source"], (row["table"], row["row"])


def test_no_note_names_a_document_that_users_do_not_have():
    for family in GROUPS:
        for row in read_rows(family):
            words = row["note"].lower().replace(";", " ").split()
            assert not {"spec", "specs", "seed", "ocr", "see"} & set(words), (family, row["table"], row["row"])


def test_a_wrong_count_is_found(monkeypatch):
    row = {**read_rows("emsnet")[0], "expected_params_m": "2.5694"}
    monkeypatch.setattr(module, "read_rows", lambda family: [row])
    (result,) = reproduce("emsnet")
    assert result.verdict == "wrong"
    assert "2.569370 M parameters" in result.reason


def test_a_network_that_lost_its_match_is_found(monkeypatch):
    row = {**read_rows("emsnet")[1], "verdict": "residual"}
    monkeypatch.setattr(module, "read_rows", lambda family: [row])
    assert next(iter(reproduce("emsnet"))).verdict == "wrong"


def test_unknown_names_are_answered():
    with pytest.raises(UserError, match="pslt"):
        list(reproduce("psltt"))
    with pytest.raises(UserError, match="competitors"):
        list(reproduce("competitor"))
    with pytest.raises(UserError, match="Table 1"):
        list(reproduce("pale", "Table 11"))


def test_the_command_prints_a_table_and_json():
    command = [sys.executable, "-m", "vitrail", "reproduce", "partialformer", "--table", "Table 5.1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "5 rows, 5 match, 0 truncated, 0 residual, 0 not_countable, 0 config, 0 wrong" in out
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["totals"]["match"] == 5
    assert found["rows"][0]["params"] == 5.298672
    assert found["rows"][0]["results"] == {}


def test_printed_results_stand_beside_the_counts(capsys):
    assert main(["reproduce", "mat", "--table", "Table 4.4"]) == 0
    out = capsys.readouterr().out
    assert "top-1, %" in out
    assert "76.2*" in out
    assert "  * the row of MAT-1 in Table 4.4 is damaged" in out
    assert main(["reproduce", "mat", "--table", "Table 4.4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["results"]["top1"]["value"] == 76.2
    assert "damaged" in rows[0]["results"]["top1"]["caveat"]
    assert rows[1]["results"]["top1"]["caveat"] == ""
