import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from vitrail.config.data import DataConfig
from vitrail.data import open_dataset
from vitrail.data.datasets.base import ImageStream
from vitrail.data.datasets.coco import open_instances, open_panoptic
from vitrail.data.datasets.coco_keypoints import open_keypoints
from vitrail.data.datasets.market1501 import open_market1501
from vitrail.data.datasets.segmentation import open_semantic
from vitrail.data.fingerprint import Fingerprint, difference, fingerprint
from vitrail.utils.plain import from_dict


def image(path, seed, side=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def classes(root):
    for i, name in enumerate(("ant", "bee", "cow")):
        for k in range(4):
            image(root / "train" / name / f"{k}.png", 10 * i + k)
            image(root / "val" / name / f"{k}.png", 100 + 10 * i + k)
    return lambda: open_dataset(DataConfig("folder", root=str(root)), train=True)


def coco(root):
    box = {"category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
    box |= {"segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]], "keypoints": [3, 3, 2, 9, 9, 2], "num_keypoints": 2}
    for i in range(1, 4):
        image(root / "train" / f"{i}.png", i)
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 24} for i in range(1, 4)],
        "annotations": [{"id": i, "image_id": i, **box} for i in range(1, 4)],
        "categories": [{"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]}],
    }
    for kind in ("instances", "person_keypoints"):
        file = root / "annotations" / f"{kind}_train.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return DataConfig("coco", root=str(root), train_split="train")


def instances(root):
    data = coco(root)
    return lambda: open_instances(data, True, True)


def keypoints(root):
    data = coco(root)
    return lambda: open_keypoints(data, True)


def semantic(root):
    for i in range(3):
        image(root / "images" / "training" / f"{i}.png", i)
        mask = root / "annotations" / "training" / f"{i}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(24 * 24, dtype=np.uint8).reshape(24, 24) % 2).save(mask)
    (root / "classes.json").write_text(json.dumps({"classes": ["sky", "sea"]}))
    return lambda: open_semantic(DataConfig("ade20k", root=str(root), train_split="train"), True)


def panoptic(root):
    for i in range(1, 3):
        image(root / "train" / f"{i}.png", i)
        file = root / "annotations" / "panoptic_train" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        ids = np.zeros((24, 24, 3), dtype=np.uint8)
        ids[..., 0] = 1 + (np.arange(24) > 11)
        Image.fromarray(ids).save(file)
    segments = [
        {"id": i, "category_id": i, "area": 288, "iscrowd": 0, "bbox": [12 * i - 12, 0, 12, 24]} for i in (1, 2)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 24} for i in (1, 2)],
        "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))
    return lambda: open_panoptic(DataConfig("coco", root=str(root), train_split="train"), True)


def identities(root):
    for person in (2, 5):
        for camera in (1, 2):
            image(root / "bounding_box_train" / f"{person:04d}_c{camera}s1_000001_01.jpg", person + camera)
    return lambda: open_market1501(DataConfig("market1501", root=str(root)), True)


KINDS = (classes, instances, keypoints, semantic, panoptic, identities)


@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_wherever_the_data_lie(kind, tmp_path):
    before = fingerprint(kind(tmp_path / "a")())
    now = fingerprint(kind(tmp_path / "elsewhere" / "b")())
    assert difference(before, now) is None
    assert from_dict(Fingerprint, json.loads(json.dumps(asdict(before)))) == before


def swap(a, b):
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)


def change_box(content):
    content["annotations"][1]["bbox"][2] = 8


def change_keypoint(content):
    content["annotations"][1]["keypoints"][0] = 4


def drop_segment(root):
    edit(root / "annotations/panoptic_train.json", lambda content: content["annotations"][1]["segments_info"].pop())
    Image.new("RGB", (24, 24), (1, 0, 0)).save(root / "annotations/panoptic_train/2.png")


CHANGES = {
    "more": (classes, lambda r: image(r / "train/ant/9.png", 9), "12 then, 13 now"),
    "fewer": (classes, lambda r: (r / "train/ant/3.png").unlink(), "12 then, 11 now"),
    "renamed class": (
        classes,
        lambda r: [(r / p / "ant").rename(r / p / "zebra") for p in ("train", "val")],
        "class number 0 was 'ant' then and is 'bee' now",
    ),
    "swapped classes": (classes, lambda r: swap(r / "train/ant", r / "train/cow"), "files of other content"),
    "renamed image": (classes, lambda r: (r / "train/ant/3.png").rename(r / "train/ant/8.png"), "other names"),
    "moved image": (
        classes,
        lambda r: (r / "train/ant/3.png").rename(r / "train/bee/8.png"),
        "other names",
    ),
    "other pixels": (classes, lambda r: image(r / "train/ant/3.png", 999), "files of other content"),
    "box": (instances, lambda r: edit(r / "annotations/instances_train.json", change_box), "other labels or annot"),
    "keypoint": (
        keypoints,
        lambda r: edit(r / "annotations/person_keypoints_train.json", change_keypoint),
        "other labels or annotations",
    ),
    "mask": (
        semantic,
        lambda r: Image.fromarray(np.ones((24, 24), dtype=np.uint8)).save(r / "annotations/training/1.png"),
        "files of other content",
    ),
    "segment": (panoptic, drop_segment, "other labels or annotations"),
    "identity": (
        identities,
        lambda r: shutil.move(
            r / "bounding_box_train/0002_c1s1_000001_01.jpg", r / "bounding_box_train/0005_c3s1_000001_01.jpg"
        ),
        "other names",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_said(name, tmp_path):
    kind, change, sentence = CHANGES[name]
    opened = kind(tmp_path)
    before = fingerprint(opened())
    change(tmp_path)
    assert sentence in difference(before, fingerprint(opened()))


def test_random_parts_differ_where_one_label_does():
    rng = np.random.default_rng(0)
    from vitrail.data.datasets.base import ArraySet

    for _ in range(20):
        count = int(rng.integers(2, 3000))
        pixels = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
        targets = rng.integers(0, 5, count)
        before = fingerprint(ArraySet(pixels, targets, list("abcde"), "t"))
        targets = targets.copy()
        targets[rng.integers(count)] ^= 1
        targets = targets.clip(0, 4)
        now = fingerprint(ArraySet(pixels, targets, list("abcde"), "t"))
        same = before.truth == now.truth
        assert (difference(before, now) is None) == same
        assert difference(before, fingerprint(ArraySet(pixels ^ 1, targets, list("abcde"), "t")))


def test_streams_are_told_by_length_classes_and_shards():
    class Shards(ImageStream):
        def names(self):
            return self.shards

        def eval_samples(self, rank, world):
            return iter(())

    def stream(count, classes, shards):
        made = Shards(classes, count)
        made.shards = shards
        return fingerprint(made)

    before = stream(9, ["a", "b"], ["0.tar", "1.tar"])
    assert difference(before, stream(9, ["a", "b"], ["0.tar", "1.tar"])) is None
    assert difference(before, stream(8, ["a", "b"], ["0.tar", "1.tar"])) == "9 then, 8 now"
    assert "'b' then and is none now" in difference(before, stream(9, ["a"], ["0.tar", "1.tar"]))
    assert "other names" in difference(before, stream(9, ["a", "b"], ["0.tar", "2.tar"]))
