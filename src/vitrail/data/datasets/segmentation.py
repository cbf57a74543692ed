"""Semantic segmentation data: ADE20K, and any folder of images beside one of masks of class indices."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from ...config.data import DataConfig
from ...errors import UserError
from ..images import (
    EXTENSIONS,
    MAX_PIXELS,
    UPRIGHT_TRANSPOSES,
    head_of,
    is_image_name,
    left_out_sentence,
    orientation_of,
    stored_size,
    why_left_out,
)
from .base import AnnotatedSet, holdout_note, listed, stratified_split
from .index_masks import IGNORE, Labels, labels_of, list_of, locate, read_mask, value_counts

#: EXIF orientations that exchange width and height
SIDEWAYS = (5, 6, 7, 8)
#: masks of a split that are read before training; of more, evenly spread ones
MAX_SURVEYED = 500
#: share of unlabelled pixels from which on a note is made: a list of classes may have left out the background
MAX_CLASSLESS = 0.5


class SemanticSet(AnnotatedSet):
    """Images and their masks, in the order of the images' names.

    The two have the same name but for the extension; masks are PNGs. Both lie directly in their folders. Every image
    must have a mask and every mask an image: what is left over is a mistake, and is not skipped.

    Images are used upright. A mask of the size that an image has upright lies on it as it is; one of the size that
    the camera stored, where this is another, is turned with its image.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        labels: what the values of the masks mean.
        limit: so many images, the first ones; None = all.
        max_pixels: larger images and masks are refused.

    Attributes:
        pairs: the files of each image and its mask.

    Raises:
        UserError: a folder is missing or empty, or something in one has no counterpart in the other.
    """

    def __init__(
        self, images: Path, masks: Path, labels: Labels, limit: int | None = None, max_pixels: int = MAX_PIXELS
    ):
        super().__init__(list(labels.names), max_pixels)
        self.labels = labels
        pairs, self.remarks = paired(images, masks)
        self.pairs = pairs[:limit]

    def __len__(self) -> int:
        return len(self.pairs)

    def path(self, index: int) -> str | os.PathLike[str]:
        """The file of image number `index`."""
        return self.pairs[index][0]

    def key(self, index: int) -> str:
        """The names of image number `index` and of its mask."""
        return "/".join(path.name for path in self.pairs[index])

    def annotations(self) -> Iterator[Any]:
        """The classes, and what the values of masks mean; the rest is in the masks."""
        yield list(self.labels.names)
        yield self.labels.table.tolist()

    def stored(self, index: int) -> list[bytes]:
        """Size and beginning of image number `index` and of its mask."""
        return [head_of(path) for path in self.pairs[index]]

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """name, without extension, and mask (H, W) uint8 of class indices, 255 where there is no class.

        Raises:
            UserError: the mask cannot be read, has another size than the image, or a value that is no class.
        """
        image_file, mask_file = self.pairs[index]
        values = aligned_mask(
            read_mask(mask_file, self.max_pixels),
            image.size,
            orientation=image.info.get("orientation", 1),
            mask_file=mask_file,
            image_file=image_file,
        )
        mask = tv_tensors.Mask(torch.from_numpy(self.labels.indices(values, str(mask_file))))
        return {"name": image_file.stem, "mask": mask}

    def class_map(self, index: int, orientation: int | None = None) -> np.ndarray:
        """(H, W) uint8 class indices of the upright image number `index`, whose header alone is read.

        Args:
            index: its number.
            orientation: of the image, where it is known.

        Raises:
            UserError: as for `target`.
        """
        image_file, mask_file = self.pairs[index]
        orientation = orientation or orientation_of(image_file, self.max_pixels)
        width, height = stored_size(image_file)
        size = (height, width) if orientation in SIDEWAYS else (width, height)
        values = aligned_mask(
            read_mask(mask_file, self.max_pixels),
            size,
            orientation=orientation,
            mask_file=mask_file,
            image_file=image_file,
        )
        return self.labels.indices(values, str(mask_file))


def aligned_mask(
    values: np.ndarray, size: tuple[int, int], orientation: int, mask_file: Path, image_file: Path
) -> np.ndarray:
    """A mask's values (H, W) over an upright image.

    Args:
        values: as they are stored.
        size: (width, height) of the image, upright.
        orientation: of the image as it is stored, as EXIF says it.
        mask_file: the mask.
        image_file: the image.

    Raises:
        UserError: the mask has neither the image's size nor that of its stored pixels.
    """
    height, width = values.shape
    if (width, height) == size:
        return values
    if orientation in SIDEWAYS and (height, width) == size:
        return np.asarray(Image.fromarray(values).transpose(UPRIGHT_TRANSPOSES[orientation]))
    raise UserError(
        f"{mask_file} is {width}x{height} pixels, its image {image_file} {size[0]}x{size[1]}: a mask has a value "
        "for every pixel."
    )


def open_semantic(data: DataConfig, train: bool) -> SemanticSet:
    """One split of a data set of masks, found as `index_masks.locate` says.

    Raises:
        UserError: the data cannot be used; the sentence names the folder or file.
    """
    place = locate(data, train)
    if place.images is None:
        raise UserError(f"The folder of the images of {place.masks} was not found: name it with --data.images.")
    images = SemanticSet(place.images, place.masks, labels=labels_of(data), limit=None, max_pixels=data.max_pixels)
    if list_of(data) is None:
        images.remarks.append("no list of classes is named or lies in the root: the masks are read as ADE20K's")
    if place.divided:
        total = len(images)
        learn, held = stratified_split(np.zeros(total, np.int64), data.val_fraction, data.split_seed, ["images"])
        images.pairs = [images.pairs[i] for i in (learn if train else held)]
        images.remarks += [holdout_note(len(held), total, data.val_fraction, data.split_seed)] if train else []
    elif not train and data.validates_on_training_split:
        images.remarks.append(f"these are training images, as --data.val_split {data.val_split} says")
    images.pairs = images.pairs[: data.limit]
    return images


# ---- check of the masks -----------------------------------------------------------------------------------------


def survey_masks(images: SemanticSet, learned: bool) -> None:
    """Check the masks of a split before training; notes for the user are added to `remarks`.

    Of many masks evenly spread ones are read, and the others only until two classes are found.

    Args:
        images: one split of the data.
        learned: whether it is the training split.

    Raises:
        UserError: a mask cannot be used, no pixel has a class, or all that have one are of one class and are learned.
    """
    pixels = np.zeros(len(images.classes), dtype=np.int64)
    turned: Counter[str] = Counter()
    step = -(-len(images) // MAX_SURVEYED)
    sampled = range(0, len(images), step)
    total = 0
    for index in sampled:
        found = _survey_mask(images, index, turned)
        total += found.size
        pixels += value_counts(found)[: len(pixels)]
    classless = 1 - int(pixels.sum()) / max(1, total)
    for index in range(len(images)):
        if np.count_nonzero(pixels) > 1:
            break
        if index % step:
            found = images.class_map(index)
            pixels += value_counts(found)[: len(pixels)]
    _check_pixels(images, pixels, learned)
    missing = [name for name, count in zip(images.classes, pixels, strict=True) if not count]
    if missing:
        which = "" if step == 1 else f" of the {len(sampled):,} masks that were looked at"
        images.remarks.append(
            f"{len(missing)} of {len(pixels)} classes have no pixel{which}: {listed(missing, most=5)}"
        )
    if classless > MAX_CLASSLESS:
        ignored = ", ".join(map(str, np.flatnonzero(images.labels.table == IGNORE)))
        images.remarks.append(
            f"{100 * classless:.0f} % of the pixels have no class (values {ignored}) and do not count"
        )
    images.remarks += [f"{count:,} {what}" for what, count in turned.items()]


def _survey_mask(images: SemanticSet, index: int, turned: Counter[str]) -> np.ndarray:
    """The class map of a mask; an image that the camera turned is counted in `turned`."""
    image_file, mask_file = images.pairs[index]
    orientation = orientation_of(image_file, images.max_pixels)
    found = images.class_map(index, orientation)
    if orientation == 1:
        return found
    stored, mask = stored_size(image_file), stored_size(mask_file)
    if mask != stored:
        return found  # of the upright size
    if orientation in SIDEWAYS and stored[0] != stored[1]:
        turned["masks lie on the pixels as the camera stored them (EXIF) and are turned with their images"] += 1
    else:
        turned[
            "images that the camera turned or mirrored (EXIF orientation) are used upright; their masks do not tell "
            "whether they lie on the stored pixels: look at one, and remove the orientation where they do"
        ] += 1
    return found


def _check_pixels(images: SemanticSet, pixels: np.ndarray, learned: bool) -> None:
    """Raise `UserError` where pixels leave nothing to learn or to measure."""
    folder, doing = images.pairs[0][1].parent, "to learn from" if learned else "to measure on"
    there = np.flatnonzero(pixels)
    if not len(there):
        raise UserError(
            f"No pixel of the masks in {folder} has a class ({IGNORE} and the value that the list of classes ignores "
            f"have none): there is nothing {doing}."
        )
    if len(there) == 1 and learned:
        name = images.classes[int(there[0])]
        raise UserError(
            f"All pixels of the masks in {folder} that have a class are {name!r}: it takes at least two classes to "
            f"learn to tell one from the other ({IGNORE} and the value that the list of classes ignores are none)."
        )


# ---- images and masks -----------------------------------------------------------------------------------------


def paired(images: Path, masks: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Every image with the mask of its name, in the order of the images' names; and notes on other files.

    Raises:
        UserError: see `SemanticSet`.
    """
    image_files, others = by_stem(images, "images", f"({', '.join(sorted(EXTENSIONS))})", is_image_name)
    mask_files, rest = by_stem(masks, "masks", "(.png)", is_mask_name)
    for stem, image_file in image_files.items():
        if stem not in mask_files:
            raise UserError(f"{image_file} has no mask: {masks} has no {stem}.png.")
    for stem, mask_file in mask_files.items():
        if stem not in image_files:
            raise UserError(f"{mask_file} has no image: {images} has no image named {stem}.")
    return [(image_file, mask_files[stem]) for stem, image_file in image_files.items()], [*others, *rest]


def is_mask_name(name: str) -> bool:
    """True if a file name is a mask's: a PNG, in any capitals."""
    return is_image_name(name) and name.lower().endswith(".png")


def by_stem(folder: Path, what: str, kinds: str, wanted: Callable[[str], bool]) -> tuple[dict[str, Path], list[str]]:
    """The files directly in a folder by their names without extension, in the order of their names.

    Args:
        folder: where to look.
        what: what messages call the files.
        kinds: what messages say of their endings.
        wanted: True for the name of such a file.

    Returns:
        The files, and notes on those that were left out.

    Raises:
        UserError: no folder, no such file in it, or two with one name.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of {what}.")
    found: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if not wanted(path.name) or not path.is_file():
            reason = why_left_out(path.name, path.is_file())
            left_out.update([reason or path.suffix.lower()] if reason or is_image_name(path.name) else [])
            continue
        if path.stem in found:
            raise UserError(f"{folder} has two {what} of one name: {found[path.stem].name} and {path.name}.")
        found[path.stem] = path
    sentence = left_out_sentence(left_out, str(folder))
    if not found:
        raise UserError(f"{folder} holds no {what} {kinds}." + (f" {sentence}" if sentence else ""))
    return found, [sentence] if sentence else []
