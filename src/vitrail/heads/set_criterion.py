"""Set-prediction losses of detectors, with one-to-one matching (DETR, Carion et al., ECCV 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

#: weights of focal loss, L1 and GIoU, in the matching and in the loss
FOCAL, L1, GIOU = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0
#: bias of class logits, so that every class begins with a probability of 0.01
PRIOR_BIAS = -math.log(99)


def set_losses(
    predictions: Sequence[tuple[Tensor, Tensor]], targets: Sequence[dict[str, Tensor]], sizes: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """Focal, L1 and GIoU losses of every stage, over the number of objects of the batch; their sum is the loss.

    Args:
        predictions: of each stage logits (B, N, classes) and boxes (B, N, 4) in pixels.
        targets: {"boxes" (n, 4) in pixels, "labels" (n,)} of each image.
        sizes: (height, width) of each image, by which L1 is measured.
    """
    objects = max(1, sum(len(target["labels"]) for target in targets))
    losses = {}
    for i, (logits, boxes) in enumerate(predictions):
        for name, loss in _stage_losses(logits, boxes, targets, sizes).items():
            losses[f"stage{i}_{name}"] = loss / objects
    return losses


def _stage_losses(
    logits: Tensor, boxes: Tensor, targets: Sequence[dict[str, Tensor]], sizes: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    wanted, found, true, scales = torch.zeros_like(logits), [], [], []
    for i, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
        scale = boxes.new_tensor([width, height, width, height])
        rows, columns = match(logits[i], boxes[i], target, scale)
        wanted[i, rows, target["labels"][columns]] = 1
        found.append(boxes[i, rows])
        true.append(target["boxes"][columns])
        scales.append(scale.expand(len(rows), 4))
    ours, theirs, scale = torch.cat(found), torch.cat(true), torch.cat(scales)
    return {
        "classification": FOCAL * sigmoid_focal_loss(logits, wanted, ALPHA, GAMMA, reduction="sum"),
        "bbox": L1 * F.l1_loss(ours / scale, theirs / scale, reduction="sum"),
        "giou": GIOU * generalized_box_iou_loss(ours, theirs, reduction="sum"),
    }


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, target: dict[str, Tensor], scale: Tensor) -> tuple[Tensor, Tensor]:
    """Hungarian matching: indices of boxes and of their objects, each at most once, at the least cost.

    Args:
        logits: (N, classes).
        boxes: (N, 4) in pixels.
        target: {"boxes" (n, 4), "labels" (n,)}.
        scale: width, height, width, height of the image.
    """
    from scipy.optimize import linear_sum_assignment

    p = logits.float().sigmoid()[:, target["labels"]]
    here = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log()
    absent = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
    # not by cdist, which autocast would run in bfloat16
    distance = (boxes[:, None] / scale - target["boxes"] / scale).abs().sum(-1)
    cost = FOCAL * (here - absent) + L1 * distance - GIOU * generalized_box_iou(boxes, target["boxes"])
    # of values that are not finite any match will do: the loss says that they are not
    rows, columns = linear_sum_assignment(cost.nan_to_num().cpu().numpy())
    return torch.from_numpy(rows).to(boxes.device), torch.from_numpy(columns).to(boxes.device)
