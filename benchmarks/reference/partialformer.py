"""PartialFormer: all tokens sorted, both sets gathered and projected, the sort inverted."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.models.partialformer import FullAttention, PartialAttention

from .tokens import attend, heads_of, linear, to_map, to_tokens


def naive(attn, x, raw):
    """Partial attention as the thesis words it: sort all tokens, gather both sets, project both, invert the sort."""
    batch, dim, height, width = x.shape
    tokens, count = x.flatten(2).transpose(1, 2), height * width
    source = raw if attn.score_source == "raw" else x
    score = source.mean(1) if attn.score == "mean" else source.square().sum(1).sqrt()
    order = score.flatten(1).argsort(dim=1, descending=True)
    n_f = count * attn.numerator // attn.denominator
    n_f = min(n_f, attn.max_foreground or n_f)
    n_f = max(1, min(n_f, count - 1))
    rows = order[..., None].expand(-1, -1, dim)
    x_f, x_b = tokens.gather(1, rows).split([n_f, count - n_f], dim=1)

    def project(t):
        q, k, v = F.linear(t, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)
        return [z.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for z in (q, k, v)]

    def mix_heads(layer, a):
        return torch.einsum("oi,bi...->bo...", layer.weight[:, :, 0, 0], a) + layer.bias[:, None, None]

    if attn.abstract_token is not None:
        x_f = torch.cat([attn.abstract_token.expand(batch, 1, dim), x_f], dim=1)
    q, k, v = project(x_f)
    a = q @ k.transpose(-1, -2) / math.sqrt(dim // attn.num_heads)
    a = mix_heads(attn.head_mlp.fc1, a).softmax(-1) if attn.head_mlp is not None else a.softmax(-1)
    a = mix_heads(attn.head_mlp.fc2, a) if attn.head_mlp is not None else a
    o_f = attn.proj((a @ v).transpose(1, 2).flatten(2))
    if attn.abstract_token is not None:
        query, o_f = o_f[:, :1], o_f[:, 1:]
    else:
        query = o_f.mean(1, keepdim=True)

    o_b = x_b if attn.background_residual else torch.zeros_like(x_b)
    if attn.channel_mlp is not None and count > n_f:
        _, k_b, v_b = project(x_b)
        query = query.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        y = (query @ k_b.transpose(-1, -2) / math.sqrt(dim // attn.num_heads)).softmax(-1) @ v_b
        mlp = attn.channel_mlp
        o_b = o_b + mlp.fc2(mlp.norm(mlp.fc1(y.transpose(1, 2).flatten(2))).relu())
    if attn.proj_scope == "all":
        o_b = attn.proj(o_b)
    out = torch.cat([o_f, o_b], dim=1).gather(1, order.argsort(dim=1)[..., None].expand(-1, -1, dim))
    return out.transpose(1, 2).unflatten(2, (height, width))


class ReferencePartial(PartialAttention):
    """`naive` as the forward of a network."""

    def forward(self, x: Tensor, raw: Tensor) -> Tensor:
        return naive(self, x, raw)


class ReferenceFull(FullAttention):
    """Self-attention over all tokens."""

    def forward(self, x: Tensor, raw: Tensor) -> Tensor:
        q, k, v = heads_of(linear(self.qkv, to_tokens(x)), 3, self.num_heads)
        return to_map(linear(self.proj, attend(q, k, v)), *x.shape[2:])
