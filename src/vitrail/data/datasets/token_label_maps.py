"""Label maps: a teacher's scores for every place of a training image, one small file an image.

A map is an array (2, k, H, W): at each place of an H x W grid over the whole, uncropped image the scores (logits) of
the k likeliest classes, `[0]`, and those classes, `[1]`. Ours are `.npy` files called like the image with `.npy`
behind, beside a `maps.json` that says who made them; the public ones are `.pt` files called like the image with
another ending, and are read as they are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import UserError
from ...utils.files import inside, read_json
from ...utils.plain import from_dict
from ..arrays import check_array
from ..images import head_of
from .base import ImageSet
from .classes import check_same_classes

INFO_FILE = "maps.json"

#: how the file of an image's map is called, by the image's key
FILE_NAMES = (
    lambda key: f"{key}.npy",
    lambda key: str(PurePosixPath(key).with_suffix(".npy")),
    lambda key: str(PurePosixPath(key).with_suffix(".pt")),
)


@dataclass
class MapsInfo:
    """Description of a folder of label maps, its `maps.json`.

    Attributes:
        teacher: the network that made them.
        classes: its classes' names; None where the folder does not say.
        licence: terms of the teacher's weights; None = never stated.
        training_data: what the teacher learned from.
        top_k: classes kept a place.
        image_size: (height, width) at which the teacher saw the images; None where the folder does not say.
    """

    teacher: str = "an unnamed network"
    classes: list[str] | None = None
    licence: str | None = None
    training_data: str = ""
    top_k: int = 5
    image_size: list[int] | None = None

    def __str__(self) -> str:
        return self.teacher + (f" ({self.licence})" if self.licence else "")


def read_info(folder: Path) -> MapsInfo:
    """Read `maps.json`; the defaults where there is none, as with public maps.

    Raises:
        UserError: it is damaged.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        return MapsInfo()
    try:
        return from_dict(MapsInfo, read_json(path))
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}): make the label maps anew.") from error


def map_files(folder: Path) -> set[str]:
    """Paths of all files below `folder`, relative to it, with "/" between the parts."""
    found: set[str] = set()
    for where, _, names in os.walk(folder):
        below = os.path.relpath(where, folder).replace(os.sep, "/")
        found.update(names if below == "." else (f"{below}/{name}" for name in names))
    return found


def own_file(key: str) -> str:
    """Path of the map that `vitrail token_labels` writes for an image, relative to the folder of maps."""
    return FILE_NAMES[0](key)


class TokenLabelSet(ImageSet):
    """A data set whose targets are (class, label map).

    Args:
        images: the data set.
        folder: of the label maps.

    Raises:
        UserError: no such folder, maps of other classes, or images without a map.
    """

    def __init__(self, images: ImageSet, folder: str | os.PathLike[str]) -> None:
        super().__init__(images.classes, images.targets)
        self.images, self.folder = images, Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"--token_labels {folder} is no folder; `vitrail token_labels` makes one.")
        self.info = read_info(self.folder)
        self._check_classes()
        self._style = self._find_style()

    def _check_classes(self) -> None:
        if self.info.classes is not None:
            check_same_classes(self.info.classes, self.images, f"The network of the label maps in {self.folder}")

    def _find_style(self) -> int:
        """The number in FILE_NAMES of the way in which every image has its map."""
        files = map_files(self.folder)
        fewest: list[str] | None = None
        for number, style in enumerate(FILE_NAMES):
            missing = [key for key in map(self.key, range(len(self))) if style(key) not in files]
            if not missing:
                return number
            if fewest is None or len(missing) < len(fewest):
                fewest = missing
        count, first = len(fewest or []), (fewest or [""])[0]
        raise UserError(
            f"{count:,} of the {len(self):,} training images have no label map in {self.folder}, the first is "
            f"{first}: make them with `vitrail token_labels`."
        )

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image, label = self.images[index]
        return image, (label, self.label_map(index))

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return self.images.image(index)

    def name(self, index: int) -> str:
        """Name of image `index` in messages."""
        return self.images.name(index)

    def key(self, index: int) -> str:
        """See `ImageSet`."""
        return self.images.key(index)

    def stored(self, index: int) -> list[bytes]:
        """That of the image, and size and beginning of its map."""
        return [*self.images.stored(index), head_of(self._file(index))]

    def _file(self, index: int) -> Path:
        return inside(self.folder, FILE_NAMES[self._style](self.key(index)), f"image {self.name(index)}")

    def label_map(self, index: int) -> Tensor:
        """(2, k, H, W) float32: scores, and the classes they belong to.

        Raises:
            UserError: the file is damaged, or names classes the data does not have.
        """
        path = self._file(index)
        found = _read(path)
        if found.ndim != 4 or len(found) != 2 or not found.numel():
            raise UserError(f"Label map {path} has the shape {tuple(found.shape)} instead of (2, k, H, W).")
        classes = found[1]
        whole = bool((classes == classes.round()).all()) and bool(found.isfinite().all())
        if not whole or not 0 <= float(classes.min()) <= float(classes.max()) < len(self.classes):
            raise UserError(f"Label map {path} names classes that are not among the data's {len(self.classes)}.")
        return found


def _read(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            check_array(path)
            return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, Tensor):
            return found.float()
        reason = f"it holds a {type(found).__name__}"
    except UserError:
        raise
    except Exception as error:  # damaged headers and archives raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f"Label map {path} cannot be read ({reason}).")


def pack(scores: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Scores (k, H, W) and their classes (k, H, W) as the array that is stored.

    Half precision counts without gaps to 2048, which decides whether it can hold the classes.
    """
    return np.stack((scores, classes)).astype(np.float16 if num_classes <= 2049 else np.float32)
