"""Index bookkeeping of PSLT's shifted windows: strides, pixels of the windows and back, who may see whom.

All of it is separable: one function works on one axis, the network combines rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers import round_up


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


def window_positions(size: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Pixel at every place of the shifted windows along one axis: (windows, M), `size` and more on the padding.

    Windows begin at `shift`; what the displacement pushes out comes back at the other end (a roll by -shift).
    """
    padded = round_up(size, window_size)
    return ((torch.arange(padded, device=device) + shift) % padded).reshape(-1, window_size)


def same_segment(position: Tensor, size: int, shift: int, mask_padding: bool) -> Tensor:
    """Which places of each window may see each other along one axis: (windows, M) -> (windows, M, M) boolean.

    The last shifted window holds both ends of the map: two segments that must not meet. Padding is a segment of its
    own, unless it may be attended.
    """
    segment = torch.div(position - shift, position.shape[1], rounding_mode="floor")  # -1 or more
    if mask_padding:
        segment = segment.masked_fill(position >= size, -2)
    return segment[:, :, None] == segment[:, None, :]


def window_slots(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Where the windows' flattened tokens hold each pixel, row by row: (height * width,), inverts the partition."""
    m = window_size
    windows = round_up(width, m) // m
    row = (torch.arange(height, device=device) - shift) % round_up(height, m)
    col = (torch.arange(width, device=device) - shift) % round_up(width, m)
    row = row // m * windows * m * m + row % m * m
    col = col // m * m * m + col % m
    return (row[:, None] + col[None, :]).flatten()
