"""Masks of class indices: their classes, their values and the folders of a split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config.data import ALL_IMAGES, DataConfig
from ...errors import UserError
from ...utils.class_names import ADE20K
from ...utils.files import read_json, shortened
from ..images import MAX_PIXELS, is_folder, is_ignored_folder, open_mask
from .splits import HOLDOUT, SPLIT_WORDS, measured_split, split_folders, split_word
from .tables import read_table

#: index of pixels that have no class
IGNORE = 255
_LISTS = ("classes.json", "classes.csv")


@dataclass(frozen=True)
class Labels:
    """Classes of a data set of masks, and the mask values that stand for them.

    Attributes:
        names: of the classes, in the order of the outputs.
        values: of the classes in a mask, in that order.
        table: (256,) int64, the index of every value; `IGNORE` for pixels that have no class, -1 for values without
            a meaning.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    table: np.ndarray

    @classmethod
    def of(cls, values: Sequence[int], names: Sequence[str], ignored: Sequence[int] = ()) -> Labels:
        """Labels from the value of each class; 255 and `ignored` have none."""
        table = np.full(256, -1, dtype=np.int64)
        table[[IGNORE, *ignored]] = IGNORE
        table[list(values)] = np.arange(len(names))
        return cls(tuple(names), tuple(values), table)

    def indices(self, mask: np.ndarray, name: str) -> np.ndarray:
        """(H, W) uint8 values -> (H, W) uint8 class indices, `IGNORE` where there is none.

        Raises:
            UserError: a value that names no class.
        """
        others = [value for value in np.flatnonzero(value_counts(mask)).tolist() if self.table[value] < 0]
        if others:
            more = f" (and {len(others) - 1} other such values)" if len(others) > 1 else ""
            first = int(mask[np.isin(mask, others)][0])
            raise UserError(f"{name} has the value {first}{more}, which names none of the {len(self.names)} classes.")
        return self.table.astype(np.uint8)[mask]


def value_counts(values: np.ndarray) -> np.ndarray:
    """(256,) histogram of a map (H, W) of uint8; row by row, as numpy counts 64-bit numbers."""
    total = np.zeros(256, dtype=np.int64)
    for row in values:
        total += np.bincount(row, minlength=256)
    return total


def ade20k_labels() -> Labels:
    """The 150 classes of ADE20K's scene parsing: values 1 to 150; 0 is ignored."""
    return _listed(ADE20K)


def labels_of(data: DataConfig) -> Labels:
    """The classes of a data set: those of `--data.classes`, of a list in its root, or ADE20K's.

    A JSON file holds {"classes": [names by value], "ignore_index": value}; a CSV file has columns id and name, where
    the value 0, if no class has it, is ignored.

    Raises:
        UserError: the list cannot be read, or leaves nothing to tell apart.
    """
    file = list_of(data)
    return ade20k_labels() if file is None else _listed(file)


def list_of(data: DataConfig) -> Path | None:
    """The file that lists the classes of a data set; None = it has none, and ADE20K's count."""
    if data.classes is not None:
        return Path(data.classes)
    listed = [Path(data.root) / name for name in _LISTS] if data.root is not None else []
    return next((path for path in listed if path.is_file()), None)


def _listed(path: Path) -> Labels:
    ignored, pairs = _json(path) if path.suffix.lower() == ".json" else (0, _rows(path))
    values, names = [value for value, _ in pairs], [name for _, name in pairs]
    if not names or len(set(values)) < len(values) or not all(0 <= value < IGNORE for value in values):
        raise UserError(f"{path} must give every class a value of its own between 0 and {IGNORE - 1}.")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{path} gives two classes the name {shortened(twice)}: every class needs its own.")
    if len(names) < 2:
        raise UserError(
            f"{path} lists one class only, {shortened(names[0])}: it takes at least two to tell one from the other; "
            "list the background, too, if the masks have it."
        )
    return Labels.of(values, names, [ignored])


def _json(path: Path) -> tuple[int, list[tuple[int, str]]]:
    """The value without a class, and value and name of each class."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
        raise UserError(f'{path} is no list of classes: it must hold {{"classes": [names]}}.')
    unknown = [key for key in content if "ignore" in key.lower() and key != "ignore_index"]
    if unknown:
        raise UserError(
            f"{path} has the key {shortened(unknown[0])}; the value without a class is called ignore_index."
        )
    ignored: Any = content.get("ignore_index", IGNORE)
    if not isinstance(ignored, int) or isinstance(ignored, bool) or not 0 <= ignored <= IGNORE:
        raise UserError(f"{path}: ignore_index must be a whole number from 0 to {IGNORE}, not {shortened(ignored)}.")
    for value, name in enumerate(content["classes"]):
        if value != ignored and not (isinstance(name, str) and name.strip()):
            raise UserError(f"{path}: the name of class {value} must be a text, not {shortened(name)}.")
    return ignored, [(value, name.strip()) for value, name in enumerate(content["classes"]) if value != ignored]


def _rows(path: Path) -> list[tuple[int, str]]:
    """Value and name of each class."""
    rows = read_table(path)
    if not rows or not {"id", "name"} <= rows[0].keys():
        raise UserError(f"{path} is no list of classes: it needs the columns id (a number) and name.")
    pairs = []
    for row in rows:
        value, name = row["id"].strip(), row["name"].strip()
        if not (value.isascii() and value.isdigit()) or len(value) > 9 or not name:
            raise UserError(
                f"{path} is no list of classes: it needs the columns id (a number) and name, not "
                f"{shortened(row['id'])} and {shortened(row['name'])}."
            )
        pairs.append((int(value), name))
    return pairs


def read_mask(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """(H, W) uint8 values of a mask: indices of a palette, or grey values, also where colours repeat them.

    Raises:
        UserError: it is no image of one channel, or of equal ones, with values up to 255, or has more pixels than are
            allowed.
    """
    mask = open_mask(path, max_pixels, f"{path} (a mask)")
    mask = _one_channel(mask) if mask.ndim == 3 else mask
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        colours = f"it has {mask.shape[2]} channels that differ" if mask.ndim == 3 else "its values are fractions"
        raise UserError(
            f"{path} is no mask: it must have one channel of whole numbers, the class of each pixel, but {colours}."
        )
    if mask.size and not 0 <= mask.min() <= mask.max() <= IGNORE:
        wrong = mask.min() if mask.min() < 0 else mask.max()
        raise UserError(f"{path} has the value {wrong}; masks hold values from 0 to {IGNORE}.")
    return mask.astype(np.uint8)


def _one_channel(mask: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W, C) grey values that are stored as equal colours, or with an opacity that is full everywhere."""
    channels = mask.shape[2]
    opaque = channels in (1, 3) or bool((mask[..., -1] == np.iinfo(mask.dtype).max).all())
    colours = mask[..., : channels - (channels in (2, 4))]
    return colours[..., 0] if opaque and bool((colours == colours[..., :1]).all()) else mask


# ---- folders of a split -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitFolders:
    """Folders of the images and the masks of one split.

    Attributes:
        images: folder of the images; None where it is not there.
        masks: folder of the masks.
        divided: both splits lie there together, so that a share of the images is held out.
    """

    images: Path | None
    masks: Path
    divided: bool


def locate(data: DataConfig, train: bool) -> SplitFolders:
    """The folders of one split.

    `--data.images` and `--data.annotations` name them; below `--data.root` they are images/ and annotations/. Each has
    a folder for each split (training and validation, or other names of `splits.TRAIN_NAMES` and `VAL_NAMES`, in any
    capitals), or `--data.train_split` and `--data.val_split` name these folders. Without such folders, or with one for
    training alone, a share of the images is held out. A `val_split` that names the training split, or "all",
    measures all of them.

    Raises:
        UserError: there is no such folder.
    """
    if data.root is None and data.annotations is None:
        raise UserError(f"--data {data.name} needs --data.root, or --data.images and --data.annotations.")
    images, masks = _folder_of_option(data, "images"), _folder_of_option(data, "annotations")
    if masks is None:
        raise UserError(f"{data.root} has no folder annotations: name the masks' with --data.annotations.")
    learned, measured = _split_folder(masks, data.train_split), _split_folder(masks, measured_split(data))
    if learned is None and measured is None:
        _check_flat(masks, data)
        shared = masks
    else:
        alone = measured is None and data.val_split in ("validation", "val", ALL_IMAGES, HOLDOUT)
        shared = learned if alone else None
    chosen = shared or (learned if train else measured)
    if chosen is None:
        raise _no_split(masks, data.train_split if train else data.val_split)
    return SplitFolders(_image_folder(chosen, masks, images), chosen, shared is not None and not data.measures_training)


def _folder_of_option(data: DataConfig, name: str) -> Path | None:
    """The folder that the option `name` gives, or that has this name, in any capitals, in the root."""
    named = getattr(data, name)
    if named is not None:
        return Path(named)
    if data.root is None:
        return None
    folders = folders_in(Path(data.root))
    return next((Path(data.root) / n for n in sorted(folders, key=lambda n: n != name) if n.lower() == name), None)


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry) and not is_ignored_folder(entry.name))
    except OSError as error:
        raise UserError(f"Folder {folder} cannot be read: {error.strerror or error}.") from error


def _split_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split; None where there is none."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of masks.")
    names = folders_in(folder)
    if split in names:
        return folder / split
    found = split_folders(names, SPLIT_WORDS[split], folder) if split in SPLIT_WORDS else []
    return folder / found[0] if found else None


def _check_flat(masks: Path, data: DataConfig) -> None:
    """Raise `UserError` where a split is named, but there are no splits."""
    for split in (data.train_split, measured_split(data)):
        if split not in SPLIT_WORDS:
            raise _no_split(masks, split)


def _no_split(masks: Path, split: str) -> UserError:
    names = folders_in(masks)
    there = f"; there are {', '.join(names[:5])}" if names else ""
    return UserError(
        f"{masks} has no folder for the split {split!r}{there}: name one with --data.train_split or --data.val_split."
    )


def _image_folder(chosen: Path, masks: Path, images: Path | None) -> Path | None:
    """The folder of the images of a folder of masks."""
    if images is None or chosen == masks:
        return images
    names = folders_in(images) if images.is_dir() else []
    if chosen.name in names:
        return images / chosen.name
    same = [name for name in names if split_word(name) == split_word(chosen.name) is not None]
    if not same:
        raise UserError(f"{images} has no folder {chosen.name}, but {masks} has one: both need the same splits.")
    return images / same[0]
