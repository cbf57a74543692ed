"""Where a prediction differs from the truth, or from another prediction: of class maps, objects, segments and poses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from ..data.datasets.index_masks import IGNORE
from ..errors import UserError
from ..metrics.panoptic import Segment, matched_segments
from ..metrics.segmentation import Confusion
from ..structures import MIN_KEYPOINT_SCORE, Detections, PanopticSegments, Poses, Prediction, SegmentationMap
from ..utils.draw import ClassMask, Colour, Mask, colour_of, draw_boxes, draw_masks, line_of, with_legend

#: least IoU of two objects that are the same
LEAST_IOU = 0.5
#: largest mean distance of the keypoints of two poses that are the same, as a share of the longer side of the larger
MOST_DISTANCE = 0.5
#: matched, missed and false
COLOURS: tuple[Colour, Colour, Colour] = (42, 157, 74), (209, 52, 47), (240, 162, 2)


class Difference(ABC):
    """How a prediction differs from a reference."""

    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """What is counted, by name."""

    @abstractmethod
    def summary(self) -> str:
        """The numbers in a few words."""

    @abstractmethod
    def draw(self, image: Image.Image) -> Image.Image:
        """The difference on a pale copy of the image, above a legend."""


def difference(found: Prediction, reference: Prediction) -> Difference:
    """How a prediction differs from the ground truth, or from another prediction.

    Args:
        found: the prediction.
        reference: of the same kind, image and classes.

    Raises:
        UserError: predictions of two kinds, or of a kind without places in the image.
    """
    if isinstance(found, SegmentationMap) and isinstance(reference, SegmentationMap):
        return ClassDifference(found, reference)
    if isinstance(found, Detections) and isinstance(reference, Detections):
        return ObjectDifference.of(found, reference)
    if isinstance(found, PanopticSegments) and isinstance(reference, PanopticSegments):
        return SegmentDifference.of(found, reference)
    if isinstance(found, Poses) and isinstance(reference, Poses):
        return PoseDifference.of(found, reference)
    raise UserError(f"{type(found).__name__} and {type(reference).__name__} cannot be compared on an image.")


def pale(image: Image.Image) -> Image.Image:
    """The image in light grey, for differences to be drawn on."""
    return Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.43)


@dataclass
class ClassDifference(Difference):
    """Pixels of two class maps.

    Attributes:
        found: the prediction.
        reference: pixels without a class in it do not count.
    """

    found: SegmentationMap
    reference: SegmentationMap

    @property
    def counted(self) -> np.ndarray:
        """(H, W) True where the reference has a class."""
        return self.reference.indices != IGNORE

    @property
    def wrong(self) -> np.ndarray:
        """(H, W) True where the classes differ."""
        return self.counted & (self.found.indices != self.reference.indices)

    def numbers(self) -> dict[str, float]:
        """wrong: share of the counted pixels; mIoU: mean IoU of the classes that occur in one of the two."""
        if not self.counted.any():
            return {"wrong": float("nan"), "mIoU": float("nan")}
        confusion = Confusion(self.found.classes)
        confusion.update(*(torch.from_numpy(one.indices) for one in (self.found, self.reference)))
        told = confusion.compute()
        return {"wrong": 1 - told["aAcc"], "mIoU": told["mIoU"]}

    def summary(self) -> str:
        """Both in %."""
        told = self.numbers()
        return f"{100 * told['wrong']:.1f} % of the pixels wrong, mIoU {100 * told['mIoU']:.1f} %"

    def draw(self, image: Image.Image) -> Image.Image:
        """Wrong pixels in the colour of the class they are taken for."""
        wrong = np.where(self.wrong, self.found.indices, IGNORE)
        labels, counts = np.unique(wrong[wrong != IGNORE], return_counts=True)
        order = [int(label) for label in labels[np.argsort(-counts, kind="stable")]]
        drawn = draw_masks(pale(image), [ClassMask(wrong, label) for label in order], order)
        total = max(1, np.count_nonzero(self.counted))
        share = dict(zip(labels.tolist(), (counts / total).tolist(), strict=True))
        entries = [
            (f"taken for {self.found.classes[label]} {100 * share[label]:.1f} %", colour_of(label)) for label in order
        ]
        return with_legend(drawn, entries or [("no pixel is wrong", COLOURS[0])])


@dataclass
class _Matched(Difference):
    """Things that are matched one to one.

    Attributes:
        pairs: (number in the prediction, number in the reference, how well) of those that are matched.
        missed: numbers in the reference.
        false: numbers in the prediction.
    """

    pairs: list[tuple[int, int, float]]
    missed: list[int]
    false: list[int]

    #: what the third entry of a pair is called, in `numbers`
    quality = "IoU"

    def numbers(self) -> dict[str, float]:
        """matched, missed, false, and how well the matched ones are met on average, NaN if there is none."""
        mean = float(np.mean([pair[2] for pair in self.pairs])) if self.pairs else float("nan")
        return {
            "matched": len(self.pairs),
            "missed": len(self.missed),
            "false": len(self.false),
            self.quality: mean,
        }

    def summary(self) -> str:
        """The three counts, and how well the matched ones are met."""
        told = self.numbers()
        counts = ", ".join(f"{told[name]:.0f} {name}" for name in ("matched", "missed", "false"))
        return f"{counts}; mean {self.quality} {told[self.quality]:.2f}" if self.pairs else counts

    def legend(self, drawn: Image.Image) -> Image.Image:
        """The drawing above the three colours."""
        told = self.numbers()
        names = ("matched", "missed", "false")
        entries = [(f"{told[name]:.0f} {name}", colour) for name, colour in zip(names, COLOURS, strict=True)]
        return with_legend(drawn, entries)


def _left(pairs: Sequence[tuple[int, int, float]], found: Sequence[int], reference: Sequence[int]) -> Any:
    """Numbers of the reference and of the prediction that no pair has."""
    mine, theirs = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    return [i for i in reference if i not in theirs], [i for i in found if i not in mine]


@dataclass
class ObjectDifference(_Matched):
    """Objects of two sets, matched within their class, best score first, at an IoU of 0.5 or more (masks, or boxes).

    Predictions of scores below `MIN_SHOWN_SCORE` do not count.

    Attributes:
        found: the prediction.
        reference: what it is matched with.
    """

    found: Detections
    reference: Detections

    @classmethod
    def of(cls, found: Detections, reference: Detections) -> ObjectDifference:
        """Match the objects."""
        overlaps = _overlaps(found, reference)
        mine, theirs = found.shown()[::-1].tolist(), sorted(reference.shown().tolist())
        free, pairs = set(theirs), []
        for i in mine:
            alike = [j for j in free if reference.labels[j] == found.labels[i]]
            best = max(alike, key=lambda j: (overlaps[i, j], -j), default=None)
            if best is not None and overlaps[i, best] >= LEAST_IOU:
                pairs.append((i, best, float(overlaps[i, best])))
                free.remove(best)
        missed, false = _left(pairs, mine, theirs)
        return cls(pairs, missed, false=false, found=found, reference=reference)

    def draw(self, image: Image.Image) -> Image.Image:
        """Masks and boxes of the matched, missed and false objects."""
        listed = [(self.found, [pair[0] for pair in self.pairs]), (self.reference, self.missed)]
        listed.append((self.found, self.false))
        drawn = pale(image)
        layers = list(zip(listed, COLOURS, strict=True))[::-1]  # matched ones lie on top
        for (side, numbers), colour in layers:
            if side.masks is not None:
                drawn = _painted(drawn, [side.masks[i] for i in numbers], colour)
        for (side, numbers), colour in layers:
            texts = [side.classes[int(side.labels[i])] for i in numbers]
            drawn = draw_boxes(drawn, side.boxes[numbers].tolist(), texts, colours=[colour] * len(numbers))
        return self.legend(drawn)


def _overlaps(found: Detections, reference: Detections) -> np.ndarray:
    """IoU of every object with every other: of masks, where both have some, else of boxes."""
    if found.masks is None or reference.masks is None:
        mine, others = (torch.as_tensor(np.array(one.boxes, dtype=float).reshape(-1, 4)) for one in (found, reference))
        return box_iou(mine, others).numpy()
    overlaps = np.zeros((len(found.boxes), len(reference.boxes)))
    theirs = [np.asarray(mask) for mask in reference.masks]
    for i in found.shown().tolist():
        mine = np.asarray(found.masks[i])
        for j, other in enumerate(theirs):
            union = np.count_nonzero(mine | other)
            overlaps[i, j] = np.count_nonzero(mine & other) / union if union else 0
    return overlaps


def _painted(image: Image.Image, masks: Sequence[Mask], colour: Colour) -> Image.Image:
    """Masks half transparent in one colour."""
    return draw_masks(image, masks, [colour] * len(masks))


@dataclass
class SegmentDifference(_Matched):
    """Segments of two maps, matched within their class at an IoU above 0.5, as panoptic quality does.

    Attributes:
        found: the prediction.
        reference: what it is matched with.
    """

    found: PanopticSegments
    reference: PanopticSegments

    @classmethod
    def of(cls, found: PanopticSegments, reference: PanopticSegments) -> SegmentDifference:
        """Match the segments."""
        mine, theirs = ([Segment(one["id"], one["label"]) for one in side.segments] for side in (found, reference))
        matches = matched_segments(found.ids, mine, reference.ids, theirs)
        pairs = [(j, i, iou) for i, j, iou in matches]
        missed, false = _left(pairs, [one.id for one in mine], [one.id for one in theirs])
        return cls(pairs, missed, false=false, found=found, reference=reference)

    def numbers(self) -> dict[str, float]:
        """The counts, the mean IoU, and PQ over all segments of the image, whatever their class."""
        told = super().numbers()
        seen = told["matched"] + 0.5 * (told["missed"] + told["false"])
        return {**told, "PQ": sum(pair[2] for pair in self.pairs) / seen if seen else float("nan")}

    def draw(self, image: Image.Image) -> Image.Image:
        """Matched and false segments of the prediction, and above them the reference's missed ones."""
        missed = np.isin(self.reference.ids, self.missed)  # also where a matched one, such as ground, was found instead
        right = np.isin(self.found.ids, [pair[0] for pair in self.pairs]) & ~missed
        wrong = np.isin(self.found.ids, self.false) & ~missed
        drawn = pale(image)
        for mask, colour in zip((right, missed, wrong), COLOURS, strict=True):
            drawn = _painted(drawn, [mask], colour)
        return self.legend(drawn)


@dataclass
class PoseDifference(_Matched):
    """Poses of two sets, the nearest first; what they are apart is the mean over the labelled keypoints, in pixels.

    Poses further apart than half of the longer side of the larger one are not matched.

    Attributes:
        found: the prediction.
        reference: what it is matched with; keypoints that it does not label do not count.
    """

    found: Poses
    reference: Poses
    quality = "distance in pixels"

    @classmethod
    def of(cls, found: Poses, reference: Poses) -> PoseDifference:
        """Match the poses."""
        candidates = []
        for j, true in enumerate(reference.poses):
            known = _known(true)
            if not known.any():
                continue
            for i, pose in enumerate(found.poses):
                # of a pose with a single label the predicted one tells the size
                side = max(np.ptp(true[known, :2], axis=0).max(), np.ptp(pose[:, :2], axis=0).max())
                distance = float(np.linalg.norm(pose[known, :2] - true[known, :2], axis=1).mean())
                if distance <= MOST_DISTANCE * max(side, 1):
                    candidates.append((i, j, distance))
        pairs: list[tuple[int, int, float]] = []
        for i, j, distance in sorted(candidates, key=lambda one: one[2]):
            if all(i != mine and j != theirs for mine, theirs, _ in pairs):
                pairs.append((i, j, distance))
        labelled = [j for j, true in enumerate(reference.poses) if _known(true).any()]
        missed, false = _left(pairs, range(len(found.poses)), labelled)
        return cls(pairs, missed, false=false, found=found, reference=reference)

    def draw(self, image: Image.Image) -> Image.Image:
        """A line from each keypoint's true place (ring) to the predicted one (dot); missed and false poses as dots."""
        drawn = pale(image)
        draw, width = ImageDraw.Draw(drawn), line_of(image)

        def dot(place: np.ndarray, colour: Colour, filled: bool = True) -> None:
            box = (place[0] - width, place[1] - width, place[0] + width, place[1] + width)
            draw.ellipse(box, fill=colour if filled else "white", outline=colour)

        for i, j, _ in self.pairs:
            for mine, true in zip(self.found.poses[i], self.reference.poses[j], strict=True):
                if true[2] >= MIN_KEYPOINT_SCORE:
                    draw.line((*mine[:2], *true[:2]), fill=COLOURS[0], width=width)
                    dot(true, COLOURS[0], filled=False)
                    dot(mine, COLOURS[0])
        for side, numbers, colour in (
            (self.reference, self.missed, COLOURS[1]),
            (self.found, self.false, COLOURS[2]),
        ):
            for pose in side.poses[numbers]:
                for place in pose[_known(pose)]:
                    dot(place, colour)
        return self.legend(drawn)


def _known(pose: np.ndarray) -> np.ndarray:
    """(K,) True for keypoints that are labelled, or sure enough to be drawn."""
    return pose[:, 2] >= MIN_KEYPOINT_SCORE
