"""The one training loop. It knows nothing of any task: network, data, loss and metric are the task's."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .config import TrainConfig
from .errors import Interrupted, UserError, printable
from .option_rules import check
from .plots import draw_curves
from .processes import failing_together
from .runs import BEST, EXAMPLES, Position, RunDirectory, git_commit, hardware, saving, versions
from .session import (
    Session,
    StopSignal,
    accelerating,
    all_finite,
    not_finite,
    open_session,
    save_state,
    seed_everything,
)
from .tasks import measure
from .weights import save_weights

T = TypeVar("T")

#: optimiser steps between two looks at the loss on a GPU, where each look waits for the device
LOOK_EVERY_GPU = 10


def fit(config: TrainConfig, on_step: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Train as the recipe says, and leave a run directory.

    Args:
        config: the recipe.
        on_step: called with (optimiser step from 0, its loss over all processes) in the order of the steps.

    Returns:
        The content of `summary.json`: `metrics` are those of the best epoch, whose weights are kept.

    Raises:
        UserError: what the user can put right: values, data, weights, memory, disk, a loss that is not finite.
        Interrupted: stopped by Ctrl-C or SIGTERM, after the state was saved.
    """
    check(config)
    with (
        accelerating(config) as accelerator,
        StopSignal() as stop,
        RunDirectory(config.output) as run,
        failing_together(),
        _enough_memory(config, accelerator.num_processes),
    ):
        session = open_session(config, run, accelerator, stop)
        session.on_step = on_step
        with session.progress:
            return _loop(session)


def _loop(s: Session) -> dict[str, Any]:
    for line in s.opening():  # control characters inside a line are shown escaped
        s.progress.say(line)
    while s.at.step < s.last_step or s.at.batch:
        train_epoch(s)
        last = s.at.step >= s.last_step
        if last or (s.at.epoch + 1) % s.config.eval_every == 0:
            evaluate_epoch(s)
        if last:
            break
        s.at.next_epoch()
        save_state(s)
    return finish(s)


# ---- one epoch --------------------------------------------------------------------------------------------------


def train_epoch(s: Session) -> None:
    """Train the rest of the epoch that the position stands in."""
    config, at, started, images = s.config, s.at, time.perf_counter(), s.at.seen
    look_every = LOOK_EVERY_GPU if s.accelerator.device.type == "cuda" else 1
    s.train_mode()
    s.batches.set_epoch(at.epoch, at.batch)
    for batch in _until_stopped(s):
        s.unseen.append(train_step(s, batch))
        at.batch, at.step = at.batch + 1, at.step + 1
        due = bool(config.checkpoint_every) and at.step % config.checkpoint_every == 0
        if due or at.step % look_every == 0:
            look(s)
        if due and at.batch < len(s.batches):
            save_state(s)
        if at.step >= s.last_step:
            break
    look(s)
    s.rate = (at.seen - images) / (time.perf_counter() - started)


def train_step(s: Session, batch: Any) -> Tensor:
    """One optimiser step over this process's share of the batch; returns (loss, right, images), still on the device."""
    from accelerate.utils import send_to_device

    config, accelerator = s.config, s.accelerator
    # the randomness of a step (drop path, dropout, Mixup) depends on the seed, the step and the process alone, so
    # that a run that goes on from a saved state meets the same
    seed_everything(config.seed, s.at.step, accelerator.process_index)
    parts = s.task.split(s.task.mix(send_to_device(batch, accelerator.device, non_blocking=True)), config.accumulate)
    total = torch.zeros(3, device=accelerator.device)
    for i, (part, share) in enumerate(parts):
        # processes exchange gradients with the last part only
        with contextlib.nullcontext() if i + 1 == len(parts) else accelerator.no_sync(s.model):
            loss, right = s.task.loss(s.model, part)
            accelerator.backward(loss * share)
        total += torch.stack((loss.detach() * share, right.float(), right.new_full((), len(part[0])).float()))
    if accelerator.device.type == "cpu" and not math.isfinite(total[0]):
        return total  # the weights stay as they are; `look` stops the run
    if config.optim.clip_grad is not None:
        accelerator.clip_grad_norm_(s.model.parameters(), config.optim.clip_grad)
    s.optimizer.step()
    s.optimizer.zero_grad()
    s.schedule.step_update(s.at.step + 1)
    if s.ema is not None:
        s.ema.update(s.net, step=s.at.step + 1)
    return total


def look(s: Session) -> None:
    """Take in the steps since the last look: sum them over all processes, show them, meet wishes to stop.

    Raises:
        UserError: a loss is not finite.
        Interrupted: the user wants to stop.
    """
    if not s.unseen:
        return
    at, world = s.at, s.accelerator.num_processes
    table = torch.stack(s.unseen)
    s.unseen = []
    # every process learns of every stop wish at the same step
    wish = torch.full_like(table[:1], float(s.stop.requested))
    table = s.accelerator.reduce(torch.cat((table, wish)), "sum").cpu()
    stop, steps = bool(table[-1, 0]), table[:-1]
    steps[:, 0] /= world
    first = at.step - len(steps)
    for i, (loss, right, seen) in enumerate(steps.tolist()):
        if not math.isfinite(loss):
            raise UserError(not_finite(s, first + i))
        at.loss, at.right, at.seen = at.loss + loss, at.right + right, at.seen + int(seen)
        if s.on_step is not None:
            s.on_step(first + i, loss)
        s.event("train/loss", loss, first + i)
    s.event("train/lr", s.lr, at.step)
    seen = int(steps[:, 2].sum())
    s.progress.step(len(steps), seen, at.epoch + 1, s.epochs, at.loss / at.batch, accuracy(at))
    if stop:
        _interrupt(s)


def accuracy(at: Position) -> float | None:
    """Of the epoch so far, on the training images, in %; None where nothing is right or wrong in training."""
    return None if math.isnan(at.right) else 100 * at.right / max(at.seen, 1)


def evaluate_epoch(s: Session) -> None:
    """Measure on the held-back data, keep the weights if they are the best so far, and write the epoch's row."""
    from accelerate.utils import gather_object

    task, at, accelerator = s.task, s.at, s.accelerator
    if not (all_finite(s.net) and all_finite(s.kept)):  # of the last step, whose loss nobody has seen
        raise UserError(not_finite(s, at.step))
    counts = task.metrics()
    batches = task.eval_batches(accelerator.process_index, accelerator.num_processes)
    gather = (lambda state: gather_object([state])) if accelerator.num_processes > 1 else None
    each = (lambda: _interrupt(s) if s.stop.requested else None) if accelerator.num_processes == 1 else None
    measure(s.kept, batches, counts, accelerator.device, accelerator.autocast, gather, each, task.infer)
    figures = counts.compute()
    numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
    row = {
        "epoch": at.epoch,
        "step": at.step,
        "lr": s.lr,
        "train_loss": at.loss / max(at.batch, 1),
        **({} if (right := accuracy(at)) is None else {"train_accuracy": right}),
        **{f"val_{name}": value for name, value in numbers.items()},
        "images_per_second": round(s.rate, 1),
        "seconds": round(s.elapsed(), 2),
    }
    at.history = [old for old in at.history if old["epoch"] != at.epoch] + [row]
    best = not at.best or _better(numbers[task.best_metric], at.best[task.best_metric])
    if best:
        at.best, s.counts = {"epoch": at.epoch, **numbers}, counts
    if accelerator.is_main_process:
        with saving(s.run.path):
            if best:
                s.run.files.claim([BEST])
                save_weights(s.run.path / BEST, s.kept.state_dict(), s.meta(figures))
            s.run.write_metrics(at.history)
            for name, value in row.items():
                s.event(f"epoch/{name}", value, at.step)
            s.events.flush()
        s.progress.epoch(row, s.epochs, task.best_metric, task.percent, best)


def _better(value: float, best: float) -> bool:
    """Whether a metric is better than the best so far; any number is better than none."""
    return value > best or (math.isnan(best) and not math.isnan(value))


def finish(s: Session) -> dict[str, Any]:
    """Save the state, draw the pictures and write `summary.json`; returns its content."""
    save_state(s)
    at, task, run = s.at, s.task, s.run
    counts = task.metrics()
    counts.load([(s.counts or counts).state()])
    summary = {
        "model": s.config.model,
        "task": task.name,
        "metrics": counts.compute(),
        "measured_on": "validation images" if s.measured == "val" else s.measured,
        "best_epoch": at.best["epoch"],
        "final": at.history[-1],
        "epochs": at.epoch + 1,
        "steps": at.step,
        "parameters": sum(p.numel() for p in s.net.parameters()),
        "seconds": round(s.elapsed(), 2),
        "processes": s.accelerator.num_processes,
        "device": str(s.accelerator.device),
        "precision": s.config.precision,
        "hardware": hardware(),
        "versions": versions(),
        "commit": git_commit(),
        "note": s.note,
    }
    if s.accelerator.is_main_process:
        with saving(run.path):
            with run.files.adding() as (folder, kept):
                summary["examples"] = _examples(s, folder / EXAMPLES)
                curves = folder / "curves.png"
                _drawn(s, curves.name, lambda: draw_curves(at.history, task.best_metric, curves, s.measured))
                _drawn(s, "The report", lambda: counts.report(folder))
            for name in kept:
                s.progress.say(f"{run.path / name} was not written by this run and stays as it is.")
            run.write_summary(summary)
            s.events.close()
    else:
        summary["examples"] = _examples(s, None)
    s.accelerator.wait_for_everyone()
    return summary


def _examples(s: Session, folder: Path | None) -> list[dict[str, Any]]:
    """What the network says of a few pictures of the validation part; none where they cannot be drawn."""
    return _drawn(s, EXAMPLES, lambda: s.task.examples(s.kept, s.accelerator.device, 8, folder)) or []


def _drawn(s: Session, what: str, draw: Callable[[], T]) -> T | None:
    """What `draw` returns. If drawing fails for a reason that is no mistake of the user's, that is said, and no more:
    a run is worth more than its pictures."""
    try:
        return draw()
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        s.progress.say(f"{what} could not be drawn: {type(error).__name__}: {printable(str(error))[:200]}")
        return None


def _until_stopped(s: Session) -> Iterator[Any]:
    """What is left of the epoch's batches."""
    if s.at.step >= s.last_step:
        return
    if s.stop.requested and s.accelerator.num_processes == 1:
        _interrupt(s)
    try:
        yield from s.batches
    except RuntimeError:
        if not s.stop.requested:  # a Ctrl-C also ends worker processes, which is no fault of theirs
            raise
        _interrupt(s)


def _interrupt(s: Session) -> None:
    look(s)
    save_state(s)
    raise Interrupted(
        f"Stopped at step {s.at.step} of {s.last_step}; the state is saved: go on with the same command and --resume "
        f"(--output {s.run.path})."
    )


@contextlib.contextmanager
def _enough_memory(config: TrainConfig, processes: int) -> Iterator[None]:
    """Turn a lack of memory, or of images for batch normalisation, into one sentence."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--batch_size {config.batch_size} with --accumulate {config.accumulate} makes parts of one image, of "
            "which batch normalisation cannot learn at this --image_size: it needs two values of a channel; give a "
            "larger --batch_size, a smaller --accumulate or larger images."
        ) from error
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        signs = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        raise UserError(
            f"The batch is too large for the memory: --batch_size {config.batch_size} with --accumulate "
            f"{config.accumulate}; try {_lighter(config, processes)}."
        ) from error


def _lighter(config: TrainConfig, processes: int) -> str:
    """What takes less memory and is not refused, in the options of the run."""
    reid = config.task == "reid"
    group = config.reid.images_per_identity if reid else 1
    paired = config.task == "classification" and (config.augment.mixup > 0 or config.augment.cutmix > 0)
    # what a batch must be a multiple of, and the least there can be
    unit = processes * (group * config.accumulate if reid else 2 if paired else 1)
    least = max(2 * unit if reid else unit, config.accumulate)
    smaller = config.batch_size // 2 // unit * unit
    parts = 2 * config.accumulate * processes
    # parts of one image or of one identity are refused
    divided = config.batch_size >= 2 * group * parts and config.batch_size % (group * parts if reid else 1) == 0
    ways = [f"--batch_size {smaller}"] if smaller >= least else []
    if divided and not (reid and config.reid.triplet_weight):
        ways.append(f"for the same result --accumulate {2 * config.accumulate}")
    return ", or ".join(ways) or "a smaller --image_size or --model"
