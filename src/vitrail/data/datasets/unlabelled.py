"""A data set with further images that have no labels, for training with a teacher."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from ...errors import UserError
from ..images import find_images, head_of, open_image
from .base import ImageSet

#: target of an image without a label
UNLABELLED = -1


class WithUnlabelled(ImageSet):
    """The images of a data set, then those of a folder, whose target is `UNLABELLED`.

    Args:
        images: with labels.
        folder: of images without, at any depth.
        max_pixels: larger images are refused.

    Raises:
        UserError: no such folder, or no image in it.
    """

    def __init__(self, images: ImageSet, folder: str | os.PathLike[str], max_pixels: int) -> None:
        super().__init__(images.classes, images.targets)
        self.images, self.max_pixels = images, max_pixels
        self.folder = os.path.expanduser(os.fspath(folder))
        if not os.path.isdir(self.folder):
            raise UserError(f"--data.unlabelled {folder} is no folder; name one with images.")
        # one block of bytes, as in `FileSet`
        paths = [os.path.relpath(path, self.folder) for path in find_images(self.folder)]
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.targets = np.concatenate((images.targets, np.full(len(paths), UNLABELLED, dtype=np.int64)))
        self.aliases, self.unnamed, self.levels = images.aliases, images.unnamed, images.levels
        self.remarks = [
            *images.remarks,
            f"{len(paths):,} images without labels are added to {len(images):,} with: an epoch has {len(self):,}",
        ]

    def _file(self, index: int) -> str | None:
        """The file of an image without a label; None of the others."""
        number = index - len(self.images)
        return None if number < 0 else os.path.join(self.folder, os.fsdecode(self._paths[number]))

    def name(self, index: int) -> str:
        """Name of image `index` in messages."""
        return self._file(index) or self.images.name(index)

    def key(self, index: int) -> str:
        """Key in the data set, or the path below the folder, as of a folder `unlabelled` beside the classes."""
        number = index - len(self.images)
        if number < 0:
            return self.images.key(index)
        return f"unlabelled/{os.fsdecode(self._paths[number]).replace(os.sep, '/')}"

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        path = self._file(index)
        return self.images.image(index) if path is None else open_image(path, self.max_pixels, levels=self.levels)

    def stored(self, index: int) -> list[bytes]:
        """See `ImageSet`."""
        path = self._file(index)
        return self.images.stored(index) if path is None else [head_of(path)]
