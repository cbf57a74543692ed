"""Transforms of detection and panoptic segmentation: image, boxes and masks together, by torchvision's v2."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...config.tasks import DetectionConfig
from ...errors import BadOption
from .base import PairTransform

#: short sides of images before the first crop, as in Sparse R-CNN
FIRST_SHORT_SIDES = (400, 500, 600)


class DetectionTransform(PairTransform):
    """torchvision's v2 transforms on an image and its target of `tv_tensors`.

    Args:
        steps: transforms of an image (uint8 tensor) and its target.
        in_chans: 3, or 1 for grey, which an image becomes after the steps.

    Returns (when called): the image as floats in [0, 1], (in_chans, H, W), and the target as plain tensors.
    """

    def __init__(self, steps: Sequence[Any] = (), in_chans: int = 3):
        self.in_chans = in_chans
        self.steps = v2.Compose([*steps]) if steps else None

    def __call__(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """See above."""
        pixels: Any = v2.functional.to_image(image)
        if self.steps is not None:
            pixels, target = self.steps(pixels, target)
        if "boxes" in target:
            target = drop_small_boxes(target)
        if self.in_chans == 1:
            pixels = grey(pixels.as_subclass(torch.Tensor))
        pixels = v2.functional.to_dtype(pixels.as_subclass(torch.Tensor), torch.float32, scale=True)
        return pixels, {name: plain(value) for name, value in target.items()}


def grey(image: Tensor) -> Tensor:
    """An RGB image (3, H, W) uint8 as grey (1, H, W), as PIL's mode "L"."""
    red, green, blue = image.int()
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[None]


def plain(value: Any) -> Any:
    """A plain tensor of one of torchvision's `tv_tensors`; anything else as it is."""
    return value.as_subclass(torch.Tensor) if isinstance(value, tv_tensors.TVTensor) else value


def drop_small_boxes(target: dict[str, Any], least: float = 1.0) -> dict[str, Any]:
    """A target without the objects whose boxes are narrower than `least` pixels, such as those outside a crop."""
    boxes = target["boxes"].as_subclass(torch.Tensor)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)
    per_object = [name for name in ("boxes", "labels", "masks") if name in target]
    return {**target, **{name: plain(target[name])[kept] for name in per_object}}


def detection_steps(config: DetectionConfig, fill: Sequence[float]) -> list[Any]:
    """The steps of a recipe, in the order of SSD's and Sparse R-CNN's; the detector resizes by itself.

    Args:
        config: the recipe's settings.
        fill: colour of a larger canvas, of values in [0, 1].

    Raises:
        BadOption: a setting outside what is allowed.
    """
    check_detection(config)
    steps: list[Any] = [v2.RandomPhotometricDistort(p=1.0)] if config.photometric else []
    if config.zoom_out:
        colours: Any = {tv_tensors.Image: [round(255 * value) for value in fill], "others": 0}
        steps.append(v2.RandomZoomOut(fill=colours, side_range=(1.0, 4.0), p=config.zoom_out))
    if config.iou_crop:
        steps.append(IoUCrop())
    if config.crop_first is not None:
        steps.append(
            v2.RandomApply([v2.RandomShortestSize([*FIRST_SHORT_SIDES]), RandomSizeCrop(*config.crop_first)], p=0.5)
        )
    return [*steps, v2.RandomHorizontalFlip(config.hflip)]


def training_short_sides(config: DetectionConfig, measured: int) -> list[int]:
    """Short sides of which one is drawn for each image in training, all as likely; `measured` is the last.

    Args:
        config: the recipe's settings.
        measured: the short side of images in measuring.

    Raises:
        BadOption: `measured` is none of them.
    """
    check_detection(config)
    first, last = config.short_side_range or (measured, measured)
    drawn = range(first, last + 1) if config.short_side_range else (config.short_sides or [measured])
    if measured not in drawn:
        name = "short_side_range" if config.short_side_range else "short_sides"
        raise BadOption(
            f"detection.{name}={getattr(config, name)!r} is not allowed; it must hold image_size={measured}, at which "
            "images are measured."
        )
    return [*(side for side in drawn if side != measured), measured]


class IoUCrop(v2.RandomIoUCrop):
    """SSD's crop; an image without objects stays whole."""

    def forward(self, *inputs: Any) -> Any:
        """Image and target -> both, cropped."""
        return super().forward(*inputs) if len(inputs[-1]["boxes"]) else inputs


class RandomSizeCrop(torch.nn.Module):
    """A random crop of an image with sides of `least` to `most` pixels, or as far as the image goes."""

    def __init__(self, least: int, most: int):
        super().__init__()
        self.least, self.most = least, most

    def forward(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Image and target -> both, cropped."""
        limits = [min(side, self.most) for side in image.shape[-2:]]
        height, width = (random.randint(min(limit, self.least), limit) for limit in limits)
        return v2.RandomCrop((height, width))(image, target)


def check_detection(config: DetectionConfig) -> None:
    """Raise `BadOption` naming the first setting outside what is allowed."""
    for name in ("hflip", "zoom_out"):
        if not 0 <= getattr(config, name) <= 1:
            raise BadOption(f"detection.{name}={getattr(config, name)!r} is not allowed; give a number from 0 to 1.")
    if config.max_side < 1 or any(side < 1 for side in config.short_sides):
        raise BadOption(
            f"detection.short_sides={config.short_sides!r}, max_side={config.max_side!r} are not allowed; give sides "
            "of 1 pixel or more."
        )
    if config.short_side_range is not None:
        if config.short_sides:
            raise BadOption(
                f"detection.short_side_range={config.short_side_range!r} is not allowed beside "
                f"short_sides={config.short_sides!r}; give a range or a list."
            )
        if not 1 <= config.short_side_range[0] <= config.short_side_range[1]:
            raise BadOption(
                f"detection.short_side_range={config.short_side_range!r} is not allowed; give (least, most) pixels."
            )
    if config.crop_first is not None and not 1 <= config.crop_first[0] <= config.crop_first[1]:
        raise BadOption(f"detection.crop_first={config.crop_first!r} is not allowed; give (least, most) pixels.")
