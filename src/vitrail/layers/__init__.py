"""Layers shared by two or more networks: attention, windows, convolutions, MLP, patch embedding."""

from .attention import attention
from .checks import blocks_per_stage, check_choice, check_divides, per_stage
from .classifier import HiddenHead
from .conv import ConvNormAct, ConvPositionEncoding, PatchEmbedConv, Pointwise, channels_last
from .mlp import Mlp
from .unfold import fold3x3, unfold3x3
from .windows import (
    one_window,
    pad_to_multiple,
    round_up,
    sizes_known,
    window_key_mask,
    window_partition,
    window_reverse,
)

__all__ = [
    "ConvNormAct",
    "ConvPositionEncoding",
    "HiddenHead",
    "Mlp",
    "PatchEmbedConv",
    "Pointwise",
    "attention",
    "blocks_per_stage",
    "channels_last",
    "check_choice",
    "check_divides",
    "fold3x3",
    "one_window",
    "pad_to_multiple",
    "per_stage",
    "round_up",
    "sizes_known",
    "unfold3x3",
    "window_key_mask",
    "window_partition",
    "window_reverse",
]
