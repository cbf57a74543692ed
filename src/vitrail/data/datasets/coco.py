"""COCO's images with boxes and masks of objects, or with panoptic segments."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from ...config.data import DataConfig
from ...errors import UserError
from ...utils.files import inside
from ..images import MAX_PIXELS, head_of, open_image, open_mask, stored_size
from ..large import LARGE, LARGE_LOGITS, LARGE_MASKS, reduced, reduced_map, reduced_size
from . import coco_files
from .base import AnnotatedSet, listed
from .coco_files import INSTANCES, PANOPTIC, SplitSource, Wanted, read_annotations, resolve_orientation
from .coco_rle import ids_of, mask_of

#: most bytes of the masks of one image, uncompressed
MAX_MASK_BYTES = 2**30
#: minimum side of a box in pixels: a narrower one has no area that a crop could show
MIN_SIDE = 0.01
#: minimum side of a box in training; see `transforms.detection.drop_small_boxes`
MIN_TRAINING_SIDE = 1.0
#: class of unlabelled pixels in maps of stuff
IGNORE = 255


class CocoImages(AnnotatedSet):
    """The images of one split of a COCO annotation file, in the order of their names.

    Args:
        source: the annotations, and which of their images; a file alone = all of them.
        folder: of the images, where `source` is a file.
        wanted: annotations that are needed.
        limit: so many images, the first ones; None = all.
        max_pixels: larger images are refused.

    Attributes:
        read: the annotation file's content, for these images alone, with every entry that the metrics need.
        category_ids: id of each category, in the order of the file's ids.
        max_image_pixels: larger images are reduced (see `data.large`) with their annotations, whose target then has
            "sizes": (height, width) of the image and of the reduced one.

    Raises:
        UserError: the file cannot be read, a record is wrong, or an image is missing.
    """

    def __init__(
        self, source: SplitSource | Path, folder: Path | None, wanted: Wanted, limit: int | None, max_pixels: int
    ):
        source = source if isinstance(source, SplitSource) else SplitSource(source, folder)
        read = read_annotations(source, wanted, limit, max_pixels)
        if source.folder is None:
            raise UserError(f"The folder of the images of {source.file} was not found: name it with --data.images.")
        self.file, self.folder = source.file, source.folder
        self.read = read
        categories = sorted(read.categories, key=lambda record: record["id"])
        self.category_ids = [record["id"] for record in categories]
        self.images = read.images
        super().__init__([record["name"] for record in categories], max_pixels)
        self.remarks += [source.note] if source.note else []
        coco_files.warn_counts(read.counts, source.file)
        self.max_image_pixels = LARGE

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        image = self.image(index)
        return reduced(image, self.max_image_pixels), self.target(index, image)

    def sizes(self, image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of an image, and of the reduced one."""
        size = (image.height, image.width)
        return size, reduced_size(size, self.max_image_pixels)

    @property
    def content(self) -> dict[str, Any]:
        """The ground truth, as `metrics.coco` takes it."""
        return self.read.content

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str | os.PathLike[str]:
        """The file of image number `index`."""
        return self.folder / self.images[index]["file_name"]

    def key(self, index: int) -> str:
        """The name of image number `index` in the annotations."""
        return self.images[index]["file_name"]

    def annotations(self) -> Iterator[Any]:
        """Categories, sizes and annotations."""
        content = self.content
        yield from content["categories"]
        yield [[record["id"], record.get("width"), record.get("height")] for record in content["images"]]
        yield from content["annotations"]

    def where(self, index: int) -> str:
        """Name of the record of image `index` in messages."""
        return f"{self.file}, image {self.images[index]['id']}"

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB: upright, or as stored where its annotations lie on the stored pixels.

        Raises:
            UserError: it cannot be read, or has another size than its record says.
        """
        record, path = self.images[index], Path(self.path(index))
        resolve_orientation(record, path, self.where(index))
        return open_image(path, self.max_pixels, upright=not record.get("stored"), levels=self.levels)

    def remark(self, count: int, what: str) -> None:
        """Add a remark, unless the count is 0."""
        self.remarks += [f"{count} {what}"] if count else []

    def note_absent(self, seen: Counter[Any], names: dict[Any, str], what: str) -> None:
        """Add a remark on classes without annotations."""
        absent = [name for key, name in names.items() if not seen[key]]
        if absent:
            self.remarks.append(f"{len(absent)} of {len(names)} classes without {what}: {listed(absent, most=5)}")


class CocoInstances(CocoImages):
    """Objects with boxes, and masks where asked for; labels count from 0, in the order of the category ids.

    Crowds are left to the metric and not learned. Boxes are cut at the image's edges; those without area, or in
    training without a pixel on each side, inside the image, are skipped and counted.

    Args:
        source, folder, limit, max_pixels: see `CocoImages`.
        masks: read masks, too.
        drop_empty: leave out images without objects.
    """

    def __init__(
        self,
        source: SplitSource | Path,
        folder: Path | None = None,
        masks: bool = False,
        drop_empty: bool = False,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(source, folder, wanted="masks" if masks else "boxes", limit=limit, max_pixels=max_pixels)
        self.masks = masks
        self.max_image_pixels = LARGE_MASKS if masks else LARGE
        labels = {category: label for label, category in enumerate(self.category_ids)}
        self.objects: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        sizes = {record["id"]: (record["width"], record["height"]) for record in self.images}
        crowds = flat = 0
        for record in self.content["annotations"]:
            box = corners(record["bbox"])
            if record["iscrowd"]:
                crowds += 1
                continue
            if not has_min_size(box, sizes[record["image_id"]], MIN_TRAINING_SIDE if drop_empty else MIN_SIDE):
                flat += 1
                continue
            where = f"{self.file}, annotation {record['id']}"
            kept = {"box": box, "label": labels[record["category_id"]], "where": where}
            self.objects[record["image_id"]].append({**kept, "segmentation": record.get("segmentation")})
        if masks:
            for record in self.images:
                check_masks(
                    len(self.objects[record["id"]]), record, self.max_image_pixels, f"{self.file}, image {record['id']}"
                )
        filled = [record for record in self.images if self.objects[record["id"]]]
        if not filled:
            raise UserError(f"{self.file} has no image with an object to {'learn from' if drop_empty else 'measure'}.")
        empty = len(self.images) - len(filled)
        if drop_empty:
            self.skipped["images without objects"] = empty
            self.images = filled
            self.skipped["boxes without area in the image"] = flat
            self.skipped["crowds"] = crowds
        else:
            self.remark(empty, f"of {len(self.images)} images without objects")
            self.remark(flat, "boxes without area in the image, which count as missed")
        seen = Counter(one["label"] for own in self.objects.values() for one in own)
        self.note_absent(seen, dict(enumerate(self.classes)), "an object")

    def reorder_classes(self, classes: Sequence[str]) -> None:
        """See `AnnotatedSet`: another file may give the same classes other ids."""
        if sorted(classes) != sorted(self.classes) or len(set(classes)) < len(classes):
            return
        places = [self.classes.index(name) for name in classes]
        labels = {place: label for label, place in enumerate(places)}
        for one in (one for own in self.objects.values() for one in own):
            one["label"] = labels[one["label"]]
        self.category_ids = [self.category_ids[place] for place in places]
        self.classes = list(classes)

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """image_id, boxes (N, 4) as left, top, right, bottom, labels (N,), and masks (N, H, W) where asked for."""
        record = self.images[index]
        size, small = self.sizes(image)
        objects = [(o, clipped(o["box"], image.size)) for o in self.objects[record["id"]]]
        objects = [(o, box) for o, box in objects if box[2] > box[0] and box[3] > box[1]]
        target: dict[str, Any] = {
            "image_id": record["id"],
            "boxes": boxes_tensor([box for _, box in objects], small, size),
            "labels": torch.tensor([o["label"] for o, _ in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = [reduced_map(mask_of(o["segmentation"], *size, o["where"]), small) for o, _ in objects]
            target["masks"] = masks_tensor(masks, small)
        return target if small == size else {**target, "sizes": (size, small)}


class CocoPanoptic(CocoImages):
    """A segment for every pixel: things with boxes and masks, and a map of stuff.

    Things and stuff are numbered apart, in the order of the category ids: labels of things from 0; in the map, stuff
    from 0, then one number for all things, and 255 for unlabelled pixels and crowds.

    Args:
        source: the annotations; the PNGs lie in the folder of their file's name.
        folder, limit, max_pixels: see `CocoImages`.

    Attributes:
        classes: names of things, then of stuff.
        things, stuff: category ids.
    """

    def __init__(
        self,
        source: SplitSource | Path,
        folder: Path | None = None,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(source, folder, wanted="segments", limit=limit, max_pixels=max_pixels)
        is_thing = {record["id"]: bool(record["isthing"]) for record in self.content["categories"]}
        self.things = [category for category in self.category_ids if is_thing[category]]
        self.stuff = [category for category in self.category_ids if not is_thing[category]]
        self.max_image_pixels = large_panoptic(len(self.category_ids))
        names = {record["id"]: record["name"] for record in self.content["categories"]}
        self.classes = [names[category] for category in (*self.things, *self.stuff)]
        if not self.things or not self.stuff:
            raise UserError(f"{self.file} needs categories of things and of stuff (isthing 1 and 0).")
        self.records = {record["image_id"]: record for record in self.content["annotations"]}
        step = max(1, -(-len(self.images) // coco_files.MAX_HEADERS))
        for number, record in enumerate(self.images):
            if record["id"] not in self.records:
                raise UserError(f"{self.file}: image {record['id']} has no segments.")
            path = self.map_path(number)
            if not path.is_file():
                raise UserError(f"{self.where(number)}: {path.parent} has no map {path.name}.")
            things = sum(s["category_id"] in self.things for s in self.records[record["id"]]["segments_info"])
            check_masks(things, record, self.max_image_pixels, self.where(number))
            if number % step == 0:
                self._check_map(number, stored_size(path))
        segments = [segment for record in self.records.values() for segment in record["segments_info"]]
        if not any(not segment["iscrowd"] for segment in segments):
            raise UserError(f"{self.file} has no segment to learn or to measure.")
        self.note_absent(Counter(segment["category_id"] for segment in segments), names, "a segment")

    def stored(self, index: int) -> list[bytes]:
        """Size and beginning of image number `index` and of its map."""
        return [*super().stored(index), head_of(self.map_path(index))]

    def map_path(self, index: int) -> Path:
        """The PNG of image number `index`."""
        return map_path(self.file, self.records[self.images[index]["id"]], self.where(index))

    def map(self, index: int) -> np.ndarray:
        """(H, W) ids of the segments of image number `index`, 0 for unlabelled pixels.

        Raises:
            UserError: it cannot be read, or a segment has no pixel in it.
        """
        return checked_map(self.map_path(index), self.records[self.images[index]["id"]], self.where(index))

    def _check_map(self, index: int, size: tuple[int, int]) -> None:
        record = self.images[index]
        if size != (record["width"], record["height"]):
            raise UserError(
                f"{self.where(index)}: the map is {size[0]}x{size[1]} pixels, not "
                f"{record['width']}x{record['height']} as the image."
            )

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """image_id, boxes (N, 4), labels (N,) and masks (N, H, W) of things, and semantic (H, W)."""
        size, small = self.sizes(image)
        self._check_map(index, stored_size(self.map_path(index)))
        ids = reduced_map(self.map(index), small)
        semantic = np.full(small, IGNORE, dtype=np.int64)
        masks, labels = [], []
        for segment in self.records[self.images[index]["id"]]["segments_info"]:
            mask = ids == segment["id"]
            if segment["iscrowd"]:
                continue
            if segment["category_id"] in self.stuff:
                semantic[mask] = self.stuff.index(segment["category_id"])
            elif mask.any():  # of a large image the smallest may be gone
                semantic[mask] = len(self.stuff)
                masks.append(mask)
                labels.append(self.things.index(segment["category_id"]))
        target: dict[str, Any] = {
            "image_id": self.images[index]["id"],
            "boxes": boxes_tensor([box_of(mask) for mask in masks], small),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": masks_tensor(masks, small),
            "semantic": tv_tensors.Mask(torch.from_numpy(semantic)),
        }
        return target if small == size else {**target, "sizes": (size, small)}


def large_panoptic(classes: int) -> int:
    """Pixels of an image of which a panoptic network gives the logits of all classes and a hundred masks."""
    return min(LARGE_MASKS // 2, max(LARGE_MASKS // 4, LARGE_LOGITS // (classes + 1)))


def check_masks(count: int, image: dict[str, Any], most: int, where: str) -> None:
    """Raise `UserError` where the masks of one image, reduced to `most` pixels, take more than `MAX_MASK_BYTES`."""
    needed = count * min(image["width"] * image["height"], most)
    if needed > MAX_MASK_BYTES:
        raise UserError(
            f"{where}: {count} masks of an image of {image['width']}x{image['height']} pixels need "
            f"{needed / 2**30:.1f} GB, more than the "
            f"{MAX_MASK_BYTES >> 30} GB that are allowed: make the image smaller."
        )


def map_path(file: Path, record: dict[str, Any], where: str) -> Path:
    """The PNG of a panoptic record, in the folder of its file's name.

    Raises:
        UserError: its name leads out of that folder.
    """
    return inside(file.with_suffix(""), record["file_name"], where)


def read_map(path: Path, where: str) -> np.ndarray:
    """(H, W) ids of a panoptic PNG.

    Raises:
        UserError: it cannot be read, or has no colours.
    """
    pixels = open_mask(path)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{where}: {path} is no panoptic map: it must be a PNG of colours (RGB) that stand for ids.")
    return ids_of(pixels[..., :3])


def checked_map(path: Path, record: dict[str, Any], where: str) -> np.ndarray:
    """(H, W) ids of a record's segments, 0 for those that it does not list.

    Raises:
        UserError: the map cannot be read, or a segment has no pixel in it.
    """
    ids = read_map(path, where)
    listed = np.array([segment["id"] for segment in record["segments_info"]], dtype=np.int64)
    there = np.unique(ids)
    for number in listed[~np.isin(listed, there)]:
        raise UserError(f"{where}: segment {number} has no pixel in the map.")
    return ids if np.isin(there[there > 0], listed).all() else np.where(np.isin(ids, listed), ids, 0)


def open_instances(data: DataConfig, train: bool, masks: bool) -> CocoInstances:
    """One split of a COCO data set of objects; images without objects are not learned from."""
    source = coco_files.locate(data, INSTANCES, train)
    return CocoInstances(source, None, masks=masks, drop_empty=train, limit=data.limit, max_pixels=data.max_pixels)


def open_panoptic(data: DataConfig, train: bool) -> CocoPanoptic:
    """One split of a COCO data set of panoptic segments."""
    return CocoPanoptic(coco_files.locate(data, PANOPTIC, train), None, data.limit, data.max_pixels)


def corners(box: Iterable[float]) -> list[float]:
    """A box given as left, top, width and height, as left, top, right and bottom."""
    left, top, width, height = map(float, box)
    return [left, top, left + width, top + height]


def clipped(box: Iterable[float], size: tuple[int, int]) -> list[float]:
    """A box cut at the edges of an image of (width, height)."""
    left, top, right, bottom = box
    width, height = size
    return [min(max(left, 0), width), min(max(top, 0), height), min(max(right, 0), width), min(max(bottom, 0), height)]


def has_min_size(box: list[float], size: tuple[int | None, int | None], least: float = MIN_SIDE) -> bool:
    """True if both sides of a box have `least` pixels inside an image of (width, height), as far as that is known."""
    width, height = (side if side is not None else float("inf") for side in size)
    sides = min(box[2], width) - max(box[0], 0), min(box[3], height) - max(box[1], 0)
    return min(sides) >= least


def box_of(mask: np.ndarray) -> list[float]:
    """Left, top, right and bottom of the pixels of a mask that is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)]


def boxes_tensor(
    boxes: list[list[float]], size: tuple[int, int], original: tuple[int, int] | None = None
) -> tv_tensors.BoundingBoxes:
    """(N, 4) boxes of an image of (height, width); they are given in the pixels of its `original` size."""
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    if original is not None and original != size:
        values *= torch.tensor([size[1] / original[1], size[0] / original[0]]).repeat(2)
    return tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=size)  # pyright: ignore[reportCallIssue]


def masks_tensor(masks: list[np.ndarray], size: tuple[int, int]) -> tv_tensors.Mask:
    """(N, H, W) uint8 masks of an image of (height, width)."""
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)
    return tv_tensors.Mask(torch.from_numpy(stacked.astype(np.uint8, copy=False)))
