"""Detectors as one graph from an image to boxes: padding, anchors, decoding and suppression included."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms

#: names of the outputs
DETECTIONS = ["boxes", "scores", "labels"]


class WholeDetector(nn.Module):
    """A detector with decoding and suppression.

    What it finds is what the detector finds in an image that its transform has resized and normalised already: the
    image is padded here, and boxes are clipped to it.

    Args:
        detector: of `heads`.
        first_label: label of its first class.

    Attributes:
        thresholds: names and attributes of the detector's thresholds that are in the graph.

    Shapes: an image (1, C, H, W) -> boxes (N, 4) as left, top, right, bottom in its pixels, scores (N,), best first,
        and labels (N,) from 0.
    """

    thresholds: ClassVar[dict[str, str]] = {"max_detections": "detections_per_img"}

    def __init__(self, detector: nn.Module, first_label: int):
        super().__init__()
        self.detector, self.first_label = detector, first_label

    def padded(self, images: Tensor) -> Tensor:
        """The image padded at the right and below to the multiples of sides that the detector pads to."""
        step = cast(Any, self.detector).transform.size_divisible
        return F.pad(images, (0, -images.shape[3] % step, 0, -images.shape[2] % step))

    def decoding(self) -> dict[str, Any]:
        """What the metadata of a file say of its outputs and of the thresholds in it."""
        return {
            "boxes": "left, top, right, bottom in pixels of the input",
            "scores": "from 0 to 1, best first",
            "labels": "index in classes",
            **{name: getattr(self.detector, attribute) for name, attribute in self.thresholds.items()},
        }


class WholeSparseRCNN(WholeDetector):
    """Sparse R-CNN, which suppresses nothing."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `WholeDetector`."""
        detector: Any = self.detector
        sizes = [(images.shape[2], images.shape[3])]
        last = detector.refine(detector.backbone(self.padded(images)), sizes)[-1]
        found = detector.top_detections(*last, sizes)[0]
        return found["boxes"], found["scores"], found["labels"]


class WholeSingleStage(WholeDetector):
    """RetinaNet or SSDLite: the best candidates of each level or class, of which the worse of two that overlap goes."""

    thresholds: ClassVar = {"score_thresh": "score_thresh", "nms_thresh": "nms_thresh", **WholeDetector.thresholds}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `WholeDetector`."""
        detector: Any = self.detector
        size, padded = (images.shape[2], images.shape[3]), self.padded(images)
        maps = list(detector.backbone(padded).values())
        found = detector.head(maps)
        anchors = detector.anchor_generator(ImageList(padded, [(padded.shape[2], padded.shape[3])]), maps)[0]
        logits, deltas = found["cls_logits"][0], found["bbox_regression"][0]
        candidates = self._per_class if self.first_label else self._per_level
        boxes, scores, labels = candidates(logits, deltas, anchors, maps)
        sure = torch.where(scores > detector.score_thresh)[0]
        boxes, scores, labels = clip_boxes_to_image(boxes[sure], size), scores[sure], labels[sure]
        # classes lie side by side, so that a box suppresses those of its own class alone
        apart = labels.to(boxes.dtype)[:, None] * (max(size) + 1)
        kept = nms(boxes + apart, scores, detector.nms_thresh)[: detector.detections_per_img]
        return boxes[kept], scores[kept], labels[kept]

    def _per_level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, maps: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """RetinaNet's candidates: the best scores of each level, over its anchors and classes."""
        detector: Any = self.detector
        classes, most = logits.shape[1], detector.topk_candidates
        per_place = detector.anchor_generator.num_anchors_per_location()
        counts = [x.shape[2] * x.shape[3] * count for x, count in zip(maps, per_place, strict=True)]
        boxes, scores, labels = [], [], []
        for own, moves, places in zip(logits.split(counts), deltas.split(counts), anchors.split(counts), strict=True):
            # padded, so that there are enough on the smallest level too
            top, index = F.pad(own.sigmoid().flatten(), (0, most), value=-1.0).topk(most)
            index = index.clamp(max=own.numel() - 1)
            anchor = index // classes
            boxes.append(detector.box_coder.decode_single(moves[anchor], places[anchor]))
            scores.append(top)
            labels.append(index % classes)
        return torch.cat(boxes), torch.cat(scores), torch.cat(labels)

    def _per_class(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, maps: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """SSDLite's candidates: the best scores of each class, without the background."""
        detector: Any = self.detector
        scores = logits.softmax(1)[:, self.first_label :].T
        top, index = scores.topk(min(detector.topk_candidates, scores.shape[1]))
        labels = torch.arange(len(scores), device=scores.device)[:, None].expand_as(index)
        boxes = detector.box_coder.decode_single(deltas, anchors)
        return boxes[index.flatten()], top.flatten(), labels.flatten()


#: detectors that have a graph, by their heads
WHOLE: dict[str, type[WholeDetector]] = {
    "retinanet": WholeSingleStage,
    "ssdlite": WholeSingleStage,
    "sparse_rcnn": WholeSparseRCNN,
}
