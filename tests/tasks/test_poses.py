"""Keypoints of persons: from heat maps to places in the image, flip test, scores, and what can be asked of them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from keypoint_helpers import NAMES, Bright, Fixed, person
from vitrail.config.data import Preprocess
from vitrail.config.tasks import InferenceConfig
from vitrail.data.datasets.keypoint_names import mirrored
from vitrail.data.transforms.keypoints import crop_matrix, heatmaps
from vitrail.errors import UserError
from vitrail.metrics.keypoints import pose_score
from vitrail.structures import Poses
from vitrail.tasks.keypoints import KeypointsInference, decode_heatmaps

pytest.importorskip("faster_coco_eval")
PLAIN = Preprocess((64, 96), (0.0,) * 3, (1.0,) * 3)


def use(**options) -> KeypointsInference:
    return KeypointsInference(NAMES, PLAIN, 1.25, InferenceConfig(**options))


# ---- heat maps and back -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 95.9), st.floats(0, 63.9)), min_size=1, max_size=5), st.floats(0.8, 3))
def test_a_target_gives_its_keypoint_back(places, sigma):
    keypoints = np.array([[*place, 2] for place in places])
    maps, _ = heatmaps(keypoints, (64, 96), sigma)
    found = decode_heatmaps(maps[None])[0].numpy()
    # the keypoint lies in the pixel of 4x4 whose middle is found
    assert np.abs(found[:, :2] - keypoints[:, :2]).max() <= 2 + 1e-4
    assert found[:, 2] == pytest.approx(np.ones(len(keypoints)))


def peak_at(row: int, col: int, **neighbours: float) -> torch.Tensor:
    """A map of 5x6 pixels with a peak and the values beside it."""
    steps = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
    maps = torch.zeros(1, 1, 5, 6)
    maps[0, 0, row, col] = 0.9
    for side, value in neighbours.items():
        maps[0, 0, row + steps[side][0], col + steps[side][1]] = value
    return maps


@pytest.mark.parametrize(
    ("maps", "place"),
    [
        (peak_at(2, 3), (3.5, 2.5)),
        (peak_at(2, 3, right=0.2), (3.75, 2.5)),
        (peak_at(2, 3, right=0.2, left=0.3), (3.25, 2.5)),
        (peak_at(2, 3, above=-0.2), (3.5, 2.75)),
        (peak_at(2, 3, above=0.5, right=0.1), (3.75, 2.25)),
        (peak_at(2, 5, left=0.5, below=0.1), (5.5, 2.75)),
        (peak_at(2, 0, right=0.5, above=0.1), (0.5, 2.25)),
        (peak_at(0, 3, below=0.5, left=0.1), (3.25, 0.5)),
        (peak_at(4, 3, above=0.5, left=0.1), (3.25, 4.5)),
    ],
)
def test_a_quarter_pixel_towards_the_higher_neighbour(maps, place):
    assert decode_heatmaps(maps)[0, 0].tolist() == pytest.approx([4 * place[0], 4 * place[1], 0.9])


@given(st.integers(0, 2**31))
def test_maps_are_read_one_by_one(seed):
    maps = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(seed))
    whole = decode_heatmaps(maps)
    for b in range(2):
        for k in range(3):
            row, col = np.unravel_index(int(maps[b, k].argmax()), (4, 7))
            x, y, score = whole[b, k].tolist()
            assert score == maps[b, k].max().item()
            assert (abs(x / 4 - col - 0.5), abs(y / 4 - row - 0.5)) in {(0, 0), (0, 0.25), (0.25, 0), (0.25, 0.25)}


# ---- flip test --------------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    """A network that knows left from right: it sees left keypoints best on the left, right ones on the right."""

    def forward(self, x):
        seen = F.avg_pool2d(x.mean(1, keepdim=True), 4)
        ramp = torch.linspace(0.2, 1, seen.shape[-1])
        sides = {"left": ramp.flip(0), "right": ramp}
        weights = torch.stack([sides.get(name.split("_")[0], torch.ones_like(ramp)) for name in NAMES])
        return seen * weights[:, None]


def test_the_flip_test_changes_nothing_for_a_symmetric_network():
    crops = torch.rand(2, 3, 64, 96)
    plain = Symmetric()(crops)
    assert not torch.allclose(plain.flip(-1), Symmetric()(crops.flip(-1)))  # left and right matter to it
    assert torch.allclose(use(flip=True).infer(Symmetric(), crops), use().infer(Symmetric(), crops), atol=1e-6)


def test_the_flip_test_averages_maps():
    maps = torch.randn(1, 17, 16, 24)
    other = maps.flip(-1)[:, mirrored(NAMES)]
    found = use(flip=True).infer(Fixed(maps), torch.zeros(2, 3, 64, 96))
    assert torch.allclose(found, decode_heatmaps((maps + other) / 2).expand(2, -1, -1))
    assert torch.equal(use().infer(Fixed(maps), torch.zeros(1, 3, 64, 96)), decode_heatmaps(maps))


@given(st.floats(0, 95.9).filter(lambda v: 0.01 < v % 4 < 3.99), st.floats(0, 63.9))
def test_mirrored_maps_need_no_shift(x, y):
    """The target of a mirrored keypoint, mirrored back, is the keypoint's own: at stride 4, too."""
    both = [heatmaps(np.array([[place, y, 2]]), (64, 96), 2.0)[0] for place in (x, 96 - x)]
    assert torch.equal(both[1].flip(-1), both[0])


# ---- use --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(80, 300), st.integers(80, 300), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_a_keypoint_is_found_where_it_is(width, height, across, down):
    """In images of any shape, which one person fills: to half a pixel of the map and the quarter towards it."""
    x, y = round(across * width), round(down * height)
    rows, cols = np.mgrid[:height, :width]
    spread = 2.5 * max(width / 96, height / 64)  # of the dot: two pixels of the crop
    pixels = 250 * np.exp(-((cols - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
    image = Image.fromarray(np.repeat(pixels.round().astype(np.uint8)[..., None], 3, 2))
    found = use(flip=True).predict(Bright(), [image], "cpu")[0]
    scale = np.linalg.det(crop_matrix((0, 0, width, height), (64, 96), 1.25)[:, :2]) ** 0.5
    assert found.poses.shape == (1, 17, 3)
    assert np.abs(found.poses[0, :, :2] - (x, y)).max() <= 3.1 / scale + 0.6
    assert found.scores[0] == pytest.approx(found.poses[0, 0, 2])


def test_persons_are_looked_for_in_their_boxes():
    image = Image.new("RGB", (200, 100))
    for x, y in ((40, 50), (150, 30)):
        image.paste((255, 255, 255), (x - 3, y - 3, x + 4, y + 4))
    found = use().predict_boxes(Bright(), image, [(20, 20, 60, 90), (120, 0, 180, 60)], [0.5, 1.0], "cpu")
    assert np.abs(found.poses[0, :, :2] - (40, 50)).max() < 4
    assert np.abs(found.poses[1, :, :2] - (150, 30)).max() < 4
    assert found.scores[0] == pytest.approx(0.5 * found.poses[0, 0, 2])


def test_a_poses_score_is_that_of_its_sure_keypoints():
    scores = np.array([0.9, 0.5, 0.2, 0.1, -0.3])
    pose = np.column_stack([np.zeros((5, 2)), scores])
    assert pose_score(0.5, pose) == pytest.approx(0.5 * 0.7)
    assert pose_score(0.5, pose[2:]) == 0.0


def test_persons_are_told_drawn_and_saved(tmp_path):
    poses = np.zeros((2, 17, 3))
    poses[0, :, :2], poses[0, :3, 2] = (20, 10), 0.8
    poses[1, :, :2], poses[1, :, 2] = (50.126, 30), 0.19
    persons = Poses(NAMES, poses, np.array([0.8, 0.0]))
    assert persons.summary() == "2 persons with 3 and 0 of 17 keypoints"
    assert Poses(NAMES, poses[:1]).summary() == "1 person with 3 of 17 keypoints"
    assert Poses(NAMES, poses[:0]).summary() == "no person"
    record = persons.to_dict()
    assert record["names"] == NAMES
    assert record["keypoints"][1][0] == [50.13, 30.0, 0.19]
    assert record["scores"] == [0.8, 0.0]
    drawn = np.asarray(persons.draw(Image.new("RGB", (60, 40))))
    assert drawn[10, 20].any()
    assert not drawn[25:36, 45:56].any()  # too unsure
    persons.save(tmp_path, "two")
    assert json.loads((tmp_path / "two.json").read_text()) == record


def test_truth_is_what_is_labelled():
    keypoints = np.array(person(1, 1, [5, 5, 30, 30])["keypoints"]).reshape(17, 3)
    truth = use().ground_truth({"keypoints": keypoints})
    assert truth.summary() == "1 person with 15 of 17 keypoints"
    assert truth.poses[0, :, :2].tolist() == keypoints[:, :2].tolist()
    assert truth.to_dict()["scores"] is None
    assert use().ground_truth({"box": (1, 2, 3, 4)}).summary() == "no person"


@pytest.mark.parametrize(
    "options",
    [
        {"scales": [0.5, 1.0]},
        {"window": 64},
        {"score_thresh": 0.1},
        {"nms_thresh": 0.5},
        {"max_detections": 5},
    ],
)
def test_options_of_other_tasks_are_refused(options):
    with pytest.raises(UserError, match=rf"--inference.{next(iter(options))} .* is not for keypoints"):
        use(**options)


def test_boxes_of_a_data_set_are_not_for_predicting():
    with pytest.raises(UserError, match=r"--inference\.boxes is for measuring"):
        use(boxes="boxes.json").predict(Bright(), [Image.new("RGB", (9, 9))], "cpu")
