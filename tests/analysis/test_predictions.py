"""Predictions of several networks beside the truth, of image files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense_helpers import CASES, MASKS, weights_with
from vitrail.analysis.explain import explain
from vitrail.analysis.predictions import compare_predictions
from vitrail.checkpoint.load import open_network
from vitrail.cli import main
from vitrail.structures import SegmentationMap

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("predictions")


@pytest.fixture(scope="module")
def weights(folder):
    task, options, _ = CASES["semantic_fpn"]
    return weights_with("semantic_fpn", task, options, folder)


@pytest.fixture(scope="module")
def other(folder):
    (folder / "other").mkdir()
    task, options, _ = CASES["semantic_fpn"]
    return weights_with("semantic_fpn", task, {**options, "channels": 16}, folder / "other")


@pytest.fixture(scope="module")
def data(folder) -> Path:
    """Images with masks of classes a, b, c in the layout that the task learns from."""
    rng, root = np.random.default_rng(0), folder / "data"
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(2):
            image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{split}{i}.png")
            mask = rng.integers(0, 3, (60, 80), dtype=np.uint8)
            Image.fromarray(mask).save(root / "annotations" / split / f"{split}{i}.png")
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    return root


def test_two_networks_beside_the_truth(weights, other, data, tmp_path, capsys):
    (tmp_path / "strange.png").write_bytes((data / "images" / "val" / "val1.png").read_bytes())
    images = [str(data / "images" / "val" / "val0.png"), str(data / "images" / "train"), str(tmp_path / "strange.png")]
    out = tmp_path / "out"
    argv = ["explain", weights, *images, "--method", "predictions", "--against", other, "--truth", str(data)]
    assert main([*argv, "--save", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = [f"mat_1 + semantic_fpn ({one})" for one in (weights, other)]
    assert [one["about"]["reference"] for one in told] == ["the truth"] * 3 + [names[0]]
    assert told[0]["numbers"]["coords"] == {"network": names, "measure": ["wrong", "mIoU"]}
    network = open_network(weights)
    from vitrail.tasks import task_of

    image = Image.open(images[0])
    found = task_of(network.meta).inference.predict(network.eval(), [image], "cpu")[0]
    truth = np.asarray(Image.open(data / "annotations" / "val" / "val0.png"))
    assert told[0]["numbers"]["values"][0][0] == pytest.approx((found.indices != truth).mean())
    assert told[3]["numbers"]["values"][0] == [None, None]  # what the other one is compared with
    drawn = {path.name: Image.open(path).size for path in out.glob("*.png")}
    assert set(drawn) == {f"{stem}.predictions.png" for stem in ("val0", "train0", "train1", "strange")}
    assert drawn["val0.predictions.png"][0] == 4 * 240 + 3 * 8  # input, truth, and two networks
    assert drawn["strange.predictions.png"][0] == 3 * 240 + 2 * 8


def test_without_truth_a_single_network_is_shown_alone(weights, data):
    (one,) = explain(weights, data / "images" / "val" / "val0.png", method="predictions", note=str)
    assert one.analysis.truth is None
    assert not one.analysis.differences
    assert one.analysis.plot().width == 2 * 240 + 8
    json.dumps(one.analysis.to_dict())


def test_numbers_of_known_maps():
    image = Image.new("RGB", (4, 2))
    truth, found = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    found[0, 0] = 1
    maps = {name: SegmentationMap(CLASSES, one) for name, one in (("good", truth), ("bad", found))}
    told = compare_predictions(image, maps, SegmentationMap(CLASSES, truth))
    assert told.arrays["numbers"].take(measure="wrong").values.tolist() == [0, 1 / 8]
    alone = compare_predictions(image, maps)
    assert alone.about["reference"] == "good"
    assert np.isnan(alone.arrays["numbers"].take(network="good").values).all()
    assert alone.arrays["numbers"].take(network="bad", measure="wrong").values == 1 / 8


@pytest.mark.parametrize("head", ["retinanet", "simple_baseline", "mask_rcnn"])
def test_other_tasks_have_drawings(head, folder, data):
    task, options = MASKS[1:] if head == "mask_rcnn" else CASES[head][:2]
    path = weights_with(head, task, options, folder)
    (one,) = explain(path, data / "images" / "val" / "val0.png", method="predictions", note=str)
    assert one.analysis.about["task"] == task
    assert one.analysis.plot().width > 400


def test_mistakes(mistake, weights, folder, data, tmp_path):
    image = str(data / "images" / "val" / "val0.png")
    boxes = weights_with("retinanet", *CASES["retinanet"][:2], folder)
    argv = ("explain", weights, image, "--method", "predictions")
    assert "compare alike" in mistake(*argv, "--against", boxes)
    assert "is named twice" in mistake(*argv, "--against", weights)
    assert "needs trained weights" in mistake(*argv, "--against", "random:mat_1")
    reid = weights_with("bnneck", *CASES["bnneck"][:2], folder)
    assert "use vitrail predict" in mistake("explain", reid, image, "--method", "predictions")
    assert "--against is for --method predictions" in mistake("explain", weights, image, "--against", boxes)
    assert "--truth is for --method predictions" in mistake("explain", weights, image, "--truth", str(data))
    assert "nowhere" in mistake(*argv, "--truth", str(tmp_path / "nowhere"))
    (data / "classes.json").write_text(json.dumps({"classes": ["a", "b", "d"]}))
    assert "classes" in mistake(*argv, "--truth", str(data))
    (data / "classes.json").write_text(json.dumps({"classes": CLASSES}))
