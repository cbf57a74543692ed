"""MAT: mixing abstract tokens, so that non-overlapping local windows exchange information without shifting them.

Xuan-Thuy Vo, "Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object Recognition", PhD
thesis, University of Ulsan, 2023, chapter 4. Equation, figure and table numbers below are the thesis's. No authors'
code is known: what is not reported was recovered by counting (all reported parameters and FLOPs are reproduced), and
what is undecided is marked "ours". Token merging has no equation of its own; abstraction is Eq. 4.1-4.2, mixing
Eq. 4.3-4.4, fusion Eq. 4.5.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    ConvPositionEncoding,
    Mlp,
    Pointwise,
    attention,
    blocks_per_stage,
    channels_last,
    check_choice,
    check_divides,
    one_window,
    pad_to_multiple,
    per_stage,
    round_up,
    sizes_known,
    window_key_mask,
    window_partition,
    window_reverse,
)
from ..layers.tracing import notrace_function, notrace_module, unscripted
from .checkpoints import encoder_of, renamed, unwrap
from .pyramid import HiddenHeadPyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["Mat", "checkpoint_filter_fn", "mat_1", "mat_2", "mat_3", "mat_4", "mat_5"]

MIXERS = ("none", "window", "mat")
TOKEN_MERGES = ("query", "qkv", "project")
PAD_MODES = ("tight", "paper")
PATCH_EMBEDS = ("bilinear", "conv3x3", "merging")

# ---- local attention in windows (Table 4.9) ------------------------------------------------------------------------


@notrace_module
class WindowAttention(nn.Module):
    """Self-attention inside non-overlapping windows (Table 4.9 "Window Attn"): step 2 of MAT without the token.

    Args:
        dim: channels.
        num_heads: heads.
        window_size: M, side of a window.
        pad_mode: "tight" projects the tokens and pads after; "paper" pads first, projects the padded map and takes no
            shortcut (what the thesis's FLOPs count). Same values as long as the padding is masked.
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

    def is_single_window(self, height: int, width: int) -> bool:
        """True if the map is a single window without padding: the same function with fewer tokens."""
        return self.mask_padding and not self.pad_first and one_window(height, width, self.window_size)

    def split(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3C) -> (3, B * nW, heads, T, d), T = M * M tokens in a window, H * W in the only one."""
        if self.is_single_window(qkv.shape[1], qkv.shape[2]):
            windows = qkv.flatten(1, 2)
        else:
            windows = window_partition(pad_to_multiple(qkv, self.window_size), self.window_size)
        return windows.unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)

    def join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """Inverse of `split`: (B * nW, heads, T, d) -> (B, height, width, C)."""
        m = self.window_size
        windows = windows.transpose(1, 2).flatten(2)
        if self.is_single_window(height, width):
            return windows.unflatten(1, (height, width))
        return window_reverse(windows, m, round_up(height, m), round_up(width, m))[:, :height, :width]

    def output(self, y: Tensor, height: int, width: int) -> Tensor:
        """Output projection, (B, H, W, C) -> (B, C, height, width)."""
        return self.proj(y.permute(0, 3, 1, 2))[:, :, :height, :width]

    def mask(self, k: Tensor, batch: int, height: int, width: int, own_key: bool = False) -> Tensor | None:
        """Mask for the keys k (B * nW, heads, T, d) of an (H, W) map's windows, (B * nW, 1, 1, keys).

        None where padding is attended, or where it is known that there is none.

        Args:
            own_key: one more key, never masked, follows each window's.
        """
        if not self.mask_padding:
            return None
        m = self.window_size
        windows = (round_up(height, m) // m) * (round_up(width, m) // m)
        if sizes_known(height, width) and windows * k.shape[2] == height * width:
            return None
        real = window_key_mask(height, width, m, k.device)
        if own_key:
            real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        return real.repeat(batch, 1)[:, None, None, :]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        qkv = self.project(x)
        q, k, v = self.split(qkv).unbind(0)
        y = attention(q, k, v, self.mask(k, x.shape[0], height, width))
        y = self.join(y, qkv.shape[1], qkv.shape[2])
        return self.output(y, height, width)


# ---- mixing abstract tokens (Fig. 4.2, Eq. 4.1-4.5) ----------------------------------------------------------------


@notrace_module
class MatAttention(WindowAttention):
    """Mixing abstract tokens (Fig. 4.2): one learned token per window carries information between the windows.

    Args:
        token_merge: what the abstract token of a window joins: "query" (default), "qkv" (raw, also as a key and a
            value), "project" (before the projection, as Eq. 4.2 is written). The thesis leaves it open; only "query"
            gives its reported FLOPs.

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
        super().__init__(dim, num_heads, window_size=window_size, pad_mode=pad_mode, mask_padding=mask_padding, **dd)
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
        """Query, key and value of the abstract token: (3, 1, heads, 1, d)."""
        if self.token_merge == "project":
            token = F.linear(self.token.reshape(1, -1), self.qkv.weight.flatten(1), self.qkv.bias)
            return token.reshape(3, 1, self.num_heads, 1, self.head_dim).to(dtype)
        return self.token.to(dtype).expand(3, 1, self.num_heads, 1, self.head_dim)

    def split_heads(self, x: Tensor, parts: int) -> Tensor:
        """(B, N, parts * C) -> (parts, B, heads, N, d)."""
        return x.unflatten(2, (parts, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)

    def merge(self, qkv: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Token merging: q (B * nW, heads, T + 1, d), the token last; k and v of every window; key mask."""
        q, k, v = self.split(qkv).unbind(0)  # (B * nW, heads, T, d)
        own_key = self.token_merge != "query"
        mask = self.mask(k, qkv.shape[0], height=height, width=width, own_key=own_key)
        token = self.merged_token(q.dtype).expand(-1, q.shape[0], -1, -1, -1)  # the same in every window
        q = torch.cat([q, token[0]], dim=2)
        if own_key:
            k, v = torch.cat([k, token[1]], dim=2), torch.cat([v, token[2]], dim=2)
        return q, k, v, mask

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        qkv = self.project(x)  # (B, H, W, 3C)
        q, k, v, mask = self.merge(qkv, height, width)
        tokens = q.shape[2] - 1

        # Eq. 4.1-4.2, token abstraction: the token's row of the local attention is the summary of the window
        local = attention(q, k, v, mask)  # (B * nW, heads, T + 1, d)
        summary = local[:, :, tokens].reshape(batch, -1, dim)  # the abstract tokens (B, nW, C)
        local = self.join(local[:, :, :tokens], qkv.shape[1], qkv.shape[2])  # (B, H, W, C)

        if one_window(height, width, self.window_size) and not self.pad_first:
            # not in the thesis: a softmax over one key is 1, so both attentions return their values
            mixed = self.mix_proj(self.mix_qkv(summary)[..., 2 * dim :])
            return self.output(local + self.kv(mixed)[:, None, :, dim:], height, width)

        # Eq. 4.3-4.4, mixing: global self-attention over the summaries; no residual, norm or position
        q, k, v = self.split_heads(self.mix_qkv(summary), 3).unbind(0)  # (B, heads, nW, d)
        mixed = self.mix_proj(attention(q, k, v).transpose(1, 2).reshape(batch, -1, dim))

        # Eq. 4.5, fusion: every image token reads the mixed summaries with its query of the local attention
        k, v = self.split_heads(self.kv(mixed), 2).unbind(0)
        q = self.split_heads(qkv[..., :dim].flatten(1, 2), 1)[0]  # (B, heads, HW, d)
        fused = attention(q, k, v).transpose(1, 2).reshape(batch, qkv.shape[1], qkv.shape[2], dim)
        return self.output(local + fused, height, width)

    @unscripted
    def attention_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The weights of the three attentions, each row with sum 1 (Fig. 4.5 and 4.6).

        Args:
            x: the input of the mixer, (B, C, H, W).

        Returns:
            "abstraction" (B, heads, nW, 49): what each abstract token attends to in its window, row-major (a 50th key,
            the token itself, unless token_merge="query"); "mixing" (B, heads, nW, nW); "fusion" (B, heads, H * W, nW):
            what every image token reads.
        """
        batch, dim, height, width = x.shape
        qkv = self.project(x)
        q, k, v, mask = self.merge(pad_to_multiple(qkv, self.window_size), height, width)
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


# ---- block (Fig. 4.1) ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Position encoding and token mixer where the stage has one, then the MLP, each with a residual.

    Args:
        dim: channels.
        mixer: token mixer, None for an MLP block.
        mlp_ratio: hidden width of the MLP / dim.
        mlp_dwconv: 3x3 depthwise convolution inside the MLP.
        drop_path: rate of stochastic depth.

    Shapes: (B, dim, H, W) -> (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module | None,
        mlp_ratio: float = 4.0,
        mlp_dwconv: bool = True,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.cpe = ConvPositionEncoding(dim, 3, **dd) if mixer is not None else None
        self.norm1 = LayerNorm2d(dim, eps=1e-6, **dd) if mixer is not None else None
        self.mixer = mixer
        self.norm2 = LayerNorm2d(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, mlp_ratio, dwconv=mlp_dwconv, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.cpe is not None and self.norm1 is not None and self.mixer is not None:
            x = self.cpe(x)
            x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


# ---- stem and down-sampling (Sec. 4.3.2, Fig. 4.3) -----------------------------------------------------------------


def make_stem(in_chans: int, dim: int, device: Any = None, dtype: Any = None) -> nn.Sequential:
    """(B, in_chans, H, W) -> (B, dim, ceil(H/4), ceil(W/4)). Biases before the norms are counted in the thesis."""
    dd = {"device": device, "dtype": dtype}
    half = dim // 2
    layers = [
        ("conv1", nn.Conv2d(in_chans, half, 3, stride=2, padding=1, **dd)),
        ("bn1", nn.BatchNorm2d(half, **dd)),
        ("act1", nn.GELU()),
        ("conv2", nn.Conv2d(half, half, 3, padding=1, groups=half, **dd)),
        ("bn2", nn.BatchNorm2d(half, **dd)),
        ("act2", nn.GELU()),
        ("conv3", nn.Conv2d(half, dim, 3, stride=2, padding=1, **dd)),
        ("bn3", nn.BatchNorm2d(dim, **dd)),
    ]
    return nn.Sequential(OrderedDict(layers))


@notrace_function
def sample_halved(x: Tensor, offset: Tensor) -> Tensor:
    """Bilinear sampling of a map at the centres of its 2x2 cells, displaced by `offset`.

    Coordinates and sampling are float32 at least: float16 would be wrong by parts of a pixel on large maps. The
    reference points have the fixed stride 2 whatever the size; the last point of an odd side lies half a pixel outside
    and reads the border. Where an offset is not finite the result is NaN: PyTorch's kernel would read an arbitrary
    pixel, and its backward pass on CPUs would write outside the map and crash.

    Args:
        x: (B, C, H, W).
        offset: (B, 2, ceil(H/2), ceil(W/2)), (dx, dy) in pixels of `x`.

    Returns:
        (B, C, ceil(H/2), ceil(W/2)); with zero offsets and even sides the 2x2 average pooling.
    """
    height, width = x.shape[2], x.shape[3]
    dtype = x.dtype
    if dtype != torch.float64:
        x, offset = x.float(), offset.float()
    cols = torch.arange(offset.shape[3], device=x.device, dtype=x.dtype)
    rows = torch.arange(offset.shape[2], device=x.device, dtype=x.dtype)[:, None]
    # pixel coordinate p of an axis of length L is (2p + 1) / L - 1 for align_corners=False; here p = 2j + 0.5 + dx
    grid_x = (4 * cols + 2 + 2 * offset[:, 0]) / width - 1
    grid_y = (4 * rows + 2 + 2 * offset[:, 1]) / height - 1
    grid = torch.stack([grid_x, grid_y], dim=-1)
    guarded = True
    if not torch.jit.is_scripting():
        guarded = not torch.compiler.is_exporting()  # exported graphs have no backward pass
    if not guarded:
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).to(dtype)
    finite = grid.isfinite()
    grid = torch.where(finite, grid, torch.zeros_like(grid))
    read = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read.masked_fill_(~finite.all(-1).unsqueeze(1), float("nan")).to(dtype)


class BilinearPatchEmbed(nn.Module):
    """Down-sampling that reads the map at learned, input-dependent positions (Fig. 4.3).

    Args:
        dim, out_dim: channels in and out.
        offset_range: bounds the offsets to this many pixels through tanh; None = unbounded. Ours.

    Shapes: (B, dim, H, W) -> (B, out_dim, ceil(H/2), ceil(W/2)).
    """

    def __init__(
        self, dim: int, out_dim: int, offset_range: float | None = None, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.bounded = offset_range is not None
        self.offset_range = 0.0 if offset_range is None else float(offset_range)
        self.offset_dwconv = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim, **dd)
        self.offset_act = nn.GELU()  # ours
        self.offset_conv = nn.Conv2d(dim, 2, 1, bias=False, **dd)  # starts at zero (ours): training starts by averaging
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.conv = nn.Conv2d(dim, out_dim, 1, **dd)
        self.bn = nn.BatchNorm2d(out_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset_conv(self.offset_act(self.offset_dwconv(x)))
        if self.bounded:
            offset = self.offset_range * torch.tanh(offset)
        x = channels_last(sample_halved(x, offset))
        return self.bn(self.conv(self.dwconv(x)))


class ConvPatchEmbed(nn.Sequential):
    """Ablation "3x3 conv" of Table 4.9. Shapes: (B, dim, H, W) -> (B, out_dim, ceil(H/2), ceil(W/2))."""

    def __init__(self, dim: int, out_dim: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(out_dim, device=device, dtype=dtype)


class PatchMerging(nn.Module):
    """Ablation "Patch Merging" of Table 4.9: 2x2 cells to channels, odd sides zero-padded at the bottom and right.

    Shapes: (B, dim, H, W) -> (B, out_dim, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, dim: int, out_dim: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.conv = nn.Conv2d(4 * dim, out_dim, 1, device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(out_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 2).permute(0, 3, 1, 2)
        return self.bn(self.conv(channels_last(F.pixel_unshuffle(x, 2))))


# ---- network (Fig. 4.1, Tables 4.3 and 4.12) -----------------------------------------------------------------------


class Mat(HiddenHeadPyramid):
    """The MAT network: MLP blocks in stages 1 and 2, abstract tokens in stages 3 and 4.

    Args:
        num_classes: 0 leaves the classifier out.
        in_chans: channels of the image.
        global_pool: "avg", "max", "avgmax", or "" for none.
        embed_dims: widths of the four stages.
        depths: blocks of the four stages.
        num_heads: heads of the four stages, unused (0 is allowed) in stages without mixer. For stages 1 and 2 the
            thesis prints none; halving per stage towards the input is ours.
        mlp_ratios: hidden width / width of the MLP, per stage.
        window_size: side of the windows.
        mixers: "none", "window" or "mat", per stage (Tables 4.2 and 4.9).
        mlp_dwconv: 3x3 depthwise convolution in the MLP; False only in row "Pure MLP" of Table 4.9.
        patch_embed: "bilinear", "conv3x3" or "merging" (Table 4.9).
        offset_range: bound of the bilinear embedding's offsets in pixels, None = none.
        token_merge: "query", "qkv" or "project", see `MatAttention`.
        stage_norms: LayerNorm at each stage's end, on the main path.
        pad_mode: "tight" or "paper", see `WindowAttention`.
        mask_padding: keep the padding of the windows out of attention.
        head_hidden_size: channels of the 1x1 convolution before pooling.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        out_norms: one more LayerNorm on each pyramid output.

    Raises:
        ValueError: for an option outside its allowed values.
    """

    no_decay = (".token",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (24, 48, 96, 192),
        depths: Sequence[int] = (2, 2, 6, 6),
        num_heads: int | Sequence[int] = (3, 6, 12, 24),
        mlp_ratios: float | Sequence[float] = 4.0,
        window_size: int = 7,
        mixers: str | Sequence[str] = ("none", "none", "mat", "mat"),
        mlp_dwconv: bool | Sequence[bool] = True,
        patch_embed: str = "bilinear",
        offset_range: float | None = None,
        token_merge: str = "query",
        stage_norms: bool = True,
        pad_mode: str = "tight",
        mask_padding: bool = True,
        head_hidden_size: int = 1280,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        embed_dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        num_heads, mlp_ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        mixers, mlp_dwconv = per_stage("mixers", mixers), per_stage("mlp_dwconv", mlp_dwconv)
        check_divides("embed_dims[0]", embed_dims[0], 2, "the stem's halving")
        check_choice("patch_embed", patch_embed, PATCH_EMBEDS)
        check_choice("token_merge", token_merge, TOKEN_MERGES)
        check_choice("pad_mode", pad_mode, PAD_MODES)
        for i, mixer in enumerate(mixers):
            check_choice("mixers", mixer, MIXERS)
            if mixer != "none":
                check_divides(f"embed_dims[{i}]", embed_dims[i], num_heads[i], f"num_heads[{i}]")
        for ratio in mlp_ratios:
            check_positive("mlp_ratios", ratio)
        check_positive("window_size", window_size)
        check_positive("head_hidden_size", head_hidden_size)
        if offset_range is not None:
            check_positive("offset_range", offset_range)

        super().__init__(embed_dims, num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = head_hidden_size
        norm = partial(LayerNorm2d, eps=1e-6, **dd)
        attn = {"window_size": window_size, "pad_mode": pad_mode, "mask_padding": mask_padding, **dd}
        make_mixer = {
            "none": lambda dim, heads: None,
            "window": partial(WindowAttention, **attn),
            "mat": partial(MatAttention, token_merge=token_merge, **attn),
        }
        make_embed = {
            "bilinear": partial(BilinearPatchEmbed, offset_range=offset_range, **dd),
            "conv3x3": partial(ConvPatchEmbed, **dd),
            "merging": partial(PatchMerging, **dd),
        }[patch_embed]

        self.stem = make_stem(in_chans, embed_dims[0], **dd)
        drop_paths = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks = [
                Block(
                    dim,
                    make_mixer[mixers[i]](dim, num_heads[i]),
                    mlp_ratio=mlp_ratios[i],
                    mlp_dwconv=mlp_dwconv[i],
                    drop_path=rate,
                    **dd,
                )
                for rate in drop_paths[i]
            ]
            embed = make_embed(embed_dims[i - 1], dim) if i else None
            stages.append(Stage(blocks, embed, norm(dim) if stage_norms else None))
        self.stages = nn.Sequential(*stages)
        self.finish(None, global_pool, norm if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers truncated normal 0.02, convolutions normal sqrt(2 / fan out), offsets zero, biases zero."""
        if name.endswith("offset_conv"):
            nn.init.zeros_(cast(Tensor, module.weight))
        elif isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(cast(Tensor, module.bias))
        elif isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_positive(option: str, value: float) -> None:
    """Raise `ValueError` unless `value` is above zero."""
    if not value > 0:
        raise ValueError(f"{option}={value!r} is not allowed; choose a number above 0")


# ---- checkpoints ---------------------------------------------------------------------------------------------------

# per-pixel linear layers that are 1x1 convolutions here
POINTWISE = re.compile(r"\.(?:mixer\.(?:qkv|proj)|mlp\.fc[12])\.weight$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict for `Mat`, from its own or from one with linear layers and bare position convolutions.

    The second layout is that of an implementation on token sequences: 2-D weights in `mixer.{qkv, proj}` and
    `mlp.{fc1, fc2}`, and `cpe.{weight, bias}`. Wrappers ("model", "state_dict", "state_dict_ema", "module." before
    every name) are taken off; our own state dicts pass unchanged.
    """

    state_dict = encoder_of(unwrap(state_dict, model))
    names = {name: re.sub(r"\.cpe\.(weight|bias)$", r".cpe.conv.\1", name) for name in state_dict}
    linear = {name for name, value in state_dict.items() if value.ndim == 2 and POINTWISE.search(name)}
    return renamed((k, names[k], v[:, :, None, None] if k in linear else v) for k, v in state_dict.items())


# ---- variants (Tables 4.3 and 4.12) --------------------------------------------------------------------------------

VARIANTS = {
    "mat_1": {"embed_dims": (24, 48, 96, 192), "depths": (2, 2, 6, 6), "num_heads": (3, 6, 12, 24)},
    "mat_2": {"embed_dims": (32, 64, 128, 256), "depths": (2, 2, 6, 6), "num_heads": (2, 4, 8, 16)},
    "mat_3": {"embed_dims": (36, 72, 144, 288), "depths": (2, 2, 8, 8), "num_heads": (2, 4, 8, 16)},
    "mat_4": {"embed_dims": (48, 96, 192, 384), "depths": (3, 3, 8, 8), "num_heads": (3, 6, 12, 24)},
    "mat_5": {"embed_dims": (64, 128, 256, 512), "depths": (2, 2, 8, 8), "num_heads": (4, 8, 16, 32)},
}

default_cfgs = generate_default_cfgs({name: default_cfg(classifier="head.fc") for name in VARIANTS})


def _mat(variant: str, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    return build(Mat, variant, pretrained, VARIANTS[variant], overrides=overrides, filter_fn=checkpoint_filter_fn)


@register_model
def mat_1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """6.7 M parameters, 0.39 GMAC at 224 x 224."""
    return _mat("mat_1", pretrained, kwargs)


@register_model
def mat_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """10.8 M parameters, 0.67 GMAC at 224 x 224."""
    return _mat("mat_2", pretrained, kwargs)


@register_model
def mat_3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """17.0 M parameters, 1.04 GMAC at 224 x 224."""
    return _mat("mat_3", pretrained, kwargs)


@register_model
def mat_4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """29.1 M parameters, 1.93 GMAC at 224 x 224."""
    return _mat("mat_4", pretrained, kwargs)


@register_model
def mat_5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """50.1 M parameters, 3.16 GMAC at 224 x 224."""
    return _mat("mat_5", pretrained, kwargs)
