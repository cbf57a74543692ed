"""Typed predictions and ground truth: detections, segmentation maps, panoptic segments, poses, embeddings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .data.datasets.coco_rle import pixels_of, runs_of
from .data.datasets.index_masks import IGNORE
from .data.datasets.keypoint_names import coco_numbers
from .data.large import EnlargedMask
from .utils.draw import (
    SKELETON,
    ClassMask,
    colour_of,
    draw_boxes,
    draw_classes,
    draw_keypoints,
    draw_masks,
    with_bars,
    with_legend,
)


class Prediction(Protocol):
    """The prediction for one image, or its ground truth."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the image's own pixels."""
        ...

    def summary(self) -> str:
        """A summary in a few words."""
        ...

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the prediction drawn on it."""
        ...

    def save(self, folder: Path, stem: str) -> None:
        """Write what a drawing cannot hold, such as class maps, to files of its own, if there is any."""
        ...


@dataclass
class ClassProbabilities:
    """The likeliest classes of one image.

    Attributes:
        classes: names, best first.
        probabilities: of those classes, in [0, 1].
    """

    classes: list[str]
    probabilities: list[float]

    def to_dict(self) -> dict[str, Any]:
        """classes and probabilities, best first."""
        return {"classes": list(self.classes), "probabilities": list(self.probabilities)}

    def summary(self) -> str:
        """The likeliest class, such as "tabby cat 93.1 %"."""
        return f"{self.classes[0]} {100 * self.probabilities[0]:.1f} %"

    def draw(self, image: Image.Image) -> Image.Image:
        """A panel below the image with one bar a class, its length the probability."""
        ranked = zip(self.classes, self.probabilities, strict=True)
        return with_bars(image, [(f"{name}  {100 * p:.1f} %", p) for name, p in ranked])

    def save(self, folder: Path, stem: str) -> None:
        """`to_dict()` as JSON."""
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict()), encoding="utf-8")


#: minimum score of detections that are drawn and summarised
MIN_SHOWN_SCORE = 0.5


@dataclass
class Detections:
    """Detected or annotated objects of one image.

    Attributes:
        classes: names of all classes.
        boxes: (N, 4) left, top, right, bottom in pixels.
        labels: (N,) indices of classes.
        scores: (N,) in [0, 1]; None of ground truth.
        masks: (N, H, W) bool, or of a large image N of `EnlargedMask`; None = there are none.
    """

    classes: Sequence[str]
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | list[EnlargedMask] | None = None

    def to_dict(self) -> dict[str, Any]:
        """boxes, classes, scores, and masks as COCO's run lengths, where there are any; best scores first."""
        record: dict[str, Any] = {
            "boxes": [[round(float(v), 2) for v in box] for box in self.boxes],
            "classes": [self.classes[i] for i in self.labels],
            "scores": None if self.scores is None else [round(float(s), 6) for s in self.scores],
        }
        if self.masks is not None:
            record["masks"] = [runs_of(mask) for mask in self.masks]
        return record

    def shown(self) -> np.ndarray:
        """Indices of the detections that are drawn, the highest score last, so that it lies on top."""
        if self.scores is None:
            return np.arange(len(self.boxes))
        order = np.argsort(self.scores, kind="stable")
        return order[self.scores[order] >= MIN_SHOWN_SCORE]

    def summary(self) -> str:
        """The number of each class, such as "2 person, 1 dog"."""
        counts = Counter(self.classes[int(label)] for label in self.labels[self.shown()])
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """Boxes with class and score, and masks."""
        shown = self.shown()
        if self.masks is not None:
            image = draw_masks(image, [self.masks[i] for i in shown], range(len(shown)))
        labels = [int(label) for label in self.labels[shown]]
        scores = ["" if self.scores is None else f" {self.scores[i]:.2f}" for i in shown]
        texts = [self.classes[label] + score for label, score in zip(labels, scores, strict=True)]
        return draw_boxes(image, self.boxes[shown].tolist(), texts, labels)

    def save(self, folder: Path, stem: str) -> None:
        """`to_dict()` as JSON."""
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict()), encoding="utf-8")


#: most classes that a summary names
MAX_NAMED_CLASSES = 3


@dataclass
class SegmentationMap:
    """The class of every pixel of an image.

    Attributes:
        classes: names.
        indices: (H, W) uint8 indices of classes; 255 = none.
        values: of the classes in saved masks; None = their indices.
    """

    classes: Sequence[str]
    indices: np.ndarray
    values: Sequence[int] | None = None

    def shares(self) -> list[tuple[str, float]]:
        """The classes that occur, each with its share of the image, the greatest first."""
        found, counts = np.unique(self.indices[self.indices != IGNORE], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(self.classes[int(found[i])], float(counts[i] / self.indices.size)) for i in order]

    def to_dict(self) -> dict[str, Any]:
        """shares of the image by the names of the classes that occur, the greatest first."""
        return {"shares": {name: round(share, 6) for name, share in self.shares()}}

    def summary(self) -> str:
        """The classes with most pixels, such as "road 41 %, sky 30 %, tree 12 % and 2 more"."""
        shares = self.shares()
        text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares[:MAX_NAMED_CLASSES])
        more = len(shares) - MAX_NAMED_CLASSES
        return (f"{text} and {more} more" if more > 0 else text) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """The map over the image, above a legend."""
        return draw_classes(image, self.indices, self.classes)

    def save(self, folder: Path, stem: str) -> None:
        """The map as masks/STEM.png, one channel: the value of each pixel's class in the data; 255 = no class."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[: len(self.classes)] = range(len(self.classes)) if self.values is None else self.values
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(table[self.indices]).save(folder / "masks" / f"{stem}.png")


@dataclass
class PanopticSegments:
    """Segments of one image.

    Attributes:
        classes: names of things, then of stuff.
        ids: (H, W) number of each pixel's segment, 0 where there is none.
        segments: for each number {"id", "label": index of its class, "thing", "score": of a thing, else None, "area"}.
    """

    classes: list[str]
    ids: np.ndarray
    segments: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The segments, largest first: id, class, thing, score, and area in pixels."""
        ordered = sorted(self.segments, key=lambda segment: -segment["area"])
        names = ("id", "class", "thing", "score", "area")
        return {"segments": [{n: {**s, "class": self.classes[s["label"]]}[n] for n in names} for s in ordered]}

    def summary(self) -> str:
        """The classes, largest segments first, with the number of segments of things."""
        counts: dict[str, int] = {}
        for segment in self.to_dict()["segments"]:
            counts[segment["class"]] = counts.get(segment["class"], 0) + 1
        return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items()) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """Segments in colours, with a legend of their classes.

        The largest segment of a class has the colour of the class, the same in every image; others have their own.
        """
        ordered = sorted(self.segments, key=lambda segment: -segment["area"])
        seen, numbers = set(), []
        for place, segment in enumerate(ordered):
            label = segment["label"]
            numbers.append(len(self.classes) + place if label in seen else label)
            seen.add(label)
        coloured = draw_masks(image, [ClassMask(self.ids, s["id"]) for s in ordered], numbers)
        names = [self.classes[s["label"]] for s in ordered]
        return with_legend(coloured, [(name, colour_of(n)) for name, n in zip(names, numbers, strict=True)])

    def save(self, folder: Path, stem: str) -> None:
        """The map as COCO's panoptic PNG, and the record as JSON."""
        Image.fromarray(pixels_of(self.ids)).save(folder / f"{stem}.panoptic.png")
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict()), encoding="utf-8")


def enlarged(found: PanopticSegments, size: tuple[int, int]) -> PanopticSegments:
    """Segments of an image that was reduced, in the pixels of the image itself, of (height, width)."""
    ids = np.asarray(EnlargedMask(found.ids.astype(np.int32), size))
    areas = np.zeros(len(found.segments) + 1, dtype=np.int64)
    for row in ids:  # numpy counts 64-bit numbers
        areas += np.bincount(row, minlength=len(areas))
    segments = [{**segment, "area": int(areas[segment["id"]])} for segment in found.segments]
    return PanopticSegments(found.classes, ids, segments)


#: minimum score of a keypoint that counts towards its pose's score, and is summarised and drawn
MIN_KEYPOINT_SCORE = 0.2


@dataclass
class Poses:
    """Keypoints of the persons in one image.

    Attributes:
        names: of the keypoints.
        poses: (N, K, 3) x and y as pixel numbers of the image, and score; of ground truth 1 where it is labelled.
        scores: (N,) of the poses; None of ground truth.
    """

    names: Sequence[str]
    poses: np.ndarray
    scores: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """names: of the keypoints; keypoints: of each person [x, y, score]; scores: of each person."""
        rounded = [[[round(x, 2), round(y, 2), round(s, 6)] for x, y, s in pose] for pose in self.poses.tolist()]
        scores = None if self.scores is None else [round(float(score), 6) for score in self.scores]
        return {"names": list(self.names), "keypoints": rounded, "scores": scores}

    def summary(self) -> str:
        """The number of persons and of their keypoints, such as "2 persons with 17 and 9 of 17 keypoints"."""
        if not len(self.poses):
            return "no person"
        *most, last = (str(count) for count in (self.poses[:, :, 2] >= MIN_KEYPOINT_SCORE).sum(1))
        counts = f"{', '.join(most)} and {last}" if most else last
        who = "1 person" if len(self.poses) == 1 else f"{len(self.poses)} persons"
        return f"{who} with {counts} of {len(self.names)} keypoints"

    def draw(self, image: Image.Image) -> Image.Image:
        """Keypoints and the lines between them, a colour a person."""
        return draw_keypoints(image, list(self.poses), MIN_KEYPOINT_SCORE, skeleton_of(self.names))

    def save(self, folder: Path, stem: str) -> None:
        """`to_dict()` as JSON."""
        (folder / f"{stem}.json").write_text(json.dumps(self.to_dict()), encoding="utf-8")


def skeleton_of(names: Sequence[str]) -> list[tuple[int, int]]:
    """The lines between keypoints that are COCO's by their names, in whatever place these stand."""
    places = {number: place for place, number in enumerate(coco_numbers(names)) if number is not None}
    return [(places[a], places[b]) for a, b in SKELETON if a in places and b in places]


@dataclass
class Embedding:
    """The embedding of one image: images of one person lie in one direction.

    Attributes:
        values: (D,) float.
    """

    values: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """embedding: its numbers."""
        return {"embedding": self.values.tolist()}

    def summary(self) -> str:
        """Its length and norm."""
        return f"embedding of {len(self.values)} numbers, norm {np.linalg.norm(self.values):.4g}"

    def draw(self, image: Image.Image) -> Image.Image:
        """The image itself; rankings are drawn by `ReidMetrics.report`, which knows the gallery."""
        return image.copy()

    def save(self, folder: Path, stem: str) -> None:
        """The numbers as a .npy file."""
        np.save(folder / f"{stem}.npy", self.values)


@dataclass
class Person:
    """The identity and camera of one image: ground truth of re-identification.

    Attributes:
        pid: identity; -1 = junk, 0 = distractor.
        camera: that took it.
    """

    pid: int
    camera: int

    def to_dict(self) -> dict[str, Any]:
        """identity and camera."""
        return {"identity": self.pid, "camera": self.camera}

    def summary(self) -> str:
        """Both in words."""
        return f"identity {self.pid}, camera {self.camera}"

    def draw(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image.copy()

    def save(self, folder: Path, stem: str) -> None:
        """Nothing: `to_dict` holds everything."""
