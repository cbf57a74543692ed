"""Detectors exported with decoding and suppression: what the file finds is what PyTorch finds."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from dense_helpers import CASES, MASKS, SHORT, weights_with
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import main
from vitrail.config.data import Preprocess
from vitrail.deploy.export.backends.onnx import simplify
from vitrail.deploy.export.detector import WHOLE
from vitrail.deploy.export.metadata import Metadata
from vitrail.deploy.export.runtime import DeployedDetector
from vitrail.deploy.export.verify import Disagrees, compare_detections, matched
from vitrail.engine.loaded import load
from vitrail.factory import assemble
from vitrail.heads.common import RegionPool

OPTIONS = {
    "retinanet": {"num_classes": 3, "channels": 8, "min_size": 96, "max_size": 160},
    "ssdlite": {"num_classes": 3, "extra_channels": [8, 8, 8, 8], "image_size": [96, 96]},
    "sparse_rcnn": {"num_classes": 3, "num_proposals": 9, "num_stages": 2, "channels": 16},
}
OPTIONS["sparse_rcnn"] |= {"min_size": 96, "max_size": 160}


def detector(head, **options):
    """A small detector with detections of many scores."""
    torch.manual_seed(0)
    model = assemble("mat_1", head, SHORT, {**OPTIONS[head], **options}).eval()
    if head == "retinanet":
        scores = model.head.classification_head.cls_logits
        torch.nn.init.normal_(scores.weight, std=3.0)
        torch.nn.init.constant_(scores.bias, -2.0)
    return model


def saved(head, folder) -> str:
    meta = WeightsMeta("mat_1", SHORT, head=head, head_options=OPTIONS[head], task="detection", classes=["a", "b", "c"])
    meta.preprocess = Preprocess((96, 96))
    save_weights(folder / f"{head}.safetensors", detector(head).state_dict(), meta)
    return str(folder / f"{head}.safetensors")


def image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def as_arrays(found):
    return [found[name].numpy() for name in ("boxes", "scores", "labels")]


# ---- the graph --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (96, 150), (160, 77), (101, 96)])
@pytest.mark.parametrize("head", OPTIONS)
@torch.no_grad()
def test_graph_finds_what_the_detector_finds(head, size):
    """torchvision's own loops over images, levels and classes against one graph without any."""
    model = detector(head)
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    expected = model([pixels])[0]
    assert len(expected["boxes"]) > 20
    x = model.transform.resize(model.transform.normalize(pixels))[0]
    first = int(head == "ssdlite")
    boxes, scores, labels = WHOLE[head](model, first)(x[None])
    scale = torch.tensor([size[1] / x.shape[2], size[0] / x.shape[1]] * 2)
    mine, theirs = matched(
        [(boxes * scale).numpy(), scores.numpy(), (labels + first).numpy()], as_arrays(expected), (size[0], size[1])
    )
    assert len(boxes) == len(expected["boxes"])
    assert len(mine[0]) >= 0.98 * len(boxes)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-5, atol=1e-6)
    assert (scores.diff() <= 0).all()


@torch.no_grad()
def test_nothing_found_is_no_error():
    model = detector("retinanet", score_thresh=0.9999999)
    boxes, scores, labels = WHOLE["retinanet"](model, 0)(torch.zeros(1, 3, 64, 64))
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


class Pooled(torch.nn.Module):
    """Regions of four levels, and two numbers of each whose division computes the one inside the other."""

    def __init__(self):
        super().__init__()
        self.pool = RegionPool(3)

    def forward(self, image, boxes):
        levels = {str(i): image[..., :: 2**i, :: 2**i] for i in range(4)}
        order = boxes[:, 0].topk(4).indices
        return self.pool(levels, [boxes], [(128, 128)]), order // 3, order % 3


@pytest.mark.parametrize("side", [None, 8.0, 120.0])
def test_each_region_is_read_from_its_level(side, tmp_path):
    """Also where all are of one level, and the others have none; outputs that equal an inner value keep their type."""
    model, rng = Pooled(), torch.Generator().manual_seed(1)
    corners = torch.rand(20, 2, generator=rng) * 8
    sides = torch.linspace(4, 500, 20)[:, None] if side is None else torch.full((20, 1), side)
    example = torch.rand(1, 5, 32, 32, generator=rng), torch.cat([corners, corners + sides], 1)
    written = torch.onnx.export(torch.export.export(model, example), example, verbose=False, optimize=False)
    simplify(written.model)
    assert all(output.type is not None for output in written.model.graph.outputs)
    onnx.checker.check_model(written.model_proto)
    onnx.save(written.model_proto, tmp_path / "pooled.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "pooled.onnx")
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, example, strict=True)})
    expected = model(*example)
    np.testing.assert_allclose(found[0], expected[0].numpy(), rtol=1e-5, atol=1e-6)
    assert [f.tolist() for f in found[1:]] == [e.tolist() for e in expected[1:]]


# ---- the comparison ---------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A detector that always finds the same."""

    def __init__(self, boxes, scores, labels):
        super().__init__()
        self.found = (torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels))

    def forward(self, images):
        return self.found


TWO = ([[0.0, 0, 8, 8], [4.0, 4, 30, 30]], [0.8, 0.5], [1, 0])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda b, s, n: (b[::-1], s[::-1], n[::-1]), True),  # another order
        (lambda b, s, n: (b, s, [1, 1]), False),  # another label
        (lambda b, s, n: (b[:1], s[:1], n[:1]), False),  # one is missing
        (lambda b, s, n: ([*b, b[0]], [*s, 0.3], [*n, 2]), False),  # one too many
        (lambda b, s, n: ([[9.0, 0, 17, 8], b[1]], s, n), False),  # elsewhere
        (lambda b, s, n: (b, [0.8, 0.9], n), False),  # another score
    ],
)
def test_detections_are_compared_with_those_of_their_label_and_place(change, same):
    boxes, scores, labels = change(*TWO)
    arrays = [np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels)]

    def run():
        pre = Preprocess((32, 32))
        return compare_detections(Fixed(*TWO), lambda x: arrays, [image(32, 32)], pre, [(1, (32, 32))])

    if same:
        (check,) = run()
        assert (check.detections, check.absolute) == (2, 0.0)
    else:
        with pytest.raises(Disagrees, match="detections at 32 x 32 pixels are not among PyTorch's 2"):
            run()


# ---- files ------------------------------------------------------------------------------------------------------


def deployed(model, head, shape, size=(96, 96)):
    """A file's stand-in: the graph itself behind the interface of a runtime."""
    meta = WeightsMeta("mat_1", head=head, head_options=OPTIONS[head], task="detection", classes=["a", "b", "c"])
    meta.preprocess = Preprocess(size)
    graph = WHOLE[head](model, int(head == "ssdlite"))

    def run(x):
        with torch.no_grad():
            return [output.numpy() for output in graph(torch.from_numpy(x))]

    outputs = ["boxes", "scores", "labels"]
    return DeployedDetector(Path("file.onnx"), run, Metadata(meta, "onnx", shape, outputs, "detections"))


@pytest.mark.parametrize("size", [(96, 150), (40, 33), (300, 200)])
@pytest.mark.parametrize("head", OPTIONS)
@torch.no_grad()
def test_images_reach_a_file_as_they_reach_the_detector(head, size):
    model = detector(head)
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    shape = [1, 3, 96, 96] if head == "ssdlite" else [1, 3, "height", "width"]
    found, expected = deployed(model, head, shape)([pixels])[0], model([pixels])[0]
    mine, theirs = matched(as_arrays(found), as_arrays(expected), size)
    assert len(mine[0]) >= 0.98 * len(expected["boxes"]) > 0
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-4, atol=1e-2)


@torch.no_grad()
def test_a_file_of_one_size_gets_padded_images():
    """An image that fills the file's width is the image itself above padding, and no box leaves it."""
    model = detector("retinanet")
    found = deployed(model, "retinanet", [1, 3, 96, 96])([torch.rand(3, 48, 192)])[0]
    assert len(found["boxes"]) > 0
    assert found["boxes"][:, 2].max() <= 192
    assert found["boxes"][:, 3].max() <= 48


def test_a_file_is_predicted_and_measured_like_the_weights(tmp_path, capsys):
    """The AP of a file is PyTorch's, on ground truth that is made of PyTorch's own detections."""
    weights, path = saved("ssdlite", tmp_path), tmp_path / "whole.onnx"
    (tmp_path / "images").mkdir()
    names = []
    for number, (height, width) in enumerate(((96, 120), (64, 64), (150, 90))):
        names.append(tmp_path / "images" / f"{number}.png")
        image(height, width, number).save(names[-1])
    argv = ["export", weights, "--format", "onnx", "--end_to_end", "--output", str(path), "--json"]
    assert main([*argv, "--images", str(names[0])]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["outputs"] == ["boxes", "scores", "labels"]
    assert made["checks"][0]["detections"] > 20
    assert max(check["relative"] for check in made["checks"]) < 1e-4
    description = json.loads(Path(f"{path}.json").read_text())
    assert description["output_kind"] == "detections"
    assert description["decoding"]["nms_thresh"] == 0.45
    assert description["input"]["shape"] == [1, 3, 96, 96]

    model, file = load(weights), load(path)
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate("abc", 1)]}
    for number, name in enumerate(names):
        mine, theirs = (one.predict(name, device="cpu").prediction for one in (file, model))
        np.testing.assert_allclose(mine.boxes, theirs.boxes, rtol=1e-4, atol=1e-2)
        assert mine.labels.tolist() == theirs.labels.tolist()
        width, height = Image.open(name).size
        truth["images"].append({"id": number, "file_name": name.name, "width": width, "height": height})
        for k in range(0, len(theirs.boxes), 7):
            left, top, right, bottom = (float(v) for v in theirs.boxes[k] + [1, 1, 2, 3])
            box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            label = int(theirs.labels[k]) + 1
            ids = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": label, "iscrowd": 0}
            truth["annotations"].append({**box, **ids})
    annotations = tmp_path / "truth.json"
    annotations.write_text(json.dumps(truth))
    aps = []
    for source in (weights, str(path)):
        data = ["--data", "coco", "--data.images", str(tmp_path / "images"), "--data.annotations", str(annotations)]
        assert main(["evaluate", source, *data, "--data.val_split", "all", "--json", "--device", "cpu"]) == 0
        aps.append(json.loads(capsys.readouterr().out))
    assert aps[0]["AP50"] > 0.05
    assert all(aps[1][name] == pytest.approx(aps[0][name], abs=1e-6) for name in ("AP", "AP50", "AP75", "AR100"))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "sparse_rcnn"])
def test_file_takes_any_size(head, tmp_path, capsys):
    weights, path = saved(head, tmp_path), tmp_path / "whole.onnx"
    image(120, 150).save(tmp_path / "a.png")
    argv = ["export", weights, "--format", "onnx", "--end_to_end", "--output", str(path), "--json"]
    assert main([*argv, "--images", str(tmp_path / "a.png")]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["shape"] == [1, 3, "height", "width"]
    assert len(made["checks"]) == 3
    assert min(check["detections"] for check in made["checks"]) >= 20
    model, file = load(weights), load(path)
    for size in ((96, 150), (40, 200)):
        mine, theirs = (one.predict(image(*size), device="cpu").prediction for one in (file, model))
        found = [[p.boxes, p.scores, p.labels] for p in (mine, theirs)]
        pairs = matched(*found, size)
        assert len(pairs[0][0]) >= 0.98 * len(theirs.boxes) > 10


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "more", "sentence"),
    [
        ("semantic_fpn", [], "--end_to_end is for detectors, not for semantic_segmentation"),
        ("retinanet", ["--features"], "choose one"),
        ("retinanet", ["--format", "openvino", "--output", "a.xml"], "--end_to_end is for onnx files"),
        ("retinanet", ["--dynamic", "batch"], "--dynamic batch is not possible with --end_to_end"),
        ("retinanet", ["--batch_size", "4"], "--batch_size 4 is not possible with --end_to_end"),
        ("retinanet", ["--quantize", "int8"], "--quantize int8 is not possible with --end_to_end"),
    ],
)
def test_options_that_do_not_go_with_it(head, more, sentence, tmp_path, mistake):
    task, options, _ = CASES[head]
    weights = weights_with(head, task, options, tmp_path)
    argv = ["export", weights, "--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--end_to_end"]
    assert sentence in mistake(*argv, *more)
    assert not (tmp_path / "a.onnx").exists()


def test_detectors_with_masks_say_what_stands_in_the_way(tmp_path, mistake):
    weights = weights_with(MASKS[0], *MASKS[1:], tmp_path)
    said = mistake("export", weights, "--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--end_to_end")
    assert "--end_to_end is not possible with head mask_rcnn: this library writes no graph" in said
    assert "--features" in said
