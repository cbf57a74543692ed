"""Runs beside the printed rows: the right rows, the values, what is unlike the paper, and wrong folders."""

import dataclasses
import json
import re

import pytest
import torch
import yaml

from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import main
from vitrail.config.data import DataConfig, Preprocess
from vitrail.config.train import TrainConfig
from vitrail.errors import UserError
from vitrail.flops.reported import PAPERS
from vitrail.flops.runs import CLASSIFIER_EPOCHS, compare_runs
from vitrail.utils.plain import to_dict


def described(meta):
    """The description with two classes, as a weights file has to have them."""
    counted = {"num_classes": 2} if meta.head else {}
    return dataclasses.replace(meta, classes=["a", "b"], head_options={**meta.head_options, **counted})


@pytest.fixture
def make_run(tmp_path):
    """Write a run directory as a training leaves it."""

    def make(name, meta, config=None, **summary):
        folder = tmp_path / name
        folder.mkdir()
        config = config or TrainConfig(data=DataConfig(name="imagenet"), model=meta.model)
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        save_weights(folder / "best.safetensors", {"x": torch.zeros(1)}, described(meta))
        return str(folder)

    return make


def test_a_run_stands_beside_the_rows_of_its_network(make_run):
    meta = WeightsMeta("mat_2", {"mixers": ["none", "none", "mat", "mat"], "drop_path_rate": 0.05})
    run = make_run("a", meta, metrics={"top1": 80.5, "top5": 95.0, "images": 50_000}, epochs=300)
    (found,) = compare_runs([run])
    assert found.why_none == ""
    assert [(r.table, r.row) for r in found.rows][:2] == [("Table 4.2", "Model 3"), ("Table 4.4", "MAT-2")]
    assert [r.unlike for r in found.rows] == [[]] * len(found.rows)
    top1 = found.rows[0].results["top1"]
    assert (top1["printed"], top1["run"], top1["difference"]) == ("79.0", 80.5, 1.5)
    speed = found.rows[-1].results["throughput_img_s"]
    assert (speed["printed"], speed["run"]) == ("4333", None)
    (one,) = compare_runs([run], table="Table 4.4")
    assert [r.row for r in one.rows] == ["MAT-2"]
    (other,) = compare_runs([run], family="pslt")
    assert other.rows == []
    assert "other tables" in other.why_none


def test_what_is_unlike_the_paper_is_said(make_run):
    config = TrainConfig(task="detection", model="mat_2", head="retinanet", data=DataConfig(name="coco", limit=100))
    meta = WeightsMeta("mat_2", {}, "retinanet", task="detection", preprocess=Preprocess(image_size=(320, 320)))
    run = make_run("b", meta, config, metrics={"AP": 0.2513, "images": 100}, epochs=3, measured_on="training images")
    (found,) = compare_runs([run])
    (row,) = found.rows
    assert row.results["ap_box"]["run"] == pytest.approx(25.13)
    assert row.results["ap_box"]["difference"] == pytest.approx(25.13 - 38.1)
    assert row.unlike == [
        "measured on 100 training images",
        "3 epochs, not 12",
        "images of 320x320 pixels; the row's multiply-adds are for 800x1280",
        "started from random weights, not from ImageNet's",
    ]


def test_steps_count_in_segmentation_and_boxes_in_instance_segmentation(make_run):
    config = TrainConfig(task="semantic_segmentation", model="mat_2", data=DataConfig(name="ade20k"), init="x")
    meta = WeightsMeta("mat_2", {}, "semantic_fpn", task="semantic_segmentation")
    (found,) = compare_runs([make_run("c", meta, config, metrics={"mIoU": 0.4}, steps=10)])
    assert found.rows[0].results["miou"]["difference"] == pytest.approx(0.0)
    assert "10 optimiser steps, not 80,000" in found.rows[0].unlike
    meta = WeightsMeta("mat_2", {}, "mask_rcnn", task="instance_segmentation")
    config = TrainConfig(task="instance_segmentation", model="mat_2", data=DataConfig(name="coco"), init="x")
    (found,) = compare_runs([make_run("d", meta, config, metrics={"AP": 0.3, "box_AP": 0.4}, epochs=12)])
    values = {name: result["run"] for name, result in found.rows[0].results.items()}
    assert values == {"ap_box": pytest.approx(40.0), "ap_mask": pytest.approx(30.0)}


def test_rows_of_the_runs_own_data_are_preferred(make_run):
    options = {"stem_stride": 1, "stage1_stride": 1, "window_size": 4}
    meta = WeightsMeta("pslt", options, preprocess=Preprocess(image_size=(32, 32)))
    config = TrainConfig(model="pslt", data=DataConfig(name="cifar100"))
    (found,) = compare_runs([make_run("e", meta, config, metrics={"top1": 70.0}, epochs=300)])
    assert [r.row for r in found.rows] == ["PSLT CIFAR-100"]
    config = TrainConfig(model="pslt", data=DataConfig(name="digits"))
    (found,) = compare_runs([make_run("f", meta, config, metrics={"top1": 70.0, "images": 9}, epochs=300)])
    assert [r.row for r in found.rows] == ["PSLT CIFAR-10", "PSLT CIFAR-100"]
    assert found.rows[0].unlike == ["data set digits, not cifar10", "measured on 9 validation images"]


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        (WeightsMeta("mat_1", preprocess=Preprocess(image_size=(32, 32))), "images have 32x32 pixels, .* 224x224"),
        (WeightsMeta("resnet18"), "resnet18 is no network of the papers"),
        (WeightsMeta("mat_2", {"mixers": "window"}), "no table has mat_2 with the options"),
        (WeightsMeta("mat_2", {}, "upernet", task="semantic_segmentation"), "under upernet for semantic segmentation"),
    ],
)
def test_a_run_without_a_row_says_why(make_run, meta, why, capsys):
    run = make_run("g", meta, metrics={"top1": 1.0})
    (found,) = compare_runs([run])
    assert found.rows == []
    assert main(["reproduce", "--runs", run]) == 0
    assert re.search(why, found.why_none)
    assert found.why_none in capsys.readouterr().out


def test_values_that_are_no_numbers_are_no_results(make_run):
    run = make_run("h", WeightsMeta("mat_2"), metrics={"top1": "90", "top5": float("inf")}, epochs=300)
    (found,) = compare_runs([run])
    assert {r.results["top1"]["run"] for r in found.rows} == {None}


def test_wrong_folders_are_refused_before_anything_is_shown(make_run, tmp_path, capsys):
    good = make_run("i", WeightsMeta("mat_2"), metrics={"top1": 1.0})
    with pytest.raises(UserError, match="no run directory"):
        list(compare_runs([good, str(tmp_path)]))
    broken = make_run("j", WeightsMeta("mat_2"), other=1)
    with pytest.raises(UserError, match="has no metrics"):
        list(compare_runs([broken]))
    (tmp_path / "j" / "summary.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        list(compare_runs([broken]))
    assert main(["reproduce", "nope", "--runs", good]) == 2
    assert capsys.readouterr().out == ""


def test_the_command_marks_an_uncertain_number_and_prints_json(make_run, capsys):
    run = make_run("k", WeightsMeta("mat_1"), metrics={"top1": 75.0, "images": 50_000}, epochs=300)
    assert main(["reproduce", "mat", "--runs", run]) == 0
    out = capsys.readouterr().out
    assert "76.2*" in out
    assert "-1.20" in out
    assert "nothing found unlike the paper" in out
    assert "  * the row of MAT-1 in Table 4.4 is damaged" in out
    assert main(["reproduce", "--runs", run, run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [row["row"] for row in found[1]["rows"]] == ["MAT-1"]
    assert "damaged" in found[0]["rows"][0]["results"]["top1"]["caveat"]


def test_every_paper_has_its_epochs():
    assert set(CLASSIFIER_EPOCHS) == set(PAPERS)
