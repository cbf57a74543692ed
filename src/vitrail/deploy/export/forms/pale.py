"""Pale: tokens brought into their groups and heads at once, and in OpenVINO blocks with shortcuts of tokens.

`PaleAttention` groups the tokens and then separates the heads, which copies every map twice in an exported graph, and
its results, too. The order of the tokens in a group has no effect on what they find.

OpenVINO lets a convolution add the shortcut to its result, and then copies that map before the norm that follows.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....layers import attention, sizes_known
from ....layers.rebuild import rebuild
from ....layers.tracing import notrace_module
from ....models.pale import PaleAttention, PaleBlock, needs_padding
from .tokens import layer_norm_of, map_of, tokens_of


class Grouping(NamedTuple):
    """How a map (H, W) is divided into groups: as three axes, one of which counts the groups.

    Attributes:
        axes: their lengths.
        groups: the index of that one.
    """

    axes: tuple[int, int, int]
    groups: int

    @property
    def order(self) -> list[int]:
        """The permutation of (B, *axes, heads, d) to (B, groups, heads, the other two, d)."""
        return [0, 1 + self.groups, 4, *(1 + axis for axis in range(3) if axis != self.groups), 5]

    @property
    def others(self) -> tuple[int, ...]:
        """The lengths of the axes of a group."""
        return self.axes[: self.groups] + self.axes[self.groups + 1 :]

    def separate(self, x: Tensor, head_dim: int) -> Tensor:
        """(B, H * W, C) -> (B * groups, heads, tokens of a group, d)."""
        batch, heads = x.shape[0], x.shape[2] // head_dim
        x = x.reshape(batch, *self.axes, heads, head_dim).permute(self.order)
        return x.reshape(batch * self.axes[self.groups], heads, prod(self.others), head_dim)

    def merge(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of `separate`."""
        _, heads, _, head_dim = x.shape
        x = x.reshape(batch, self.axes[self.groups], heads, *self.others, head_dim)
        inverse = [self.order.index(axis) for axis in range(6)]
        return x.permute(inverse).reshape(batch, prod(self.axes), heads * head_dim)


@notrace_module
class GroupedPaleAttention(PaleAttention):
    """`PaleAttention` of any mixer but "vanilla", with one copy of each map."""

    def forward(self, x: Tensor) -> Tensor:
        """See `PaleAttention`."""
        batch, channels, height, width = x.shape
        mode = self.mode(height, width)
        full_height, full_width = self.padded_size(height, width)
        if mode == "global" and not self.pad_first:
            full_height, full_width = height, width
        padded = needs_padding(height, width, full_height, full_width)
        if padded and not self.pad_first and sizes_known(height, width):
            return super().forward(x)  # groups of unequal lengths compute less than padded ones
        if padded:  # before the projections, the same values as after them: their convolutions pad by zeros, too
            x = F.pad(x, (0, full_width - width, 0, full_height - height))
        qkv = [tokens_of(project(x)) for project in (self.q, self.k, self.v)]
        modes = ("rows", "columns") if mode == "parallel" else (mode,)
        half = channels // len(modes)
        found = []
        for i, each in enumerate(modes):
            grouping = self.grouping(each, full_height, full_width)
            q, k, v = (grouping.separate(t.narrow(2, i * half, half), self.head_dim) for t in qkv)
            mask = real_keys(grouping, x, height, width) if padded and self.mask_padding else None
            found.append(grouping.merge(attention(q, k, v, mask), batch))
        y = torch.cat(found, 2) if len(found) > 1 else found[0]
        y = map_of(y, (full_height, full_width))
        y = y.narrow(2, 0, height).narrow(3, 0, width) if padded else y
        return self.proj(y)

    def grouping(self, mode: str, height: int, width: int) -> Grouping:
        """The groups of a map whose size needs no padding."""
        if mode == "global":
            return Grouping((1, height, width), 0)
        if mode == "rows":
            size, count = self.size_r, height // self.size_r
            return Grouping((size, count, width), 1) if self.interlaced else Grouping((count, size, width), 0)
        size, count = self.size_c, width // self.size_c
        return Grouping((height, size, count), 2) if self.interlaced else Grouping((height, count, size), 1)


def real_keys(grouping: Grouping, x: Tensor, height: int, width: int) -> Tensor:
    """False on the padding of a map (B, C, H, W) beyond (height, width): (B * groups, 1, 1, tokens of a group)."""
    rows = torch.arange(x.shape[2], device=x.device) < height
    columns = torch.arange(x.shape[3], device=x.device) < width
    real = grouping.separate((rows[:, None] & columns).reshape(1, -1, 1), 1).transpose(2, 3)
    return real[None].expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1)


def grouped_pale_attention(attn: PaleAttention) -> PaleAttention:
    """The same attention with fewer copies; itself for the mixer "vanilla"."""
    return attn if attn.mixer == "vanilla" else rebuild(attn, GroupedPaleAttention)


@notrace_module
class TokenPaleBlock(PaleBlock):
    """`PaleBlock` with shortcuts of tokens, in evaluation mode."""

    token_norm1: nn.LayerNorm
    token_norm2: nn.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        """See `PaleBlock`."""
        size = x.shape[2:]
        tokens = tokens_of(self.cpe(x))  # Eq. 6
        tokens = tokens + tokens_of(self.attn(map_of(self.token_norm1(tokens), size)))  # Eq. 7
        tokens = tokens + tokens_of(self.mlp(map_of(self.token_norm2(tokens), size)))  # Eq. 8
        return map_of(tokens, size)


def token_pale_block(block: PaleBlock) -> TokenPaleBlock:
    """The same block with shortcuts of tokens."""
    norms = {"token_norm1": layer_norm_of(block.norm1), "token_norm2": layer_norm_of(block.norm2)}
    return rebuild(block, TokenPaleBlock, **norms)
