"""The run directory: the files of a training run, consistent at any moment.

config.yaml       every value of the recipe, as resolved
metrics.csv       one row an epoch, the first one is 1
events/           the same and more for TensorBoard
last/             the saved state, from which --resume continues
best.safetensors  the weights of the best epoch
summary.json      final metrics, versions, commit, hardware, seconds
train_batch.png   augmented images of the first batch, as the network saw them
curves.png, and the reports of the task (per_class.csv, confusion.png, results.json)
examples/         predictions for validation images beside the ground truth, where that can be drawn
.vitrail-run      the list of these files: no other file in the folder is ever replaced or deleted
.vitrail-lock     while a process works on the run: which one
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from ..config.data import DataConfig
from ..config.train import GROUPS, MAX_EPOCHS, TrainConfig
from ..errors import UserError, printable
from ..utils import files
from ..utils.files import inside, read_json, read_yaml, shortened, write_whole
from ..utils.locks import Lock
from ..utils.owned_folder import STAGE, OwnedFolder
from ..utils.plain import from_dict, to_dict, typed

CONFIG, BEST = "config.yaml", "best.safetensors"
STATE, NEW, OLD = "last", ".last.new", ".last.old"
#: file of the trainer state in the folder of a saved state; written last
TRAINER_STATE = "loop.json"
#: version of saved states, in `TRAINER_STATE`; raised when a file or a name in it changes its meaning
STATE_VERSION = 3
#: older versions of it that are read: 2 counted epochs from 0 in its history and its best epoch
READABLE_VERSIONS = (2, STATE_VERSION)
#: column of `metrics.csv`, and entry of `summary.json`: the best epoch so far. A log of an older version, which counts
#: epochs from 0, has no such column.
BEST_EPOCH = "best_epoch"
#: augmented images of the first batch
TRAIN_BATCH = "train_batch.png"
FILES = (
    CONFIG,
    "metrics.csv",
    BEST,
    "summary.json",
    TRAIN_BATCH,
    "curves.png",
    "confusion.png",
    "per_class.csv",
    "results.json",
    "panoptic.json",
)
#: most rows of a log
MOST_EPOCHS = MAX_EPOCHS
#: images with predictions beside the ground truth
EXAMPLES = "examples"
EVENTS = "events"
FOLDERS = (STATE, NEW, OLD, EVENTS, EXAMPLES, "panoptic")
#: values that may differ between a run and its continuation: they do not change what is learned
MAY_DIFFER = (
    "output",
    "resume",
    "overwrite",
    "tracker",
    "device",
    "compile",
    "pin_memory",
    "prefetch",
    "max_steps",
    "patience",
    "checkpoint_every",
    "data.root",
    "data.unlabelled",
    "data.workers",
    "teacher",
    "init",
)


@dataclass
class TrainerState:
    """Progress of a run; with the tensors saved beside it, all that a resumed run needs.

    Attributes:
        epoch: the current epoch, from 0.
        batch: batches of it that are done.
        step: optimiser steps done in all.
        loss_sum: sum of the losses of this epoch's steps.
        correct: training images of this epoch that were classified correctly; NaN where the task has no such number.
        seen: training images of this epoch.
        processes: how many processes share each batch.
        seconds: of training so far, over all starts of the run.
        best: metrics of the best epoch so far, with "epoch", from 1.
        history: a row an epoch, as in metrics.csv.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    seen: int = 0
    processes: int = 1
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def train_loss(self) -> float:
        """Mean loss of this epoch's steps."""
        return self.loss_sum / max(self.batch, 1)

    @property
    def train_accuracy(self) -> float | None:
        """Accuracy on this epoch's training images, in %; None where the task has none."""
        return None if math.isnan(self.correct) else 100 * self.correct / max(self.seen, 1)

    def add(self, loss: float, correct: float, images: int) -> None:
        """Add the results of one step to those of the epoch."""
        self.loss_sum, self.correct, self.seen = self.loss_sum + loss, self.correct + correct, self.seen + images

    def next_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.correct, self.seen = 0.0, 0.0, 0


def saving(where: str | Path) -> AbstractContextManager[None]:
    """As `files.saving`, for a run: the error says whether an earlier saved state is intact."""
    if RunDirectory(where).state() is None:
        return files.saving(where, "no state was saved yet, so free some space and start again.")
    return files.saving(where, "the state saved before is intact, so free some space and go on with --resume.")


class RunDirectory:
    """The folder of one run. As a context manager it releases the lock that `begin` took.

    Args:
        path: of the folder, made when the run begins.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.files = OwnedFolder(self.path)
        self.lock = Lock(self.path)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    # ---- beginning ----------------------------------------------------------------------------------------------

    def has_results(self) -> bool:
        """True if the run has saved a state or weights; one that has not is replaced without `overwrite`."""
        return self.state() is not None or (self.path / BEST).exists()

    def check(self, config: TrainConfig) -> None:
        """Refuse a folder that a run of `config` must not use; changes nothing.

        Raises:
            UserError: it holds a run and neither `resume` nor `overwrite` is set, there is nothing to resume, the run
                there has another recipe or was saved by another version, another process works on it, files with the
                names of a run's are there that no run wrote, or one of its folders or files is a link.
        """
        if not config.output.strip():
            raise UserError("--output is empty: name a folder for the run.")
        try:
            is_file = self.path.exists() and not self.path.is_dir()
        except OSError as error:  # a name that is too long
            raise UserError(f"--output {self.path}: {error.strerror or error}.") from error
        if is_file:
            raise UserError(f"--output {self.path} is a file; name a folder.")
        for name in (*FOLDERS, STAGE, *FILES):
            if (self.path / name).is_symlink():
                raise UserError(
                    f"{self.path / name} is a link: what a run writes and deletes stays in its own folder, so put what "
                    "it leads to in its place or choose another --output."
                )
        self.lock.check()
        if config.resume:
            self._check_version()
            self._check_same(config)
        elif not self.files.marked:
            self._check_free()
        elif self.has_results() and not config.overwrite:
            raise UserError(
                f"{self.path} already holds a run: go on with it (--resume), delete it (--overwrite) or choose another "
                "--output."
            )
        if self.files.marked and (taken := self.files.foreign(FILES)):
            raise UserError(
                f"{self.path / taken[0]} was not written by this run and would be replaced: move it away or choose "
                "another --output."
            )

    def _check_free(self) -> None:
        """Refuse a folder without a list of a run's files that holds files of these names."""
        taken = [name for name in (*FILES, *FOLDERS) if os.path.lexists(self.path / name)]
        if not taken:
            return
        if self.state() is not None or (self.path / BEST).exists():
            raise UserError(
                f"{self.path} holds a run without the list of its files, .vitrail-run, as a copy without hidden files "
                "does: go on with it (--resume), delete it yourself or choose another --output."
            )
        raise UserError(
            f"{self.path} holds {', '.join(taken)}, which no run of vitrail wrote and which a run would replace: "
            "choose another --output."
        )

    def begin(self, config: TrainConfig) -> None:
        """Lock the folder and prepare it for `config`: made, emptied of an old run, or kept for `resume`.

        Raises:
            UserError: what `check` refuses, or the folder cannot be written.
        """
        self.check(config)
        with files.saving(self.path, "free some space or choose another --output."):
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            self.check(config)  # another process may have begun since
            if config.overwrite or not (config.resume or self.has_results()):
                self.clear()
            elif not self.files.marked:  # a copy without the list of files
                self.files.adopt(self._unlisted_files())
        if self.state() is None:  # else the state's own recipe stays until the state is loaded
            self.write_config(config)

    def write_config(self, config: TrainConfig) -> None:
        """Write `config.yaml`, without `resume` and `overwrite`, which are no part of the recipe."""
        plain = {**to_dict(config), "resume": False, "overwrite": False}
        with saving(self.path):
            self.write(CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def _unlisted_files(self) -> list[str]:
        """The files of a run that has lost the list of its files."""
        states = [f"{STATE}/{file.name}" for name in (STATE, OLD) for file in (self.path / name).glob("*")]
        return [*(name for name in FILES if (self.path / name).is_file()), *states]

    def clear(self) -> None:
        """Delete the files the run wrote, and no others."""
        if self.files.marked:
            self.drop_new_state()
            self._delete_old_state(self.path / OLD)
        self.files.clear()

    def config(self) -> TrainConfig:
        """The recipe the run was started with.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        file = self.path / CONFIG
        if not file.exists():
            raise UserError(f"There is no run in {self.path} to resume: start it without --resume.")
        try:
            return from_dict(TrainConfig, read_yaml(file))
        except UserError as error:
            raise UserError(f"{file} is damaged or no recipe of a run: {error}") from error

    def _check_version(self) -> None:
        """Refuse a saved state of another format.

        Raises:
            UserError: naming both versions of the format.
        """
        state = self.state()
        try:
            values = {} if state is None else typed(dict, read_json(state / TRAINER_STATE), TRAINER_STATE)
        except UserError:
            return  # damaged, which `trainer_state` reports
        if state is not None and (version := values.get("version", 1)) not in READABLE_VERSIONS:
            raise UserError(
                f"The state of the run in {self.path} was saved by another version of vitrail (format "
                f"{shortened(version)}, this version reads {STATE_VERSION}): start anew with --overwrite, or from its "
                f"weights with --init {self.path} and another --output."
            )

    def _check_same(self, config: TrainConfig) -> None:
        """Refuse a recipe other than the run's.

        Raises:
            UserError: naming the first option that differs.
        """
        old, new = _flat(to_dict(self.config())), _flat(to_dict(config))
        changed = [key for key in new if key not in MAY_DIFFER and new[key] != old.get(key)]
        if changed and self.has_results():
            key = changed[0]
            before, now = (printable(v)[:80] if isinstance(v, str) else shortened(v) for v in (old.get(key), new[key]))
            raise UserError(
                f"The run in {self.path} was started with --{key} {before}, not {now}: resume it with its own values, "
                f"or start from its weights with --init {self.path} and another --output."
            )
        if config.init is not None and config.init != old.get("init") and self.state() is not None:
            raise UserError(
                f"--init {printable(config.init)[:80]} has no effect: the run in {self.path} goes on with its own "
                "weights; leave it out, or start anew in another --output."
            )

    # ---- the saved state ----------------------------------------------------------------------------------------

    def state(self) -> Path | None:
        """The folder of the newest complete state, None if none was saved yet."""
        # between the two renames of `commit_state` only the old one carries a name
        return next((self.path / name for name in (STATE, OLD) if (self.path / name / TRAINER_STATE).is_file()), None)

    def new_state(self) -> Path:
        """An empty folder to write a state into; `commit_state` makes it the run's."""
        self.drop_new_state()
        new = self.path / NEW
        new.mkdir()
        return new

    def commit_state(self, trainer_state: TrainerState) -> None:
        """Complete the new state with the trainer's and put it in the place of the last one.

        Whenever the process ends, even by SIGKILL, `state` gives a complete one.
        """
        new, last, old = (self.path / name for name in (NEW, STATE, OLD))
        digests = {file.name: _digest(file) for file in new.iterdir()}
        # JSON has no NaN
        values = {**asdict(trainer_state), "version": STATE_VERSION, "digests": digests}
        if math.isnan(trainer_state.correct):
            values["correct"] = None
        (new / TRAINER_STATE).write_text(json.dumps(values), encoding="utf-8")
        for file in new.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        self.files.adopt(f"{STATE}/{file.name}" for file in new.iterdir())
        if last.exists():
            self._delete_old_state(old)
            os.rename(last, old)
        os.rename(new, last)
        self._delete_old_state(old)

    def _delete_old_state(self, old: Path) -> None:
        """Delete a state that is not needed any more; files of the user's in it stay, in the newest state's folder."""
        if not old.is_dir():
            return
        last = self.path / STATE
        for file in old.iterdir():
            if f"{STATE}/{file.name}" in self.files.written:
                file.unlink()
            else:
                last.mkdir(exist_ok=True)
                os.rename(file, last / file.name)
        old.rmdir()

    def drop_new_state(self) -> None:
        """Delete a state that could not be completed."""
        shutil.rmtree(self.path / NEW, ignore_errors=True)

    def trainer_state(self) -> TrainerState:
        """The trainer state of the newest saved state; a fresh one if there is none.

        Raises:
            UserError: a value is not of its type, or a file of the state is not as it was saved.
        """
        state = self.state()
        if state is None:
            return TrainerState()
        values = typed(dict, read_json(state / TRAINER_STATE), TRAINER_STATE)
        if values.pop("version", None) == 2:
            values = _counted_from_1(values)
        digests = typed(dict, values.pop("digests", {}), "digests")
        has_no_correct = values.get("correct", 0) is None
        trainer_state = from_dict(TrainerState, {**values, "correct": 0.0} if has_no_correct else values)
        if has_no_correct:
            trainer_state.correct = math.nan
        for name, digest in digests.items():
            file = inside(state, name, str(state / TRAINER_STATE))
            if not file.is_file():
                raise UserError(f"{name} is missing.")
            if _digest(file) != digest:
                raise UserError(f"{name} is not as it was saved.")
        return trainer_state

    # ---- results ------------------------------------------------------------------------------------------------

    def write(self, name: str, content: str | bytes) -> None:
        """Write one of the run's files atomically."""
        self.files.claim([name])
        write_whole(self.path / name, content)

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write `metrics.csv`, a row an epoch."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        self.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_log(path: str | Path) -> list[dict[str, float | None]]:
    """The rows of a run's `metrics.csv`, epochs from 1 whichever version wrote it; [] if there is none.

    Numbers that are not finite, and what an epoch did not measure, are None.

    Args:
        path: the run directory.

    Raises:
        UserError: the file cannot be read, or is no table of numbers.
    """
    file = Path(path) / "metrics.csv"
    if not file.is_file():
        return []
    rows: list[dict[str, float | None]] = []
    for line in csv.DictReader(io.StringIO(files.read_text(file))):
        if len(rows) == MOST_EPOCHS or None in line:
            raise UserError(f"{file} is damaged: line {len(rows) + 2} is not a row of its table.")
        try:
            rows.append({name: float(text) if text else None for name, text in line.items()})
        except ValueError as error:
            raise UserError(f"{file} is damaged: line {len(rows) + 2} holds something other than numbers.") from error
    rows = [{name: v if v is None or math.isfinite(v) else None for name, v in row.items()} for row in rows]
    return [from_1(row) for row in rows]


def from_1(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a log with its epoch counted from 1, also of an older version's, which counted from 0."""
    return row if BEST_EPOCH in row else {**_next(row), BEST_EPOCH: None}


def _counted_from_1(values: dict[str, Any]) -> dict[str, Any]:
    """A trainer state of version 2 with epochs from 1 in history and best epoch."""
    history, best = typed(list, values.get("history", []), "history"), typed(dict, values.get("best", {}), "best")
    return {**values, "history": [_next(typed(dict, row, "history")) for row in history], "best": _next(best)}


def _next(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the number of its epoch one higher."""
    epoch = row.get("epoch")
    return {**row, "epoch": epoch + 1} if isinstance(epoch, (int, float)) else row


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def data_of_run(path: str | Path) -> DataConfig | None:
    """The data options of a run, validation split included; None if `path` is no run directory.

    Images without labels, which only a training can use, are left out.
    """
    run = RunDirectory(path)
    return replace(run.config().data, unlabelled=None) if (run.path / "config.yaml").is_file() else None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key in GROUPS:
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat
