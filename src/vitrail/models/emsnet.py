"""EMSNet: efficient multi-scale spatial interactions.

Xuan-Thuy Vo, "Efficient Vision Transformers with Multi-Scale and Partial Attentions for Object Recognition", PhD
dissertation, University of Ulsan, 2023, chapter 3; equation and table numbers below are the thesis'.

A block's mixer slices channels: one part to a static branch (convolutions, Eq. 3.1-3.5), the other to a dynamic branch
(self-attention, Eq. 3.6-3.8). Every sub-branch pools to its own token scale, mixes the sparse tokens, and spreads them
back with a transposed depthwise convolution.

The thesis' names: PE is `PatchTokens`, Prop `Propagate`, whitening `Whiten`, Coord the layers `row` and `col` of
`StaticTokens`, C-MHSA `ConvAttention`, G-MHSA `GlobalAttention`.

No code of the authors is public. What the text leaves open (expansion factors, kernel sizes, head widths, the two 1x1
layers around the mixer, the equal split of channels) is fitted to the reported parameters and FLOPs: see the comments.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    ConvNormAct,
    Mlp,
    Pointwise,
    attention,
    blocks_per_stage,
    check_choice,
    check_divides,
    fold3x3,
    per_stage,
    unfold3x3,
)
from ..layers.tracing import notrace_module
from .checkpoints import encoder_of, renamed, unwrap
from .pyramid import Pyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["EMSNet", "checkpoint_filter_fn", "emsnet_tiny", "emsnet_xtiny", "emsnet_xtiny_c128", "emsnet_xxtiny"]

STATIC_OPS = ("whiten", "dw", "pe2", "pe4", "gate")
DYNAMIC_OPS = ("cmhsa", "gmhsa")
NORMS = {"bn": nn.BatchNorm2d, "gn": partial(nn.GroupNorm, 1), "ln": partial(LayerNorm2d, eps=1e-5)}

# ---- tokens of a scale: pooling, and back to pixels (Sec. 3.3.2, 3.3.3) --------------------------------------------


def depthwise(dim: int, kernel: tuple[int, int], stride: int = 1, device: Any = None, dtype: Any = None) -> nn.Conv2d:
    """Depthwise convolution with "same" zero padding, without bias."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(
        dim, dim, kernel_size=kernel, stride=stride, padding=padding, groups=dim, bias=False, device=device, dtype=dtype
    )


class PatchTokens(nn.Module):
    """PE: one token for each p x p patch: pooling, 1x1 convolution, BatchNorm (Sections 3.3.2 and 3.3.3).

    Pooling rounds sizes up and its last windows hold valid pixels only, so every pixel has a token and no token is
    made of padding alone.

    Shapes: (B, in_dim, H, W) -> (B, dim, ceil(H / p), ceil(W / p)).
    """

    def __init__(self, in_dim: int, dim: int, patch_size: int, pool: str, device: Any = None, dtype: Any = None):
        super().__init__()
        if pool == "max":
            self.pool: nn.Module = nn.MaxPool2d(patch_size, patch_size, ceil_mode=True)
        else:
            self.pool = nn.AvgPool2d(patch_size, patch_size, ceil_mode=True, count_include_pad=False)
        self.conv = Pointwise(in_dim, dim, bias=False, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.pool(x)))


class Propagate(nn.Module):
    """Prop: spread every token over the p x p pixels it was pooled from, by a transposed depthwise convolution.

    Output channel g reads the `dim / out_dim` consecutive token channels of its group only. Kernel and stride are
    equal, so it is one small matrix product a channel: several times faster than the convolution's own kernels.

    Shapes: (B, dim, ceil(H / p), ceil(W / p)) -> (B, out_dim, H, W).
    """

    def __init__(self, dim: int, out_dim: int, patch_size: int, device: Any = None, dtype: Any = None):
        super().__init__()
        self.expand = dim // out_dim
        self.weight = nn.Parameter(torch.empty(dim, 1, patch_size, patch_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every pixel starts as the mean of its group in the token that covers it: nearest-neighbour spreading."""
        nn.init.constant_(self.weight, 1.0 / self.expand)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, _, rows, cols = x.shape
        p = self.weight.shape[2]
        tokens = x.transpose(0, 1).reshape(-1, self.expand, batch * rows * cols).transpose(1, 2)
        # (out_dim, B h w, expand) @ (out_dim, expand, p p)
        x = torch.baddbmm(self.bias[:, None, None], tokens, self.weight.reshape(-1, self.expand, p * p))
        x = x.reshape(-1, batch, rows, cols, p, p).permute(1, 2, 4, 3, 5, 0)
        return x.reshape(batch, rows * p, cols * p, -1)[:, :height, :width].permute(0, 3, 1, 2)


# ---- static branch (Sec. 3.3.2, Eq. 3.1-3.5) -----------------------------------------------------------------------


class Whiten(Pointwise):
    """1x1 convolution whose output has its mean removed (Eq. 3.1).

    Args:
        mode: "channel" (Eq. 3.1), "spatial" (the mean over pixels, as in Eq. 3.12), "none" (nothing is removed).
    """

    def __init__(self, dim: int, mode: str = "channel", device: Any = None, dtype: Any = None):
        super().__init__(dim, dim, bias=False, device=device, dtype=dtype)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.effective_weight())
        return x - x.mean((2, 3), keepdim=True) if self.mode == "spatial" else x

    def effective_weight(self) -> Tensor:
        """The weight without the mean over its output channels for "channel": exact, and cheaper than from a map."""
        return self.weight - self.weight.mean(0, keepdim=True) if self.mode == "channel" else self.weight


class StaticTokens(nn.Module):
    """Prop(Coord(PE(x))) of one token scale of the static branch (Eq. 3.2, 3.3, 3.11).

    Coord is a depthwise 1 x k, then k x 1 convolution: a long reach at 2 k multiplications a token.
    """

    def __init__(self, dim: int, patch_size: int, expand: int, kernel: int, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.embed = PatchTokens(dim, expand * dim, patch_size, "max", **dd)
        self.row = depthwise(expand * dim, (1, kernel), **dd)
        self.col = depthwise(expand * dim, (kernel, 1), **dd)
        self.prop = Propagate(expand * dim, dim, patch_size, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.prop(self.col(self.row(self.embed(x))), x.shape[2], x.shape[3])


class StaticBranch(nn.Module):
    """Multi-scale convolution gate (Section 3.3.2, Eq. 3.1-3.5); (B, dim, H, W) -> (B, dim, H, W).

    Args:
        ops: which of `STATIC_OPS` to use; a missing one passes its input on.
        ratios: shares of the p1 slice, the untouched slice, and the p2 slice.
        split: False gives every sub-branch all channels and adds the results.
    """

    def __init__(
        self,
        dim: int,
        ops: Sequence[str],
        ratios: Sequence[float],
        whiten: str,
        local_kernel: int,
        coord_kernel: int,
        expand: int,
        patch_sizes: Sequence[int],
        fusion: bool,
        split: bool,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        none = nn.Identity()
        self.split = split
        self.gate = "gate" in ops
        if split:
            first, last = slice_width(dim, ratios, 0), slice_width(dim, ratios, 2)
            self.widths = [first, dim - first - last, last]
        else:
            first, last, expand = dim, dim, 1
            self.widths = [dim]
        self.use_p2, self.use_p4 = "pe2" in ops and first > 0, "pe4" in ops and last > 0
        self.whiten = Whiten(dim, whiten, **dd) if "whiten" in ops else none
        self.dwconv = depthwise(dim, (local_kernel, local_kernel), **dd) if "dw" in ops else none
        p2, p4 = patch_sizes[0], patch_sizes[1]
        self.branch_p2 = StaticTokens(first, p2, expand, coord_kernel, **dd) if self.use_p2 else none
        self.branch_p4 = StaticTokens(last, p4, expand, coord_kernel, **dd) if self.use_p4 else none
        # not `fuse`: timm calls whatever a module has under that name when it reparameterises a network
        self.fusion = Pointwise(dim, dim, bias=False, **dd) if self.gate and fusion else none
        self.value = Pointwise(dim, dim, bias=False, **dd) if self.gate else none

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.dwconv(self.whiten(x))  # X_w (Eq. 3.1), X_m
        if self.split:
            a, b, c = mixed.split(self.widths, 1)
            mixed = torch.cat([self.branch_p2(a), b, self.branch_p4(c)], 1)  # Eq. 3.2, 3.3: Y_1 and Y_2
        else:
            y = mixed
            if self.use_p2:
                y = y + self.branch_p2(mixed)
            if self.use_p4:
                y = y + self.branch_p4(mixed)
            mixed = y
        if not self.gate:
            return mixed
        return self.value(x) * self.fusion(mixed).sigmoid()  # Eq. 3.4, 3.5: the value is of the un-whitened input


def slice_width(dim: int, ratios: Sequence[float], index: int) -> int:
    """Channels of one slice of the static branch; `ValueError` unless its share of `dim` is a whole number."""
    width = round(dim * ratios[index])
    if abs(width - dim * ratios[index]) > 1e-6:
        raise ValueError(
            f"branch_ratios={tuple(ratios)!r} cut {dim} channels of the static branch into {dim * ratios[index]:g}; "
            "choose shares (or embed_dims, static_ratio) that give whole numbers"
        )
    return width


# ---- dynamic branch (Sec. 3.3.3, Eq. 3.6-3.10) ---------------------------------------------------------------------


class ConvAttention(nn.Module):
    """C-MHSA: 3x3 attention predicted from a stride-2 map (Eq. 3.9, 3.10); (B, dim, h, w) -> (B, dim, h, w).

    Each window of the stride-2 grid predicts how its nine positions attend to each other; overlaps are added.

    Args:
        mask_border: positions outside the map get no attention; the thesis' construction attends to their zeros.
    """

    def __init__(self, dim: int, num_heads: int, mask_border: bool = False, device: Any = None, dtype: Any = None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_divides("width of C-MHSA", dim, num_heads, "its number of heads")
        self.num_heads = num_heads
        self.mask_border = mask_border
        self.reduce = depthwise(dim, (3, 3), 2, **dd)
        self.logits = Pointwise(dim, 81 * num_heads, **dd)
        self.value = Pointwise(dim, dim, bias=False, **dd)
        self.proj = Pointwise(dim, dim, **dd)

    def attention_map(self, x: Tensor) -> Tensor:
        """Softmax weights (B, heads, 9 queries, 9 keys, L) of the L = ceil(h / 2) * ceil(w / 2) windows (Eq. 3.9)."""
        logits = self.logits(self.reduced(x)).flatten(2).unflatten(1, (self.num_heads, 9, 9))
        if self.mask_border:
            inside = unfold3x3(torch.ones_like(x[:1, :1]).permute(0, 2, 3, 1)).flatten(1, 2)  # (1, L, 9, 1)
            logits = logits.masked_fill(inside.squeeze(3).transpose(1, 2) == 0, float("-inf"))
        return logits.softmax(3)

    def reduced(self, x: Tensor) -> Tensor:
        """The stride-2 map (B, dim, ceil(h / 2), ceil(w / 2))."""
        if self.training and x.shape[2:] == (1, 1):
            # of one pixel the stride changes nothing; but with it, oneDNN's bf16 gradients of the kernel's other places
            # are whatever was in memory
            conv = self.reduce
            return F.conv2d(x, conv.weight, conv.bias, padding=(1, 1), groups=conv.groups)
        return self.reduce(x)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        attn = self.attention_map(x).permute(0, 4, 1, 2, 3)  # (B, L, heads, 9, 9)
        # the value layer has no bias, so it commutes with unfolding: 4/9 of the multiplications (Eq. 3.10)
        v = unfold3x3(self.value(x).permute(0, 2, 3, 1))  # (B, h2, w2, 9, dim)
        rows, cols = v.shape[1], v.shape[2]
        v = v.flatten(1, 2).unflatten(3, (self.num_heads, dim // self.num_heads)).transpose(2, 3)
        z = (attn @ v).transpose(2, 3).reshape(batch, rows, cols, 9, dim)  # Eq. 3.10: nine outputs of each window
        return self.proj(fold3x3(z, height, width).permute(0, 3, 1, 2))


class GlobalAttention(nn.Module):
    """G-MHSA: softmax attention over all tokens, without position encoding (Eq. 3.6); (B, dim, h, w) -> same."""

    def __init__(self, dim: int, num_heads: int, device: Any = None, dtype: Any = None):
        super().__init__()
        check_divides("width of G-MHSA", dim, num_heads, "its number of heads")
        self.num_heads = num_heads
        self.qkv = Pointwise(dim, 3 * dim, bias=False, device=device, dtype=dtype)
        self.proj = Pointwise(dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        qkv = self.qkv(x).permute(0, 2, 3, 1).reshape(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, tokens, d)
        out = attention(q, k, v).transpose(1, 2).reshape(batch, height, width, dim)
        return self.proj(out.permute(0, 3, 1, 2))


class DynamicTokens(nn.Module):
    """Prop(attention(PE(x))) of one token scale of the dynamic branch (Eq. 3.6, 3.7)."""

    def __init__(
        self,
        dim: int,
        patch_size: int,
        expand: int,
        attn: Callable[[int], nn.Module],
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.embed = PatchTokens(dim, expand * dim, patch_size, "avg", device=device, dtype=dtype)
        self.attn = attn(expand * dim)
        self.prop = Propagate(expand * dim, dim, patch_size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.prop(self.attn(self.embed(x)), x.shape[2], x.shape[3])


class DynamicBranch(nn.Module):
    """Multi-scale self-attention (Section 3.3.3, Eq. 3.6-3.8); (B, dim, H, W) -> (B, dim, H, W).

    Args:
        ops: which of `DYNAMIC_OPS` to use; a single one takes all channels.
        head_dim: width of a head of C-MHSA; G-MHSA, on half its width by default, gets as many heads.
        split: False gives both all channels and adds the results.
    """

    def __init__(
        self,
        dim: int,
        ops: Sequence[str],
        patch_sizes: Sequence[int],
        cmhsa_expand: int,
        gmhsa_expand: int,
        head_dim: int,
        mask_border: bool,
        fusion: bool,
        split: bool,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.split = split
        self.use_local, self.use_global = "cmhsa" in ops, "gmhsa" in ops
        width = dim
        if split and self.use_local and self.use_global:
            check_divides("width of the dynamic branch", dim, 2, "its number of attentions")
            width = dim // 2
        if not split:
            cmhsa_expand = gmhsa_expand = 1
        # head widths are fitted; without channel splitting both have as many heads as the default C-MHSA
        local_heads = max(1, cmhsa_expand * width // (head_dim if split else 2 * head_dim))
        global_heads = max(1, 2 * gmhsa_expand * width // (head_dim if split else 4 * head_dim))
        local = partial(ConvAttention, num_heads=local_heads, mask_border=mask_border, **dd)
        glob = partial(GlobalAttention, num_heads=global_heads, **dd)
        none = nn.Identity()
        self.local = DynamicTokens(width, patch_sizes[0], cmhsa_expand, local, **dd) if self.use_local else none
        self.glob = DynamicTokens(width, patch_sizes[1], gmhsa_expand, glob, **dd) if self.use_global else none
        self.fusion = Pointwise(dim, dim, bias=False, **dd) if fusion else none

    def forward(self, x: Tensor) -> Tensor:
        if self.use_local and self.use_global:
            if self.split:
                d1, d2 = x.chunk(2, 1)
                x = torch.cat([self.local(d1), self.glob(d2)], 1)  # Eq. 3.7, 3.6: Y_d1 and Y_d2
            else:
                x = self.local(x) + self.glob(x)
        elif self.use_local:
            x = self.local(x)
        else:
            x = self.glob(x)
        return self.fusion(x)  # Eq. 3.8


# ---- mixer: both branches ------------------------------------------------------------------------------------------


@notrace_module
class Mixer(nn.Module):
    """Static and dynamic branch each on its slice of the channels; (B, dim, H, W) -> (B, dim, H, W).

    A branch may be missing; without both the mixer is the identity (the baseline of Tables 3.5 and 3.9).
    """

    def __init__(self, static: nn.Module | None, dynamic: nn.Module | None, widths: Sequence[int], split: bool):
        super().__init__()
        self.use_static, self.use_dynamic = static is not None, dynamic is not None
        self.widths = list(widths)
        self.split = split
        self.static = static if static is not None else nn.Identity()
        self.dynamic = dynamic if dynamic is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if not (self.use_static and self.use_dynamic):
            return self.dynamic(self.static(x))
        if not self.split:
            return self.static(x) + self.dynamic(x)
        s, d = x.split(self.widths, 1)  # X_s, X_d
        return torch.cat([self.static(s), self.dynamic(d)], 1)


# ---- block ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Spatial mixing, then channel mixing, each with a residual; (B, dim, H, W) -> (B, dim, H, W).

    The two 1x1 layers around the mixer are not in the text: the reported baseline is reached only with them.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float,
        norm: str,
        layer_scale_init: float | None,
        drop_path: float,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale_init is None else LayerScale2d(dim, layer_scale_init, **dd)

        self.norm1 = NORMS[norm](dim, **dd)
        self.proj_in = Pointwise(dim, dim, bias=False, **dd)
        self.act = nn.GELU()
        self.mixer = mixer
        self.proj_out = Pointwise(dim, dim, bias=False, **dd)
        self.ls1 = scale()
        self.norm2 = NORMS[norm](dim, **dd)
        self.mlp = Mlp(dim, mlp_ratio, bias=False, **dd)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.act(self.proj_in(self.norm1(x))))
        x = x + self.drop_path(self.ls1(self.proj_out(y)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


# ---- stem (Sec. 3.3.1) ---------------------------------------------------------------------------------------------


def stem(in_chans: int, dim: int, device: Any = None, dtype: Any = None) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2 (Section 3.3.1); (B, in_chans, H, W) -> (B, dim, ceil(H / 4), ceil(W / 4))."""
    dd = {"device": device, "dtype": dtype}
    layers = nn.Sequential()
    layers.add_module("conv1", nn.Conv2d(in_chans, dim, kernel_size=3, stride=2, padding=1, bias=False, **dd))
    layers.add_module("norm1", nn.BatchNorm2d(dim, **dd))
    layers.add_module("act", nn.GELU())
    layers.add_module("conv2", nn.Conv2d(dim, dim, kernel_size=3, stride=2, padding=1, bias=False, **dd))
    layers.add_module("norm2", nn.BatchNorm2d(dim, **dd))
    return layers


# ---- network (Table 3.1) -------------------------------------------------------------------------------------------


class EMSNet(Pyramid):
    """EMSNet (thesis chapter 3).

    Args:
        embed_dims, depths, mlp_ratios: widths, blocks and MLP expansions of the four stages (Table 3.1).
        static_ratio: share of the channels the static branch takes, if there are both branches.
        static_ops: subset of ("whiten", "dw", "pe2", "pe4", "gate"); () = no static branch (Table 3.5).
        dynamic_ops: subset of ("cmhsa", "gmhsa"); () = no dynamic branch (Tables 3.5, 3.9).
        branch_ratios: shares of the static branch's three slices: first scale, untouched, second scale (Table 3.7).
        whiten: which mean the whitening removes, "channel" (Eq. 3.1), "spatial" (Eq. 3.12) or "none". None is "none"
            too, but `timm.create_model` leaves out options that are None.
        local_kernel, coord_kernel: sizes of the static branch's depthwise kernels, k x k and 1 x k, k x 1; odd.
        static_expand, cmhsa_expand, gmhsa_expand: channel expansion of the tokens.
        patch_sizes: pooling of the two static scales, of C-MHSA and of G-MHSA.
        head_dim: width of a head of C-MHSA; G-MHSA has heads half as wide.
        branch_fusion: the 1x1 layers after both concatenations (Eq. 3.4, 3.8; Table 3.9).
        channel_split: False gives every sub-branch all channels, without expansion, and adds (Table 3.9).
        mask_border: C-MHSA ignores window positions outside the map.
        norm: of the blocks, "bn", "gn" or "ln".
        layer_scale_init: initial layer scale of both residuals, None for none.
        out_norms: a BatchNorm on every output of the feature pyramid.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (32, 64, 128, 192),
        depths: Sequence[int] = (2, 2, 4, 2),
        mlp_ratios: float | Sequence[float] = (8, 8, 4, 4),
        static_ratio: float = 0.5,
        static_ops: Sequence[str] = STATIC_OPS,
        dynamic_ops: Sequence[str] = DYNAMIC_OPS,
        branch_ratios: Sequence[float] = (0.25, 0.5, 0.25),
        whiten: str | None = "channel",
        local_kernel: int = 7,
        coord_kernel: int = 13,
        static_expand: int = 2,
        cmhsa_expand: int = 2,
        gmhsa_expand: int = 1,
        patch_sizes: Sequence[int] = (2, 4, 4, 6),
        head_dim: int = 32,
        branch_fusion: bool = True,
        channel_split: bool = True,
        mask_border: bool = False,
        norm: str = "bn",
        layer_scale_init: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(embed_dims, num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate)
        whiten = "none" if whiten is None else whiten
        check_choice("whiten", whiten, ("channel", "spatial", "none"))
        check_choice("norm", norm, tuple(NORMS))
        check_ops("static_ops", static_ops, STATIC_OPS)
        check_ops("dynamic_ops", dynamic_ops, DYNAMIC_OPS)
        check_shares(static_ratio, branch_ratios)
        for option, kernel in (("local_kernel", local_kernel), ("coord_kernel", coord_kernel)):
            check_choice(f"{option} % 2", kernel % 2, (1,))
        per_stage("patch_sizes", tuple(patch_sizes))
        embed_dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        mlp_ratios = per_stage("mlp_ratios", mlp_ratios)

        def make_mixer(dim: int) -> Mixer:
            both = bool(channel_split and static_ops and dynamic_ops)
            widths = (int(static_ratio * dim), dim - int(static_ratio * dim)) if both else (dim, dim)
            shared = {"fusion": branch_fusion, "split": channel_split, **dd}
            static = dynamic = None
            if static_ops:
                kernels = {"local_kernel": local_kernel, "coord_kernel": coord_kernel, "expand": static_expand}
                scales = {"ratios": branch_ratios, "patch_sizes": patch_sizes[:2]}
                static = StaticBranch(widths[0], static_ops, whiten=whiten, **scales, **kernels, **shared)
            if dynamic_ops:
                expand = {"cmhsa_expand": cmhsa_expand, "gmhsa_expand": gmhsa_expand}
                heads = {"head_dim": head_dim, "mask_border": mask_border}
                dynamic = DynamicBranch(widths[1], dynamic_ops, patch_sizes[2:], **expand, **heads, **shared)
            return Mixer(static, dynamic, widths, channel_split)

        self.stem = stem(in_chans, embed_dims[0], **dd)
        drop_path = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            down = ConvNormAct(embed_dims[i - 1], dim, 3, stride=2, act=None, **dd) if i else None
            blocks = [
                Block(
                    dim,
                    make_mixer(dim),
                    mlp_ratio=mlp_ratios[i],
                    norm=norm,
                    layer_scale_init=layer_scale_init,
                    drop_path=drop_path[i][j],
                    **dd,
                )
                for j in range(depth)
            ]
            stages.append(Stage(blocks, down))
        self.stages = nn.Sequential(*stages)
        batch_norm = partial(nn.BatchNorm2d, **dd)
        self.finish(batch_norm(embed_dims[-1]), global_pool, batch_norm if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Our choice (the thesis names none): 1x1 and linear 0.02, k x k by fan-out; Prop initialises itself."""
        if isinstance(module, (Pointwise, nn.Linear)):
            trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_ops(option: str, ops: Any, allowed: Sequence[str]) -> None:
    """Raise `ValueError` unless `ops` is a list or tuple of some of `allowed`."""
    if not isinstance(ops, (list, tuple)) or not set(ops) <= set(allowed):
        raise ValueError(f"{option}={ops!r} is not allowed; give a list of any of {', '.join(map(repr, allowed))}")


def check_shares(static_ratio: float, branch_ratios: Sequence[float]) -> None:
    """Raise `ValueError` unless the shares of channels are shares."""
    if not 0.0 < static_ratio < 1.0:
        raise ValueError(f"static_ratio={static_ratio!r} must lie between 0 and 1; static_ops=() leaves the branch out")
    if len(branch_ratios) != 3 or min(branch_ratios) < 0 or abs(sum(branch_ratios) - 1) > 1e-6:
        raise ValueError(f"branch_ratios={branch_ratios!r} must be three shares of at least 0 that sum to 1")


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Our own checkpoints unchanged; "fuse", another name of the layers after both concatenations, under our names."""
    state_dict = encoder_of(unwrap(state_dict, model))
    return renamed((name, name.replace(".fuse.", ".fusion."), value) for name, value in state_dict.items())


# ---- variants (Table 3.1) ------------------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs(
    {name: default_cfg() for name in ("emsnet_xxtiny", "emsnet_xtiny", "emsnet_xtiny_c128", "emsnet_tiny")}
)


@register_model
def emsnet_xxtiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-XXTiny (Table 3.1): 2.57 M parameters."""
    options = {"embed_dims": (32, 64, 128, 192), "depths": (2, 2, 4, 2)}
    return build(EMSNet, "emsnet_xxtiny", pretrained, options, overrides=kwargs, filter_fn=checkpoint_filter_fn)


@register_model
def emsnet_xtiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-XTiny: 2.96 M parameters.

    Its last width is 192: with the 128 of Table 3.1 (`emsnet_xtiny_c128`) the network has 2.31 M parameters, while
    Tables 3.1, 3.2 and 3.8 report 3.0 M.
    """
    options = {"embed_dims": (32, 64, 96, 192), "depths": (3, 3, 10, 2)}
    return build(EMSNet, "emsnet_xtiny", pretrained, options, overrides=kwargs, filter_fn=checkpoint_filter_fn)


@register_model
def emsnet_xtiny_c128(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-XTiny with the widths reported in Table 3.1: 2.31 M parameters."""
    options = {"embed_dims": (32, 64, 96, 128), "depths": (3, 3, 10, 2)}
    return build(EMSNet, "emsnet_xtiny_c128", pretrained, options, overrides=kwargs, filter_fn=checkpoint_filter_fn)


@register_model
def emsnet_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EMSNet-Tiny (Table 3.1): 5.47 M parameters."""
    options = {"embed_dims": (64, 96, 128, 256), "depths": (3, 3, 10, 2)}
    return build(EMSNet, "emsnet_tiny", pretrained, options, overrides=kwargs, filter_fn=checkpoint_filter_fn)
