"""COCO's pictures with boxes and masks of objects, or with a segment for every pixel."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from ..errors import UserError
from . import coco_files
from .annotated import AnnotatedSet
from .coco_files import INSTANCES, PANOPTIC, first_pictures, read_annotations
from .coco_masks import check_segmentation, ids_of, mask_of
from .config import DataConfig
from .images import MAX_PIXELS, open_image

#: class of pixels of which nothing is known, in maps of stuff
IGNORE = 255


class CocoPictures(AnnotatedSet):
    """The pictures of a COCO annotation file, in the order of their names.

    Args:
        file: the annotations.
        folder: of the pictures.
        limit: so many pictures, the first ones; None = all.
        max_pixels: larger pictures are refused.

    Attributes:
        content: the annotation file's content, for these pictures alone.
        category_ids: id of each category, in the order of the file's ids.

    Raises:
        UserError: the file cannot be read, a record is wrong, or a picture is missing.
    """

    def __init__(self, file: Path, folder: Path | None, limit: int | None, max_pixels: int):
        content = read_annotations(file)
        if folder is None:
            raise UserError(f"The folder of the pictures of {file} was not found: name it with --data.images.")
        self.file, self.folder = file, folder
        self.content = first_pictures(content, limit)
        categories = sorted(content["categories"], key=lambda record: record["id"])
        self.category_ids = [int(record["id"]) for record in categories]
        self.images = self.content["images"]
        super().__init__([str(record["name"]) for record in categories], max_pixels)
        for record in self.images:
            if not (folder / record["file_name"]).is_file():
                raise UserError(f"{file}, image {record['id']}: {folder} has no picture {record['file_name']}.")

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str | os.PathLike[str]:
        """The file of picture number `index`."""
        return self.folder / self.images[index]["file_name"]

    def where(self, index: int) -> str:
        """What messages call the record of picture number `index`."""
        return f"{self.file}, image {self.images[index]['id']}"

    def check_size(self, index: int, image: Image.Image) -> None:
        """Raise `UserError` unless the picture has the size its record states."""
        record = self.images[index]
        stated = (record.get("width", image.width), record.get("height", image.height))
        if stated != image.size:
            raise UserError(
                f"{self.where(index)}: {record['file_name']} is {image.width}x{image.height} pixels, the annotations "
                f"say {stated[0]}x{stated[1]}."
            )


class CocoInstances(CocoPictures):
    """Objects with boxes, and masks where asked for; labels count from 0, in the order of the category ids.

    Crowds are left to the metric and not learned. Boxes are cut at the picture's edges; those without area, inside the
    picture, are skipped and counted.

    Args:
        file, folder, limit, max_pixels: see `CocoPictures`.
        masks: read masks, too.
        drop_empty: leave out pictures without objects.
    """

    def __init__(
        self,
        file: Path,
        folder: Path | None,
        masks: bool = False,
        drop_empty: bool = False,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(file, folder, limit, max_pixels)
        self.masks = masks
        labels = {category: label for label, category in enumerate(self.category_ids)}
        self.objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        sizes = {record["id"]: (record.get("width"), record.get("height")) for record in self.images}
        flat = 0
        for number, record in enumerate(self.content["annotations"]):
            where = f"{file}, annotation {record.get('id', number)}"
            box = corners(record, where)
            if masks:
                check_segmentation(record.get("segmentation"), where)
            if record.get("iscrowd"):
                continue
            if not has_area(box, sizes[record["image_id"]]):
                flat += 1
                continue
            kept = {"box": box, "label": labels[record["category_id"]], "where": where}
            self.objects[record["image_id"]].append({**kept, "segmentation": record.get("segmentation")})
        if drop_empty:
            filled = [record for record in self.images if self.objects[record["id"]]]
            self.skipped["pictures without objects"] = len(self.images) - len(filled)
            self.images = filled
        self.skipped["boxes without area in the picture"] = flat
        if not self.images:
            raise UserError(f"{file} has no picture with an object to learn from.")

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """image_id, boxes (N, 4) as left, top, right, bottom, labels (N,), and masks (N, H, W) where asked for."""
        self.check_size(index, image)
        record = self.images[index]
        size = (image.height, image.width)
        objects = [(o, clipped(o["box"], image.size)) for o in self.objects[record["id"]]]
        objects = [(o, box) for o, box in objects if box[2] > box[0] and box[3] > box[1]]
        target: dict[str, Any] = {
            "image_id": record["id"],
            "boxes": boxes_tensor([box for _, box in objects], size),
            "labels": torch.tensor([o["label"] for o, _ in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = [mask_of(o["segmentation"], *size, o["where"]) for o, _ in objects]
            target["masks"] = masks_tensor(masks, size)
        return target


class CocoPanoptic(CocoPictures):
    """A segment for every pixel: things with boxes and masks, and a map of stuff.

    Things and stuff are numbered apart, in the order of the category ids: labels of things from 0; in the map, stuff
    from 0, then one number for all things, and 255 where nothing is known or a crowd is.

    Args:
        file: the annotations; the PNGs lie in the folder of its name.
        folder, limit, max_pixels: see `CocoPictures`.

    Attributes:
        classes: names of things, then of stuff.
        things, stuff: category ids.
    """

    def __init__(
        self,
        file: Path,
        folder: Path | None,
        limit: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        super().__init__(file, folder, limit, max_pixels)
        is_thing = {record["id"]: bool(record.get("isthing", 1)) for record in self.content["categories"]}
        self.things = [category for category in self.category_ids if is_thing[category]]
        self.stuff = [category for category in self.category_ids if not is_thing[category]]
        names = {record["id"]: str(record["name"]) for record in self.content["categories"]}
        self.classes = [names[category] for category in (*self.things, *self.stuff)]
        if not self.things or not self.stuff:
            raise UserError(f"{file} needs categories of things and of stuff (isthing 1 and 0).")
        self.maps = file.with_suffix("")
        self.records = {record["image_id"]: record for record in self.content["annotations"]}
        for record in self.images:
            own = self.records.get(record["id"])
            if own is None:
                raise UserError(f"{file}: image {record['id']} has no segments.")
            if not (self.maps / str(own.get("file_name"))).is_file():
                raise UserError(f"{file}, image {record['id']}: {self.maps} has no map {own.get('file_name')}.")

    def map(self, index: int) -> np.ndarray:
        """(H, W) ids of the segments of picture number `index`, 0 where nothing is known."""
        return ids_of(np.asarray(open_image(self.maps / self.records[self.images[index]["id"]]["file_name"])))

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """image_id, boxes (N, 4), labels (N,) and masks (N, H, W) of things, and semantic (H, W)."""
        self.check_size(index, image)
        size = (image.height, image.width)
        ids = self.map(index)
        if ids.shape != size:
            raise UserError(f"{self.where(index)}: the map is {ids.shape[1]}x{ids.shape[0]} pixels, not {image.size}.")
        semantic = np.full(size, IGNORE, dtype=np.int64)
        masks, labels = [], []
        for segment in self.records[self.images[index]["id"]]["segments_info"]:
            mask = ids == segment["id"]
            if not mask.any():
                raise UserError(f"{self.where(index)}: segment {segment['id']} has no pixel in the map.")
            if segment.get("iscrowd"):
                continue
            if segment["category_id"] in self.stuff:
                semantic[mask] = self.stuff.index(segment["category_id"])
            else:
                semantic[mask] = len(self.stuff)
                masks.append(mask)
                labels.append(self.things.index(segment["category_id"]))
        return {
            "image_id": self.images[index]["id"],
            "boxes": boxes_tensor([box_of(mask) for mask in masks], size),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": masks_tensor(masks, size),
            "semantic": tv_tensors.Mask(torch.from_numpy(semantic)),
        }


def open_instances(data: DataConfig, train: bool, masks: bool) -> CocoInstances:
    """One part of a COCO data set of objects; pictures without objects are not learned from."""
    file, folder = coco_files.locate(data, INSTANCES, train)
    return CocoInstances(file, folder, masks, train, data.limit, data.max_pixels)


def open_panoptic(data: DataConfig, train: bool) -> CocoPanoptic:
    """One part of a COCO data set of panoptic segments."""
    file, folder = coco_files.locate(data, PANOPTIC, train)
    return CocoPanoptic(file, folder, data.limit, data.max_pixels)


def corners(record: dict[str, Any], where: str) -> list[float]:
    """A record's box, given as left, top, width and height, as left, top, right and bottom.

    Raises:
        UserError: it has none, or not four finite numbers.
    """
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
        raise UserError(f"{where}: bbox must be four numbers: left, top, width and height.")
    if not np.isfinite(box).all():
        raise UserError(f"{where}: bbox holds a number that is not finite.")
    left, top, width, height = map(float, box)
    return [left, top, left + width, top + height]


def clipped(box: Iterable[float], size: tuple[int, int]) -> list[float]:
    """A box cut at the edges of a picture of (width, height)."""
    left, top, right, bottom = box
    width, height = size
    return [min(max(left, 0), width), min(max(top, 0), height), min(max(right, 0), width), min(max(bottom, 0), height)]


def has_area(box: list[float], size: tuple[int | None, int | None]) -> bool:
    """Whether a box has area inside a picture of (width, height), as far as the size is known."""
    width, height = (side if side is not None else float("inf") for side in size)
    return min(box[2], width) > max(box[0], 0) and min(box[3], height) > max(box[1], 0)


def box_of(mask: np.ndarray) -> list[float]:
    """Left, top, right and bottom of the pixels of a mask that is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)]


def boxes_tensor(boxes: list[list[float]], size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """(N, 4) boxes of a picture of (height, width)."""
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=size)  # pyright: ignore[reportCallIssue]


def masks_tensor(masks: list[np.ndarray], size: tuple[int, int]) -> tv_tensors.Mask:
    """(N, H, W) uint8 masks of a picture of (height, width)."""
    stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)
    return tv_tensors.Mask(torch.from_numpy(stacked.astype(np.uint8)))
