"""Panoptic FPN: Mask R-CNN and semantic segmentation on one feature pyramid (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from .common import check_counts
from .mask_rcnn import MaskRCNN
from .semantic_fpn import PixelBranch

IGNORE = 255
#: groups of the normalisation before every activation of the semantic branch
GROUPS = 12
#: pixels below which stuff is left out of COCO's results, and (height, width) of most of its images
MIN_STUFF_AREA, COCO_SIZE = 4096, (480, 640)


class PanopticFPN(MaskRCNN):
    """Mask R-CNN for things, and a semantic branch for stuff, in which all things are one class.

    Args:
        body: gives its four maps at strides 4 to 32 for images (B, C, H, W).
        in_chs: widths of the four maps, finest first.
        num_things: classes of things; their labels count from 1.
        num_stuff: classes of stuff, 0 to num_stuff - 1 in maps; num_stuff there is any thing, 255 is ignored.
        channels: of the pyramid and the mask head.
        fc_channels: of the box head.
        semantic_channels: of the semantic branch, a multiple of 12.
        semantic_weight: of its loss.
        options: of `MaskRCNN`.

    Shapes: list of images (C, H, W) of any sizes; in training with targets as `MaskRCNN`'s and "semantic" (H, W)
        integers -> its losses and "loss_semantic"; else its detections with "semantic" (classes, H, W) logits, for
        `merge`.
    """

    semantic: PixelBranch

    def __init__(
        self,
        body: nn.Module,
        in_chs: Sequence[int],
        num_things: int = 80,
        num_stuff: int = 53,
        channels: int = 96,
        fc_channels: int = 160,
        semantic_channels: int = 48,
        semantic_weight: float = 0.5,
        **options: Any,
    ):
        check_counts(num_things=num_things, num_stuff=num_stuff)
        if semantic_channels < 1 or semantic_channels % GROUPS:
            raise ValueError(f"semantic_channels={semantic_channels!r} must be a multiple of {GROUPS}.")
        super().__init__(body, in_chs, num_classes=num_things, channels=channels, fc_channels=fc_channels, **options)
        norm = partial(nn.GroupNorm, GROUPS)
        self.semantic = PixelBranch(channels, num_stuff + 1, semantic_channels, norm_layer=norm)
        self.semantic_weight = semantic_weight

    def loss_normalizers(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, int]:
        """Divisors of the losses by name, "" for all others: the images; of the semantic loss the labelled pixels."""
        sizes = cast(Any, self.transform).sizes(images, targets)
        padded = [side // 4 for side in targets[0]["padded"]]
        truth = quarter_maps([target["semantic"] for target in targets], sizes, padded)
        return {"": len(images), "loss_semantic": int((truth != IGNORE).sum())}

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, else detections and semantic logits, see above.

        Raises:
            ValueError: training without targets.
        """
        if self.training and targets is None:
            raise ValueError("targets=None is not allowed in training; give what is in every image.")
        original = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, resized = self.transform(images, targets)
        levels = self.backbone(batch.tensors)
        logits = self.semantic(list(levels.values())[:4]).float()
        proposals, losses = self.rpn(batch, levels, resized)
        found, roi_losses = self.roi_heads(levels, proposals, batch.image_sizes, resized)
        if self.training:
            assert targets is not None
            truth = quarter_maps([target["semantic"] for target in targets], batch.image_sizes, logits.shape[-2:])
            classes = F.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="sum")
            labelled = (truth != IGNORE).sum().clamp(min=1)  # a batch without labels has no loss
            return {**losses, **roi_losses, "loss_semantic": self.semantic_weight * classes / labelled}
        results = cast(Any, self.transform).postprocess(found, batch.image_sizes, original)
        for result, own, inner, outer in zip(results, logits, batch.image_sizes, original, strict=True):
            result["semantic"] = full_size(own, inner, outer)
        return results


def quarter_maps(maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], padded: Sequence[int]) -> Tensor:
    """Class maps at a quarter of the resized images' sizes, 255 in the padding: (B, H/4, W/4)."""
    made = maps[0].new_full((len(maps), *padded), IGNORE, dtype=torch.long)
    for own, truth, size in zip(made, maps, sizes, strict=True):
        height, width = (-(-side // 4) for side in size)
        small = F.interpolate(truth[None, None].float(), (height, width), mode="nearest-exact")
        own[:height, :width] = small[0, 0].long()
    return made


def full_size(logits: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> Tensor:
    """Logits (classes, H/4, W/4) of a padded image at its original size: up by 4, without the padding, resized."""
    large = F.interpolate(logits[None], scale_factor=4, mode="bilinear", align_corners=False)
    return F.interpolate(large[:, :, : inner[0], : inner[1]], outer, mode="bilinear", align_corners=False)[0]


def merge(
    result: dict[str, Tensor],
    score_thresh: float = 0.6,
    nms_thresh: float = 0.5,
    mask_thresh: float = 0.5,
    overlap_thresh: float = 0.5,
    min_stuff_area: int | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """One segment for every pixel: things by their scores, best first, then stuff where none lies.

    Args:
        result: of `PanopticFPN`: "boxes", "labels", "scores", "masks" (N, 1, H, W), "semantic" (classes, H, W).
        score_thresh: minimum score of a thing.
        nms_thresh: of two boxes that overlap more, whatever their classes, the better stays.
        mask_thresh: probability from which a pixel belongs to a thing.
        overlap_thresh: a thing is left out if better ones already cover more than this share of it.
        min_stuff_area: pixels below which stuff is left out; None = `default_min_stuff_area`.

    Returns:
        (H, W) integers, 0 where nothing is known, and for each number {"id", "thing": bool, "label": of the thing
        (from 1) or the stuff (from 0), "score": of a thing, else None, "area": pixels}.
    """
    stuff = result["semantic"].argmax(0)
    segments = torch.zeros_like(stuff)
    known: list[dict[str, Any]] = []
    kept = nms(result["boxes"], result["scores"], nms_thresh)
    for i in kept[result["scores"][kept] >= score_thresh].tolist():
        mask = result["masks"][i, 0] >= mask_thresh
        free = mask & (segments == 0)
        total, area = int(mask.sum()), int(free.sum())
        if area == 0 or total - area > overlap_thresh * total:
            continue
        _add_segment(
            segments, known, free, thing=True, label=int(result["labels"][i]), score=float(result["scores"][i])
        )
    free = segments == 0
    smallest = default_min_stuff_area(*stuff.shape) if min_stuff_area is None else min_stuff_area
    for label in range(len(result["semantic"]) - 1):  # the last one says "a thing", which none of the boxes found
        mask = free & (stuff == label)
        if int(mask.sum()) >= max(1, smallest):
            _add_segment(segments, known, mask, thing=False, label=label, score=None)
    return segments, known


def default_min_stuff_area(height: int, width: int) -> int:
    """Pixels below which stuff is left out of an image: COCO's 4096, which is 1/75 of most of its images.

    For images of less than a quarter of that size, of which 4096 would be much or all, it is 1/75 of the image.
    """
    area, coco_area = height * width, COCO_SIZE[0] * COCO_SIZE[1]
    return MIN_STUFF_AREA if 4 * area >= coco_area else MIN_STUFF_AREA * area // coco_area


def _add_segment(segments: Tensor, known: list[dict[str, Any]], mask: Tensor, **what: Any) -> None:
    segments[mask] = len(known) + 1
    known.append({"id": len(known) + 1, **what, "area": int(mask.sum())})
