"""Trackers: metrics and losses of a run for TensorBoard, and in Weights & Biases, MLflow or Trackio."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.run_dir import EVENTS, RunDirectory, saving
from ..config.train import TrainConfig
from ..errors import UserError, printable
from ..utils.extras import require
from ..utils.plain import to_dict

#: written by the run itself, into its directory
OWN = "tensorboard"
#: what a tracker calls the runs of this library, unless its own variable names another project
PROJECT = "vitrail"
#: tracker -> the option of its start that names the run
NAMED_BY = {"wandb": "name", "mlflow": "run_name", "trackio": "name"}


def open_event_writer(run: RunDirectory, step: int) -> Any:
    """TensorBoard's writer, continuing at an optimiser step; its file is listed as one of the run's."""
    writer = require("torch.utils.tensorboard", "train").SummaryWriter
    folder = run.path / EVENTS
    with saving(run.path):
        before = set(folder.glob("*"))
        events = writer(str(folder), purge_step=step or None)
        events.flush()
        run.files.adopt(f"{EVENTS}/{file.name}" for file in set(folder.glob("*")) - before)
    return events


def others(config: TrainConfig) -> list[str]:
    """The trackers that Accelerate drives, each once.

    Raises:
        UserError: one is not installed.
    """
    wanted = list(dict.fromkeys(name for name in config.tracker if name != OWN))
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--tracker {name} needs {name}, which is not installed: pip install {name}.")
    return wanted


class Trackers:
    """The trackers of one run.

    A tracker that fails later, such as one whose server is gone, is left alone after a sentence: the run is worth more.

    Args:
        accelerator: Accelerate's object, made with `log_with`.
        config: the recipe, which is stored with the run.
        tell: called with a sentence on a tracker that failed.

    Raises:
        UserError: one cannot start, such as without an account.
    """

    def __init__(self, accelerator: Any, config: TrainConfig, tell: Callable[[str], None]):
        self.accelerator, self.tell = accelerator, tell
        self.works = bool(names := others(config))
        if not self.works:
            return
        run = Path(config.output).name
        try:
            accelerator.init_trackers(
                os.environ.get("WANDB_PROJECT", PROJECT),
                config=_flat(to_dict(config)),
                init_kwargs={name: {NAMED_BY[name]: run} for name in names},
            )
        except Exception as error:
            raise UserError(f"--tracker {','.join(names)} cannot start: {_reason(error)}") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Pass numbers on to all trackers."""
        if not self.works:
            return
        try:
            self.accelerator.log(dict(values), step=step)
        except Exception as error:
            self.works = False
            self.tell(f"The tracker failed and gets nothing more: {_reason(error)}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and texts by dotted name, as trackers take them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {printable(lines[0])[:200]}." if lines else f"{type(error).__name__}."
