"""Networks for grey images: every task reads the grey that PIL makes, in training and in use."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vitrail.config.data import Preprocess
from vitrail.config.tasks import DetectionConfig, InferenceConfig, SegmentationConfig
from vitrail.data.transforms.detection import DetectionTransform, detection_steps, grey
from vitrail.data.transforms.segmentation import SegmentationAugmentation, SegmentationViews
from vitrail.heads.panoptic_fpn import default_min_stuff_area, merge
from vitrail.tasks.detection import DetectionInference
from vitrail.tasks.panoptic_segmentation import PanopticInference

GREY = Preprocess((64, 64), mean=(0.4,), std=(0.2,), in_chans=1)


def colours(height=40, width=60) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


def levels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("L")))[None]


def test_grey_is_pils_to_the_digit():
    image = colours(300, 300)
    assert torch.equal(grey(torch.from_numpy(np.array(image)).permute(2, 0, 1)), levels(image))


def test_a_detector_reads_grey():
    image = colours()
    for use in (
        DetectionInference("retinanet", ["a"], False, InferenceConfig(), in_chans=1),
        PanopticInference(["a"], 1, InferenceConfig(), in_chans=1),
    ):
        found = use.prepare(image, {})[0]
        assert torch.equal((255 * found).round(), levels(image).float())


def test_a_detector_learns_from_grey_after_every_change():
    config = DetectionConfig(hflip=1.0, photometric=True, zoom_out=1.0)
    steps = DetectionTransform(detection_steps(config, (0.4, 0.4, 0.4)), 1)
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[3.0, 4, 30, 20]]), format="XYXY", canvas_size=(40, 60))
    found, target = steps(colours(), {"boxes": boxes, "labels": torch.zeros(1, dtype=torch.long)})
    assert found.shape[0] == 1
    assert 0 <= found.min() < found.max() <= 1
    assert len(target["boxes"]) == 1


@pytest.mark.parametrize("flat", [True, False])
def test_semantic_segmentation_reads_grey(flat):
    image = colours(64, 64)
    config = SegmentationConfig(hflip=0.0, photometric=not flat, scale=(1.0, 1.0), max_class_share=1.0)
    mask = {"mask": tv_tensors.Mask(torch.zeros(64, 64, dtype=torch.uint8))}
    learned = SegmentationAugmentation(config, GREY)(image, mask)[0]
    expected = (levels(image).float() / 255 - 0.4) / 0.2
    assert learned.shape == (1, 64, 64)
    assert torch.allclose(learned, expected, atol=1e-6) == flat
    views = SegmentationViews(GREY, None, 2048, [1.0], 1)(image, {})[0][0]
    torch.testing.assert_close(views[0], expected, atol=1e-6, rtol=0)


def stripes(height: int, width: int, rows: int) -> dict:
    """Logits of one kind of stuff in the first rows, another below, and no things."""
    logits = torch.zeros(3, height, width)
    logits[0, :rows], logits[1, rows:] = 9, 9
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    return {**none, "masks": torch.zeros(0, 1, height, width), "semantic": logits}


@pytest.mark.parametrize(
    ("size", "least"), [((480, 640), 4096), ((427, 640), 4096), ((240, 320), 4096), ((60, 60), 48)]
)
def test_least_stuff_is_cocos_in_its_images_and_a_share_of_small_ones(size, least):
    assert default_min_stuff_area(*size) == least
    rows = -(-least // size[1])
    for count, kept in ((rows, 2), (least // size[1] - (least % size[1] == 0), 1)):
        assert len(merge(stripes(*size, count))[1]) == kept


def test_least_stuff_is_an_option():
    found = stripes(60, 60, 1)
    for area, kept in ((0, 2), (60, 2), (61, 1), (4096, 0)):
        use = PanopticInference(["dog", "sky", "grass"], 1, InferenceConfig(stuff_area=area))
        assert len(use.infer(lambda inputs: [found], [])[0].segments) == kept, area
