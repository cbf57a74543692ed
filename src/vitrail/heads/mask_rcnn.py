"""Mask R-CNN (He et al., ICCV 2017), on torchvision's: region proposals, their boxes and their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..layers.checks import check_choice
from ..layers.rebuild import rebuild
from .common import (
    INITS,
    Anchors,
    BackboneMethods,
    BackboneWithFPN,
    ExactAnchors,
    RegionPool,
    Resizing,
    check_counts,
    check_torchvision_options,
    check_widths,
    fpn,
    xavier,
)

LEVEL_STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
#: most samples of RoIAlign per bin and axis
MAX_SAMPLING = 16
#: options of torchvision's class that this head sets itself
SET_HERE = (
    "rpn_anchor_generator",
    "rpn_head",
    "box_roi_pool",
    "box_head",
    "box_predictor",
    "mask_roi_pool",
    "mask_head",
    "mask_predictor",
)
Targets = list[dict[str, Tensor]]


class MaskRCNN(BackboneMethods, detection.MaskRCNN):
    """Feature pyramid P2 to P6, region proposals, and for each of them classes, boxes and masks.

    Boxes and masks are predicted for each class, none for the background, which keeps the reported parameters; boxes
    learn by L1.

    Args:
        body: gives its four maps at strides 4 to 32 for images (B, C, H, W).
        in_chs: widths of the four maps, finest first.
        num_classes: without background; labels count from 1, 0 is the background.
        channels: of the pyramid and the mask head.
        fc_channels: of the box head.
        init: "default", as torchvision's, or "xavier" for every new layer.
        aligned, sampling_ratio: of RoIAlign, see `RegionPool`; MMDetection's weights want True and 0.
        round_anchors: round the sides of anchors to pixels, as torchvision does; MMDetection's weights want False.
        options: of torchvision's `MaskRCNN`, such as `min_size`, `box_score_thresh`, `box_detections_per_img`.

    Takes and gives what torchvision's `MaskRCNN` does.
    """

    def __init__(
        self,
        body: nn.Module,
        in_chs: Sequence[int],
        num_classes: int = 80,
        channels: int = 256,
        fc_channels: int = 1024,
        init: str = "default",
        aligned: bool = False,
        sampling_ratio: int = 2,
        round_anchors: bool = True,
        **options: Any,
    ):
        check_widths(in_chs)
        check_counts(num_classes=num_classes, channels=channels, fc_channels=fc_channels)
        check_choice("init", init, INITS)
        if not 0 <= sampling_ratio <= MAX_SAMPLING:
            raise ValueError(f"sampling_ratio={sampling_ratio!r} must be from 0 to {MAX_SAMPLING}.")
        check_torchvision_options(options, detection.MaskRCNN, "num_classes", *SET_HERE)
        sizes = tuple((8 * stride,) for stride in LEVEL_STRIDES)
        anchors = (Anchors if round_anchors else ExactAnchors)(sizes, (RATIOS,) * len(sizes))
        super().__init__(
            BackboneWithFPN(body, fpn(in_chs, channels, LastLevelMaxPool())),
            rpn_anchor_generator=anchors,
            rpn_head=ProposalHead(channels, anchors.num_anchors_per_location()[0]),
            box_roi_pool=RegionPool(7, sampling_ratio, aligned),
            box_head=detection.faster_rcnn.TwoMLPHead(channels * 7 * 7, fc_channels),
            box_predictor=BoxPredictor(fc_channels, num_classes),
            mask_roi_pool=RegionPool(14, sampling_ratio, aligned),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
            mask_predictor=MaskPredictor(channels, channels, num_classes),
            **{"rpn_pre_nms_top_n_test": 1000, **options},
        )
        # torchvision's constructor builds these three from its twenty options; ours differ in their methods only
        self.transform = rebuild(self.transform, Resizing)
        self.rpn = rebuild(self.rpn, L1Proposals)
        self.roi_heads = rebuild(self.roi_heads, L1RoIHeads)
        if init == "xavier":
            xavier(self.rpn, self.roi_heads)

    def loss_normalizers(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, int]:
        """Divisors of the losses by name, "" for all others: the images, as the samples of each have their own mean."""
        return {"": len(images)}


class ProposalHead(RPNHead):
    """torchvision's RPN head with float32 outputs, also under autocast: proposals and losses are made from them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels (B, C, H, W) -> objectness (B, anchors, H, W) and deltas (B, 4 * anchors, H, W) of each."""
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class BoxPredictor(FastRCNNPredictor):
    """Scores of classes and background, box deltas of the classes alone; the background's are zeros, never used.

    Both are float32, also under autocast.
    """

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, in_channels) -> scores (N, 1 + classes), deltas (N, 4 * (1 + classes))."""
        scores, deltas = super().forward(x)
        return scores.float(), F.pad(deltas.float(), (4, 0))


class MaskPredictor(MaskRCNNPredictor):
    """A mask for each class, float32 also under autocast; the background's is zeros, never used."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, 14, 14) -> logits (N, 1 + classes, 28, 28)."""
        return F.pad(super().forward(input).float(), (0, 0, 0, 0, 1, 0))


class L1Proposals(RegionProposalNetwork):
    """Region proposals whose boxes learn by L1; torchvision's learn by a smoothed one."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of objectness and L1 of the positive anchors' boxes, over the sampled anchors of each image."""
        found = self.fg_bg_sampler(labels)
        weights = torch.cat(
            sample_weights([(positive + negative) > 0 for positive, negative in zip(*found, strict=True)])
        )
        positive, negative = (torch.cat(own).nonzero()[:, 0] for own in found)
        sampled, targets = torch.cat([positive, negative]), torch.cat(regression_targets)
        boxes = F.l1_loss(pred_bbox_deltas[positive], targets[positive], reduction="none").sum(1)
        wanted = torch.cat(labels)[sampled]
        classes = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], wanted, reduction="none")
        return (classes * weights[sampled]).sum(), (boxes * weights[positive]).sum()


class L1RoIHeads(RoIHeads):
    """Classes, boxes and masks of the proposals; boxes learn by L1, torchvision's by a smoothed one."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """In training no detections and the three losses, else the detections and no losses."""
        if not self.training:
            return self.detect(features, proposals, image_shapes), {}
        assert targets is not None
        proposals, matched, labels, wanted = cast(Any, self.select_training_samples(proposals, targets))
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        weights = torch.cat(sample_weights([torch.ones_like(own, dtype=torch.bool) for own in labels]))
        classes, boxes = box_losses(logits, deltas, labels=torch.cat(labels), wanted=torch.cat(wanted), weights=weights)

        positive = [label > 0 for label in labels]
        regions = [proposal[own] for proposal, own in zip(proposals, positive, strict=True)]
        indices = [index[own] for index, own in zip(matched, positive, strict=True)]
        logits = self.masks(features, regions, image_shapes).split([len(own) for own in regions])
        # each image has its own mean, as of its boxes
        means = [
            maskrcnn_loss(
                own, [region], gt_masks=[target["masks"]], gt_labels=[target["labels"]], mask_matched_idxs=[index]
            )
            for own, region, target, index in zip(logits, regions, targets, indices, strict=True)
        ]
        masks = torch.stack(means).mean()
        return [], {"loss_classifier": classes, "loss_box_reg": boxes, "loss_mask": masks}

    def detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes with classes and scores after suppression, and the masks of their classes (N, 1, 28, 28)."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks = maskrcnn_inference(self.masks(features, boxes, image_shapes), labels)
        found = zip(boxes, scores, labels, masks, strict=True)
        return [{"boxes": b, "scores": s, "labels": n, "masks": m} for b, s, n, m in found]

    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Logits of a mask for each class in every box."""
        head, predictor, pool = cast(tuple[Any, ...], (self.mask_head, self.mask_predictor, self.mask_roi_pool))
        return predictor(head(pool(features, boxes, image_shapes)))


def sample_weights(chosen: Sequence[Tensor]) -> list[Tensor]:
    """Weights of the samples of each image: equal within an image, and 1 in total.

    Where every image has as many samples, as is common, the weighted sum is the mean over all of them.
    """
    return [own.float() / (own.sum().clamp(min=1) * len(chosen)) for own in chosen]


def box_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the classes, and L1 of the positive proposals' boxes, weighted over all proposals.

    Args:
        logits: (N, 1 + classes), background first.
        deltas: (N, 4 * (1 + classes)).
        labels: (N,), 0 for the background.
        wanted: (N, 4) deltas to the matched boxes.
        weights: (N,) of the proposals, see `sample_weights`.
    """
    positive = labels.nonzero()[:, 0]
    own = deltas.unflatten(1, (-1, 4))[positive, labels[positive]]
    boxes = F.l1_loss(own, wanted[positive], reduction="none").sum(1)
    classes = F.cross_entropy(logits, labels, reduction="none")
    return (classes * weights).sum(), (boxes * weights[positive]).sum()
