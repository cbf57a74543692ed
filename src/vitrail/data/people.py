"""People in COCO's pictures, one by one: a box and the joints in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import read_json
from . import coco_files
from .coco import CocoPictures, clipped, corners, has_area
from .coco_files import KEYPOINTS
from .config import DataConfig
from .images import MAX_PIXELS

#: what the names of joints begin with that change places in a mirror
SIDES = {"left_": "right_", "right_": "left_"}
#: what a joint's third number may be: not labelled, labelled but hidden, seen
VISIBILITIES = (0, 1, 2)


@dataclass(frozen=True)
class Person:
    """Where to look for joints.

    Attributes:
        image_id: of the picture.
        box: left, top, right, bottom in pixels.
        score: that there is a person, 1 if it is known.
        where: what messages call the record.
        joints: (K, 3) x and y as pixel numbers, and visibility, where they are known.
    """

    image_id: int
    box: list[float]
    score: float
    where: str
    joints: np.ndarray | None = None


class CocoPeople(CocoPictures):
    """The people of a COCO keypoint file, in the order of their pictures' names and their annotations' ids.

    With true boxes everybody is asked for who is no crowd and has a labelled joint: COCO's figures ignore all others.
    Boxes without area in the picture are skipped and counted; in measuring, their people count as missed. How many
    joints are labelled is counted from the joints themselves.

    Args:
        file: the annotations.
        folder: of the pictures.
        boxes: COCO results of a detector: its boxes of people in these pictures are looked into instead of the true
            ones. Boxes of other categories, and those without area in the picture, are skipped and counted.
        limit: so many people, the first ones; None = all. A detector's boxes are then those in these people's pictures.
        max_pixels: larger pictures are refused.

    Attributes:
        classes: names of the joints.
        category_id: of people.
        people: what is looked into.
        annotated: for every picture, by its id, the joints (K, 3) of all people that are asked for.
        content: what is measured against. With a limit, these people alone; under a detector's boxes, everybody in
            their pictures.

    Raises:
        UserError: a file cannot be read, a record is wrong, or a picture is missing.
    """

    def __init__(
        self,
        file: Path,
        folder: Path | None,
        boxes: Path | None = None,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(file, folder, None, max_pixels)
        category = category_with_joints(file, self.content["categories"])
        self.category_id, self.category_ids = int(category["id"]), [int(category["id"])]
        self.classes = list(category["keypoints"])
        pictures = {record["id"]: record for record in self.images}
        found, annotations = self._read(pictures)
        order = {image_id: place for place, image_id in enumerate(pictures)}
        chosen = sorted(found, key=lambda annotation: (order[found[annotation].image_id], annotation))[:limit]
        self.content |= {"categories": [category], "annotations": annotations}
        if limit is not None:
            self._keep(chosen, {found[annotation].image_id for annotation in chosen}, whole=boxes is not None)
        self.annotated: dict[int, list[np.ndarray]] = defaultdict(list)
        for record in self.content["annotations"]:
            if (person := found.get(record["id"])) is not None and person.joints is not None:
                self.annotated[person.image_id].append(person.joints)
        self.people = [found[annotation] for annotation in chosen]
        if not self.people:
            raise UserError(f"{file} has no person with a box and a labelled joint.")
        if boxes is not None:
            self.people = self._detected(boxes, pictures)
        self.images = [pictures[person.image_id] for person in self.people]

    def _read(self, pictures: Mapping[int, dict[str, Any]]) -> tuple[dict[int, Person], list[dict[str, Any]]]:
        """The people that are asked for, by the ids of their annotations, and all annotations of people."""
        found: dict[int, Person] = {}
        annotations, flat = [], 0
        for number, record in enumerate(self.content["annotations"]):
            if record["category_id"] != self.category_id:
                continue
            if "id" not in record:
                raise UserError(f"{self.file}, annotation number {number} has no id.")
            where = f"{self.file}, annotation {record['id']}"
            box, joints = corners(record, where), joints_of(record, len(self.classes), where)
            labelled = int((joints[:, 2] > 0).sum())
            annotations.append({**record, "num_keypoints": labelled})
            if record.get("iscrowd") or not labelled:
                continue
            if not has_area(box, sides_of(pictures[record["image_id"]])):
                flat += 1
                continue
            found[record["id"]] = Person(record["image_id"], box, 1.0, where, joints)
        self.skipped["boxes without area in the picture"] = flat
        return found, annotations

    def _keep(self, annotations: Sequence[int], image_ids: set[int], whole: bool) -> None:
        """Measure against these annotations alone, or against all of these pictures."""
        ids = set(annotations)
        kept = [r for r in self.content["annotations"] if (r["image_id"] in image_ids if whole else r["id"] in ids)]
        self.content["annotations"] = kept
        self.content["images"] = [record for record in self.content["images"] if record["id"] in image_ids]

    def _detected(self, file: Path, pictures: Mapping[int, dict[str, Any]]) -> list[Person]:
        """A detector's boxes of people in the pictures that are measured on."""
        kept = {record["id"] for record in self.content["images"]}
        found: list[Person] = []
        others = flat = 0
        for number, record in enumerate(read_results(file)):
            where = f"{file}, record {number}"
            person = detected(record, pictures, where)
            if record["category_id"] != self.category_id:
                others += 1
            elif not has_area(person.box, sides_of(pictures[person.image_id])):
                flat += 1
            elif person.image_id in kept:
                found.append(person)
        if not found:
            raise UserError(f"{file} has no box of a person in the pictures of {self.file}.")
        self.skipped |= {"boxes of other categories": others, "boxes without area in the picture": flat}
        return found

    def where(self, index: int) -> str:
        """What messages call the record of person number `index`."""
        return self.people[index].where

    def by_picture(self) -> list[list[int]]:
        """Numbers of the people, picture by picture."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, person in enumerate(self.people):
            numbers[person.image_id].append(number)
        return list(numbers.values())

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """image_id, box (4,) left, top, right, bottom, cut at the picture's edges, score, and known joints (K, 3)."""
        self.check_size(index, image)
        person = self.people[index]
        if not has_area(person.box, image.size):
            raise UserError(f"{person.where}: bbox has no area in the picture of {image.width}x{image.height} pixels.")
        target = {
            "image_id": person.image_id,
            "box": np.array(clipped(person.box, image.size)),
            "score": person.score,
        }
        return target if person.joints is None else {**target, "joints": person.joints}


def open_people(data: DataConfig, train: bool, boxes: str | None = None) -> CocoPeople:
    """One part of a COCO data set of people with joints, to be looked for in true boxes or in a detector's."""
    file, folder = coco_files.locate(data, KEYPOINTS, train)
    return CocoPeople(file, folder, None if boxes is None else Path(boxes), data.limit, data.max_pixels)


def category_with_joints(file: Path, categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The category whose joints have names.

    Raises:
        UserError: there is none or more than one, or the names are not usable.
    """
    found = [record for record in categories if record.get("keypoints")]
    if len(found) != 1:
        raise UserError(
            f"{file} needs one category with a list of keypoints, the names of joints; it has {len(found)}."
        )
    names = found[0]["keypoints"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise UserError(f"{file}, category {found[0]['id']}: keypoints must be a list of different names.")
    mirrored(names)
    return found[0]


def mirrored(names: Sequence[str]) -> list[int]:
    """For each joint the number of the one that a mirror puts in its place: left_* and right_* change places.

    Raises:
        UserError: a joint of one side without that of the other.
    """
    partners = []
    for name in names:
        side = next((side for side in SIDES if name.startswith(side)), None)
        partner = name if side is None else SIDES[side] + name.removeprefix(side)
        if partner not in names:
            raise UserError(f"Joint {name} needs a joint {partner}, with which it changes places in a mirror.")
        partners.append(list(names).index(partner))
    return partners


def joints_of(record: dict[str, Any], count: int, where: str) -> np.ndarray:
    """(count, 3) x and y as pixel numbers, and visibility, of a record's joints.

    Raises:
        UserError: they are not three finite numbers a joint, or a visibility is none.
    """
    values = record.get("keypoints")
    numbers = values if isinstance(values, list) and all(isinstance(v, (int, float)) for v in values) else []
    if len(numbers) != 3 * count:
        raise UserError(f"{where}: keypoints must be {3 * count} numbers: x, y and visibility of {count} joints.")
    joints = np.array(numbers, dtype=np.float64).reshape(count, 3)
    if not np.isfinite(joints).all():
        raise UserError(f"{where}: keypoints holds a number that is not finite.")
    wrong = ~np.isin(joints[:, 2], VISIBILITIES)
    if wrong.any():
        raise UserError(f"{where}: the visibility of a joint must be 0, 1 or 2, not {joints[wrong][0, 2]:g}.")
    return joints


def read_results(file: Path) -> list[dict[str, Any]]:
    """A file of COCO results.

    Raises:
        UserError: it cannot be read, or is none.
    """
    results = read_json(file)
    if not isinstance(results, list) or not all(isinstance(record, dict) for record in results):
        raise UserError(f"{file} is no file of COCO results: it must hold a list of records.")
    return results


def detected(record: dict[str, Any], pictures: Mapping[int, Any], where: str) -> Person:
    """A detector's box.

    Raises:
        UserError: the record lacks something, or names a picture that is not in the data.
    """
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in record]
    if missing:
        raise UserError(f"{where} has no {missing[0]}: a detector's boxes need it.")
    if record["image_id"] not in pictures:
        raise UserError(f"{where}: the data has no image {record['image_id']}.")
    score = record["score"]
    if not isinstance(score, (int, float)) or not np.isfinite(score):
        raise UserError(f"{where}: the score {score!r} is no finite number.")
    return Person(record["image_id"], corners(record, where), float(score), where)


def sides_of(picture: dict[str, Any]) -> tuple[int | None, int | None]:
    """Width and height that a picture's record states."""
    return picture.get("width"), picture.get("height")
