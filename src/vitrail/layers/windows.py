"""Windows of (B, H, W, C) maps: padding to a multiple, partition and its inverse, the key mask of padding.

Every size is read from the tensor, so one instance serves every image size and the functions export with free sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value
from torch.nn import functional as F

from .tracing import notrace_function


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return (size + multiple - 1) // multiple * multiple


@notrace_function
def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad a (B, H, W, C) map at the bottom and right so that `multiple` divides height and width."""
    height, width = x.shape[1], x.shape[2]
    return F.pad(x, (0, 0, 0, round_up(width, multiple) - width, 0, round_up(height, multiple) - height))


@notrace_function
def window_partition(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) with H and W divisible by M -> (B * nW, M * M, C), windows and tokens in row-major order."""
    batch, height, width, channels = x.shape
    m = window_size
    x = x.reshape(batch, height // m, m, width // m, m, channels)
    return x.transpose(2, 3).reshape(-1, m * m, channels)


@notrace_function
def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Inverse of `window_partition`: (B * nW, M * M, C) -> (B, height, width, C)."""
    m = window_size
    x = windows.reshape(-1, height // m, width // m, m, m, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


@notrace_function
def window_key_mask(height: int, width: int, window_size: int, device: torch.device) -> Tensor:
    """Mask of the keys of each window: (nW, M * M) boolean, False on the padding of an (H, W) map.

    The map is padded at the bottom and right to multiples of M, as by `pad_to_multiple`.
    """
    m = window_size
    rows = torch.arange(round_up(height, m), device=device) < height
    cols = torch.arange(round_up(width, m), device=device) < width
    real = (rows[:, None] & cols[None, :])[None, :, :, None]
    return window_partition(real, m)[..., 0]


def sizes_known(height: int, width: int) -> bool:
    """True if the sizes are numbers; False while a graph for free sizes is made, which must not branch on them."""
    if torch.jit.is_scripting():
        return True
    else:  # TorchScript leaves the branch out only in this form
        return not torch.jit.is_tracing() and has_static_value(height) and has_static_value(width)


def one_window(height: int, width: int, window_size: int) -> bool:
    """True if one window is known to cover the map."""
    return sizes_known(height, width) and height <= window_size and width <= window_size
