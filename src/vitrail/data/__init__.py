"""Data sets (`datasets/`), transforms (`transforms/`) and loaders."""

from __future__ import annotations

import os

from ..config.data import AugmentConfig, DataConfig, Preprocess
from ..errors import BadOption, UserError, unknown
from .datasets.base import ImageSet, ImageStream, set_levels
from .datasets.cifar import open_cifar
from .datasets.digits import open_digits
from .datasets.folder import open_folder
from .datasets.imagenet import open_imagenet, open_imagenet_v2
from .datasets.timm_dataset import open_timm
from .images import BadImage, find_images, levels_of, open_image
from .levels import Levels
from .loader import EvalLoader, TrainLoader, isolated_rng
from .transforms.classification import check_augment, eval_transform, train_transform

DATASETS = ("digits", "folder", "cifar10", "cifar100", "imagenet", "imagenet_v2", "timm")

__all__ = [
    "DATASETS",
    "AugmentConfig",
    "BadImage",
    "BadOption",
    "DataConfig",
    "EvalLoader",
    "ImageSet",
    "ImageStream",
    "Preprocess",
    "TrainLoader",
    "check_augment",
    "eval_transform",
    "find_images",
    "isolated_rng",
    "levels_of",
    "open_dataset",
    "open_image",
    "train_transform",
]


def open_dataset(config: DataConfig, train: bool, levels: Levels | None = None) -> ImageSet | ImageStream:
    """Open the training or the validation split of a data set for classification.

    Args:
        config: the data set, see `DataConfig`.
        train: the training split; else the validation split.
        levels: black and white of samples of more than 8 bits in the training images (see `levels`); None = not known.

    Raises:
        UserError: unknown name, a root missing or superfluous, or data that are not as the name says.
    """
    if config.name not in DATASETS:
        raise UserError(unknown("data set", config.name, DATASETS))
    config.check()
    data = _open(config, train)
    set_levels(data, config.white, levels)
    return data


def _open(config: DataConfig, train: bool) -> ImageSet | ImageStream:
    root = os.path.expanduser(config.root) if config.root is not None else None
    if config.name == "digits":
        if root is not None:
            raise UserError(f"The digits are embedded and read no folder: leave out data.root={config.root!r}.")
        return open_digits(train, config.val_fraction, config.split_seed)
    if config.name == "timm":
        return open_timm(config, train)
    if not root:
        wanted = "folder or .npz file" if config.name.startswith("cifar") else "folder"
        raise UserError(f"Data {config.name!r} needs --data.root, the {wanted} that holds the images.")
    if config.name == "folder":
        return open_folder(config, train)
    if config.name == "imagenet":
        return open_imagenet(root, train, config.max_pixels)
    if config.name == "imagenet_v2":
        return open_imagenet_v2(root, train, config.max_pixels)
    return open_cifar(root, train, int(config.name.removeprefix("cifar")))
