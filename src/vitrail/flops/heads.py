"""Multiply-adds of a backbone with a head by the papers' rules: every layer once, with a fixed number of regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..factory import HEADS, Backbone
from .counting import Counts, Rule, count

#: number of regions for which the box layers and the mask layers of two-stage detectors are counted
BOX_REGIONS, MASK_REGIONS = 1000, 100


class CountedGraph(nn.Module):
    """The layers of a network with a head for one image, without the selection of boxes or regions.

    Args:
        model: of `assemble`.
        head: its head's name.

    Shapes: (1, C, H, W) -> its input.
    """

    def __init__(self, model: nn.Module, head: str):
        super().__init__()
        self.model = model
        self.run: Callable[[Any, Tensor], None] = GRAPHS.get(head, _all_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers."""
        self.run(self.model, x)
        return x


def count_with_head(model: nn.Module, head: str, size: tuple[int, int]) -> tuple[Counts, Counts]:
    """The counts of the backbone and of its head for one image, in the papers' formulation of each mixer.

    Args:
        model: of `assemble`, best on the meta device.
        head: its head's name.
        size: (height, width) of the image; a detector pads it to multiples of 32.
    """
    if HEADS[head].detector:
        size = (-(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
    graph = CountedGraph(model.eval(), head)
    prefix = next(name for name, module in graph.named_modules() if isinstance(module, Backbone))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused operator hides its products from the dispatcher
    try:
        found = count(graph, (3, *size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for name, module in graph.named_modules():
        # the papers' counter misses Sparse R-CNN's attention and the norms of the features that heads read
        if isinstance(module, nn.MultiheadAttention) or ".out_norms." in name:
            found[name] = Counts()
    inside = {name: name == prefix or name.startswith(f"{prefix}.") for name in found}
    backbone = sum((counts for name, counts in found.items() if inside[name]), Counts())
    return backbone, sum((counts for name, counts in found.items() if not inside[name]), Counts())


def total(backbone: Counts, head: Counts, rule: Rule) -> int:
    """Multiply-adds of backbone and head under a paper's rule."""
    return backbone.weighted(rule.backbone) + head.weighted(rule.head)


def _all_layers(model: Any, x: Tensor) -> None:
    model(x)


def _dense(model: Any, x: Tensor) -> None:
    """RetinaNet and SSDLite: every position of every level."""
    model.head(list(model.backbone(x).values()))


def _two_stages(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Mask R-CNN: proposals, then layers of boxes and masks of regions; returns the pyramid."""
    levels = model.backbone(x)
    model.rpn.head(list(levels.values()))
    heads, width = model.roi_heads, next(iter(levels.values())).shape[1]
    heads.box_predictor(heads.box_head(x.new_empty(BOX_REGIONS, width, 7, 7)))
    heads.mask_predictor(heads.mask_head(x.new_empty(MASK_REGIONS, width, 14, 14)))
    return levels


def _panoptic(model: Any, x: Tensor) -> None:
    """Panoptic FPN: Mask R-CNN, and the semantic branch on the four finer levels."""
    model.semantic(list(_two_stages(model, x).values())[:4])


def _sparse(model: Any, x: Tensor) -> None:
    """Sparse R-CNN: every stage on all of its boxes."""
    model.backbone(x)
    features = model.proposal_features.weight[None]
    boxes, width = features.shape[1:]
    regions, places = x.new_empty(boxes, width, 7, 7), x.new_zeros(1, boxes, 4)
    for stage in cast(nn.ModuleList, model.stages):
        stage(features, regions, places)


GRAPHS: dict[str, Callable[[Any, Tensor], Any]] = {
    "retinanet": _dense,
    "ssdlite": _dense,
    "mask_rcnn": _two_stages,
    "panoptic_fpn": _panoptic,
    "sparse_rcnn": _sparse,
}
