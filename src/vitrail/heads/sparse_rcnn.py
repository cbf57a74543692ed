"""Sparse R-CNN: learned boxes, refined in stages, without anchors or suppression (Sun et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from .common import BackboneMethods, BackboneWithFPN, RegionPool, Resizing, check_counts, check_widths, fpn
from .set_criterion import PRIOR_BIAS, set_losses

POOLED = 7  # bins a side of a pooled region
Sizes = list[tuple[int, int]]


class SparseRCNN(BackboneMethods, nn.Module):
    """Feature pyramid P2 to P5, and stages that each refine the boxes from the features in them.

    Args:
        body: gives its four maps at strides 4 to 32 for images (B, C, H, W).
        in_chs: widths of the four maps, finest first.
        num_classes: without background; labels count from 0.
        num_proposals: boxes an image.
        num_stages: with weights of their own.
        channels: of the pyramid and of the proposal features.
        num_heads: of the attention between boxes.
        dynamic_channels: inner ones of the dynamic convolutions.
        mlp_channels: of the feed-forward layer.
        min_size, max_size: shorter side of the images, and what the longer may not exceed, in pixels.
        image_mean, image_std: of each channel.
        detections_per_img: boxes kept of an image, the best scores of all boxes and classes.

    Shapes: list of images (C, H, W) of any sizes; in training with targets {"boxes" (N, 4) in pixels, "labels" (N,)} ->
        losses {"stage0_classification", "stage0_bbox", "stage0_giou", ...}; else a list of {"boxes", "labels",
        "scores"}.
    """

    def __init__(
        self,
        body: nn.Module,
        in_chs: Sequence[int],
        num_classes: int = 80,
        num_proposals: int = 300,
        num_stages: int = 6,
        channels: int = 256,
        num_heads: int = 8,
        dynamic_channels: int = 64,
        mlp_channels: int = 2048,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        detections_per_img: int = 100,
    ):
        super().__init__()
        check_widths(in_chs)
        check_counts(num_classes=num_classes, num_proposals=num_proposals, num_stages=num_stages, channels=channels)
        check_counts(num_heads=num_heads, dynamic_channels=dynamic_channels, mlp_channels=mlp_channels)
        if channels % num_heads:
            raise ValueError(f"num_heads={num_heads!r} must divide channels={channels!r}.")
        self.detections_per_img = detections_per_img
        self.transform = Resizing(cast(Any, min_size), max_size, [*image_mean], [*image_std])
        self.backbone = BackboneWithFPN(body, fpn(in_chs, channels))
        self.proposal_boxes = nn.Embedding(num_proposals, 4)  # centre and size as shares of the image
        self.proposal_features = nn.Embedding(num_proposals, channels)
        nn.init.constant_(self.proposal_boxes.weight[:, :2], 0.5)
        nn.init.constant_(self.proposal_boxes.weight[:, 2:], 1.0)
        self.pool = RegionPool(POOLED)
        self.stages = nn.ModuleList(
            RefiningStage(
                channels, num_classes, num_heads=num_heads, dynamic_channels=dynamic_channels, mlp_channels=mlp_channels
            )
            for _ in range(num_stages)
        )

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses in training, else detections, see above.

        Raises:
            ValueError: training without targets.
        """
        if self.training and targets is None:
            raise ValueError("targets=None is not allowed in training; give boxes and labels of every image.")
        original = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, targets = self.transform(images, targets)
        predictions = self.refine(self.backbone(batch.tensors), batch.image_sizes)
        if self.training:
            assert targets is not None
            return set_losses(predictions, targets, batch.image_sizes)
        found = self.top_detections(*predictions[-1], batch.image_sizes)
        return self.transform.postprocess(found, batch.image_sizes, original)

    def loss_normalizers(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, int]:
        """Divisors of the losses by name, "" for all others: the objects."""
        return {"": sum(len(target["labels"]) for target in targets)}

    def refine(self, maps: dict[str, Tensor], sizes: Sizes) -> list[tuple[Tensor, Tensor]]:
        """Logits (B, N, classes) and boxes (B, N, 4) in pixels after every stage."""
        boxes = self.initial_boxes(sizes)
        features = self.proposal_features.weight.expand(len(sizes), -1, -1)
        predictions = []
        for stage in self.stages:
            regions = self.pool(maps, list(boxes), sizes)  # (B N, C, 7, 7)
            logits, refined, features = stage(features, regions, boxes)
            predictions.append((logits, refined))
            boxes = refined.detach()  # no gradient through the next stage's regions
        return predictions

    def initial_boxes(self, sizes: Sizes) -> Tensor:
        """The learned boxes in pixels of each image: (B, N, 4)."""
        centre, extent = self.proposal_boxes.weight.chunk(2, 1)
        shares = torch.cat([centre - extent / 2, centre + extent / 2], 1)
        # filled one by one, as the sides of an exported graph's image are no constants
        sides = [shares.new_full((1,), side) for height, width in sizes for side in (width, height, width, height)]
        return shares * torch.cat(sides).view(-1, 1, 4)

    def top_detections(self, logits: Tensor, boxes: Tensor, sizes: Sizes) -> list[dict[str, Tensor]]:
        """The best scores of all boxes and classes of each image; a box may be there under several classes."""
        classes, found = logits.shape[2], []
        for scores, own, size in zip(logits.sigmoid().flatten(1), boxes, sizes, strict=True):
            top, index = scores.topk(min(self.detections_per_img, len(scores)))
            kept = clip_boxes_to_image(own[index // classes], size)
            found.append({"boxes": kept, "labels": index % classes, "scores": top})
        return found


class RefiningStage(nn.Module):
    """Self-attention between the proposals of an image, a dynamic convolution of each region, class and box branches.

    Args:
        dim: channels.
        others: see `SparseRCNN`.

    Shapes: features (B, N, C), regions (B N, C, 7, 7), boxes (B, N, 4) -> logits (B, N, classes), boxes, features.
    """

    def __init__(self, dim: int, num_classes: int, num_heads: int, dynamic_channels: int, mlp_channels: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.look = DynamicConv(dim, dynamic_channels)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_channels), nn.ReLU(), nn.Linear(mlp_channels, dim))
        self.norm3 = nn.LayerNorm(dim)
        self.classes = nn.Sequential(*linear_norm_act(dim), nn.Linear(dim, num_classes))
        self.move = nn.Sequential(*(layer for _ in range(3) for layer in linear_norm_act(dim)), nn.Linear(dim, 4))
        self.coder = BoxCoder(weights=(2.0, 2.0, 1.0, 1.0))
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)
        nn.init.constant_(cast(nn.Linear, self.classes[-1]).bias, PRIOR_BIAS)

    def forward(self, features: Tensor, regions: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One refinement, see above."""
        x = self.norm1(features + self.attn(features, features, features, need_weights=False)[0])
        x = self.norm2(x + self.look(x.flatten(0, 1), regions).view_as(x))
        x = self.norm3(x + self.mlp(x))
        deltas = self.move(x).flatten(0, 1)
        refined = self.coder.decode_single(deltas.float(), boxes.flatten(0, 1)).view_as(boxes)
        return self.classes(x).float(), refined, x


class DynamicConv(nn.Module):
    """Two 1x1 convolutions of a region, whose weights are generated from its proposal feature.

    Args:
        dim: channels of proposal and region.
        inner: channels between the two convolutions.

    Shapes: features (K, C), regions (K, C, 7, 7) -> (K, C).
    """

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.inner = inner
        self.weights = nn.Linear(dim, 2 * dim * inner)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(inner), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.out = nn.Linear(dim * POOLED**2, dim)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Features of each proposal from its region, see above."""
        first, second = self.weights(features).chunk(2, 1)
        x = regions.flatten(2).transpose(1, 2)  # (K, 49, C)
        x = self.norm1(x @ first.unflatten(1, (-1, self.inner))).relu()
        x = self.norm2(x @ second.unflatten(1, (self.inner, -1))).relu()
        return self.norm3(self.out(x.flatten(1))).relu()


def linear_norm_act(dim: int) -> list[nn.Module]:
    """Linear layer without bias, LayerNorm, ReLU."""
    return [nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()]
