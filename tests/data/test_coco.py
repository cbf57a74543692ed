"""Boxes, masks and panoptic segments of COCO files: what is read, what is skipped and counted, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from annotated_helpers import CATEGORIES, annotation, sample_image, write_coco
from vitrail.config.data import DataConfig
from vitrail.data.datasets.coco import CocoInstances, CocoPanoptic, open_instances, open_panoptic
from vitrail.data.datasets.coco_rle import mask_of, runs_of
from vitrail.errors import UserError

pytest.importorskip("faster_coco_eval")
DATA = Path(os.environ.get("VITRAIL_TEST_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="VITRAIL_TEST_DATA is not set")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_coco(tmp_path / "coco", {"train": 3, "val": 2})


def config(root: Path, **options) -> DataConfig:
    return DataConfig(name="coco", root=str(root), **options)


def changed(root: Path, name: str, change) -> Path:
    """An annotation file, changed in place."""
    path = root / "annotations" / f"{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_labels_count_from_0_in_the_order_of_the_ids(root):
    data = open_instances(config(root), train=True, masks=True)
    assert data.classes == ["red", "blue"]
    assert data.category_ids == [3, 7]
    image, target = data[1]
    pixels, ids, found = sample_image(1, (64, 48))
    assert np.array_equal(np.asarray(image), pixels)
    assert target["image_id"] == 11
    assert target["labels"].tolist() == [{3: 0, 7: 1}[category] for category, _ in found]
    assert target["boxes"].tolist() == [[x, y, x + w, y + h] for _, (x, y, w, h) in found]
    for k in range(2):
        assert np.array_equal(target["masks"][k].numpy(), ids == k + 1)


def test_crowds_and_boxes_outside_are_not_learned_and_boxes_are_cut(root):
    def change(content):
        content["annotations"] = [
            annotation(1, 10, 3, [-5, 10, 20, 10]),
            annotation(2, 10, 3, [60, 40, 20, 20], iscrowd=1),
            annotation(3, 10, 7, [64, 0, 5, 5]),
            annotation(4, 11, 7, [5, 5, 0, 9]),
            annotation(5, 12, 7, [5, 5, 3, 9]),
        ]

    changed(root, "instances_train", change)
    data = open_instances(config(root), train=True, masks=False)
    assert len(data) == 2
    assert data.skipped == {"images without objects": 1, "boxes without area in the image": 2, "crowds": 1}
    assert data[0][1]["boxes"].tolist() == [[0, 10, 15, 20]]
    assert len(data.content["annotations"]) == 5  # the metric sees them all


def test_images_without_objects_are_measured_on(root):
    changed(root, "instances_val", lambda content: content.update(annotations=content["annotations"][:2]))
    data = open_instances(config(root), train=False, masks=True)
    assert len(data) == 2
    target = data[1][1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, 48, 64)


def test_a_limit_takes_the_first_images_with_what_belongs_to_them(root):
    data = open_instances(config(root, limit=2), train=True, masks=False)
    assert [record["file_name"] for record in data.content["images"]] == ["000.png", "001.png"]
    assert {record["image_id"] for record in data.content["annotations"]} == {10, 11}


def test_the_training_part_can_be_measured_on(root):
    assert len(open_instances(config(root, val_split="train"), train=False, masks=False)) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["images"][0].update(file_name="none.png"), ["image 10", "none.png"]),
        (lambda c: c["annotations"][0].update(category_id=4), ["annotation 1", "no category 4"]),
        (lambda c: c["annotations"][0].update(image_id=99), ["annotation 1", "no image 99"]),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), ["annotation 1", "four numbers"]),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), ["annotation 1", "not finite"]),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), ["annotation 1", "polygons"]),
        (lambda c: c["annotations"][0].update(segmentation={"counts": 5}), ["annotation 1", "the size of a mask"]),
        (lambda c: c.update(annotations=[]), ["no image with an object"]),
    ],
)
def test_a_wrong_record_is_named_when_the_data_is_opened(root, change, says):
    path = changed(root, "instances_train", change)
    with pytest.raises(UserError) as caught:
        open_instances(config(root), train=True, masks=True)
    assert str(path) in str(caught.value)
    for word in says:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["images"][0].update(width=65), ["'000.png' is 64x48 pixels", "65x48"]),
        (lambda c: c["annotations"][0].update(segmentation={"size": [4, 4], "counts": "01"}), ["[4, 4]", "[48, 64]"]),
        (lambda c: c["annotations"][0].update(segmentation={"size": [48, 64], "counts": [9, 9]}), ["do not fill 3072"]),
        (lambda c: c["annotations"][0].update(segmentation={"size": [48, 64], "counts": "\x7f"}), ["do not fill 3072"]),
    ],
)
def test_what_does_not_fit_its_image_is_named_when_the_data_is_opened(root, change, says):
    changed(root, "instances_train", change)
    with pytest.raises(UserError) as caught:
        open_instances(config(root), train=True, masks=True)
    for word in says:
        assert word in str(caught.value)


def test_missing_folders_and_files_are_named(tmp_path, root):
    with pytest.raises(UserError, match=r"no annotations/instances_train2017.json"):
        open_instances(config(tmp_path), train=True, masks=False)
    lone = DataConfig(name="coco", annotations=str(root / "annotations" / "instances_train.json"))
    with pytest.raises(UserError, match=r"--data.images"):
        open_instances(lone, train=True, masks=False)


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_come_back(mask):
    runs = runs_of(mask)
    assert runs["size"] == list(mask.shape)
    assert np.array_equal(mask_of(runs, *mask.shape, "here"), mask)
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    counts = np.diff([0, *changes, flat.size]).tolist()
    plain = {"size": list(mask.shape), "counts": counts}
    assert np.array_equal(mask_of(plain, *mask.shape, "here"), mask)


# ---- panoptic ---------------------------------------------------------------------------------------------------


def test_things_and_stuff_are_numbered_apart(root):
    data = open_panoptic(config(root), train=True)
    assert data.classes == ["red", "blue", "floor", "wall"]
    assert (data.things, data.stuff) == ([3, 7], [90, 95])
    target = data[0][1]
    _, ids, found = sample_image(0, (64, 48))
    assert target["labels"].tolist() == [{3: 0, 7: 1}[category] for category, _ in found]
    assert target["boxes"].tolist() == [[x, y, x + w, y + h] for _, (x, y, w, h) in found]
    wanted = np.array([0, 2, 2, 1, 0])[ids]  # 2: a thing; wall is 1, floor 0
    assert np.array_equal(target["semantic"].numpy(), wanted)


def test_crowds_and_the_unknown_are_ignored(root):
    def change(content):
        segments = content["annotations"][0]["segments_info"]
        segments[0]["iscrowd"] = 1
        del segments[2]

    changed(root, "panoptic_train", change)
    target = open_panoptic(config(root), train=True)[0][1]
    _, ids, _ = sample_image(0, (64, 48))
    assert (target["semantic"].numpy()[(ids == 1) | (ids == 3)] == 255).all()
    assert len(target["labels"]) == 1


@pytest.mark.parametrize(
    ("change", "says", "opens"),
    [
        (lambda c: c["annotations"].pop(), ["image 12 has no segments"], False),
        (lambda c: c["annotations"][0].update(file_name="x.png"), ["image 10", "no map x.png"], False),
        (lambda c: c.update(categories=[{**k, "isthing": 1} for k in CATEGORIES]), ["things and of stuff"], False),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=77), ["image 10", "segment 77"], True),
    ],
)
def test_wrong_panoptic_records_are_named(root, change, says, opens):
    changed(root, "panoptic_train", change)
    data = open_panoptic(config(root), train=True) if opens else None
    with pytest.raises(UserError) as caught:
        data[0] if data else open_panoptic(config(root), train=True)
    for word in says:
        assert word in str(caught.value)


def test_a_map_of_another_size_and_a_damaged_one_are_named(root):
    data = open_panoptic(config(root), train=True)
    Image.new("RGB", (10, 10)).save(root / "annotations" / "panoptic_train" / "000.png")
    with pytest.raises(UserError, match="image 10: the map is 10x10"):
        data[0]
    (root / "annotations" / "panoptic_train" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"001\.png"):
        data[1]


# ---- real data --------------------------------------------------------------------------------------------------


@needs_data
def test_coco_mini_is_read_as_its_description_says():
    root = DATA / "coco_mini"
    train = CocoInstances(root / "annotations" / "instances_train.json", root / "images" / "train", masks=True)
    assert (len(train), len(train.classes), len(train.content["annotations"])) == (52, 80, 360)
    for index in range(0, 52, 7):
        target = train[index][1]
        assert torch.isfinite(target["boxes"]).all()
        assert target["masks"].flatten(1).any(1).all()
    panoptic = CocoPanoptic(root / "annotations" / "panoptic_val.json", root / "images" / "val")
    assert (len(panoptic), len(panoptic.things), len(panoptic.stuff)) == (15, 80, 53)
    assert sum(len(record["segments_info"]) for record in panoptic.records.values()) == 126
    for index in range(15):
        panoptic[index]
