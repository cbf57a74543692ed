"""Corrections for operations that the papers' tables count and our implementations avoid, by class of module.

A rule with `as_written` adds them. A network whose mixer does less work than its paper's formulation registers the
class here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..layers import one_window
from ..models.mat import MatAttention
from ..models.pale import PaleAttention, PaleBlock
from ..models.partialformer import PartialAttention, foreground_count

Amounts = dict[str, int]
Correction = Callable[[Any, int, int], Amounts]


def padded_pairs(length: int, across: int, size: int, interlaced: bool = True) -> int:
    """Additional query-key pairs if all groups were padded to the longest: `length` rows of `across` tokens.

    The groups are those of `models.pale.split_interlaced`, or of `split_stripes`.
    """
    groups = -(-length // size)
    if interlaced:
        shortest, longer = divmod(length, groups)
        rows = [shortest + 1] * longer + [shortest] * (groups - longer)
    else:
        rows = [min(size, length - start) for start in range(0, length, size)]
    return sum(max(rows) ** 2 - own**2 for own in rows) * across**2


def pale_attention(attn: PaleAttention, height: int, width: int) -> Amounts:
    """Attention products with padding: the paper pads all groups to the longest."""
    if attn.pad_first or attn.mixer in ("global", "vanilla"):
        return {}
    axes = {"rows": [(height, width, attn.size_r)], "columns": [(width, height, attn.size_c)]}
    branches = axes.get(attn.mixer, [*axes["rows"], *axes["columns"]])  # with both, each has half of the channels
    channels = attn.num_heads * attn.head_dim // len(branches)
    return {"matmul": sum(2 * padded_pairs(*branch, attn.interlaced) * channels for branch in branches)}


def pale_block(block: PaleBlock, height: int, width: int) -> Amounts:
    """Biases of the linear layers, 9 C a token, which the paper's dense tables count for tokens without padding."""
    linear = ("pw.bias", "proj.bias", "fc1.bias", "fc2.bias")
    biases = sum(p.numel() for name, p in block.named_parameters() if name.endswith(linear))
    return {"token_bias": biases * height * width}


def mat_attention(attn: MatAttention, height: int, width: int) -> Amounts:
    """Attention of mixing (Eq. 4.4) and fusion (Eq. 4.5) on a map of one window, whose softmax has one key."""
    if attn.pad_first or not one_window(height, width, attn.window_size):
        return {}
    return {"matmul": 2 * (height * width + 1) * attn.num_heads * attn.head_dim}


def partial_attention(attn: PartialAttention, height: int, width: int) -> Amounts:
    """Queries, keys and values of the background.

    Our form avoids them by two products with the weights, and attends in the width of the tokens.
    """
    if attn.channel_mlp is None:
        return {}
    tokens, dim = height * width, attn.head_dim * attn.num_heads
    background = tokens - foreground_count(tokens, attn.numerator, attn.denominator, attn.max_foreground)
    return {
        "linear": 3 * background * dim**2 - 2 * dim**2,
        "matmul": 2 * background * dim - 2 * attn.num_heads * tokens * dim,
    }


#: class of a module -> its correction for an input map of (height, width), by the categories of `Counts`
CORRECTIONS: dict[type[nn.Module], Correction] = {
    MatAttention: mat_attention,
    PaleAttention: pale_attention,
    PaleBlock: pale_block,
    PartialAttention: partial_attention,
}


def correction_of(module: nn.Module) -> Correction | None:
    """The correction of a module: that of its class or of the nearest base class; None if it has none."""
    return next((CORRECTIONS[kind] for kind in type(module).__mro__ if kind in CORRECTIONS), None)
