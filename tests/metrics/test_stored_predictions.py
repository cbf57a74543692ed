"""Stored predictions get the figures that the data sets' own tools give for them."""

import json

import pytest

from reference_metrics import CASES, Case
from vitrail.cli import main


def evaluate(capsys, *argv: str) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def expected(case: Case, test_data) -> dict:
    return json.loads((test_data / case.folder / case.expected).read_text())


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures(test_data, capsys, case):
    if case.layout == "coco":
        pytest.importorskip("faster_coco_eval")
    found = evaluate(capsys, *case.argv(test_data))
    figures = case.figures(test_data)
    assert {name: found[name] for name in figures} == pytest.approx(figures, abs=case.tolerance)
    if case.tolerance == 1e-6:
        seen = [row["AP"] for row in found["per_class"] if row["AP"] is not None]
        assert sum(seen) / len(seen) == pytest.approx(figures["AP"], abs=1e-6)


def test_panoptic_quality_of_classes_and_of_a_folder(test_data, capsys):
    case = case_of("coco_mini panoptic_segmentation")
    argv = case.argv(test_data)
    found = evaluate(capsys, *argv)
    assert evaluate(capsys, *[token.removesuffix(".json") for token in argv]) == found
    rows = {str(row["category"]): row for row in found["per_class"]}
    figures = expected(case, test_data)
    assert len(rows) == figures["All"]["n"]
    for category, row in figures["per_class"].items():
        assert [rows[category][k] for k in ("PQ", "SQ", "RQ")] == pytest.approx(list(row.values()), abs=1e-7)


@pytest.mark.parametrize("folder", ["ade_mini", "camvid_mini"])
def test_intersection_over_union_of_classes(test_data, capsys, folder):
    case = case_of(f"{folder} semantic_segmentation")
    found = evaluate(capsys, *case.argv(test_data))
    ious = {str(i): row["IoU"] for i, row in enumerate(found["per_class"]) if row["IoU"] is not None}
    assert ious == pytest.approx(expected(case, test_data)["iou"], abs=1e-7)


def test_queries_are_measured_or_skipped(test_data, capsys):
    case = case_of("reid_sim reid")
    found = evaluate(capsys, *case.argv(test_data))
    assert found["queries"] + found["skipped"] == expected(case, test_data)["num_query"]
