"""COCO's annotated persons, one a sample: a box and the keypoints in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...config.data import DataConfig
from ...errors import UserError
from ...utils.files import read_json, shortened
from ..images import MAX_PIXELS
from . import coco_files
from .coco import CocoImages, clipped, corners, has_min_size
from .coco_files import KEYPOINTS, Annotations, SplitSource, box_in, key_of, whole_number
from .coco_rle import finite_numbers


@dataclass(frozen=True)
class PersonBox:
    """A person's box, in which keypoints are found.

    Attributes:
        image_id: of the image.
        box: left, top, right, bottom in pixels.
        score: that there is a person, 1 if it is known.
        where: what messages call the record.
        keypoints: (K, 3) x and y as pixel numbers, and visibility, where they are known.
    """

    image_id: int | str
    box: list[float]
    score: float
    where: str
    keypoints: np.ndarray | None = None


class CocoKeypoints(CocoImages):
    """The persons of a COCO keypoint file, in the order of their images' names and their annotations' ids.

    With true boxes these are all persons that are no crowd and have a labelled keypoint: COCO's metrics ignore the
    others. Boxes without area in the image are skipped and counted; the metrics count their persons as missed. How
    many keypoints are labelled is counted from the keypoints themselves.

    Args:
        source: the annotations, and which of their images; a file alone = all of them.
        folder: of the images, where `source` is a file.
        boxes: COCO results of a detector: its boxes of persons in these images are used instead of the true ones.
            Boxes of other categories, and those without area in the image, are skipped and counted.
        limit: the first so many persons; None = all. A detector's boxes are then those in these persons' images.
        max_pixels: larger images are refused.

    Attributes:
        classes: names of the keypoints.
        category_id: of persons.
        persons: the samples.
        annotated: for every image, by its id, the keypoints (K, 3) of all its persons.
        content: the ground truth. With a limit, these persons alone; under a detector's boxes, all persons in
            their images.

    Raises:
        UserError: a file cannot be read, a record is wrong, or an image is missing.
    """

    def __init__(
        self,
        source: SplitSource | Path,
        folder: Path | None = None,
        boxes: Path | None = None,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(source, folder, wanted="keypoints", limit=None, max_pixels=max_pixels)
        self.category_id = self.category_ids[0]
        self.classes = list(self.read.categories[0]["keypoints"])
        images = {record["id"]: record for record in self.images}
        found = annotated_persons(self.read)
        self._count(found)
        if limit is not None:
            found = limit_persons(self.read, found, limit, keep_images=boxes is not None)
        self.annotated: dict[int | str, list[np.ndarray]] = defaultdict(list)
        for person in annotated_persons(self.read).values():
            if person.keypoints is not None:
                self.annotated[person.image_id].append(person.keypoints)
        self.persons = list(found.values())
        if not self.persons:
            raise UserError(f"{self.file} has no person with a box and a labelled keypoint.")
        if boxes is not None:
            self.persons = self._detected(boxes, images)
        self.images = [images[person.image_id] for person in self.persons]

    def _count(self, found: Mapping[int, PersonBox]) -> None:
        """Count the persons that are left out."""
        left = [record for record in self.read.annotations if record["number"] not in found]
        crowds = sum(record["iscrowd"] for record in left)
        bare = sum(not record["num_keypoints"] and not record["iscrowd"] for record in left)
        self.skipped["boxes without area in the image"] = len(left) - crowds - bare
        self.skipped |= {"crowds": crowds, "persons without a labelled keypoint": bare}
        keypoints = [record["keypoints"][2::3] for record in self.read.annotations]
        seen = Counter(place for own in keypoints for place, visibility in enumerate(own) if visibility)
        self.note_absent(seen, dict(enumerate(self.classes)), "a label")

    def _detected(self, file: Path, images: Mapping[int | str, dict[str, Any]]) -> list[PersonBox]:
        """A detector's boxes of persons in the images of this split."""
        by_key = {key_of(image_id): image_id for image_id in images}
        kept = {record["id"] for record in self.read.images}
        found: list[PersonBox] = []
        others = flat = 0
        for number, record in enumerate(read_results(file)):
            where = f"{file}, record {number}"
            person = detected_person(record, by_key, where)
            if record["category_id"] != self.category_id:
                others += 1
            elif not has_min_size(person.box, size_of_record(images[person.image_id])):
                flat += 1
            elif person.image_id in kept:
                found.append(person)
        if not found:
            raise UserError(f"{file} has no box of a person in the images of {self.file}.")
        self.skipped |= {"boxes of other categories": others, "boxes without area in the image": flat}
        return found

    def where(self, index: int) -> str:
        """Name of the record of person `index` in messages."""
        return self.persons[index].where

    def annotations(self) -> Iterator[Any]:
        """Categories, sizes and annotations, and the boxes."""
        yield from super().annotations()
        yield from ([person.image_id, person.box, person.score] for person in self.persons)

    def by_image(self) -> list[list[int]]:
        """Indices of the persons, image by image."""
        numbers: dict[int | str, list[int]] = defaultdict(list)
        for number, person in enumerate(self.persons):
            numbers[person.image_id].append(number)
        return list(numbers.values())

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """image_id, box (4,) left, top, right, bottom, cut at the image's edges, score, and known keypoints (K, 3)."""
        person = self.persons[index]
        if not has_min_size(person.box, image.size):
            raise UserError(f"{person.where}: bbox has no area in the image of {image.width}x{image.height} pixels.")
        target = {
            "image_id": person.image_id,
            "box": np.array(clipped(person.box, image.size)),
            "score": person.score,
        }
        return target if person.keypoints is None else {**target, "keypoints": person.keypoints}


def annotated_persons(read: Annotations) -> dict[int, PersonBox]:
    """The annotated persons by the numbers of their records: no crowds, with a labelled keypoint and a box.

    In the order of their images' names and of their ids; numbers before texts.
    """
    order = {image["id"]: place for place, image in enumerate(read.images)}
    sizes = {image["id"]: size_of_record(image) for image in read.images}

    def place(record: dict[str, Any]) -> tuple[int, bool, Any, int]:
        text = isinstance(record["id"], str)
        return order[record["image_id"]], text, record["id"], record["number"]

    found = {}
    for record in sorted(read.annotations, key=place):
        box = corners(record["bbox"])
        if record["iscrowd"] or not record["num_keypoints"] or not has_min_size(box, sizes[record["image_id"]]):
            continue
        keypoints = np.array(record["keypoints"], dtype=np.float64).reshape(-1, 3)
        where = f"{read.file}, annotation {record['id']}"
        found[record["number"]] = PersonBox(
            image_id=record["image_id"], box=box, score=1.0, where=where, keypoints=keypoints
        )
    return found


def limit_persons(
    read: Annotations, found: Mapping[int, PersonBox], limit: int, keep_images: bool
) -> dict[int, PersonBox]:
    """The first persons; `read` then keeps them alone, or with `keep_images` all persons in their images."""
    first = dict(list(found.items())[:limit])
    images = {person.image_id for person in first.values()}
    read.keep([image for image in read.images if image["id"] in images])
    if not keep_images:
        read.annotations = [record for record in read.annotations if record["number"] in first]
    return first


def open_keypoints(data: DataConfig, train: bool, boxes: str | None = None) -> CocoKeypoints:
    """One split of a COCO data set of persons with keypoints, in true boxes or in a detector's."""
    source = coco_files.locate(data, KEYPOINTS, train)
    return CocoKeypoints(
        source, None, boxes=None if boxes is None else Path(boxes), limit=data.limit, max_pixels=data.max_pixels
    )


def read_results(file: Path) -> list[dict[str, Any]]:
    """A file of COCO results.

    Raises:
        UserError: it cannot be read, or is none.
    """
    results = read_json(file)
    if not isinstance(results, list) or not all(isinstance(record, dict) for record in results):
        raise UserError(f"{file} is no file of COCO results: it must hold a list of records.")
    return results


def detected_person(record: dict[str, Any], images: Mapping[str | None, int | str], where: str) -> PersonBox:
    """A detector's box.

    Args:
        record: a COCO result.
        images: ids of the images by their keys (`key_of`).
        where: what messages call the record.

    Raises:
        UserError: the record lacks something, or names an image that is not in the data.
    """
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in record]
    if missing:
        raise UserError(f"{where} has no {missing[0]}: a detector's boxes need it.")
    if key_of(record["image_id"]) not in images:
        raise UserError(f"{where}: the data has no image {shortened(record['image_id'])}.")
    if whole_number(record["category_id"]) is None:
        raise UserError(f"{where}: the category must be a number, not {shortened(record['category_id'])}.")
    score = finite_numbers([record["score"]])
    if score is None:
        raise UserError(f"{where}: the score {shortened(record['score'])} is no finite number.")
    box = box_in(record, where)
    return PersonBox(images[key_of(record["image_id"])], corners(box), float(score[0]), where)


def size_of_record(image: dict[str, Any]) -> tuple[int | None, int | None]:
    """Width and height that an image's record states."""
    return image.get("width"), image.get("height")
