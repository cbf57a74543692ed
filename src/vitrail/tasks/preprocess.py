"""Preprocessing of a recipe: size and normalisation of a network's input."""

from __future__ import annotations

from typing import Any, cast

import timm

from ..config.data import Preprocess
from ..config.train import TrainConfig, height_width
from ..errors import UserError
from ..factory import check_name

#: sides of the images of data whose images are small
SMALL_IMAGES = {"digits": 32, "cifar10": 32, "cifar100": 32}


def preprocess_of(config: TrainConfig, default: tuple[int, int] | None = None) -> Preprocess:
    """The preprocessing of a recipe; what it leaves open is the network's own.

    Args:
        config: the recipe.
        default: size of the task's input; None = the data's or the network's own.

    Raises:
        UserError: unknown network or tag, or an image size that cannot be.
    """
    check_name(config.model)
    cfg = cast(Any, timm.get_pretrained_cfg(config.model))
    size = config.image_size or default or SMALL_IMAGES.get(config.data.name) or tuple(cfg.input_size[1:])
    height, width = height_width(size)
    if min(height, width) < 1:
        raise UserError(f"--image_size {height} {width} must be positive.")
    small = min(height, width) < 96
    in_chans = int(config.model_options.get("in_chans", 3))
    mean, std = (tuple(given or own) for given, own in ((config.mean, cfg.mean), (config.std, cfg.std)))
    if in_chans == 1 and len(mean) == 3:  # a grey image has the average channel's statistics
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    crop = config.crop_pct if config.crop_pct is not None else (1.0 if small else cfg.crop_pct)
    return Preprocess(
        image_size=(height, width),
        mean=mean,
        std=std,
        interpolation=cfg.interpolation,
        crop_pct=crop,
        in_chans=in_chans,
    )
