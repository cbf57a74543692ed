"""UperNet: pyramid pooling on the coarsest map, then a feature pyramid (Xiao et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import check_counts, check_widths, conv_norm_act, resize

POOLED = (1, 2, 3, 6)


class UperNet(nn.Module):
    """Pyramid pooling, top-down additions, everything joined at stride 4.

    Args:
        in_chs: widths of the four maps, finest first.
        num_classes: outputs.
        channels: of all inner maps.
        aux_channels: of the auxiliary classifier on the third map, which training uses; 0 = none.
        dropout: share of channels dropped before a classifier.
    """

    def __init__(
        self,
        in_chs: Sequence[int],
        num_classes: int = 150,
        channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        check_widths(in_chs)
        check_counts(num_classes=num_classes, channels=channels)
        if aux_channels < 0:
            raise ValueError(f"aux_channels={aux_channels!r} must be 0 (none) or more.")
        self.pools = nn.ModuleList(conv_norm_act(in_chs[-1], channels, 1) for _ in POOLED)
        self.bottleneck = conv_norm_act(in_chs[-1] + len(POOLED) * channels, channels)
        self.laterals = nn.ModuleList(conv_norm_act(width, channels, 1) for width in in_chs[:-1])
        self.outputs = nn.ModuleList(conv_norm_act(channels, channels) for _ in in_chs[:-1])
        self.fuse = conv_norm_act(4 * channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary = FCN(in_chs[2], num_classes, aux_channels, dropout) if aux_channels else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Four maps at strides 4 to 32 -> logits (B, classes, H/4, W/4); in training also the auxiliary ones at 16."""
        x = self.pooled(maps[-1])
        levels = [x]
        for finer, lateral in zip(maps[-2::-1], self.laterals[::-1], strict=True):
            own = lateral(finer)
            x = own + resize(x, own.shape[-2:])
            levels.insert(0, x)
        levels = [*(conv(level) for conv, level in zip(self.outputs, levels[:-1], strict=True)), levels[-1]]
        joined = torch.cat([resize(level, maps[0].shape[-2:]) for level in levels], 1)
        logits = self.classifier(self.dropout(self.fuse(joined)))
        if self.training and self.auxiliary is not None:
            return logits, self.auxiliary(maps[2])
        return logits

    def pooled(self, x: Tensor) -> Tensor:
        """The coarsest map joined with means over 1, 4, 9 and 36 parts of it."""
        means = (conv(F.adaptive_avg_pool2d(x, side)) for side, conv in zip(POOLED, self.pools, strict=True))
        return self.bottleneck(torch.cat([x, *(resize(mean, x.shape[-2:]) for mean in means)], 1))


class FCN(nn.Sequential):
    """A 3x3 convolution and a classifier.

    Args:
        in_chs: width of the map.
        num_classes: outputs.
        channels: inner ones.
        dropout: share of channels dropped before the classifier.
    """

    def __init__(self, in_chs: int, num_classes: int, channels: int = 256, dropout: float = 0.1):
        super().__init__(conv_norm_act(in_chs, channels), nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))
