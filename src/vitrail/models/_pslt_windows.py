"""Index bookkeeping of PSLT's shifted windows: strides, pixels of the windows and back, who may see whom.

Indices are shifted and partitioned in place of features, which are then gathered once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers import round_up, window_partition


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


def shift_on(height: int, width: int, window_size: int, shift: int) -> int:
    """The displacement on an (H, W) map: none where a side is one window or less (code)."""
    if not torch.jit.is_scripting() and (isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)):
        # a graph for all sizes must not branch: 1 // windows is 1 along an axis of one window and 0 along all others
        rows, cols = (round_up(size, window_size) // window_size for size in (height, width))
        return shift * (1 - 1 // rows) * (1 - 1 // cols)
    return shift if min(height, width) > window_size else 0


def pixels_of_places(size: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """The pixel at every place along one axis of the shifted windows: (round_up(size, M),), `size` or more on padding.

    Windows begin at `shift`, less than a window; what the displacement pushes out comes back at the other end (a roll
    by -shift).
    """
    places = round_up(size, window_size)
    return come_round(torch.arange(places, device=device) + shift, places)


def come_round(place: Tensor, places: int) -> Tensor:
    """Places that lie less than one round outside 0 ... places - 1, counted on from the other end.

    A remainder, in the form that exporters take when `places` is free.
    """
    place = torch.where(place < 0, place + places, place)
    return torch.where(place >= places, place - places, place)


def window_source(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Pixel of the flattened map at every place of the shifted windows: (windows * M * M,), pixel 0 on the padding."""
    rows = pixels_of_places(height, window_size, shift, device)[:, None]
    cols = pixels_of_places(width, window_size, shift, device)
    pixel = (rows * width + cols).masked_fill((rows >= height) | (cols >= width), 0)
    return window_partition(pixel[None, :, :, None], window_size).flatten()


def window_slots(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Place of every pixel among the windows' flattened tokens: (height * width,), takes `window_source` back."""
    m = window_size
    rows = come_round(torch.arange(height, device=device) - shift, round_up(height, m))[:, None]
    cols = come_round(torch.arange(width, device=device) - shift, round_up(width, m))
    window = rows // m * (round_up(width, m) // m) + cols // m
    return (window * m * m + rows % m * m + cols % m).flatten()


def same_segment(size: int, window_size: int, shift: int, mask_padding: bool, device: torch.device) -> Tensor:
    """Which places of each window may see each other along one axis: (windows, M, M) boolean.

    The window over the ends of the map holds two segments that must not meet. Padding is a segment of its own, unless
    it may be attended.
    """
    pixel = pixels_of_places(size, window_size, shift, device)
    # another distance for those that came round from the other end
    segment = pixel - torch.arange(round_up(size, window_size), device=device)
    if mask_padding:
        segment = segment.masked_fill(pixel >= size, window_size)  # no distance, since the shift is no multiple of it
    segment = segment.reshape(-1, window_size)
    return segment[:, :, None] == segment[:, None, :]
