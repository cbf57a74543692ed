"""Very large images: reduced before a network sees them; predictions are enlarged to their size."""

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
    factor = _factor(image.size, most)
    return image if factor == 1 else image.reduce((min(factor, image.width), min(factor, image.height)))


def reduced_size(size: tuple[int, int], most: int) -> tuple[int, int]:
    """The size of what `reduced` makes of an image of this size, both (width, height) or both (height, width)."""
    factor = _factor(size, most)
    return _side(size[0], factor), _side(size[1], factor)


def _factor(size: tuple[int, int], most: int) -> int:
    factor = 1
    while _side(size[0], factor) * _side(size[1], factor) > most:
        factor += 1
    return factor


def _side(length: int, factor: int) -> int:
    return -(-length // min(factor, length))


def reduced_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask or map of numbers (H, W) at (height, width): each pixel takes the value in the middle of its block."""
    if values.shape == size:
        return values
    rows, columns = (
        (2 * np.arange(side) + 1) * own // (2 * side) for side, own in zip(size, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)]


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

    def runs(self) -> np.ndarray:
        """Lengths of the larger mask's runs as COCO counts them: down the columns, background first."""
        height, width = self.shape
        border = np.zeros((1, self.small.shape[1]), dtype=bool)
        edges = np.diff(np.concatenate([border, self.small.astype(bool), border]), axis=0)
        column, row = np.nonzero(edges.T)
        tops = np.append(np.searchsorted(self.rows, np.arange(len(self.small))), height)
        counts = np.bincount(column, minlength=edges.shape[1])
        first, own = (np.cumsum(counts) - counts)[self.columns], counts[self.columns]
        place = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own) + np.repeat(first, own)
        ends = tops[row[place]] + height * np.repeat(np.arange(width), own)
        # a run that goes on in the next column ends and begins at one pixel
        twice = np.flatnonzero(ends[1:] == ends[:-1])
        ends = np.delete(ends, np.concatenate([twice, twice + 1]))
        lengths = np.diff(ends, prepend=0, append=height * width)
        return lengths if len(lengths) % 2 == 0 or lengths[-1] else lengths[:-1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The larger map."""
        return self[:].astype(dtype or self.small.dtype, copy=False)
