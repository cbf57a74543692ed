"""Checks of the options of the held-out share (`val_fraction`, `split_seed`), for data without a validation split."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import fields, replace

from ...config.data import ALL_IMAGES, DataConfig
from ...errors import UserError
from .base import root_of
from .splits import HOLDOUT

#: options of the share that is held out
SHARE = ("val_fraction", "split_seed")


def changed_options(data: DataConfig) -> set[str]:
    """Names of the options that have other values than their defaults."""
    return {one.name for one in fields(data) if one.name != "name" and getattr(data, one.name) != one.default}


def check_division(data: DataConfig, task: str, given: Collection[str]) -> None:
    """Refuse options of a share that is held out where none is.

    Args:
        data: as it is opened.
        task: whose annotations are read.
        given: names of the options that were given deliberately.

    Raises:
        UserError: naming the option, and the validation split that is used.
    """
    shares = [name for name in SHARE if name in given]
    named = "val_split" in given and data.val_split in (ALL_IMAGES, HOLDOUT)
    if not shares and not named:
        return
    if shares and data.measures_training:
        raise UserError(
            f"--data.{shares[0]} has no effect: with --data.val_split {data.val_split} nothing is held out."
        )
    split = validation_split(data, task)
    if split is not None:
        option = f"val_split {data.val_split}" if named else shares[0]
        raise UserError(f"--data.{option} has no effect: {split} is there to be measured on, so nothing is held out.")


def has_splits(data: DataConfig) -> bool:
    """True if a folder of images is divided into splits; else the folders in it are classes."""
    from .folder import find_split

    try:
        root = root_of(data)
        return any(find_split(root, split) for split in (data.train_split, data.val_split))
    except UserError:  # reported where the data are opened
        return False


def validation_split(data: DataConfig, task: str) -> str | None:
    """The validation split of a data set; None if a share of its images is held out instead.

    Args:
        data: which data.
        task: whose annotations count.
    """
    if data.measures_training or data.val_split == HOLDOUT:
        data = replace(data, val_split=DataConfig.val_split)
    try:
        if data.name == "folder" and data.root:
            from .folder import find_split

            return find_split(os.path.expanduser(data.root), data.val_split)
        if data.name == "ade20k":
            from .index_masks import locate as masks_of

            place = masks_of(data, train=False)
            return None if place.divided else str(place.masks)
        if data.name == "coco":
            from .coco_files import locate

            kinds = {"keypoints": "person_keypoints", "panoptic_segmentation": "panoptic"}
            source = locate(data, kinds.get(task, "instances"), train=False)
            return None if source.held else str(source.file)
        if data.name == "timm":
            from .timm_dataset import validation_split as of_source

            return of_source(data)
    except (UserError, OSError):
        pass  # reported where the data are opened
    return None
