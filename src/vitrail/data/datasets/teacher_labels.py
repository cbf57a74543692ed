"""A teacher's outputs for every augmented training image of a run, cached on disk by `vitrail teach`.

A view is an image as a training step shows it: cropped, mirrored, mixed. Seed and recipe decide the views, so that a
run with the same ones sees them again ("patient and consistent", Beyer et al., CVPR 2022): the view at each position
of an epoch has its row. The folder holds

    teacher.json                who labelled what (`LabelsInfo`); written first
    views.npy                   the first views of epoch 0, by which a run recognises them
    0003/logits_0000000.npy     (rows, K) float32: epoch 3, positions from 0 on
    0003/features_0000000.npy   (rows, D) float32, where the features are cached, too
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...utils.files import read_json, shortened
from ...utils.plain import from_dict
from ..arrays import check_array
from ..fingerprint import Fingerprint, difference

INFO_FILE, VIEWS_FILE = "teacher.json", "views.npy"
#: views at the beginning of epoch 0 that are stored, and how far a number of them may be off on another machine
PROBES, PROBE_TOLERANCE = 4, 0.02
#: most views whose outputs share a file
ROWS = 65_536
FORMAT = 1


@dataclass
class LabelsInfo:
    """Description of a folder of a teacher's outputs, its `teacher.json`.

    Attributes:
        teacher: name of the network.
        digest: of its weights and preprocessing.
        licence: terms of its weights; None = never stated.
        trained_on: what it learned from.
        data: the images.
        views: what decides the views: values of the recipe by name.
        positions: views in an epoch.
        rows: views whose outputs share a file.
        classes: number of logits; 0 = no logits.
        features: width of the features; 0 = no features.
        format: version of the layout.
    """

    teacher: str
    digest: str
    licence: str | None
    trained_on: str
    data: Fingerprint
    views: dict[str, Any] = field(default_factory=dict)
    positions: int = 0
    rows: int = ROWS
    classes: int = 0
    features: int = 0
    format: int = FORMAT

    def __str__(self) -> str:
        return self.teacher + (f" ({self.licence})" if self.licence else "")

    def difference(self, wanted: LabelsInfo) -> str | None:
        """The first thing in which these outputs are not those of `wanted`, in words; None if there is none."""
        if self.format != wanted.format:
            return f"their format is {self.format}, this version reads {wanted.format}"
        change = difference(self.data, wanted.data)
        if change is not None:
            return f"they are of other training images: {change}"
        for name in sorted(self.views | wanted.views):
            old, new = (views.get(name) for views in (self.views, wanted.views))
            if old != new:
                return f"they were made with {name} {_short(old)}, and it is {_short(new)} here"
        if self.positions != wanted.positions:
            return f"an epoch had {self.positions:,} images and has {wanted.positions:,} here"
        return None


def _short(value: Any) -> str:
    return "null" if value is None else shortened(value)


def read_info(folder: Path) -> LabelsInfo:
    """Read `teacher.json`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {INFO_FILE}: it is no folder of vitrail teach.")
    try:
        info = from_dict(LabelsInfo, read_json(path))
        if info.rows < 1 or info.positions < 1 or min(info.classes, info.features) < 0:
            raise UserError("its numbers of rows, positions, classes and features cannot be.")
    except UserError as error:
        raise UserError(f"{path} is damaged ({str(error).rstrip('.')}): make the outputs anew.") from error
    return info


def is_labels_folder(path: str | os.PathLike[str]) -> bool:
    """True if a path is a folder of a teacher's outputs."""
    return (Path(path).expanduser() / INFO_FILE).is_file()


def output_file(kind: str, epoch: int, first: int) -> str:
    """Path of a file of outputs below the folder.

    Args:
        kind: "logits" or "features".
        epoch: from 0.
        first: position of its first view.
    """
    return f"{epoch:04d}/{kind}_{first:07d}.npy"


def kinds_of(info: LabelsInfo) -> dict[str, int]:
    """What is stored of each view, and its width."""
    return {kind: width for kind, width in (("logits", info.classes), ("features", info.features)) if width}


class TeacherLabels:
    """A teacher's outputs for the views of a run.

    Args:
        folder: of `vitrail teach`.

    Raises:
        UserError: it is none, or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        self.info = read_info(self.folder)

    def check(self, wanted: LabelsInfo, views: np.ndarray, epochs: int) -> None:
        """Raise `UserError` unless the folder has the outputs for a run.

        Args:
            wanted: description of the run's views; of its teacher nothing is known.
            views: its first views.
            epochs: of the run.
        """
        change = self.info.difference(wanted)
        stored = self._array(VIEWS_FILE)
        if change is None and (stored.shape != views.shape or np.abs(stored - views).max() > PROBE_TOLERANCE):
            change = "its augmented images are not those of this run, as with another version of timm or Pillow"
        if change is not None:
            raise UserError(
                f"The teacher's outputs in {self.folder} are not of this run: {change}. Make them with vitrail teach "
                "and this recipe in another folder, or give the teacher itself."
            )
        missing = next((epoch for epoch in range(epochs) if not self.has(epoch)), None)
        if missing is not None:
            raise UserError(
                f"{self.folder} has the teacher's outputs for {missing} of the run's {epochs} epochs: the same vitrail "
                "teach command with that many --epochs makes the others."
            )

    def has(self, epoch: int) -> bool:
        """True if all outputs of an epoch are there."""
        return all((self.folder / name).is_file() for name in self._files(epoch))

    def _files(self, epoch: int) -> list[str]:
        firsts = range(0, self.info.positions, self.info.rows)
        return [output_file(kind, epoch, first) for kind in kinds_of(self.info) for first in firsts]

    def outputs(self, epoch: int, positions: range) -> dict[str, np.ndarray]:
        """The outputs by kind, (len(positions), width) float32, for consecutive positions of an epoch.

        Raises:
            UserError: a file is missing or damaged.
        """
        return {kind: self._rows(kind, width, epoch, positions) for kind, width in kinds_of(self.info).items()}

    def _rows(self, kind: str, width: int, epoch: int, positions: range) -> np.ndarray:
        rows, parts = self.info.rows, []
        for first in range(positions.start // rows * rows, positions.stop, rows):
            name = output_file(kind, epoch, first)
            stored = self._array(name)
            if stored.shape != (min(rows, self.info.positions - first), width):
                raise UserError(f"{self.folder / name} has the shape {stored.shape}: make it anew with vitrail teach.")
            part = stored[max(positions.start - first, 0) : positions.stop - first]
            if not np.isfinite(part).all():
                raise UserError(f"{self.folder / name} holds values that are not finite: make it anew.")
            parts.append(part)
        return np.concatenate(parts)

    def _array(self, name: str) -> np.ndarray:
        """One of the arrays, read where it is used."""
        path = self.folder / name
        try:
            check_array(path)
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, UserError) as error:
            raise UserError(f"{path} is missing or damaged: make it anew with vitrail teach.") from error
        if found.dtype != np.float32:
            raise UserError(f"{path} holds {found.dtype} instead of float32: make it anew with vitrail teach.")
        return found
