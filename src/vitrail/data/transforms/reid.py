"""Transforms of re-identification: the augmentation of Luo et al. (CVPRW 2019), and resize and normalise."""

from __future__ import annotations

from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import v2

from ...config.data import Preprocess
from ...config.tasks import ReidConfig
from ...errors import BadOption
from .base import PairTransform
from .classification import squash_transform

#: range of an erased rectangle's share of the image, and of its height over its width (Zhong et al., AAAI 2020)
ERASED_SHARE, ERASED_RATIO = (0.02, 0.4), (0.3, 1 / 0.3)


class PersonAugmentation(PairTransform):
    """Resize, mirror, pad with black and crop back, normalise, erase a rectangle.

    Args:
        config: probabilities and strengths.
        preprocess: size, normalisation and channels of the result; `crop_pct` is not used.

    Returns (when called): (in_chans, H, W), and the identity as an int64 number. An erased rectangle has the mean
    colour. Randomness is drawn from torch's global generator.

    Raises:
        BadOption: a setting outside what is allowed.
    """

    def __init__(self, config: ReidConfig, preprocess: Preprocess):
        check_reid(config)
        # the centre crop of an image that is squashed to the right size changes nothing
        resize, _, *finish = cast(T.Compose, squash_transform(preprocess)).transforms
        flip, crop = v2.RandomHorizontalFlip(config.hflip), v2.RandomCrop(preprocess.image_size, config.padding)
        erase = v2.RandomErasing(config.random_erasing, ERASED_SHARE, ERASED_RATIO)
        self.steps = v2.Compose([resize, flip, crop, *finish, erase])

    def __call__(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See above."""
        return self.steps(image), torch.tensor(target["identity"])


class PersonView(PairTransform):
    """Resize and normalise.

    Args:
        preprocess: size, normalisation and channels of the result; `crop_pct` is not used.

    Returns (when called): (in_chans, H, W), and (3,) int64: pid, camera, and 1 of a query, 0 of the gallery.
    """

    def __init__(self, preprocess: Preprocess):
        self.view = squash_transform(preprocess)

    def __call__(self, image: Image.Image, target: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See above."""
        return self.view(image), torch.tensor([target["pid"], target["camera"], int(target["query"])])


def check_reid(config: ReidConfig) -> None:
    """Raise `BadOption` naming the first setting outside what is allowed; batches are checked by their loader."""
    for name in ("hflip", "random_erasing"):
        if not 0 <= getattr(config, name) <= 1:
            raise BadOption(f"reid.{name}={getattr(config, name)!r} is not allowed; give a number from 0 to 1.")
    for name in ("margin", "triplet_weight"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise BadOption(f"reid.{name}={getattr(config, name)!r} is not allowed; give a number from 0.")
    if config.padding < 0:
        raise BadOption(f"reid.padding={config.padding!r} is not allowed; give a number of pixels from 0.")
