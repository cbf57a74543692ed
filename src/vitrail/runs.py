"""The run directory: what a training run leaves on disk, whole at any moment.

config.yaml       every value of the recipe, as resolved
metrics.csv       one row an epoch
events/           the same and more for TensorBoard
last/             the state to go on from
best.safetensors  the weights for users, of the best epoch
summary.json      final metrics, versions, commit, hardware, seconds
curves.png, and what the task reports (per_class.csv, confusion.png, results.json)
examples/         what the network finds in held-back pictures, beside the truth, where that can be drawn
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import files
from .config import GROUPS, TrainConfig
from .data.config import DataConfig
from .errors import UserError
from .files import write_whole
from .plain import from_dict, to_dict
from .version import __version__

STATE, NEW, OLD = "last", ".last.new", ".last.old"
FILES = (
    "config.yaml",
    "metrics.csv",
    "best.safetensors",
    "summary.json",
    "curves.png",
    "confusion.png",
    "per_class.csv",
    "results.json",
    "panoptic.json",
)
#: further files of a task's report, as patterns
REPORTED = ("ranking_*.jpg",)
#: pictures of what the network finds, beside the truth
EXAMPLES = "examples"
FOLDERS = (STATE, NEW, OLD, "events", EXAMPLES, "panoptic")
#: values that may differ between a run and its continuation: they do not change what is learned
FREE = ("output", "resume", "overwrite", "device", "max_steps", "checkpoint_every", "data.root", "data.workers", "init")


@dataclass
class Position:
    """Where a run stands; with the tensors beside it, all that is needed to go on.

    Attributes:
        epoch: the epoch under way, from 0.
        batch: batches of it that are done.
        step: optimiser steps done in all.
        loss: sum over the done steps of this epoch.
        right: images of this epoch that were classified right.
        seen: images of this epoch.
        processes: how many processes share each batch.
        seconds: of training so far, over all sessions.
        best: figures of the best epoch so far, with "epoch".
        history: a row an epoch, as in metrics.csv.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    right: float = 0.0
    seen: int = 0
    processes: int = 1
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def next_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss, self.right, self.seen = 0.0, 0.0, 0


def saving(where: str | Path) -> AbstractContextManager[None]:
    """As `files.saving`, of a run, whose state saved before is whole."""
    return files.saving(where, "the state saved before is whole, so free some space and go on with --resume.")


class RunDirectory:
    """The folder of one run.

    Args:
        path: made when the run begins.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    # ---- beginning ----------------------------------------------------------------------------------------------

    def holds_run(self) -> bool:
        """Whether something of a run is there."""
        return any((self.path / name).exists() for name in (*FILES, *FOLDERS))

    def check(self, config: TrainConfig) -> None:
        """Refuse a folder that `config` must not begin in; changes nothing.

        Raises:
            UserError: it holds a run and neither `resume` nor `overwrite` is set, there is nothing to resume, or the
                run there is another one.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output {self.path} is a file; name a folder.")
        if config.resume:
            self._check_same(config)
        elif self.holds_run() and not config.overwrite:
            raise UserError(
                f"{self.path} already holds a run: go on with it (--resume), delete it (--overwrite) or choose another "
                "--output."
            )

    def begin(self, config: TrainConfig) -> None:
        """Make the folder ready for `config`: new, emptied of an old run, or that of the run to resume.

        Raises:
            UserError: what `check` refuses, or the folder cannot be written.
        """
        self.check(config)
        if config.overwrite:
            self.clear()
        try:
            with saving(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                # how a session was started is no part of the recipe
                plain = {**to_dict(config), "resume": False, "overwrite": False}
                text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
                write_whole(self.path / "config.yaml", text)
        except OSError as error:
            raise UserError(f"--output {self.path} cannot be written: {error.strerror or error}.") from error

    def clear(self) -> None:
        """Delete what a run leaves, and nothing else."""
        for file in [*(self.path / name for name in FILES), *(f for p in REPORTED for f in self.path.glob(p))]:
            file.unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def config(self) -> TrainConfig:
        """The recipe the run was started with.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        file = self.path / "config.yaml"
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            return from_dict(TrainConfig, values)
        except FileNotFoundError as error:
            raise UserError(f"There is no run in {self.path} to resume: start it without --resume.") from error
        except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
            raise UserError(f"{file} is damaged; start the run anew with --overwrite.") from error

    def _check_same(self, config: TrainConfig) -> None:
        old, new = _flat(to_dict(self.config())), _flat(to_dict(config))
        changed = [key for key in new if key not in FREE and new[key] != old.get(key)]
        if changed:
            key = changed[0]
            raise UserError(
                f"The run in {self.path} was started with --{key} {old.get(key)}, not {new[key]}: resume it with its "
                f"own values, or start from its weights with --init {self.path} and another --output."
            )

    # ---- the state to go on from --------------------------------------------------------------------------------

    def state(self) -> Path | None:
        """The newest whole state, None if none was saved yet."""
        # between the two renames of `commit_state` only the old one carries a name
        return next((self.path / name for name in (STATE, OLD) if (self.path / name / "loop.json").is_file()), None)

    def new_state(self) -> Path:
        """An empty folder to write a state into; `commit_state` makes it the run's."""
        new = self.path / NEW
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        return new

    def commit_state(self, position: Position) -> None:
        """Complete the new state with the loop's position and put it in the place of the last one.

        Whenever the process ends, even by SIGKILL, `state` gives a whole one.
        """
        new, last, old = (self.path / name for name in (NEW, STATE, OLD))
        (new / "loop.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
        for file in new.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if last.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(last, old)
        os.rename(new, last)
        shutil.rmtree(old, ignore_errors=True)

    def drop_new_state(self) -> None:
        """Delete a state that could not be completed."""
        shutil.rmtree(self.path / NEW, ignore_errors=True)

    def position(self) -> Position:
        """Where the newest state stands; the beginning if there is none."""
        state = self.state()
        if state is None:
            return Position()
        return Position(**json.loads((state / "loop.json").read_text(encoding="utf-8")))

    # ---- results ------------------------------------------------------------------------------------------------

    def write_metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write `metrics.csv`, a row an epoch."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / "metrics.csv", text.getvalue())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        write_whole(self.path / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def data_of_run(path: str | Path) -> DataConfig | None:
    """The data a run was trained with, its held-back part never learned from; None if `path` is no run directory."""
    run = RunDirectory(path)
    return run.config().data if (run.path / "config.yaml").is_file() else None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key in GROUPS:
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


# ---- what a run ran on ------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of this library and of those that decide a run's numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"vitrail": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this library's source, with "+" behind it when changed since; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy inside another repository is not its source
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """The machine: processor, cores, threads used, GPUs."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}
