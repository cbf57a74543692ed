"""Augmentation of an image together with its label map, for token labelling (LV-ViT; LVT and Pale, Training).

Flips, then RandAugment or AutoAugment, whose geometric operations are applied to the label map, too, then the random
crop, whose box is cut out of the map: each token gets the teacher's scores for the region that it shows.
"""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.ops import roi_align
from torchvision.transforms import functional as TF

from ...config.data import AugmentConfig, Preprocess
from ...errors import BadOption
from .base import PairTransform
from .classification import CropAndResize, augment_ops, train_steps

Box = tuple[float, float, float, float]
Matrix = tuple[float, float, float, float, float, float]


class TokenLabelTransform(PairTransform):
    """Augmentation of an image and its (class, label map) to the input and the targets of token labelling.

    The target is (K, 2 + N): the class as a one-hot vector, the teacher's probabilities for the whole crop, and those
    for each of the N tokens, row by row; all smoothed.

    Args:
        augment: the recipe's augmentation.
        preprocess: size, normalisation and channels of the input.
        grid: (rows, columns) of tokens of the network's last map.
        num_classes: K.
        smoothing: label smoothing s: probabilities p become `p * (1 - s + s / K) + s / K`, as the authors do.
        swap_axes: cut the map at (top, left, bottom, right) where RoIAlign wants (left, top, right, bottom), as the
            public pipeline does; to repeat its results only.

    Raises:
        BadOption: a setting outside what is allowed, or AugMix, which blends copies that moved differently.
    """

    def __init__(
        self,
        augment: AugmentConfig,
        preprocess: Preprocess,
        grid: tuple[int, int],
        num_classes: int,
        smoothing: float = 0.0,
        swap_axes: bool = False,
    ) -> None:
        if (augment.auto_augment or "").startswith("augmix"):
            raise BadOption(
                f"auto_augment={augment.auto_augment!r} is not allowed with label maps, since AugMix blends copies "
                "that moved differently; choose RandAugment, such as 'rand-m9-mstd0.5-inc1'."
            )
        _, self.colour, self.finish = train_steps(augment, preprocess)
        self.augment, self.preprocess = augment, preprocess
        self.grid, self.num_classes = grid, num_classes
        self.smoothing, self.swap_axes = smoothing, swap_axes
        self.matrices: list[Matrix] = []  # of the operations drawn for the present image
        for op in augment_ops(self.colour):
            if op.name in GEOMETRIC_OPS:
                op.aug_fn = partial(_record_matrix, self.matrices, op.name, op.aug_fn)

    def __call__(self, image: Any, target: Any) -> tuple[Tensor, Tensor]:
        """See the class."""
        label, label_map = target
        image, label_map = self._flip(image, label_map)
        self.matrices.clear()
        size = image.size
        for step in self.colour:
            image = step(image)
        for matrix in self.matrices:
            label_map = warp_label_map(label_map, matrix, size)
        image, box = self._crop(image)
        for step in self.finish:
            image = step(image)
        if self.swap_axes:
            box = (box[1], box[0], box[3], box[2])
        targets = crop_labels(label_map, box, self.grid, self.num_classes)
        truth = torch.zeros(self.num_classes, 1)
        truth[label] = 1.0
        off = self.smoothing / self.num_classes
        truth = truth * (1 - self.smoothing) + off
        # the authors' way: the K values sum to 1 + off
        targets = targets * (1 - self.smoothing + off) + off
        return image, torch.cat((truth, targets), 1)

    def _flip(self, image: Any, label_map: Tensor) -> tuple[Any, Tensor]:
        if torch.rand(1) < self.augment.hflip:
            image, label_map = TF.hflip(image), label_map.flip(-1)
        if self.augment.vflip and torch.rand(1) < self.augment.vflip:
            image, label_map = TF.vflip(image), label_map.flip(-2)
        return image, label_map

    def _crop(self, image: Any) -> tuple[Any, Box]:
        """The random crop, and its box (left, top, right, bottom) in shares of the image."""
        size = self.preprocess.image_size
        width, height = image.size
        if self.augment.crop_padding:
            image = TF.resize(image, list(size), T.InterpolationMode(self.preprocess.interpolation))
            height, width = size
            pad = self.augment.crop_padding
            image = TF.pad(image, [pad])
            top, left, rows, columns = T.RandomCrop.get_params(image, size)
            crop = TF.crop(image, top, left=left, height=rows, width=columns)
            top, left = top - pad, left - pad
        else:
            top, left, rows, columns = CropAndResize.get_params(image, self.augment.scale, self.augment.ratio)
            mode = self.augment.interpolation
            mode = random.choice(("bilinear", "bicubic")) if mode == "random" else mode
            crop = TF.resized_crop(
                image,
                top,
                left=left,
                height=rows,
                width=columns,
                size=list(size),
                interpolation=T.InterpolationMode(mode),
            )
        return crop, (left / width, top / height, (left + columns) / width, (top + rows) / height)


def crop_labels(label_map: Tensor, box: Box, grid: tuple[int, int], num_classes: int) -> Tensor:
    """The teacher's probabilities for a crop and for each token of it.

    RoIAlign of the dense scores on the crop's box, to 1 x 1 and to the grid, then softmax over the classes. Classes
    that are not among the k of a place have the score 0 there.

    Args:
        label_map: (2, k, H, W).
        box: (left, top, right, bottom) in shares of the image.
        grid: (rows, columns) of tokens.
        num_classes: K.

    Returns:
        (K, 1 + rows * columns) probabilities: of the crop, then of the tokens, row by row.
    """
    scores, classes = label_map
    # RoIAlign is linear a class, so that only the classes the map names have to take part
    named, places = classes.long().unique(return_inverse=True)
    dense = scores.new_zeros(len(named), *scores.shape[1:]).scatter_(0, places, scores)
    height, width = scores.shape[1:]
    # aligned=True takes off the half cell between a pixel's corner and its centre
    rois = torch.tensor([[0.0, box[0] * width, box[1] * height, box[2] * width, box[3] * height]])
    pooled = [roi_align(dense[None], rois, size, aligned=True)[0].flatten(1) for size in ((1, 1), grid)]
    logits = scores.new_zeros(num_classes, 1 + grid[0] * grid[1])
    logits[named] = torch.cat(pooled, 1)
    return logits.softmax(0)


# ---- geometric operations, applied to the label map, too --------------------------------------------------------


def _rotation(degrees: float, width: int, height: int) -> Matrix:
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


#: timm's name of a geometric operation -> matrix (a, b, c, d, e, f): the result at (x, y) is the input at
#: (a x + b y + c, d x + e y + f), in pixels
GEOMETRIC_OPS = {
    "ShearX": lambda v, w, h: (1.0, v, 0.0, 0.0, 1.0, 0.0),
    "ShearY": lambda v, w, h: (1.0, 0.0, 0.0, v, 1.0, 0.0),
    "TranslateX": lambda v, w, h: (1.0, 0.0, v, 0.0, 1.0, 0.0),
    "TranslateY": lambda v, w, h: (1.0, 0.0, 0.0, 0.0, 1.0, v),
    "TranslateXRel": lambda v, w, h: (1.0, 0.0, v * w, 0.0, 1.0, 0.0),
    "TranslateYRel": lambda v, w, h: (1.0, 0.0, 0.0, 0.0, 1.0, v * h),
    "Rotate": _rotation,
}


def _record_matrix(
    matrices: list[Matrix], name: str, function: Any, image: Image.Image, value: float, **options: Any
) -> Any:
    """timm's operation, whose matrix is recorded for the label map."""
    matrices.append(GEOMETRIC_OPS[name](value, *image.size))
    return function(image, value, **options)


def warp_label_map(label_map: Tensor, matrix: Matrix, size: tuple[int, int]) -> Tensor:
    """A label map under the geometric operation of its image; outside the image no class has a score.

    Args:
        label_map: (2, k, H, W).
        matrix: see `GEOMETRIC_OPS`.
        size: (width, height) of the image, in pixels.
    """
    rows, columns = label_map.shape[2:]
    a, b, c, d, e, f = matrix
    x = ((torch.arange(columns) + 0.5) * size[0] / columns)[None, :]
    y = ((torch.arange(rows) + 0.5) * size[1] / rows)[:, None]
    column = ((a * x + b * y + c) * columns / size[0]).floor().long()
    row = ((d * x + e * y + f) * rows / size[1]).floor().long()
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    warped = label_map[:, :, row.clamp(0, rows - 1), column.clamp(0, columns - 1)]
    return warped * inside  # score 0, class 0
