"""What a run directory tells without its data: recipe, log, summary, fingerprints of the data."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.run_dir import BEST, CONFIG, RunDirectory, read_log
from ..config.train import TrainConfig
from ..engine.option_rules import names, option
from ..engine.saved_state import DATA, TEACHER
from ..errors import UserError
from ..utils.files import read_json, shortened
from ..utils.plain import typed

#: options that say how a run is started, and not what it learns
STARTING = ("resume", "overwrite")
#: metrics that are tables, and the entries that their rows must have
TABLES = {"per_class": ("class",), "calibration": ("above", "up_to", "images", "confidence", "accuracy")}


@dataclass
class Run:
    """A run directory's own account of the run.

    Attributes:
        path: of the directory.
        config: the recipe.
        rows: a row for each measured epoch, numbers by column; None where there is none.
        summary: content of `summary.json`; empty of a run that is not finished.
        fingerprints: of the data, by split: count, classes, hashes.
        weights: its best weights; None if none were saved yet.
    """

    path: Path
    config: TrainConfig
    rows: list[dict[str, float | None]]
    summary: dict[str, Any]
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: Path | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the best epoch, as the run stored them."""
        return self.summary.get("metrics", {})

    @property
    def epochs(self) -> int:
        """Number of the last epoch in the log, which with `eval_every` has no row for each."""
        return int(self.rows[-1].get("epoch") or len(self.rows)) if self.rows else 0

    def unfinished(self) -> str | None:
        """A sentence on a run that did not reach its end; None of a finished one."""
        if self.summary:
            return None
        planned = f" of {self.config.epochs}" if self.config.epochs else ""
        state = "it has saved no weights yet" if self.weights is None else "its best weights so far are measured"
        return f"The run is not finished: {self.epochs}{planned} epochs are in its log, and {state}."

    def columns(self) -> list[str]:
        """Names of the log's columns, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def command(self) -> str:
        """The command that starts the same run: every value of the recipe that is not the default."""
        return command_of(self.config)


def command_of(config: TrainConfig) -> str:
    """`vitrail train` with every option that is not at its default."""
    default, words = TrainConfig(), ["vitrail", "train"]
    for name in names():
        if name not in STARTING and option(config, name) != option(default, name):
            value = _spelled(option(config, name))
            # a value that begins with -- would be taken for an option
            words += [f"--{name}={value}"] if value.startswith("--") else [f"--{name}", value]
    return shlex.join(words)


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_run(path: str | Path) -> Run:
    """The account of a run directory.

    Raises:
        UserError: it is no run directory, or one of its files is damaged.
    """
    path = Path(path)
    if not path.is_dir() or not (path / CONFIG).is_file():
        what = "has no config.yaml" if path.is_dir() else "is no folder"
        raise UserError(f"{path} {what}: give the folder that vitrail train wrote a run to (--output).")
    run = RunDirectory(path)
    summary = path / "summary.json"
    return Run(
        path,
        run.config(),
        read_log(path),
        _summary(summary) if summary.is_file() else {},
        fingerprints=_fingerprints(run),
        weights=path / BEST if (path / BEST).is_file() else None,
    )


def _summary(file: Path) -> dict[str, Any]:
    """The content of `summary.json`, whose metrics are numbers, or tables as a metric writes them."""
    found = typed(dict, read_json(file), str(file))
    metrics = typed(dict, found.get("metrics", {}), f"{file}: metrics")
    for name, value in metrics.items():
        needed = TABLES.get(name, ())
        good = _is_table(value, needed) if name in TABLES else value is None or type(value) in (int, float, str)
        if not good:
            raise UserError(f"{file} is damaged: its metric {shortened(name)} is none that a run writes.")
    return found


def _is_table(value: Any, needed: tuple[str, ...]) -> bool:
    """True for rows with the same entries, those that are needed among them; all but the class are numbers or None."""
    if not isinstance(value, list) or not all(isinstance(row, dict) and row.keys() == value[0].keys() for row in value):
        return False
    rows = [(name, one) for row in value for name, one in row.items()]
    plain = all(type(one) is str if name == "class" else one is None or type(one) in (int, float) for name, one in rows)
    return plain and all(name in row for row in value for name in needed)


def _fingerprints(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """What the newest saved state knows of its data; {} where there is none."""
    state = run.state()
    if state is None or not (state / DATA).is_file():
        return {}
    found = typed(dict, read_json(state / DATA), str(state / DATA))
    splits = {split: value for split, value in found.items() if split != TEACHER}
    return {str(split): typed(dict, value, str(state / DATA)) for split, value in splits.items()}
