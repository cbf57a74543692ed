"""Differences of predictions from the truth: counts by hand, agreement with the metrics."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.analysis.differences import (
    ClassDifference,
    ObjectDifference,
    PoseDifference,
    SegmentDifference,
    difference,
)
from vitrail.errors import UserError
from vitrail.metrics.panoptic import PanopticQuality, Segment
from vitrail.metrics.segmentation import Confusion
from vitrail.structures import ClassProbabilities, Detections, PanopticSegments, Poses, SegmentationMap

CLASSES = ["a", "b", "c"]
IMAGE = Image.new("RGB", (12, 8), (200, 100, 50))


def test_class_maps_agree_with_the_metric():
    rng = np.random.default_rng(0)
    truth, found = (rng.integers(0, 3, (8, 12)).astype(np.uint8) for _ in range(2))
    truth[:2] = 255
    one = difference(SegmentationMap(CLASSES, found), SegmentationMap(CLASSES, truth))
    assert isinstance(one, ClassDifference)
    counted = Confusion(CLASSES)
    counted.update(torch.from_numpy(found), torch.from_numpy(truth))
    expected = counted.compute()
    assert one.numbers()["mIoU"] == pytest.approx(expected["mIoU"])
    assert one.numbers()["wrong"] == pytest.approx(1 - expected["aAcc"])
    assert not one.wrong[:2].any()
    same = difference(SegmentationMap(CLASSES, truth), SegmentationMap(CLASSES, truth))
    assert same.numbers() == {"wrong": 0, "mIoU": 1}
    assert "0.0 % of the pixels wrong" in same.summary()


def test_wrong_pixels_have_the_colour_of_the_class_they_are_taken_for():
    truth, found = np.zeros((8, 12), np.uint8), np.zeros((8, 12), np.uint8)
    found[:4, :6] = 2
    drawn = np.asarray(ClassDifference(SegmentationMap(CLASSES, found), SegmentationMap(CLASSES, truth)).draw(IMAGE))
    assert len(np.unique(drawn[:4, :6].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(drawn[4:8, 6:12].reshape(-1, 3), axis=0)) == 1
    assert (drawn[0, 0] != drawn[7, 11]).any()
    assert len(set(drawn[7, 11])) == 1  # grey where it is right


def boxes(*rows, scores=None):
    values = np.array([row[:4] for row in rows], dtype=float).reshape(-1, 4)
    labels = np.array([row[4] for row in rows], dtype=int)
    return Detections(CLASSES, values, labels=labels, scores=None if scores is None else np.array(scores))


def test_objects_are_matched_within_their_class_best_score_first():
    truth = boxes((0, 0, 4, 4, 0), (6, 0, 10, 4, 1), (0, 5, 3, 8, 2))
    found = boxes(
        (0, 0, 4, 4, 0),  # IoU 1, of a lower score than the next
        (0, 1, 4, 4, 0),  # IoU 0.75: takes the object
        (6, 0, 10, 4, 0),  # another class
        (0, 5, 3, 6.4, 2),  # IoU 0.47
        (6, 0, 10, 3, 1),  # not sure enough to be shown
        scores=[0.8, 0.9, 0.7, 0.9, 0.3],
    )
    one = difference(found, truth)
    assert isinstance(one, ObjectDifference)
    assert one.pairs == [(1, 0, 0.75)]
    assert sorted(one.missed) == [1, 2]
    assert sorted(one.false) == [0, 2, 3]
    assert one.numbers() == {"matched": 1, "missed": 2, "false": 3, "IoU": 0.75}
    assert one.summary() == "1 matched, 2 missed, 3 false; mean IoU 0.75"
    assert len(one.draw(IMAGE.resize((120, 80))).getcolors(2**20)) > 4
    nothing = difference(boxes(scores=[]), boxes())
    assert nothing.summary() == "0 matched, 0 missed, 0 false"
    nothing.draw(IMAGE)


def test_objects_with_masks_are_matched_by_them():
    masks = np.zeros((2, 8, 12), dtype=bool)
    masks[0, :4, :4], masks[1, :4, :3] = True, True
    box = (0, 0, 4, 4, 0)
    truth, found = boxes(box), boxes(box, scores=[0.9])
    truth.masks, found.masks = masks[:1], masks[1:]
    assert difference(found, truth).pairs == [(0, 0, 0.75)]
    found.masks = masks[1:] & (np.arange(12) < 1)
    assert difference(found, truth).pairs == []
    assert len(difference(found, truth).draw(IMAGE).getcolors(2**20)) > 2


def segments(ids, labels):
    known = [
        {"id": i + 1, "label": label, "thing": True, "score": None, "area": int((ids == i + 1).sum())}
        for i, label in enumerate(labels)
    ]
    return PanopticSegments(CLASSES, ids, known)


def test_segments_agree_with_panoptic_quality():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = np.repeat(rng.integers(0, 4, (8, 1)), 12, axis=1)
        found = np.where(rng.random((8, 12)) < 0.2, rng.integers(0, 4, (8, 12)), truth)
        labels = [[int(one) for one in rng.integers(0, 2, 3)] for _ in range(2)]
        sides = [segments(found, labels[0]), segments(truth, labels[rng.integers(2)])]
        for side in sides:
            side.segments = [one for one in side.segments if one["area"]]
        one = difference(*sides)
        assert isinstance(one, SegmentDifference)
        quality = PanopticQuality(dict.fromkeys(range(3), True))
        mine, theirs = ([Segment(s["id"], s["label"]) for s in side.segments] for side in sides)
        quality.update(found, mine, truth, theirs, "image")
        tallies = quality.tallies.values()
        told = one.numbers()
        assert told["matched"] == sum(tally.matched for tally in tallies)
        assert told["missed"] == sum(tally.missed for tally in tallies)
        assert told["matched"] * (told["IoU"] if told["matched"] else 0) == pytest.approx(sum(t.iou for t in tallies))
        one.draw(IMAGE)


def test_a_missed_segment_shows_where_a_matched_one_was_found_instead():
    found, truth = np.ones((8, 12), dtype=np.int32), np.ones((8, 12), dtype=np.int32)
    truth[2:6, 2:6] = 2
    image = Image.new("RGB", (12, 8), (128, 128, 128))
    one = difference(segments(found, [0]), segments(truth, [0, 1]))
    drawn = one.draw(image)
    colours = {drawn.getpixel((x, y)) for x in range(2, 6) for y in range(2, 6)}
    assert len(colours) == 1
    red, green, _ = colours.pop()
    assert red > green + 40
    red, green, _ = drawn.getpixel((0, 0))
    assert green > red + 40


def test_poses_are_matched_with_the_nearest():
    truth = np.zeros((3, 2, 3))
    truth[0, :, :2], truth[1, :, :2] = [[0, 0], [10, 10]], [[50, 0], [60, 10]]
    truth[:2, :, 2] = 1  # the third person has no labelled keypoint
    found = truth[[1, 0, 0]] + 0
    found[0, :, 0] += 3
    found[1, :, 1] += 4
    found[2, :, 0] += 90
    one = difference(Poses(["x", "y"], found, np.ones(3)), Poses(["x", "y"], truth))
    assert isinstance(one, PoseDifference)
    assert sorted(one.pairs) == [(0, 1, 3.0), (1, 0, 4.0)]
    assert (one.missed, one.false) == ([], [2])
    assert one.summary() == "2 matched, 0 missed, 1 false; mean distance in pixels 3.50"
    assert len(one.draw(IMAGE.resize((120, 80))).getcolors(2**20)) > 3
    truth[0, 1, 2] = 0  # not labelled: does not count
    found[1, 1, 0] += 20
    assert (1, 0, 4.0) in difference(Poses(["x", "y"], found, np.ones(3)), Poses(["x", "y"], truth)).pairs


def test_unlike_kinds_are_refused():
    with pytest.raises(UserError, match="cannot be compared"):
        difference(boxes(), SegmentationMap(CLASSES, np.zeros((8, 12), np.uint8)))
    sure = ClassProbabilities(["a"], [1.0])
    with pytest.raises(UserError, match="cannot be compared"):
        difference(sure, sure)
