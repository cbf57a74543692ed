"""Stored predictions get the figures that the data sets' own tools give for them."""

import json

import pytest

from vitrail.cli import main


def figures(capsys, *argv: str) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("folder", "part", "task", "kind"),
    [
        ("coco_mini", "val", "detection", "bbox"),
        ("coco_mini", "val", "instance_segmentation", "segm"),
        ("coco_kpt_mini", "all", "detection", "bbox"),
        ("coco_kpt_mini", "all", "instance_segmentation", "segm"),
        ("coco_kpt_mini", "all", "keypoints", "keypoints"),
    ],
)
def test_average_precision(test_data, capsys, folder, part, task, kind):
    pytest.importorskip("faster_coco_eval")
    root = test_data / folder
    argv = ["--task", task, "--predictions", str(root / f"results/{part}_{kind}.json")]
    found = figures(capsys, *argv, "--data", "coco", "--data.root", str(root))
    expected = json.loads((root / f"results/{part}_expected.json").read_text())[kind]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    seen = [row["AP"] for row in found["per_class"] if row["AP"] is not None]
    assert sum(seen) / len(seen) == pytest.approx(expected["AP"], abs=1e-6)


@pytest.mark.parametrize("named", ["val_panoptic.json", "val_panoptic"])
def test_panoptic_quality(test_data, capsys, named):
    root = test_data / "coco_mini"
    argv = ["--task", "panoptic_segmentation", "--predictions", str(root / "results" / named)]
    found = figures(capsys, *argv, "--data", "coco", "--data.root", str(root))
    expected = json.loads((root / "results/val_panoptic_expected.json").read_text())
    for part, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            assert found[name.upper() + suffix] == pytest.approx(expected[part][name], abs=1e-7)
    rows = {str(row["category"]): row for row in found["per_class"]}
    assert len(rows) == expected["All"]["n"]
    for category, row in expected["per_class"].items():
        assert [rows[category][k] for k in ("PQ", "SQ", "RQ")] == pytest.approx(list(row.values()), abs=1e-7)


@pytest.mark.parametrize("folder", ["ade_mini", "camvid_mini"])
def test_mean_intersection_over_union(test_data, capsys, folder):
    root = test_data / folder
    argv = ["--task", "semantic_segmentation", "--predictions", str(root / "results/pred")]
    found = figures(capsys, *argv, "--data", "ade20k", "--data.root", str(root))
    expected = json.loads((root / "results/expected.json").read_text())
    names = {
        "aAcc": "aAcc",
        "mIoU": "mIoU_over_classes_with_union",
        "mIoU_all": "mIoU_over_all_classes_absent_as_zero",
        "mAcc": "mAcc_over_classes_in_gt",
    }
    assert [found[name] for name in names] == pytest.approx([expected[name] for name in names.values()], abs=1e-7)
    ious = {str(i): row["IoU"] for i, row in enumerate(found["per_class"]) if row["IoU"] is not None}
    assert ious == pytest.approx(expected["iou"], abs=1e-7)


def test_retrieval(test_data, capsys):
    root = test_data / "reid_sim"
    found = figures(capsys, "--task", "reid", "--predictions", str(root / "metric_case.npz"))
    expected = json.loads((root / "metric_expected.json").read_text())
    assert {name: found[name] for name in expected["expected"]} == pytest.approx(expected["expected"], abs=1e-7)
    assert found["queries"] + found["skipped"] == expected["num_query"]
