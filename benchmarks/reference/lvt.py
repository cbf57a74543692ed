"""LVT: convolutional self-attention by unfold and fold, recursive atrous self-attention with its scores written out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.models.lvt import CSA, RASA

from .tokens import attend, heads_of, linear, to_map, to_tokens


class ReferenceCSA(CSA):
    """Eq. 3, window by window of an unfolded map."""

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        heads = self.num_heads
        pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
        logits = linear(self.logits, to_tokens(pooled))  # (B, L, heads * 81)
        attn = (logits.reshape(batch, -1, heads, 9, 9) * self.scale).softmax(dim=-1)

        taps = F.unfold(x, 3, padding=1, stride=2).reshape(batch, dim, 9, -1).permute(2, 0, 3, 1)  # (9, B, L, C)
        value = torch.stack([F.linear(tap, weight) for tap, weight in zip(taps, self.value.weight, strict=True)])
        value = value.reshape(9, batch, -1, heads, dim // heads).permute(1, 2, 3, 0, 4)  # (B, L, heads, 9, d)

        out = (attn @ value).permute(0, 2, 4, 3, 1).reshape(batch, dim * 9, -1)
        out = F.fold(out, (height, width), 3, padding=1, stride=2)
        return to_map(linear(self.proj, to_tokens(out)), height, width)


class ReferenceRASA(RASA):
    """One pass of Eq. 8; the recursion itself is the library's."""

    def attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        q = to_map(linear(self.q, to_tokens(x)), height, width)
        if self.atrous is not None:
            branches = [
                F.silu(F.conv2d(q, self.atrous.weight, padding=rate, dilation=rate, groups=q.shape[1]))
                for rate in self.atrous_rates
            ]
            q = torch.stack(branches).sum(0)
        q = heads_of(to_tokens(q), 1, self.num_heads)[0]
        k, v = heads_of(linear(self.kv, to_tokens(self.sr(x))), 2, self.num_heads)
        out = to_map(linear(self.proj, attend(q, k, v)), height, width)
        return F.silu(out) if self.output_act else out
