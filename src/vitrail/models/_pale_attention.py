"""Pale-shaped attention (Wu et al., AAAI 2022, arXiv 2112.14000, Eq. 1-5) and the forms it is compared with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import Pointwise, check_choice, check_divides
from ..layers.tracing import notrace_module, unscripted
from ._pale_groups import attend_groups, attend_rows, merge_pales, padded_pairs, split_pales

MIXERS = ("parallel", "vanilla", "sequential", "axial", "cross_shaped", "global")


def is_compiling(height: int, width: int) -> tuple[bool, bool]:
    """Whether a graph is being made (by dynamo or `torch.export`), and whether it has to serve every map size."""
    if torch.jit.is_scripting():
        return False, False
    else:  # TorchScript leaves the branch out only in this form
        dynamo = torch.compiler.is_dynamo_compiling()
        free = isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt)
        free = free or (dynamo and torch.compiler.is_exporting())
        return dynamo or free, free


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
    """PS-Attention and the forms the paper compares it with, which differ only in who attends to whom (Table 6).

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
        pad_mode: "tight" projects the real tokens and pads only what the grouping cannot do without; "paper" pads the
            map to multiples of the pale size first, the order that gives the printed dense FLOPs. Same values.
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

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the map once every group is full."""
        if self.mixer == "global":
            return height, width
        rows, columns = (height + self.size_r - 1) // self.size_r, (width + self.size_c - 1) // self.size_c
        if self.mixer == "vanilla":  # as many row groups as column groups, the paper's "excessive padding"
            rows = columns = max(rows, columns)
        return rows * self.size_r, columns * self.size_c

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        # with `free` nothing below may depend on how the sizes divide; with `graph` only on whether they do: groups of
        # unequal lengths are nested remainders, on which dynamo's symbolic sizes hang
        graph, free = is_compiling(height, width)
        full_height, full_width = self.padded_size(height, width)
        right, bottom = full_width - width, full_height - height
        padded = free or right > 0 or bottom > 0
        if self.pad_first and padded:
            x = F.pad(x, (0, right, 0, bottom))
        # projected on all C channels, before the split (Eq. 2 writes it after; only this gives the printed counts)
        q, k, v = self.q(x).permute(0, 2, 3, 1), self.k(x).permute(0, 2, 3, 1), self.v(x).permute(0, 2, 3, 1)

        pad_now = padded and not self.pad_first and (graph or self.mixer == "vanilla")
        if pad_now:
            pads = (0, 0, 0, right, 0, bottom)
            q, k, v = F.pad(q, pads), F.pad(k, pads), F.pad(v, pads)
        real: Tensor | None = None
        if padded and self.mask_padding and (pad_now or self.pad_first):
            rows = torch.arange(full_height, device=x.device) < height
            columns = torch.arange(full_width, device=x.device) < width
            real = (rows[:, None] & columns[None, :])[None, :, :, None]

        out = self.mix(q, k, v, real, free)
        if free:  # a crop would tie the graph to sizes that need one
            out = out.index_select(1, torch.arange(height, device=x.device))
            out = out.index_select(2, torch.arange(width, device=x.device))
        else:
            out = out[:, :height, :width]
        return self.proj(out.permute(0, 3, 1, 2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, free: bool) -> Tensor:
        """Softmax attention of the mixer's groups on (B, H, W, C) maps."""
        height, width, channels = q.shape[1], q.shape[2], q.shape[3]
        if self.mixer == "vanilla":
            groups = max(height // self.size_r, width // self.size_c)
            keys = split_pales(real, groups) if real is not None else None
            out = attend_groups(
                split_pales(q, groups), split_pales(k, groups), split_pales(v, groups), self.num_heads, keys
            )
            return merge_pales(out, height, width)
        # one group along both axes: both halves see every token, so all heads go in one call
        if self.mixer == "global" or (not free and height <= self.size_r and width <= self.size_c):
            keys = real.flatten(1, 2).unsqueeze(1) if real is not None else None
            q, k, v = q.flatten(1, 2).unsqueeze(1), k.flatten(1, 2).unsqueeze(1), v.flatten(1, 2).unsqueeze(1)
            out = attend_groups(q, k, v, self.num_heads, keys)
            return out.reshape(q.shape[0], height, width, channels)
        if self.mixer == "rows":
            return attend_rows(q, k, v, self.num_heads, self.size_r, self.interlaced, real)

        real_t = real.transpose(1, 2) if real is not None else None
        if self.mixer == "columns":
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            return attend_rows(q, k, v, self.num_heads, self.size_c, self.interlaced, real_t).transpose(1, 2)

        half, heads = channels // 2, self.num_heads // 2  # Eq. 1: first half of the channels rows, second columns
        y_r = attend_rows(q[..., :half], k[..., :half], v[..., :half], heads, self.size_r, self.interlaced, real)
        q, k, v = q[..., half:].transpose(1, 2), k[..., half:].transpose(1, 2), v[..., half:].transpose(1, 2)
        y_c = attend_rows(q, k, v, heads, self.size_c, self.interlaced, real_t)
        return torch.cat([y_r, y_c.transpose(1, 2)], dim=-1)  # Eq. 3

    @unscripted
    def saved_macs(self, height: int, width: int) -> dict[str, int]:
        """Attention products on padding, which `forward` does without: groups that are all as long as the longest."""
        if self.pad_first or self.mixer in ("global", "vanilla"):
            return {}
        axes = {"rows": [(height, width, self.size_r)], "columns": [(width, height, self.size_c)]}
        ways = axes.get(self.mixer, [*axes["rows"], *axes["columns"]])  # with both, each has half of the channels
        width_of_each = self.num_heads * self.head_dim // len(ways)
        saved = sum(2 * padded_pairs(*way, self.interlaced) * width_of_each for way in ways)
        return {"matmul": saved}
