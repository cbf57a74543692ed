"""SSDLite (Sandler et al., CVPR 2018), on torchvision's SSD: boxes from coarse maps by depthwise convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from ..layers.checks import check_choice
from ..layers.rebuild import rebuild
from .common import (
    BackboneMethods,
    DefaultBoxes,
    Resizing,
    check_counts,
    check_torchvision_options,
    check_widths,
    num_positive_boxes,
)

#: convolutions are followed by batch normalisation and ReLU6
layer = partial(Conv2dNormActivation, activation_layer=nn.ReLU6, inplace=False)


class SSDLite(BackboneMethods, SSD):
    """SSD over six levels: the maps at strides 16 and 32 and four coarser ones, with six default boxes a position.

    Args:
        body: gives its four maps at strides 4 to 32 for images (B, C, H, W).
        in_chs: widths of the four maps, finest first; the finer two are not used.
        num_classes: without background; labels count from 1, 0 is the background.
        extra_channels: widths of the coarser levels.
        num_anchors: 6, or 4 without the aspect ratios 3 and 1/3.
        image_size: (height, width) to which every image is resized.
        options: of torchvision's `SSD`, such as `score_thresh`, `nms_thresh`, `detections_per_img`.

    Takes and gives what torchvision's `SSD` does.
    """

    def __init__(
        self,
        body: nn.Module,
        in_chs: Sequence[int],
        num_classes: int = 80,
        extra_channels: Sequence[int] = (512, 256, 256, 256),
        num_anchors: int = 6,
        image_size: tuple[int, int] = (320, 320),
        **options: Any,
    ):
        check_widths(in_chs)
        check_counts(num_classes=num_classes)
        check_counts(height=image_size[0], width=image_size[1])
        check_choice("num_anchors", num_anchors, (4, 6))
        check_torchvision_options(options, SSD, "anchor_generator", "size", "num_classes", "head")
        if min(extra_channels, default=0) < 2:
            raise ValueError(f"extra_channels={list(extra_channels)!r} must be widths of 2 or more.")
        widths = [*in_chs[2:], *extra_channels]
        ratios = [[2, 3] if num_anchors == 6 else [2] for _ in widths]  # and their inverses, and two squares
        head = LiteHead(widths, [num_anchors] * len(widths), num_classes + 1, nn.BatchNorm2d)
        backbone = CoarserMaps(body, in_chs[-1], extra_channels)
        for module in (*head.modules(), *backbone.extra.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)
        super().__init__(
            backbone,
            DefaultBoxes(ratios, min_ratio=0.2, max_ratio=0.95),
            (image_size[1], image_size[0]),
            num_classes + 1,
            head=head,
            **{"score_thresh": 0.02, **options},
        )
        self.transform = rebuild(self.transform, Resizing)
        self.strides = [16 * 2**i for i in range(len(widths))]

    def loss_normalizers(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, int]:
        """Divisors of the losses by name, "" for all others: the positive boxes; see `num_positive_boxes`."""
        return {"": num_positive_boxes(self, self.strides, images, targets)}


class LiteHead(SSDLiteHead):
    """torchvision's head with float32 outputs, also under autocast: boxes and losses are made from them."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Levels (B, C, H, W) -> "cls_logits" (B, boxes, classes) and "bbox_regression" (B, boxes, 4)."""
        return {name: output.float() for name, output in super().forward(x).items()}


class CoarserMaps(nn.Module):
    """The coarser two of a backbone's maps, and further ones that each halve the one before.

    Args:
        body: gives its four maps for images (B, C, H, W).
        width: of the coarsest.
        extra_channels: widths of the further ones.

    Shapes: images (B, C, H, W) -> the maps by name, finest first.
    """

    def __init__(self, body: nn.Module, width: int, extra_channels: Sequence[int]):
        super().__init__()
        self.body = body
        before = [width, *extra_channels[:-1]]
        self.extra = nn.ModuleList(downsample(a, b) for a, b in zip(before, extra_channels, strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images -> maps, see above."""
        maps = list(self.body(x)[2:])
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        return {str(i): x for i, x in enumerate(maps)}


def downsample(in_chs: int, out_chs: int) -> nn.Sequential:
    """Down-sampling block: 1x1 to half the width, 3x3 depthwise of stride 2, 1x1 to the full width."""
    inner = out_chs // 2
    return nn.Sequential(
        layer(in_chs, inner, 1), layer(inner, inner, 3, stride=2, groups=inner), layer(inner, out_chs, 1)
    )
