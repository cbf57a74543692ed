"""The saved state of a training run: written whole, and taken up again only where the run can go on from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint.run_dir import NEW, TrainerState, saving
from ..data.fingerprint import Fingerprint, difference, fingerprint
from ..errors import UserError
from ..tasks import Metrics
from ..utils.files import read_json, shortened
from ..utils.plain import from_dict, typed
from .setup import Setup

# files in the folder of a saved state, beside Accelerate's and the trainer state itself
#: running average of the weights
EMA = "ema.safetensors"
#: accumulated metrics of the best epoch
BEST_METRICS = "best_metrics.safetensors"
#: note and licence of the weights the run was initialised from
NOTE = "note.json"
#: fingerprints of the data and the teacher
DATA = "data.json"
#: entry of that file for the teacher
TEACHER = "teacher"


class IncompatibleState(UserError):
    """A saved state is intact, but this run cannot continue from it."""


class SavedState:
    """The state of a run on disk.

    Args:
        setup: what is trained; `load` puts the saved tensors into it.

    Attributes:
        fingerprints: of the data, by split; in the main process only.

    Raises:
        UserError: images cannot be read.
    """

    def __init__(self, setup: Setup):
        self.setup = setup
        self.fingerprints: dict[str, Fingerprint] = {}
        if setup.is_main:
            self.fingerprints = {
                "training": fingerprint(setup.batches.dataset),
                "validation": fingerprint(setup.task.eval_set),
            }

    def save(self, state: TrainerState, best_metrics: Metrics | None) -> None:
        """Save all that a resumed run needs, atomically.

        Raises:
            UserError: the disk is full; the state saved before stays.
        """
        setup, run, accelerator = self.setup, self.setup.run, self.setup.accelerator
        try:
            with saving(run.path):
                if setup.is_main:
                    run.new_state()
                accelerator.wait_for_everyone()
                accelerator.save_state(str(run.path / NEW))
                if setup.is_main:
                    self._save_extras(run.path / NEW, best_metrics)
                accelerator.wait_for_everyone()
                if setup.is_main:
                    run.commit_state(state)
                accelerator.wait_for_everyone()
        except BaseException:
            if setup.is_main:
                run.drop_new_state()
            raise

    def _save_extras(self, folder: Path, best_metrics: Metrics | None) -> None:
        """Write running average, best metrics, note and fingerprints, which Accelerate does not save."""
        if self.setup.ema is not None:
            save_file(_on_cpu(self.setup.ema.module.state_dict()), folder / EMA)
        if best_metrics is not None:
            save_file(_on_cpu(best_metrics.state()), folder / BEST_METRICS)
        (folder / NOTE).write_text(json.dumps([self.setup.note, self.setup.licence]), encoding="utf-8")
        prints = {split: asdict(known) for split, known in self.fingerprints.items()}
        (folder / DATA).write_text(json.dumps({**prints, TEACHER: self.setup.task.teacher_digest}), encoding="utf-8")

    def load(self) -> tuple[TrainerState, Metrics | None] | None:
        """Load the newest saved state into the setup.

        Returns:
            Progress of the run and the accumulated metrics of its best epoch; None if it ended before its first state.

        Raises:
            UserError: it was saved by another number of processes or with other data, or is damaged.
        """
        setup, run = self.setup, self.setup.run
        folder = run.state()
        if folder is None:
            return None
        try:
            state = run.trainer_state()
            self._check_continues(state)
            self._check_data(folder)
            self._check_consistent(state)
            setup.accelerator.load_state(str(folder))
            if setup.ema is not None:
                setup.ema.module.load_state_dict(load_file(folder / EMA))
            best_metrics = None
            if (folder / BEST_METRICS).is_file():
                best_metrics = setup.task.metrics()
                best_metrics.load([load_file(folder / BEST_METRICS)])
            setup.note, setup.licence = typed(tuple[str, str | None], read_json(folder / NOTE), NOTE)
        except IncompatibleState:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else type(error).__name__
            raise UserError(
                f"The saved state {folder} is damaged ({reason.rstrip('.')}); start anew with --overwrite, or from its "
                "weights with --init."
            ) from error
        setup.schedule.step_update(state.step)
        return state, best_metrics

    def _check_continues(self, state: TrainerState) -> None:
        """Refuse a state of another number of processes, or of more steps than this run is to have.

        Raises:
            IncompatibleState: saying which.
        """
        setup, run = self.setup, self.setup.run
        processes, max_steps = setup.accelerator.num_processes, setup.config.max_steps
        if state.processes != processes:
            raise IncompatibleState(
                f"The run in {run.path} was saved by {state.processes} processes and cannot go on with {processes}."
            )
        if state.step > (max_steps or state.step):
            raise IncompatibleState(
                f"--max_steps {max_steps}: the run in {run.path} stands at step {state.step} already; give more, "
                "or leave it out."
            )

    def _check_data(self, folder: Path) -> None:
        """Refuse data and a teacher other than those the run began with.

        Raises:
            IncompatibleState: naming the first difference.
        """
        setup, run = self.setup, self.setup.run
        if not setup.is_main:
            return
        stored = read_json(folder / DATA)
        if stored.get(TEACHER) != setup.task.teacher_digest:
            raise IncompatibleState(
                f"--resume goes on with the same teacher, but --teacher {setup.config.teacher} is not the one that the "
                f"run in {run.path} began with."
            )
        for split, now in self.fingerprints.items():
            before = from_dict(Fingerprint, stored.get(split), f"{split}.")
            if (change := difference(before, now)) is not None:
                raise IncompatibleState(
                    f"--resume goes on with the same data, but the {split} images of the run in {run.path} have "
                    f"changed: {change}. Bring them back, or start from its weights with --init {run.path} and "
                    "another --output."
                )

    def _check_consistent(self, state: TrainerState) -> None:
        """Refuse a state that no run of this length can have.

        Raises:
            UserError: a number is out of its range, or two contradict each other.
        """
        steps, metric = len(self.setup.batches), self.setup.task.best_metric
        numbers = {"epoch", f"val_{metric}", "step", "lr", "train_loss", "seconds", "images_per_second"}
        epochs: list[Any] = [row.get("epoch") for row in state.history]
        numeric = all(
            isinstance(value, (int, float))
            for row in state.history
            for value in (*row.values(), *map(row.get, numbers))
        )
        best = state.best
        valid = {
            "epoch": 0 <= state.epoch < self.setup.total_epochs,
            "batch": 0 <= state.batch <= steps,
            "step": state.step == state.epoch * steps + state.batch,
            "seen": state.seen >= 0,
            "seconds": state.seconds >= 0,
            "history": numeric and epochs == sorted(set(epochs)) and all(0 < e <= state.epoch + 1 for e in epochs),
            "best": not best or (best.get("epoch") in epochs and isinstance(best.get(metric), (int, float))),
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise UserError(f"{name} is {shortened(getattr(state, name))}, which does not fit the rest")


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies that share no memory, as safetensors asks for."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
