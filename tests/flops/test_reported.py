"""The papers' printed results: every one is there, is a number, and belongs to the right network."""

import csv
import os
import re
from pathlib import Path

import pytest

from vitrail.flops.reported import (
    METRICS,
    PAPERS,
    parse_metrics,
    read_rows,
    reported_results,
    reported_rows,
)
from vitrail.models.catalog import REPORTED_TOP1, TOP1_CAVEATS
from vitrail.tasks import TASKS

DATA = os.environ.get("VITRAIL_TEST_DATA", "")
CLAIMS = Path(DATA).parent / "claims"
ROWS = [row for family in PAPERS for row in reported_rows(family)]


@pytest.mark.parametrize("family", PAPERS)
def test_every_entry_is_a_number_in_its_range(family):
    for row in reported_rows(family):
        for result in row.results.values():
            assert result.kind.unit in ("%", "ms", "images/s", "GB", "points", "")
            assert 0 < result.value < (100 if result.kind.unit == "%" else 20_000), (row.table, row.row, result)


def test_every_kind_of_result_occurs_and_names_tasks_that_exist():
    assert {name for row in ROWS for name in row.results} == set(METRICS)
    assert {task for metric in METRICS.values() for task in metric.own} <= set(TASKS)


def test_the_number_of_printed_results():
    assert sum(len(row.results) for row in ROWS) == 323


@pytest.mark.skipif(not DATA or not CLAIMS.is_dir(), reason="needs the tables beside VITRAIL_TEST_DATA")
@pytest.mark.parametrize("family", PAPERS)
def test_every_printed_number_of_the_source_tables_is_there(family):
    with open(CLAIMS / f"{family}.csv", encoding="utf-8") as handle:
        source = list(csv.DictReader(handle))
    own = read_rows(family)
    assert len(own) == len(source)
    for theirs, ours in zip(source, own, strict=True):
        for column in ("table", "row", "model", "options", "task", "head", "params_m", "flops_g", "metrics"):
            assert ours[column] == theirs[column], (theirs["table"], theirs["row"], column)
        printed = {entry.split("=")[0]: entry.split("=")[1] for entry in theirs["metrics"].split(";") if entry}
        assert {result.metric: result.printed for result in parse_metrics(ours["metrics"]).values()} == printed


@pytest.mark.parametrize("text", ["top2=3", "top1=high", "top1=1;top1=2", "top1"])
def test_a_wrong_entry_is_refused(text):
    with pytest.raises(ValueError):
        parse_metrics(text)


@pytest.mark.parametrize("name", REPORTED_TOP1)
def test_the_catalogue_has_the_tables_top1(name):
    found = {row.results["top1"].printed for row in reported_results(name) if "top1" in row.results}
    assert f"{REPORTED_TOP1[name]:.1f}" in found


def where(rows):
    return [(row.family, row.table, row.row) for row in rows]


def test_rows_are_found_by_what_the_network_is_and_not_by_how_it_is_said():
    three = [("mat", "Table 4.2", "Model 3"), ("mat", "Table 4.4", "MAT-2")]
    plain = where(reported_results("mat_2"))
    assert plain[:2] == three
    said = {"mixers": ["none", "none", "mat", "mat"], "patch_embed": "bilinear", "drop_path_rate": 0.05}
    assert where(reported_results("mat_2", {**said, "num_classes": 10, "pad_mode": "paper"})) == plain
    window = reported_results("mat_2", {"mixers": ("none", "none", "window", "window")})
    assert where(window) == [("mat", "Table 4.9", "Token mixers: +Window Attn")]
    assert window[0].value("throughput_img_s") == 4353
    assert window[0].value("top5") is None
    assert reported_results("mat_2", {"mixers": "window"}) == []
    # the same network under another variant's name
    assert where(reported_results("lvt", {"rasa_recursions": 1})) == where(reported_results("lvt_r1"))
    assert where(reported_results("pale_tiny", {"pale_size": 7})) == where(reported_results("pale_tiny"))


def test_rows_of_dense_tasks_are_found_by_head():
    rows = reported_results("pale_tiny", {"out_norms": True}, task="semantic_segmentation", head="upernet")
    assert [row.value("miou") for row in rows] == [50.4, 50.4, 50.4]
    assert rows[0].value("miou_ms") == 51.2
    assert reported_results("pale_tiny", task="semantic_segmentation", head="semantic_fpn") == []
    given = {"p6": "on_output", "num_classes": 3}
    assert reported_results("mat_2", task="detection", head="retinanet", head_options=given) == []
    (row,) = reported_results("mat_2", task="detection", head="retinanet", head_options={"num_classes": 3})
    assert row.value("ap_box") == 38.1
    assert row.data_set == "coco"


def test_sizes_are_compared_where_the_input_has_one():
    assert reported_results("mat_1", input_size=(32, 32)) == []
    assert len(reported_results("mat_1", input_size=(224, 224))) == 1
    assert reported_results("mat_1", task="detection", head="ssdlite", input_size=(512, 512)) == []
    assert len(reported_results("mat_2", task="detection", head="retinanet", input_size=(512, 512))) == 1


def test_networks_without_rows():
    assert reported_results("resnet50") == []
    assert reported_results("emsnet_xtiny_c128") == []


def test_an_uncertain_number_says_so():
    marked = {(row.model, result.metric) for row in ROWS for result in row.results.values() if result.caveat}
    assert marked == {(name, "top1") for name in TOP1_CAVEATS}
    (row,) = reported_results("mat_1")
    assert row.results["top1"].text() == "top-1 76.2* %"
    assert "damaged" in row.results["top1"].caveat


ROOT = Path(__file__).parents[2]
#: what shows an accuracy of MAT-1 without its number, or says in its own words that the row is damaged
WORDS = ("damaged", "TOP1_CAVEATS")


def test_every_place_that_shows_an_uncertain_number_says_so():
    shown = []
    for folder, pattern in (("docs", "**/*.md"), ("src", "**/*.py"), ("src", "**/*.csv"), ("configs", "**/*.yaml")):
        shown += list((ROOT / folder).glob(pattern))
    for path in (*shown, ROOT / "README.md"):
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if "76.2" in line and re.search(r"\bmat_1\b|\bMAT\b", line, re.I)]
        if lines:
            assert any(word in text for word in WORDS), (path, lines[0])


def test_no_page_names_a_document_that_users_do_not_have():
    unknown = re.compile(r"\b(the specs?|(the|thesis) spec|seed text|in the seeds?|analyses\.md|OCR)\b")
    for folder, pattern in (("docs", "**/*.md"), ("configs", "**/*.yaml"), ("src", "**/*.csv")):
        for path in (ROOT / folder).glob(pattern):
            found = unknown.search(path.read_text(encoding="utf-8"))
            assert found is None, (path, found)
