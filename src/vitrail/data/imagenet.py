"""ImageNet-1k and its subsets: `train/<wnid>` and `val/<wnid>`, or a flat `val` with the official list of labels.

A wnid ("n01440764") is the WordNet number of a class; sorted wnids are the standard order of the 1000 classes.
Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable

from ..errors import UserError
from .base import FileSet, ImageSet
from .folder import check_known_classes, scan_classes, subfolders
from .images import MAX_PIXELS, walk_images

_IMAGES_IN_KAGGLE = os.path.join("ILSVRC", "Data", "CLS-LOC")
_VAL_LISTS = ("LOC_val_solution.csv", "val_labels.txt", "val_labels.csv")


def open_imagenet(root: str, train: bool, max_pixels: int = MAX_PIXELS) -> ImageSet:
    """The pictures of ImageNet to learn from, or to measure on.

    The order of the classes is that of `classes.csv` (index,wnid,name) or `LOC_synset_mapping.txt` when there, else
    the sorted wnids of `train`, else the standard 1000. The names come from the same files, else from timm.

    Args:
        root: folder with `train` and `val` (the layout of the Kaggle archive, `ILSVRC/Data/CLS-LOC`, is also found).
        train: which part.
        max_pixels: larger pictures are refused when they are read.

    Raises:
        UserError: a folder or the list of labels is missing, or classes do not fit.
    """
    subfolders(root)  # says so when there is no such folder
    kaggle = os.path.join(root, _IMAGES_IN_KAGGLE)
    base = kaggle if os.path.isdir(kaggle) else root
    part = os.path.join(base, "train" if train else "val")
    if not os.path.isdir(part):
        raise UserError(f"{part} does not exist: data.root must hold 'train' and 'val' of ImageNet.")
    wnids, names = _classes(root, base)
    found = subfolders(part)
    if found:
        check_known_classes(part, found, wnids)
        images = scan_classes(part, wnids, max_pixels, allow_empty=not train or set(found) != set(wnids))
    elif train:
        raise UserError(f"{part} holds no class folders: unpack the archive of each class into train/<wnid>.")
    else:
        images = _flat_part(part, _val_labels((root, base, part)), wnids, max_pixels)
    images.classes = names
    return images


def _classes(root: str, base: str) -> tuple[list[str], list[str]]:
    """Wnids in the order of their index, and a name for each."""
    for folder in (root, base):
        table = os.path.join(folder, "classes.csv")
        if os.path.isfile(table):
            return _read_classes_csv(table)
    for folder in (root, base):
        mapping = os.path.join(folder, "LOC_synset_mapping.txt")
        if os.path.isfile(mapping):
            with open(mapping, encoding="utf-8") as lines:
                pairs = sorted(line.strip().split(maxsplit=1) for line in lines if line.strip())
            wnids = [pair[0] for pair in pairs]
            return wnids, _distinct(wnids, [pair[-1].split(",")[0] for pair in pairs])
    train = os.path.join(base, "train")
    known = _standard_names()
    wnids = subfolders(train) if os.path.isdir(train) else sorted(known)
    return wnids, _distinct(wnids, [known.get(wnid, wnid) for wnid in wnids])


def _read_classes_csv(path: str) -> tuple[list[str], list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        rows.sort(key=lambda row: int(row["index"]))
        if [int(row["index"]) for row in rows] != list(range(len(rows))):
            raise UserError(f"{path}: the column 'index' must count from 0 without gaps.")
        wnids = [row["wnid"].strip() for row in rows]
        return wnids, _distinct(wnids, [(row.get("name") or row["wnid"]).strip() for row in rows])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} must be a table with the columns index, wnid and name.") from None


def _standard_names() -> dict[str, str]:
    """The names of the standard 1000 classes by wnid, from timm."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    wnids = info.label_names()
    return {wnid: info.label_name_to_description(wnid).split(",")[0] for wnid in wnids}


def _distinct(wnids: list[str], names: list[str]) -> list[str]:
    """Names with the wnid added where two classes share one: there are two cranes and two maillots."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({wnid})" if name in shared else name for wnid, name in zip(wnids, names, strict=True)]


def _val_labels(folders: Iterable[str]) -> dict[str, str]:
    """Wnid of each picture of a flat `val`, by the picture's name without extension."""
    for folder in folders:
        for name in _VAL_LISTS:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                with open(path, encoding="utf-8") as lines:
                    rows = [line.replace(",", " ").split() for line in lines]
                rows = [row for row in rows if row and row[0] != "ImageId"]
                if any(len(row) < 2 for row in rows):
                    raise UserError(f"{path}: each line must be a picture's name and its wnid.")
                return {os.path.splitext(row[0])[0]: row[1] for row in rows}
    raise UserError(
        "The pictures of 'val' are not in class folders and no list of their labels is there: add "
        f"{_VAL_LISTS[0]} or {_VAL_LISTS[1]} (lines of a picture's name and its wnid) beside 'val'."
    )


def _flat_part(part: str, labels: dict[str, str], wnids: list[str], max_pixels: int) -> FileSet:
    paths = walk_images(part)
    if not paths:
        raise UserError(f"{part} holds no pictures.")
    keys = [os.path.splitext(path)[0] for path in paths]
    unlabelled = [path for path, key in zip(paths, keys, strict=True) if key not in labels]
    if unlabelled:
        raise UserError(f"{part}: {len(unlabelled)} picture(s) are not in the list of labels, such as {unlabelled[0]}.")
    check_known_classes(part, [labels[key] for key in keys], wnids)
    index = {wnid: i for i, wnid in enumerate(wnids)}
    return FileSet(part, paths, [index[labels[key]] for key in keys], wnids, max_pixels)
