"""Transforms of semantic segmentation: MMSegmentation's pipeline for ADE20K, by torchvision's transforms."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from ...config.data import Preprocess
from ...config.tasks import SegmentationConfig
from ...errors import BadOption
from .. import large
from ..datasets.index_masks import IGNORE
from ..large import reduced
from .base import PairTransform
from .detection import grey, plain

#: how often a crop with too much of one class is drawn again
REDRAWS = 10


class SegmentationAugmentation(PairTransform):
    """Training augmentation of an image and its mask: random scale, crop, mirror and colours.

    The image keeps its shape: its size is that of `fitted_size`, times a factor from `config.scale`. Crops are padded
    at the right and below with zeros in the normalised image and 255 in the mask.

    Args:
        config: the recipe's settings.
        preprocess: size of the crop, resampling and normalisation.

    Shapes (when called): an image and {"mask": (H, W)} -> (3, h, w) float and (h, w) int64, of `image_size`.

    Raises:
        BadOption: a setting outside what is allowed.
    """

    def __init__(self, config: SegmentationConfig, preprocess: Preprocess):
        check_segmentation(config)
        preprocess.check()
        self.scale, self.mode = config.scale, InterpolationMode(preprocess.interpolation)
        self.sides = config.short_side or min(preprocess.image_size), config.max_side
        steps: list[Any] = [
            BalancedCrop(preprocess.image_size, config.max_class_share),
            v2.RandomHorizontalFlip(config.hflip),
        ]
        if config.photometric:
            steps.append(PhotometricDistort())
        self.steps = v2.Compose([*steps, *normalisation(preprocess), PadTo(preprocess.image_size)])

    def __call__(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See above."""
        size = fitted_size(image.size, *self.sides, random.uniform(*self.scale))
        pixels, mask = self.steps(resize_image(image, size, self.mode), resize_mask(target["mask"], size))
        return plain(pixels), plain(mask)


class SegmentationViews(PairTransform):
    """An image at each scale of inference; its target is not changed.

    Args:
        preprocess: resampling and normalisation; the size is that of the crop in training.
        short_side: see `fitted_size`; None = the smaller side of the crop in training.
        max_side: see `fitted_size`.
        scales: factors of the default size.
        multiple: see `fitted_size`.

    Returns (when called): the views, a list of (3, h, w) float, with the image's own (height, width); and the target
        with plain tensors.

    Raises:
        BadOption: a setting outside what is allowed.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        short_side: int | None,
        max_side: int,
        scales: Sequence[float] = (1.0,),
        multiple: int = 1,
    ):
        preprocess.check()
        check_sides(short_side, max_side)
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise BadOption(f"inference.scales={scales!r} is not allowed; give one or more factors above 0.")
        self.sides, self.scales, self.multiple = (short_side or min(preprocess.image_size), max_side), scales, multiple
        self.mode = InterpolationMode(preprocess.interpolation)
        self.normalise = v2.Compose(normalisation(preprocess))

    def __call__(
        self, image: Image.Image, target: dict[str, Any]
    ) -> tuple[tuple[list[Tensor], tuple[int, int]], dict[str, Any]]:
        """See above."""
        sizes = [fitted_size(image.size, *self.sides, scale, self.multiple) for scale in self.scales]
        smaller = reduced(image, large.LARGE)
        views = [plain(self.normalise(resize_image(smaller, size, self.mode))) for size in sizes]
        return (views, (image.height, image.width)), {name: plain(value) for name, value in target.items()}


# ---- sizes ------------------------------------------------------------------------------------------------------


def fitted_size(
    size: tuple[int, int], short_side: int, max_side: int, factor: float = 1.0, multiple: int = 1
) -> tuple[int, int]:
    """(height, width) of a resized image that keeps its shape.

    Args:
        size: its (width, height), as Pillow says it.
        short_side: its short side afterwards, unless
        max_side: its long side would then be longer than this, which it has instead.
        factor: of both.
        multiple: sides are rounded up to a multiple of this, which changes the shape a little.
    """
    width, height = size
    scale = factor * min(short_side / min(size), max_side / max(size))
    height, width = (max(1, int(side * scale + 0.5)) for side in (height, width))
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def resize_image(image: Image.Image, size: tuple[int, int], mode: InterpolationMode) -> tv_tensors.Image:
    """An image at (height, width), uint8; made smaller without aliasing, as Pillow does."""
    resized: Any = v2.functional.resize(image, list(size), mode)  # pyright: ignore[reportArgumentType]
    return v2.functional.to_image(resized)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> tv_tensors.Mask:
    """A mask (H, W) at (height, width).

    Each pixel takes the value under its centre, as Pillow does: PyTorch's "nearest" would move masks by up to half a
    pixel against their images.
    """
    values = Image.fromarray(plain(mask).to(torch.uint8).numpy())
    resized = values.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return tv_tensors.Mask(torch.from_numpy(np.array(resized)).long())


# ---- steps ------------------------------------------------------------------------------------------------------


class BalancedCrop(nn.Module):
    """A random crop of an image, or all of it where it is smaller.

    A crop is drawn again, ten times at most, while one class fills a greater share than `most` of the pixels that have
    a class, or no pixel has one.

    Args:
        size: (height, width).
        most: that share; 1 = any crop will do.
    """

    def __init__(self, size: tuple[int, int], most: float):
        super().__init__()
        self.size, self.most = size, most

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(3, H, W) and (H, W) -> both, cropped alike."""
        box = self.draw(mask)
        for _ in range(REDRAWS):
            if self.balanced(v2.functional.crop(mask, *box)):
                break
            box = self.draw(mask)
        return v2.functional.crop(image, *box), v2.functional.crop(mask, *box)

    def draw(self, mask: Tensor) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        height, width = (min(side, most) for side, most in zip(mask.shape, self.size, strict=True))
        return (
            random.randint(0, mask.shape[0] - height),
            random.randint(0, mask.shape[1] - width),
            height,
            width,
        )

    def balanced(self, mask: Tensor) -> bool:
        """True if no class fills more than its share of the mask."""
        if self.most >= 1:
            return True
        counts = torch.bincount(plain(mask)[plain(mask) != IGNORE])
        return bool(counts.numel() and counts.max() <= self.most * counts.sum())


class PhotometricDistort(v2.RandomPhotometricDistort):
    """SSD's changes of brightness, contrast, saturation and hue, each with probability 1/2.

    As MMSegmentation changes SSD's, the hue turns by up to a tenth of the circle and channels keep their places. What
    brightness, contrast and saturation are is torchvision's definition, not OpenCV's.
    """

    def __init__(self) -> None:
        super().__init__(hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """torchvision's, but for the order of the channels."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class PadTo(nn.Module):
    """An image and its mask extended to the right and below, to (height, width)."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(3, h, w) and (h, w) -> (3, H, W) with zeros and (H, W) with 255."""
        height, width = (full - side for full, side in zip(self.size, mask.shape, strict=True))
        border = [0, 0, width, height]
        return v2.functional.pad(image, border, fill=0.0), v2.functional.pad(mask, border, fill=IGNORE)


def normalisation(preprocess: Preprocess) -> list[Any]:
    """From uint8 to floats with the network's mean and deviation; masks stay as they are."""
    grey_steps: list[Any] = [Grey()] if preprocess.in_chans == 1 else []
    return [*grey_steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics(preprocess))]


def statistics(preprocess: Preprocess) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel; those of grey are the channels' averages."""
    mean, std = list(preprocess.mean), list(preprocess.std)
    return (mean, std) if preprocess.in_chans == 3 else ([sum(mean) / len(mean)], [sum(std) / len(std)])


class Grey(nn.Module):
    """An RGB image as grey; its mask, where one comes along, as it is."""

    def forward(self, image: Tensor, *masks: Tensor) -> Any:
        """(3, h, w) uint8 and what else there is -> (1, h, w) and that."""
        made = tv_tensors.Image(grey(image.as_subclass(Tensor)))
        return (made, *masks) if masks else made


# ---- settings ---------------------------------------------------------------------------------------------------


def check_segmentation(config: SegmentationConfig) -> None:
    """Raise `BadOption` naming the first setting outside what is allowed."""
    check_sides(config.short_side, config.max_side)
    if len(config.scale) != 2 or not 0 < config.scale[0] <= config.scale[1] < float("inf"):
        raise BadOption(f"segmentation.scale={config.scale!r} is not allowed; give (smallest, largest), above 0.")
    if not 0 < config.max_class_share <= 1:
        raise BadOption(
            f"segmentation.max_class_share={config.max_class_share!r} is not allowed; give a share above 0 up to 1."
        )
    if not 0 <= config.hflip <= 1:
        raise BadOption(f"segmentation.hflip={config.hflip!r} is not allowed; give a number from 0 to 1.")
    if not 0 <= config.auxiliary_weight < float("inf"):
        raise BadOption(
            f"segmentation.auxiliary_weight={config.auxiliary_weight!r} is not allowed; give a number from 0."
        )


def check_sides(short_side: int | None, max_side: int) -> None:
    """Raise `BadOption` unless images keep at least a pixel, and short sides may be as long as they should be."""
    if max_side < 1 or (short_side is not None and not 1 <= short_side <= max_side):
        raise BadOption(
            f"segmentation.short_side={short_side!r}, max_side={max_side!r} are not allowed; give sides of 1 pixel or "
            "more, the longest at least as long as the short one."
        )
