"""PSLT: a light-weight vision transformer with ladder self-attention and progressive shift.

Wu, Zheng, Lu, Tian, IEEE TPAMI 45(9), 2023, doi 10.1109/TPAMI.2023.3265499, arXiv 2304.03481. Sections, equations,
figures and tables named below are the paper's; "code" marks what only the authors' released code settles.

The paper's names: W-MHSA and PSW-MHSA are `LadderAttention`, without and with a shift; LFFN is `bottleneck`, one branch
`LadderBranch`, PAFM `Fusion`, the ladder self-attention block `LadderBlock`.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..layers import (
    ConvNormAct,
    Mlp,
    Pointwise,
    attention,
    blocks_per_stage,
    check_choice,
    check_divides,
    one_window,
    pad_to_multiple,
    per_stage,
    round_up,
    window_partition,
)
from ..layers.tracing import notrace_module, unscripted
from .checkpoints import encoder_of, renamed, unwrap
from .pyramid import Pyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["PSLT", "pslt", "pslt_large", "pslt_tiny"]

LayerNorm = partial(LayerNorm2d, eps=1e-5)


# ---- window attention of one branch (Eq. 1) -------------------------------------------------------------------------


@notrace_module
class LadderAttention(nn.Module):
    """Window attention of one branch; a delivered branch takes its values from the branch before it (Eq. 1).

    Args:
        dim: channels of the branch.
        num_heads: attention heads of the branch.
        window_size: side M of the windows.
        shift: displacement of the windows, off on maps with a side of M or less (code).
        delivered: project queries and keys only, the values are an input.
        mask_padding: mask the padding of the last windows.
        pad_mode: "tight" projects the map and pads the result, "paper" projects the padded map.

    Shapes: (B, dim, H, W), for a delivered branch with values of the same shape -> (B, dim, H, W).
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift: int = 0,
        delivered: bool = False,
        mask_padding: bool = True,
        pad_mode: str = "tight",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.mask_padding = mask_padding
        self.pad_first = pad_mode == "paper" or not mask_padding  # attended padding has keys of its own
        self.qkv = Pointwise(dim, (2 if delivered else 3) * dim, **dd)
        self.proj = Pointwise(dim, dim, **dd)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads, **dd))
        index = torch.empty(window_size**2, window_size**2, dtype=torch.long, device=device)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.reset_parameters()

    @unscripted
    def reset_parameters(self) -> None:
        """Fill the bias table and the index into it."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.init_non_persistent_buffers()

    @unscripted
    def init_non_persistent_buffers(self) -> None:
        """Compute the index into the bias table, which no file holds; timm's name, called by Transformers."""
        self.relative_position_index = relative_position_index(
            self.window_size, self.relative_position_bias_table.device
        )

    @unscripted
    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        # the buffer of a module that was on the meta device is computed once its weights are loaded
        super()._load_from_state_dict(*args, **options)
        self.init_non_persistent_buffers()

    def forward(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        bias, index, inverse = self.window_layout(height, width, x.device)
        if self.pad_first:
            x = pad_map(x, self.window_size)
            value = value if value is None else pad_map(value, self.window_size)

        qkv = self.qkv(x)
        if value is None:
            q, k, v = self.partition(qkv, index, 3).unbind(0)
        else:  # feature delivery
            q, k = self.partition(qkv, index, 2).unbind(0)
            v = self.partition(value.to(qkv.dtype), index, 1)[0]
        # Eq. 1: softmax(Q K^T / sqrt(d)) V, with d the width of a head (code)
        out = attention(q, k, v, bias.to(q.dtype))  # (B, windows * heads, M * M, dim / heads)
        out = self.proj(self.reverse(out, inverse, x.shape[2], x.shape[3]))
        return out[:, :, :height, :width]

    def window_layout(
        self, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Position bias, window index and inverse index of an (H, W) map; no indices where it is one window.

        A single window leaves its padding out: the same function on fewer tokens, worth 3 to 10 % at 224 pixels.
        """
        m = self.window_size
        if one_window(height, width, m) and not self.pad_first:
            return self.single_window_bias(height, width), None, None
        shift = effective_shift(height, width, m, self.shift)
        rows = same_region_mask(height, m, shift=shift, mask_padding=self.mask_padding, device=device)
        cols = same_region_mask(width, m, shift=shift, mask_padding=self.mask_padding, device=device)
        bias = self.position_bias(rows, cols)
        if self.pad_first:
            height, width = round_up(height, m), round_up(width, m)
        index = shifted_window_index(height, width, window_size=m, shift=shift, device=device)
        return bias, index, inverse_window_index(height, width, window_size=m, shift=shift, device=device)

    def position_bias(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Relative position bias, -inf between regions: (1, windows * heads, M * M, M * M).

        Args:
            rows, cols: `same_region_mask` of both axes.
        """
        m = self.window_size
        seen = (rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]).reshape(-1, 1, m * m, m * m)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(m * m, m * m, self.num_heads).permute(2, 0, 1)
        return bias.masked_fill(~seen, float("-inf")).reshape(1, -1, m * m, m * m)

    def single_window_bias(self, height: int, width: int) -> Tensor:
        """Relative position bias of a map of at most one window: (1, heads, H * W, H * W)."""
        m = self.window_size
        index = self.relative_position_index.reshape(m, m, m, m)[:height, :width, :height, :width]
        bias = self.relative_position_bias_table[index.flatten()]
        return bias.reshape(height * width, height * width, self.num_heads).permute(2, 0, 1)[None]

    def partition(self, x: Tensor, index: Tensor | None, count: int) -> Tensor:
        """(B, count * dim, H, W) -> (count, B, windows * heads, M * M, dim / heads), the windows taken by `index`."""
        head_dim = x.shape[1] // (count * self.num_heads)
        x = x.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = x.shape[1]
        if index is not None:
            x = x.index_select(1, index)  # shift and partition in one copy
            tokens = self.window_size * self.window_size
        x = x.reshape(x.shape[0], -1, tokens, count, self.num_heads, head_dim)
        return x.permute(3, 0, 1, 4, 2, 5).reshape(count, x.shape[0], -1, tokens, head_dim)

    def reverse(self, windows: Tensor, inverse: Tensor | None, height: int, width: int) -> Tensor:
        """Inverse of `partition`: (B, windows * heads, M * M, dim / heads) -> (B, dim, H, W)."""
        batch, tokens, head_dim = windows.shape[0], windows.shape[2], windows.shape[3]
        x = windows.reshape(batch, -1, self.num_heads, tokens, head_dim).transpose(2, 3)
        x = x.reshape(batch, -1, self.num_heads * head_dim)
        if inverse is not None:
            x = x.index_select(1, inverse)  # (B, H * W, dim)
        return x.reshape(-1, height, width, self.num_heads * head_dim).permute(0, 3, 1, 2)


def relative_position_index(window_size: int, device: Any = None) -> Tensor:
    """Row of the (2M - 1)^2 table for every pair of tokens in a window: (M * M, M * M), query first."""
    position = torch.arange(window_size, device=device)
    offset = position[:, None] - position[None, :] + window_size - 1  # (M, M)
    index = offset[:, None, :, None] * (2 * window_size - 1) + offset[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def pad_map(x: Tensor, multiple: int) -> Tensor:
    """`pad_to_multiple` of a (B, C, H, W) map."""
    return pad_to_multiple(x.permute(0, 2, 3, 1), multiple).permute(0, 3, 1, 2)


# ---- progressive shift: displaced windows as indices (Fig. 2) -------------------------------------------------------


def shift_strides(num_branches: int, window_size: int = 7) -> list[int]:
    """Window displacement of every branch, in pixels the same along both axes.

    Branch 0 is not shifted, 1 and 2 are shifted by (M - 1) // 2 in both directions, further ones by 1, -1 and M - 2:
    the paper's 3, 1 (both in two directions) and 5 for M = 7, where all window borders differ. For smaller windows,
    strides that coincide are replaced by unused ones; then they repeat.
    """
    main = (window_size - 1) // 2
    strides: list[int] = []
    for stride in (0, main, -main, 1, -1, window_size - 2, *range(window_size)):
        if all((stride - other) % window_size for other in strides):
            strides.append(stride)
    return [strides[t % len(strides)] for t in range(num_branches)]


def effective_shift(height: int, width: int, window_size: int, shift: int) -> int:
    """The displacement on an (H, W) map: none where a side is one window or less (code)."""
    if not torch.jit.is_scripting() and (isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)):
        # a graph for all sizes must not branch: 1 // windows is 1 along an axis of one window and 0 along all others
        rows, cols = (round_up(size, window_size) // window_size for size in (height, width))
        return shift * (1 - 1 // rows) * (1 - 1 // cols)
    return shift if min(height, width) > window_size else 0


def shifted_window_index(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Pixel of the flattened map for every token of the shifted windows: (windows * M * M,), pixel 0 on the padding."""
    rows = shifted_axis(height, window_size, shift, device)[:, None]
    cols = shifted_axis(width, window_size, shift, device)
    pixel = (rows * width + cols).masked_fill((rows >= height) | (cols >= width), 0)
    return window_partition(pixel[None, :, :, None], window_size).flatten()


def inverse_window_index(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Token of the shifted windows for every pixel: (height * width,), the inverse of `shifted_window_index`."""
    m = window_size
    rows = wrap(torch.arange(height, device=device) - shift, round_up(height, m))[:, None]
    cols = wrap(torch.arange(width, device=device) - shift, round_up(width, m))
    window = rows // m * (round_up(width, m) // m) + cols // m
    return (window * m * m + rows % m * m + cols % m).flatten()


def same_region_mask(size: int, window_size: int, shift: int, mask_padding: bool, device: torch.device) -> Tensor:
    """Mask of the tokens of each window that may attend to each other along one axis: (windows, M, M) boolean.

    A window that wraps around the map holds two regions that must not attend to each other. Padding is a region of its
    own, unless it may be attended to.
    """
    pixel = shifted_axis(size, window_size, shift, device)
    # the distance a pixel was moved is another one for those that wrapped around
    region = pixel - torch.arange(round_up(size, window_size), device=device)
    if mask_padding:
        region = region.masked_fill(pixel >= size, window_size)  # no distance, since the shift is no multiple of it
    region = region.reshape(-1, window_size)
    return region[:, :, None] == region[:, None, :]


def shifted_axis(size: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """The pixel at every position along one axis of the shifted windows: (round_up(size, M),), >= `size` on padding.

    As `torch.roll` by -shift: windows begin at `shift`, what the displacement pushes out returns at the other end.
    """
    padded = round_up(size, window_size)
    return wrap(torch.arange(padded, device=device) + shift, padded)


def wrap(position: Tensor, size: int) -> Tensor:
    """Positions modulo `size`, for those less than one `size` outside; in the form exporters take with a free size."""
    position = torch.where(position < 0, position + size, position)
    return torch.where(position >= size, position - size, position)


# ---- one branch: window attention and light FFN (LFFN, Eq. 1) -------------------------------------------------------


def bottleneck(
    in_channels: int, hidden: int, out_channels: int, stride: int = 1, bias: bool = False, **dd: Any
) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1 convolutions, each followed by GELU and then BN (code), no GELU after the last.

    The light FFN of a branch, with bias, and the body of an inverted residual, without.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """
    layer = partial(ConvNormAct, bias=bias, order="conv-act-norm", **dd)
    return nn.Sequential(
        layer(in_channels, hidden, 1),
        layer(hidden, hidden, 3, stride=stride, groups=hidden),
        layer(hidden, out_channels, 1, act=None),
    )


class LadderBranch(nn.Module):
    """One branch: window attention and light FFN on its share of the channels, both with a residual (Eq. 1).

    Args:
        ffn: "light" (a bottleneck of width dim * mlp_ratio / 4) or "mlp" (plain, dim * mlp_ratio). With the default
            ratio the light one is dim wide (code); the dim / 4 of Eq. 4 does not give the parameters of Table 4.
        delivered: values come from the branch before.
        delivered_shortcut: a delivered branch also adds its normalised input to the attention output (code).
        attn_options: of `LadderAttention`.

    Shapes: (B, dim, H, W), for a delivered branch with the previous branch's output -> (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        ffn: str = "light",
        delivered: bool = False,
        delivered_shortcut: bool = True,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
        **attn_options: Any,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.shortcut = delivered and delivered_shortcut
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = LadderAttention(dim, num_heads, delivered=delivered, **attn_options, **dd)
        self.norm2 = LayerNorm(dim, **dd)
        if ffn == "light":
            self.ffn = bottleneck(dim, int(dim * mlp_ratio / 4), dim, bias=True, **dd)
        else:
            self.ffn = Mlp(dim, mlp_ratio, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        z = self.norm1(x)
        attended = self.attn(z, value)  # Eq. 1: softmax(Q K^T / sqrt(d)) V, with V = O of the branch before
        if self.shortcut:
            attended = attended + z  # code
        x = x + self.drop_path(attended)  # Eq. 1: ... + I
        return x + self.drop_path(self.ffn(self.norm2(x)))  # Eq. 1: O = LFFN(LN(...)); its residual: code


# ---- pixel-adaptive fusion (PAFM, Fig. 3) ---------------------------------------------------------------------------


class ChannelGate(nn.Module):
    """Sigmoid gate on every channel from two linear layers.

    Per pixel it is the adaptive weight of the PAFM (Fig. 3), from the `pooled` map a squeeze-and-excitation.

    Shapes: (B, dim, H, W) -> (B, dim, H, W).
    """

    def __init__(self, dim: int, pooled: bool, device: Any = None, dtype: Any = None):
        super().__init__()
        self.pooled = pooled
        self.fc1 = Pointwise(dim, dim // 2, device=device, dtype=dtype)
        self.act = nn.ReLU()
        self.fc2 = Pointwise(dim // 2, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True) if self.pooled else x
        return x * self.fc2(self.act(self.fc1(gate))).sigmoid()


class Fusion(nn.Module):
    """Pixel-adaptive fusion of the branches (PAFM, Fig. 3) and the alternatives of Table 14.

    Args:
        kind: "pafm" gates per pixel and mixes, "fc" only mixes, "aw" only gates, "se" gates by the spatial mean and
            mixes, "concat" does neither. Mixing is a linear layer with a residual (code).

    Shapes: (B, dim, H, W) -> (B, dim, H, W).
    """

    def __init__(self, dim: int, kind: str = "pafm", device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.gate = ChannelGate(dim, kind == "se", **dd) if kind in ("pafm", "aw", "se") else nn.Identity()
        self.mix = Pointwise(dim, dim, **dd) if kind in ("pafm", "fc", "se") else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(x)
        return x if self.mix is None else x + self.mix(x)


# ---- ladder self-attention block (Eq. 1, Fig. 1) --------------------------------------------------------------------


class LadderBlock(nn.Module):
    """Ladder self-attention block: every branch has its share of the channels, then all are fused (Eq. 1, Fig. 1).

    The block has no residual of its own: each branch has.

    Args:
        shifts: window displacement of each branch; there are as many branches as entries.
        num_heads: attention heads of each branch.
        feature_delivery: branches after the first take the output of the one before as values.
        fusion: of `Fusion`.
        branch_options: of `LadderBranch`.

    Shapes: (B, dim, H, W) -> (B, dim, H, W).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        shifts: Sequence[int] = (0, 3, -3),
        feature_delivery: bool = True,
        fusion: str = "pafm",
        device: Any = None,
        dtype: Any = None,
        **branch_options: Any,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_branches = len(shifts)
        self.feature_delivery = feature_delivery
        self.branches = nn.ModuleList(
            LadderBranch(
                dim // len(shifts),
                num_heads,
                shift=shift,
                delivered=feature_delivery and t > 0,
                **branch_options,
                **dd,
            )
            for t, shift in enumerate(shifts)
        )
        self.fusion = Fusion(dim, fusion, **dd)

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.chunk(self.num_branches, dim=1)  # I_t
        value: Tensor | None = None
        outputs: list[Tensor] = []
        for t, branch in enumerate(self.branches):
            out = branch(inputs[t], value)  # O_t
            if self.feature_delivery:
                value = out  # the finished output, neither normalised nor projected
            outputs.append(out)
        return self.fusion(torch.cat(outputs, dim=1))


# ---- convolutional stages and down-sampling (Sec. 3.3, Table 3) -----------------------------------------------------


class InvertedResidual(nn.Module):
    """MobileNetV2 block with squeeze-and-excitation on its output channels, inside the residual.

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expand_ratio: float = 4.0,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = bottleneck(in_channels, int(in_channels * expand_ratio), out_channels, stride, **dd)
        self.se = ChannelGate(out_channels, pooled=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.conv(x))
        return x + y if self.residual else y


class PatchMerging(nn.Module):
    """Concatenate each 2x2 neighbourhood, normalise, reduce (Table 3 says 2x2 convolution; its counts are these).

    Shapes: (B, in_channels, H, W) -> (B, out_channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, in_channels: int, out_channels: int, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = LayerNorm(4 * in_channels, **dd)
        self.reduction = Pointwise(4 * in_channels, out_channels, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 2)
        # column by column, as the authors' weights have it
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x.permute(0, 3, 1, 2)))


# ---- network (Sec. 3.3, Table 3) ------------------------------------------------------------------------------------


class PSLT(Pyramid):
    """Two convolutional and two ladder stages.

    Args:
        embed_dims: widths of the stages; the stem has half the first.
        depths: blocks of the stages; a convolutional stage's strided first block is one of them.
        num_heads: attention heads **per branch**; 0 makes a convolutional stage.
        mlp_ratios: expansion of inverted residuals and of the "mlp" FFN; the "light" FFN expands by a quarter of it.
        window_size: side of the attention windows.
        num_branches: 1, 2, 3, 4 or 6 branches in a ladder block (Table 11).
        shift: displace the windows of the later branches (Table 12).
        feature_delivery: hand each branch's output to the next one as values (Table 12).
        ffn: "light" or "mlp" (Table 13).
        fusion: "pafm", "fc", "aw", "concat" or "se" (Table 14).
        delivered_shortcut: a delivered branch adds its normalised input to its attention output.
        mask_padding: False lets windows attend to their zero padding, as the authors' detection backbone does.
        pad_mode: "tight", or "paper" for projecting padded maps: the same values while padding is masked.
        stem_stride, stage1_stride: 1 or 2, for small images (Table 5).
        drop_path_rate: of the last ladder block, rising linearly over the ladder blocks; branches draw on their own.
        out_norms: a LayerNorm on every pyramid output.
    """

    no_decay = ("relative_position_bias_table",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (72, 144, 288, 576),
        depths: Sequence[int] = (3, 3, 10, 3),
        num_heads: Sequence[int] = (0, 0, 4, 8),
        mlp_ratios: float | Sequence[float] = 4.0,
        window_size: int = 7,
        num_branches: int = 3,
        shift: bool = True,
        feature_delivery: bool = True,
        ffn: str = "light",
        fusion: str = "pafm",
        delivered_shortcut: bool = True,
        mask_padding: bool = True,
        pad_mode: str = "tight",
        stem_stride: int = 2,
        stage1_stride: int = 2,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        heads, ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        check_choice("num_branches", num_branches, (1, 2, 3, 4, 6))
        check_choice("ffn", ffn, ("light", "mlp"))
        check_choice("fusion", fusion, ("pafm", "fc", "aw", "concat", "se"))
        check_choice("pad_mode", pad_mode, ("tight", "paper"))
        check_choice("stem_stride", stem_stride, (1, 2))
        check_choice("stage1_stride", stage1_stride, (1, 2))
        if window_size < 2:
            raise ValueError(f"window_size={window_size!r} is not allowed; give 2 or more pixels")
        check_divides("embed_dims[0]", dims[0], 4, "the stem's divisor")
        for i in range(4):
            if depths[i] < 1:
                raise ValueError(f"depths={depths!r} is not allowed; give every stage 1 block or more")
            if ratios[i] <= 0:
                raise ValueError(f"mlp_ratios={mlp_ratios!r} is not allowed; give ratios above 0")
            if heads[i]:
                meaning = f"num_branches * num_heads[{i}]"
                check_divides(f"embed_dims[{i}]", dims[i], num_branches * heads[i], meaning)
        first = stem_stride * stage1_stride
        super().__init__(
            dims,
            num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            reductions=[first * 2**i for i in range(4)],
        )

        # stem: 3x3 convolutions, each followed by GELU and then BN (code)
        stem, width = partial(ConvNormAct, order="conv-act-norm", **dd), dims[0] // 2
        self.stem = nn.Sequential(
            stem(in_chans, width // 2, stride=stem_stride), stem(width // 2, width), stem(width, width)
        )

        ladder = partial(
            LadderBlock,
            shifts=shift_strides(num_branches, window_size) if shift else [0] * num_branches,
            feature_delivery=feature_delivery,
            fusion=fusion,
            ffn=ffn,
            delivered_shortcut=delivered_shortcut,
            window_size=window_size,
            mask_padding=mask_padding,
            pad_mode=pad_mode,
            **dd,
        )
        rates = drop_path_schedule(drop_path_rate, [depth if h else 0 for depth, h in zip(depths, heads, strict=True)])
        stages = []
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios, strict=True)):
            if i > 0 and heads[i - 1]:
                downsample = PatchMerging(dims[i - 1], dim, **dd)
            else:
                downsample = InvertedResidual(width, dim, 2 if i else stage1_stride, ratio, **dd)
            if heads[i]:
                blocks = [ladder(dim, heads[i], mlp_ratio=ratio, drop_path=rate) for rate in rates[i]]
            else:  # the down-sampling block is the first of the stage
                blocks = [InvertedResidual(dim, dim, 1, ratio, **dd) for _ in range(depth - 1)]
            stages.append(Stage(blocks, downsample))
            width = dim
        self.stages = nn.Sequential(*stages)
        # for reading the authors' files, also once stages are pruned
        self.residuals = [name for name, module in self.named_modules() if isinstance(module, InvertedResidual)]
        self.ladder_stages = [i for i in range(4) if heads[i]]
        norm = partial(LayerNorm, **dd)
        self.finish(norm(dims[-1]), global_pool, norm if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers truncated normal 0.02; convolutions and norms keep the framework's defaults (code)."""
        if isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ---- checkpoints ----------------------------------------------------------------------------------------------------

# index in the authors' nn.Sequential -> our layer
_CONV = {"0": "0.conv", "2": "0.norm", "3": "1.conv", "5": "1.norm", "6": "2.conv", "7": "2.norm", "8": "2.norm"}
_LADDER = {"blocks": "branches", "se": "fusion.gate", "pointconv": "fusion.mix"}
# buffers of theirs that are computed here
_COMPUTED = re.compile(r"^layers\.\d+\.blocks\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoints unchanged; the authors' (classification or detection backbone) under our names."""
    state_dict = encoder_of(unwrap(state_dict, model), "patch_embed")
    if not any(key.startswith("patch_embed.") for key in state_dict):
        return state_dict
    entries = []
    for key, value in state_dict.items():
        if _COMPUTED.search(key):
            continue
        linear = value.ndim == 2 and not key.endswith("_table") and not key.startswith("head.")
        entries.append((key, _our_name(key, cast(PSLT, model)), value[:, :, None, None] if linear else value))
    return renamed(entries)


def _our_name(key: str, model: PSLT) -> str:
    """Our name of an authors' entry; an entry of a layer that we do not have keeps its name."""

    def named(names: list[str], match: re.Match[str]) -> str:
        index = int(match[1])
        return names[index] if index < len(names) else match[0]

    ladders = [f"stages.{i}" for i in model.ladder_stages]
    downs = [f"stages.{i + 1}.downsample" for i in model.ladder_stages]
    key = re.sub(r"\b(conv|proj)\.(\d)\.", lambda m: f"{m[1]}.{_CONV.get(m[2], m[2])}.", key)
    key = re.sub(r"^patch_embed\.proj\.", "stem.", key)
    key = re.sub(r"^conv_layers\.(\d+)(?=\.)", partial(named, model.residuals), key)
    key = re.sub(r"^(layers\.\d+\.blocks\.\d+)\.(blocks|se|pointconv)\.", lambda m: f"{m[1]}.{_LADDER[m[2]]}.", key)
    key = re.sub(r"^layers\.(\d+)\.downsample(?=\.)", partial(named, downs), key)
    key = re.sub(r"^layers\.(\d+)(?=\.blocks\.)", partial(named, ladders), key)
    return key.replace(".mlp.conv.", ".ffn.").replace(".attn.kv.", ".attn.qkv.")


# ---- variants (Table 4) ---------------------------------------------------------------------------------------------


default_cfgs = generate_default_cfgs(
    {name: default_cfg(crop_pct=0.875, first_conv="stem.0.conv") for name in ("pslt_tiny", "pslt", "pslt_large")}
)


def _pslt(variant: str, stem_width: int, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    options = {"embed_dims": tuple(stem_width * 2**i for i in range(1, 5))}
    return build(PSLT, variant, pretrained, options, overrides=overrides, filter_fn=checkpoint_filter_fn)


@register_model
def pslt_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PSLT-Tiny: 4.3 M parameters (Table 4; widths from the code)."""
    return _pslt("pslt_tiny", 24, pretrained, kwargs)


@register_model
def pslt(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PSLT: 9.2 M parameters (Tables 3 and 4)."""
    return _pslt("pslt", 36, pretrained, kwargs)


@register_model
def pslt_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PSLT-Large: 16.1 M parameters, reported 16.0 (Table 4; widths from the code)."""
    return _pslt("pslt_large", 48, pretrained, kwargs)
