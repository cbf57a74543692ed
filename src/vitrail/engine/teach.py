"""Cache a teacher's outputs for every augmented training image of a run (see `data.datasets.teacher_labels`)."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.load import pick_device
from ..config.train import DistillConfig, TrainConfig
from ..data.datasets.teacher_labels import (
    INFO_FILE,
    VIEWS_FILE,
    LabelsInfo,
    TeacherLabels,
    is_labels_folder,
    kinds_of,
    output_file,
)
from ..data.images import is_ignored_file
from ..data.loader import TrainLoader
from ..errors import UserError
from ..tasks.classification import Classification
from ..tasks.teacher import Distiller, describe_views, first_views, merged
from ..utils.files import inside, saving, write_whole
from ..utils.plain import to_dict
from ..utils.progress import bar
from .launch import seed_everything
from .optim import run_steps
from .option_rules import check

#: options of a training run that decide which images its steps show, and how the teacher sees them
DECIDING = ("model", "model_options", "data", "augment", "image_size", "mean", "std", "epochs", "iterations")
#: further options of the command
OTHERS = ("batch_size", "seed", "device", "overwrite")
Outputs = Literal["scores", "features", "both"]
_OWN = re.compile(r"\d{4,}/(logits|features)_\d{7,}\.npy")


@dataclass
class TeachReport:
    """Result of `teach`.

    Attributes:
        folder: of the outputs.
        teacher: name of the network.
        epochs: that the folder has the outputs of.
        made: outputs made now.
        kept: outputs that existed already.
        megabytes: of all outputs of these epochs.
    """

    folder: str
    teacher: str
    epochs: int
    made: int
    kept: int
    megabytes: float


def teach(config: TrainConfig, outputs: Outputs = "scores") -> TeachReport:
    """Run a teacher over the augmented images of every epoch of a run, once; continues where an earlier call stopped.

    Any number of students of the same recipe, data and seed then learn from `--teacher FOLDER`, as if the teacher ran
    beside each of them. More epochs can be added later.

    Args:
        config: the recipe of the run; its `teacher` labels, and `output` is the folder.
        outputs: what is cached: the scores of the classes, the features that the classifier reads
            (`train --distill.features`), or both; features alone can be those of a teacher of other classes.

    Raises:
        UserError: a teacher, data or folder that cannot be used, outputs of another teacher or recipe, a full disk.
    """
    if config.task != "classification":
        raise UserError(f"--task {config.task}: a teacher's outputs are cached for classification alone.")
    of_scores, of_features = float(outputs != "features"), float(outputs != "scores")
    config = replace(config, distill=DistillConfig(weight=of_scores, features=of_features))
    check(config)
    output = Path(config.output)
    if is_labels_folder(config.teacher or ""):
        raise UserError(f"{config.teacher} holds outputs of vitrail teach: give the teacher itself.")
    pick_device(config.device)  # a wrong one is said before data are read
    task = Classification(config)
    distiller = task.distiller
    assert distiller is not None
    loader = _loader(task)
    info = merged(describe_views(config, task.preprocess, loader), distiller, len(task.classes))
    epochs = -(-run_steps(config, len(loader)) // len(loader))
    _check_folder(output, info, config.overwrite)
    _check_space(output, info, epochs)
    with saving(output):
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / INFO_FILE, json.dumps(to_dict(info), indent=2))
        _write(output, VIEWS_FILE, first_views(loader))
    labels, made = TeacherLabels(output), 0
    missing = [epoch for epoch in range(epochs) if not labels.has(epoch)]
    with bar("Labelling", len(missing) * len(loader)) as advance:
        for epoch in missing:
            for first, rows in _epoch(task, loader, info, start=_start(output, info, epoch), advance=advance):
                for kind, array in rows.items():
                    _write(output, output_file(kind, epoch, first), array)
                made += len(next(iter(rows.values())))
    return TeachReport(
        folder=str(output),
        teacher=info.teacher,
        epochs=epochs,
        made=made,
        kept=epochs * info.positions - made,
        megabytes=round(_bytes(info, epochs) / 1e6, 3),
    )


def _loader(task: Classification) -> TrainLoader:
    """The run's batches; without Mixup and CutMix all its images in batches of any size."""
    config = task.config
    return TrainLoader(
        task.train_set,
        task.transform,
        config.batch_size,
        config.seed,
        workers=config.data.workers,
        repeats=config.augment.repeats,
        drop_last=task.mixer is not None,
    )


def _epoch(
    task: Classification, loader: TrainLoader, info: LabelsInfo, start: tuple[int, int], advance: Any
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The outputs of an epoch, file by file: the position of the first one, and what is stored by kind.

    Args:
        task: with the teacher.
        loader: of the run's batches.
        info: of the outputs.
        start: number of the epoch, and position to begin at, a multiple of `info.rows`.
        advance: called after each batch.
    """
    epoch, first = start
    distiller, device = task.distiller, pick_device(task.config.device)
    assert distiller is not None
    batch = next(number for number in range(len(loader)) if loader.slice_of(number).stop > first)
    skip = first - loader.slice_of(batch).start
    held: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds_of(info)}
    count = -skip
    loader.set_epoch(epoch, batch)
    for _ in range(batch):
        advance()
    for number, images in enumerate(loader, batch):
        # the randomness of a training step
        seed_everything(task.config.seed, epoch * len(loader) + number, 0)
        for kind, rows in _outputs(task, distiller, images, device).items():
            held[kind].append(rows[max(-count, 0) :] if count < 0 else rows)
        count += len(images[0])
        advance()
        last = number + 1 == len(loader)
        while count >= info.rows or (last and count > 0):
            joined = {kind: np.concatenate(rows) for kind, rows in held.items()}
            yield first, {kind: rows[: info.rows] for kind, rows in joined.items()}
            held = {kind: [rows[info.rows :]] for kind, rows in joined.items()}
            first, count = first + info.rows, count - info.rows


def _outputs(task: Classification, distiller: Distiller, images: Any, device: torch.device) -> dict[str, np.ndarray]:
    """The teacher's outputs for a batch, (B, width) by kind."""
    x, y = (tensor.to(device) for tensor in images)
    mixed: Tensor = task.mix((x, y))[0]
    return {kind: rows.cpu().numpy().astype(np.float32) for kind, rows in distiller.outputs(mixed).items()}


def _start(output: Path, info: LabelsInfo, epoch: int) -> tuple[int, int]:
    """The epoch, and the first of its positions whose outputs are not there."""
    firsts = range(0, info.positions, info.rows)
    there = lambda first: all((output / output_file(kind, epoch, first)).is_file() for kind in kinds_of(info))  # noqa: E731
    return epoch, next(first for first in firsts if not there(first))


# ---- the folder -------------------------------------------------------------------------------------------------


def _check_folder(output: Path, info: LabelsInfo, overwrite: bool) -> None:
    """Refuse a folder with other files, or with outputs of another teacher or recipe unless these are to be deleted.

    Raises:
        UserError: saying which.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder.")
    files = [path for path in output.rglob("*") if path.is_file() and not is_ignored_file(path.name)]
    names = [path.relative_to(output).as_posix() for path in files]
    others = [name for name in names if name not in (INFO_FILE, VIEWS_FILE) and not _OWN.fullmatch(name)]
    if others or (names and INFO_FILE not in names):
        raise UserError(
            f"--output {output} holds {min(others or names)}, which vitrail teach did not write: outputs are only "
            "written to an empty folder, or to one that it made."
        )
    if not names:
        return
    if overwrite:
        for path in files:
            path.unlink()
        return
    old = TeacherLabels(output).info
    change = old.difference(info)
    own = ("teacher", "digest", "classes", "features", "rows")
    same = all(getattr(old, name) == getattr(info, name) for name in own)
    if change is None and not same:
        change = f"they are of another teacher, {old.teacher}, or hold other kinds of outputs"
    if change is not None:
        raise UserError(f"{output} holds outputs that do not fit: {change}. Choose another --output, or --overwrite.")


def _check_space(output: Path, info: LabelsInfo, epochs: int) -> None:
    """Refuse more outputs than the disk has room for."""
    needed = _bytes(info, epochs)
    place = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    there = sum(path.stat().st_size for path in output.rglob("*.npy")) if output.is_dir() else 0
    free = shutil.disk_usage(place).free
    if needed - there > free:
        raise UserError(
            f"The outputs of {epochs} epochs of {info.positions:,} images take {needed / 1e9:,.1f} GB, and {place} has "
            f"{free / 1e9:,.1f} GB left: choose another --output, or fewer --epochs."
        )


def _bytes(info: LabelsInfo, epochs: int) -> int:
    return 4 * epochs * info.positions * sum(kinds_of(info).values())


def _write(output: Path, name: str, array: np.ndarray) -> None:
    """Write one of the folder's arrays, never through a link out of it."""
    path = inside(output, name, f"--output {output}", writing=True)
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    with saving(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
