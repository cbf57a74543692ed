"""ImageNet-1k and its subsets: `train/<wnid>` and `val/<wnid>`, or a flat `val` with the official list of labels.

A wnid ("n01440764") is the WordNet number of a class; sorted wnids are the standard order of the 1000 classes.
Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ...config.data import DataConfig
from ...errors import UserError
from ...utils.files import inside, read_text, shortened
from ..images import left_out_sentence, survey
from .base import FileSet, ImageSet, root_of
from .folder import are_numbers, check_known_classes, class_folders, scan_classes, scan_validation, subfolders
from .splits import SPLIT_WORDS, split_folders
from .tables import read_table

_IMAGES_IN_KAGGLE = os.path.join("ILSVRC", "Data", "CLS-LOC")
_VAL_LISTS = ("LOC_val_solution.csv", "val_labels.txt", "val_labels.csv")


def open_imagenet(data: DataConfig, train: bool) -> ImageSet:
    """The training or the validation images of ImageNet.

    The order of the classes is that of `classes.csv` (index,wnid,name) or `LOC_synset_mapping.txt` when there, else
    the sorted wnids of `train`, else the standard 1000. The names come from the same files, else from timm.

    Args:
        data: its root holds `train` and `val` (the layout of the Kaggle archive, `ILSVRC/Data/CLS-LOC`, is also found).
        train: which split.

    Raises:
        UserError: a folder or the list of labels is missing, or classes do not fit.
    """
    root, max_pixels = root_of(data), data.max_pixels
    subfolders(root)  # says so when there is no such folder
    kaggle = os.path.join(root, _IMAGES_IN_KAGGLE)
    base = kaggle if os.path.isdir(kaggle) else root
    folder = _split_folder(base, "train" if train else "val")
    if not os.path.isdir(folder):
        raise UserError(f"{folder} does not exist: data.root must hold 'train' and 'val' of ImageNet.")
    wnids, names = _classes(root, base)
    found = subfolders(folder)
    if found and train:
        check_known_classes(folder, found, wnids)
        folders = {wnid: wnid for wnid in wnids}
        images = scan_classes(folder, folders, max_pixels, allow_empty=set(found) != set(wnids))
    elif found:
        images = scan_validation(folder, _split_folder(base, "train"), {wnid: wnid for wnid in wnids}, max_pixels)
    elif train:
        raise UserError(f"{folder} holds no class folders: unpack the archive of each class into train/<wnid>.")
    else:
        images = _flat_validation(folder, _val_labels((root, base, folder)), wnids, max_pixels)
    images.classes = names
    images.aliases = [aliases_of(wnid, name) for wnid, name in zip(wnids, names, strict=True)]
    return images


def _split_folder(base: str, name: str) -> str:
    """The folder of a split, in any capitals; where there is none, where it should be."""
    found = split_folders(subfolders(base), SPLIT_WORDS[name], base)
    return os.path.join(base, name if os.path.isdir(os.path.join(base, name)) or not found else found[0])


def open_imagenet_v2(data: DataConfig, train: bool) -> ImageSet:
    """The images of ImageNet-V2, whose folders 0 to 999 are the numbers of the standard classes.

    Source: B. Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, 2019.

    Args:
        data: its root holds the class folders, or one folder that holds them; some classes may be missing.
        train: which split; there is no training split.

    Raises:
        UserError: asked for images to learn from, or a folder that is no number of a class.
    """
    root = root_of(data)
    if train:
        raise UserError("ImageNet-V2 is there to measure on and has no images to learn from: use it with evaluate.")
    names = subfolders(root)
    if len(names) == 1 and not are_numbers(names):
        root = os.path.join(root, names[0])  # the archive's own folder
    folders = class_folders(root)
    wnids, standard = list(_standard()), [description.split(",")[0] for description in _standard().values()]
    for name in folders:
        if not are_numbers([name]) or int(name) >= len(wnids):
            raise UserError(
                f"{root} has a folder {name!r}: the folders of ImageNet-V2 are the numbers of its classes, 0 to "
                f"{len(wnids) - 1}."
            )
    by_number = {int(name): folder for name, folder in folders.items()}
    everything = {str(number): by_number.get(number, str(number)) for number in range(len(wnids))}
    images = scan_classes(root, everything, data.max_pixels, allow_empty=True)
    images.classes = _distinct(wnids, standard)
    images.aliases = [aliases_of(wnid, name) for wnid, name in zip(wnids, images.classes, strict=True)]
    if len(folders) < len(wnids):
        images.remarks.append(f"{len(folders):,} of {len(wnids):,} classes have a folder in {root}")
    return images


def aliases_of(wnid: str, name: str) -> Sequence[str]:
    """All names of a class, the surest first: its WordNet number, those of the standard list, and that in the data."""
    description = _standard().get(wnid)
    if description is None:
        return (wnid, name)
    short = description.split(",")[0]
    return (wnid, description, f"{short} ({wnid})", name, short)


def _classes(root: str, base: str) -> tuple[list[str], list[str]]:
    """Wnids in the order of their index, and a name for each."""
    for folder in (root, base):
        table = os.path.join(folder, "classes.csv")
        if os.path.isfile(table):
            return _read_classes_csv(table)
    for folder in (root, base):
        mapping = os.path.join(folder, "LOC_synset_mapping.txt")
        if os.path.isfile(mapping):
            pairs = sorted(line.split(maxsplit=1) for line in read_text(mapping).splitlines() if line.strip())
            wnids = _checked([pair[0] for pair in pairs], base, mapping)
            return wnids, _distinct(wnids, [pair[-1].split(",")[0].strip() for pair in pairs])
    train = _split_folder(base, "train")
    known = _standard()
    wnids = subfolders(train) if os.path.isdir(train) else list(known)
    return wnids, _distinct(wnids, [known.get(wnid, wnid).split(",")[0] for wnid in wnids])


def _read_classes_csv(path: str) -> tuple[list[str], list[str]]:
    rows = read_table(path)
    try:
        rows.sort(key=lambda row: int(row["index"]))
        if [int(row["index"]) for row in rows] != list(range(len(rows))):
            raise UserError(f"{path}: the column 'index' must count from 0 without gaps.")
        wnids = _checked([row["wnid"].strip() for row in rows], os.path.dirname(path), path)
        return wnids, _distinct(wnids, [(row.get("name") or row["wnid"]).strip() for row in rows])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} must be a table with the columns index, wnid and name.") from None


def _checked(wnids: list[str], root: str, path: str) -> list[str]:
    """The classes of a list, which are names of folders.

    Raises:
        UserError: none, one twice, or one that leads elsewhere.
    """
    if not wnids:
        raise UserError(f"{path} lists no classes.")
    for wnid in wnids:
        inside(root, wnid, path)
    twice = next((wnid for wnid, count in Counter(wnids).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{path} lists the class {shortened(twice)} twice.")
    return wnids


def standard_wnids() -> list[str]:
    """The standard 1000 classes in their order, by WordNet number."""
    return list(_standard())


def standard_names() -> list[str]:
    """The standard 1000 classes in their order, by all their names, such as "tench, Tinca tinca"."""
    return list(_standard().values())


@lru_cache(maxsize=1)
def _standard() -> dict[str, str]:
    """All names of the standard 1000 classes by wnid, in their order, from timm."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {wnid: info.label_name_to_description(wnid) for wnid in info.label_names()}


def _distinct(wnids: list[str], names: list[str]) -> list[str]:
    """Names with the wnid added where two classes share one: there are two cranes and two maillots."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({wnid})" if name in shared else name for wnid, name in zip(wnids, names, strict=True)]


def _val_labels(folders: Iterable[str]) -> dict[str, str]:
    """Wnid of each image of a flat `val`, by the image's name without extension."""
    for folder in folders:
        for name in _VAL_LISTS:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                rows = [line.replace(",", " ").split() for line in read_text(path).splitlines()]
                rows = [row for row in rows if row and row[0] != "ImageId"]
                if any(len(row) < 2 for row in rows):
                    raise UserError(f"{path}: each line must be an image's name and its wnid.")
                labels: dict[str, str] = {}
                for name, wnid, *_ in rows:
                    if labels.setdefault(key := os.path.splitext(name)[0], wnid) != wnid:
                        raise UserError(f"{path} gives {shortened(key)} two classes, {labels[key]} and {wnid}.")
                return labels
    raise UserError(
        "The images of 'val' are not in class folders and no list of their labels is there: add "
        f"{_VAL_LISTS[0]} or {_VAL_LISTS[1]} (lines of an image's name and its wnid) beside 'val'."
    )


def _flat_validation(folder: str, labels: dict[str, str], wnids: list[str], max_pixels: int) -> FileSet:
    paths, others = survey(folder)
    if not paths:
        raise UserError(f"{folder} holds no images.")
    keys = [os.path.splitext(path)[0] for path in paths]
    unlabelled = [path for path, key in zip(paths, keys, strict=True) if key not in labels]
    if unlabelled:
        raise UserError(f"{folder}: {len(unlabelled)} image(s) are not in the list of labels, such as {unlabelled[0]}.")
    check_known_classes(folder, [labels[key] for key in keys], wnids)
    index = {wnid: i for i, wnid in enumerate(wnids)}
    images = FileSet(folder, paths, targets=[index[labels[key]] for key in keys], classes=wnids, max_pixels=max_pixels)
    images.remarks += filter(None, [left_out_sentence(others, folder)])
    if missing := len(labels.keys() - set(keys)):
        images.remarks.append(f"{missing:,} images in the list of labels are not in {folder}")
    return images
