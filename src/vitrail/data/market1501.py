"""Market-1501 (Zheng et al., ICCV 2015) and sets of its layout: crops of people, named by identity and camera."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .annotated import AnnotatedSet
from .config import DataConfig
from .images import MAX_PIXELS, is_image_name

#: folders of the layout
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
#: identity of crops that show no person, or only a part of one
JUNK = -1
#: identity of people who are in the gallery and asked for by no query
DISTRACTOR = 0
#: identity, camera, sequence, frame and box of a crop
_STEM = re.compile(r"(-1|\d+)_c(\d+)s(\d+)_(\d+)_(\d+)", re.ASCII)


@dataclass(frozen=True)
class Crop:
    """What the name of a picture says.

    Attributes:
        file: the picture.
        pid: identity; -1 = junk, 0 = distractor.
        camera: that took it.
    """

    file: Path
    pid: int
    camera: int


class PersonSet(AnnotatedSet):
    """Pictures of people in Market-1501's layout: those to learn from, or the queries followed by the gallery.

    Learned are the identities of bounding_box_train/, numbered from 0 in ascending order; junk and distractors are
    skipped there and counted, and kept in the gallery, whose figures treat them by their own rules. Files that are no
    pictures, such as Thumbs.db, are passed over.

    Args:
        root: folder that holds bounding_box_train/, query/ and bounding_box_test/.
        train: which part; the folders of the other one are not needed.
        max_pixels: larger pictures are refused.

    Attributes:
        classes: the identities to learn, such as "0002"; of the part to measure on none, as it shows other people.
        crops: the pictures, in the order of their names.
        identities: (N,) int64, index into `classes`; -1 where there are none.
        num_queries: so many of the pictures, the first ones, are queries.

    Raises:
        UserError: a folder is missing or has no pictures, a name does not fit, or there is one identity to learn.
    """

    def __init__(self, root: str | os.PathLike[str], train: bool, max_pixels: int = MAX_PIXELS):
        super().__init__([], max_pixels)
        self.num_queries = 0
        if train:
            self.crops = self._learned(Path(root))
        else:
            queries, gallery = (crops_of(Path(root), part) for part in (QUERY, GALLERY))
            self.crops, self.num_queries = queries + gallery, len(queries)
        pids = np.array([crop.pid for crop in self.crops], dtype=np.int64)
        learned = np.unique(pids) if train else np.array([], dtype=np.int64)
        self.classes = [f"{pid:04d}" for pid in learned]
        self.identities = np.searchsorted(learned, pids) if train else np.full_like(pids, -1)

    def _learned(self, root: Path) -> list[Crop]:
        crops = crops_of(root, TRAIN)
        kept = [crop for crop in crops if crop.pid not in (JUNK, DISTRACTOR)]
        for name, pid in (("junk", JUNK), ("distractors", DISTRACTOR)):
            self.skipped[name] = sum(crop.pid == pid for crop in crops)
        people = len({crop.pid for crop in kept})
        if people < 2:
            raise UserError(
                f"{root / TRAIN} shows {people} identity(ies) to learn; there must be two to tell one from the other."
            )
        return kept

    def __len__(self) -> int:
        return len(self.crops)

    def path(self, index: int) -> Path:
        """The file of picture number `index`."""
        return self.crops[index].file

    def key(self, index: int) -> str:
        """Folder and name of picture number `index`."""
        return "/".join(self.crops[index].file.parts[-2:])

    def known(self) -> Iterator[Any]:
        """Identity and camera of every picture, and how many are queries."""
        yield self.num_queries
        yield [[crop.pid, crop.camera] for crop in self.crops]

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """identity (index into `classes`, or -1), pid, camera, and query: whether the picture is one."""
        crop = self.crops[index]
        return {
            "identity": int(self.identities[index]),
            "pid": crop.pid,
            "camera": crop.camera,
            "query": index < self.num_queries,
        }


def open_people(data: DataConfig, train: bool) -> PersonSet:
    """One part of a data set in Market-1501's layout.

    Raises:
        UserError: no root is given, or it cannot be used.
    """
    holds = f"the folder that holds {TRAIN}, {QUERY} and {GALLERY}"
    if data.root is None:
        raise UserError(f"--data {data.name} needs --data.root, {holds}.")
    root = Path(data.root).expanduser()
    if root.is_file():
        raise UserError(f"--data.root {root} is a file: unpack it and name {holds}.")
    return PersonSet(root, train, data.max_pixels)


def crops_of(root: Path, part: str) -> list[Crop]:
    """The pictures of one folder of the layout, in the order of their names.

    Raises:
        UserError: there is no such folder, it has no pictures, or a name does not fit.
    """
    folder = root / part
    if not folder.is_dir():
        raise UserError(f"{root} has no folder {part}; Market-1501 has {TRAIN}, {QUERY} and {GALLERY}.")
    crops = [crop_of(folder / name) for name in sorted(os.listdir(folder)) if is_image_name(name)]
    if not crops:
        raise UserError(f"{folder} has no pictures.")
    return crops


def crop_of(file: Path) -> Crop:
    """What the name of a picture says.

    Raises:
        UserError: it does not fit.
    """
    match = _STEM.fullmatch(file.stem)
    if match is None:
        raise UserError(
            f"The name of {file} does not fit: Market-1501's are <identity>_c<camera>s<sequence>_<frame>_<box>.jpg, "
            "such as 0002_c1s1_000451_03.jpg."
        )
    return Crop(file, int(match[1]), int(match[2]))
