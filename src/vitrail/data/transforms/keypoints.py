"""Transforms of keypoints: the crop around a person, and heat maps of its keypoints (Xiao et al., ECCV 2018).

Coordinates are continuous: pixel number (0, 0) of an image, a crop or a map reaches from (0, 0) to (1, 1), and its
middle is (0.5, 0.5). COCO's keypoints are pixel numbers. A map of stride 4 is then the crop with all coordinates
divided by four, and stays so in a mirror; the original's targets lie 0.375 pixels of the map to the right of and below
that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ...config.data import Preprocess
from ...config.tasks import KeypointsConfig
from ...errors import BadOption
from ..datasets.keypoint_names import mirror_of
from .base import PairTransform, Samples

#: of the heat maps
STRIDE = 4
#: coarsest stride of the network; sides of crops must be multiples of it
COARSEST = 32
#: targets are 0 beyond this many sigmas, as the original's
REACH = 3


class PersonCrop(PairTransform):
    """A crop around a person's box, upright, as the network's input.

    The box grows to the shape of the input and by `padding`; what lies outside the image is black. Pixels are
    interpolated between neighbours, without smoothing first, as in the original.

    Args:
        preprocess: size, channels and normalisation of the input.
        padding: the crop's sides over those of the box.

    Raises:
        BadOption: a setting outside what is allowed.

    Returns (when called): the input (C, H, W), and the target with "back": (2, 3) matrix from coordinates of the
    crop to those of the image, and "area": of the crop in the image, in pixels.
    """

    def __init__(self, preprocess: Preprocess, padding: float):
        preprocess.check()
        if any(side % COARSEST for side in preprocess.image_size):
            raise BadOption(f"image_size={preprocess.image_size!r} is not allowed; give multiples of {COARSEST}.")
        if not padding > 0:
            raise BadOption(f"keypoints.padding={padding!r} is not allowed; give a factor above 0.")
        self.preprocess, self.padding = preprocess, padding

    def __call__(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """See above."""
        return self.crop_by(image, target, crop_matrix(target["box"], self.preprocess.image_size, self.padding))

    def crop_by(self, image: Image.Image, target: dict[str, Any], matrix: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
        """The crop by a matrix from coordinates of the image to those of the crop."""
        height, width = self.preprocess.image_size
        back = inverse_matrix(matrix)
        crop = image.transform(
            (width, height), Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BILINEAR
        )
        pixels = v2.functional.pil_to_tensor(crop if self.preprocess.in_chans == 3 else crop.convert("L"))
        pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        x = v2.functional.normalize(pixels, list(self.preprocess.mean), list(self.preprocess.std))
        return x, {**target, "back": back, "area": height * width * abs(float(np.linalg.det(back[:, :2])))}


class TrainingCrop(PersonCrop):
    """A crop around a person's box, randomly scaled, rotated and mirrored, and heat maps of its keypoints.

    Size and angle are drawn from a normal distribution truncated at one deviation, which is the recipe's limit. Crops
    are not mirrored where it is unknown which keypoints change places.

    Args:
        preprocess: size, channels and normalisation of the input.
        config: the recipe's settings.
        names: of the keypoints.

    Raises:
        BadOption: a setting outside what is allowed.

    Returns (when called): as `PersonCrop`; the target also holds heatmaps (K, H/4, W/4) and weights (K,), see
    `heatmaps`.
    """

    def __init__(self, preprocess: Preprocess, config: KeypointsConfig, names: Sequence[str]):
        super().__init__(preprocess, config.padding)
        check_keypoints(config)
        self.config, self.mirrored = config, mirror_of(names, config.flip_pairs)[0]

    def __call__(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """See above."""
        config = self.config
        factor = 1 + config.scale * truncated_normal()
        degrees = config.rotation * truncated_normal() if random.random() < config.rotation_prob else 0.0
        mirror = random.random() < config.hflip and self.mirrored is not None
        size = self.preprocess.image_size
        matrix = crop_matrix(target["box"], size, padding=self.padding * factor, degrees=degrees, mirror=mirror)
        keypoints = target["keypoints"][self.mirrored] if mirror else target["keypoints"]
        places = np.column_stack([transform_points(keypoints[:, :2] + 0.5, matrix), keypoints[:, 2]])
        maps, weights = heatmaps(places, size, config.sigma)
        x, target = self.crop_by(image, target, matrix)
        return x, {**target, "heatmaps": maps, "weights": weights}


def crop_matrix(
    box: Sequence[float] | np.ndarray,
    size: tuple[int, int],
    padding: float,
    degrees: float = 0.0,
    mirror: bool = False,
) -> np.ndarray:
    """(2, 3) matrix from coordinates of an image to those of the crop around a box.

    Args:
        box: left, top, right, bottom.
        size: (height, width) of the crop.
        padding: the crop's sides over those of the box, once the box has the crop's shape.
        degrees: by which the image is turned in the crop, clockwise.
        mirror: whether left and right change places, after turning.
    """
    height, width = size
    left, top, right, bottom = (float(side) for side in box)
    # the shorter side grows until the box has the crop's shape
    scale = width / (padding * max(right - left, (bottom - top) * width / height))
    angle = math.radians(degrees)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirror:
        turn[0] *= -1
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    return np.column_stack([turn, np.array([width / 2, height / 2]) - turn @ centre])


def inverse_matrix(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a (2, 3) matrix."""
    turn = np.linalg.inv(matrix[:, :2])
    return np.column_stack([turn, -turn @ matrix[:, 2]])


def transform_points(places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (N, 2) transformed by a (2, 3) matrix."""
    return places @ matrix[:, :2].T + matrix[:, 2]


def heatmaps(keypoints: np.ndarray, size: tuple[int, int], sigma: float) -> tuple[Tensor, Tensor]:
    """Targets of keypoints in a crop: a Gaussian of height 1 on the pixel of the map in which the keypoint lies.

    Args:
        keypoints: (K, 3) coordinates in the crop, and visibility.
        size: (height, width) of the crop.
        sigma: of the Gaussians, in pixels of the map; they end at three sigmas.

    Returns:
        Maps (K, H/4, W/4), and weights (K,): 1, or 0 for keypoints that are not labelled or lie outside the map, whose
        maps are 0.
    """
    rows, cols = (side // STRIDE for side in size)
    pixels = np.floor(keypoints[:, :2] / STRIDE)
    known = (keypoints[:, 2] > 0) & (pixels >= 0).all(1) & (pixels < (cols, rows)).all(1)
    across, down = _gaussians(pixels[:, 0], cols, sigma), _gaussians(pixels[:, 1], rows, sigma)
    maps = known[:, None, None] * down[:, :, None] * across[:, None, :]
    return torch.from_numpy(maps.astype(np.float32)), torch.from_numpy(known.astype(np.float32))


def _gaussians(centres: np.ndarray, count: int, sigma: float) -> np.ndarray:
    """(K, count) a Gaussian around each centre."""
    away = np.arange(count) - centres[:, None]
    return np.exp(-(away**2) / (2 * sigma**2)) * (np.abs(away) <= REACH * sigma)


def truncated_normal() -> float:
    """A number of the standard normal distribution truncated to [-1, 1]."""
    while abs(value := random.gauss(0, 1)) > 1:
        pass
    return value


def check_keypoints(config: KeypointsConfig) -> None:
    """Raise `BadOption` naming the first setting outside what is allowed."""
    allowed = {
        "scale": (0 <= config.scale < 1, "a share from 0 to below 1"),
        "rotation": (0 <= config.rotation <= 180, "degrees from 0 to 180"),
        "rotation_prob": (0 <= config.rotation_prob <= 1, "a number from 0 to 1"),
        "hflip": (0 <= config.hflip <= 1, "a number from 0 to 1"),
        "sigma": (config.sigma > 0, "pixels of the map, above 0"),
    }
    for name, (right, what) in allowed.items():
        if not right:
            raise BadOption(f"keypoints.{name}={getattr(config, name)!r} is not allowed; give {what}.")


def crops_and_targets(samples: Samples) -> Any:
    """Inputs (B, C, H, W) in channels-last memory, and a list of their targets."""
    inputs, targets = zip(*samples, strict=True)
    return torch.stack(inputs).contiguous(memory_format=torch.channels_last), list(targets)


def crops_and_heatmaps(samples: Samples) -> Any:
    """Inputs (B, C, H, W) in channels-last memory, heat maps (B, K, H/4, W/4), and weights (B, K)."""
    inputs, targets = crops_and_targets(samples)
    return inputs, *(torch.stack([target[name] for target in targets]) for name in ("heatmaps", "weights"))
