"""Images with a class for every pixel: ADE20K, and any folders of pictures and of masks of class indices."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import read_json
from .config import DataConfig

#: index of pixels that have no class
IGNORE = 255
#: folders of the parts, as data sets call them
_PARTS = {"train": ("training", "train"), "validation": ("validation", "val")}
_LISTS = ("classes.json", "classes.csv")


@dataclass(frozen=True)
class Labels:
    """What the values of a mask mean.

    Attributes:
        names: of the classes, in the order of the outputs.
        table: (256,) int64, the index of every value; `IGNORE` for pixels that have no class, -1 for values without
            a meaning.
    """

    names: tuple[str, ...]
    table: np.ndarray

    @classmethod
    def of(cls, values: Sequence[int], names: Sequence[str], ignored: Sequence[int] = ()) -> Labels:
        """Labels from the value of each class; 255 and `ignored` have none."""
        table = np.full(256, -1, dtype=np.int64)
        table[[IGNORE, *ignored]] = IGNORE
        table[list(values)] = np.arange(len(names))
        return cls(tuple(names), table)

    def indices(self, mask: np.ndarray, name: str) -> np.ndarray:
        """(H, W) values -> (H, W) class indices.

        Raises:
            UserError: a value that names no class.
        """
        found = self.table[mask]
        if (found < 0).any():
            raise UserError(
                f"{name} has the value {int(mask[found < 0][0])}, which names none of the {len(self.names)} classes."
            )
        return found


def ade20k_labels() -> Labels:
    """The 150 classes of ADE20K's scene parsing: values 1 to 150; 0 is ignored."""
    return _listed(Path(__file__).with_name("ade20k_classes.csv"))


def labels_of(data: DataConfig) -> Labels:
    """The classes of a data set: those of `--data.classes`, of a list in its root, or ADE20K's.

    A JSON file holds {"classes": [names by value], "ignore_index": value}; a CSV file has columns id and name, where
    the value 0, if no class has it, is ignored.

    Raises:
        UserError: the list cannot be read.
    """
    if data.classes is not None:
        return _listed(Path(data.classes))
    listed = [Path(data.root) / name for name in _LISTS] if data.root is not None else []
    file = next((path for path in listed if path.is_file()), None)
    return ade20k_labels() if file is None else _listed(file)


def _listed(path: Path) -> Labels:
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("classes"), list):
            raise UserError(f'{path} is no list of classes: it must hold {{"classes": [names]}}.')
        ignored = content.get("ignore_index", IGNORE)
        pairs = [(value, str(name)) for value, name in enumerate(content["classes"]) if value != ignored]
    else:
        ignored, pairs = 0, _rows(path)
    values, names = [value for value, _ in pairs], [name for _, name in pairs]
    if not names or len(set(values)) < len(values) or not all(0 <= value < IGNORE for value in values):
        raise UserError(f"{path} must give every class a value of its own between 0 and {IGNORE - 1}.")
    return Labels.of(values, names, [ignored])


def _rows(path: Path) -> list[tuple[int, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [(int(row["id"]), row["name"]) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no list of classes: it needs the columns id (a number) and name.") from error


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 values of a mask.

    Raises:
        UserError: it is no picture of one channel with values up to 255.
    """
    try:
        with Image.open(path) as image:
            mask = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's kinds for what is missing, cut off or no picture
        raise UserError(f"{path} cannot be read as a mask: {error}.") from error
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.int32, np.uint16, bool):
        raise UserError(f"{path} is no mask: it must have one channel of whole numbers, the class of each pixel.")
    if mask.size and not 0 <= mask.min() <= mask.max() <= IGNORE:
        raise UserError(f"{path} has the value {mask.max()}; masks hold values from 0 to {IGNORE}.")
    return mask.astype(np.uint8)


def locate(data: DataConfig, train: bool) -> tuple[Path | None, Path]:
    """The folder of the pictures (None where it is not there) and that of the masks of one part.

    `--data.images` and `--data.annotations` name them; below `--data.root` they are images/ and annotations/, with a
    folder for each part (training and validation, or train and val) or without.

    Raises:
        UserError: there is no such folder.
    """
    if data.annotations is not None:
        return None if data.images is None else Path(data.images), Path(data.annotations)
    if data.root is None:
        raise UserError(f"--data {data.name} needs --data.root, or --data.images and --data.annotations.")
    split = data.train_split if train else data.val_split
    found = [_part(Path(data.root) / folder, split) for folder in ("images", "annotations")]
    if found[1] is None:
        raise UserError(f"{data.root} has no folder annotations: name the masks' with --data.annotations.")
    return found[0], found[1]


def _part(folder: Path, split: str) -> Path | None:
    named = next((folder / name for name in _PARTS.get(split, (split,)) if (folder / name).is_dir()), None)
    return named or (folder if folder.is_dir() else None)
