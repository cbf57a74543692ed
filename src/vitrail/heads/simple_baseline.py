"""Simple Baseline: heat maps of keypoints by transposed convolutions (Xiao et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from .common import check_counts, check_widths


class SimpleBaseline(nn.Sequential):
    """Three transposed convolutions from stride 32 to stride 4, and one heat map a keypoint.

    Args:
        in_chs: widths of the four maps; the last is read.
        num_keypoints: heat maps.
        deconv_channels: of the transposed convolutions.
    """

    def __init__(self, in_chs: Sequence[int], num_keypoints: int = 17, deconv_channels: int = 256):
        check_widths(in_chs)
        check_counts(num_keypoints=num_keypoints, deconv_channels=deconv_channels)
        widths = [in_chs[-1], *3 * [deconv_channels]]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            deconv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)
            layers += [deconv, nn.BatchNorm2d(after), nn.ReLU()]
        final = nn.Conv2d(deconv_channels, num_keypoints, 1)
        nn.init.normal_(final.weight, std=0.001)
        nn.init.zeros_(final.bias)  # pyright: ignore[reportArgumentType]
        super().__init__(*layers, final)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps at strides 4 to 32 -> heat maps (B, keypoints, H/4, W/4)."""
        return super().forward(maps[-1])
