"""Networks with heads as files: class maps, heat maps, embeddings, raw boxes, and backbones of anything."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headed_helpers import CASES, MASKS, weights_with
from vitrail.cli import main


@pytest.fixture
def picture(tmp_path) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("head", CASES)
def test_a_file_says_what_pytorch_says_and_what_its_outputs_are(head, tmp_path, picture, capsys):
    task, options, kind = CASES[head]
    weights, path = weights_with(head, task, options, tmp_path), tmp_path / f"{head}.onnx"
    argv = ["export", weights, "--format", "onnx", "--output", str(path), "--dynamic", "batch", "--images", picture]
    assert main([*argv, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert max(check["relative"] for check in made["checks"]) < 1e-4
    description = json.loads(Path(f"{path}.json").read_text())
    assert description["output_kind"] == kind
    assert made["outputs"] == (["scores", "moves"] if kind == "raw_boxes" else [kind])


def test_class_maps_of_a_file_are_those_of_the_weights(tmp_path, picture, capsys):
    task, options, _ = CASES["semantic_fpn"]
    weights, path = weights_with("semantic_fpn", task, options, tmp_path), tmp_path / "maps.onnx"
    assert main(["export", weights, "--format", "onnx", "--output", str(path), "--images", picture]) == 0
    capsys.readouterr()
    found = []
    for source in (weights, str(path)):
        assert main(["predict", source, picture, "--json", "--device", "cpu"]) == 0
        found.append(json.loads(capsys.readouterr().out)[0])
    assert found[0] == found[1]


def test_raw_boxes_are_no_prediction(tmp_path, picture, mistake):
    task, options, _ = CASES["retinanet"]
    weights, path = weights_with("retinanet", task, options, tmp_path), tmp_path / "boxes.onnx"
    argv = ["export", weights, "--format", "onnx", "--output", str(path), "--dynamic", "none", "--images", picture]
    assert main(argv) == 0
    assert "raw_boxes" in mistake("predict", str(path), picture)


def test_what_looks_into_regions_is_refused_and_its_backbone_is_not(tmp_path, picture, mistake):
    head, task, options = MASKS
    weights, path = weights_with(head, task, options, tmp_path), tmp_path / "masks.pt2"
    argv = ["export", weights, "--format", "torch_export", "--output", str(path), "--dynamic", "none"]
    argv += ["--images", picture]
    assert "--features" in mistake(*argv)
    assert not path.exists()
    assert main([*argv, "--features"]) == 0
    description = json.loads(Path(f"{path}.json").read_text())
    assert description["outputs"] == ["stage0", "stage1", "stage2", "stage3"]


def test_int8_is_judged_by_classes(tmp_path, mistake):
    task, options, _ = CASES["semantic_fpn"]
    weights = weights_with("semantic_fpn", task, options, tmp_path)
    argv = ["export", weights, "--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--quantize", "int8"]
    assert "class_maps" in mistake(*argv, "--data", "digits")
