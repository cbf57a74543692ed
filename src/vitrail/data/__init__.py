"""Data sets (`datasets/`), transforms (`transforms/`) and loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from ..config.data import AugmentConfig, DataConfig, DataName, Preprocess
from ..errors import BadOption, UserError, unknown
from .datasets.base import ImageSet, ImageStream, TrainingStream, set_levels
from .datasets.cifar import open_cifar
from .datasets.digits import open_digits
from .datasets.folder import open_folder
from .datasets.imagenet import open_imagenet, open_imagenet_v2
from .datasets.timm_dataset import open_timm
from .images import BadImage, find_images, levels_of, open_image
from .levels import Levels
from .loader import EvalLoader, TrainLoader, isolated_rng
from .transforms.classification import check_augment, eval_transform, train_transform

#: the function of each data set for classification that opens one split of it, by the name of `--data`
OPENERS: dict[DataName, Callable[[DataConfig, bool], ImageSet | TrainingStream]] = {
    "digits": open_digits,
    "folder": open_folder,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "imagenet": open_imagenet,
    "imagenet_v2": open_imagenet_v2,
    "timm": open_timm,
}
DATASETS: tuple[str, ...] = tuple(OPENERS)

__all__ = [
    "DATASETS",
    "OPENERS",
    "AugmentConfig",
    "BadImage",
    "BadOption",
    "DataConfig",
    "EvalLoader",
    "ImageSet",
    "ImageStream",
    "Preprocess",
    "TrainLoader",
    "TrainingStream",
    "check_augment",
    "eval_transform",
    "find_images",
    "isolated_rng",
    "levels_of",
    "open_dataset",
    "open_image",
    "train_transform",
]


def open_dataset(config: DataConfig, train: bool, levels: Levels | None = None) -> ImageSet | TrainingStream:
    """Open the training or the validation split of a data set for classification.

    Args:
        config: the data set, see `DataConfig`.
        train: the training split; else the validation split.
        levels: black and white of samples of more than 8 bits in the training images (see `levels`); None = not known.

    Raises:
        UserError: unknown name, a root missing or superfluous, or data that are not as the name says.
    """
    if config.name not in OPENERS:
        if config.name in get_args(DataName):
            listed = ", ".join(DATASETS)
            raise UserError(f"--data {config.name} is of another --task than classification, which has {listed}.")
        raise UserError(unknown("data set", config.name, DATASETS))
    config.check()
    data = OPENERS[config.name](config, train)
    set_levels(data, config.white, levels)
    return data
