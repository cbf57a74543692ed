"""Trainer: the one training loop, from the first step to the results.

It knows nothing of any task: network, data, loss and metrics are the task's (`tasks.Task`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.format import save_weights
from ..checkpoint.run_dir import BEST, BEST_EPOCH, RunDirectory, TrainerState, saving
from ..config.train import TrainConfig
from ..errors import Interrupted, UserError
from ..tasks import Metrics, measure
from ..utils.progress import Progress
from .compiled import compiler_errors_explained
from .launch import StopSignal, accelerating, seed_everything
from .memory_errors import memory_errors_explained
from .named_weights import with_named_weights
from .opening_lines import opening_lines
from .option_rules import check
from .processes import call_in_all_processes, sharing_failures
from .run_results import draw_first_batch, summary_of, write_results
from .saved_state import SavedState
from .setup import Setup
from .trackers import OWN, Trackers, open_event_writer

#: optimiser steps between two calls of `log_step` on a GPU, where each waits for the device
LOG_EVERY_GPU = 10


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


class Diverged(UserError):
    """A loss or a weight is NaN or infinite: the recipe is wrong for this network."""


class Trainer(Setup):
    """Training of one network: start or resume, epochs of steps with validation, results.

    The methods stand in the order in which a run calls them; `Setup` is what they work on.

    Args:
        config: the recipe.
        run: directory of the run.
        accelerator: Accelerate's object.
        stop: the user's request to stop.
        on_step: see `fit`.

    Attributes:
        state: progress of the run; with the tensors saved beside it, all that a resumed run needs.
        best_metrics: accumulated metrics of the best epoch.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunDirectory,
        accelerator: Any,
        stop: StopSignal,
        on_step: Callable[[int, float], None] | None = None,
    ):
        super().__init__(config, run, accelerator)
        self.stop, self.on_step = stop, on_step
        self.state = TrainerState(processes=accelerator.num_processes)
        self.best_metrics: Metrics | None = None
        self.events: Any = None  # TensorBoard's writer, in the main process
        self.images_per_second = 0.0  # in the last epoch
        self._pending: list[Tensor] = []  # per step since the last `log_step`: loss, correct images, images
        self._clock = time.perf_counter()  # since when `state.seconds` does not count

    # ---- start or resume ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lock the run directory, load the saved state with `resume`, and open progress line and TensorBoard log.

        Raises:
            UserError: the directory must not be used (see `RunDirectory.check`), or see `SavedState.load`.
        """
        call_in_all_processes(self.accelerator, lambda: self.run.begin(self.config) if self.is_main else None)
        call_in_all_processes(self.accelerator, self._resume)
        self.progress = Progress(self.total_steps, self.state.step, quiet=not self.is_main, measured=self.eval_label)
        self.trackers = Trackers(self.accelerator, self.config, self.progress.say)

    def _resume(self) -> None:
        self.saved = SavedState(self)
        if self.config.resume and (loaded := self.saved.load()) is not None:
            self.state, self.best_metrics = loaded
        if self.is_main and self.config.resume:
            self.run.write_config(self.config)
        if self.is_main and OWN in self.config.tracker:
            self.events = open_event_writer(self.run, self.state.step)

    # ---- the run ------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        """Train to the end of the run; returns the content of `summary.json`."""
        self.start()
        state = self.state
        with self.progress:
            for line in opening_lines(self, state, self.has_stalled()):
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
            draw_first_batch(self, batch, self.progress.say)
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

    def _check_finite(self) -> None:
        """Refuse weights that are NaN or infinite.

        Raises:
            Diverged: they are.
        """
        if not self.is_finite():
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
        self.state.seconds, self._clock = self.seconds(), time.perf_counter()
        self.saved.save(self.state, self.best_metrics)

    def seconds(self) -> float:
        """Seconds of training, over all starts of the run."""
        return self.state.seconds + time.perf_counter() - self._clock

    # ---- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Save the state, draw curves and examples and write `summary.json`; returns its content."""
        self.save_state()
        say, state = self.progress.say, self.state
        if self.stopped_early:
            say(
                f"stopped after epoch {state.epoch + 1} of {self.total_epochs}: none since epoch {state.best['epoch']} "
                f"was better (--patience {self.config.patience})"
            )
        metrics = self.task.metrics()
        metrics.load([(self.best_metrics or metrics).state()])
        stopped_early, seconds = self.stopped_early, self.seconds()
        summary = summary_of(self, state, metrics.compute(), stopped_early=stopped_early, seconds=seconds)
        write_results(self, state.history, metrics, summary=summary, say=say)
        if self.events is not None:
            with saving(self.run.path):
                self.events.close()
        self.accelerator.wait_for_everyone()
        return summary

    @property
    def stopped_early(self) -> bool:
        """True if `patience` ended the run before its last step."""
        return self.state.step < self.total_steps and self.has_stalled()


def is_better(value: float, best: float) -> bool:
    """True if a metric is better than the best so far; any number is better than NaN."""
    return value > best or (math.isnan(best) and not math.isnan(value))
