"""RetinaNet (Lin et al., ICCV 2017), on torchvision's: boxes from anchors on every level of a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..layers.checks import check_choice
from ..layers.rebuild import rebuild
from .common import (
    INITS,
    STRIDES,
    Anchors,
    BackboneMethods,
    BackboneWithFPN,
    Resizing,
    check_counts,
    check_torchvision_options,
    check_widths,
    fpn,
    num_positive_boxes,
    xavier,
)

#: strides of the levels P3 to P7
LEVEL_STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)


class RetinaNet(BackboneMethods, detection.RetinaNet):
    """Feature pyramid P3 to P7, and two towers of convolutions that all levels share.

    Args:
        body: gives its four maps at strides 4 to 32 for images (B, C, H, W).
        in_chs: widths of the four maps, finest first; the finest is not used.
        num_classes: without background; labels count from 0.
        channels: of the pyramid and the towers.
        p6: "on_input" makes P6 from the coarsest map, as the papers' counts ask for, "on_output" from P5.
        init: "default" (towers normal with a deviation of 0.01, as torchvision's), or "xavier" for every new layer; the
            classes' bias is that of a probability of 0.01 either way.
        options: of torchvision's `RetinaNet`, such as `min_size`, `score_thresh`, `detections_per_img`.

    Takes and gives what torchvision's `RetinaNet` does.
    """

    def __init__(
        self,
        body: nn.Module,
        in_chs: Sequence[int],
        num_classes: int = 80,
        channels: int = 256,
        p6: str = "on_input",
        init: str = "default",
        **options: Any,
    ):
        check_widths(in_chs)
        check_counts(num_classes=num_classes, channels=channels)
        check_choice("p6", p6, ("on_input", "on_output"))
        check_choice("init", init, INITS)
        check_torchvision_options(options, detection.RetinaNet, "num_classes", "anchor_generator", "head")
        extra = CoarserLevels(in_chs[-1] if p6 == "on_input" else channels, channels, p6 == "on_input")
        backbone = BackboneWithFPN(body, fpn(in_chs[1:], channels, extra), used=slice(1, len(STRIDES)))
        # three sizes an octave, four strides large
        sizes = tuple(tuple(4.0 * stride * 2 ** (k / 3) for k in range(3)) for stride in LEVEL_STRIDES)
        anchors = Anchors(sizes, (RATIOS,) * len(sizes))  # pyright: ignore[reportArgumentType]
        head = SharedTowers(channels, anchors.num_anchors_per_location()[0], num_classes)
        if init == "xavier":
            xavier(head)
            nn.init.constant_(cast(Tensor, head.classification_head.cls_logits.bias), -math.log(99))
        options = {"detections_per_img": 100, **options}
        super().__init__(backbone, num_classes, anchor_generator=anchors, head=head, **options)
        self.transform = rebuild(self.transform, Resizing)

    def loss_normalizers(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, int]:
        """Divisors of the losses by name, "" for all others: the positive anchors; see `num_positive_boxes`."""
        return {"": num_positive_boxes(self, LEVEL_STRIDES, images, targets)}


class CoarserLevels(ExtraFPNBlock):
    """P6 and P7: 3x3 convolutions of stride 2, without an activation between them.

    torchvision's block takes P5 whenever the two widths are equal, and puts a ReLU before P7.

    Args:
        in_channels: of what P6 is made from.
        channels: of the levels.
        on_input: P6 is made from the coarsest map, not from P5.
    """

    def __init__(self, in_channels: int, channels: int, on_input: bool):
        super().__init__()
        self.on_input = on_input
        self.p6 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Levels, the maps they were made from, their names -> the levels and names with two more."""
        p6 = self.p6(x[-1] if self.on_input else results[-1])
        return [*results, p6, self.p7(p6)], [*names, "p6", "p7"]


class SharedTowers(RetinaNetHead):
    """torchvision's towers; their losses are averaged over the positive anchors of the whole batch.

    What leaves them is float32, also under autocast, and so are boxes and losses, which are made from it.
    """

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Levels (B, C, H, W) -> "cls_logits" (B, anchors, classes) and "bbox_regression" (B, anchors, 4)."""
        return {name: output.float() for name, output in super().forward(x).items()}

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss and L1: sums over all images, divided by their number of positive anchors."""
        totals: dict[str, Tensor] = {}
        positives = [int((matched >= 0).sum()) for matched in matched_idxs]
        for i, (target, own, matched, count) in enumerate(zip(targets, anchors, matched_idxs, positives, strict=True)):
            outputs = {name: output[i : i + 1] for name, output in head_outputs.items()}
            # torchvision averages over the positive anchors of each image
            for name, mean in super().compute_loss([target], outputs, [own], [matched]).items():
                totals[name] = totals.get(name, mean.new_zeros(())) + mean * max(1, count)
        return {name: total / max(1, sum(positives)) for name, total in totals.items()}
