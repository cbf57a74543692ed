"""What a run stores of its validation images measures the same as the run itself, whatever it found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotated_helpers import CATEGORIES, write_coco
from keypoint_helpers import NAMES, PERSON, four_persons, person, write_keypoints
from vitrail.config.data import DataConfig, Preprocess
from vitrail.config.tasks import InferenceConfig
from vitrail.data.datasets.coco import CocoInstances, CocoPanoptic, open_instances, open_panoptic
from vitrail.data.datasets.coco_keypoints import CocoKeypoints, open_keypoints
from vitrail.metrics.coco import CocoMetrics, average_precision
from vitrail.metrics.keypoints import KeypointsMetrics
from vitrail.metrics.panoptic import PanopticMetrics
from vitrail.metrics.stored_predictions import score
from vitrail.structures import PanopticSegments
from vitrail.tasks.keypoints import KeypointsInference

pytest.importorskip("faster_coco_eval")
#: (H, W) of the images with objects
SHAPE = (48, 64)
SEEDS = st.integers(0, 2**32 - 1)
OFTEN = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), {"train": 6, "val": 6})


def without(metrics: dict, *names: str) -> dict:
    return {name: value for name, value in metrics.items() if name not in names}


def equal(stored: dict, own: dict) -> None:
    """The same metrics to the last digit; JSON knows no tuples and the like."""
    assert json.dumps(stored, sort_keys=True) == json.dumps(own, sort_keys=True)


def found_objects(rng: np.random.Generator, target: dict) -> dict[str, torch.Tensor]:
    """True objects, moved, dropped and doubled, and others where there are none; boxes and masks need not agree."""
    boxes, labels, masks = [], [], []
    height, width = SHAPE
    for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        for _ in range(rng.integers(0, 3)):
            moved = np.sort((np.array(box) + rng.normal(0, 3, 4)).reshape(2, 2), axis=0)
            boxes.append(moved.reshape(4))
            labels.append(label if rng.random() < 0.8 else 1 - label)
            mask = np.zeros(SHAPE, dtype=bool)
            left, top, right, bottom = np.clip(moved.reshape(4) + rng.integers(-2, 3, 4), 0, [width, height] * 2)
            mask[int(top) : int(bottom), int(left) : int(right)] = rng.random() < 0.9
            masks.append(mask)
    return {
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(rng.integers(0, 20, len(boxes)) / 20, dtype=torch.float32),  # many alike
        "masks": torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *SHAPE)),
    }


@OFTEN
@given(seed=SEEDS, limit=st.sampled_from([None, 2, 5]), masks=st.booleans())
def test_objects(root, tmp_path, seed, limit, masks):
    rng = np.random.default_rng(seed)
    data = DataConfig(name="coco", root=str(root), limit=limit)
    opened: CocoInstances = open_instances(data, train=False, masks=masks)
    counts = CocoMetrics(opened, ("segm", "bbox") if masks else ("bbox",))
    for index in range(len(opened)):
        target = opened[index][1]
        found = found_objects(rng, target)
        counts.update([found if masks else without(found, "masks")], (None, [target], None))
    own = without(counts.compute(), "images")
    counts.report(tmp_path)
    stored = tmp_path / "results.json"
    if masks:
        equal(score("instance_segmentation", stored, data), {k: v for k, v in own.items() if not k.startswith("box_")})
        boxes = without(score("detection", stored, data), "per_class")
        equal(boxes, {k.removeprefix("box_"): v for k, v in own.items() if k.startswith("box_")})
    else:
        equal(score("detection", stored, data), own)


@OFTEN
@given(seed=SEEDS)
def test_no_other_entry_of_a_record_counts(root, seed):
    """Masks measure as masks whatever box, area or keypoints stand beside them, and boxes whatever mask."""
    rng = np.random.default_rng(seed)
    opened = open_instances(DataConfig(name="coco", root=str(root)), train=False, masks=True)
    counts = CocoMetrics(opened, ("segm",))
    for index in range(len(opened)):
        target = opened[index][1]
        counts.update([found_objects(rng, target)], (None, [target], None))
    for kind, entry in (("segm", "segmentation"), ("bbox", "bbox")):
        plain = [{k: r[k] for k in ("image_id", "category_id", "score", entry)} for r in counts.results]
        odd = {"bbox": [0.0, 0.0, 500.0, 500.0], "segmentation": None, "area": -7, "keypoints": ["x"], "id": 0}
        more = [{**odd, "iscrowd": 1, **record} for record in plain]
        equal(average_precision(opened.content, more, kind), average_precision(opened.content, plain, kind))


def persons_data(root: Path, rng: np.random.Generator) -> Path:
    """Six persons in two images, of whom one is a crowd and one has no labelled keypoint."""
    more = [
        person(20, 1, [3, 3, 20, 20], keypoints=[0] * 51),
        person(21, 2, [30, 30, 20, 20], iscrowd=1),
    ]
    persons = [*four_persons(), *more]
    order = rng.permutation(17)
    for one in persons:
        one["keypoints"] = np.reshape(one["keypoints"], (17, 3))[order].ravel().tolist()
    category = {**PERSON, "keypoints": [NAMES[i] for i in order]}
    return write_keypoints(root, persons, "val", categories=[category])


@OFTEN
@given(seed=SEEDS, limit=st.sampled_from([None, 1, 3]))
def test_persons(tmp_path, seed, limit):
    rng = np.random.default_rng(seed)
    persons_data(tmp_path, rng)
    data = DataConfig(name="coco", root=str(tmp_path), limit=limit)
    opened: CocoKeypoints = open_keypoints(data, train=False)
    counts = KeypointsMetrics(opened)
    crop = KeypointsInference(opened.classes, Preprocess((64, 96)), 1.25, InferenceConfig()).crop
    for index in range(len(opened)):
        image, target = opened[index]
        _, known = crop(image, target)
        scale = np.linalg.det(known["back"][:, :2]) ** 0.5
        places = (target["keypoints"][:, :2] + 0.5 - known["back"][:, 2]) / scale + rng.normal(0, 2, (17, 2))
        pose = np.column_stack([places, rng.random(17)])
        counts.update(torch.from_numpy(pose[None]), (None, [known], None))
    own = without(counts.compute(), "boxes")
    counts.report(tmp_path)
    equal(score("keypoints", tmp_path / "results.json", data), own)


def found_segments(rng: np.random.Generator, data: CocoPanoptic, index: int) -> PanopticSegments:
    """The true map, moved, with classes exchanged and some segments left out."""
    ids = np.roll(data.map(index), rng.integers(-4, 5, 2), (0, 1))
    known = []
    for number in np.unique(ids):
        if rng.random() < 0.2:
            ids[ids == number] = 0
            continue
        label = int(rng.integers(len(data.classes)))
        known.append({"id": int(number), "label": label, "thing": label < len(data.things), "score": None, "area": 1})
    return PanopticSegments(data.classes, ids, known)


@OFTEN
@given(seed=SEEDS, limit=st.sampled_from([None, 4]), parts=st.sampled_from([1, 2, 3]))
def test_segments_of_any_number_of_processes(root, tmp_path_factory, seed, limit, parts):
    rng = np.random.default_rng(seed)
    data = DataConfig(name="coco", root=str(root), limit=limit)
    opened = open_panoptic(data, train=False)
    counts = [PanopticMetrics(opened) for _ in range(parts)]
    for index in range(len(opened)):
        found = found_segments(rng, opened, index)
        counts[index % parts].update([found], (None, None, torch.tensor([index])))
    whole = PanopticMetrics(opened)
    whole.load([part.state() for part in counts])
    folder = tmp_path_factory.mktemp("report")
    whole.report(folder)
    equal(score("panoptic_segmentation", folder / "panoptic.json", data), without(whole.compute(), "images"))
    assert len(list((folder / "panoptic").iterdir())) == len(opened)
    assert {row["class"] for row in whole.compute()["per_class"]} <= {str(c["name"]) for c in CATEGORIES}


def test_images_of_one_name_in_two_folders_have_a_map_each(tmp_path):
    root = write_coco(tmp_path, {"val": 2})
    file = root / "annotations" / "panoptic_val.json"
    made = json.loads(file.read_text())
    for number, (image, record) in enumerate(zip(made["images"], made["annotations"], strict=True)):
        for folder, own in ((root / "images" / "val", image), (file.with_suffix(""), record)):
            (folder / str(number)).mkdir()
            (folder / own["file_name"]).rename(folder / str(number) / "same.png")
            own["file_name"] = f"{number}/same.png"
    file.write_text(json.dumps(made))
    data = DataConfig(name="coco", root=str(root))
    opened = open_panoptic(data, train=False)
    counts = PanopticMetrics(opened)
    rng = np.random.default_rng(0)
    for index in range(2):
        counts.update([found_segments(rng, opened, index)], (None, None, torch.tensor([index])))
    counts.report(tmp_path)
    equal(score("panoptic_segmentation", tmp_path / "panoptic.json", data), without(counts.compute(), "images"))


def test_what_the_user_should_know_of_results(root, tmp_path):
    file = tmp_path / "results.json"
    data = DataConfig(name="coco", root=str(root))
    file.write_text("[]")
    with pytest.warns(UserWarning, match="no result: nothing was found"):
        assert score("detection", file, data)["AP"] == 0.0
    record = {"image_id": 10, "category_id": 3, "score": 0.5, "bbox": [1, 1, 5, 5]}
    file.write_text(json.dumps([record] * 3))
    with pytest.warns(UserWarning, match="results") as heard:
        score("detection", file, data)
    said = [str(warning.message) for warning in heard]
    assert any("results name 1 of 6 images" in one for one in said)
    assert any("2 of 3 results are repeated" in one for one in said)
