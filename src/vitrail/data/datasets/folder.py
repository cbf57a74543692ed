"""A folder per class: `root/train/<class>` and `root/val/<class>`, or `root/<class>` divided by us."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from ...config.data import DataConfig
from ...errors import UserError, nearest
from ..images import is_folder, is_ignored_folder, is_image_name, left_out_sentence, survey
from .base import FileSet, ImageSet, listed, root_of, split_off
from .splits import SPLIT_WORDS, measured_split, split_folders, split_word


def open_folder(data: DataConfig, train: bool) -> ImageSet:
    """The training or the validation images of a folder of class folders.

    Classes are the names of the class folders, sorted; where all are numbers, as numbers. Where there is no `val`
    folder (or another of `VAL_NAMES`, in any capitals), `val_fraction` of each class is held out. With a `val` folder
    alone, that can only be measured on. A `val_split` that names the training split, or "all" where there are no
    splits, measures all of it.

    Raises:
        UserError: no such folder, nothing in it, no class folders, one class only, a class without images, classes
            in `val` that `train` does not have, or splits that are not called so.
    """
    root, max_pixels = root_of(data), data.max_pixels
    children = subfolders(root)
    if not children:
        raise UserError(_no_class_folders(root))
    train_folder, val_folder = find_split(root, data.train_split), find_split(root, measured_split(data))
    classes = class_folders(train_folder) if train_folder else class_folders(root, allow_split_names=val_folder is None)
    if not classes and val_folder is not None:
        if train:
            raise UserError(
                f"Folder {root} has no 'train' folder beside {os.path.basename(val_folder)!r} to learn from."
            )
        return scan_classes(val_folder, class_folders(val_folder), max_pixels)
    if train_folder is None:
        check_no_splits(root, children)
    if not train and val_folder is not None and not (data.measures_training and val_folder == train_folder):
        return scan_validation(val_folder, train_folder or root, classes, max_pixels)
    learn = scan_classes(train_folder or root, classes, max_pixels)
    used = {os.path.basename(path) for path in (train_folder, val_folder) if path}
    unused = [name for name in children if name not in used and (train_folder or name not in classes.values())]
    learn.remarks += [f"not used: {listed(unused)} in {root}"] if unused else []
    if data.measures_training and (val_folder is None or val_folder == train_folder):
        note = f"these are training images, as --data.val_split {data.val_split} says"
        learn.remarks += [note] if not train and data.validates_on_training_split else []
        return learn
    return learn if val_folder is not None else split_off(learn, train, data.val_fraction, data.split_seed)


def scan_validation(folder: str, train_folder: str, classes: Mapping[str, str], max_pixels: int) -> FileSet:
    """The validation images, of classes that the training split has.

    Raises:
        UserError: it is the training split itself, or has classes which that does not have.
    """
    if os.path.isdir(train_folder) and os.path.samefile(folder, train_folder):
        raise UserError(f"{folder} and {train_folder} are the same folder: keep the two splits apart.")
    found = class_folders(folder)
    check_known_classes(folder, found, classes)
    measured = scan_classes(folder, {name: found.get(name, name) for name in classes}, max_pixels, allow_empty=True)
    present = set(measured.targets.tolist())
    missing = [name for index, name in enumerate(classes) if index not in present]
    if missing:
        measured.remarks.append(
            f"{len(missing):,} of {len(classes):,} classes have no image to measure on: {listed(missing)}"
        )
    return measured


def find_split(root: str, split: str) -> str | None:
    """The folder of a split in `root`; None where there is none and the split has a standard name.

    A split is told from a class that happens to be called `train` or `test` by the class folders in it.

    Raises:
        UserError: the split has another name, and there is no such folder.
    """
    children = subfolders(root)
    if split not in SPLIT_WORDS:
        if split not in children:
            raise UserError(f"{root} has no folder {split!r}, as data.train_split or data.val_split says.")
        return os.path.join(root, split)
    others = [name for name in children if split_word(name) is None]
    candidates = [name for name in children if not others or subfolders(os.path.join(root, name))]
    found = split_folders(candidates, SPLIT_WORDS[split], root)
    return os.path.join(root, found[0]) if found else None


def check_no_splits(root: str, children: Sequence[str]) -> None:
    """Raise `UserError` where folders taken for classes hold the same class folders: these are splits of a data set."""
    inner = {name: set(subfolders(os.path.join(root, name))) for name in children}
    counts = Counter(name for names in inner.values() for name in names)
    shared = {name: {n for n in names if counts[n] > 1} for name, names in inner.items()}
    # one folder in common, such as "images", says nothing; two do
    for (first, ours), (other, theirs) in combinations([pair for pair in shared.items() if len(pair[1]) > 1], 2):
        if len(both := ours & theirs) > 1:
            raise UserError(
                f"Folders {first!r} and {other!r} in {root} hold the same {len(both):,} folders "
                f"({listed(sorted(both))}), so they are splits of a data set and not classes: call them train and val, "
                "or give one of them as data.root."
            )


def class_folders(root: str, allow_split_names: bool = True) -> dict[str, str]:
    """The class folders in `root`: name of each class and of its folder, in the order of the classes.

    A class's name is its folder's with accents composed (NFC), as systems store the same letter in two ways.

    Args:
        root: folder of the class folders.
        allow_split_names: whether folders that are called like splits count as classes.

    Raises:
        UserError: none with `allow_split_names`, or two of one name.
    """
    names = subfolders_or_fail(root) if allow_split_names else [n for n in subfolders(root) if split_word(n) is None]
    found: dict[str, str] = {}
    for folder in names:
        name = unicodedata.normalize("NFC", folder)
        if name in found:
            raise UserError(f"{root} has two class folders {name!r}, whose accents are stored in two ways: join them.")
        found[name] = folder
    numbers: dict[int, str] = {}
    for name in found if are_numbers(found) else ():
        if (twin := numbers.setdefault(int(name), name)) != name:
            raise UserError(f"{root} has two class folders for one number, {twin!r} and {name!r}: join them.")
    return {name: found[name] for name in (map(numbers.get, sorted(numbers)) if numbers else sorted(found)) if name}


def are_numbers(names: Iterable[str]) -> bool:
    """True if all names are written in the digits 0 to 9 alone."""
    return all(name.isascii() and name.isdigit() for name in names)


def subfolders(root: str) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones.

    Raises:
        UserError: `root` does not exist, is a file or cannot be read.
    """
    if not os.path.exists(root):
        raise UserError(f"Folder {root} does not exist: give the data's folder as data.root.")
    if not os.path.isdir(root):
        raise UserError(f"{root} is a file; data.root must be a folder with one folder per class.")
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if is_folder(e) and not is_ignored_folder(e.name))
    except OSError as error:
        raise UserError(f"Folder {root} cannot be read: {error.strerror or error}.") from error


def subfolders_or_fail(root: str) -> list[str]:
    """Like `subfolders`, and a `UserError` when there are none."""
    names = subfolders(root)
    if not names:
        raise UserError(_no_class_folders(root))
    return names


def scan_classes(root: str, folders: Mapping[str, str], max_pixels: int, allow_empty: bool = False) -> FileSet:
    """All images below the class folders, and in `remarks` what was left out.

    Args:
        root: folder of the class folders.
        folders: name of each class and of its folder; a target is a position in their order.
        max_pixels: larger images are refused when they are read.
        allow_empty: a folder may be missing or empty, as when only some classes are measured.

    Raises:
        UserError: fewer than two classes, a class without images, or no image at all.
    """
    if len(folders) < 2:
        raise UserError(
            f"Folder {root} has one class folder only, {next(iter(folders))!r}: a classifier needs at least two "
            "classes."
        )
    paths: list[str] = []
    targets: list[int] = []
    left_out: Counter[str] = Counter()
    for index, name in enumerate(folders.values()):
        folder = os.path.join(root, name)
        found, others = survey(folder) if os.path.isdir(folder) else ([], {})
        left_out.update(others)
        if not found and not allow_empty:
            passed = left_out_sentence(others, folder)
            raise UserError(
                f"Class folder {folder} holds no images: add some or remove it." + (f" {passed}" if passed else "")
            )
        paths += [os.path.join(name, p) for p in found]
        targets += [index] * len(found)
    if not paths:
        raise UserError(f"Folder {root} holds no images in its class folders.")
    images = FileSet(root, paths, targets=targets, classes=list(folders), max_pixels=max_pixels)
    images.remarks += filter(None, (left_out_sentence(left_out, root), _outside(root), _alike(folders)))
    return images


def check_known_classes(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` when `where` has classes that the training split does not have."""
    extra = sorted(set(found) - set(known))
    if extra:
        close = nearest(extra[0], known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(
            f"{where} has {len(extra)} class(es) that the training split does not have, such as {extra[0]!r}{hint}: "
            "both must use the same class names."
        )


def _outside(root: str) -> str | None:
    """The note on images outside the class folders; None if there are none."""
    count = sum(is_image_name(name) for name in os.listdir(root))
    return f"{count:,} images directly in {root} are left out: they lie in no class folder" if count else None


def _alike(names: Iterable[str]) -> str | None:
    """The note on classes whose names differ in capitals only; None if there are none."""
    seen: dict[str, str] = {}
    twins = [(other, name) for name in names if (other := seen.setdefault(name.casefold(), name)) != name]
    if not twins:
        return None
    return f"classes that differ in capitals only are told apart: {listed([' and '.join(pair) for pair in twins])}"


def _no_class_folders(root: str) -> str:
    direct = sum(is_image_name(name) for name in os.listdir(root))
    if direct:
        return (
            f"Folder {root} has {direct} image(s) directly in it and no class folders: sort them into one folder "
            "per class."
        )
    state = "holds no class folders" if os.listdir(root) else "is empty"
    return f"Folder {root} {state}: expected one folder per class, with images in it."
