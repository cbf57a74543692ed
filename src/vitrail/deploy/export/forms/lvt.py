"""LVT and VOLO: blocks of convolutional self-attention on parity planes instead of unfolded windows.

The 3x3 windows have stride 2, so position (a, b) of all windows together is one of the map's four parity planes, the
pixels of even or odd rows and columns, shifted by at most one. The blocks of a stage work on these planes from its
first norm to its last MLP: unfolding and folding become shifts of quarter maps.
"""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....layers import sizes_known
from ....models.lvt import CSA, Block
from ....models.pyramid import Pyramid
from .tokens import layer_norm_of, linear_of, token_mlp

#: of the nine window positions: the parity plane, 2 * (odd row) + (odd column), and whether it belongs to the window
#: below and to the one on the right of the pixels' own
POSITIONS = tuple((2 * (a != 1) + (b != 1), a == 0, b == 0) for a, b in product(range(3), range(3)))


def on_parity_planes(network: Pyramid) -> Pyramid:
    """The network itself, whose stages of CSA blocks are changed to `PlaneBlocks`."""
    for stage in cast(Any, network.stages):
        if len(stage.blocks) and all(_runs_on_planes(block) for block in stage.blocks):
            stage.blocks = PlaneBlocks(stage.blocks)
    return network


def _runs_on_planes(block: nn.Module) -> bool:
    return type(block) is Block and type(block.mixer) is CSA and isinstance(block.mlp.dwconv, nn.Identity)


class PlaneBlocks(nn.Module):
    """The CSA blocks of a stage, computed on parity planes; (B, C, H, W) -> (B, C, H, W).

    Inside, a map is (B, 4 h w, C) with h = ceil(H / 2), w = ceil(W / 2), plane after plane; at an odd border the planes
    have pixels that do not exist, which `real` marks.
    """

    def __init__(self, blocks: nn.Sequential):
        super().__init__()
        self.blocks = nn.ModuleList(PlaneBlock(cast(Block, block)) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks."""
        batch, channels, height, width = x.shape
        rows, cols = (height + 1) // 2, (width + 1) // 2
        real = None
        if not (sizes_known(height, width) and height % 2 == 0 and width % 2 == 0):
            real = real_pixels(x, rows, cols)
            x = F.pad(x, (0, 2 * cols - width, 0, 2 * rows - height))
        x = x.reshape(batch, channels, rows, 2, cols, 2).permute(0, 3, 5, 2, 4, 1)
        x = x.reshape(batch, 4 * rows * cols, channels)
        for block in self.blocks:
            x = block(x, rows, cols, real)
        x = x.reshape(batch, 2, 2, rows, cols, channels).permute(0, 5, 3, 1, 4, 2)
        x = x.reshape(batch, channels, 2 * rows, 2 * cols)
        return x if real is None else x.narrow(2, 0, height).narrow(3, 0, width)


def real_pixels(x: Tensor, rows: int, cols: int) -> Tensor:
    """1 for the pixels of the parity planes of a map (B, C, H, W), 0 outside of it: (4, rows * cols, 1)."""
    odd_rows = 2 * torch.arange(rows, device=x.device) + 1 < x.shape[2]
    odd_cols = 2 * torch.arange(cols, device=x.device) + 1 < x.shape[3]
    by_row = torch.stack([torch.ones_like(odd_rows), odd_rows])[:, None, :, None]
    by_col = torch.stack([torch.ones_like(odd_cols), odd_cols])[None, :, None, :]
    return (by_row & by_col).reshape(4, rows * cols, 1).to(x.dtype)


class PlaneBlock(nn.Module):
    """`Block` on parity planes."""

    def __init__(self, block: Block):
        super().__init__()
        self.norm1, self.norm2 = layer_norm_of(block.norm1), layer_norm_of(block.norm2)
        self.mixer = PlaneCSA(cast(CSA, block.mixer))
        self.mlp = token_mlp(block.mlp)

    def forward(self, x: Tensor, rows: int, cols: int, real: Tensor | None) -> Tensor:
        """(B, 4 h w, C) -> (B, 4 h w, C)."""
        x = x + self.mixer(self.norm1(x), rows, cols, real)
        return x + self.mlp(self.norm2(x))


class PlaneCSA(nn.Module):
    """`CSA` on parity planes."""

    def __init__(self, csa: CSA):
        super().__init__()
        self.num_heads = csa.num_heads
        self.logits = scaled_logits(csa)
        self.shared = linear_of(csa.value) if isinstance(csa.value, nn.Conv2d) else None
        self.weight = None if self.shared is not None else csa.value.weight  # (position, out, in)
        self.proj = linear_of(csa.proj)

    def forward(self, x: Tensor, rows: int, cols: int, real: Tensor | None) -> Tensor:
        """(B, 4 h w, C) -> (B, 4 h w, C)."""
        batch, _, channels = x.shape
        heads, windows = self.num_heads, batch * rows * cols
        x = x.unflatten(1, (4, rows * cols))
        x = x if real is None else x * real
        pooled = x.mean(1) if real is None else x.sum(1) / real.sum(0)
        # over a last axis of 9 the softmax does not vectorise
        attn = self.logits(pooled).reshape(windows, 9, heads * 9).softmax(1)  # (windows, 9 in, heads * 9 out)
        attn = attn.unflatten(2, (heads, 9)).permute(0, 2, 3, 1)
        value = torch.stack(self.values(x, rows, cols, real), 3)  # (B, h, w, 9, C)
        value = value.reshape(windows, 9, heads, channels // heads).transpose(1, 2)
        out = (attn @ value).permute(2, 0, 1, 3).reshape(9, batch, rows, cols, channels)
        return self.proj(added(out.unbind(0)).flatten(1, 3))

    def values(self, x: Tensor, rows: int, cols: int, real: Tensor | None) -> list[Tensor]:
        """The values of the nine positions of the windows: 9 x (B, h, w, C)."""
        if self.shared is not None:
            x = self.shared(x)
            x = x if real is None else x * real  # its bias is no value outside the map
        planes = x.unflatten(2, (rows, cols)).unbind(1)
        found = []
        for position, (plane, down, right) in enumerate(POSITIONS):
            value = planes[plane]
            if self.weight is not None:
                value = F.linear(value, self.weight[position])
            found.append(shifted(value, down, right))
        return found


def scaled_logits(csa: CSA) -> nn.Linear:
    """The projection to the logits, times the scale; its rows are (input position, head, output position)."""
    linear = nn.Linear(csa.logits.in_channels, csa.logits.out_channels, device="meta")
    order = torch.arange(csa.logits.out_channels).reshape(-1, 9, 9).permute(2, 0, 1).flatten()
    with torch.no_grad():
        linear.weight = nn.Parameter(csa.logits.weight.flatten(1)[order] * csa.scale, requires_grad=False)
        linear.bias = nn.Parameter(cast(Tensor, csa.logits.bias)[order] * csa.scale, requires_grad=False)
    return linear


def added(windows: tuple[Tensor, ...]) -> Tensor:
    """The sums of the windows' positions at each pixel: 9 x (B, h, w, C) -> (B, 4, h, w, C)."""
    planes: list[Tensor | None] = [None] * 4
    for value, (plane, down, right) in zip(windows, POSITIONS, strict=True):
        value = shifted(value, down, right, back=True)
        so_far = planes[plane]
        planes[plane] = value if so_far is None else so_far + value
    return torch.stack(cast(list[Tensor], planes), 1)


def shifted(x: Tensor, down: bool, right: bool, back: bool = False) -> Tensor:
    """A map (B, h, w, C) moved by one row and column at most, zeros coming in; `back` = moved up and left instead."""
    if not down and not right:
        return x
    step = -1 if back else 1
    return F.pad(x, (0, 0, step * right, -step * right, step * down, -step * down))
