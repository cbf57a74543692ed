"""Images of so many pixels that they are made smaller before a network sees them, and what is found enlarged."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

#: pixels of an image that a detector gets whole: 400 MB as floats; the networks look at far fewer
LARGE = 2**25
#: the same where each of a hundred objects has a mask of the image's size
LARGE_MASKS = 2**24
#: logits of all classes at the image's size: 1 GB
LARGE_LOGITS = 2**28


def reduced(image: Image.Image, most: int) -> Image.Image:
    """The image itself, or one of at most `most` pixels: the means of blocks of k x k pixels, with the smallest such k.

    Args:
        image: RGB.
        most: pixels.
    """
    factor = 1
    while _side(image.width, factor) * _side(image.height, factor) > most:
        factor += 1
    return image if factor == 1 else image.reduce((min(factor, image.width), min(factor, image.height)))


def _side(length: int, factor: int) -> int:
    return -(-length // min(factor, length))


class EnlargedMask:
    """A map that stands for a larger one, each pixel for the block of those nearest to it.

    Args:
        small: (h, w).
        size: (height, width) of the larger one.
    """

    def __init__(self, small: np.ndarray, size: tuple[int, int]):
        self.small, self.shape = small, size
        self.rows, self.columns = (np.arange(side) * own // side for side, own in zip(size, small.shape, strict=True))

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows of the larger map."""
        return self.small[self.rows[rows]][:, self.columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The larger map."""
        return self[:].astype(dtype or self.small.dtype, copy=False)
