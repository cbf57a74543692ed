"""Images and what is known of them change together."""

import random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from annotated_helpers import sample_image
from vitrail.config.tasks import DetectionConfig
from vitrail.data.datasets.coco import boxes_tensor, masks_tensor
from vitrail.data.transforms.detection import DetectionTransform, detection_steps, training_short_sides
from vitrail.errors import BadOption

SIZE = (64, 48)


def sample(seed: int):
    """An image, its target, and the ids of its segments."""
    pixels, ids, found = sample_image(seed, SIZE)
    boxes = [[x, y, x + w, y + h] for _, (x, y, w, h) in found]
    target = {
        "image_id": 5,
        "boxes": boxes_tensor([list(map(float, box)) for box in boxes], SIZE[::-1]),
        "labels": torch.tensor([{3: 0, 7: 1}[category] for category, _ in found]),
        "masks": masks_tensor([ids == 1, ids == 2], SIZE[::-1]),
        "semantic": tv_tensors.Mask(torch.from_numpy(np.where(ids <= 2, 2, ids - 3))),
    }
    return Image.fromarray(pixels), target


def seeded(steps, seed: int, known: dict, image: Image.Image):
    random.seed(seed)
    torch.manual_seed(seed)
    return DetectionTransform(steps)(image, known)


CONFIGS = {
    "nothing": DetectionConfig(hflip=0.0),
    "flip": DetectionConfig(hflip=1.0),
    "sparse_rcnn": DetectionConfig(crop_first=(20, 40)),
    "ssd": DetectionConfig(zoom_out=0.5, iou_crop=True),
}


@pytest.mark.parametrize("name", CONFIGS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_masks_and_maps_lie_where_the_colours_are(name, seed):
    image, target = sample(seed % 17)
    # the recipe's 400 to 600 pixels would make of an edge between two of these pixels a slope of ten
    with mock.patch("vitrail.data.transforms.detection.FIRST_SHORT_SIDES", (48, 60, 72)):
        steps = detection_steps(CONFIGS[name], (0.0, 1.0, 0.0))  # a canvas is green
    x, known = seeded(steps, seed, target, image)
    assert x.shape[-2:] == known["masks"].shape[-2:] == known["semantic"].shape
    red, green, blue = x
    coloured = {0: (red > 0.6) & (blue < 0.3), 1: (blue > 0.6) & (red < 0.3)}
    for box, label, mask in zip(known["boxes"], known["labels"], known["masks"], strict=True):
        own = coloured[int(label)]
        inner = mask.bool()
        # a resized edge mixes colours: a pixel at most on each side
        assert (own & ~grown(inner)).sum() == 0
        assert (shrunk(inner) & ~own & (green < 0.9)).sum() == 0
        if not inner.any():
            continue
        # of a sliver every pixel is an edge, whose mixed colour says nothing of where it ends
        for seen in [inner, own] if shrunk(inner).any() else [inner]:
            assert (box - extent(seen)).abs().max() <= (0 if name in ("nothing", "flip") else 2)
    things = known["semantic"] == 2
    assert (shrunk(things) & ~(coloured[0] | coloured[1]) & (green < 0.9)).sum() == 0


def extent(mask: torch.Tensor) -> torch.Tensor:
    rows, cols = torch.nonzero(mask, as_tuple=True)
    return torch.stack([cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]).float()


def grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] > 0


def shrunk(mask: torch.Tensor) -> torch.Tensor:
    """Without its edge; the image's own is one too, as a crop can end within the object's last pixel."""
    return ~grown(~torch.nn.functional.pad(mask, (1, 1, 1, 1)))[1:-1, 1:-1]


def test_pixels_become_floats_and_nothing_else_changes():
    image, target = sample(3)
    x, known = DetectionTransform()(image, target)
    torch.testing.assert_close(x, torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert type(known["boxes"]) is torch.Tensor
    assert torch.equal(known["boxes"], target["boxes"])
    assert known["image_id"] == 5


def test_objects_that_a_crop_leaves_outside_are_gone():
    image, target = sample(3)
    left = {**target, "boxes": boxes_tensor([[0.0, 0.0, 0.5, 9.0], [1.0, 1.0, 9.0, 9.0]], SIZE[::-1])}
    _, known = DetectionTransform()(image, left)
    assert known["labels"].tolist() == target["labels"][1:].tolist()
    assert len(known["boxes"]) == len(known["masks"]) == 1
    assert known["semantic"].shape == target["semantic"].shape


def test_an_image_without_objects_passes_every_step():
    image, _ = sample(0)
    empty = {"image_id": 1, "boxes": boxes_tensor([], SIZE[::-1]), "labels": torch.zeros(0, dtype=torch.int64)}
    every = DetectionConfig(photometric=True, zoom_out=1.0, iou_crop=True, crop_first=(10, 20))
    x, known = seeded(detection_steps(every, (0.5, 0.5, 0.5)), 0, empty, image)
    assert x.shape[0] == 3
    assert known["boxes"].shape == (0, 4)


def test_a_list_of_sides_is_a_list_and_a_range_is_every_number_of_it():
    assert training_short_sides(DetectionConfig(), 800) == [800]
    assert training_short_sides(DetectionConfig(short_sides=[640, 800]), 800) == [640, 800]
    assert training_short_sides(DetectionConfig(short_sides=[800, 640]), 800) == [640, 800]
    sides = training_short_sides(DetectionConfig(short_side_range=(640, 800)), 700)
    assert sorted(sides) == list(range(640, 801))
    assert sides[-1] == 700


@pytest.mark.parametrize("options", [{"short_sides": [640, 672]}, {"short_side_range": (640, 799)}])
def test_the_side_of_measuring_is_one_that_training_draws(options):
    with pytest.raises(BadOption, match="must hold image_size=800"):
        training_short_sides(DetectionConfig(**options), 800)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hflip": 1.5}, "hflip=1.5"),
        ({"zoom_out": -1.0}, "zoom_out=-1.0"),
        ({"short_sides": [0]}, "short_sides=[0]"),
        ({"max_side": 0}, "max_side=0"),
        ({"short_side_range": (9, 3)}, "short_side_range=(9, 3)"),
        ({"short_side_range": (0, 3)}, "short_side_range=(0, 3)"),
        ({"short_side_range": (3, 9), "short_sides": [3, 9]}, "short_side_range=(3, 9)"),
        ({"crop_first": (9, 3)}, "crop_first=(9, 3)"),
    ],
)
def test_a_wrong_setting_is_named(options, says):
    with pytest.raises(BadOption) as caught:
        detection_steps(DetectionConfig(**options), (0.5, 0.5, 0.5))
    assert says in str(caught.value)
