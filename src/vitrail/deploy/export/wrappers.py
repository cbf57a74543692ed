"""Wrappers that select the exported part of a network and name its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ...checkpoint.description import WeightsMeta
from ...checkpoint.format import meta_of
from ...errors import UserError
from ...factory import HEADS, Backbone, WithHead
from .detector import DETECTIONS, WHOLE
from .metadata import KINDS


@dataclass(frozen=True)
class Part:
    """The part of a network that is exported.

    Attributes:
        module: from normalised images (B, C, H, W) to the outputs.
        outputs: their names.
        kind: "logits" (B, classes); "features", maps (B, C, H / stride, W / stride); "class_maps" (B, classes, H / 4,
            W / 4); "heat_maps" (B, keypoints, H / 4, W / 4); "embedding" (B, C); "raw_boxes", scores and box deltas
            of all anchors, before decoding and suppression; or "detections" of one image, see `WholeDetector`.
    """

    module: nn.Module
    outputs: list[str]
    kind: str


class Intermediates(nn.Module):
    """The features of a classification network, ours or timm's, at several scales."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> the features, finest first."""
        return tuple(cast(Any, self.network).forward_intermediates(images, intermediates_only=True))


class BackboneFeatures(nn.Module):
    """The features of a backbone under a head."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> the features, finest first."""
        return tuple(self.backbone(images))


class RawBoxes(nn.Module):
    """A one-stage detector without resizing, normalisation, decoding and suppression."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> scores (B, anchors, classes), box deltas (B, anchors, 4)."""
        found = cast(Any, self.head)(list(cast(Any, self.backbone)(images).values()))
        return found["cls_logits"], found["bbox_regression"]


def part_of(network: nn.Module, features: bool, end_to_end: bool = False) -> Part:
    """The part of a network that is exported.

    Args:
        network: with its `.meta`.
        features: export the features of the backbone instead of the head's outputs.
        end_to_end: export a detector with decoding and suppression.

    Raises:
        UserError: this network cannot be exported like this.
    """
    meta = meta_of(network)
    if end_to_end:
        return _whole_detector(network, meta)
    if meta.head is None:
        return _of_classifier(network, features)
    if features:
        backbone = next(module for module in network.modules() if isinstance(module, Backbone))
        return Part(BackboneFeatures(backbone), [f"stage{i}" for i in range(len(backbone.widths))], "features")
    if isinstance(network, WithHead):
        return Part(network, [KINDS[meta.task]], KINDS[meta.task])
    if HEADS[meta.head].single_stage:
        return Part(RawBoxes(network), ["scores", "box_deltas"], "raw_boxes")
    raise UserError(
        f"Head {meta.head} crops features of the regions it finds, and has no raw output: export its backbone with "
        "--features" + (", or the whole detector with --end_to_end." if meta.head in WHOLE else ".")
    )


def _whole_detector(network: nn.Module, meta: WeightsMeta) -> Part:
    head = HEADS.get(meta.head or "")
    if head is None or not head.detector:
        raise UserError(f"--end_to_end is for detectors, not for {meta.task}: leave it out.")
    name = meta.head or ""
    if name not in WHOLE:
        raise UserError(
            f"--end_to_end is not possible with head {name}: this library writes no graph of its proposals and masks, "
            f"of which every image has another number; it is for {', '.join(WHOLE)}; of {name} export the backbone "
            "with --features."
        )
    return Part(WHOLE[name](network, head.first_label), DETECTIONS, "detections")


def _of_classifier(network: nn.Module, features: bool) -> Part:
    if not features:
        return Part(network, [KINDS["classification"]], KINDS["classification"])
    if not (hasattr(network, "forward_intermediates") and hasattr(network, "feature_info")):
        raise UserError(f"{meta_of(network).model} gives no maps at several scales: leave --features out.")
    info = cast(Any, network).feature_info
    return Part(Intermediates(network), [f"stage{i}" for i in range(len(info))], "features")
