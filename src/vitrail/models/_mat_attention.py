"""Token mixers of MAT: windows, and abstract tokens that carry information between them (Sec. 4.3.1, Eq. 4.1-4.5)."""

from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    Pointwise,
    attention,
    one_window,
    pad_to_multiple,
    round_up,
    sizes_known,
    window_key_mask,
    window_partition,
    window_reverse,
)
from ..layers.tracing import notrace_module, unscripted

TOKEN_MERGES = ("query", "qkv", "project")


def key_mask(height: int, width: int, window_size: int, device: torch.device) -> Tensor | None:
    """Which keys of each window are real, (nW, M * M) boolean; None where it is known that none has padding."""
    if sizes_known(height, width) and height % window_size == 0 and width % window_size == 0:
        return None
    return window_key_mask(height, width, window_size, device)


@notrace_module
class WindowAttention(nn.Module):
    """Self-attention inside non-overlapping windows (Table 4.9 "Window Attn"): step 2 of MAT without the token.

    Args:
        dim: channels.
        num_heads: heads.
        window_size: M, side of a window.
        pad_mode: "tight" projects the real tokens and pads after; "paper" pads first, projects the padded map and takes
            no shortcut (what the thesis's FLOPs count). Same values as long as the padding is masked.
        mask_padding: False lets padding be attended: zeros with "tight", projected zeros with "paper".

    Shapes: (B, dim, H, W) -> (B, dim, H, W), any H and W.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        pad_mode: str = "tight",
        mask_padding: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window_size = window_size
        self.pad_first = pad_mode == "paper"
        self.mask_padding = mask_padding
        self.qkv = Pointwise(dim, 3 * dim, device=device, dtype=dtype)
        self.proj = Pointwise(dim, dim, device=device, dtype=dtype)

    def project(self, x: Tensor) -> Tensor:
        """q, k, v of every token: (B, C, H, W) -> (B, H, W, 3C); H and W rounded up for `pad_mode="paper"`."""
        if self.pad_first:
            x = pad_to_multiple(x.permute(0, 2, 3, 1), self.window_size).permute(0, 3, 1, 2)
        return self.qkv(x).permute(0, 2, 3, 1)

    def is_whole(self, height: int, width: int) -> bool:
        """Whether the map is taken as one window without padding: the same function, and fewer tokens on small maps."""
        return self.mask_padding and not self.pad_first and one_window(height, width, self.window_size)

    def split(self, qkv: Tensor, whole: bool) -> Tensor:
        """(B, H, W, 3C) -> (3, B * nW, heads, T, d), T = M * M tokens in a window, H * W when it is the `whole` map."""
        if whole:
            windows = qkv.flatten(1, 2)
        else:
            windows = window_partition(pad_to_multiple(qkv, self.window_size), self.window_size)
        return windows.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)

    def join(self, windows: Tensor, height: int, width: int, whole: bool) -> Tensor:
        """Inverse of `split`: (B * nW, heads, T, d) -> (B, height, width, C)."""
        m = self.window_size
        windows = windows.transpose(1, 2).flatten(2)
        if whole:
            return windows.unflatten(1, (height, width))
        return window_reverse(windows, m, round_up(height, m), round_up(width, m))[:, :height, :width]

    def output(self, y: Tensor, height: int, width: int) -> Tensor:
        """Output projection, (B, H, W, C) -> (B, C, height, width)."""
        return self.proj(y.permute(0, 3, 1, 2))[:, :, :height, :width]

    def mask(self, batch: int, height: int, width: int, device: torch.device, own_key: bool = False) -> Tensor | None:
        """Mask for the keys of the windows of an (H, W) map, (B * nW, 1, 1, keys); None = every key is real.

        Args:
            own_key: one more key, never masked, follows each window's.
        """
        if not self.mask_padding:
            return None
        real = key_mask(height, width, self.window_size, device)
        if real is None:
            return None
        if own_key:
            real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        return real.repeat(batch, 1)[:, None, None, :]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        whole = self.is_whole(height, width)
        qkv = self.project(x)
        q, k, v = self.split(qkv, whole).unbind(0)
        mask = None if whole else self.mask(x.shape[0], height, width, x.device)
        y = self.join(attention(q, k, v, mask), qkv.shape[1], qkv.shape[2], whole)
        return self.output(y, height, width)


@notrace_module
class MatAttention(WindowAttention):
    """Mixing abstract tokens (Fig. 4.2): one learned token per window carries information between the windows.

    Args:
        token_merge: what the abstract token of a window joins: "query" (default), "qkv" (raw, also as a key and a
            value), "project" (before the projection, as Eq. 4.2 is written). The thesis leaves it open; only "query"
            gives its printed FLOPs.

    The other arguments and the shapes are those of `WindowAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        pad_mode: str = "tight",
        mask_padding: bool = True,
        token_merge: str = "query",
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, window_size, pad_mode, mask_padding, **dd)
        self.token_merge = token_merge
        self.mix_qkv = nn.Linear(dim, 3 * dim, **dd)
        self.mix_proj = nn.Linear(dim, dim, **dd)
        self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.token = nn.Parameter(torch.empty(1, num_heads, 1, self.head_dim, **dd))  # one for all windows
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the abstract token."""
        trunc_normal_(self.token, std=0.02)

    def merged_token(self, dtype: torch.dtype) -> Tensor:
        """What the token adds to q, k and v: (3, 1, heads, 1, d)."""
        if self.token_merge == "project":
            token = F.linear(self.token.reshape(1, -1), self.qkv.weight.flatten(1), self.qkv.bias)
            return token.reshape(3, 1, self.num_heads, 1, self.head_dim).to(dtype)
        return self.token.to(dtype).expand(3, 1, self.num_heads, 1, self.head_dim)

    def split_heads(self, x: Tensor, parts: int) -> Tensor:
        """(B, N, parts * C) -> (parts, B, heads, N, d)."""
        return x.unflatten(2, (parts, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)

    def merge(self, qkv: Tensor, height: int, width: int, whole: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Token merging, Eq. 4.2: q (B * nW, heads, T + 1, d), the token last; k and v of every window; key mask."""
        q, k, v = self.split(qkv, whole).unbind(0)  # (B * nW, heads, T, d), T = 49 or, if whole, H * W
        token = self.merged_token(q.dtype).expand(-1, q.shape[0], -1, -1, -1)  # the same in every window
        q = torch.cat([q, token[0]], dim=2)
        own_key = self.token_merge != "query"
        if own_key:
            k, v = torch.cat([k, token[1]], dim=2), torch.cat([v, token[2]], dim=2)
        mask = None if whole else self.mask(qkv.shape[0], height, width, qkv.device, own_key)
        return q, k, v, mask

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        whole = self.is_whole(height, width)
        qkv = self.project(x)  # (B, H, W, 3C)
        q, k, v, mask = self.merge(qkv, height, width, whole)
        tokens = q.shape[2] - 1

        # Eq. 4.3, token abstraction: its row of the local attention is the summary of the window
        local = attention(q, k, v, mask)  # (B * nW, heads, T + 1, d)
        summary = local[:, :, tokens].reshape(batch, -1, dim)  # (B, nW, C)
        local = self.join(local[:, :, :tokens], qkv.shape[1], qkv.shape[2], whole)  # (B, H, W, C)

        if one_window(height, width, self.window_size) and not self.pad_first:
            # not in the thesis: a softmax over one key is 1, so both attentions return their values
            mixed = self.mix_proj(self.mix_qkv(summary)[..., 2 * dim :])
            return self.output(local + self.kv(mixed)[:, None, :, dim:], height, width)

        # Eq. 4.4, mixing: global self-attention over the summaries; no residual, norm or position
        q, k, v = self.split_heads(self.mix_qkv(summary), 3).unbind(0)  # (B, heads, nW, d)
        mixed = self.mix_proj(attention(q, k, v).transpose(1, 2).reshape(batch, -1, dim))

        # Eq. 4.5, fusion: every image token reads the mixed summaries with its query of the local attention
        k, v = self.split_heads(self.kv(mixed), 2).unbind(0)
        q = self.split_heads(qkv[..., :dim].flatten(1, 2), 1)[0]  # (B, heads, HW, d)
        fused = attention(q, k, v).transpose(1, 2).reshape(batch, qkv.shape[1], qkv.shape[2], dim)
        return self.output(local + fused, height, width)

    @unscripted
    def saved_macs(self, height: int, width: int) -> dict[str, int]:
        """Multiply-adds of the thesis' form that `forward` leaves out: mixing and fusion on a map of one window."""
        if not one_window(height, width, self.window_size) or self.pad_first:
            return {}
        return {"matmul": 2 * (height * width + 1) * self.num_heads * self.head_dim}

    @unscripted
    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The weights of the three attentions, each row with sum 1 (Fig. 4.5 and 4.6).

        Args:
            x: the input of the mixer, (B, C, H, W).

        Returns:
            "abstraction" (B, heads, nW, 49): where in its window each abstract token looks, all row-major (a 50th key,
            the token itself, unless token_merge="query"); "mixing" (B, heads, nW, nW); "fusion" (B, heads, H * W, nW):
            what every image token reads.
        """
        batch, dim, height, width = x.shape
        qkv = self.project(x)
        q, k, v, mask = self.merge(qkv, height, width, whole=False)
        abstraction = weights(q[:, :, -1:], k, mask)  # (B * nW, heads, 1, 49)
        summary = (abstraction @ v).reshape(batch, -1, dim)
        q, k, v = self.split_heads(self.mix_qkv(summary), 3).unbind(0)
        mixing = weights(q, k)
        mixed = self.mix_proj((mixing @ v).transpose(1, 2).reshape(batch, -1, dim))
        k = self.split_heads(self.kv(mixed), 2)[0]
        q = self.split_heads(qkv[:, :height, :width, :dim].flatten(1, 2), 1)[0]
        abstraction = abstraction.unflatten(0, (batch, -1)).squeeze(3).transpose(1, 2)
        return {"abstraction": abstraction, "mixing": mixing, "fusion": weights(q, k)}


def weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) over the keys that the boolean mask allows, softmax in float32 at least."""
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
