"""Networks with heads as files: class maps, heat maps, embeddings, raw boxes, and backbones of anything."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dense_helpers import CASES, MASKS, weights_with
from vitrail.cli import main


@pytest.fixture
def image(tmp_path) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("head", CASES)
def test_a_file_says_what_pytorch_says_and_what_its_outputs_are(head, tmp_path, image, capsys):
    task, options, kind = CASES[head]
    weights, path = weights_with(head, task, options, tmp_path), tmp_path / f"{head}.onnx"
    argv = ["export", weights, "--format", "onnx", "--output", str(path), "--dynamic", "batch", "--images", image]
    assert main([*argv, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert max(check["relative"] for check in made["checks"]) < 1e-4
    description = json.loads(Path(f"{path}.json").read_text())
    assert description["output_kind"] == kind
    assert made["outputs"] == (["scores", "box_deltas"] if kind == "raw_boxes" else [kind])


def test_class_maps_of_a_file_are_those_of_the_weights(tmp_path, image, capsys):
    task, options, _ = CASES["semantic_fpn"]
    weights, path = weights_with("semantic_fpn", task, options, tmp_path), tmp_path / "maps.onnx"
    assert main(["export", weights, "--format", "onnx", "--output", str(path), "--images", image]) == 0
    capsys.readouterr()
    found = []
    for source in (weights, str(path)):
        assert main(["predict", source, image, "--json", "--device", "cpu"]) == 0
        found.append(json.loads(capsys.readouterr().out)[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("size", [(96, 96), (40, 96), (200, 70), (33, 150)])
def test_a_segmenter_of_one_size_serves_images_of_any_shape(tmp_path, capsys, mistake, size):
    """Smaller images are padded, larger ones looked at through windows of the file's size: as the weights do it."""
    task, options, _ = CASES["semantic_fpn"]
    weights, path = weights_with("semantic_fpn", task, options, tmp_path), tmp_path / "maps.onnx"
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    argv = ["export", weights, "--format", "onnx", "--dynamic", "none", "--output", str(path), "--images", str(image)]
    assert main(argv) == 0
    shape = json.loads(Path(f"{path}.json").read_text())["input"]["shape"]
    capsys.readouterr()
    found = []
    for source, more in ((weights, ["--inference.window", str(shape[2])]), (str(path), [])):
        out = tmp_path / Path(source).stem
        assert main(["predict", source, str(image), *more, "--save", str(out), "--json", "--device", "cpu"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        maps = np.asarray(Image.open(out / "masks" / "image.png"))
        assert maps.shape == size
        found.append((record["shares"], maps))
    assert found[0][0].keys() == found[1][0].keys()
    # a padded window sees the padding's edge, a window that fits does not: only where none is padded all pixels agree
    agree = float((found[0][1] == found[1][1]).mean())
    assert agree == 1.0 if min(size) >= shape[2] else agree > 0.8
    assert "larger than the" in mistake("predict", str(path), str(image), "--inference.window", "4000")


def test_raw_boxes_are_no_prediction(tmp_path, image, mistake):
    task, options, _ = CASES["retinanet"]
    weights, path = weights_with("retinanet", task, options, tmp_path), tmp_path / "boxes.onnx"
    argv = ["export", weights, "--format", "onnx", "--output", str(path), "--dynamic", "none", "--images", image]
    assert main(argv) == 0
    assert "raw_boxes" in mistake("predict", str(path), image)


def test_what_looks_into_regions_is_refused_and_its_backbone_is_not(tmp_path, image, mistake):
    head, task, options = MASKS
    weights, path = weights_with(head, task, options, tmp_path), tmp_path / "masks.pt2"
    argv = ["export", weights, "--format", "torch_export", "--output", str(path), "--dynamic", "none"]
    argv += ["--images", image]
    assert "--features" in mistake(*argv)
    assert not path.exists()
    assert main([*argv, "--features"]) == 0
    description = json.loads(Path(f"{path}.json").read_text())
    assert description["outputs"] == ["stage0", "stage1", "stage2", "stage3"]


def test_int8_needs_data_of_the_task(tmp_path, mistake):
    task, options, _ = CASES["semantic_fpn"]
    weights = weights_with("semantic_fpn", task, options, tmp_path)
    argv = ["export", weights, "--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--quantize", "int8"]
    assert "learns from --data ade20k" in mistake(*argv, "--data", "digits")
