"""PSLT: attention with windows as the batch and the heads apart, the layout that OpenVINO computes as one operation.

`LadderAttention` counts windows and heads on one axis. Exported, every product then has transpositions of its own
around it; with a window an image and its heads on an axis, OpenVINO fuses both products, the bias and the softmax
with the transpositions of q, k, v and of the result.
"""

from __future__ import annotations

from torch import Tensor

from ....layers import attention
from ....layers.rebuild import rebuild
from ....layers.tracing import notrace_module
from ....models.pslt import LadderAttention, pad_map


@notrace_module
class WindowBatchLadderAttention(LadderAttention):
    """`LadderAttention` with every window as an image of the batch."""

    def forward(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        """See `LadderAttention`."""
        batch, dim, height, width = x.shape
        bias, index, inverse = self.window_layout(height, width, x.device)
        if self.pad_first:
            x = pad_map(x, self.window_size)
            value = value if value is None else pad_map(value, self.window_size)
        qkv = self.windows(self.qkv(x), index)
        if value is None:
            q, k, v = qkv.split(dim, dim=2)
        else:
            q, k = qkv.split(dim, dim=2)
            v = self.windows(value.to(qkv.dtype), index)
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        bias = bias.reshape(-1, self.num_heads, *bias.shape[2:]).repeat(batch, 1, 1, 1)
        out = attention(q, k, v, bias.to(q.dtype))  # (B * windows, heads, M * M, dim / heads)
        out = out.transpose(1, 2).reshape(batch, -1, dim)
        if inverse is not None:
            out = out.index_select(1, inverse)
        out = out.reshape(batch, x.shape[2], x.shape[3], dim).permute(0, 3, 1, 2)
        return self.proj(out)[:, :, :height, :width]

    def windows(self, x: Tensor, index: Tensor | None) -> Tensor:
        """(B, channels, H, W) -> (B * windows, M * M, channels), the windows taken by `index`."""
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
        if index is None:
            return tokens
        return tokens.index_select(1, index).reshape(-1, self.window_size**2, x.shape[1])


def windows_as_batch(attn: LadderAttention) -> WindowBatchLadderAttention:
    """The same attention with windows as the batch."""
    return rebuild(attn, WindowBatchLadderAttention)
