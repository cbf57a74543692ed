"""The channel MLP of a transformer block, on maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .conv import Pointwise


class Mlp(nn.Module):
    """Expand, (depthwise 3x3), exact GELU, project back.

    Args:
        dim: channels in and out.
        ratio: hidden width / dim.
        dwconv: put a 3x3 depthwise convolution with bias between the expansion and the GELU (PVTv2).
        drop: dropout after the GELU and after the projection.

    Shapes: (B, dim, H, W) -> (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        ratio: float = 4.0,
        dwconv: bool = False,
        bias: bool = True,
        drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        hidden = int(dim * ratio)
        self.fc1 = Pointwise(dim, hidden, bias=bias, **dd)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, **dd) if dwconv else nn.Identity()
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = Pointwise(hidden, dim, bias=bias, **dd)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of each pixel."""
        x = self.drop1(self.act(self.dwconv(self.fc1(x))))
        return self.drop2(self.fc2(x))
