"""Class maps of images of any size: sliding windows and several scales, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import large
from ..data.large import EnlargedMask, reduced_size
from ..heads.common import resize

#: shortest side of an input: its coarsest map then has one pixel
MIN_SIDE = 32
#: scores that are resized at once: 16 MiB, which fits caches
STRIP = 2**22


@dataclass
class Scores:
    """Logits of one view of an image at the network's stride, resized and averaged over windows row by row on demand.

    A map of 150 classes of 4000x4000 pixels would be 9.6 GB; its logits at stride 4 are a sixteenth of that.

    Attributes:
        windows: top and left of each window, and its logits (classes, h, w).
        window_size: (height, width) of each window.
        size: (height, width) of the view. A view without windows is one window, measured in pixels of its logits.
        mirrored: the view is mirrored.
    """

    windows: list[tuple[int, int, Tensor]]
    window_size: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to before `last` of the mean over all windows: (classes, rows, width)."""
        logits = self.windows[0][2]
        total = logits.new_zeros(len(logits), last - first, self.size[1])
        counts = logits.new_zeros(last - first, self.size[1])
        for top, left, logits in self.windows:
            start, stop = max(first, top), min(last, top + self.window_size[0])
            if start < stop:
                place = slice(start - first, stop - first), slice(left, left + self.window_size[1])
                scores = resized_rows(
                    lambda a, b, x=logits: x[:, a:b],
                    logits.shape[1],
                    size=self.window_size,
                    first=start - top,
                    last=stop - top,
                )
                total[:, *place] += scores
                counts[place] += 1
        total /= counts
        return total.flip(-1) if self.mirrored else total


def resized_rows(
    rows: Callable[[int, int], Tensor], height: int, size: tuple[int, int], first: int, last: int
) -> Tensor:
    """Rows `first` to before `last` of a map resized bilinearly (corners not aligned), from the rows these need.

    Args:
        rows: gives (C, rows, w), from the number of the first row and of the one behind the last.
        height: of the map.
        size: (height, width) of the resized map.
    """
    centres = ((torch.arange(first, last, dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    upper = centres.long()
    lower = (upper + 1).clamp(max=height - 1)
    start = int(upper[0])
    source = rows(start, int(lower[-1]) + 1)
    share = (centres - upper).to(source)[:, None]
    upper, lower = (index.to(source.device) - start for index in (upper, lower))
    mixed = torch.lerp(source.index_select(1, upper), source.index_select(1, lower), share)
    return resize(mixed[None], (last - first, size[1]))[0]


def class_map(views: Sequence[Scores], size: tuple[int, int]) -> Tensor:
    """The likeliest class of each pixel: (height, width) uint8.

    Several views are averaged as probabilities, at the image's own size, a strip of rows at a time.

    Args:
        views: of the same image.
        size: its (height, width).
    """
    height, width = size
    largest = max(height * width, *(view.size[0] * view.size[1] for view in views))
    step = max(1, STRIP * height // (len(views[0].windows[0][2]) * largest))
    strips = []
    for first in range(0, height, step):
        last = min(first + step, height)
        scores = (resized_rows(view.rows, view.size[0], size=size, first=first, last=last) for view in views)
        total = reduce(torch.add, scores if len(views) == 1 else (one.softmax(0) for one in scores))
        strips.append(total.max(0).indices.to(torch.uint8))  # argmax takes three times as long
    return torch.cat(strips)


def enlarged_class_map(views: Sequence[Scores], size: tuple[int, int]) -> Tensor:
    """`class_map`; of a large image that of its reduced size, enlarged."""
    small = reduced_size(size, large.LARGE)
    found = class_map(views, small)
    if small == size:
        return found
    return torch.from_numpy(np.asarray(EnlargedMask(found.cpu().numpy(), size))).to(found.device)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, classes, ceil(h / s), ceil(w / s)) of images (B, 3, h, w) of any size, s the head's stride.

    Images smaller than the network takes are padded with zeros, the mean colour, at the right and below; the logits of
    the padding are cut off. So are images smaller than an exported file of one size takes.
    """
    sides = x.shape[-2:]
    wanted = fixed_size(model) or (MIN_SIDE, MIN_SIDE)
    below, right = (max(0, least - side) for least, side in zip(wanted, sides, strict=True))
    padded = F.pad(x, (0, right, 0, below))
    logits: Tensor = model(padded).float()
    kept = [-(-n * side // full) for n, side, full in zip(logits.shape[-2:], sides, padded.shape[-2:], strict=True)]
    return logits[..., : kept[0], : kept[1]]


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the one input size that a network takes, as an exported file may; None = any size."""
    return getattr(model, "fixed_size", None)


def starts(length: int, side: int) -> list[int]:
    """First pixels of windows of `side` that cover `length`: two thirds of a side apart, the last one moved inside."""
    return [*range(0, length - side, max(1, side * 2 // 3)), length - side]
