"""COCO's annotation files: finding, reading and checking them, for training, evaluation and stored predictions."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from ...config.data import ALL_IMAGES, DataConfig
from ...errors import UserError
from ...utils.files import inside, read_json, shortened
from ..images import MAX_PIXELS, orientation_of, stored_size
from .coco_rle import area_of, box_of_mask, check_mask, checked_numbers
from .splits import HOLDOUT, measured_split

#: kinds of annotation file by the name COCO gives them
INSTANCES, KEYPOINTS, PANOPTIC = "instances", "person_keypoints", "panoptic"
#: the annotations that a reader needs
Wanted = Literal["boxes", "masks", "keypoints", "segments"]
#: what a keypoint's third number may be: not labelled, labelled but hidden, seen
VISIBILITIES = (0, 1, 2)
#: ids of segments are colours of three bytes; 0 is unlabelled
MAX_SEGMENTS = 256**3
#: most image headers that are read before training for the camera's orientation
MAX_HEADERS = 5_000
#: pixels by which boxes reach beyond an image for no more reason than rounding
SLACK = 1.0
#: EXIF orientations that exchange width and height
SIDEWAYS = (5, 6, 7, 8)

#: the validation split where none is named
DEFAULT_SPLIT = DataConfig().val_split


@dataclass(frozen=True)
class SplitSource:
    """Annotation file, image folder and held-out share of one split.

    Attributes:
        file: the annotations.
        folder: of the images; None where it is not there.
        share: of the file's images that is held out, where one file serves both splits; None = the file is one split.
        held: whether this split is the held-out share.
        seed: of the choice.
        note: what the user should know of this split.
    """

    file: Path
    folder: Path | None
    share: float | None = None
    held: bool = False
    seed: int = 0
    note: str = ""

    def chosen(self, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The images of this split: the share is a function of the seed and of the images' names alone.

        Raises:
            UserError: one image is not enough for two splits.
        """
        if self.share is None:
            return list(images)
        if len(images) < 2:
            raise UserError(
                f"{self.file} has {len(images)} image(s), so none can be held out for validation: add images, or "
                "measure on the training images with --data.val_split train."
            )
        order = sorted(images, key=lambda image: _hash_of_name(self.seed, image["file_name"]))
        count = min(max(1, round(self.share * len(images))), len(images) - 1)
        held = {image["file_name"] for image in order[:count]}
        return [image for image in images if (image["file_name"] in held) == self.held]


def _hash_of_name(seed: int, name: str) -> bytes:
    """A hash of a name, which depends on nothing but the seed."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


@dataclass
class Annotations:
    """The content of an annotation file in which every record is as its reader needs it.

    Attributes:
        file: where it was read.
        images: id (a number or a text, as written), file_name, and width and height where they are known.
        annotations: number (place in the file), id, image_id (the image's own), category_id, iscrowd (0 or 1), and what
            is wanted: bbox and area, segmentation, keypoints and num_keypoints, or file_name and segments_info.
        categories: id, name, and what else they say.
        counts: notes for the user, and how often each applies.
    """

    file: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """Images, annotations and categories, as the COCO tools take them."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}

    def keep(self, images: Sequence[dict[str, Any]]) -> None:
        """Leave out all other images, and what belongs to them."""
        kept = {key_of(image["id"]) for image in images}
        self.images = list(images)
        self.annotations = [record for record in self.annotations if key_of(record["image_id"]) in kept]


# ---- reading and checking ---------------------------------------------------------------------------------------


def read_annotations(
    source: SplitSource | Path,
    wanted: Wanted,
    limit: int | None = None,
    max_pixels: int = MAX_PIXELS,
    only_sizes: bool = False,
) -> Annotations:
    """The checked content of a COCO annotation file, images in the order of their names.

    Ids of annotations may be any numbers or texts, also repeated: nothing refers to them. Ids of images are numbers or
    texts; a record may name the image 7 as 7 or as "7". Sides of 0 or less, as some tools write them, count as unknown,
    and unknown sizes are read from the images where their folder is known. A box that is missing is drawn around the
    record's mask, and an area that is missing or not above 0 is that of the mask, or else of the box.

    Args:
        source: the file, and which of its images are read.
        wanted: annotations that are needed.
        limit: so many images, the first ones by name; None = all.
        max_pixels: larger images are refused.
        only_sizes: look at no image but those of unknown size.

    Raises:
        UserError: the file cannot be read, or a record is wrong; the sentence names it.
    """
    source = SplitSource(source, None) if isinstance(source, Path) else source
    read = _read_records(source.file, wanted, max_pixels)
    read.keep(sorted(source.chosen(read.images), key=lambda image: image["file_name"])[:limit])
    if source.folder is not None:
        _check_images(read, source.folder, [i for i in read.images if not (only_sizes and "width" in i)])
    sizes = {image["id"]: _size(image) for image in read.images}
    names = names_of_keypoints(read) if wanted == "keypoints" else None
    read.annotations = [
        _complete_annotation(record, sizes, wanted=wanted, names=names, where=_where(read.file, record))
        for record in read.annotations
    ]
    _count_names(read)
    if wanted != "segments":
        _check_unit(read, wanted)
        _check_places(read, sizes, wanted)
    return read


def _read_records(file: Path, wanted: Wanted, max_pixels: int) -> Annotations:
    """A file's records, of which the ids, names and references are checked."""
    content = read_json(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file} is no COCO annotation file: it has no list of {key}.")
    images = [_image(record, f"{file}, image number {n}", max_pixels) for n, record in enumerate(content["images"])]
    known = _distinct(images, key_of, f"{file} lists the image {{}} twice.")
    _distinct([image["file_name"] for image in images], str, f"{file} lists the file {{}} twice: give it one image.")
    categories = [_category(record, f"{file}, category number {n}") for n, record in enumerate(content["categories"])]
    if not categories:
        raise UserError(f"{file} has no categories: there is no class to learn or to measure.")
    classes = _distinct(categories, lambda value: value, f"{file} lists the category {{}} twice.")
    annotations = []
    for number, record in enumerate(content["annotations"]):
        annotations.append(
            _annotation(record, f"{file}, annotation", number=number, images=known, classes=classes, wanted=wanted)
        )
    if wanted == "segments":
        _distinct([r["image_id"] for r in annotations], str, f"{file} has two records of the image {{}}.")
    return Annotations(file, images, annotations, categories)


def panoptic_records(file: Path, records: Sequence[Any], truth: Annotations) -> list[dict[str, Any]]:
    """Panoptic results of the images and categories of a true annotation file.

    Raises:
        UserError: a record or segment that is wrong, or of no such image or category.
    """
    images = {key_of(image["id"]): image for image in truth.images}
    classes = {category["id"]: category for category in truth.categories}
    made = [
        _annotation(record, f"{file}, record", number=n, images=images, classes=classes, wanted="segments")
        for n, record in enumerate(records)
    ]
    _distinct([record["image_id"] for record in made], str, f"{file} has two records of the image {{}}.")
    return made


def _distinct(records: Iterable[Any], key: Any, says: str) -> dict[Any, Any]:
    """Records by the key of their ids, which must differ."""
    found: dict[Any, Any] = {}
    for record in records:
        value = record["id"] if isinstance(record, dict) else record
        if key(value) in found:
            raise UserError(says.format(shortened(value) if isinstance(value, str) else value))
        found[key(value)] = record
    return found


def whole_number(value: Any) -> int | None:
    """A whole number, also one written as 3.0; None for anything else, such as texts, true and false."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def key_of(value: Any) -> str | None:
    """An id as text, the same for 7 and "7"; None for what is no id."""
    if isinstance(value, str):
        return value or None
    number = whole_number(value)
    return None if number is None else str(number)


def _record(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where} is no record with named entries, but {shortened(record)}.")
    return record


def _image(record: Any, where: str, max_pixels: int) -> dict[str, Any]:
    """An image's record: id, file_name, and width and height where they are above 0."""
    record = _record(record, where)
    for key in ("id", "file_name"):
        if key not in record:
            raise UserError(f"{where} has no {key}.")
    if key_of(record["id"]) is None:
        raise UserError(f"{where}: the id must be a whole number or a text, not {shortened(record['id'])}.")
    where = f"{where.split(', image number')[0]}, image {_id_text(record['id'])}"
    inside(".", record["file_name"], where)
    sides = [_side(record, name, where) for name in ("width", "height")]
    made = {key: value for key, value in record.items() if key not in ("width", "height")}
    made |= {"id": _plain_id(record["id"]), "file_name": str(PurePosixPath(record["file_name"]))}
    if None in sides:
        return made
    if sides[0] * sides[1] > max_pixels:
        raise UserError(
            f"{where}: {sides[0]}x{sides[1]} pixels are more than the {max_pixels:,} that are allowed: correct the "
            "record, or raise --data.max_pixels."
        )
    return {**made, "width": sides[0], "height": sides[1]}


def _plain_id(value: Any) -> int | str:
    return value if isinstance(value, str) else int(value)


def _id_text(value: Any) -> str:
    """An id in a message."""
    return shortened(value) if not isinstance(value, int) or isinstance(value, bool) else shortened(value, 40)


def _side(record: dict[str, Any], name: str, where: str) -> Any:
    """An image's width or height; None if it is not stated or not above 0."""
    value = record.get(name)
    number = whole_number(value)
    if value is not None and number is None:
        raise UserError(f"{where}: {name} must be a whole number of pixels, not {shortened(value)}.")
    return number if number is not None and number > 0 else None


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height), where both are known."""
    return (image["width"], image["height"]) if "width" in image else None


def _category(record: Any, where: str) -> dict[str, Any]:
    record = _record(record, where)
    for key in ("id", "name"):
        if key not in record:
            raise UserError(
                f"{where} has no {key}."
                if key == "id"
                else f"{where.split(', category')[0]}, category {_id_text(record['id'])} has no {key}."
            )
    number = whole_number(record["id"])
    if number is None:
        raise UserError(f"{where}: the id must be a whole number, not {shortened(record['id'])}.")
    where = f"{where.split(', category')[0]}, category {number}"
    name, isthing = record["name"], record.get("isthing", 1)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: the name must be a text, not {shortened(name)}.")
    if whole_number(int(isthing) if isinstance(isthing, bool) else isthing) not in (0, 1):
        raise UserError(f"{where}: isthing must be 0 or 1, not {shortened(isthing)}.")
    return {**record, "id": number, "isthing": int(isthing)}


def _annotation(
    record: Any, where: str, number: int, images: dict[str | None, Any], classes: dict[int, Any], wanted: Wanted
) -> dict[str, Any]:
    """An annotation whose id, image, category and crowd are as they should be."""
    record = _record(record, f"{where} number {number}")
    if wanted != "segments":
        if record.get("id") is None:
            raise UserError(f"{where} number {number} has no id: give every annotation one, such as its number.")
        if key_of(record["id"]) is None:
            raise UserError(
                f"{where} number {number}: the id must be a number or a text, not {shortened(record['id'])}."
            )
        where = f"{where} {_id_text(record['id'])}"
    else:
        where = f"{where} number {number}"
    image = images.get(key_of(record.get("image_id")))
    if image is None:
        raise UserError(f"{where}: there is no image {shortened(record.get('image_id'))}.")
    made = {**record, "image_id": image["id"], "number": number}
    if "segments_info" in record or wanted == "segments":
        made["segments_info"] = _segments(record, where, classes)
    if wanted == "segments":
        inside(".", record.get("file_name"), where)
        return made
    return {**made, "category_id": _category_of(record, where, classes), "iscrowd": _crowd(record, where)}


def _segments(record: dict[str, Any], where: str, classes: dict[int, Any]) -> list[dict[str, Any]]:
    """The segments of a panoptic record: id, category_id and iscrowd."""
    listed = record.get("segments_info")
    if not isinstance(listed, list):
        raise UserError(f"{where}: segments_info must be a list of segments, not {shortened(listed)}.")
    made = []
    for segment in listed:
        segment = _record(segment, f"{where}, segment number {len(made)}")
        number = whole_number(segment.get("id"))
        if number is None or not 0 < number < MAX_SEGMENTS:
            raise UserError(
                f"{where}: the id of a segment must be a number from 1 to {MAX_SEGMENTS - 1}, not "
                f"{shortened(segment.get('id'))}."
            )
        here = f"{where}, segment {number}"
        own = {"id": number, "category_id": _category_of(segment, here, classes), "iscrowd": _crowd(segment, here)}
        made.append({**segment, **own})
    twice = [number for number, count in Counter(segment["id"] for segment in made).items() if count > 1]
    if twice:
        raise UserError(f"{where} lists the segment {twice[0]} twice.")
    return made


def _category_of(record: dict[str, Any], where: str, classes: dict[int, Any]) -> int:
    value = record.get("category_id")
    number = whole_number(value)
    if number not in classes:
        raise UserError(f"{where}: there is no category {shortened(value)}.")
    return number


def _crowd(record: dict[str, Any], where: str) -> int:
    value = record.get("iscrowd", 0)
    number = int(value) if isinstance(value, bool) else 0 if value is None else whole_number(value)
    if number not in (0, 1):
        raise UserError(f"{where}: iscrowd must be 0 or 1, not {shortened(value)}.")
    return number


def _where(file: Path, record: dict[str, Any]) -> str:
    return f"{file}, annotation {_id_text(record.get('id', record['image_id']))}"


def _complete_annotation(
    record: dict[str, Any],
    sizes: dict[int | str, tuple[int, int] | None],
    wanted: Wanted,
    names: Sequence[str] | None,
    where: str,
) -> dict[str, Any]:
    """An annotation of which every entry that is wanted is there and right."""
    if wanted == "segments":
        return record
    size = sizes[record["image_id"]]
    made = {"id": record["id"], "image_id": record["image_id"], "category_id": record["category_id"]}
    made |= {"iscrowd": record["iscrowd"], "number": record["number"]}
    segmentation = record.get("segmentation")
    has_mask = segmentation not in (None, [], {})
    if wanted == "masks":
        check_mask(segmentation, size, where)
        made["segmentation"] = segmentation
    if record.get("bbox") in (None, []) and has_mask:
        made["bbox"] = box_of_mask(segmentation, size, where)
    else:
        made["bbox"] = box_in(record, where)
    made["area"] = _area(record, made["bbox"], segmentation=segmentation if has_mask else None, size=size, where=where)
    if names is not None and "keypoints" in record:
        keypoints = keypoints_of(record, len(names), where)
        made |= {"keypoints": keypoints.ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
    return made


def box_in(record: dict[str, Any], where: str) -> list[float]:
    """Left, top, width and height of a record's box.

    Raises:
        UserError: it is not four finite numbers, of which width and height are 0 or more.
    """
    box = checked_numbers(
        record.get("bbox"), 4, name="bbox", says="four numbers: left, top, width and height", where=where
    )
    if box[2] < 0 or box[3] < 0:
        raise UserError(f"{where}: bbox {record['bbox']} has a width or height below 0.")
    return record["bbox"]


def _area(
    record: dict[str, Any], box: Sequence[float], segmentation: Any, size: tuple[int, int] | None, where: str
) -> float:
    """The stated area where it is above 0, else that of the mask, else that of the box."""
    stated = record.get("area")
    if stated is not None:
        value = checked_numbers([stated], 1, name="area", says="a number of pixels", where=where, shown=stated)[0]
        if value > 0:
            return stated
    return box[2] * box[3] if segmentation is None else area_of(segmentation, size, where)


# ---- positions of the annotations ---------------------------------------------------------------------------------


def _check_unit(read: Annotations, wanted: Wanted) -> None:
    """Raise `UserError` where all boxes, polygons or keypoints are shares of their image's sides instead of pixels."""
    kinds: dict[str, Any] = {"bbox": lambda record: [record["bbox"]]}
    if wanted == "masks":
        kinds["segmentation"] = _polygons
    if wanted == "keypoints":
        kinds["keypoints"] = _labelled
    for name, vectors_of in kinds.items():
        if are_shares(numbers for record in read.annotations for numbers in vectors_of(record)):
            raise UserError(
                f"{read.file}: no {name} has a number above 1, so these are shares of the image's sides: COCO's are "
                "pixels, multiply them by width and height."
            )


def _polygons(record: dict[str, Any]) -> Sequence[Any]:
    mask = record.get("segmentation")
    return mask if isinstance(mask, list) else ((2,),)  # run lengths count pixels


def _labelled(record: dict[str, Any]) -> list[Sequence[Any]]:
    """x and y of the labelled keypoints."""
    values = record.get("keypoints") or ()
    return [values[i : i + 2] for i in range(0, len(values), 3) if values[i + 2]]


def are_shares(vectors: Iterable[Sequence[Any]]) -> bool:
    """True if all numbers lie from 0 to 1, and at least one of them between."""
    between = False
    for numbers in vectors:
        if len(numbers) and (max(numbers) > 1 or min(numbers) < 0):
            return False
        between = between or any(value not in (0, 1) for value in numbers)
    return between


def exceeds_image(box: Sequence[float], size: tuple[int, int]) -> bool:
    """True if a box (left, top, width, height) reaches more than `SLACK` beyond an image of (width, height)."""
    left, top, width, height = box
    return left < -SLACK or top < -SLACK or left + width > size[0] + SLACK or top + height > size[1] + SLACK


def _check_places(read: Annotations, sizes: dict[int | str, tuple[int, int] | None], wanted: Wanted) -> None:
    """Count what lies outside its image; see `Annotations.counts`.

    Raises:
        UserError: the boxes are not left, top, width and height, but left, top, right and bottom.
    """
    placed = [(record, size) for record in read.annotations if (size := sizes[record["image_id"]]) is not None]
    outside = [record for record, size in placed if exceeds_image(record["bbox"], size)]
    if 2 * len(outside) >= max(2, len(placed)) and all(_fits_as_corners(r["bbox"], size) for r, size in placed):
        raise UserError(
            f"{_where(read.file, outside[0])}: bbox {shortened(outside[0]['bbox'])} reaches beyond its image, as "
            f"{len(outside)} of {len(placed)} boxes do; all are boxes inside their images if they are left, top, right "
            "and bottom: COCO's are left, top, width and height."
        )
    _count(read, len(outside), "boxes reach beyond their images and are cut at the edges where they are learned")
    if wanted == "masks":
        lost = sum(not _overlaps_image(_polygons(record), size) for record, size in placed)
        _count(read, lost, "masks lie outside their images and have no pixel")
    if wanted == "keypoints":
        points = [(point, size) for record, size in placed for point in _labelled(record)]
        lost = sum(not (0 <= x <= size[0] and 0 <= y <= size[1]) for (x, y), size in points)
        _count(read, lost, "labelled keypoints lie outside their images")
        corner = sum(x == y == 0 for (x, y), _ in points)
        _count(read, corner, "labelled keypoints lie at (0, 0), where tools put those that are not labelled")


def _fits_as_corners(box: Sequence[float], size: tuple[int, int]) -> bool:
    """True if (left, top, right, bottom) is a box inside an image of (width, height)."""
    left, top, right, bottom = box
    return 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


def _overlaps_image(polygons: Sequence[Any], size: tuple[int, int]) -> bool:
    """True if the frame around polygons has points in an image of (width, height); run lengths always do."""
    if len(polygons[0]) < 6:
        return True
    return all(
        min(min(p[i::2]) for p in polygons) < side and max(max(p[i::2]) for p in polygons) > 0
        for i, side in enumerate(size)
    )


def _count_names(read: Annotations) -> None:
    """Count annotated categories that share a name: their classes cannot be told apart by it."""
    used = {segment["category_id"] for r in read.annotations for segment in r.get("segments_info", (r,))}
    names = Counter(category["name"] for category in read.categories if category["id"] in used)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        what = f"categories share a name with another ({shortened(twice[0])}): they are different classes of one name"
        _count(read, sum(names[name] for name in twice), what)


def _count(read: Annotations, count: int, what: str) -> None:
    if count:
        read.counts[what] = count


# ---- keypoints --------------------------------------------------------------------------------------------------


def category_with_keypoints(file: Path, categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The category whose keypoints have names.

    Raises:
        UserError: there is none or more than one, or the names are not usable.
    """
    found = [record for record in categories if record.get("keypoints")]
    if len(found) != 1:
        raise UserError(f"{file} needs one category with a list of keypoints (their names); it has {len(found)}.")
    names = found[0]["keypoints"]
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) < len(names)
    ):
        raise UserError(f"{file}, category {found[0]['id']}: keypoints must be a list of different names.")
    return found[0]


def names_of_keypoints(read: Annotations) -> list[str]:
    """The names of the keypoints; all annotations of other categories go, and every one left has keypoints.

    Raises:
        UserError: see `category_with_keypoints`; an annotation of persons without keypoints.
    """
    category = category_with_keypoints(read.file, read.categories)
    read.categories = [category]
    read.annotations = [record for record in read.annotations if record["category_id"] == category["id"]]
    for record in read.annotations:
        record.setdefault("keypoints", None)
    return list(category["keypoints"])


def keypoints_of(record: dict[str, Any], count: int, where: str) -> np.ndarray:
    """(count, 3) x and y as pixel numbers, and visibility, of a record's keypoints.

    Raises:
        UserError: they are not three finite numbers a keypoint, or a visibility is none.
    """
    says = f"{3 * count} numbers: x, y and visibility of {count} keypoints"
    keypoints = checked_numbers(record.get("keypoints"), 3 * count, name="keypoints", says=says, where=where).reshape(
        count, 3
    )
    wrong = ~np.isin(keypoints[:, 2], VISIBILITIES)
    if wrong.any():
        raise UserError(f"{where}: the visibility of a keypoint must be 0, 1 or 2, not {keypoints[wrong][0, 2]:g}.")
    return keypoints


# ---- images -----------------------------------------------------------------------------------------------------


def _check_images(read: Annotations, folder: Path, images: Sequence[dict[str, Any]]) -> None:
    """Check that all images exist, read unknown sizes, and count images that the camera turned.

    Raises:
        UserError: an image is missing, cannot be read, or has another size than its record says.
    """
    step = max(1, -(-len(images) // MAX_HEADERS))
    for number, image in enumerate(images):
        where = f"{read.file}, image {_id_text(image['id'])}"
        path = inside(folder, image["file_name"], where)
        if not path.is_file():
            raise UserError(f"{where}: {folder} has no image {shortened(image['file_name'])}.")
        if number % step and "width" in image:
            continue  # its size is compared when it is opened
        how = resolve_orientation(image, path, where)
        if how:
            read.counts[how] = read.counts.get(how, 0) + 1


def resolve_orientation(image: dict[str, Any], path: Path, where: str) -> str | None:
    """Fill an unknown size, and decide whether annotations are for the stored or the upright pixels.

    A stated size tells the two apart where the camera was held sideways; the key "stored" of the record then says that
    the pixels are used as they are stored. Where it cannot (mirrored, upside down, square, no size stated), the image
    is used upright.

    Returns:
        A note for the user; None where there is none.

    Raises:
        UserError: the image cannot be read, or has another size than its record says.
    """
    orientation, stored = orientation_of(path), stored_size(path)
    upright = stored[::-1] if orientation in SIDEWAYS else stored
    stated = _size(image)
    if stated is None:
        image |= {"width": upright[0], "height": upright[1]}
    elif stated == stored != upright:
        image["stored"] = True
        return "images that the camera turned (EXIF), used as they are stored, as the annotations state that size"
    elif stated != upright:
        turned = f" (EXIF orientation {orientation}; {stored[0]}x{stored[1]} stored)" if orientation != 1 else ""
        raise UserError(
            f"{where}: {shortened(image['file_name'])} is {upright[0]}x{upright[1]} pixels{turned}, the annotations "
            f"say {stated[0]}x{stated[1]}."
        )
    if orientation == 1 or (orientation in SIDEWAYS and stated is not None and stored[0] != stored[1]):
        return None
    return (
        "images that the camera turned or mirrored (EXIF orientation), used upright; the annotations do not tell "
        "whether they lie on the stored pixels: look at one, and remove the orientation where they do"
    )


def warn_counts(counts: dict[str, int], file: Path) -> None:
    """Warn of each counted note once."""
    for what, count in counts.items():
        warnings.warn(f"{file}: {count} {what}.", stacklevel=3)


# ---- files of a split -------------------------------------------------------------------------------------------


def locate(data: DataConfig, kind: str, train: bool) -> SplitSource:
    """The annotation file of one split and the folder of its images.

    `--data.annotations` and `--data.images` name them; below `--data.root` they are looked for under COCO's own names
    (annotations/instances_val2017.json beside val2017/) and the same without the year. Where one file is there for
    learning and measuring, a share of its images is held out; see `docs/tasks.md`.

    Raises:
        UserError: there is no such file.
    """
    if data.annotations is not None:
        folder = None if data.images is None else Path(data.images)
        return _shared(SplitSource(Path(data.annotations), folder), data, train)
    if data.root is None:
        raise UserError("--data coco needs --data.root, or --data.annotations and --data.images.")
    root = Path(data.root)
    learned, measured = (_named(root, kind, split) for split in (data.train_split, measured_split(data)))
    single = _first(root, [f"{kind}.json"])
    shared = single if learned is None and measured is None else None
    if single is None and measured is None and data.val_split in (DEFAULT_SPLIT, HOLDOUT):
        shared = learned
    file = shared or (learned if train else measured) or single
    if file is None:
        split = _split_name(data.train_split if train else data.val_split)
        raise UserError(
            f"{root} has no annotations/{kind}_{split}2017.json, nor {kind}_{split}.json: name it with "
            "--data.annotations, or its split with --data.train_split and --data.val_split."
        )
    if data.images is not None:
        folder = Path(data.images)
    else:
        folder = _images(root, data, train or shared is not None) or _images(root, data, train)
    source = SplitSource(file, folder)
    return _shared(source, data, train) if shared else replace(source, note=_deliberate(data, train))


def _shared(source: SplitSource, data: DataConfig, train: bool) -> SplitSource:
    """One split of a file that is there for both."""
    if data.measures_training:
        return replace(source, note=_deliberate(data, train))
    if not 0 < data.val_fraction < 1:
        raise UserError(f"data.val_fraction={data.val_fraction!r} is not allowed; give a share above 0 and below 1.")
    note = (
        f"{source.file} is the one file for both splits: {100 * data.val_fraction:g} % of its images are held out, "
        "always the same ones (--data.val_fraction, --data.split_seed)"
    )
    return replace(source, share=data.val_fraction, held=not train, seed=data.split_seed, note=note if train else "")


def _deliberate(data: DataConfig, train: bool) -> str:
    """The note that metrics are of training images."""
    if train or not data.measures_training:
        return ""
    if data.val_split == ALL_IMAGES:
        return "all images of the file are measured (--data.val_split all)"
    return f"these are training images, as --data.val_split {data.val_split} says: no metric is of other images"


def _split_name(split: str) -> str:
    return {"validation": "val", ALL_IMAGES: "val", HOLDOUT: "val"}.get(split, split)


def _first(root: Path, names: Sequence[str]) -> Path | None:
    places = [root / folder / name for name in names for folder in ("annotations", ".")]
    return next((path for path in places if path.is_file()), None)


def _named(root: Path, kind: str, split: str) -> Path | None:
    """The file that has the split in its name."""
    name = _split_name(split)
    return _first(root, [f"{kind}_{name}2017.json", f"{kind}_{name}.json"])


def _images(root: Path, data: DataConfig, train: bool) -> Path | None:
    split = _split_name(data.train_split if train else measured_split(data))
    folders = [f"{split}2017", f"images/{split}2017", f"images/{split}", split, "images"]
    return next((root / folder for folder in folders if (root / folder).is_dir()), None)
