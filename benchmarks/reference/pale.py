"""Pale: the map padded to whole pales, its rows and columns regrouped by reshaping, scores written out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.models.pale import PaleAttention, SeparableConv

from .tokens import attend, heads_of, linear, to_map, to_tokens


class ReferenceSeparable(SeparableConv):
    """The projection of Eq. 2: convolution and BatchNorm on the map, the linear layer on tokens."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.dw(x))
        return to_map(linear(self.pw, to_tokens(y)), *y.shape[2:])


def row_groups(x: Tensor, size: int) -> Tensor:
    """Interlaced rows of a (B, C, H, W) map, `size` dividing H: (B * N, size * W, C)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, size, height // size, width).permute(0, 3, 2, 4, 1)
    return x.reshape(-1, size * width, channels)


def rows_back(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `row_groups`."""
    x = x.reshape(-1, height // size, size, width, x.shape[2]).permute(0, 4, 2, 1, 3)
    return x.reshape(x.shape[0], x.shape[1], height, width)


class ReferencePale(PaleAttention):
    """Eq. 1-5: half of the channels in groups of rows, half in groups of columns."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pads = (0, -width % self.size_c, 0, -height % self.size_r)
        q, k, v = (F.pad(project(x), pads) for project in (self.q, self.k, self.v))
        real = F.pad(torch.ones_like(x[:, :1]), pads)

        (q_r, q_c), (k_r, k_c), (v_r, v_c) = q.chunk(2, 1), k.chunk(2, 1), v.chunk(2, 1)
        rows = self.inside(q_r, k_r, v_r, real, self.size_r)
        turned = (t.transpose(2, 3) for t in (q_c, k_c, v_c, real))
        columns = self.inside(*turned, self.size_c).transpose(2, 3)
        out = torch.cat([rows, columns], dim=1)[:, :, :height, :width]
        return to_map(linear(self.proj, to_tokens(out)), height, width)

    def inside(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, size: int) -> Tensor:
        """Attention inside the groups of rows."""
        groups = [heads_of(row_groups(t, size), 1, self.num_heads // 2)[0] for t in (q, k, v)]
        keys = row_groups(real, size)[:, None, None, :, 0]
        bias = torch.zeros_like(keys).masked_fill(keys == 0, float("-inf"))
        return rows_back(attend(*groups, bias), size, *q.shape[2:])
