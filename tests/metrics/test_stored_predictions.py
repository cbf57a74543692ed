"""Stored predictions get the metrics that the data sets' own tools give for them."""

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
def test_metrics(test_data, capsys, case):
    if case.layout == "coco":
        pytest.importorskip("faster_coco_eval")
    found = evaluate(capsys, *case.argv(test_data))
    metrics = case.metrics(test_data)
    assert {name: found[name] for name in metrics} == pytest.approx(metrics, abs=case.tolerance)
    if case.tolerance == 1e-6:
        seen = [row["AP"] for row in found["per_class"] if row["AP"] is not None]
        assert sum(seen) / len(seen) == pytest.approx(metrics["AP"], abs=1e-6)


def test_panoptic_quality_of_classes_and_of_a_folder(test_data, capsys):
    case = case_of("coco_mini panoptic_segmentation")
    argv = case.argv(test_data)
    found = evaluate(capsys, *argv)
    assert evaluate(capsys, *[token.removesuffix(".json") for token in argv]) == found
    rows = {str(row["category"]): row for row in found["per_class"]}
    metrics = expected(case, test_data)
    assert len(rows) == metrics["All"]["n"]
    for category, row in metrics["per_class"].items():
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


def hand_cut(truth: dict, results: list, count: int) -> tuple[dict, list]:
    """The first images by name alone, and what was found in them."""
    images = sorted(truth["images"], key=lambda image: image["file_name"])[:count]
    kept = [image["id"] for image in images]
    annotations = [record for record in truth["annotations"] if record["image_id"] in kept]
    return {**truth, "images": images, "annotations": annotations}, [r for r in results if r["image_id"] in kept]


def test_a_limit_measures_the_first_images_alone(test_data, capsys, tmp_path):
    pytest.importorskip("faster_coco_eval")
    folder = test_data / "coco_mini"
    files = folder / "annotations" / "instances_val.json", folder / "results" / "val_bbox.json"
    for file, content in zip(files, hand_cut(*(json.loads(f.read_text()) for f in files), 6), strict=True):
        (tmp_path / file.name).write_text(json.dumps(content))

    def found(annotations, results, *more: str) -> dict:
        argv = ["--task", "detection", "--data", "coco", "--data.annotations", str(annotations), *more]
        return evaluate(capsys, *argv, "--predictions", str(results))

    limited = found(*files, "--data.limit", "6")
    assert limited == found(*(tmp_path / file.name for file in files))
    assert limited["AP"] != pytest.approx(found(*files)["AP"], abs=1e-3)


def test_a_limit_of_panoptic_maps_and_of_masks(test_data, capsys, tmp_path):
    case = case_of("coco_mini panoptic_segmentation")
    truth = json.loads((test_data / "coco_mini" / "annotations" / "panoptic_val.json").read_text())
    kept, _ = hand_cut(truth, [], 4)
    # the folder of the maps has the file's name
    (tmp_path / "panoptic_val").symlink_to(test_data / "coco_mini" / "annotations" / "panoptic_val")
    (tmp_path / "panoptic_val.json").write_text(json.dumps(kept))
    argv = case.argv(test_data)
    limited = evaluate(capsys, *argv, "--data.limit", "4")
    predicted = test_data / "coco_mini" / "results" / "val_panoptic"
    (tmp_path / "found").symlink_to(predicted)
    records = json.loads(predicted.with_suffix(".json").read_text())["annotations"]
    ids = [image["id"] for image in kept["images"]]
    content = {"annotations": [record for record in records if record["image_id"] in ids]}
    (tmp_path / "found.json").write_text(json.dumps(content))
    cut = ["--predictions", str(tmp_path / "found.json"), "--data.annotations", str(tmp_path / "panoptic_val.json")]
    assert limited == evaluate(capsys, *argv, *cut)
    assert limited["PQ"] != pytest.approx(evaluate(capsys, *argv)["PQ"], abs=1e-3)

    case = case_of("camvid_mini semantic_segmentation")
    argv = case.argv(test_data)
    masks = tmp_path / "masks"
    masks.mkdir()
    for mask in sorted((test_data / "camvid_mini" / "annotations" / "val").iterdir())[:3]:
        (masks / mask.name).symlink_to(mask)
    limited = evaluate(capsys, *argv, "--data.limit", "3")
    assert limited == evaluate(capsys, *argv, "--data.annotations", str(masks))
    assert limited["mIoU"] != pytest.approx(evaluate(capsys, *argv)["mIoU"], abs=1e-3)
