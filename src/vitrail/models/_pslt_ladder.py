"""Ladder self-attention of PSLT (Eq. 1, Fig. 1): branches of shifted windows, each building on the one before."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from ..layers import (
    ConvNormAct,
    Mlp,
    Pointwise,
    attention,
    one_window,
    pad_to_multiple,
    round_up,
)
from ..layers.inference import Kept, Remembering, become
from ..layers.tracing import notrace_module, unscripted
from ._pslt_windows import relative_position_index, same_segment, shift_on, window_slots, window_source

LayerNorm = partial(LayerNorm2d, eps=1e-5)


def pad_map(x: Tensor, multiple: int) -> Tensor:
    """`pad_to_multiple` of a (B, C, H, W) map."""
    return pad_to_multiple(x.permute(0, 2, 3, 1), multiple).permute(0, 3, 1, 2)


@notrace_module
class LadderAttention(nn.Module):
    """Window attention of one branch; a delivered branch takes its values from the branch before it (Eq. 1).

    Args:
        dim: channels of the branch.
        num_heads: attention heads of the branch.
        window_size: side M of the windows.
        shift: displacement of the windows, off on maps with a side of M or less (code).
        delivered: project queries and keys only, the values are given.
        mask_padding: let no query see the padding of the last windows.
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
        # a module that was on the meta device is whole again after its weights are loaded
        super()._load_from_state_dict(*args, **options)
        self.init_non_persistent_buffers()

    def geometry(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Position bias, pixel of every place of the windows and place of every pixel, of an (H, W) map."""
        m = self.window_size
        shift = shift_on(height, width, m, self.shift)
        rows = same_segment(height, m, shift, self.mask_padding, device)
        cols = same_segment(width, m, shift, self.mask_padding, device)
        if self.pad_first:
            height, width = round_up(height, m), round_up(width, m)
        source = window_source(height, width, m, shift, device)
        return self.position_bias(rows, cols), source, window_slots(height, width, m, shift, device)

    def position_bias(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Relative position bias, -inf between segments: (1, windows * heads, M * M, M * M).

        Args:
            rows, cols: `same_segment` of both axes.
        """
        m = self.window_size
        seen = (rows[:, None, :, None, :, None] & cols[None, :, None, :, None, :]).reshape(-1, 1, m * m, m * m)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(m * m, m * m, self.num_heads).permute(2, 0, 1)
        return bias.masked_fill(~seen, float("-inf")).reshape(1, -1, m * m, m * m)

    def partition(self, x: Tensor, source: Tensor, count: int) -> Tensor:
        """(B, count * dim, H, W) -> (count, B, windows * heads, M * M, dim / heads), pixels taken by `source`."""
        batch, tokens = x.shape[0], self.window_size * self.window_size
        head_dim = x.shape[1] // (count * self.num_heads)
        x = x.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, source)  # shift and partition in one copy
        x = x.reshape(batch, -1, tokens, count, self.num_heads, head_dim)
        return x.permute(3, 0, 1, 4, 2, 5).reshape(count, batch, -1, tokens, head_dim)

    def bias_of_whole(self, height: int, width: int) -> Tensor:
        """Position bias of a map of one window at most: (1, heads, H * W, H * W), the central part of the table."""
        m = self.window_size
        index = self.relative_position_index.reshape(m, m, m, m)[:height, :width, :height, :width]
        bias = self.relative_position_bias_table[index.flatten()]
        return bias.reshape(height * width, height * width, self.num_heads).permute(2, 0, 1)[None]

    def attend_whole(self, x: Tensor, value: Tensor | None) -> Tensor:
        """Attention on a map of one window at most, without its padding: the same function on fewer tokens."""
        height, width = x.shape[2], x.shape[3]
        bias = self.bias_of_whole(height, width)
        heads = [self.num_heads, x.shape[1] // self.num_heads]
        qkv = self.qkv(x).permute(0, 2, 3, 1).flatten(1, 2)
        parts = qkv.unflatten(2, [qkv.shape[2] // x.shape[1], heads[0], heads[1]]).permute(
            2, 0, 3, 1, 4
        )  # (3 or 2, B, h, HW, d)
        if value is None:
            v = parts[2]
        else:
            v = value.to(qkv.dtype).permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, heads).transpose(1, 2)
        out = attention(parts[0], parts[1], v, bias.to(qkv.dtype))  # (B, heads, H * W, d)
        out = out.transpose(1, 2).flatten(2).unflatten(1, [height, width])
        return self.proj(out.permute(0, 3, 1, 2))

    def forward(self, x: Tensor, value: Tensor | None = None) -> Tensor:
        height, width, m = x.shape[2], x.shape[3], self.window_size
        if self.mask_padding and not self.pad_first and one_window(height, width, m):
            return self.attend_whole(x, value)
        bias, source, slots = self.geometry(height, width, x.device)
        if self.pad_first:
            x = pad_map(x, m)
            value = value if value is None else pad_map(value, m)
        map_height, map_width = x.shape[2], x.shape[3]

        qkv = self.qkv(x)
        if value is None:
            q, k, v = self.partition(qkv, source, 3).unbind(0)
        else:
            q, k = self.partition(qkv, source, 2).unbind(0)
            v = self.partition(value.to(qkv.dtype), source, 1)[0]
        out = attention(q, k, v, bias.to(q.dtype))  # (B, windows * heads, M * M, dim / heads)

        out = out.reshape(x.shape[0], -1, self.num_heads, m * m, q.shape[3]).transpose(2, 3)
        out = out.reshape(x.shape[0], -1, x.shape[1]).index_select(1, slots)  # (B, H * W, dim)
        out = self.proj(out.reshape(-1, map_height, map_width, x.shape[1]).permute(0, 3, 1, 2))
        return out[:, :, :height, :width]

    @unscripted
    def inference_form(self) -> nn.Module:
        """Itself, keeping bias and indices of the map sizes it meets."""
        return become(self, KeptLadderAttention, kept=Kept())


@notrace_module
class KeptLadderAttention(Remembering, LadderAttention):
    """`LadderAttention` for inference: bias and indices are made once a map size."""

    def geometry(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        make = partial(LadderAttention.geometry, self, height, width, device)
        return make() if torch.compiler.is_compiling() else self.kept.get((height, width), make)

    def bias_of_whole(self, height: int, width: int) -> Tensor:
        make = partial(LadderAttention.bias_of_whole, self, height, width)
        return make() if torch.compiler.is_compiling() else self.kept.get((height, width), make)


def bottleneck(
    in_channels: int, hidden: int, out_channels: int, stride: int = 1, bias: bool = False, **dd: Any
) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1 convolutions, each followed by GELU and then BN (code), no GELU after the last."""
    layer = partial(ConvNormAct, bias=bias, order="conv-act-norm", **dd)
    return nn.Sequential(
        layer(in_channels, hidden, 1),
        layer(hidden, hidden, 3, stride=stride, groups=hidden),
        layer(hidden, out_channels, 1, act=None),
    )


class LadderBranch(nn.Module):
    """One rung: window attention and light FFN on a part of the channels, both with a residual (Eq. 1).

    Args:
        ffn: "light" (a bottleneck of width dim * mlp_ratio / 4) or "mlp" (plain, dim * mlp_ratio).
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
        attended = self.attn(z, value)
        if self.shortcut:
            attended = attended + z
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.ffn(self.norm2(x)))


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


class LadderBlock(nn.Module):
    """Ladder self-attention block: the channels climb branch by branch, then fuse (Eq. 1, Fig. 1).

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
        parts = x.chunk(self.num_branches, dim=1)
        value: Tensor | None = None
        outputs: list[Tensor] = []
        for t, branch in enumerate(self.branches):
            out = branch(parts[t], value)
            if self.feature_delivery:
                value = out  # the finished output, neither normalised nor projected
            outputs.append(out)
        return self.fusion(torch.cat(outputs, dim=1))
