"""Trainer: the one training loop, with its state, checkpoints and resume.

It knows nothing of any task: network, data, loss and metrics are the task's (`tasks.Task`).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import ImageOps
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta, check_class_names
from ..checkpoint.format import save_weights
from ..checkpoint.run_dir import (
    BEST,
    BEST_EPOCH,
    EVENTS,
    EXAMPLES,
    NEW,
    TRAIN_BATCH,
    RunDirectory,
    TrainerState,
    saving,
)
from ..config.data import TRAINING_IMAGES
from ..config.train import TrainConfig
from ..data.fingerprint import Fingerprint, difference, fingerprint
from ..errors import Interrupted, UserError, printable
from ..tasks import Batches, Metrics, Task, build_task, measure
from ..tasks.base import to_device
from ..tasks.micro_batches import training_mode
from ..tasks.teacher import kept, training_only
from ..utils.draw import side_by_side, within
from ..utils.environment import git_commit, hardware, versions
from ..utils.extras import require
from ..utils.files import read_json, shortened
from ..utils.plain import from_dict, typed
from ..utils.plot import draw_curves
from ..utils.progress import Progress
from .compiled import compiled, compiler_errors_explained
from .launch import StopSignal, accelerating, seed_everything
from .memory_errors import memory_errors_explained
from .named_weights import with_named_weights
from .optim import build_optimizer, build_schedule, run_steps, schedule_warnings
from .option_rules import check
from .processes import call_in_all_processes, sharing_failures, with_synced_norms
from .trackers import OWN, Trackers

T = TypeVar("T")

#: optimiser steps between two calls of `log_step` on a GPU, where each waits for the device
LOG_EVERY_GPU = 10
#: images of the first batch that are drawn
SHOWN_IMAGES = 16

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


def fit(config: TrainConfig, on_step: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Train as the recipe says, and leave a run directory.

    Args:
        config: the recipe.
        on_step: called with (optimiser step from 0, its loss over all processes) in the order of the steps.

    Returns:
        The content of `summary.json`: `metrics` are those of the epoch whose weights are kept, by default the best.

    Raises:
        UserError: what the user can put right: values, data, weights, memory, disk, a loss that is not finite.
        Interrupted: stopped by Ctrl-C or SIGTERM, after the state was saved.
    """
    config = with_named_weights(config)
    check(config)
    with (
        accelerating(config) as accelerator,
        StopSignal() as stop,
        RunDirectory(config.output) as run,
        sharing_failures(),
        memory_errors_explained(config, accelerator.num_processes),
        compiler_errors_explained(),
    ):
        return Trainer(config, run, accelerator=accelerator, stop=stop, on_step=on_step).fit()


class IncompatibleState(UserError):
    """A saved state is intact, but this run cannot continue from it."""


class Diverged(UserError):
    """A loss or a weight is NaN or infinite: the recipe is wrong for this network."""


class Trainer:
    """Training of one network: build, start or resume, epochs of steps with validation, results.

    The methods stand in the order in which a run calls them.

    Args:
        config: the recipe.
        run: directory of the run.
        accelerator: Accelerate's object.
        stop: the user's request to stop.
        on_step: see `fit`.

    Attributes:
        state: progress of the run; with the tensors saved beside it, all that a resumed run needs.
        model: what is trained (`Task.trained`), as prepared for devices and processes.
        step_model: what a training step calls: `model`, or its compiled form.
        ema: running average of the weights; None without `ema_decay`.
        best_metrics: accumulated metrics of the best epoch.
        fingerprints: of the data, by split; in the main process only.
        note: what was taken over from the weights of `init`.
        licence: of these weights.
    """

    # ---- build --------------------------------------------------------------------------------------------------

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        accelerator: Any,
        stop: StopSignal,
        on_step: Callable[[int, float], None] | None = None,
    ):
        self.config, self.run, self.accelerator, self.stop, self.on_step = config, run, accelerator, stop, on_step
        self.is_main: bool = accelerator.is_main_process
        self.state = TrainerState(processes=accelerator.num_processes)
        self.note = ""
        self.licence: str | None = None
        self.best_metrics: Metrics | None = None
        self.fingerprints: dict[str, Fingerprint] = {}
        self.events: Any = None  # TensorBoard's writer, in the main process
        self.images_per_second = 0.0  # in the last epoch
        self._pending: list[Tensor] = []  # per step since the last `log_step`: loss, correct images, images

        call_in_all_processes(accelerator, lambda: run.check(config) if self.is_main else None)
        seed_everything(config.seed)
        self.task, self.batches, network = call_in_all_processes(accelerator, self._build)
        if config.freeze == "backbone":
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(self.task.is_head(name, network))
        trained = self.task.trained(network)  # perhaps with layers that are not kept
        optimizer = build_optimizer(
            network, config, lambda name: self.task.is_head(name, network), training_only(trained)
        )
        if config.batch_norm in ("auto", "sync") and accelerator.num_processes > 1:
            trained = with_synced_norms(trained, accelerator.device)
        trained = trained.to(accelerator.device)
        trained = trained.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.ema = (
            ModelEmaV3(kept(trained), decay=config.ema_decay, use_warmup=config.ema_warmup)
            if config.ema_decay is not None
            else None
        )
        self.model, self.optimizer = accelerator.prepare(trained, optimizer)
        self.step_model: nn.Module = compiled(self.model) if config.compile else self.model
        self.schedule = build_schedule(self.optimizer, config, len(self.batches))
        self._clock = time.perf_counter()  # since when `state.seconds` does not count

    def _build(self) -> tuple[Task, Batches, nn.Module]:
        """Task, training batches and network, initialised from the weights of `init` unless a saved state follows."""
        config, accelerator = self.config, self.accelerator
        task = build_task(config)
        check_class_names(task.classes)
        batches = task.train_batches(accelerator.process_index, accelerator.num_processes)
        network = task.build_model()
        resumes = config.resume and self.run.state() is not None
        if config.init and not resumes:
            report = task.init(network, config.init)
            sentences = [report.summary(), report.normalisation_note(task.preprocess)]
            self.note, self.licence = " ".join(filter(None, sentences)), report.licence
        return task, batches, network

    @property
    def network(self) -> nn.Module:
        """The network itself, without the wrappers of devices and processes, and without layers that are not kept."""
        return kept(self.accelerator.unwrap_model(self.model))

    @property
    def eval_network(self) -> nn.Module:
        """The network that is validated and kept: the running average of the weights when there is one."""
        return self.network if self.ema is None else self.ema.module

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        total = run_steps(self.config, len(self.batches))
        return min(total, self.config.max_steps or total)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run; the last one may end early."""
        return -(-run_steps(self.config, len(self.batches)) // len(self.batches))

    @property
    def lr(self) -> float:
        """Learning rate of the next step; of several parameter groups the largest."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def arithmetic(self) -> str:
        """Precision of the training steps, and whether they are compiled, in words."""
        config = self.config
        precision = f"{config.precision} with TF32" if config.tf32 else config.precision
        return f"{precision}, compiled (the first step takes minutes)" if config.compile else precision

    @property
    def eval_label(self) -> str:
        """Name of the validation split in lines and curves."""
        return TRAINING_IMAGES if self.task.measures_training else "val"

    # ---- start or resume ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lock the run directory, load the saved state with `resume`, and open progress line and TensorBoard log.

        Raises:
            UserError: the directory must not be used (see `RunDirectory.check`), or see `load_state`.
        """
        call_in_all_processes(self.accelerator, lambda: self.run.begin(self.config) if self.is_main else None)
        call_in_all_processes(self.accelerator, self._resume)
        self.progress = Progress(self.total_steps, self.state.step, quiet=not self.is_main, measured=self.eval_label)
        self.trackers = Trackers(self.accelerator, self.config, self.progress.say)

    def _resume(self) -> None:
        if self.is_main:
            self.fingerprints = {
                "training": fingerprint(self.batches.dataset),
                "validation": fingerprint(self.task.eval_set),
            }
        if self.config.resume:
            self.load_state()
        if self.is_main and self.config.resume:
            self.run.write_config(self.config)
        if self.is_main and OWN in self.config.tracker:
            self.events = open_event_writer(self.run, self.state.step)

    def load_state(self) -> None:
        """Load the newest saved state; does nothing if the run ended before its first one.

        Raises:
            UserError: it was saved by another number of processes or with other data, or is damaged.
        """
        folder = self.run.state()
        if folder is None:
            return
        try:
            state = self.run.trainer_state()
            self._check_continues(state)
            self._check_data(folder)
            self._check_consistent(state)
            self.accelerator.load_state(str(folder))
            if self.ema is not None:
                self.ema.module.load_state_dict(load_file(folder / EMA))
            if (folder / BEST_METRICS).is_file():
                self.best_metrics = self.task.metrics()
                self.best_metrics.load([load_file(folder / BEST_METRICS)])
            self.note, self.licence = typed(tuple[str, str | None], read_json(folder / NOTE), NOTE)
        except IncompatibleState:
            raise
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else type(error).__name__
            raise UserError(
                f"The saved state {folder} is damaged ({reason.rstrip('.')}); start anew with --overwrite, or from its "
                "weights with --init."
            ) from error
        self.state = state
        self.schedule.step_update(state.step)

    def _check_continues(self, state: TrainerState) -> None:
        """Refuse a state of another number of processes, or of more steps than this run is to have.

        Raises:
            IncompatibleState: saying which.
        """
        processes, max_steps = self.accelerator.num_processes, self.config.max_steps
        if state.processes != processes:
            raise IncompatibleState(
                f"The run in {self.run.path} was saved by {state.processes} processes and cannot go on with "
                f"{processes}."
            )
        if state.step > (max_steps or state.step):
            raise IncompatibleState(
                f"--max_steps {max_steps}: the run in {self.run.path} stands at step {state.step} already; give more, "
                "or leave it out."
            )

    def _check_data(self, folder: Path) -> None:
        """Refuse data and a teacher other than those the run began with.

        Raises:
            IncompatibleState: naming the first difference.
        """
        if not self.is_main:
            return
        stored = read_json(folder / DATA)
        if stored.get(TEACHER) != self.task.teacher_digest:
            raise IncompatibleState(
                f"--resume goes on with the same teacher, but --teacher {self.config.teacher} is not the one that the "
                f"run in {self.run.path} began with."
            )
        for split, now in self.fingerprints.items():
            before = from_dict(Fingerprint, stored.get(split), f"{split}.")
            if (change := difference(before, now)) is not None:
                raise IncompatibleState(
                    f"--resume goes on with the same data, but the {split} images of the run in {self.run.path} have "
                    f"changed: {change}. Bring them back, or start from its weights with --init {self.run.path} and "
                    "another --output."
                )

    def _check_consistent(self, state: TrainerState) -> None:
        """Refuse a state that no run of this length can have.

        Raises:
            UserError: a number is out of its range, or two contradict each other.
        """
        steps, metric = len(self.batches), self.task.best_metric
        numbers = {"epoch", f"val_{metric}", "step", "lr", "train_loss", "seconds", "images_per_second"}
        epochs: list[Any] = [row.get("epoch") for row in state.history]
        numeric = all(
            isinstance(value, (int, float))
            for row in state.history
            for value in (*row.values(), *map(row.get, numbers))
        )
        best = state.best
        valid = {
            "epoch": 0 <= state.epoch < self.total_epochs,
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

    # ---- the run ------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        """Train to the end of the run; returns the content of `summary.json`."""
        self.start()
        state = self.state
        with self.progress:
            for line in self.opening_lines():
                self.progress.say(line)
            while state.step < self.total_steps or state.batch:
                self.train_epoch()
                last = state.step >= self.total_steps
                if last or (state.epoch + 1) % self.config.eval_every == 0:
                    self.evaluate_epoch()
                if last or self.has_stalled():
                    break
                state.next_epoch()
                self.save_state()
            return self.finish()

    def opening_lines(self) -> list[str]:
        """First lines of a run: network, size and device, then warnings and notes."""
        config, task, done = self.config, self.task, self.state.step
        learnable = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        height, width = task.preprocess.image_size
        lines = [
            f"{config.model}: {learnable:,} parameters to learn, {len(task.classes)} classes, {height}x{width} pixels, "
            f"{len(self.batches)} steps an epoch, {self.accelerator.device}, {self.arithmetic}, "
            f"{self.accelerator.num_processes} process(es), {torch.get_num_threads()} thread(s)",
            *self.length_warnings(),
        ]
        if done:
            finished = done == self.total_steps or (self.state.batch == len(self.batches) and self.has_stalled())
            lines.append(
                "the run is complete: nothing is left to do"
                if finished
                else f"going on at step {done} of {self.total_steps}"
            )
        return [*lines, *task.notes(), *([self.note] if self.note else [])]

    def length_warnings(self) -> list[str]:
        """Warnings where batches, steps or learning rate differ from the given numbers."""
        config, steps = self.config, len(self.batches)
        total = run_steps(config, steps)
        warnings = schedule_warnings(config, steps)
        batch = self.batches.batch_size
        share = batch // self.accelerator.num_processes
        if config.accumulate > share:
            warnings.append(
                f"--accumulate {config.accumulate} is more than the {share} image(s) that each process has of a batch: "
                f"they are computed in {share} micro-batch(es)"
            )
        if config.optim.lr_base_batch and batch < config.batch_size:
            warnings.append(
                f"the learning rate is that of --batch_size {config.batch_size} (--optim.lr_base_batch "
                f"{config.optim.lr_base_batch}), though batches have {batch} images"
            )
        if config.eval_every > self.total_epochs:
            warnings.append(
                f"--eval_every {config.eval_every} is more than the {self.total_epochs} epochs of the run: it is "
                "measured once, at its end"
            )
        if config.patience is not None and config.patience >= self.total_epochs:
            warnings.append(
                f"--patience {config.patience} never ends a run of {self.total_epochs} epochs: give a smaller number"
            )
        if config.checkpoint_every > total:
            warnings.append(
                f"--checkpoint_every {config.checkpoint_every} is more than the {total} steps of the run: the state is "
                "saved at the end of each epoch"
            )
        if (config.max_steps or 0) > total:
            warnings.append(
                f"--max_steps {config.max_steps} is more than the whole run: it ends after {total} steps (--epochs "
                f"{config.epochs} of {steps} each); --epochs null --iterations {config.max_steps} trains as many"
            )
        return warnings

    # ---- one epoch ----------------------------------------------------------------------------------------------

    def train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        config, state, started, seen = self.config, self.state, time.perf_counter(), self.state.seen
        log_every = LOG_EVERY_GPU if self.accelerator.device.type == "cuda" else 1
        self.set_train_mode()
        self.batches.set_epoch(state.epoch, state.batch)
        for batch in self._remaining_batches():
            self._pending.append(self.train_step(batch))
            state.batch, state.step = state.batch + 1, state.step + 1
            save = bool(config.checkpoint_every) and state.step % config.checkpoint_every == 0
            if save or state.step % log_every == 0:
                self.log_step()
            if save and state.batch < len(self.batches):
                self.save_state()
            if state.step >= self.total_steps:
                break
        self.log_step()
        self.images_per_second = (state.seen - seen) / (time.perf_counter() - started)

    def set_train_mode(self) -> None:
        """Set training mode, except for frozen modules (see `training_mode`)."""
        self.model.train()
        training_mode(self.network, self.config, lambda name: self.task.is_head(name, self.network))

    def _remaining_batches(self) -> Iterator[Any]:
        """The batches of the epoch that are not done yet."""
        if self.state.step >= self.total_steps:
            return
        if self.stop.requested and self.accelerator.num_processes == 1:
            self.interrupt()
        try:
            yield from self.batches
        except RuntimeError:
            if not self.stop.requested:  # a Ctrl-C also ends the loader's worker processes, which is no error
                raise
            self.interrupt()

    def train_step(self, batch: Any) -> Tensor:
        """One optimiser step over this process's share of the batch.

        Returns:
            (loss, correct images, images), still on the device.
        """
        from accelerate.utils import send_to_device

        config, accelerator, task, step = self.config, self.accelerator, self.task, self.state.step
        # the randomness of a step (drop path, dropout, Mixup) depends on the seed, the step and the process alone, so
        # that a resumed run draws the same numbers
        seed_everything(config.seed, step, accelerator.process_index)
        batch = task.mix(send_to_device(batch, accelerator.device, non_blocking=True))
        if step == 0 and self.is_main:
            self._draw_batch(batch)
        micro_batches = task.split(batch, config.accumulate)
        total = torch.zeros(3, device=accelerator.device)
        for i, (micro_batch, share) in enumerate(micro_batches):
            # processes exchange gradients with the last one only
            with contextlib.nullcontext() if i + 1 == len(micro_batches) else accelerator.no_sync(self.model):
                loss, correct = task.loss(self.step_model, micro_batch)
                accelerator.backward(loss * share)
            total += torch.stack(
                (loss.detach() * share, correct.float(), correct.new_full((), len(micro_batch[0])).float())
            )
        if accelerator.device.type == "cpu" and not math.isfinite(total[0]):
            return total  # the weights stay as they are; `log_step` ends the run
        if config.optim.clip_grad is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step_update(step + 1)
        if self.ema is not None:
            self.ema.update(self.network, step=step + 1)
        return total

    def _draw_batch(self, batch: Any) -> None:
        """Write the first images of the first batch, augmented, with what is to be learned of each."""
        drawn = self._try_drawing(TRAIN_BATCH, lambda: self.task.batch_images(to_device(batch, "cpu"), SHOWN_IMAGES))
        if drawn:
            sheet = side_by_side([ImageOps.expand(within(image, 320), 3, "white") for image in drawn], columns=4)
            file = BytesIO()
            sheet.save(file, "PNG")
            with saving(self.run.path):
                self.run.write(TRAIN_BATCH, file.getvalue())

    def log_step(self) -> None:
        """Sum the steps since the last call over all processes, log them, and obey a request to stop.

        Raises:
            UserError: a loss is not finite.
            Interrupted: the user asked to stop.
        """
        if not self._pending:
            return
        state = self.state
        table = torch.stack(self._pending)
        self._pending = []
        # one more row, so that every process learns of a request to stop at the same step
        request = torch.full_like(table[:1], float(self.stop.requested))
        table = self.accelerator.reduce(torch.cat((table, request)), "sum").cpu()
        stop, steps = bool(table[-1, 0]), table[:-1]
        steps[:, 0] /= self.accelerator.num_processes
        first = state.step - len(steps)
        for step, (loss, correct, images) in enumerate(steps.tolist(), first):
            if not math.isfinite(loss):
                raise self._diverged(step)
            state.add(loss, correct, int(images))
            if self.on_step is not None:
                self.on_step(step, loss)
            self.log_scalar("train/loss", loss, step)
        self.log_scalar("train/lr", self.lr, state.step)
        self.progress.step(
            steps=len(steps),
            images=int(steps[:, 2].sum()),
            epoch=state.epoch + 1,
            epochs=self.total_epochs,
            loss=state.train_loss,
            accuracy=state.train_accuracy,
        )
        if stop:
            self.interrupt()

    def log_scalar(self, name: str, value: float, step: int) -> None:
        """Log a number, in the main process."""
        if self.is_main:
            self.trackers.log({name: value}, step)
        if self.events is not None:
            with saving(self.run.path):
                self.events.add_scalar(name, value, step)

    def interrupt(self) -> None:
        """Save the state and end the run.

        Raises:
            Interrupted: always.
        """
        self.log_step()
        self.save_state()
        raise Interrupted(
            f"Stopped at step {self.state.step} of {self.total_steps}; the state is saved: go on with the same command "
            f"and --resume (--output {self.run.path})."
        )

    # ---- validation ---------------------------------------------------------------------------------------------

    def evaluate_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far (or with `keep` the last), and write the epoch's row.

        Raises:
            UserError: the weights are not finite.
        """
        state, best_metric = self.state, self.task.best_metric
        self._check_finite()  # the loss after the last step is unknown
        metrics = self.validate()
        values = metrics.compute()
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        is_best = (
            self.config.keep == "last" or not state.best or is_better(numbers[best_metric], state.best[best_metric])
        )
        if is_best:
            state.best, self.best_metrics = {"epoch": state.epoch + 1, **numbers}, metrics
        row = self._epoch_row(numbers)
        state.history = [old for old in state.history if old["epoch"] != row["epoch"]] + [row]
        if self.is_main:
            self._write_epoch(row, values, is_best)

    def has_stalled(self) -> bool:
        """True if `patience` epochs had passed since the best one when the network was last validated.

        The answer follows from the state alone, so that all processes and a resumed run give the same.
        """
        patience, state = self.config.patience, self.state
        return (
            patience is not None and bool(state.best) and state.history[-1]["epoch"] - state.best["epoch"] >= patience
        )

    def validate(self) -> Metrics:
        """Metrics of the validation images, accumulated over all processes."""
        from accelerate.utils import gather_object

        accelerator, world = self.accelerator, self.accelerator.num_processes
        return measure(
            self.eval_network,
            self.task.eval_batches(accelerator.process_index, world),
            self.task.metrics(),
            device=accelerator.device,
            autocast=accelerator.autocast,
            gather=(lambda state: gather_object([state])) if world > 1 else None,
            each=(lambda: self.interrupt() if self.stop.requested else None) if world == 1 else None,
            infer=self.task.infer,
        )

    def _epoch_row(self, numbers: Mapping[str, float]) -> dict[str, Any]:
        """The epoch's row of metrics.csv."""
        state, accuracy = self.state, self.state.train_accuracy
        return {
            "epoch": state.epoch + 1,
            "step": state.step,
            "lr": self.lr,
            "train_loss": state.train_loss,
            **({} if accuracy is None else {"train_accuracy": accuracy}),
            **{f"val_{name}": value for name, value in numbers.items()},
            "images_per_second": round(self.images_per_second, 1),
            "seconds": round(self.seconds(), 2),
            BEST_EPOCH: state.best["epoch"],
        }

    def _write_epoch(self, row: dict[str, Any], values: dict[str, Any], is_best: bool) -> None:
        """Write the best weights, metrics.csv, the TensorBoard log and the epoch's line."""
        run, task = self.run, self.task
        with saving(run.path):
            if is_best:
                run.files.claim([BEST])
                save_weights(run.path / BEST, self.eval_network.state_dict(), self.weights_meta(values))
            run.write_metrics(self.state.history)
            for name, value in row.items():
                self.log_scalar(f"epoch/{name}", value, self.state.step)
            if self.events is not None:
                self.events.flush()
        is_news = is_best and self.config.keep == "best"
        self.progress.epoch(row, self.total_epochs, metric=task.best_metric, percent=task.percent, best=is_news)

    def weights_meta(self, values: dict[str, Any]) -> WeightsMeta:
        """The description stored with the weights.

        Args:
            values: their metrics.
        """
        config, task = self.config, self.task
        return WeightsMeta(
            model=config.model,
            model_options=task.model_options,
            head=task.head,
            head_options=task.head_options,
            settings=task.settings,
            task=task.name,
            classes=list(task.classes),
            preprocess=task.preprocess,
            licence=self.licence,
            training_data=task.training_data,
            metrics={name: value for name, value in values.items() if isinstance(value, (int, float))},
            note=self.note,
        )

    def _check_finite(self) -> None:
        """Refuse weights that are NaN or infinite.

        Raises:
            Diverged: they are.
        """
        if not (all_finite(self.network) and all_finite(self.eval_network)):
            raise self._diverged(self.state.step)

    def _diverged(self, step: int) -> Diverged:
        """The error of a loss or a weight that is NaN or infinite."""
        saved = f"the last good state is in {self.run.path / 'last'}" if self.run.state() else "no state was saved yet"
        return Diverged(
            f"The training diverged: the loss of step {step} is not finite; {saved}. Try a lower --lr, a longer "
            "--optim.warmup_epochs, --optim.clip_grad 1, or --precision fp32."
        )

    # ---- the saved state ----------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Save all that a resumed run needs, atomically.

        Raises:
            UserError: the disk is full or the weights are not finite; the state saved before stays.
        """
        self._check_finite()
        state, run, accelerator = self.state, self.run, self.accelerator
        state.seconds, self._clock = self.seconds(), time.perf_counter()
        try:
            with saving(run.path):
                if self.is_main:
                    run.new_state()
                accelerator.wait_for_everyone()
                accelerator.save_state(str(run.path / NEW))
                if self.is_main:
                    self._save_extras(run.path / NEW)
                accelerator.wait_for_everyone()
                if self.is_main:
                    run.commit_state(state)
                accelerator.wait_for_everyone()
        except BaseException:
            if self.is_main:
                run.drop_new_state()
            raise

    def _save_extras(self, folder: Path) -> None:
        """Write running average, best metrics, note and fingerprints, which Accelerate does not save."""
        if self.ema is not None:
            save_file(_on_cpu(self.ema.module.state_dict()), folder / EMA)
        if self.best_metrics is not None:
            save_file(_on_cpu(self.best_metrics.state()), folder / BEST_METRICS)
        (folder / NOTE).write_text(json.dumps([self.note, self.licence]), encoding="utf-8")
        prints = {split: asdict(known) for split, known in self.fingerprints.items()}
        (folder / DATA).write_text(json.dumps({**prints, TEACHER: self.task.teacher_digest}), encoding="utf-8")

    def seconds(self) -> float:
        """Seconds of training, over all starts of the run."""
        return self.state.seconds + time.perf_counter() - self._clock

    # ---- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Save the state, draw curves and examples and write `summary.json`; returns its content."""
        self.save_state()
        run = self.run
        if self.stopped_early:
            self.progress.say(
                f"stopped after epoch {self.state.epoch + 1} of {self.total_epochs}: none since epoch "
                f"{self.state.best['epoch']} was better (--patience {self.config.patience})"
            )
        metrics = self.task.metrics()
        metrics.load([(self.best_metrics or metrics).state()])
        summary = self._summary(metrics.compute())
        if self.is_main:
            with saving(run.path):
                with run.files.adding() as (folder, kept):
                    summary["examples"] = self._draw_examples(folder / EXAMPLES)
                    self._draw_curves(folder / "curves.png")
                    self._try_drawing("The report", lambda: metrics.report(folder))
                for name in kept:
                    self.progress.say(f"{run.path / name} was not written by this run and stays as it is.")
                run.write_summary(summary)
                if self.events is not None:
                    self.events.close()
        else:
            summary["examples"] = self._draw_examples(None)
        self.accelerator.wait_for_everyone()
        return summary

    @property
    def stopped_early(self) -> bool:
        """True if `patience` ended the run before its last step."""
        return self.state.step < self.total_steps and self.has_stalled()

    def _summary(self, values: dict[str, Any]) -> dict[str, Any]:
        """The content of `summary.json`, all but the examples.

        Args:
            values: metrics of the best epoch.
        """
        state = self.state
        return {
            "model": self.config.model,
            "task": self.task.name,
            "metrics": values,
            "measured_on": "validation images" if self.eval_label == "val" else self.eval_label,
            BEST_EPOCH: state.best["epoch"],
            "stopped_early": self.stopped_early,
            "final": state.history[-1],
            "epochs": state.epoch + 1,
            "steps": state.step,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "seconds": round(self.seconds(), 2),
            "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "precision": self.config.precision,
            "tf32": self.config.tf32,
            "compiled": self.config.compile,
            "hardware": hardware(),
            "versions": versions(),
            "commit": git_commit(),
            "note": self.note,
        }

    def _draw_curves(self, file: Path) -> None:
        """Draw the metrics of each epoch."""
        history, metric = self.state.history, self.task.best_metric
        self._try_drawing(file.name, lambda: draw_curves(history, metric, file, self.eval_label))

    def _draw_examples(self, folder: Path | None) -> list[dict[str, Any]]:
        """Predictions for a few validation images, drawn into a folder; none where drawing fails."""
        network, device = self.eval_network, self.accelerator.device
        return self._try_drawing(EXAMPLES, lambda: self.task.examples(network, device, 8, folder)) or []

    def _try_drawing(self, name: str, draw: Callable[[], T]) -> T | None:
        """The result of `draw`; a failure that is no mistake of the user's is only reported, as the run is worth more
        than its plots."""
        try:
            return draw()
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:
            self.progress.say(f"{name} could not be drawn: {type(error).__name__}: {printable(str(error))[:200]}")
            return None


# ---- helper functions -------------------------------------------------------------------------------------------


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


def all_finite(model: nn.Module) -> bool:
    """True if every floating-point parameter and buffer is free of NaN and infinity."""
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.numel()]
    return all(bool(torch.isfinite(norm)) for norm in torch._foreach_norm(tensors, float("inf")))


def is_better(value: float, best: float) -> bool:
    """True if a metric is better than the best so far; any number is better than NaN."""
    return value > best or (math.isnan(best) and not math.isnan(value))


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies that share no memory, as safetensors asks for."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
