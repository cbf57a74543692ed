"""The one check of COCO's annotation files: learning, measuring and stored predictions refuse and complete the same."""

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from annotated_helpers import annotation, write_coco
from keypoint_helpers import PERSON, four_persons, person, write_keypoints
from vitrail.config.data import DataConfig
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.coco import CocoInstances, CocoPanoptic, open_instances, open_panoptic
from vitrail.data.datasets.coco_files import SplitSource, key_of, locate, read_annotations, whole_number
from vitrail.data.datasets.coco_keypoints import CocoKeypoints
from vitrail.data.datasets.coco_rle import area_of, box_of_mask, mask_of, runs_of
from vitrail.data.datasets.splits import for_measuring
from vitrail.errors import UserError
from vitrail.metrics.stored_predictions import score
from vitrail.tasks import build_task

pytest.importorskip("faster_coco_eval")
NAN, INF = float("nan"), float("inf")
#: of the one annotation's image
WIDTH, HEIGHT = 64, 48


def content(**changes) -> dict:
    """One image with one object, of which entries are changed: by "images", "annotations" or "categories"."""
    made = {
        "images": [{"id": 10, "file_name": "000.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [annotation(0, 10, 3, [5, 6, 20, 10])],
        "categories": [{"id": 3, "name": "red"}],
    }
    for name, change in changes.items():
        made[name][0].update(change)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "000.png")
    return folder


def written(folder: Path, made, name: str = "truth.json") -> Path:
    path = folder / name
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    return path


RESULT = {"image_id": 10, "category_id": 3, "score": 0.5, "bbox": [5, 6, 20, 10]}


def stored(folder: Path, file: Path, task: str) -> dict:
    """The metrics of one result against that file."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[6:16, 5:25] = True
    predictions = written(folder, [{**RESULT, "segmentation": runs_of(mask)}], "results.json")
    return score(task, predictions, DataConfig(name="coco", annotations=str(file), images=str(folder)))


DOORS = {
    "learning": lambda folder, file: CocoInstances(file, folder, masks=True, drop_empty=True),
    "measuring": lambda folder, file: CocoInstances(file, folder, masks=True),
    "stored predictions": lambda folder, file: stored(folder, file, "instance_segmentation"),
}
WRONG = {
    # images
    "images of texts": ({**content(), "images": ["x"]}, "image number 0 is no record"),
    "images of nothing": ({**content(), "images": [None]}, "image number 0 is no record"),
    "id of a list": (content(images={"id": [1]}), "the id must be a whole number or a text"),
    "id of nothing": (content(images={"id": None}), "the id must be a whole number or a text"),
    "id of true": (content(images={"id": True}), "the id must be a whole number or a text"),
    "id of half": (content(images={"id": 0.5}), "the id must be a whole number or a text"),
    "name of nothing": (content(images={"file_name": None}), "must be a text, not None"),
    "name of a number": (content(images={"file_name": 7}), "must be a text, not 7"),
    "name out of the folder": (content(images={"file_name": "../000.png"}), "leads out of its folder"),
    "name from the root": (content(images={"file_name": "/etc/passwd"}), "leads out of its folder"),
    "name of a drive": (content(images={"file_name": "C:\\000.png"}), "leads out of its folder"),
    "width as a text": (content(images={"width": "64"}), "width must be a whole number of pixels, not '64'"),
    "width of half": (content(images={"width": 63.5}), "width must be a whole number of pixels"),
    "height of infinity": (content(images={"height": INF}), "height must be a whole number of pixels"),
    "a bomb's size": (content(images={"width": 10**6, "height": 10**6}), "more than the 178,956,970"),
    "another size": (content(images={"width": 65}), "is 64x48 pixels, the annotations say 65x48"),
    "sides exchanged": (content(images={"width": 48, "height": 64}), "is 64x48 pixels, the annotations say 48x64"),
    # categories
    "categories of lists": ({**content(), "categories": [[1]]}, "category number 0 is no record"),
    "no categories": ({**content(), "categories": []}, "has no categories"),
    "category as a text": (content(categories={"id": "3"}), "the id must be a whole number"),
    "category without name": (content(categories={"name": None}), "the name must be a text"),
    "category of things?": (content(categories={"isthing": "yes"}), "isthing must be 0 or 1"),
    # annotations
    "annotations of texts": ({**content(), "annotations": ["x"]}, "annotation number 0 is no record"),
    "no id": (content(annotations={"id": None}), "has no id: give every annotation one"),
    "id of a mapping": (content(annotations={"id": {}}), "the id must be a number or a text"),
    "image of a list": (content(annotations={"image_id": [10]}), r"there is no image \[10\]"),
    "image that is none": (content(annotations={"image_id": 1}), "there is no image 1"),
    "category of a mapping": (content(annotations={"category_id": {"a": 1}}), "there is no category"),
    "category of true": (content(annotations={"category_id": True}), "there is no category True"),
    "crowd of a text": (content(annotations={"iscrowd": "no"}), "iscrowd must be 0 or 1, not 'no'"),
    "crowd of two": (content(annotations={"iscrowd": 2}), "iscrowd must be 0 or 1, not 2"),
    "segments of nothing": (content(annotations={"segments_info": None}), "segments_info must be a list"),
    "box of texts": (content(annotations={"bbox": ["1", 2, 3, 4]}), "bbox must be four numbers"),
    "box of true": (content(annotations={"bbox": [True, 2, 3, 4]}), "bbox must be four numbers"),
    "box of a huge number": (content(annotations={"bbox": [10**400, 0, 1, 1]}), "not finite"),
    "box beyond": (content(annotations={"bbox": [1e30, 0, 1, 1]}), "lies beyond any image"),
    "box of corners": (content(annotations={"bbox": [20, 20, -5, 3]}), "a width or height below 0"),
    "area as a text": (content(annotations={"area": "200"}), "area must be a number"),
    "area of nan": (content(annotations={"area": NAN}), "area holds a number that is not finite"),
    # masks
    "two points": (content(annotations={"segmentation": [[1, 1, 9, 9]]}), "three points or more"),
    "odd numbers": (content(annotations={"segmentation": [[1, 1, 9, 9, 1, 9, 3]]}), "three points or more"),
    "nan": (content(annotations={"segmentation": [[NAN] * 6]}), "no finite number"),
    "infinity": (content(annotations={"segmentation": [[INF, 0, 0, 0, 0, 5]]}), "no finite number"),
    "1e30": (content(annotations={"segmentation": [[1e30, 0, 1e30, 5, 0, 5]]}), "lies beyond any image"),
    "1e9": (content(annotations={"segmentation": [[0, 0, 10**9, 0, 10**9, 10**9]]}), "lies beyond any image"),
    "texts": (content(annotations={"segmentation": [["a"] * 6]}), "no finite number"),
    "true": (content(annotations={"segmentation": [[True, 1, 9, 9, 1, 9]]}), "no finite number"),
    "a long outline": (content(annotations={"segmentation": [[0, 0, 90_000, 0] * 40]}), "outline .* is longer than"),
    "one polygon flat": (content(annotations={"segmentation": [1, 1, 9, 1, 9, 9]}), "three points or more"),
    "no mask": (content(annotations={"segmentation": []}), "segmentation must be polygons"),
    "a mask's text": (content(annotations={"segmentation": "x"}), "segmentation must be polygons"),
    "size of a number": (content(annotations={"segmentation": {"size": 5, "counts": [1]}}), "size of a mask must be"),
    "size of texts": (content(annotations={"segmentation": {"size": ["48", "64"], "counts": [1]}}), "size of a mask"),
    "a mask exchanged": (
        content(annotations={"segmentation": {"size": [64, 48], "counts": [3072]}}),
        r"a mask of \[64, 48\] for an image of \[48, 64\].*exchanged",
    ),
    "a mask bomb": (
        content(annotations={"segmentation": {"size": [10**6, 10**6], "counts": [10**12]}}),
        "size of a mask must be",
    ),
    "counts of a number": (content(annotations={"segmentation": {"size": [48, 64], "counts": 5}}), "run lengths"),
    "counts of texts": (content(annotations={"segmentation": {"size": [48, 64], "counts": ["x"]}}), "do not fill"),
    "counts of halves": (content(annotations={"segmentation": {"size": [48, 64], "counts": [3072.0]}}), "do not fill"),
    "counts too large": (content(annotations={"segmentation": {"size": [48, 64], "counts": [10**30]}}), "do not fill"),
    "counts below 0": (content(annotations={"segmentation": {"size": [48, 64], "counts": [-1, 3073]}}), "do not fill"),
    "counts too few": (content(annotations={"segmentation": {"size": [48, 64], "counts": [3071]}}), "do not fill"),
    "counts damaged": (content(annotations={"segmentation": {"size": [48, 64], "counts": "a\u20ac"}}), "do not fill"),
    # the file
    "no list": ({**content(), "annotations": None}, "it has no list of annotations"),
    "a list": ([], "it has no list of images"),
    "deep": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "cut off": (json.dumps(content())[:-9], "is no JSON"),
    "an image twice": ({**content(), "images": content()["images"] * 2}, "lists the image 10 twice"),
    "an image twice, once as a text": (
        {**content(), "images": [*content()["images"], {**content()["images"][0], "id": "10"}]},
        "lists the image '10' twice",
    ),
    "a file twice": (
        {**content(), "images": [*content()["images"], {"id": 11, "file_name": "./000.png"}]},
        "lists the file '000.png' twice",
    ),
    "a category twice": ({**content(), "categories": content()["categories"] * 2}, "lists the category 3 twice"),
    "crowds alone": (content(annotations={"iscrowd": 1}), "no image with an object|no object to find"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_at_every_door(folder, name, door):
    made, says = WRONG[name]
    file = written(folder, made)
    if door == "stored predictions" and name in ("another size", "sides exchanged"):
        return  # no image is needed, nor looked at
    with pytest.raises(UserError, match=says) as caught:
        DOORS[door](folder, file)
    assert str(file) in str(caught.value) or name == "crowds alone"
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


RIGHT = {
    "as it is": {},
    "annotations from 0": {"annotations": {"id": 0}},
    "ids as texts": {"annotations": {"id": "a7", "image_id": "10"}},
    "ids as floats": {"annotations": {"id": 7.0, "image_id": 10.0, "category_id": 3.0}},
    "image id as a text": {"images": {"id": "10"}},
    "sizes of -1": {"images": {"width": -1, "height": -1}},
    "sizes of 0": {"images": {"width": 0, "height": 0}},
    "one size": {"images": {"width": None}},
    "no area": {"annotations": {"area": None}},
    "area of -1": {"annotations": {"area": -1}},
    "no box": {"annotations": {"bbox": None}},
    "empty box": {"annotations": {"bbox": []}},
    "crowd of false": {"annotations": {"iscrowd": False}},
    "crowd of nothing": {"annotations": {"iscrowd": None}},
    "more entries": {"annotations": {"score": "x", "attributes": [None]}, "images": {"date": 5}},
    "a mask as runs": {
        "annotations": {"segmentation": {"size": [48, 64], "counts": [246, *[10, 38] * 19, 10, 3072 - 1168]}}
    },
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("task", ["detection", "instance_segmentation"])
def test_what_is_ours_to_give_is_given_at_every_door(folder, name, task):
    file = written(folder, content(**RIGHT[name]))
    data = CocoInstances(file, folder, masks=True, drop_empty=True)
    (record,) = data.content["annotations"]
    assert (record["bbox"], record["area"], record["iscrowd"]) == ([5, 6, 20, 10], 200, 0)
    assert (data.images[0]["width"], data.images[0]["height"]) == (WIDTH, HEIGHT)
    assert data[0][1]["masks"].sum() == 200
    metrics = stored(folder, file, task)
    assert metrics["AP"] == metrics["APs"] == 1.0
    assert metrics["APm"] is None


def test_a_byte_order_mark_is_no_mistake_and_another_encoding_is_one(folder):
    path = folder / "mark.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content()).encode())
    assert len(CocoInstances(path, folder)) == 1
    path.write_bytes(json.dumps({**content(), "info": "caf\u00e9"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match="not text in UTF-8"):
        CocoInstances(path, folder)


@pytest.mark.parametrize("ids", [[0, 1, 2], [5, 5, 5], ["a", "b", 3], [2**70, -1, 0], [0.0, "0", 0]])
def test_ids_of_annotations_change_no_metric(folder, ids):
    """Perfect predictions have an AP of 1 whatever the ids; see `test_ids_of_images_change_no_metric`, too."""
    boxes = [[1, 1, 20, 9], [30, 2, 12, 30], [2, 20, 15, 20]]
    made = content()
    made["annotations"] = [annotation(0, 10, 3, box, id=own) for box, own in zip(boxes, ids, strict=True)]
    data = DataConfig(name="coco", annotations=str(written(folder, made)))
    results = [{**RESULT, "bbox": box, "score": 0.9} for box in boxes]
    metrics = score("detection", written(folder, results, "results.json"), data)
    assert metrics["AP"] == metrics["AR100"] == 1.0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_ids_of_images_change_no_metric(folder, seed):
    """Texts for numbers, in the truth or in the results, in any mixture."""
    rng = np.random.default_rng(seed)
    made, results = content(), []
    made["images"] = [{"id": 10 + i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(4)]
    made["annotations"] = []
    for number in range(12):
        box = [*rng.integers(0, 30, 2).tolist(), *rng.integers(4, 18, 2).tolist()]
        made["annotations"].append(annotation(number, int(10 + number % 4), 3, box))
        moved = [float(v) for v in np.array(box) + np.array([*rng.integers(-3, 4, 2), 0, 0])]
        results.append({**RESULT, "image_id": 10 + number % 4, "bbox": moved, "score": float(rng.random())})
    data = DataConfig(name="coco", annotations=str(written(folder, made)))
    plain = score("detection", written(folder, results, "results.json"), data)
    for record in (*made["images"], *made["annotations"], *results):
        name = "id" if "file_name" in record else "image_id"
        record[name] = str(record[name]) if rng.random() < 0.5 else record[name]
    written(folder, made)
    assert score("detection", written(folder, results, "results.json"), data) == plain


def test_numbers_and_keys():
    assert [whole_number(v) for v in (3, 3.0, True, "3", None, 2.5, INF, NAN, [3])] == [3, 3] + [None] * 7
    assert [key_of(v) for v in (3, 3.0, "3", "a", "", None, True, 0.5)] == ["3", "3", "3", "a", None, None, None, None]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_boxes_and_areas_are_those_of_the_masks(seed, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.random()
    mask[rng.integers(height), rng.integers(width)] = True
    rows, cols = np.nonzero(mask)
    box = [cols.min(), rows.min(), cols.max() - cols.min() + 1, rows.max() - rows.min() + 1]
    for runs in (runs_of(mask), {"size": [height, width], "counts": plain_runs(mask)}):
        assert area_of(runs, (width, height), "here") == mask.sum()
        assert box_of_mask(runs, (width, height), "here") == box
        assert np.array_equal(mask_of(runs, height, width, "here"), mask)


def plain_runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff([0, *edges, flat.size]).tolist()


def test_polygons_need_a_size(folder):
    file = written(folder, content(images={"width": -1}))
    results = written(folder, [{**RESULT, "segmentation": runs_of(np.ones((48, 64), bool))}], "results.json")
    with pytest.raises(UserError, match=r"annotation 1: the size of the image is unknown.*--data\.images"):
        score("instance_segmentation", results, DataConfig(name="coco", annotations=str(file)))


def test_masks_of_a_huge_image_are_refused_before_memory_is_taken(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "big.png")
    made = content(images={"file_name": "big.png", "width": 12_000, "height": 12_000})
    made["annotations"] *= 70
    with pytest.raises(UserError, match=r"image 10: 70 masks of an image of 12000x12000 pixels need 1\.1 GB"):
        CocoInstances(written(tmp_path, made), tmp_path, masks=True)
    assert len(CocoInstances(tmp_path / "truth.json", tmp_path)) == 1


@pytest.mark.parametrize(("side", "learned", "measured"), [(0, 0, 0), (1e-300, 0, 0), (0.5, 0, 1), (1, 1, 1)])
def test_slivers_are_counted_where_they_are_not_learned(folder, side, learned, measured):
    made = content()
    made["annotations"].append(annotation(1, 10, 3, [3, 3, 9, side]))
    file = written(folder, made)
    data = CocoInstances(file, folder, drop_empty=True)
    assert data.skipped["boxes without area in the image"] == 1 - learned
    assert len(data[0][1]["boxes"]) == 1 + learned
    assert len(CocoInstances(file, folder)[0][1]["boxes"]) == 1 + measured


@pytest.mark.parametrize("side", [0, 1e-300, 1e-9])
def test_slivers_of_persons_are_not_cropped(tmp_path, side):
    file = write_keypoints(tmp_path, [*four_persons(), person(30, 1, [9, 9, side, 1])])
    persons = CocoKeypoints(file, tmp_path / "images" / "train")
    assert (len(persons), persons.skipped["boxes without area in the image"]) == (4, 1)


# ---- keypoints and panoptic -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keypoints": [1, 2, 2]}, "keypoints must be 51 numbers"),
        ({"keypoints": None}, "keypoints must be 51 numbers"),
        ({"keypoints": [NAN] * 51}, "keypoints holds a number that is not finite"),
        ({"keypoints": [1e12, 1, 2] * 17}, "lies beyond any image"),
        ({"keypoints": [1, 1, 3] * 17}, "must be 0, 1 or 2, not 3"),
        ({"bbox": None}, "bbox must be four numbers"),
        ({"area": "big"}, "area must be a number"),
    ],
)
def test_wrong_persons_are_refused_at_every_door(tmp_path, changes, says):
    file = write_keypoints(tmp_path, [*four_persons(), person(77, 1, [1, 1, 9, 9], **changes)])
    with pytest.raises(UserError, match=f"annotation 77: .*{says}"):
        CocoKeypoints(file, tmp_path / "images" / "train")
    results = written(tmp_path, [], "results.json")
    with pytest.raises(UserError, match=f"annotation 77: .*{says}"):
        score("keypoints", results, DataConfig(name="coco", annotations=str(file)))


def test_persons_beside_other_categories_are_measured_alone(tmp_path):
    """A category without keypoints, and its objects, change nothing."""
    dog = {"id": 90, "image_id": 1, "category_id": 5, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    results = [
        {"image_id": p["image_id"], "category_id": 1, "score": 0.5 + p["id"] / 100, "keypoints": p["keypoints"]}
        for p in four_persons()
    ]
    stored = written(tmp_path, results, "results.json")
    metrics = []
    for own in ({}, {"categories": [{"id": 5, "name": "dog"}, PERSON]}):
        file = write_keypoints(tmp_path, four_persons() + ([dog] if own else []), **own)
        metrics.append(score("keypoints", stored, DataConfig(name="coco", annotations=str(file))))
    assert metrics[0] == metrics[1]
    assert metrics[0]["AP"] == 1.0


PANOPTIC = {
    "no name": (lambda c: c["annotations"][0].pop("file_name"), "must be a text, not None"),
    "name of a number": (lambda c: c["annotations"][0].update(file_name=5), "must be a text, not 5"),
    "name outside": (lambda c: c["annotations"][0].update(file_name="../000.png"), "leads out of its folder"),
    "no segments": (lambda c: c["annotations"][0].update(segments_info=None), "segments_info must be a list"),
    "segments of numbers": (lambda c: c["annotations"][0].update(segments_info=[1]), "segment number 0 is no record"),
    "segment as a text": (lambda c: c["annotations"][0]["segments_info"][0].update(id="x"), "a number from 1 to"),
    "segment 0": (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "a number from 1 to"),
    "segment too large": (lambda c: c["annotations"][0]["segments_info"][0].update(id=2**24), "a number from 1 to"),
    "segment twice": (lambda c: c["annotations"][0]["segments_info"][0].update(id=2), "lists the segment 2 twice"),
    "no category": (lambda c: c["annotations"][0]["segments_info"][0].pop("category_id"), "no category None"),
    "crowd": (lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd="a"), "iscrowd must be 0 or 1"),
    "image of a list": (lambda c: c["annotations"][0].update(image_id=[1]), r"there is no image \[1\]"),
    "a number": (lambda c: c["annotations"].append(5), "is no record"),
    "an image twice": (lambda c: c["annotations"].append(c["annotations"][0]), "two records of the image 10"),
    "a segment without pixels": (
        lambda c: c["annotations"][0]["segments_info"][0].update(id=77),
        "segment 77 has no pixel|segment 1 is in the map but not|segment 77 is in the list but not",
    ),
}


@pytest.fixture
def panoptic(tmp_path) -> Path:
    return write_coco(tmp_path / "coco", {"train": 2, "val": 2})


@pytest.mark.parametrize("name", PANOPTIC)
@pytest.mark.parametrize("wrong", ["truth", "predictions"])
def test_wrong_segments_are_refused_at_every_door(panoptic, name, wrong):
    change, says = PANOPTIC[name]
    good = panoptic / "annotations" / "panoptic_val.json"
    made = json.loads(good.read_text())
    change(made)
    bad = written(good.parent, made, "bad.json")
    (good.parent / "bad").symlink_to(good.with_suffix(""))
    files = (bad, good) if wrong == "truth" else (good, bad)
    data = DataConfig(name="coco", annotations=str(files[0]), images=str(panoptic / "images" / "val"))
    with pytest.raises(UserError, match=says) as caught:
        score("panoptic_segmentation", files[1], data)
    assert "bad.json" in str(caught.value)
    if wrong == "truth":
        with pytest.raises(UserError, match=says):
            CocoPanoptic(bad, panoptic / "images" / "val")[0]


def test_maps_without_colours_or_of_another_size_are_refused(panoptic):
    good = panoptic / "annotations" / "panoptic_val.json"
    for made, says in ((Image.new("L", (64, 48), 1), "no panoptic map"), (Image.new("RGB", (48, 64)), "48x64")):
        made.save(good.with_suffix("") / "000.png")
        with pytest.raises(UserError, match=says):
            CocoPanoptic(good, panoptic / "images" / "val")[0]
        data = DataConfig(name="coco", annotations=str(good), images=str(panoptic / "images" / "val"))
        with pytest.raises(UserError, match=r"no panoptic map|no pixel in the map"):
            score("panoptic_segmentation", good, data)


def test_what_no_list_names_is_unknown_in_learning_and_measuring(panoptic):
    """Segments that only the map of the truth has are no class, and what is predicted there is no mistake."""
    file = panoptic / "annotations" / "panoptic_val.json"
    made = json.loads(file.read_text())
    for record in made["annotations"]:
        del record["segments_info"][0]
    fewer = written(file.parent, made, "fewer.json")
    (file.parent / "fewer").symlink_to(file.with_suffix(""))
    metrics = score("panoptic_segmentation", file, DataConfig(name="coco", annotations=str(fewer)))
    assert metrics["PQ"] == 1.0
    assert 0 not in CocoPanoptic(file, panoptic / "images" / "val").map(0)
    assert 0 in CocoPanoptic(fewer, panoptic / "images" / "val").map(0)


# ---- cameras ----------------------------------------------------------------------------------------------------


def turned(folder: Path, orientation: int, stated: tuple[int, int] | None) -> Path:
    """A bright rectangle on stored pixels of 100x60, with a box on them, and a camera's orientation."""
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[5:15, 10:30] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif, quality=98)
    made = content(images={"file_name": "a.jpg"}, annotations={"bbox": [10, 5, 20, 10]})
    made["images"][0] |= {"width": stated[0], "height": stated[1]} if stated else {"width": -1, "height": -1}
    return written(folder, made)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_stated_size_tells_which_pixels_are_annotated(tmp_path, orientation):
    file = turned(tmp_path, orientation, (100, 60))
    with pytest.warns(UserWarning, match=r"1 images that the camera turned \(EXIF\), used as they are stored"):
        data = CocoInstances(file, tmp_path)
    image, target = data[0]
    left, top, right, bottom = target["boxes"][0].int().tolist()
    assert image.size == (100, 60)
    assert np.asarray(image)[top:bottom, left:right].mean() > 200
    # of the upright size the image is used upright, and nothing needs to be said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upright = CocoInstances(turned(tmp_path, orientation, (60, 100)), tmp_path)
    assert upright[0][0].size == (60, 100)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_what_no_size_tells_is_said(tmp_path, orientation):
    file = turned(tmp_path, orientation, (100, 60))
    with pytest.warns(UserWarning, match=r"1 images that the camera turned or mirrored \(EXIF orientation\)"):
        data = CocoInstances(file, tmp_path)
    assert data[0][0].size == (100, 60)


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_unknown_size_is_that_of_the_upright_image(tmp_path, orientation):
    file = turned(tmp_path, orientation, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if orientation == 1 else "ignore")
        data = CocoInstances(file, tmp_path)
    size = (100, 60) if orientation == 1 else (60, 100)
    assert (data.images[0]["width"], data.images[0]["height"]) == data[0][0].size == size


def test_a_wrong_size_of_a_turned_image_names_the_camera(tmp_path):
    with pytest.raises(UserError, match=r"is 60x100 pixels \(EXIF orientation 6; 100x60 stored\), .* say 99x60"):
        CocoInstances(turned(tmp_path, 6, (99, 60)), tmp_path)


# ---- parts ------------------------------------------------------------------------------------------------------


def one_file(root: Path, count: int = 10) -> DataConfig:
    """A data set whose one file is for both parts."""
    write_coco(root, {"train": count})
    file = root / "annotations" / "instances_train.json"
    return DataConfig(name="coco", annotations=str(file), images=str(root / "images" / "train"))


def names(data: DataConfig, train: bool) -> list[str]:
    found = open_instances(data, train, masks=False)
    return [image["file_name"] for image in found.images]


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_share_is_for_validation_and_always_the_same(count, share, seed):
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(count)]
    parts = [SplitSource(Path("x"), None, share, held, seed) for held in (False, True)]
    learned, held = ([image["id"] for image in part.chosen(images)] for part in parts)
    assert sorted(learned + held) == list(range(count))
    assert len(held) == min(max(1, round(share * count)), count - 1)
    again = parts[1].chosen(images[::-1])
    assert sorted(image["id"] for image in again) == held


def test_one_file_serves_both_parts_without_an_image_in_both(tmp_path):
    data = one_file(tmp_path / "a")
    learned, held = names(data, True), names(data, False)
    assert (len(learned), len(held)) == (8, 2)
    assert not set(learned) & set(held)
    assert names(replace(data, val_fraction=0.5), False) != held
    other_seed = [names(replace(data, split_seed=seed), False) for seed in range(4)]
    assert len({tuple(own) for own in other_seed}) > 1
    # named deliberately: all of it
    assert names(replace(data, val_split="train"), True) == names(replace(data, val_split="train"), False)
    # what is named for measuring is measured whole, or what training holds back
    assert len(names(for_measuring(data, None), False)) == 10
    assert names(for_measuring(replace(data, val_split="holdout"), None), False) == held
    assert names(for_measuring(data, data), False) == held  # the network's own data
    assert names(replace(data, limit=1), False) == held[:1]
    with pytest.raises(UserError, match=r"data\.val_fraction=1\.0 is not allowed"):
        names(replace(data, val_fraction=1.0), True)


def test_a_root_with_one_file_holds_a_share_back(tmp_path):
    one_file(tmp_path)
    root = DataConfig(name="coco", root=str(tmp_path))
    assert not set(names(root, True)) & set(names(root, False))
    assert len(names(root, True) + names(root, False)) == 10
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "annotations/instances.json")
    assert not set(names(root, True)) & set(names(root, False))
    assert len(names(for_measuring(root, None), False)) == 10


def test_a_training_file_alone_is_not_taken_for_one_to_measure(tmp_path):
    one_file(tmp_path)
    with pytest.raises(UserError, match=r"no annotations/instances_val2017\.json.*--data\.val_split"):
        locate(for_measuring(DataConfig(name="coco", root=str(tmp_path)), None), "instances", train=False)


def recipe(data: DataConfig) -> TrainConfig:
    return TrainConfig(task="detection", model="mat_1", data=data, image_size=64, batch_size=2)


def test_what_is_measured_is_said(tmp_path):
    data = one_file(tmp_path / "a")
    notes = build_task(recipe(data)).notes()
    assert any("20 % of its images are held out" in note for note in notes)
    deliberate = build_task(recipe(replace(data, val_split="train")))
    assert any("training images" in note and "--data.val_split train" in note for note in deliberate.notes())
    assert deliberate.measures_training
    write_coco(tmp_path / "b", {"train": 3, "val": 2})
    own = DataConfig(name="coco", root=str(tmp_path / "b"))
    apart = build_task(recipe(own))
    assert (apart.notes(), apart.measures_training) == ([], False)
    # the same files in both parts
    annotations = tmp_path / "b" / "annotations"
    (annotations / "instances_val.json").write_text((annotations / "instances_train.json").read_text())
    shared = build_task(recipe(replace(own, images=str(tmp_path / "b" / "images" / "train"))))
    assert any("3 of its 3 images are training images, too" in note for note in shared.notes())
    assert shared.measures_training


def test_what_is_not_learned_or_measured_is_counted_for_both_parts(tmp_path):
    root = write_coco(tmp_path, {"train": 4, "val": 3})
    for part in ("train", "val"):
        file = root / "annotations" / f"instances_{part}.json"
        made = json.loads(file.read_text())
        red = [record for record in made["annotations"] if record["category_id"] == 3]
        flat = annotation(50, 10, 3, [5, 5, 0, 9])
        made["annotations"] = [*red[:2], flat, annotation(51, 11, 3, [1, 1, 5, 5], iscrowd=1)]
        file.write_text(json.dumps(made))
    notes = build_task(recipe(DataConfig(name="coco", root=str(root)))).notes()
    assert notes == [
        "training: 1 of 2 classes without an object: blue",
        "training: skipped: 2 images without objects",
        "training: skipped: 1 boxes without area in the image",
        "training: skipped: 1 crowds",
        "validation: 1 of 3 images without objects",
        "validation: 1 boxes without area in the image, which count as missed",
        "validation: 1 of 2 classes without an object: blue",
    ]


def test_panoptic_and_persons_are_divided_the_same_way(tmp_path):
    write_coco(tmp_path / "a", {"train": 6})
    data = DataConfig(name="coco", root=str(tmp_path / "a"))
    learned, held = (open_panoptic(data, train) for train in (True, False))
    assert (len(learned), len(held)) == (5, 1)
    file = write_keypoints(tmp_path / "b", four_persons())
    parts = [SplitSource(file, tmp_path / "b/images/train", 0.5, held) for held in (False, True)]
    persons = [{person.image_id for person in CocoKeypoints(part).persons} for part in parts]
    assert sorted(map(len, persons)) == [1, 1]
    assert persons[0] != persons[1]


def test_reading_changes_nothing_that_it_is_given(folder):
    made = content()
    before = copy.deepcopy(made)
    read_annotations(written(folder, made), "masks")
    assert made == before


# ---- where annotations lie ------------------------------------------------------------------------------------------


def many(folder: Path, boxes, name: str = "many.json", **more) -> Path:
    """A file of an object a box, all in the one image."""
    objects = [{**annotation(n, 10, 3, [0, 0, 9, 9]), **more, "bbox": list(box)} for n, box in enumerate(boxes)]
    return written(folder, {**content(), "annotations": objects}, name)


def said(file: Path, folder: Path, wanted="boxes") -> dict[str, int]:
    return read_annotations(SplitSource(file, folder), wanted).counts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 30))
def test_corners_written_as_width_and_height_are_refused(folder, seed, count):
    """Boxes of any places, written as COCO's and as left, top, right and bottom."""
    rng = np.random.default_rng(seed)
    left, top = rng.integers(WIDTH // 2, WIDTH - 12, count), rng.integers(0, HEIGHT - 12, count)
    sides = rng.integers(4, 12, (2, count))
    good = np.stack([left, top, *sides], 1).tolist()
    corners = np.stack([left, top, left + sides[0], top + sides[1]], 1).tolist()
    assert said(many(folder, good), folder) == {}
    with pytest.raises(UserError, match="left, top, right and bottom"):
        said(many(folder, corners), folder)


@pytest.mark.parametrize(
    ("boxes", "beyond"),
    [
        ([[0, 0, WIDTH, HEIGHT], [0, 0, WIDTH + 1, HEIGHT + 1]], 0),
        ([[-1, -1, 9, 9], [-1.5, 0, 9, 9], [0, -1.5, 9, 9]], 2),
        ([[60, 0, 5.5, 9], [0, 40, 9, 9.5], [3, 3, 9, 9]], 2),
        ([[-5, 0, 9, 9]], 1),  # no corners of a box inside the image
        ([[40, 30, 60, 45], [5, 5, 4, 4], [6, 6, 3, 3]], 1),  # one of three is no sign of corners
    ],
)
def test_boxes_beyond_their_image_are_counted(folder, boxes, beyond):
    assert sum(said(many(folder, boxes), folder).values()) == beyond


def test_boxes_are_not_compared_with_an_unknown_size(folder):
    made = content(annotations={"bbox": [50, 40, 60, 45]})
    del made["images"][0]["width"]
    assert read_annotations(SplitSource(written(folder, made), None), "boxes").counts == {}


@pytest.mark.parametrize(
    ("box", "refused"),
    [
        ([0.1, 0.2, 0.3, 0.4], True),
        ([0, 0, 0.5, 1], True),
        ([0, 0, 1, 1], False),  # a pixel
        ([0.5, 0.5, 1.5, 1], False),
        ([-0.5, 0.5, 0.5, 0.5], False),
    ],
)
def test_shares_of_the_sides_are_no_pixels(folder, box, refused):
    if refused:
        with pytest.raises(UserError, match="multiply them by width and height"):
            said(many(folder, [box, box]), folder)
    else:
        said(many(folder, [box, box]), folder)


def test_one_box_in_pixels_is_enough(folder):
    said(many(folder, [[0.1, 0.2, 0.3, 0.4], [5, 6, 20, 10]]), folder)


@pytest.mark.parametrize(("move", "lost"), [(0, 0), (40, 0), (58.5, 0), (60, 1), (-23.5, 0), (-25, 1), (500, 1)])
def test_masks_outside_their_image_are_counted(folder, move, lost):
    """The polygon lies between 4 and 24."""
    polygon = [4 + move, 5, 24 + move, 5, 24 + move, 20, 4 + move, 20]
    assert sum(said(many(folder, [[4, 5, 20, 15]], segmentation=[polygon]), folder, "masks").values()) == lost


def test_polygons_in_shares_are_refused(folder):
    polygon = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]
    with pytest.raises(UserError, match="no segmentation has a number above 1"):
        said(many(folder, [[4, 5, 20, 15]], segmentation=polygon), folder, "masks")
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 1, HEIGHT * WIDTH - 1]}
    assert said(many(folder, [[4, 5, 20, 15]], segmentation=runs), folder, "masks") == {}


def test_keypoints_outside_and_in_the_corner_are_counted(tmp_path):
    write_keypoints(tmp_path, four_persons())
    file = next(tmp_path.rglob("*.json"))
    made = json.loads(file.read_text())
    images = next(folder for folder in tmp_path.rglob("*") if folder.is_dir() and list(folder.glob("*.png")))
    assert said(file, images, "keypoints") == {}
    width = made["images"][0]["width"]
    first = next(r for r in made["annotations"] if r["image_id"] == made["images"][0]["id"])
    first["keypoints"][:9] = [0, 0, 2, width + 1, 1, 1, 0, 0, 0]
    file.write_text(json.dumps(made))
    assert sorted(said(file, images, "keypoints").values()) == [1, 1]
    for record in made["annotations"]:
        record["keypoints"] = [v if i % 3 == 2 else v / 1000 for i, v in enumerate(record["keypoints"])]
    file.write_text(json.dumps(made))
    with pytest.raises(UserError, match="no keypoints has a number above 1"):
        said(file, images, "keypoints")


@pytest.mark.parametrize(("used", "count"), [((3, 4), 2), ((3, 3), 0), ((3, 5), 0), ((3, 4, 5), 2)])
def test_categories_of_one_name_are_counted_where_both_are_used(folder, used, count):
    """A category that no annotation has, as some tools write, needs no word here."""
    made = content()
    made["categories"] = [{"id": 3, "name": "red"}, {"id": 4, "name": "red"}, {"id": 5, "name": "blue"}]
    made["annotations"] = [annotation(n, 10, category, [5, 6, 20, 10]) for n, category in enumerate(used)]
    assert sum(said(written(folder, made), folder).values()) == count


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([5, 6, 20, 10], None),
        ([0.1, 0.2, 0.3, 0.4], "no box has a number above 1"),
        ([40, 6, 60, 16], "1 of 1 boxes reach beyond"),
        ([-3, 6, 20, 16], "1 of 1 boxes reach beyond"),
        ([0, 0, WIDTH + 1, HEIGHT + 1], None),
    ],
)
def test_boxes_of_results_in_other_units_are_said(folder, box, says):
    file = written(folder, content())
    results = written(folder, [{**RESULT, "bbox": box}], "boxes.json")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        score("detection", results, DataConfig(name="coco", annotations=str(file), images=str(folder)))
    texts = [str(one.message) for one in seen]
    assert (says is None and not texts) or any(says in text for text in texts)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_results_with_plain_run_lengths_measure_as_compressed_ones(folder, seed):
    """The same masks, once as a text and once as numbers, and categories written as 3.0."""
    rng = np.random.default_rng(seed)
    file = written(folder, content())
    found, plain = [], []
    for _ in range(3):
        left, top, right, bottom = *rng.integers(0, 20, 2), *rng.integers(21, 48, 2)
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[top:bottom, left:right] = True
        column = mask.T.ravel()
        edges = np.flatnonzero(np.diff(np.concatenate([[False], column, [False]]))).tolist()
        counts = np.diff([0, *edges, column.size]).tolist()
        record = {**RESULT, "score": float(rng.random())}
        found.append({**record, "segmentation": runs_of(mask)})
        plain.append({**record, "category_id": 3.0, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}})
    data = DataConfig(name="coco", annotations=str(file), images=str(folder))
    metrics = [score("instance_segmentation", written(folder, made, "m.json"), data) for made in (found, plain)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("category", [3.5, "3", True, None, [3], 4.0])
def test_results_of_no_category(folder, category):
    results = written(folder, [{**RESULT, "category_id": category}], "boxes.json")
    with pytest.raises(UserError, match="the data has no category"):
        score("detection", results, DataConfig(name="coco", annotations=str(written(folder, content()))))
