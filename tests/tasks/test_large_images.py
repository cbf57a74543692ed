"""Detectors of images of any size and shape: bounded memory, results in the image's own pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

from annotated_helpers import write_coco
from vitrail.config.tasks import InferenceConfig
from vitrail.data import Preprocess
from vitrail.data import large as large_images
from vitrail.data.datasets import coco
from vitrail.data.datasets.coco_rle import mask_of, runs_of
from vitrail.data.large import EnlargedMask, reduced, reduced_map
from vitrail.factory import assemble
from vitrail.metrics.coco import CocoMetrics, results_of
from vitrail.metrics.panoptic import PanopticMetrics
from vitrail.tasks import detection
from vitrail.tasks.detection import DetectionInference
from vitrail.tasks.panoptic_segmentation import PanopticInference
from vitrail.tasks.semantic_segmentation import SemanticInference

SIZES = {"min_size": [32], "max_size": 48}
HEADS = {
    "retinanet": {"num_classes": 2, "channels": 32, **SIZES},
    "ssdlite": {"num_classes": 2, "image_size": [64, 64]},
    "sparse_rcnn": {"num_classes": 2, **SIZES},
    "mask_rcnn": {"num_classes": 2, "channels": 32, "fc_channels": 32, **SIZES},
    "panoptic_fpn": {"num_things": 2, "num_stuff": 2, "channels": 32, "fc_channels": 32, **SIZES},
}
SLENDER = [(5000, 1), (1, 5000), (1, 1), (333, 2), (49, 1), (48, 1), (97, 2)]


def network(head: str):
    torch.manual_seed(0)
    return assemble("emsnet_xxtiny", head, {}, HEADS[head]).eval()


def used(head: str):
    if head == "panoptic_fpn":
        return PanopticInference(["a", "b", "c", "d"], 2, InferenceConfig(score_thresh=0.0))
    options = InferenceConfig() if head == "sparse_rcnn" else InferenceConfig(score_thresh=0.0)
    return DetectionInference(head, ["a", "b"], head == "mask_rcnn", options)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", SLENDER)
def test_slender_images_have_results_within_them(head, size):
    image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (size[1], size[0], 3), np.uint8))
    (found,) = used(head).predict(network(head), [image], "cpu")
    if head == "panoptic_fpn":
        assert found.ids.shape == size[::-1]
    else:
        boxes = np.asarray(found.boxes)
        assert np.isfinite(boxes).all()
        assert (boxes >= -1e-3).all()
        assert (boxes <= np.array([*size, *size]) + 1e-2).all()
    assert found.draw(image).size[0] == size[0]


@pytest.mark.parametrize("head", ["retinanet", "sparse_rcnn", "mask_rcnn", "panoptic_fpn"])
def test_slender_images_are_learned_from(head):
    model = network(head).train()
    image, box = torch.rand(3, 2, 500), torch.tensor([[10.0, 0.0, 400.0, 2.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, 2, 500, dtype=torch.uint8)}
    target["semantic"] = torch.zeros(2, 500, dtype=torch.long)
    losses = model([image, image], [dict(target), dict(target)])  # one image has a map of one pixel: no statistics
    assert all(torch.isfinite(loss) for loss in losses.values())
    resized, moved = model.transform.resize(image, dict(target))
    ratio = torch.tensor(resized.shape[:0:-1]) / torch.tensor([500.0, 2.0])
    assert torch.allclose(moved["boxes"][0], box[0] * ratio.repeat(2), atol=1e-4)
    assert moved["masks"].shape[-2:] == resized.shape[-2:]


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_large_images_give_what_their_means_give_in_their_own_pixels(head, monkeypatch):
    monkeypatch.setattr(detection, "LARGE", 5000)
    monkeypatch.setattr(detection, "LARGE_MASKS", 5000)
    pixels = np.random.RandomState(2).randint(0, 256, (50, 40, 3), np.uint8)
    large = Image.fromarray(np.kron(pixels, np.ones((2, 2, 1), np.uint8)))  # its blocks' means are the small image
    model, use = network(head), used(head)
    (small,), (found,) = (use.predict(model, [image], "cpu") for image in (Image.fromarray(pixels), large))
    assert len(small.boxes)
    assert np.allclose(np.asarray(found.boxes), 2 * np.asarray(small.boxes), atol=1e-4)
    assert np.allclose(found.scores, small.scores)
    if head == "mask_rcnn":
        for mine, its in zip(found.masks, small.masks, strict=True):
            assert np.array_equal(np.asarray(mine), np.kron(its, np.ones((2, 2), bool)))
        assert found.to_dict()["masks"][0]["size"] == [100, 80]
        assert found.draw(large).size == large.size


def test_large_panoptic_images(monkeypatch):
    monkeypatch.setattr(coco, "LARGE_MASKS", 4 * 3000)
    monkeypatch.setattr(coco, "LARGE_LOGITS", 1)
    pixels = np.random.RandomState(2).randint(0, 256, (50, 40, 3), np.uint8)
    large = Image.fromarray(np.kron(pixels, np.ones((2, 2, 1), np.uint8)))
    model, use = network("panoptic_fpn"), used("panoptic_fpn")
    (small,), (found,) = (use.predict(model, [image], "cpu") for image in (Image.fromarray(pixels), large))
    assert np.array_equal(found.ids, np.kron(small.ids, np.ones((2, 2), int)))
    assert [s["area"] for s in found.segments] == [4 * s["area"] for s in small.segments]


def test_large_images_of_a_segmenter(monkeypatch):
    monkeypatch.setattr(large_images, "LARGE", 5000)
    torch.manual_seed(0)
    model = assemble("emsnet_xxtiny", "semantic_fpn", {}, {"num_classes": 3}).eval()
    preprocess = Preprocess((32, 32))
    use = SemanticInference("semantic_fpn", ["a", "b", "c"], preprocess, InferenceConfig(), None, 64)
    pixels = np.random.RandomState(2).randint(0, 256, (50, 40, 3), np.uint8)
    large = Image.fromarray(np.kron(pixels, np.ones((2, 2, 1), np.uint8)))
    (small,), (found,) = (use.predict(model, [image], "cpu") for image in (Image.fromarray(pixels), large))
    assert np.array_equal(found.indices, np.kron(small.indices, np.ones((2, 2), np.uint8)))
    assert found.draw(large).width == large.width


def test_masks_as_bool_are_those_of_the_probabilities():
    model = network("mask_rcnn")
    image = torch.rand(3, 61, 83)
    (probabilities,) = model([image])
    model.transform.mask_thresh = 0.5
    (bools,) = model([image])
    assert bools["masks"].dtype == torch.bool
    assert torch.equal(bools["masks"], probabilities["masks"] >= 0.5)
    assert torch.equal(bools["boxes"], probabilities["boxes"])
    assert paste_masks_in_image(torch.zeros(0, 1, 28, 28), torch.zeros(0, 4), (61, 83)).shape[1:] == (1, 61, 83)


@pytest.mark.parametrize(
    ("size", "most"), [((40, 30), 1200), ((40, 30), 1199), ((1001, 7), 900), ((3, 5000), 100), ((13, 13), 1)]
)
def test_reduced(size, most):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), np.uint8))
    smaller = reduced(image, most)
    assert smaller.width * smaller.height <= most
    assert (smaller is image) == (size[0] * size[1] <= most)
    mean = np.asarray(image).astype(float)[: -(-size[1] // smaller.height), : -(-size[0] // smaller.width)].mean((0, 1))
    assert np.abs(np.asarray(smaller)[0, 0] - mean).max() <= 1


@pytest.mark.parametrize(("small", "size"), [((3, 4), (6, 8)), ((2, 3), (5, 7)), ((1, 1), (4, 9))])
def test_an_enlarged_mask_is_its_blocks(small, size):
    values = np.random.RandomState(0).rand(*small) < 0.5
    large = EnlargedMask(values, size)
    expected = [
        [values[y * small[0] // size[0], x * small[1] // size[1]] for x in range(size[1])] for y in range(size[0])
    ]
    assert np.array_equal(np.asarray(large), expected)
    assert np.array_equal(np.concatenate([large[i : i + 2] for i in range(0, size[0], 2)]), expected)


@pytest.mark.parametrize("seed", range(12))
def test_run_lengths_of_an_enlarged_mask_are_those_of_its_pixels(seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 9, 2)
    mask = EnlargedMask(rng.random((h, w)) < rng.choice([0, 0.2, 0.5, 0.9, 1]), (h + rng.integers(0, 20), w * 3 + 1))
    runs = runs_of(mask)
    assert runs == runs_of(np.asarray(mask))
    assert np.array_equal(mask_of(runs, *mask.shape, "mask"), np.asarray(mask))
    assert mask.runs().sum() == mask.shape[0] * mask.shape[1]
    assert (mask.runs()[1:] > 0).all()


@pytest.mark.parametrize(("whole", "small"), [((6, 9), (2, 3)), ((7, 10), (3, 5)), ((5, 5), (5, 5)), ((1, 9), (1, 2))])
def test_a_reduced_map_has_the_value_in_the_middle_of_each_block(whole, small):
    values = np.random.RandomState(0).randint(0, 1000, whole)
    made = reduced_map(values, small)
    assert made.shape == small
    for y in range(small[0]):
        for x in range(small[1]):
            assert made[y, x] == values[int((y + 0.5) * whole[0] / small[0]), int((x + 0.5) * whole[1] / small[1])]


def enlarged_data(tmp_path, factor: int):
    """A COCO data set, and the same with images, masks and boxes of so many times the size."""
    small = write_coco(tmp_path / "small", {"val": 2})
    large = write_coco(tmp_path / "large", {"val": 2})
    for path in [*large.rglob("*.png")]:
        image = Image.open(path)
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(path)
    for path in (large / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for record in content["images"]:
            record["width"], record["height"] = record["width"] * factor, record["height"] * factor
        for record in content["annotations"]:
            if "bbox" in record:
                record["bbox"] = [factor * value for value in record["bbox"]]
                record["area"] *= factor**2
                record["segmentation"] = [[factor * value for value in record["segmentation"][0]]]
        path.write_text(json.dumps(content))
    return small, large


@pytest.mark.parametrize("masks", [False, True])
def test_objects_of_large_images_are_those_of_the_images_they_are_reduced_to(tmp_path, monkeypatch, masks):
    monkeypatch.setattr(coco, "LARGE", 64 * 48)
    monkeypatch.setattr(coco, "LARGE_MASKS", 64 * 48)
    small, large = (
        coco.CocoInstances(root / "annotations/instances_val.json", root / "images/val", masks)
        for root in enlarged_data(tmp_path, 3)
    )
    for (image, target), (reduced_image, its) in zip(small, large, strict=True):
        assert its.pop("sizes") == ((144, 192), (48, 64))
        assert np.array_equal(np.asarray(image), np.asarray(reduced_image))
        for name, value in target.items():
            assert torch.equal(torch.as_tensor(its[name]), torch.as_tensor(value)), name
    found = {name: target[name] for name in ("boxes", "labels", *(["masks"] if masks else []))}
    found = {**found, "scores": torch.ones(len(target["labels"]))}
    for sized, data, sizes in ((small, small, None), (large, large, ((144, 192), (48, 64)))):
        results = results_of(found, target["image_id"], data.category_ids, sizes)
        kinds = ("segm", "bbox") if masks else ("bbox",)
        metrics = CocoMetrics(data, kinds)
        for index in range(len(sized)):
            image, its = sized[index]
            perfect = {**found, **{n: its[n] for n in ("boxes", "labels", *(["masks"] if masks else []))}}
            metrics.update([perfect], (None, [its], None))
        assert results[0]["bbox"] == pytest.approx([v * (1 if sizes is None else 3) for v in boxes_of(found)[0]])
        assert metrics.compute()["AP"] == pytest.approx(1)


def boxes_of(found):
    """Left, top, width and height."""
    return torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], 1).tolist()


def test_panoptic_segments_of_large_images_are_measured_in_their_own_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "LARGE_MASKS", 4 * 64 * 48)
    monkeypatch.setattr(coco, "LARGE_LOGITS", 1)
    small, large = (
        coco.CocoPanoptic(root / "annotations/panoptic_val.json", root / "images/val")
        for root in enlarged_data(tmp_path, 3)
    )
    use = PanopticInference(large.classes, 2, InferenceConfig())
    metrics = PanopticMetrics(large)
    for index in range(len(large)):
        (image, target), (_, its) = large[index], small[index]
        assert target["sizes"] == ((144, 192), (48, 64))
        assert image.size == (64, 48)
        for name in ("boxes", "labels", "masks", "semantic"):
            assert torch.equal(torch.as_tensor(target[name]), torch.as_tensor(its[name])), name
        metrics.update([use.ground_truth(target)], (None, [target], torch.tensor([index])))
    computed = metrics.compute()
    assert computed["PQ"] == computed["SQ"] == 1


def test_large_images_of_a_segmenter_are_measured_as_they_are_predicted(monkeypatch):
    monkeypatch.setattr(large_images, "LARGE", 5000)
    torch.manual_seed(0)
    model = assemble("emsnet_xxtiny", "semantic_fpn", {}, {"num_classes": 3}).eval()
    use = SemanticInference("semantic_fpn", ["a", "b", "c"], Preprocess((32, 32)), InferenceConfig(), None, 64)
    image = Image.fromarray(np.random.RandomState(2).randint(0, 256, (101, 83, 3), np.uint8))
    (measured,), (found,) = use.infer(model, [use.views(image, {})[0]]), use.predict(model, [image], "cpu")
    assert measured.shape == (101, 83)
    assert np.array_equal(measured.numpy(), found.indices)


@pytest.mark.parametrize("classes", [2, 4, 20, 133, 1000])
def test_a_hundred_masks_of_the_largest_panoptic_image_take_less_than_a_gigabyte(classes):
    assert large_images.LARGE_MASKS // 4 <= coco.large_panoptic(classes) <= 2**30 // 100
