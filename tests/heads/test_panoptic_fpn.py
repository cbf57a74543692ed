"""Panoptic FPN: classes of pixels at a quarter of the size, and one segment for every pixel."""

import pytest
import torch
from detector_helpers import small, targets

from vitrail.heads.panoptic_fpn import PanopticFPN, full_size, merge, quarter_maps


def test_pixels_learn_at_a_quarter_of_the_size():
    truth = torch.arange(4).repeat_interleave(8)[None].expand(16, 32)  # 8 columns a class
    made = quarter_maps([truth, torch.zeros(8, 8, dtype=torch.long)], [(16, 32), (8, 8)], (6, 9))
    assert made[0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 255]
    assert made[1].tolist() == [[0, 0, *[255] * 7]] * 2 + [[255] * 9] * 4


def test_logits_come_back_to_the_size_of_the_image():
    logits = torch.linspace(0, 1, 10)[None, None].expand(3, 4, 10)
    made = full_size(logits, (14, 30), (28, 60))
    assert made.shape == (3, 28, 60)
    assert made[0, 0, -1] == pytest.approx(29.5 / 4 / 9 - 0.5 / 9, abs=0.01)  # the padding behind is cut off


def test_pixels_with_no_label_teach_nothing():
    images, found = targets()
    losses = small(PanopticFPN).train()([images[1]], [found[1]])
    assert losses["loss_semantic"] == 0


def scene(**options) -> dict:
    """Two things that overlap by half and a third below the threshold, on two kinds of stuff."""
    masks = torch.zeros(3, 1, 100, 100)
    masks[0, 0, :40, :40] = masks[1, 0, :40, 20:80] = masks[2, 0, 60:, 60:] = 0.9
    semantic = torch.zeros(3, 100, 100)
    semantic[0, :50] = semantic[1, 50:] = semantic[2, :, 80:] = 1.0
    semantic[2, :, 80:] = 2.0
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [20.0, 0.0, 80.0, 40.0], [60.0, 60.0, 100.0, 100.0]])
    scores = torch.tensor([0.7, 0.9, 0.5])
    return {"boxes": boxes, "labels": torch.tensor([2, 1, 3]), "scores": scores, "masks": masks, "semantic": semantic}


def test_every_pixel_belongs_to_one_segment():
    segments, known = merge(scene(), min_stuff_area=1000)
    # the better thing is whole, the other keeps the half that is left, the third one's score is too low
    assert [(s["thing"], s["label"], s["area"]) for s in known] == [
        (True, 1, 40 * 60),
        (True, 2, 40 * 20),
        (False, 1, 50 * 80),
    ]
    assert known[0]["score"] == pytest.approx(0.9)
    assert known[2]["score"] is None
    for segment in known:
        assert int((segments == segment["id"]).sum()) == segment["area"]
    # the first stuff has 10 x 80 pixels left, and nobody knows where "a thing" is said and none was found
    assert int((segments == 0).sum()) == 10_000 - sum(segment["area"] for segment in known)


def test_things_and_stuff_that_are_too_little_are_left_out():
    labels = [s["label"] for s in merge(scene(), overlap_thresh=0.4, min_stuff_area=1000)[1] if s["thing"]]
    assert labels == [1]  # half of the other is covered
    labels = [s["label"] for s in merge(scene(), nms_thresh=0.1, min_stuff_area=1000)[1] if s["thing"]]
    assert labels == [1]  # of two boxes that overlap the better stays, whatever their classes
    assert [s["label"] for s in merge(scene(), min_stuff_area=4001)[1] if not s["thing"]] == []
    assert [s["label"] for s in merge(scene(), min_stuff_area=800)[1] if not s["thing"]] == [0, 1]
    assert len([s for s in merge(scene(), score_thresh=0.5)[1] if s["thing"]]) == 3


def test_nothing_found_is_no_segment():
    nothing = {name: value[:0] if name != "semantic" else value for name, value in scene().items()}
    segments, known = merge(nothing, min_stuff_area=10_000)
    assert known == []
    assert not segments.any()
