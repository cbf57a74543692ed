"""Unfold and fold of 3x3 windows at stride 2 without im2col.

Window (i, j) is centred at pixel (2i, 2j); its position 3a + b reads pixel (2i + a - 1, 2j + b - 1), zero outside the
map. The same as `F.unfold` and `F.fold` with kernel 3, stride 2, padding 1, by pads, additions and stacks only, which
every export format supports. Each axis is split into even and odd pixels, which needs few operators: they cost most
on small maps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .tracing import notrace_function


@notrace_function
def unfold3x3(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 9, C)."""
    height, width = x.shape[1], x.shape[2]
    rows, cols = (height + 1) // 2, (width + 1) // 2
    x = F.pad(x, (0, 0, 0, 2 * cols - width, 0, 2 * rows - height))
    even, odd = x.unflatten(1, (rows, 2)).unbind(2)  # (B, h, W, C)
    x = torch.stack([F.pad(odd, (0, 0, 0, 0, 1, -1)), even, odd], dim=3)  # (B, h, W, 3, C)
    even, odd = x.unflatten(2, (cols, 2)).unbind(3)  # (B, h, w, 3, C)
    return torch.stack([F.pad(odd, (0, 0, 0, 0, 1, -1)), even, odd], dim=4).flatten(3, 4)


@notrace_function
def fold3x3(windows: Tensor, height: int, width: int) -> Tensor:
    """Adjoint of `unfold3x3`: (B, ceil(H/2), ceil(W/2), 9, C) -> (B, H, W, C), overlaps summed, outside dropped."""
    # along each axis even pixels get the centre of one window, odd ones the ends of two neighbours
    before, centre, after = windows.unflatten(3, (3, 3)).unbind(4)  # (B, h, w, 3, C)
    x = torch.stack([centre, after + F.pad(before, (0, 0, 0, 0, -1, 1))], dim=3).flatten(2, 3)  # (B, h, 2w, 3, C)
    before, centre, after = x.unbind(3)  # (B, h, 2w, C)
    x = torch.stack([centre, after + F.pad(before, (0, 0, 0, 0, -1, 1))], dim=2).flatten(1, 2)  # (B, 2h, 2w, C)
    return x.narrow(1, 0, height).narrow(2, 0, width)  # in graphs, slices would have an unknown size
