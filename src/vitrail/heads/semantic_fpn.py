"""Semantic FPN: semantic segmentation from a feature pyramid (Kirillov et al., Panoptic FPN, CVPR 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from ..layers.checks import check_choice
from .common import INITS, check_counts, check_widths, conv_norm_act, fpn, fpn_levels, resize, xavier

#: 3x3 convolutions of each level: one for each doubling of its size, at least one
DEPTHS = (1, 1, 2, 3)


class SemanticFPN(nn.Module):
    """Feature pyramid of 256 channels, each level up-sampled step by step to stride 4, their sum classified.

    Args:
        in_chs: widths of the four maps, finest first.
        num_classes: outputs.
        channels: of the up-sampling paths.
        fpn_channels: of the pyramid.
        dropout: share of channels dropped before the classifier.
        init: "default", as PyTorch's, or "xavier" for every layer.
    """

    def __init__(
        self,
        in_chs: Sequence[int],
        num_classes: int = 150,
        channels: int = 128,
        fpn_channels: int = 256,
        dropout: float = 0.1,
        init: str = "default",
    ):
        super().__init__()
        check_choice("init", init, INITS)
        check_widths(in_chs)
        check_counts(num_classes=num_classes, channels=channels, fpn_channels=fpn_channels)
        self.fpn = fpn(in_chs, fpn_channels)
        self.pixels = PixelBranch(fpn_channels, num_classes, channels, dropout)
        if init == "xavier":
            xavier(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_i, H/s, W/s) at strides 4 to 32 -> logits (B, classes, H/4, W/4)."""
        return self.pixels(fpn_levels(self.fpn, maps))


class PixelBranch(nn.Module):
    """Levels of a feature pyramid up-sampled step by step to the finest one, their sum classified.

    Args:
        in_chs: width of the levels.
        num_classes: outputs.
        channels: of the up-sampling paths.
        dropout: share of channels dropped before the classifier.
        norm_layer: makes the normalisation of so many channels.
    """

    def __init__(
        self,
        in_chs: int,
        num_classes: int,
        channels: int,
        dropout: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(
                conv_norm_act(channels if i else in_chs, channels, norm_layer=norm_layer) for i in range(depth)
            )
            for depth in DEPTHS
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Four levels (B, C, H/s, W/s), finest first -> logits (B, classes, H/4, W/4)."""
        sizes = [x.shape[-2:] for x in levels]
        total: Tensor | None = None
        for level, (x, path) in enumerate(zip(levels, self.paths, strict=True)):
            for step, conv in enumerate(cast(nn.ModuleList, path)):
                x = resize(conv(x), sizes[max(level - 1 - step, 0)])  # twice the size, or that of the odd finer map
            total = x if total is None else total + x
        assert total is not None
        return self.classifier(self.dropout(total))
