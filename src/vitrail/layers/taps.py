"""3x3 windows on a stride-2 grid without im2col: taking the nine taps and adding them back.

Window (i, j) is centred at pixel (2i, 2j); its tap 3a + b reads pixel (2i + a - 1, 2j + b - 1), zero outside the map.
The same as unfold and fold with kernel 3, stride 2, padding 1, from slices and additions only, which export everywhere.
"""

from __future__ import annotations

import torch
from timm.models import register_notrace_function
from torch import Tensor
from torch.nn import functional as F


@register_notrace_function
def taps3x3(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 9, C)."""
    height, width = x.shape[1], x.shape[2]
    rows, cols = (height + 1) // 2, (width + 1) // 2
    # one row and column before the map, and after it up to 2 * rows + 1 = the last tap of the last window
    x = F.pad(x, (0, 0, 1, 2 * cols - width, 1, 2 * rows - height))
    taps = []
    for a in range(3):
        for b in range(3):
            taps.append(x[:, a : a + 2 * rows - 1 : 2, b : b + 2 * cols - 1 : 2])
    return torch.stack(taps, dim=3)


def _join_axis(before: Tensor, centre: Tensor, after: Tensor, dim: int) -> Tensor:
    """Overlap-add of three taps along one axis: even positions get the centre tap, odd ones two neighbours' outer taps."""
    moved = torch.cat([before.narrow(dim, 1, before.shape[dim] - 1), torch.zeros_like(before.narrow(dim, 0, 1))], dim)
    return torch.stack([centre, after + moved], dim + 1).flatten(dim, dim + 1)


@register_notrace_function
def fold3x3(taps: Tensor, height: int, width: int) -> Tensor:
    """Adjoint of `taps3x3`: (B, ceil(H/2), ceil(W/2), 9, C) -> (B, H, W, C), overlaps summed, the outside dropped."""
    t = taps.unflatten(3, (3, 3))  # (B, h, w, 3, 3, C)
    rows = _join_axis(t[:, :, :, 0], t[:, :, :, 1], t[:, :, :, 2], 1)  # (B, 2h, w, 3, C)
    both = _join_axis(rows[:, :, :, 0], rows[:, :, :, 1], rows[:, :, :, 2], 2)  # (B, 2h, 2w, C)
    return both[:, :height, :width]
