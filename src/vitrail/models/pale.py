"""Pale Transformer: attention inside groups of interlaced rows and columns, which span the map.

S. Wu, T. Wu, H. Tan, G. Guo, "Pale Transformer: A General Vision Transformer Backbone with Pale-Shaped Attention",
AAAI 2022, arXiv 2112.14000. No code of the authors is public; what the paper leaves open is marked "not in the paper".

The paper's names: PS-Attention is `PaleAttention`, its parallel form (Eq. 1-3) the mixer "parallel"; phi of Eq. 2 is
`SeparableConv`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    ConvPositionEncoding,
    Mlp,
    PatchEmbedConv,
    Pointwise,
    attention,
    blocks_per_stage,
    check_choice,
    check_divides,
    pad_to_multiple,
    per_stage,
)
from ..layers.tracing import notrace_module
from .checkpoints import encoder_of, fit_axes, rename_all, unwrap
from .pyramid import ClassTokenPyramid, Stage, build, default_cfg, drop_path_schedule

__all__ = ["Pale", "pale_base", "pale_small", "pale_tiny"]

# ---- Pale-shaped attention (Eq. 1-3, Fig. 1) ----------------------------------------------------------------------

MIXERS = ("parallel", "vanilla", "sequential", "axial", "cross_shaped", "global")


class SeparableConv(nn.Sequential):
    """The projection phi of Eq. 2: depthwise convolution, BatchNorm, pointwise layer, as CvT's.

    Args:
        kernel_size: 0 leaves a plain linear layer.
        norm: "bn" or "none".
        bias: of the pointwise layer.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self, dim: int, kernel_size: int = 3, norm: str = "bn", bias: bool = True, device: Any = None, dtype: Any = None
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if kernel_size:
            self.dw = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False, **dd)
            if norm == "bn":
                self.bn = nn.BatchNorm2d(dim, **dd)
        self.pw = Pointwise(dim, dim, bias=bias, **dd)


@notrace_module
class PaleAttention(nn.Module):
    """PS-Attention and the alternatives of Table 6, which differ only in the grouping of tokens.

    Args:
        dim: channels C.
        num_heads: heads h of width C / h; even where half of them take the rows and half the columns.
        mixer: "parallel", the paper's form: half the channels attend inside row groups, half inside column groups;
            "vanilla": all channels inside whole pales; "sequential": all channels, row groups in even blocks, column
            groups in odd ones; "axial": "parallel" with single rows and columns; "cross_shaped": "parallel" with
            stripes of adjacent rows and columns; "global": all tokens.
        pale_size: (s_r, s_c), rows and columns of a pale, or the widths of the stripes.
        block: index of the block inside its stage.
        qkv_kernel, qkv_norm, qkv_bias: of the projections, see `SeparableConv`.
        pad_mode: "tight" projects the tokens without padding and pads only where the grouping needs it; "paper" pads
            the map to multiples of the pale size first, the order that gives the reported dense FLOPs. Same values.
        mask_padding: False lets padding be attended, as an implementation without masks would; implies "paper".

    Shapes: (B, C, H, W) -> (B, C, H, W), any H and W.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mixer: str = "parallel",
        pale_size: tuple[int, int] = (7, 7),
        block: int = 0,
        qkv_kernel: int = 3,
        qkv_norm: str = "bn",
        qkv_bias: bool = True,
        pad_mode: str = "tight",
        mask_padding: bool = True,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_choice("mixers", mixer, MIXERS)
        check_choice("pad_mode", pad_mode, ("tight", "paper"))
        check_choice("qkv_norm", qkv_norm, ("bn", "none"))
        check_divides("embed_dims", dim, num_heads, "num_heads")
        if mixer in ("parallel", "axial", "cross_shaped"):
            check_divides("num_heads", num_heads, 2, f"the two halves of mixers={mixer!r}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.size_r, self.size_c = (1, 1) if mixer == "axial" else pale_size
        self.mixer = {"axial": "parallel", "cross_shaped": "parallel"}.get(mixer, mixer)
        if mixer == "sequential":
            self.mixer = "columns" if block % 2 else "rows"
        self.interlaced = mixer != "cross_shaped"
        self.pad_first = pad_mode == "paper" or not mask_padding
        self.mask_padding = mask_padding
        self.q = SeparableConv(dim, qkv_kernel, qkv_norm, qkv_bias, **dd)
        self.k = SeparableConv(dim, qkv_kernel, qkv_norm, qkv_bias, **dd)
        self.v = SeparableConv(dim, qkv_kernel, qkv_norm, qkv_bias, **dd)
        self.proj = Pointwise(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        if self.pad_first:
            full_height, full_width = self.padded_size(height, width)
            x = pad_map(x.permute(0, 2, 3, 1), full_height, full_width).permute(0, 3, 1, 2)
        # Eq. 2, phi_Q, phi_K, phi_V: on all C channels, before the split; the paper writes them after it, but only this
        # order gives its parameters
        q, k, v = self.q(x).permute(0, 2, 3, 1), self.k(x).permute(0, 2, 3, 1), self.v(x).permute(0, 2, 3, 1)

        mode = self.mode(height, width)
        if mode == "parallel":
            half = q.shape[3] // 2  # Eq. 1: the first half of the channels is X_r, the second X_c
            # Eq. 2
            y_r = self.attend("rows", q[..., :half], k[..., :half], v[..., :half], height=height, width=width)
            y_c = self.attend("columns", q[..., half:], k[..., half:], v[..., half:], height=height, width=width)
            y = torch.cat([y_r, y_c], dim=-1)  # Eq. 3
        else:
            y = self.attend(mode, q, k, v, height=height, width=width)
        return self.proj(y.permute(0, 3, 1, 2))

    def attend(self, mode: str, q: Tensor, k: Tensor, v: Tensor, height: int, width: int) -> Tensor:
        """softmax(q k^T / sqrt(d)) v inside each group of `mode`: (B, H, W, C) -> (B, height, width, C)."""
        heads = q.shape[3] // self.head_dim
        real = self.real_tokens(mode, height, width, q.device)
        queries, keys, values = self.group(mode, q), self.group(mode, k), self.group(mode, v)
        groups = [
            attend_groups(queries[i], keys[i], values[i], num_heads=heads, real=real) for i in range(len(queries))
        ]
        return self.ungroup(mode, groups, height, width)

    def group(self, mode: str, x: Tensor) -> list[Tensor]:
        """The groups of tokens of a map: (B, H, W, C) -> one or two of (B, groups, tokens of a group, C)."""
        height, width = self.grouped_size(mode, x.shape[1], x.shape[2])
        x = pad_map(x, height, width)
        if mode == "global":
            return [x.flatten(1, 2).unsqueeze(1)]
        if mode == "vanilla":
            return [split_pales(x, height // self.size_r)]
        if mode == "columns":
            x = x.transpose(1, 2)
        size = self.size_c if mode == "columns" else self.size_r
        return split_interlaced(x, size) if self.interlaced else split_stripes(x, size)

    def ungroup(self, mode: str, groups: list[Tensor], height: int, width: int) -> Tensor:
        """Inverse of `group`, without the padding: -> (B, height, width, C)."""
        full_height, full_width = self.grouped_size(mode, height, width)
        if mode == "global":
            x = groups[0].reshape(groups[0].shape[0], full_height, full_width, groups[0].shape[3])
        elif mode == "vanilla":
            x = merge_pales(groups[0], full_height, full_width)
        else:
            across = full_height if mode == "columns" else full_width
            x = merge_interlaced(groups, across) if self.interlaced else merge_stripes(groups, across)
        if mode == "columns":
            x = x.transpose(1, 2)
        return crop_map(x, height, width)

    def mode(self, height: int, width: int) -> str:
        """The grouping of a map: "global" where one group holds it all, as both halves then see the same tokens."""
        _, free = is_compiling(height, width)
        if not free and self.mixer != "vanilla" and height <= self.size_r and width <= self.size_c:
            return "global"
        return self.mixer

    def grouped_size(self, mode: str, height: int, width: int) -> tuple[int, int]:
        """Height and width of the map to group, with the padding that the grouping needs."""
        graph, _ = is_compiling(height, width)
        # eager code forms groups of unequal lengths without padding; on their nested remainders dynamo's symbolic
        # sizes hang
        if self.pad_first or mode == "vanilla" or (graph and mode != "global"):
            return self.padded_size(height, width)
        return height, width

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width once every group is full."""
        if self.mixer == "global":
            return height, width
        rows, columns = (height + self.size_r - 1) // self.size_r, (width + self.size_c - 1) // self.size_c
        if self.mixer == "vanilla":  # as many row groups as column groups, the paper's "excessive padding"
            rows = columns = max(rows, columns)
        return rows * self.size_r, columns * self.size_c

    def real_tokens(self, mode: str, height: int, width: int, device: torch.device) -> Tensor | None:
        """Mask (1, groups, tokens of a group, 1), False on padding; None if there is no padding."""
        full_height, full_width = self.grouped_size(mode, height, width)
        if not self.mask_padding or not needs_padding(height, width, full_height, full_width):
            return None
        rows = torch.arange(full_height, device=device) < height
        columns = torch.arange(full_width, device=device) < width
        real = (rows[:, None] & columns[None, :])[None, :, :, None]
        return self.group(mode, real)[0]  # padded maps have groups of one length


def attend_groups(q: Tensor, k: Tensor, v: Tensor, num_heads: int, real: Tensor | None) -> Tensor:
    """Multi-head attention inside each group.

    Shapes: q, k, v (B, N, tokens, C), real (1, N, tokens, 1) boolean, False on padding -> (B, N, tokens, C).
    """
    batch, groups, tokens, channels = q.shape
    shape = (batch * groups, tokens, num_heads, channels // num_heads)
    mask: Tensor | None = None
    if real is not None:
        mask = real.reshape(1, groups, 1, 1, tokens).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    q, k, v = q.reshape(shape).transpose(1, 2), k.reshape(shape).transpose(1, 2), v.reshape(shape).transpose(1, 2)
    return attention(q, k, v, mask).transpose(1, 2).reshape(batch, groups, tokens, channels)


# ---- groups of tokens ----------------------------------------------------------------------------------------------


def split_interlaced(x: Tensor, size: int) -> list[Tensor]:
    """Group the rows of a map: row y goes to group y mod N, N = ceil(H / size), so a group spans the whole map.

    No row is padded: the first H mod N groups hold one row more than the rest and come as a tensor of their own.

    Shapes: (B, H, W, C) -> one or two of (B, groups, tokens of a group, C), tokens row by row.
    """
    batch, height, width, channels = x.shape
    _, free = is_compiling(height, width)
    if free or height % size == 0:  # a graph for every map size pads first, so that `size` divides
        return [x.reshape(batch, size, height // size, width, channels).transpose(1, 2).flatten(2, 3)]
    groups = (height + size - 1) // size
    rows, longer = height // groups, height % groups
    # row y = k * N + i: the axes are (rows of a group, groups), the other order would be stripes of adjacent rows
    body = x[:, : rows * groups].reshape(batch, rows, groups, width, channels).transpose(1, 2)
    if longer == 0:
        return [body.reshape(batch, groups, rows * width, channels)]
    tail = x[:, rows * groups :].unsqueeze(2)
    return [torch.cat([body[:, :longer], tail], dim=2).flatten(2, 3), body[:, longer:].flatten(2, 3)]


def merge_interlaced(parts: list[Tensor], width: int) -> Tensor:
    """Inverse of `split_interlaced`: -> (B, H, width, C)."""
    rows = [p.reshape(p.shape[0], p.shape[1], p.shape[2] // width, width, p.shape[3]).transpose(1, 2) for p in parts]
    if len(rows) == 1:
        return rows[0].flatten(1, 2)
    shared = rows[1].shape[1]  # rows that every group has
    body = torch.cat([rows[0][:, :shared], rows[1]], dim=2).flatten(1, 2)
    return torch.cat([body, rows[0][:, shared]], dim=1)


def split_stripes(x: Tensor, size: int) -> list[Tensor]:
    """Group the rows of a map into stripes of `size` adjacent rows; a shorter last one is a tensor of its own.

    Shapes: (B, H, W, C) -> one or two of (B, groups, tokens of a group, C), tokens row by row.
    """
    batch, height, width, channels = x.shape
    full = height // size
    if full * size == height:
        return [x.reshape(batch, full, size * width, channels)]
    rest = x[:, full * size :].reshape(batch, 1, (height - full * size) * width, channels)
    if full == 0:
        return [rest]
    return [x[:, : full * size].reshape(batch, full, size * width, channels), rest]


def merge_stripes(parts: list[Tensor], width: int) -> Tensor:
    """Inverse of `split_stripes`: -> (B, H, width, C)."""
    rows = [p.reshape(p.shape[0], p.shape[1] * p.shape[2] // width, width, p.shape[3]) for p in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def split_pales(x: Tensor, groups: int) -> Tensor:
    """The pales themselves: pale i has the rows y = i and the columns x = i (mod N), each of its tokens once.

    Shapes: (B, H, W, C), N dividing H and W -> (B, N, H/N * W + W/N * (H - H/N), C): the rows' tokens first.
    """
    batch, height, width, channels = x.shape
    n, rows, cols = groups, height // groups, width // groups
    across = x.reshape(batch, rows, n, width, channels).transpose(1, 2).flatten(2, 3)
    down = x.reshape(batch, rows, n, cols, n, channels).permute(0, 4, 2, 3, 1, 5)  # (B, N of column, N of row, ...)
    # drop the tokens whose row is in the pale already, the diagonal of the two N axes: of an N x N matrix without its
    # first entry, read N + 1 at a time, the last column is the diagonal
    down = down.reshape(batch, n * n, cols * rows * channels)[:, 1:]
    down = down.reshape(batch, n - 1, n + 1, cols * rows * channels)[:, :, :n]
    return torch.cat([across, down.reshape(batch, n, (n - 1) * cols * rows, channels)], dim=2)


def merge_pales(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `split_pales`: -> (B, height, width, C); a token of two pales gets the mean of its two values.

    The mean is not in the paper, which does not say how the two outputs are combined.
    """
    batch, n, channels = tokens.shape[0], tokens.shape[1], tokens.shape[3]
    rows, cols = height // n, width // n
    across = tokens[:, :, : rows * width].reshape(batch, n, rows, width, channels).transpose(1, 2)
    across = across.reshape(batch, height, width, channels)
    down = tokens[:, :, rows * width :].reshape(batch, n - 1, n, cols * rows * channels)
    down = F.pad(down, (0, 0, 0, 1)).reshape(batch, (n - 1) * (n + 1), cols * rows * channels)
    down = F.pad(down, (0, 0, 1, 0)).reshape(batch, n, n, cols, rows, channels)
    down = down.permute(0, 4, 2, 3, 1, 5).reshape(batch, height, width, channels)
    row_group = torch.arange(height, device=tokens.device) % n
    column_group = torch.arange(width, device=tokens.device) % n
    two = (row_group[:, None] != column_group[None, :])[..., None]
    return torch.where(two, (across + down) / 2, across)


# ---- padding and graphs --------------------------------------------------------------------------------------------


def needs_padding(height: int, width: int, full_height: int, full_width: int) -> bool:
    """True if a map must be padded; always True in a graph for all map sizes."""
    _, free = is_compiling(height, width)
    return free or full_height > height or full_width > width


def pad_map(x: Tensor, height: int, width: int) -> Tensor:
    """Zeros at the bottom and right of a (B, H, W, C) map: -> (B, height, width, C)."""
    if needs_padding(x.shape[1], x.shape[2], height, width):
        return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    return x


def crop_map(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pad_map`."""
    _, free = is_compiling(height, width)
    if free:  # a slice would restrict the graph to sizes that need it
        x = x.index_select(1, torch.arange(height, device=x.device))
        return x.index_select(2, torch.arange(width, device=x.device))
    return x[:, :height, :width]


def is_compiling(height: int, width: int) -> tuple[bool, bool]:
    """(dynamo or `torch.export` is tracing, the graph is for all map sizes)."""
    if torch.jit.is_scripting():
        return False, False
    else:  # TorchScript leaves the branch out only in this form
        dynamo = torch.compiler.is_dynamo_compiling()
        free = isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)
        free = free or (dynamo and torch.compiler.is_exporting())
        return dynamo or free, free


# ---- block (Eq. 6-8) -----------------------------------------------------------------------------------------------


_norm = partial(LayerNorm2d, eps=1e-5)


class PaleBlock(nn.Module):
    """Conditional position, PS-Attention, MLP, each with its shortcut (Eq. 6-8).

    Args:
        dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP / dim.
        cpe_kernel: kernel of the position encoding.
        drop_path: rate of stochastic depth on attention and MLP; the position encoding has none.
        options: the other arguments of `PaleAttention`.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        cpe_kernel: int,
        drop_path: float,
        options: dict[str, Any],
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.cpe = ConvPositionEncoding(dim, cpe_kernel, **dd)
        self.norm1 = _norm(dim, **dd)
        self.attn = PaleAttention(dim, num_heads, **options, **dd)
        self.norm2 = _norm(dim, **dd)
        self.mlp = Mlp(dim, mlp_ratio, **dd)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe(x)  # Eq. 6
        x = x + self.drop_path(self.attn(self.norm1(x)))  # Eq. 7
        return x + self.drop_path(self.mlp(self.norm2(x)))  # Eq. 8


# ---- down-sampling (Table 1) ---------------------------------------------------------------------------------------


class PaleStem(PatchEmbedConv):
    """7x7 convolution of stride 4, after zero padding at the right and bottom so that no pixel is lost.

    Shapes: (B, in_chans, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)).
    """

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x.permute(0, 2, 3, 1), 4).permute(0, 3, 1, 2)  # not in the paper; nothing at multiples of 4
        return self.norm(self.conv1(x))


# ---- network (Table 1) ---------------------------------------------------------------------------------------------


class Pale(ClassTokenPyramid):
    """Pale Transformer (Table 1).

    Args:
        embed_dims, depths, num_heads, mlp_ratios: per stage.
        mixers: token mixer, one name or one per stage; see `PaleAttention`.
        pale_size: one number, one per stage, or one (s_r, s_c) per stage.
        split_size: widths of the stripes of "cross_shaped", in the same forms (not reported; CSWin's).
        global_last_stage: "cross_shaped" attends to the whole map in the last stage (as CSWin).
        qkv_kernel, qkv_norm, qkv_bias, cpe_kernel: readings of what the paper leaves open; the defaults fit its counts.
        pad_mode, mask_padding: see `PaleAttention`.
        token_labeling: add `aux_head`, a classifier of the last map's tokens (the starred rows of Table 2).
        mix_token: in training mix samples by MixToken and return `forward_token_labeling`'s tuple.
        aux_logit_weight: of the largest token logits in the logits (0.5 = LV-ViT's evaluation).
        drop_path_rate: stochastic depth of the last block, linear from 0.
        out_norms: a LayerNorm on each pyramid output, as in the paper's dense tasks.

    Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 16, 2),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        mixers: str | Sequence[str] = "parallel",
        pale_size: int | Sequence[int | Sequence[int]] = 7,
        split_size: int | Sequence[int | Sequence[int]] = (1, 2, 7, 7),
        global_last_stage: bool = True,
        qkv_kernel: int = 3,
        qkv_norm: str = "bn",
        qkv_bias: bool = True,
        cpe_kernel: int = 3,
        pad_mode: str = "tight",
        mask_padding: bool = True,
        token_labeling: bool = False,
        mix_token: bool = False,
        aux_logit_weight: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        dd = {"device": device, "dtype": dtype}
        embed_dims, depths = per_stage("embed_dims", embed_dims), blocks_per_stage(depths)
        num_heads, mlp_ratios = per_stage("num_heads", num_heads), per_stage("mlp_ratios", mlp_ratios)
        mixers = per_stage("mixers", mixers)
        pales, stripes = _sizes("pale_size", pale_size), _sizes("split_size", split_size)
        if qkv_kernel != 0:
            _check_odd("qkv_kernel", qkv_kernel, " or 0 for none")
        _check_odd("cpe_kernel", cpe_kernel)
        super().__init__(
            embed_dims,
            num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            token_labeling=token_labeling,
            mix_token=mix_token,
            aux_logit_weight=aux_logit_weight,
        )
        self.stem = PaleStem(in_chans, embed_dims[0], 7, 4, padding=2, **dd)
        rates = drop_path_schedule(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            mixer, size = mixers[i], pales[i]
            if mixer == "cross_shaped":
                mixer, size = ("global" if i == 3 and global_last_stage else mixer), stripes[i]
            blocks = []
            for j in range(depths[i]):
                options = {
                    "mixer": mixer,
                    "pale_size": size,
                    "block": j,
                    "qkv_kernel": qkv_kernel,
                    "qkv_norm": qkv_norm,
                    "qkv_bias": qkv_bias,
                    "pad_mode": pad_mode,
                    "mask_padding": mask_padding,
                }
                blocks.append(
                    PaleBlock(
                        dim,
                        num_heads[i],
                        mlp_ratio=mlp_ratios[i],
                        cpe_kernel=cpe_kernel,
                        drop_path=rates[i][j],
                        options=options,
                        **dd,
                    )
                )
            stages.append(Stage(blocks, PatchEmbedConv(embed_dims[i - 1], dim, 3, 2, **dd) if i else None))
        self.stages = nn.Sequential(*stages)
        self.finish(_norm(embed_dims[-1], **dd), global_pool, partial(_norm, **dd) if out_norms else None, **dd)

    def init_module(self, module: nn.Module, name: str) -> None:
        """Linear layers as CSWin, depthwise convolutions as Twins; norms and strided convolutions keep their own."""
        if isinstance(module, (nn.Linear, Pointwise)):
            trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            nn.init.normal_(module.weight, std=(2.0 / (module.kernel_size[0] * module.kernel_size[1])) ** 0.5)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_odd(option: str, value: int, also: str = "") -> None:
    if not isinstance(value, int) or value < 1 or value % 2 == 0:
        raise ValueError(f"{option}={value!r} is not allowed; give an odd number{also}")


def _sizes(option: str, value: Any) -> list[tuple[int, int]]:
    """(rows, columns) of each stage from one number, one per stage, or one pair per stage."""
    pairs = [tuple(s) if isinstance(s, (list, tuple)) else (s, s) for s in per_stage(option, value)]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(s, int) and s >= 1 for s in pair):
            raise ValueError(f"{option}={value!r} is not allowed; give numbers, or pairs of numbers, of at least 1")
    return pairs


# ---- checkpoints ---------------------------------------------------------------------------------------------------

#: names of an implementation on token sequences, and ours
LAYOUT = (
    (r"(\.blocks\.\d+\.cpe)\.(weight|bias)$", r"\1.conv.\2"),
    (r"(\.blocks\.\d+)\.mixer\.", r"\1.attn."),
    (r"(\.attn\.[qkv])\.dwconv\.", r"\1.dw."),
    (r"(\.attn\.[qkv])\.pwconv\.", r"\1.pw."),
    (r"(\.downsample)\.conv\.", r"\1.conv1."),
    *((rf"^norm{i + 1}\.", f"out_norms.{i}.") for i in range(4)),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state dict for `Pale`, from its own or from one of token sequences, with linear layers and `mixer`.

    Wrappers are taken off; our own state dicts pass unchanged.
    """
    return fit_axes(rename_all(encoder_of(unwrap(state_dict, model)), LAYOUT), model)


# ---- variants (Table 1) --------------------------------------------------------------------------------------------

default_cfgs = generate_default_cfgs({name: default_cfg() for name in ("pale_tiny", "pale_small", "pale_base")})


def _pale(variant: str, pretrained: bool, options: dict[str, Any], overrides: dict[str, Any]) -> nn.Module:
    if overrides.get("token_labeling"):
        overlay = {"classifier": ("head", "aux_head"), **(overrides.get("pretrained_cfg_overlay") or {})}
        overrides = {**overrides, "pretrained_cfg_overlay": overlay}
    return build(Pale, variant, pretrained, options, overrides=overrides, filter_fn=checkpoint_filter_fn)


@register_model
def pale_tiny(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Pale-T."""
    return _pale("pale_tiny", pretrained, {}, overrides)


@register_model
def pale_small(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Pale-S."""
    return _pale("pale_small", pretrained, {"embed_dims": (96, 192, 384, 768)}, overrides)


@register_model
def pale_base(pretrained: bool = False, **overrides: Any) -> nn.Module:
    """Pale-B."""
    options = {"embed_dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)}
    return _pale("pale_base", pretrained, options, overrides)
