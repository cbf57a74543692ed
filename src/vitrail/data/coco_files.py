"""COCO's annotation files: where they lie, and reading them with every mistake named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json
from .config import DataConfig

#: kinds of annotation file by the name COCO gives them
INSTANCES, KEYPOINTS, PANOPTIC = "instances", "person_keypoints", "panoptic"


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO annotation file, of which every record names an image and categories that the file lists.

    Raises:
        UserError: it cannot be read, or a record is wrong; the sentence names it.
    """
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} is no COCO annotation file: it has no list of {key}.")
    images = _ids(path, "image", content["images"], ("id", "file_name"))
    categories = _ids(path, "category", content["categories"], ("id", "name"))
    for number, record in enumerate(content["annotations"]):
        where = f"{path}, annotation {record.get('id', number)}"
        if record.get("image_id") not in images:
            raise UserError(f"{where}: there is no image {record.get('image_id')}.")
        for part in record.get("segments_info", [record]):
            if part.get("category_id") not in categories:
                raise UserError(f"{where}: there is no category {part.get('category_id')}.")
    return content


def first_pictures(content: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """The content of an annotation file for its first pictures by name; None = all, in the order of their names."""
    images = sorted(content["images"], key=lambda record: str(record["file_name"]))[:limit]
    kept = {record["id"] for record in images}
    annotations = [record for record in content["annotations"] if record["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def _ids(path: Path, what: str, records: Iterable[dict[str, Any]], keys: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for number, record in enumerate(records):
        missing = [key for key in keys if key not in record]
        if missing:
            raise UserError(f"{path}, {what} {record.get('id', number)} has no {missing[0]}.")
        if record["id"] in found:
            raise UserError(f"{path} lists the {what} {record['id']} twice.")
        found.add(record["id"])
    return found


def locate(data: DataConfig, kind: str, train: bool) -> tuple[Path, Path | None]:
    """The annotation file of one part and the folder of its pictures (None where it is not there).

    `--data.annotations` and `--data.images` name them; below `--data.root` they are looked for under COCO's own names
    (annotations/instances_val2017.json beside val2017/) and the same without the year.

    Raises:
        UserError: there is no such file.
    """
    part = {"validation": "val"}.get(split := data.train_split if train else data.val_split, split)
    if data.annotations is not None:
        return Path(data.annotations), None if data.images is None else Path(data.images)
    if data.root is None:
        raise UserError("--data coco needs --data.root, or --data.annotations and --data.images.")
    root = Path(data.root)
    stems = [f"{kind}_{part}2017", f"{kind}_{part}", kind]
    names = [folder / f"{stem}.json" for stem in stems for folder in (Path("annotations"), Path())]
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        raise UserError(f"{root} has no {names[0]}, nor {kind}_{part}.json: name it with --data.annotations.")
    folders = [f"{part}2017", f"images/{part}2017", f"images/{part}", part, "images"]
    return file, next((root / folder for folder in folders if (root / folder).is_dir()), None)
