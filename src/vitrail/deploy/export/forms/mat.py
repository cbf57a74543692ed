"""MAT: tokens in the order of their windows from the norm to the output projection, and layers in a row composed.

`MatAttention` brings q, k and v of every token into windows and local results back onto the map, where the fusion needs
them; the exported graph copies four maps for that. Here one map is brought into windows, before its projection, and one
back, after the output projection: the fusion attends to summaries of windows, in whatever order its queries are.

Layers without anything between them become one: `mix_proj` and `kv`, and on a map of one window, whose only summary
attends to itself alone, also the values of `mix_qkv`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....layers import attention, one_window, pad_to_multiple, round_up, sizes_known, window_partition, window_reverse
from ....layers.rebuild import rebuild
from ....layers.tracing import notrace_module
from ....models.mat import MatAttention
from .tokens import linear, linear_of


@notrace_module
class WindowOrderMatAttention(MatAttention):
    """`MatAttention` on tokens in window order.

    Attributes:
        qkv_tokens, proj_tokens: `qkv` and `proj` as linear layers.
        mixed_kv: `kv` after `mix_proj`.
        only_window: the values of `kv` after `mix_proj` after the values of `mix_qkv`.
    """

    qkv_tokens: nn.Linear
    proj_tokens: nn.Linear
    mixed_kv: nn.Linear
    only_window: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """See `MatAttention`."""
        batch, dim, height, width = x.shape
        early = self.projects_windows(height, width)
        if early:
            qkv = self.qkv_tokens(self.windows(x.permute(0, 2, 3, 1)))
        else:
            qkv = self.windows(self.qkv(x).permute(0, 2, 3, 1))
        q, k, v = qkv.split(dim, dim=2)  # (B * nW, T, C)
        tokens = q.shape[1]

        # Eq. 4.1-4.2
        own_key = self.token_merge != "query"
        mask = self.mask(k[:, None], batch, height, width, own_key=own_key)
        token = self.merged_token(q.dtype).flatten(1).unflatten(1, (1, 1, dim)).expand(-1, q.shape[0], -1, -1)
        queries = torch.cat([q, token[0]], dim=1)
        if own_key:
            k, v = torch.cat([k, token[1]], dim=1), torch.cat([v, token[2]], dim=1)
        local = self.attend(queries, k, v, mask)
        local, summary = local[:, :tokens], local[:, tokens:]

        if one_window(height, width, self.window_size):
            y = local + self.only_window(summary)
        else:
            # Eq. 4.3-4.4
            mixed = self.attend(*self.mix_qkv(summary.reshape(batch, -1, dim)).split(dim, dim=2))
            # Eq. 4.5
            fused = self.attend(q.reshape(batch, -1, dim), *self.mixed_kv(mixed).split(dim, dim=2))
            y = local.reshape(batch, -1, dim) + fused
        if early:
            return self.map_of(self.proj_tokens(y), height, width)
        return self.proj(self.map_of(y, height, width))

    def projects_windows(self, height: int, width: int) -> bool:
        """True if qkv and proj run on windows: without padding, or where the padding has to be projected."""
        if self.pad_first:
            return True
        if not sizes_known(height, width):
            return False  # tokens would be projected that exist at some sizes only
        m = self.window_size
        return self.is_single_window(height, width) or (height % m == 0 and width % m == 0)

    def windows(self, x: Tensor) -> Tensor:
        """(B, H, W, channels) -> (B * nW, T, channels), see `split`."""
        if self.is_single_window(x.shape[1], x.shape[2]):
            return x.flatten(1, 2)
        return window_partition(pad_to_multiple(x, self.window_size), self.window_size)

    def map_of(self, y: Tensor, height: int, width: int) -> Tensor:
        """(B, nW * T, C) in window order -> (B, C, height, width)."""
        m = self.window_size
        if self.is_single_window(height, width):
            y = y.unflatten(1, (height, width))
        else:
            y = window_reverse(y.reshape(-1, m * m, y.shape[2]), m, round_up(height, m), round_up(width, m))
        return y[:, :height, :width].permute(0, 3, 1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention with heads on the last axis: (B, queries, C), (B, keys, C) twice -> (B, queries, C)."""
        q, k, v = (x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        return attention(q, k, v, mask).transpose(1, 2).flatten(2)


def window_order(attn: MatAttention) -> WindowOrderMatAttention:
    """The same attention on tokens in window order."""
    dim = attn.num_heads * attn.head_dim
    kv, mix_proj, mix_qkv = affine(attn.kv), affine(attn.mix_proj), affine(attn.mix_qkv)
    value, mix_value = ([part[start:] for part in layer] for layer, start in ((kv, dim), (mix_qkv, 2 * dim)))
    return rebuild(
        attn,
        WindowOrderMatAttention,
        qkv_tokens=linear_of(attn.qkv),
        proj_tokens=linear_of(attn.proj),
        mixed_kv=composed(mix_proj, kv),
        only_window=composed(mix_value, mix_proj, value),
    )


def affine(layer: nn.Linear | nn.Conv2d) -> list[Tensor]:
    """Weight (out, in) and bias of a linear layer or a 1x1 convolution; views of its tensors."""
    assert layer.bias is not None
    return [layer.weight.detach().flatten(1), layer.bias.detach()]


def composed(*layers: list[Tensor]) -> nn.Linear:
    """Linear layers in a row, given by weight and bias, as one; computed in float64."""
    (weight, bias), *rest = ([part.double() for part in layer] for layer in layers)
    for own, shift in rest:
        weight, bias = own @ weight, own @ bias + shift
    return linear(*(part.to(layers[0][0].dtype) for part in (weight, bias)))
