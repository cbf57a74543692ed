"""Pictures with a class for every pixel: ADE20K, and any folder of pictures beside one of masks of class indices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors

from ..errors import UserError
from .annotated import AnnotatedSet
from .config import DataConfig
from .images import EXTENSIONS, MAX_PIXELS, is_image_name
from .index_masks import Labels, labels_of, locate, read_mask


class SemanticSet(AnnotatedSet):
    """Pictures and their masks, in the order of the pictures' names.

    The two have the same name but for the extension; masks are PNGs. Both lie directly in their folders. Every picture
    must have a mask and every mask a picture: what is left over is a mistake, and is not skipped.

    Args:
        images: folder of the pictures.
        masks: folder of the masks.
        labels: what the values of the masks mean.
        limit: so many pictures, the first ones; None = all.
        max_pixels: larger pictures are refused.

    Attributes:
        pairs: the files of each picture and its mask.

    Raises:
        UserError: a folder is missing or empty, or something in one has no counterpart in the other.
    """

    def __init__(
        self, images: Path, masks: Path, labels: Labels, limit: int | None = None, max_pixels: int = MAX_PIXELS
    ):
        super().__init__(list(labels.names), max_pixels)
        self.labels = labels
        self.pairs = paired(images, masks)[:limit]

    def __len__(self) -> int:
        return len(self.pairs)

    def path(self, index: int) -> str | os.PathLike[str]:
        """The file of picture number `index`."""
        return self.pairs[index][0]

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """name, without extension, and mask (H, W) int64 of class indices, 255 where there is no class.

        Raises:
            UserError: the mask cannot be read, has another size than the picture, or a value that is no class.
        """
        picture, file = self.pairs[index]
        values = read_mask(file)
        height, width = values.shape
        if (width, height) != image.size:
            raise UserError(
                f"{file} is {width}x{height} pixels, its picture {picture} {image.width}x{image.height}: a mask has a "
                "value for every pixel."
            )
        indices = self.labels.indices(values, str(file))
        return {"name": picture.stem, "mask": tv_tensors.Mask(torch.from_numpy(indices))}


def open_semantic(data: DataConfig, train: bool) -> SemanticSet:
    """One part of a data set of masks, found as `index_masks.locate` says.

    Raises:
        UserError: the data cannot be used; the sentence names the folder or file.
    """
    images, masks = locate(data, train)
    if images is None:
        raise UserError(f"The folder of the pictures of {masks} was not found: name it with --data.images.")
    return SemanticSet(images, masks, labels_of(data), data.limit, data.max_pixels)


def paired(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Every picture with the mask of its name, in the order of the pictures' names.

    Raises:
        UserError: see `SemanticSet`.
    """
    pictures = _by_stem(images, "pictures", f"({', '.join(sorted(EXTENSIONS))})", is_image_name)
    found = _by_stem(masks, "masks", "(.png)", _is_mask_name)
    for stem, picture in pictures.items():
        if stem not in found:
            raise UserError(f"{picture} has no mask: {masks} has no {stem}.png.")
    for stem, mask in found.items():
        if stem not in pictures:
            raise UserError(f"{mask} has no picture: {images} has no picture named {stem}.")
    return [(picture, found[stem]) for stem, picture in pictures.items()]


def _is_mask_name(name: str) -> bool:
    return is_image_name(name) and name.lower().endswith(".png")


def _by_stem(folder: Path, what: str, kinds: str, wanted: Callable[[str], bool]) -> dict[str, Path]:
    """The files directly in a folder by their names without extension, in the order of their names."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of {what}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not wanted(path.name) or not path.is_file():
            continue
        if path.stem in found:
            raise UserError(f"{folder} has two {what} of one name: {found[path.stem].name} and {path.name}.")
        found[path.stem] = path
    if not found:
        raise UserError(f"{folder} holds no {what} {kinds}.")
    return found
