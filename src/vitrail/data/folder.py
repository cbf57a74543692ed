"""A folder per class: `root/train/<class>` and `root/val/<class>`, or `root/<class>` divided by us."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import UserError, nearest
from .base import FileSet, ImageSet, hold_back
from .images import MAX_PIXELS, is_ignored_folder, is_image_name, walk_images

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test")


def open_folder(
    root: str, train: bool, val_fraction: float = 0.2, split_seed: int = 0, max_pixels: int = MAX_PIXELS
) -> ImageSet:
    """The pictures of a folder to learn from, or those to measure on.

    Classes are the names of the class folders, sorted. Where there is no `val` (`valid`, `validation`, `test`) folder,
    `val_fraction` of each class is held back. With a `val` folder alone, that can only be measured on.

    Raises:
        UserError: no such folder, nothing in it, no class folders, one class only, a class without pictures, or
            classes in `val` that `train` does not have.
    """
    children = subfolders(root)
    train_part, val_part = find_part(root, TRAIN_NAMES), find_part(root, VAL_NAMES)
    if not children:
        raise UserError(_no_class_folders(root))
    if train_part is None and val_part is not None and set(children) <= set(VAL_NAMES):
        if train:
            raise UserError(f"Folder {root} has no 'train' folder beside {os.path.basename(val_part)!r} to learn from.")
        return scan_classes(val_part, subfolders_or_fail(val_part), max_pixels)
    if train_part is None:
        return hold_back(scan_classes(root, children, max_pixels), train, val_fraction, split_seed)

    classes = subfolders_or_fail(train_part)
    if train or val_part is None:
        learn = scan_classes(train_part, classes, max_pixels)
        return learn if val_part is not None else hold_back(learn, train, val_fraction, split_seed)
    check_known_classes(val_part, subfolders_or_fail(val_part), classes)
    return scan_classes(val_part, classes, max_pixels, allow_empty=True)


def find_part(root: str, names: Sequence[str]) -> str | None:
    """The first of `names` that is a folder in `root` and holds class folders; None when there is none.

    A part is told from a class that happens to be called `train` or `test` by the class folders in it.
    """
    for name in names:
        path = os.path.join(root, name)
        if os.path.isdir(path) and (subfolders(path) or not _other_classes(root)):
            return path
    return None


def _other_classes(root: str) -> list[str]:
    return [name for name in subfolders(root) if name not in TRAIN_NAMES + VAL_NAMES]


def subfolders(root: str) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones.

    Raises:
        UserError: `root` does not exist or is a file.
    """
    if not os.path.exists(root):
        raise UserError(f"Folder {root} does not exist: give the data's folder as data.root.")
    if not os.path.isdir(root):
        raise UserError(f"{root} is a file; data.root must be a folder with one folder per class.")
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_ignored_folder(e.name))


def subfolders_or_fail(root: str) -> list[str]:
    """Like `subfolders`, and a `UserError` when there are none."""
    names = subfolders(root)
    if not names:
        raise UserError(_no_class_folders(root))
    return names


def scan_classes(root: str, folders: Sequence[str], max_pixels: int, allow_empty: bool = False) -> FileSet:
    """All pictures below `root/<folder>`, whose class is the folder's position in `folders`.

    Args:
        root: folder of the class folders.
        folders: their names.
        max_pixels: larger pictures are refused when they are read.
        allow_empty: a folder may be missing or empty, as when only some classes are measured.

    Raises:
        UserError: fewer than two classes, a class without pictures, or no picture at all.
    """
    if len(folders) < 2:
        raise UserError(
            f"Folder {root} has one class folder only, {folders[0]!r}: a classifier needs at least two classes."
        )
    paths: list[str] = []
    targets: list[int] = []
    for index, name in enumerate(folders):
        found = walk_images(os.path.join(root, name)) if os.path.isdir(os.path.join(root, name)) else []
        if not found and not allow_empty:
            raise UserError(f"Class folder {os.path.join(root, name)} holds no pictures: add some or remove it.")
        paths += [os.path.join(name, p) for p in found]
        targets += [index] * len(found)
    if not paths:
        raise UserError(f"Folder {root} holds no pictures in its class folders.")
    return FileSet(root, paths, targets, folders, max_pixels)


def check_known_classes(where: str, found: Sequence[str], known: Sequence[str]) -> None:
    """Raise `UserError` when `where` has classes that are not learnt."""
    extra = sorted(set(found) - set(known))
    if extra:
        close = nearest(extra[0], known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(
            f"{where} has {len(extra)} class(es) that the training part does not have, such as {extra[0]!r}{hint}: "
            "both must use the same class names."
        )


def _no_class_folders(root: str) -> str:
    direct = sum(is_image_name(name) for name in os.listdir(root))
    if direct:
        return (
            f"Folder {root} has {direct} picture(s) directly in it and no class folders: sort them into one folder "
            "per class."
        )
    state = "holds no class folders" if os.listdir(root) else "is empty"
    return f"Folder {root} {state}: expected one folder per class, with pictures in it."
