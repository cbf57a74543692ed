"""SegFormer's head: one linear layer a level, everything joined at stride 4 (Xie et al., NeurIPS 2021; LVT, 7.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .common import check_counts, check_widths, conv_norm_act, resize


class SegFormerHead(nn.Module):
    """Linear layers to one width, bilinear up-sampling, a 1x1 convolution over all levels, coarsest first.

    Args:
        in_chs: widths of the four maps, finest first.
        num_classes: outputs.
        channels: of every level.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(self, in_chs: Sequence[int], num_classes: int = 150, channels: int = 256, dropout: float = 0.1):
        super().__init__()
        check_widths(in_chs)
        check_counts(num_classes=num_classes, channels=channels)
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_chs)
        self.fuse = conv_norm_act(4 * channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps at strides 4 to 32 -> logits (B, classes, H/4, W/4)."""
        size = maps[0].shape[-2:]
        levels = [resize(project(x), size) for x, project in zip(maps, self.projections, strict=True)]
        return self.classifier(self.dropout(self.fuse(torch.cat(levels[::-1], 1))))
