"""PSLT: windows by padding, rolling and reshaping, as in Swin; bias and mask anew in every call."""

import itertools

import torch
from torch import Tensor

from vitrail.models.pslt import LadderAttention

from .tokens import apart, attend, heads_of, linear, pad_to, to_map, windows_back, windows_of


def painted(height: int, width: int, size: int, shift: int) -> Tensor:
    """A rolled map of labels, (1, H, W, 1): pixels of a window see each other where they are the same."""
    full_height, full_width = height + -height % size, width + -width % size
    labels = torch.zeros(1, full_height, full_width, 1)
    labels[:, height:] = 1
    labels[:, :, width:] = 1
    labels = torch.roll(labels, (-shift, -shift), (1, 2))
    if shift:  # what came round from the other end lies behind -shift, or before it
        ends = (slice(None, -shift), slice(-shift, None))
        for number, (rows, cols) in enumerate(itertools.product(ends, ends)):
            labels[:, rows, cols] += 2 * number
    return labels


class ReferenceLadder(LadderAttention):
    """Window attention of one branch (Eq. 1)."""

    def forward(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        batch, dim, height, width = x.shape
        m, heads = self.window_size, self.num_heads
        shift = self.shift if min(height, width) > m else 0

        def split(tokens: Tensor) -> Tensor:
            rolled = torch.roll(pad_to(tokens, m), (-shift, -shift), (1, 2))
            return heads_of(windows_of(rolled, m), tokens.shape[3] // dim, heads)

        qkv = split(linear(self.qkv, x.permute(0, 2, 3, 1)))
        q, k = qkv[0], qkv[1]
        v = qkv[2] if value is None else split(value.permute(0, 2, 3, 1).contiguous())[0]

        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = bias.view(m * m, m * m, heads).permute(2, 0, 1)
        labels = painted(height, width, m, shift)
        mask = apart(windows_of(labels, m)[..., 0])  # (nW, 1, M * M, M * M)
        out = attend(q, k, v, (bias + mask).repeat(batch, 1, 1, 1))

        out = windows_back(out.contiguous(), m, *labels.shape[1:3])
        out = torch.roll(out, (shift, shift), (1, 2))[:, :height, :width]
        return to_map(linear(self.proj, out.reshape(batch, height * width, dim)), height, width)
