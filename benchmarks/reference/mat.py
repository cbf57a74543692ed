"""MAT: windows by padding and reshaping, three attentions with their scores written out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.models.mat import BilinearPatchEmbed, MatAttention, sample_halved

from .tokens import attend, heads_of, linear, pad_to, to_map, windows_back, windows_of


class ReferenceMat(MatAttention):
    """Fig. 4.2, step by step; the abstract token joins the queries."""

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        m, heads = self.window_size, self.num_heads
        qkv = linear(self.qkv, x.permute(0, 2, 3, 1))
        padded = pad_to(qkv, m)
        real = pad_to(torch.ones_like(qkv[:, :, :, :1]), m)
        bias = torch.zeros_like(real).masked_fill(real == 0, float("-inf"))
        bias = windows_of(bias, m)[:, None, None, :, 0]  # (B * nW, 1, 1, M * M)

        q, k, v = heads_of(windows_of(padded, m), 3, heads)
        q = torch.cat([q, self.token.expand(q.shape[0], -1, -1, -1)], dim=2)
        local = attend(q, k, v, bias)  # (B * nW, M * M + 1, C)
        summary = local[:, -1].reshape(batch, -1, dim)
        local = windows_back(local[:, :-1].contiguous(), m, *padded.shape[1:3])[:, :height, :width]

        mixed = linear(self.mix_proj, attend(*heads_of(linear(self.mix_qkv, summary), 3, heads)))
        k, v = heads_of(linear(self.kv, mixed), 2, heads)
        q = heads_of(qkv[..., :dim].reshape(batch, height * width, dim), 1, heads)[0]
        fused = attend(q, k, v)
        out = linear(self.proj, local.reshape(batch, height * width, dim) + fused)
        return to_map(out, height, width)


class ReferenceBilinear(BilinearPatchEmbed):
    """Fig. 4.3 in the memory it comes in."""

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset_conv(F.gelu(self.offset_dwconv(x)))
        return self.bn(self.conv(self.dwconv(sample_halved(x, offset))))
