"""Cost of token mixers: formulas after Table 1.1 of the thesis with their constants, and counts of the papers' mixers.

The tests count a real module of each formula. N = height x width tokens, C channels, h heads; a cost is the
multiply-adds of one map, `weights` the entries of matrices and kernels, without biases, tables of positions and learned
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.mixers import MIXERS, Place, make_mixer
from .counting import Counts, count, rule_of

#: map of the example in Section 5.3.3 of the thesis: height, width, channels; heads of partial attention there
EXAMPLE, HEADS = (56, 56, 64), 8
#: side of windows, and of the cells of spatially reduced attention in stage 1
WINDOW, REDUCTION = 7, 8
#: partial attention in stage 1: tokens in the foreground, expansion of the head MLP, reduction and least width of the
#: channel MLP
FOREGROUND, EXPANSION, CHANNEL_REDUCTION, LEAST_WIDTH = 64, 2, 32, 8

Formula = Callable[[int, int, int, int], int]


@dataclass(frozen=True)
class MixerCost:
    """A token mixer by its formulas.

    Attributes:
        title: as the table names it.
        cost: multiply-adds, as a text.
        size: weights, as a text.
        input_dependent: its weights are made from the input.
        is_global: a token can get something from every other one.
        relative: its weights depend on the distance of two tokens.
        macs, weights: of (height, width, channels, heads).
    """

    title: str
    cost: str
    size: str
    input_dependent: bool
    is_global: bool
    relative: bool
    macs: Formula
    weights: Formula


def convolution(height: int, width: int, dim: int, heads: int, kernel: int = 3) -> int:
    """k^2 N C^2 of a k x k convolution."""
    return kernel**2 * height * width * dim**2


def depthwise(height: int, width: int, dim: int, heads: int, kernel: int = 7) -> int:
    """k^2 N C of a k x k depthwise convolution."""
    return kernel**2 * height * width * dim


def spatial_mlp(height: int, width: int, dim: int, heads: int) -> int:
    """N^2 C of one matrix over all positions."""
    return (height * width) ** 2 * dim


def self_attention(height: int, width: int, dim: int, heads: int) -> int:
    """4 N C^2 + 2 N^2 C: four projections and two products of all tokens with all tokens."""
    tokens = height * width
    return 4 * tokens * dim**2 + 2 * tokens**2 * dim


def window_attention(height: int, width: int, dim: int, heads: int, window: int = WINDOW) -> int:
    """4 N C^2 + 2 N w^2 C, for sides that windows divide."""
    tokens = height * width
    return 4 * tokens * dim**2 + 2 * tokens * window**2 * dim


def reduced_attention(height: int, width: int, dim: int, heads: int, reduction: int = REDUCTION) -> int:
    """2 N C^2 + r^2 C^2 N / r^2 + 2 C^2 N / r^2 + 2 N^2 C / r^2, for sides that cells divide.

    Query and output of all tokens, the convolution that reduces, key and value of the cells, and the two products.
    """
    tokens, cells = height * width, height * width // reduction**2
    return 2 * tokens * dim**2 + reduction**2 * cells * dim**2 + 2 * cells * dim**2 + 2 * tokens * cells * dim


def mat_attention(height: int, width: int, dim: int, heads: int, window: int = WINDOW) -> int:
    """Windows with one more query each, attention among the windows' tokens, and fusion of them with all tokens.

    4 N C^2 + 2 M (w^2 + 1) w^2 C + 6 M C^2 + 2 M^2 C + 2 N M C, with M = N / w^2 windows (thesis, Eq. 4.2 to 4.5).
    """
    tokens, windows = height * width, height * width // window**2
    inside = 2 * windows * (window**2 + 1) * window**2 * dim
    among = 6 * windows * dim**2 + 2 * windows**2 * dim
    return 4 * tokens * dim**2 + inside + among + 2 * tokens * windows * dim


def partial_attention(height: int, width: int, dim: int, heads: int) -> int:
    """Partial attention as the thesis counts it (Eq. 5.9): queries, keys and values of every token.

    3 (N + 1) C^2 + F C^2 + 2 e h^2 F^2 + 2 C m + 2 F^2 C + 2 (N + 1 - F) C: F is the foreground and the abstract token,
    m the width of the channel MLP. Eq. 5.9 is printed with e h in the place of e h^2: the head MLP has two matrices of
    h x e h for each pair of tokens.
    """
    tokens = height * width
    own = _foreground(tokens) + 1
    products = 2 * own**2 * dim + 2 * (tokens + 1 - own) * dim
    return 3 * (tokens + 1) * dim**2 + own * dim**2 + _partial_mlps(own, dim, heads) + products


def partial_attention_executed(height: int, width: int, dim: int, heads: int) -> int:
    """Partial attention as it runs here: the background is never projected.

    4 F C^2 + 2 C^2 + 2 e h^2 F^2 + 2 C m + 2 F^2 C + 2 h N C: with one query a head, W_K and W_V are folded onto the
    query's side, and the products are over the width of the tokens.
    """
    tokens = height * width
    own = _foreground(tokens) + 1
    products = 2 * own**2 * dim + 2 * heads * tokens * dim
    return 4 * own * dim**2 + 2 * dim**2 + _partial_mlps(own, dim, heads) + products


def _foreground(tokens: int) -> int:
    return max(1, tokens // FOREGROUND)


def _partial_mlps(own: int, dim: int, heads: int) -> int:
    """Head MLP on every pair of the foreground, and channel MLP on the one query's result."""
    return 2 * EXPANSION * heads**2 * own**2 + 2 * dim * _channel_width(dim)


def _channel_width(dim: int) -> int:
    return max(LEAST_WIDTH, dim // CHANNEL_REDUCTION)


def _partial_weights(height: int, width: int, dim: int, heads: int) -> int:
    return 4 * dim**2 + 2 * EXPANSION * heads**2 + 2 * dim * _channel_width(dim)


#: by name; the names that `models.mixers.MIXERS` has are those of its modules
FORMULAS = {
    "convolution": MixerCost(
        "convolution 3x3",
        "k^2 N C^2",
        "k^2 C^2",
        input_dependent=False,
        is_global=False,
        relative=True,
        macs=convolution,
        weights=lambda height, width, dim, heads: 9 * dim**2,
    ),
    "depthwise": MixerCost(
        "depthwise convolution 7x7",
        "k^2 N C",
        "k^2 C",
        input_dependent=False,
        is_global=False,
        relative=True,
        macs=depthwise,
        weights=lambda height, width, dim, heads: 49 * dim,
    ),
    "spatial_mlp": MixerCost(
        "spatial MLP",
        "N^2 C",
        "N^2",
        input_dependent=False,
        is_global=True,
        relative=False,
        macs=spatial_mlp,
        weights=lambda height, width, dim, heads: (height * width) ** 2,
    ),
    "global": MixerCost(
        "self-attention",
        "4 N C^2 + 2 N^2 C",
        "4 C^2",
        input_dependent=True,
        is_global=True,
        relative=False,
        macs=self_attention,
        weights=lambda height, width, dim, heads: 4 * dim**2,
    ),
    "window": MixerCost(
        "window self-attention, w = 7",
        "4 N C^2 + 2 N w^2 C",
        "4 C^2",
        input_dependent=True,
        is_global=False,
        relative=True,
        macs=window_attention,
        weights=lambda height, width, dim, heads: 4 * dim**2,
    ),
    "spatial_reduction": MixerCost(
        "spatially reduced attention, r = 8",
        "2 N C^2 + N C^2 + 2 C^2 N / r^2 + 2 N^2 C / r^2",
        "4 C^2 + r^2 C^2",
        input_dependent=True,
        is_global=True,
        relative=False,
        macs=reduced_attention,
        weights=lambda height, width, dim, heads: (4 + REDUCTION**2) * dim**2,
    ),
    "mat": MixerCost(
        "MAT, w = 7, M = N / w^2",
        "4 N C^2 + 2 M (w^2 + 1) w^2 C + 6 M C^2 + 2 M^2 C + 2 N M C",
        "10 C^2",
        input_dependent=True,
        is_global=True,
        relative=False,
        macs=mat_attention,
        weights=lambda height, width, dim, heads: 10 * dim**2,
    ),
    "partial": MixerCost(
        "partial attention as the thesis counts it, F = N / 64 + 1",
        "3 (N + 1) C^2 + F C^2 + 2 e h^2 F^2 + 2 C m + 2 F^2 C + 2 (N + 1 - F) C",
        "4 C^2 + 2 e h^2 + 2 C m",
        input_dependent=True,
        is_global=True,
        relative=False,
        macs=partial_attention,
        weights=_partial_weights,
    ),
    "partial_executed": MixerCost(
        "partial attention as it runs here",
        "4 F C^2 + 2 C^2 + 2 e h^2 F^2 + 2 C m + 2 F^2 C + 2 h N C",
        "4 C^2 + 2 e h^2 + 2 C m",
        input_dependent=True,
        is_global=True,
        relative=False,
        macs=partial_attention_executed,
        weights=_partial_weights,
    ),
}

#: the papers' mixers without a formula above -> input-dependent weights, global, weights by distance
PROPERTIES = {
    "ladder": (True, False, True),
    "csa": (True, False, True),
    "rasa": (True, True, False),
    "pale_parallel": (True, False, False),
    "pale_sequential": (True, False, False),
    "pale_vanilla": (True, False, False),
    "pale_axial": (True, False, False),
    "pale_cross_shaped": (True, False, False),
    "ems": (True, True, True),
    "ems_static": (True, False, True),
    "ems_dynamic": (True, True, True),
}

#: Table 4.1 of the thesis: local attention, its windows, how they communicate, and the operation
LOCAL_ATTENTIONS = (
    ("Swin", "7x7", "cyclic shift", "roll"),
    ("HaloNet", "7x7", "sliding", "unfold and padding"),
    ("NAT", "7x7", "sliding", "CUDA kernels"),
    ("Slide-Transformer", "3x3, 7x7", "sliding", "depthwise convolution with special initial weights"),
    ("CSWin", "[7xH, Wx7]", "expanding", "reshape and concatenation"),
    ("Pale", "[7xH, Wx7]", "expanding", "slices and concatenation"),
    ("CrossFormer", "7x7", "shuffling", "reshape"),
    ("MAT", "7x7", "abstract tokens", "matrix products only"),
)


class Called(nn.Module):
    """A mixer as its host calls it: with the map before the norm, too, where it scores tokens by that."""

    def __init__(self, mixer: nn.Module, takes_raw: bool):
        super().__init__()
        self.mixer = mixer
        self.takes_raw = takes_raw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the mixer's output."""
        return self.mixer(x, x) if self.takes_raw else self.mixer(x)


def count_mixer(
    name: str, size: tuple[int, int, int], heads: int, as_written: bool = True, options: dict[str, Any] | None = None
) -> tuple[int, int]:
    """Multiply-adds of convolutions, linear layers and products of one map, and weights, of a mixer by its module.

    Args:
        name: of `models.mixers.MIXERS`.
        size: (height, width, channels).
        heads: of the stage.
        as_written: in the paper's formulation; else as it runs.
        options: of the mixer.
    """
    height, width, dim = size
    with torch.device("meta"):
        module = Called(make_mixer(name, Place(dim, heads), options), MIXERS[name].takes_raw).eval()
    counts = sum(count(module, (dim, height, width), as_written).values(), Counts())
    return counts.weighted(rule_of("executed").backbone), count_weights(module)


def count_weights(module: nn.Module) -> int:
    """Entries of matrices and kernels: no biases, norms, tables of positions or learned tokens."""
    return sum(
        p.numel()
        for name, p in module.named_parameters()
        if p.ndim >= 2 and "relative_position" not in name and not name.endswith("token")
    )
