"""Persons of COCO files: what is read, skipped and refused; crops whose pixels, keypoints and heat maps go together."""

import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keypoint_helpers import NAMES, PERSON, SIZE, four_persons, person, write_keypoints
from vitrail.config.data import DataConfig, Preprocess
from vitrail.config.tasks import KeypointsConfig
from vitrail.data.datasets.coco_keypoints import CocoKeypoints, open_keypoints
from vitrail.data.datasets.keypoint_names import mirrored
from vitrail.data.transforms.keypoints import (
    PersonCrop,
    TrainingCrop,
    crop_matrix,
    crops_and_heatmaps,
    heatmaps,
    inverse_matrix,
    transform_points,
    truncated_normal,
)
from vitrail.errors import BadOption, UserError

#: input values are pixels in [0, 1]
PLAIN = Preprocess((64, 96), (0.0,) * 3, (1.0,) * 3)
STILL = {"scale": 0.0, "rotation": 0.0, "hflip": 0.0}


def opened(root, annotations=None, boxes=None, limit=None, **changes) -> CocoKeypoints:
    file = write_keypoints(root, four_persons() if annotations is None else annotations, **changes)
    return CocoKeypoints(file, root / "images" / "train", boxes, limit)


# ---- reading ----------------------------------------------------------------------------------------------------


def test_persons_come_in_the_order_of_images_and_ids(tmp_path):
    persons = opened(tmp_path)
    assert [persons.persons[i].where.split()[-1] for i in range(4)] == ["7", "8", "4", "9"]
    assert [persons.path(i).name for i in range(4)] == ["a.png", "a.png", "c.png", "c.png"]
    assert persons.by_image() == [[0, 1], [2, 3]]
    assert persons.classes == NAMES
    image, target = persons[2]
    assert image.size == SIZE
    assert target["image_id"] == 1
    assert target["box"].tolist() == [50.5, 20, 90.5, 70.25]
    assert target["score"] == 1.0
    assert target["keypoints"].ravel().tolist() == four_persons()[1]["keypoints"]


def test_who_is_not_asked_for_is_left_to_the_metric(tmp_path):
    unseen = person(20, 1, [1, 1, 20, 20], keypoints=[0] * 51, num_keypoints=0)
    crowd = person(21, 1, [1, 1, 20, 20], iscrowd=1)
    flat = [person(22, 1, [1, 1, 0, 20]), person(23, 2, [96, 1, 20, 20]), person(24, 2, [1, -30, 20, 30])]
    other = {"id": 25, "image_id": 1, "category_id": 5, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    annotations = [*four_persons(), unseen, crowd, *flat, other]
    persons = opened(tmp_path, annotations, categories=[{"id": 5, "name": "dog"}, PERSON])
    assert len(persons) == 4
    assert persons.skipped == {
        "boxes without area in the image": 3,
        "crowds": 1,
        "persons without a labelled keypoint": 1,
    }
    assert [record["id"] for record in persons.content["annotations"]] == [9, 4, 7, 8, 20, 21, 22, 23, 24]
    assert [record["id"] for record in persons.content["categories"]] == [1]
    assert persons.category_ids == [1]


def test_labelled_keypoints_are_counted(tmp_path):
    records = [{k: v for k, v in four_persons()[0].items() if k != "num_keypoints"}, person(4, 1, [1, 1, 9, 9])]
    records[1]["num_keypoints"] = 3
    persons = opened(tmp_path, records)
    assert [record["num_keypoints"] for record in persons.content["annotations"]] == [15, 15]


def test_boxes_are_cut_at_the_edges(tmp_path):
    persons = opened(tmp_path, [person(1, 1, [-10, 60, 30, 40])])
    assert persons[0][1]["box"].tolist() == [0, 60, 20, 80]


def test_a_limit_is_of_persons_and_of_what_is_measured(tmp_path):
    persons = opened(tmp_path, limit=3)
    assert len(persons) == 3
    assert {record["id"] for record in persons.content["annotations"]} == {7, 8, 4}
    assert {record["id"] for record in persons.content["images"]} == {1, 2}
    assert {image: len(keypoints) for image, keypoints in persons.annotated.items()} == {2: 2, 1: 1}
    persons = opened(tmp_path, limit=1)
    assert [record["id"] for record in persons.content["images"]] == [2]


def test_the_first_persons_of_real_images(test_data):
    root = test_data / "coco_kpt_mini"
    config = DataConfig(name="coco", root=str(root), limit=8, val_split="train")
    persons = open_keypoints(config, train=False)
    ids = [187952, 207303, 212048, 215132, 204343, 455586, 438161, 183545]
    assert sorted(record["id"] for record in persons.content["annotations"]) == sorted(ids)
    assert [person.where.split()[-1] for person in persons.persons] == list(map(str, ids))
    assert (
        len(open_keypoints(DataConfig(name="coco", root=str(root)), train=True)) == 66
    )  # and 20 in the images held out
    for i in (0, 5):
        image, target = persons[i]
        x, _ = PersonCrop(Preprocess((256, 192)), 1.25)(image, target)
        assert x.shape == (3, 256, 192)


# ---- a detector's boxes -----------------------------------------------------------------------------------------

FOUND = {"image_id": 2, "category_id": 1, "bbox": [5, 5, 20, 30], "score": 0.75}


def write_boxes(root, records):
    path = root / "boxes.json"
    path.write_text(json.dumps(records))
    return path


def test_a_detectors_boxes_take_the_place_of_the_true_ones(tmp_path):
    records = [FOUND, {**FOUND, "category_id": 18}, {**FOUND, "image_id": 1}, {**FOUND, "bbox": [0, 90, 5, 5]}]
    persons = opened(tmp_path, boxes=write_boxes(tmp_path, records))
    assert [person.image_id for person in persons.persons] == [2, 1]
    counts = persons.skipped["boxes of other categories"], persons.skipped["boxes without area in the image"]
    assert counts == (1, 1)
    target = persons[0][1]
    assert (target["box"].tolist(), target["score"]) == ([5, 5, 25, 35], 0.75)
    assert "keypoints" not in target
    assert len(persons.content["annotations"]) == 4
    # a limit leaves whole images, with everybody in them
    persons = opened(tmp_path, boxes=write_boxes(tmp_path, records), limit=1)
    assert [person.image_id for person in persons.persons] == [2]
    assert {record["id"] for record in persons.content["annotations"]} == {7, 8}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({**FOUND, "image_id": 3}, "record 1: the data has no image 3"),
        ({**FOUND, "bbox": [1, 2, 3]}, "record 1: bbox must be four numbers"),
        ({**FOUND, "score": float("nan")}, "record 1: the score nan is no finite number"),
        ({k: v for k, v in FOUND.items() if k != "score"}, "record 1 has no score"),
        (7, "must hold a list of records"),
    ],
)
def test_a_wrong_box_is_named(tmp_path, record, says):
    with pytest.raises(UserError, match=says) as caught:
        opened(tmp_path, boxes=write_boxes(tmp_path, [FOUND, record]))
    assert "boxes.json" in str(caught.value)


def test_boxes_without_a_person_are_refused(tmp_path):
    with pytest.raises(UserError, match="no box of a person"):
        opened(tmp_path, boxes=write_boxes(tmp_path, [{**FOUND, "category_id": 2}]))


# ---- mistakes ---------------------------------------------------------------------------------------------------


def bad(**changes):
    return [*four_persons(), person(77, 1, [1, 1, 9, 9], **changes)]


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        (bad(keypoints=[1, 2, 2]), "annotation 77: keypoints must be 51 numbers"),
        (bad(keypoints=[1, 2] * 17), "annotation 77: keypoints must be 51 numbers"),
        (bad(keypoints=None), "annotation 77: keypoints must be 51 numbers"),
        (bad(keypoints=["1"] * 51), "annotation 77: keypoints must be 51 numbers"),
        (bad(keypoints=[1, float("inf"), 2] * 17), "annotation 77: keypoints holds a number that is not finite"),
        (bad(keypoints=[1, 2, 3] * 17), "annotation 77: the visibility of a keypoint must be 0, 1 or 2, not 3"),
        (bad(keypoints=[1, 2, 0.5] * 17), "must be 0, 1 or 2, not 0.5"),
        (bad(bbox=[1, 2, 3]), "annotation 77: bbox must be four numbers"),
        (bad(image_id=5), "annotation 77: there is no image 5"),
        ([{k: v for k, v in person(1, 1, [1, 1, 9, 9]).items() if k != "id"}], "annotation number 0 has no id"),
        ([], "has no person with a box and a labelled keypoint"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, annotations, says):
    with pytest.raises(UserError, match=says) as caught:
        opened(tmp_path, annotations)
    assert "person_keypoints_train.json" in str(caught.value)


@pytest.mark.parametrize(
    ("category", "says"),
    [
        ({"id": 1, "name": "person"}, "needs one category with a list of keypoints.* it has 0"),
        ({**PERSON, "keypoints": ["nose", "nose"]}, "category 1: keypoints must be a list of different names"),
    ],
)
def test_wrong_names_are_told(tmp_path, category, says):
    with pytest.raises(UserError, match=says):
        opened(tmp_path, categories=[category])


def test_a_missing_image_is_named_at_once(tmp_path):
    file = write_keypoints(tmp_path, four_persons())
    (tmp_path / "images/train/a.png").unlink()
    with pytest.raises(UserError, match=r"person_keypoints_train.json, image 2: .* has no image 'a.png'"):
        CocoKeypoints(file, tmp_path / "images" / "train")


def test_an_image_of_another_size_is_named(tmp_path):
    persons = opened(tmp_path)
    Image.new("RGB", (20, 30)).save(tmp_path / "images/train/a.png")
    with pytest.raises(UserError, match=r"annotation 7: 'a.png' is 20x30 pixels, the annotations say 96x80"):
        persons[0]


def test_unknown_sizes_are_read_before_boxes_are_judged(tmp_path):
    images = [{"id": 1, "file_name": "c.png", "width": -1, "height": -1}, {"id": 2, "file_name": "a.png"}]
    persons = opened(tmp_path, [person(3, 1, [200, 1, 9, 9]), person(4, 2, [20, 1, 9, 9])], images=images)
    assert persons.skipped["boxes without area in the image"] == 1
    assert [record["width"] for record in persons.read.images] == [SIZE[0]] * 2


# ---- left and right ---------------------------------------------------------------------------------------------


def test_a_mirror_exchanges_the_sides():
    assert [NAMES[i] for i in mirrored(NAMES)][:5] == ["nose", "right_eye", "left_eye", "right_ear", "left_ear"]


@given(st.permutations(NAMES))
def test_two_mirrors_change_nothing(names):
    order = mirrored(names)
    assert [order[i] for i in order] == list(range(17))
    assert sorted(names[i] for i in order) == sorted(names)


# ---- crops ------------------------------------------------------------------------------------------------------


def through(matrix, *place) -> list[float]:
    return transform_points(np.array([place], dtype=float), matrix)[0].tolist()


def test_a_box_of_the_crops_shape_fills_it():
    matrix = crop_matrix((10, 20, 106, 148), (256, 192), 1.0)
    assert through(matrix, 10, 20) == pytest.approx([0, 0])
    assert through(matrix, 106, 148) == pytest.approx([192, 256])
    padded = crop_matrix((10, 20, 106, 148), (256, 192), 2.0)
    assert through(padded, 10, 20) == pytest.approx([48, 64])
    assert through(padded, 106, 148) == pytest.approx([144, 192])


def test_the_short_side_of_a_box_grows():
    wide = crop_matrix((0, 0, 100, 10), (256, 192), 1.0)
    assert [*through(wide, 0, 5), *through(wide, 100, 5)] == pytest.approx([0, 128, 192, 128])
    high = crop_matrix((0, 0, 10, 100), (256, 192), 1.25)
    assert [*through(high, 5, 0), *through(high, 5, 100)] == pytest.approx([96, 25.6, 96, 230.4])


def test_turning_is_clockwise_about_the_middle():
    matrix = crop_matrix((0, 0, 96, 128), (256, 192), 1.0, degrees=90)
    assert through(matrix, 48, 64) == pytest.approx([96, 128])
    assert through(matrix, 48 + 10, 64) == pytest.approx([96, 128 + 20])  # what was to the right is below
    assert through(matrix, 48, 64 + 10) == pytest.approx([96 - 20, 128])


PLACES = st.floats(-50, 150, allow_nan=False)


@given(PLACES, PLACES, st.floats(1, 90), st.floats(1, 90), st.floats(-180, 180), st.booleans(), st.floats(0.3, 2))
def test_what_leads_there_leads_back(x, y, width, height, degrees, mirror, padding):
    box = (3.0, 4.0, 3 + width, 4 + height)
    matrix = crop_matrix(box, (64, 96), padding, degrees, mirror)
    assert through(inverse_matrix(matrix), *through(matrix, x, y)) == pytest.approx([x, y], abs=1e-6)
    # lengths change by one factor alone
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    assert scale == pytest.approx(96 / (padding * max(width, height * 96 / 64)))
    assert math.dist(through(matrix, x, y), through(matrix, x + 3, y + 4)) == pytest.approx(5 * scale)
    plain = crop_matrix(box, (64, 96), padding, degrees)
    if mirror:
        assert through(matrix, x, y) == pytest.approx([96 - through(plain, x, y)[0], through(plain, x, y)[1]])


def test_a_crop_of_the_images_own_size_is_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    x, target = PersonCrop(PLAIN, 1.0)(image, {"box": (0, 0, 96, 64)})
    assert np.array_equal((255 * x).round().permute(1, 2, 0).numpy(), np.asarray(image))
    assert target["area"] == pytest.approx(64 * 96)
    wide, target = PersonCrop(PLAIN, 2.0)(image, {"box": (0, 0, 96, 64)})
    assert not wide[:, :15].any()  # outside the image
    assert target["area"] == pytest.approx(4 * 64 * 96)
    grey = Preprocess((64, 96), (0.5,), (0.25,), in_chans=1)
    expected = np.asarray(image.convert("L")) / 255
    assert PersonCrop(grey, 1.0)(image, {"box": (0, 0, 96, 64)})[0][0].numpy() == pytest.approx(
        (expected - 0.5) / 0.25, abs=1e-5
    )


def test_normalisation_is_that_of_the_network():
    image = Image.new("RGB", (96, 64), (51, 102, 255))
    x, _ = PersonCrop(Preprocess((64, 96), (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)), 1.0)(image, {"box": (0, 0, 96, 64)})
    assert x[:, 30, 40].tolist() == pytest.approx([0.2, 0.8, 3.5], abs=1e-5)


def dots(places: dict[int, tuple[float, float]]) -> Image.Image:
    """A black image of 120x100 pixels with a soft dot of each colour around the middle of a pixel."""
    y, x = np.mgrid[:100, :120]
    pixels = np.zeros((100, 120, 3))
    for colour, (left, top) in places.items():
        pixels[..., colour] = 255 * np.exp(-((x - left) ** 2 + (y - top) ** 2) / 8)
    return Image.fromarray(pixels.round().astype(np.uint8))


def middle(channel: torch.Tensor) -> list[float]:
    """Where the brighter half of a dot is, in places of the crop."""
    weights = torch.where(channel > channel.max() / 2, channel, 0)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in channel.shape), indexing="ij")
    return [float((weights * x).sum() / weights.sum()), float((weights * y).sum() / weights.sum())]


INSIDE = st.tuples(st.integers(45, 75), st.integers(38, 62))


@settings(deadline=None, max_examples=60)
@given(INSIDE, INSIDE, st.integers(0, 2**31))
def test_pixels_keypoints_and_heat_maps_go_together(left, right, seed):
    """A red dot is somebody's left eye, a green one the right; a mirror makes the red one a right eye."""
    keypoints = np.zeros((17, 3))
    keypoints[1], keypoints[2] = (*left, 2), (*right, 1)
    crop = TrainingCrop(PLAIN, KeypointsConfig(scale=0.3, rotation=40.0, rotation_prob=0.7, padding=1.5), NAMES)
    random.seed(seed)
    x, target = crop(dots({0: left, 1: right}), {"box": (30, 28, 90, 72), "keypoints": keypoints})
    matrix = inverse_matrix(target["back"])
    is_mirrored = np.linalg.det(matrix[:, :2]) < 0
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    for colour, (place, keypoint) in enumerate(((left, 1), (right, 2))):
        there = through(matrix, place[0] + 0.5, place[1] + 0.5)
        assert math.dist(middle(x[colour]), there) < 0.3 + 0.2 * scale
        # maps are those of the crop's own left and right
        own = target["heatmaps"][3 - keypoint if is_mirrored else keypoint]
        row, col = divmod(int(own.argmax()), 24)
        assert (col, row) == (there[0] // 4, there[1] // 4)
    assert target["weights"].tolist() == [0, 1, 1, *[0] * 14]


NOT_ON_AN_EDGE = st.floats(5, 91).filter(lambda v: 0.01 < (v + 0.5) % 4 < 3.99)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(NOT_ON_AN_EDGE, st.floats(5, 59), st.sampled_from([0, 1, 2])), min_size=17, max_size=17))
def test_a_mirrored_crop_has_mirrored_maps(keypoints):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    known = {"box": (0, 0, 96, 64), "keypoints": np.array(keypoints)}
    x, plain = TrainingCrop(PLAIN, KeypointsConfig(**STILL, padding=1.0), NAMES)(image, known)
    flipped = TrainingCrop(PLAIN, KeypointsConfig(**{**STILL, "hflip": 1.0}, padding=1.0), NAMES)(image, known)
    assert torch.equal(flipped[0], x.flip(-1))
    order = mirrored(NAMES)
    assert torch.equal(flipped[1]["heatmaps"], plain["heatmaps"].flip(-1)[order])
    assert torch.equal(flipped[1]["weights"], plain["weights"][order])


# ---- heat maps --------------------------------------------------------------------------------------------------


def test_a_bell_of_height_one_ends_at_three_sigmas():
    maps, weights = heatmaps(np.array([[42.0, 33.0, 2]]), (64, 96), 2.0)
    assert maps.shape == (1, 16, 24)
    assert maps[0, 8, 10] == 1
    assert maps[0, 8, 12] == pytest.approx(math.exp(-0.5))
    assert maps[0, 10, 13] == pytest.approx(math.exp(-(4 + 9) / 8))
    assert maps[0, 8, 16] == pytest.approx(math.exp(-4.5))
    assert (maps[0, 8, 17], maps[0, 8, 3], maps[0, 15, 10]) == (0, 0, 0)
    assert weights.tolist() == [1]


@pytest.mark.parametrize(
    ("keypoint", "weight"),
    [
        ((0.0, 0.0, 2), 1),
        ((95.9, 63.9, 1), 1),
        ((50.0, 30.0, 0), 0),
        ((96.0, 30.0, 2), 0),
        ((50.0, 64.0, 2), 0),
        ((-0.1, 30.0, 2), 0),
        ((50.0, -0.1, 2), 0),
    ],
)
def test_keypoints_without_label_or_outside_have_no_weight(keypoint, weight):
    maps, weights = heatmaps(np.array([keypoint]), (64, 96), 2.0)
    assert weights.item() == weight
    assert maps.max() == weight


@settings(deadline=None, max_examples=30)
@given(st.floats(-20, 120), st.floats(-20, 80), st.floats(0.5, 4))
def test_heat_maps_are_those_of_a_slow_implementation(x, y, sigma):
    slow = np.zeros((16, 24), dtype=np.float32)
    col, row = math.floor(x / 4), math.floor(y / 4)
    for i in range(16):
        for j in range(24):
            if 0 <= col < 24 and 0 <= row < 16 and max(abs(i - row), abs(j - col)) <= 3 * sigma:
                slow[i, j] = math.exp(-((i - row) ** 2 + (j - col) ** 2) / (2 * sigma**2))
    maps, _ = heatmaps(np.array([[x, y, 2.0]]), (64, 96), sigma)
    assert maps[0].numpy() == pytest.approx(slow, abs=1e-6)


# ---- settings ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_changes_stay_within_the_recipe(seed):
    config = KeypointsConfig(scale=0.2, rotation=30.0, rotation_prob=1.0, hflip=0.0, padding=1.5)
    random.seed(seed)
    known = {"box": (0, 0, 96, 64), "keypoints": np.zeros((17, 3))}
    matrix = inverse_matrix(TrainingCrop(PLAIN, config, NAMES)(Image.new("RGB", (96, 64)), known)[1]["back"])[:, :2]
    scale = math.sqrt(np.linalg.det(matrix))
    assert 1 / (1.5 * 1.2) <= scale <= 1 / (1.5 * 0.8)
    assert abs(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))) <= 30 + 1e-6


def test_draws_are_normal_and_cut():
    random.seed(0)
    drawn = np.array([truncated_normal() for _ in range(20_000)])
    assert np.abs(drawn).max() <= 1
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    assert drawn.std() == pytest.approx(0.5396, abs=0.01)  # of a normal distribution cut at one deviation


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 1.0}, r"keypoints.scale=1.0 is not allowed; give a share from 0 to below 1"),
        ({"rotation": -5.0}, "keypoints.rotation=-5.0 is not allowed"),
        ({"rotation_prob": 1.5}, "keypoints.rotation_prob=1.5 is not allowed"),
        ({"hflip": -0.1}, "keypoints.hflip=-0.1 is not allowed"),
        ({"sigma": 0.0}, "keypoints.sigma=0.0 is not allowed"),
        ({"padding": 0.0}, "keypoints.padding=0.0 is not allowed"),
    ],
)
def test_a_wrong_setting_is_named(options, says):
    with pytest.raises(BadOption, match=says):
        TrainingCrop(PLAIN, KeypointsConfig(**options), NAMES)


def test_sides_must_fit_the_network():
    with pytest.raises(BadOption, match=r"image_size=\(60, 96\) is not allowed; give multiples of 32"):
        PersonCrop(Preprocess((60, 96)), 1.25)


def test_samples_become_batches(tmp_path):
    persons = opened(tmp_path)
    crop = TrainingCrop(PLAIN, KeypointsConfig(), NAMES)
    x, maps, weights = crops_and_heatmaps([crop(*persons[i]) for i in range(3)])
    assert (x.shape, maps.shape, weights.shape) == ((3, 3, 64, 96), (3, 17, 16, 24), (3, 17))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights, maps.amax((2, 3)))
