"""Market-1501 (Zheng et al., ICCV 2015) and sets of its layout: crops of persons, named by identity and camera."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...config.data import DataConfig
from ...errors import UserError
from ..images import MAX_PIXELS, is_image_name, left_out_sentence, why_left_out
from .base import AnnotatedSet

#: folders of the layout
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
#: identity of crops that show no person, or only a part of one
JUNK = -1
#: identity of persons in the gallery that no query shows
DISTRACTOR = 0
#: identity, camera, sequence, frame and box of a crop
_STEM = re.compile(r"(-1|\d{1,9})_c(\d{1,9})s(\d+)_(\d+)_(\d+)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Crop:
    """An image of the layout and what its name states.

    Attributes:
        file: the image.
        pid: identity; -1 = junk, 0 = distractor.
        camera: that took it.
    """

    file: Path
    pid: int
    camera: int


class ReidSet(AnnotatedSet):
    """Images of persons in Market-1501's layout: those to learn from, or the queries followed by the gallery.

    Learned are the identities of bounding_box_train/, numbered from 0 in ascending order; junk and distractors are
    skipped there and counted, and kept in the gallery, whose metrics treat them by their own rules. Files that are no
    images, such as Thumbs.db, are passed over.

    Args:
        root: folder that holds bounding_box_train/, query/ and bounding_box_test/.
        train: which split; the folders of the other one are not needed.
        max_pixels: larger images are refused.

    Attributes:
        classes: the identities to learn, such as "0002"; none of the validation split, which shows other persons.
        crops: the images, in the order of their names.
        identities: (N,) int64, index into `classes`; -1 where there are none.
        num_queries: so many of the images, the first ones, are queries.

    Raises:
        UserError: a folder is missing or has no images, a name does not fit, or there is one identity to learn.
    """

    def __init__(self, root: str | os.PathLike[str], train: bool, max_pixels: int = MAX_PIXELS):
        super().__init__([], max_pixels)
        self.num_queries = 0
        if train:
            self.crops = self._training_crops(Path(root))
        else:
            queries, gallery = (self._crops(Path(root), folder) for folder in (QUERY, GALLERY))
            self.crops, self.num_queries = queries + gallery, len(queries)
        pids = np.array([crop.pid for crop in self.crops], dtype=np.int64)
        learned = np.unique(pids) if train else np.array([], dtype=np.int64)
        self.classes = [f"{pid:04d}" for pid in learned]
        self.identities = np.searchsorted(learned, pids) if train else np.full_like(pids, -1)

    def _crops(self, root: Path, name: str) -> list[Crop]:
        crops, left_out = crops_of(root, name)
        self.remarks += left_out
        return crops

    def _training_crops(self, root: Path) -> list[Crop]:
        crops = self._crops(root, TRAIN)
        kept = [crop for crop in crops if crop.pid not in (JUNK, DISTRACTOR)]
        for name, pid in (("junk", JUNK), ("distractors", DISTRACTOR)):
            self.skipped[name] = sum(crop.pid == pid for crop in crops)
        identities = len({crop.pid for crop in kept})
        if identities < 2:
            raise UserError(f"{root / TRAIN} shows {identities} identity(ies) to learn: at least two are needed.")
        return kept

    def __len__(self) -> int:
        return len(self.crops)

    def path(self, index: int) -> Path:
        """The file of image number `index`."""
        return self.crops[index].file

    def key(self, index: int) -> str:
        """Folder and name of image number `index`."""
        return "/".join(self.crops[index].file.parts[-2:])

    def annotations(self) -> Iterator[Any]:
        """Identity and camera of every image, and how many are queries."""
        yield self.num_queries
        yield [[crop.pid, crop.camera] for crop in self.crops]

    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """identity (index into `classes`, or -1), pid, camera, and query: whether the image is one."""
        crop = self.crops[index]
        return {
            "identity": int(self.identities[index]),
            "pid": crop.pid,
            "camera": crop.camera,
            "query": index < self.num_queries,
        }


def open_market1501(data: DataConfig, train: bool) -> ReidSet:
    """One split of a data set in Market-1501's layout.

    Raises:
        UserError: no root is given, or it cannot be used.
    """
    holds = f"the folder that holds {TRAIN}, {QUERY} and {GALLERY}"
    if data.root is None:
        raise UserError(f"--data {data.name} needs --data.root, {holds}.")
    root = Path(data.root).expanduser()
    if root.is_file():
        raise UserError(f"--data.root {root} is a file: unpack it and name {holds}.")
    images = ReidSet(root, train, data.max_pixels)
    if not train:
        check_queries(images)
    return images


def check_queries(data: ReidSet) -> None:
    """Refuse queries and a gallery without a measurable match, by the names of the files.

    A query is measured by the images of its identity by other cameras, among those of other persons; junk counts as
    neither. Queries without such an image are left out of the metrics, which is noted in `remarks`.

    Raises:
        UserError: no query has a match from another camera, a query is a distractor, or all that is ranked is right.
    """
    queries, gallery = data.crops[: data.num_queries], data.crops[data.num_queries :]
    for crop in queries:
        if crop.pid == DISTRACTOR:
            raise UserError(f"{crop.file} is a distractor (identity 0), which no query asks for: move it to {GALLERY}.")
    seen: dict[int, Counter[int]] = {}
    for crop in gallery:
        seen.setdefault(crop.pid, Counter())[crop.camera] += 1
    total = sum(crop.pid != JUNK for crop in gallery)
    counts = [(seen.get(crop.pid, Counter()), crop) for crop in queries if crop.pid != JUNK]
    matches = [(own.total() - own[crop.camera], own.total()) for own, crop in counts]
    asked = [(right, all_own) for right, all_own in matches if right]
    if not asked:
        cameras = sorted({crop.camera for crop in data.crops})
        only = (
            f"all {len(data):,} images are by camera {cameras[0]}"
            if len(cameras) == 1
            else (f"{QUERY} and {GALLERY} share no identity under two cameras")
        )
        raise UserError(
            f"No query of {data.crops[0].file.parent.parent} has a match from another camera ({only}): there is "
            "nothing to measure on."
        )
    if all(total == all_own for _, all_own in asked):
        raise UserError(
            f"{data.crops[-1].file.parent} shows no person but that of each query: every ranking would be right, "
            "so that nothing is measured; add other persons."
        )
    if len(asked) < len(queries):
        data.remarks.append(
            f"{len(queries) - len(asked):,} of {len(queries):,} queries have no match from another camera and count in "
            "no metric"
        )


def crops_of(root: Path, name: str) -> tuple[list[Crop], list[str]]:
    """The images of one folder of the layout, in the order of their names; and a note on other files.

    Raises:
        UserError: there is no such folder, it has no images, or a name does not fit.
    """
    folder = root / name
    if not folder.is_dir():
        raise UserError(f"{root} has no folder {name}; Market-1501 has {TRAIN}, {QUERY} and {GALLERY}.")
    files = sorted(file for file in os.listdir(folder) if not (folder / file).is_dir())
    reasons = {file: why_left_out(file, (folder / file).is_file()) for file in files}
    sentence = left_out_sentence(Counter(filter(None, reasons.values())), str(folder))
    crops = [crop_of(folder / file) for file in files if is_image_name(file) and reasons[file] is None]
    if not crops:
        raise UserError(f"{folder} has no images." + (f" {sentence}" if sentence else ""))
    return crops, [sentence] if sentence else []


def crop_of(file: Path) -> Crop:
    """Parse the name of an image.

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
