"""Index bookkeeping of PSLT's shifted windows: strides, pixels of the windows and back, who may see whom.

Indices are rolled and partitioned in place of features, which are then gathered once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers import pad_to_multiple, round_up, window_partition, window_reverse


def shift_strides(num_branches: int, window_size: int = 7) -> list[int]:
    """Window displacement of every branch, in pixels the same along both axes.

    Branch 0 is not shifted, 1 and 2 go (M - 1) // 2 forth and back, further ones 1, -1 and M - 2: the paper's 3, 1
    (both in two directions) and 5 for M = 7, where all window borders differ. Strides that a smaller window makes
    coincide give way to free ones, then repeat.
    """
    main = (window_size - 1) // 2
    strides: list[int] = []
    for stride in (0, main, -main, 1, -1, window_size - 2, *range(window_size)):
        if all((stride - other) % window_size for other in strides):
            strides.append(stride)
    return [strides[t % len(strides)] for t in range(num_branches)]


def relative_position_index(window_size: int, device: Any = None) -> Tensor:
    """Row of the (2M - 1)^2 table for every pair of a window: (M * M, M * M), query first."""
    place = torch.arange(window_size, device=device)
    offset = place[:, None] - place[None, :] + window_size - 1  # (M, M)
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def window_source(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Pixel of the flattened map at every place of the shifted windows: (windows * M * M,), pixel 0 on the padding.

    Windows begin at `shift`; what the displacement pushes out comes back at the other end (a roll by -shift).
    """
    pixel = torch.arange(height * width, device=device).reshape(1, height, width, 1)
    pixel = torch.roll(pad_to_multiple(pixel, window_size), (-shift, -shift), (1, 2))
    return window_partition(pixel, window_size).flatten()


def window_slots(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Place of every pixel among the windows' flattened tokens: (height * width,), takes `window_source` back."""
    rows, cols = round_up(height, window_size), round_up(width, window_size)
    slot = torch.arange(rows * cols, device=device).reshape(-1, window_size * window_size, 1)
    slot = torch.roll(window_reverse(slot, window_size, rows, cols), (shift, shift), (1, 2))
    return slot[0, :height, :width, 0].flatten()


def same_segment(size: int, window_size: int, shift: int, mask_padding: bool, device: torch.device) -> Tensor:
    """Which places of each window may see each other along one axis: (windows, M, M) boolean.

    The window over the ends of the map holds two segments that must not meet. Padding is a segment of its own, unless
    it may be attended.
    """
    place = torch.arange(round_up(size, window_size), device=device)
    pixel = torch.roll(place, -shift)
    segment = pixel - place  # another distance for those that came round from the other end
    if mask_padding:
        segment = segment.masked_fill(pixel >= size, 3 * size + 3 * window_size)
    segment = segment.reshape(-1, window_size)
    return segment[:, :, None] == segment[:, None, :]
