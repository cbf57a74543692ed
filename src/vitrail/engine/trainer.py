"""The one training loop. It knows nothing of any task: network, data, loss and metric are the task's."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta, check_class_names
from ..checkpoint.format import save_weights
from ..checkpoint.initialize import InitReport
from ..checkpoint.run_dir import BEST, EVENTS, EXAMPLES, NEW, Position, RunDirectory, saving
from ..config.data import TRAINING_IMAGES
from ..config.train import TrainConfig
from ..data.fingerprint import Fingerprint, difference, fingerprint
from ..errors import Interrupted, UserError, printable
from ..tasks import Batches, Metrics, Task, build_task, measure
from ..tasks.small_parts import training_mode
from ..utils.environment import git_commit, hardware, versions
from ..utils.extras import require
from ..utils.files import read_json, shortened
from ..utils.plain import from_dict, typed
from ..utils.plot import draw_curves
from ..utils.progress import Progress
from .launch import StopSignal, accelerating, seed_everything
from .optim import build_optimizer, build_schedule, run_steps, schedule_remarks
from .option_rules import check
from .processes import failing_together, together, with_synced_norms

#: what was taken over from other weights, and their licence, in the folder of a state
NOTE = "note.json"


#: fingerprints of the data, beside it
DATA = "data.json"


@dataclass
class Session:
    """Everything the loop works with."""

    config: TrainConfig
    accelerator: Any
    task: Task
    run: RunDirectory
    model: nn.Module  # as prepared for devices and processes
    optimizer: Any
    schedule: Scheduler
    ema: ModelEmaV3 | None
    batches: Batches
    at: Position
    stop: StopSignal
    note: str = ""
    licence: str | None = None
    on_step: Callable[[int, float], None] | None = None
    progress: Progress = field(init=False)
    events: Any = None
    rate: float = 0.0  # images a second in the last epoch
    started: float = field(default_factory=time.perf_counter)
    counts: Metrics | None = None  # of the best epoch
    #: of the data, by part; in the main process
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    unseen: list[Tensor] = field(default_factory=list)  # per step since the last look: loss, right, images

    @property
    def net(self) -> nn.Module:
        """The network itself, without its wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def kept(self) -> nn.Module:
        """The network that is evaluated and kept: the running average when there is one."""
        return self.net if self.ema is None else self.ema.module

    @property
    def last_step(self) -> int:
        """Optimiser steps of the whole run."""
        total = run_steps(self.config, len(self.batches))
        return min(total, self.config.max_steps or total)

    @property
    def epochs(self) -> int:
        """Passes over the data of the whole run, the last of which may end early."""
        return -(-run_steps(self.config, len(self.batches)) // len(self.batches))

    @property
    def measured(self) -> str:
        """What lines and curves call the images that are measured."""
        return TRAINING_IMAGES if self.task.measures_training else "val"

    @property
    def lr(self) -> float:
        """Learning rate of the next step, of the group that has the largest."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def elapsed(self) -> float:
        """Seconds of training, over all sessions of the run."""
        return self.at.seconds + time.perf_counter() - self.started

    def event(self, name: str, value: float, step: int) -> None:
        """Note a figure for TensorBoard, in the first process."""
        if self.events is not None:
            with saving(self.run.path):
                self.events.add_scalar(name, value, step)

    def train_mode(self) -> None:
        """See `training_mode`; wrappers learn, too."""
        self.model.train()
        training_mode(self.net, self.config, lambda name: self.task.is_head(name, self.net))

    def meta(self, figures: dict[str, Any]) -> WeightsMeta:
        """The description to store with the weights."""
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
            metrics={name: value for name, value in figures.items() if isinstance(value, (int, float))},
            note=self.note,
        )

    def opening(self) -> list[str]:
        """What the run is, and what the user should know of its data, a line each."""
        config, task = self.config, self.task
        learned = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        height, width = task.preprocess.image_size
        text = (
            f"{config.model}: {learned:,} parameters to learn, {len(task.classes)} classes, {height}x{width} pixels, "
            f"{len(self.batches)} steps an epoch, {self.accelerator.device}, {config.precision}, "
            f"{self.accelerator.num_processes} process(es), {torch.get_num_threads()} thread(s)"
        )
        left = self.last_step - self.at.step
        going_on = (
            [
                f"going on at step {self.at.step} of {self.last_step}"
                if left
                else "the run is whole: nothing is left to do"
            ]
            if self.at.step
            else []
        )
        return [text, *self.lengths(), *going_on, *task.notes(), *([self.note] if self.note else [])]

    def lengths(self) -> list[str]:
        """What ends, or comes, otherwise than the numbers of steps and epochs say that were asked for."""
        config, steps = self.config, len(self.batches)
        whole = run_steps(config, steps)
        said = schedule_remarks(config, steps)
        batch = self.batches.batch_size
        share = batch // self.accelerator.num_processes
        if config.accumulate > share:
            said.append(
                f"--accumulate {config.accumulate} is more than the {share} image(s) that each process has of a batch: "
                f"they are computed in {share} part(s)"
            )
        if config.optim.lr_base_batch and batch < config.batch_size:
            said.append(
                f"the learning rate is that of --batch_size {config.batch_size} (--optim.lr_base_batch "
                f"{config.optim.lr_base_batch}), though batches have {batch} images"
            )
        if config.eval_every > self.epochs:
            said.append(
                f"--eval_every {config.eval_every} is more than the {self.epochs} epochs of the run: it is measured "
                "once, at its end"
            )
        if config.checkpoint_every > whole:
            said.append(
                f"--checkpoint_every {config.checkpoint_every} is more than the {whole} steps of the run: the state is "
                "saved at the end of each epoch"
            )
        if (config.max_steps or 0) <= whole:
            return said
        return [
            *said,
            f"--max_steps {config.max_steps} is more than the whole run: it ends after {whole} steps (--epochs "
            f"{config.epochs} of {steps} each); --epochs null --iterations {config.max_steps} trains as many",
        ]


# ---- beginning, and beginning again -----------------------------------------------------------------------------


def open_session(config: TrainConfig, run: RunDirectory, accelerator: Any, stop: StopSignal) -> Session:
    """Data, network, optimiser and run directory, and the saved state where there is one to go on from."""
    main = accelerator.is_main_process
    together(accelerator, lambda: run.check(config) if main else None)
    seed_everything(config.seed)
    rank, world = accelerator.process_index, accelerator.num_processes
    going_on = config.resume and run.state() is not None

    def build() -> tuple[Task, Batches, nn.Module, InitReport | None]:
        task = build_task(config)
        check_class_names(task.classes)
        batches, model = task.train_batches(rank, world), task.build_model()
        return task, batches, model, task.init(model, config.init) if config.init and not going_on else None

    task, batches, model, report = together(accelerator, build)
    note, licence = ("", None) if report is None else (report.summary(), report.licence)
    if config.freeze == "backbone":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(task.is_head(name, model))
    optimizer = build_optimizer(model, config, lambda name: task.is_head(name, model))
    together(accelerator, lambda: run.begin(config) if main else None)
    if config.batch_norm in ("auto", "sync") and world > 1:
        model = with_synced_norms(model, accelerator.device)
    model = model.to(accelerator.device)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ema = (
        ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup)
        if config.ema_decay is not None
        else None
    )
    prepared, optimizer = accelerator.prepare(model, optimizer)
    schedule = build_schedule(optimizer, config, len(batches))
    at = Position(processes=world)
    s = Session(config, accelerator, task, run, prepared, optimizer, schedule, ema, batches, at, stop, note, licence)
    together(accelerator, lambda: take_up(s))
    return s


def take_up(s: Session) -> None:
    """Go to where a saved state stands, and open what the main process writes to."""
    main = s.accelerator.is_main_process
    if main:
        s.fingerprints = {"training": fingerprint(s.batches.dataset), "validation": fingerprint(s.task.eval_set)}
    if s.config.resume:
        load_state(s)
    if main and s.config.resume:
        s.run.write_config(s.config)
    s.progress = Progress(s.last_step, s.at.step, quiet=not main, measured=s.measured)
    if main:
        s.events = open_events(s.run, s.at.step)


def open_events(run: RunDirectory, step: int) -> Any:
    """TensorBoard's writer, which goes on at an optimiser step; its file is one of the run's."""
    writer = require("torch.utils.tensorboard", "train").SummaryWriter
    folder = run.path / EVENTS
    with saving(run.path):
        before = set(folder.glob("*"))
        events = writer(str(folder), purge_step=step or None)
        events.flush()
        run.files.adopt(f"{EVENTS}/{file.name}" for file in set(folder.glob("*")) - before)
    return events


def save_state(s: Session) -> None:
    """Save all that is needed to go on, whole or not at all.

    Raises:
        UserError: the disk is full or the weights are not finite; the state saved before stays.
    """
    if not (all_finite(s.net) and all_finite(s.kept)):
        raise UserError(not_finite(s, s.at.step))
    at, run, accelerator = s.at, s.run, s.accelerator
    at.seconds, s.started = s.elapsed(), time.perf_counter()
    try:
        with saving(run.path):
            if accelerator.is_main_process:
                run.new_state()
            accelerator.wait_for_everyone()
            folder = run.path / NEW
            accelerator.save_state(str(folder))
            if accelerator.is_main_process:
                if s.ema is not None:
                    save_file(_own_memory(s.ema.module.state_dict()), folder / "ema.safetensors")
                if s.counts is not None:
                    save_file(_own_memory(s.counts.state()), folder / "best_counts.safetensors")
                (folder / NOTE).write_text(json.dumps([s.note, s.licence]), encoding="utf-8")
                prints = {part: asdict(known) for part, known in s.fingerprints.items()}
                (folder / DATA).write_text(json.dumps(prints), encoding="utf-8")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                run.commit_state(at)
            accelerator.wait_for_everyone()
    except BaseException:
        if accelerator.is_main_process:
            run.drop_new_state()
        raise


def load_state(s: Session) -> None:
    """Go to where the saved state stands; to the beginning if the run ended before its first one.

    Raises:
        UserError: it was saved by another number of processes, or is damaged.
    """
    folder = s.run.state()
    if folder is None:
        return
    try:
        at = s.run.position()
        if at.processes != s.accelerator.num_processes:
            raise OtherStart(
                f"The run in {s.run.path} was saved by {at.processes} processes and cannot go on with "
                f"{s.accelerator.num_processes}."
            )
        if at.step > (s.config.max_steps or at.step):
            raise OtherStart(
                f"--max_steps {s.config.max_steps}: the run in {s.run.path} stands at step {at.step} already; give "
                "more, or leave it out."
            )
        check_data(folder, s)
        check_position(at, s)
        s.accelerator.load_state(str(folder))
        if s.ema is not None:
            s.ema.module.load_state_dict(load_file(folder / "ema.safetensors"))
        if (folder / "best_counts.safetensors").is_file():
            s.counts = s.task.metrics()
            s.counts.load([load_file(folder / "best_counts.safetensors")])
        s.note, s.licence = typed(tuple[str, str | None], read_json(folder / NOTE), NOTE)
    except OtherStart:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else type(error).__name__
        raise UserError(
            f"The saved state {folder} is damaged ({reason.rstrip('.')}); start anew with --overwrite, or from its "
            "weights with --init."
        ) from error
    s.at = at
    s.schedule.step_update(at.step)


def check_data(folder: Path, s: Session) -> None:
    """Whether the data are those that the run began with; a state of an earlier version does not know.

    Raises:
        OtherStart: they are not.
    """
    if not (folder / DATA).is_file() or not s.fingerprints:  # of an earlier version; beside the main process
        return
    stored = read_json(folder / DATA)
    for part, now in s.fingerprints.items():
        before = from_dict(Fingerprint, stored.get(part), f"{part}.")
        if (change := difference(before, now)) is not None:
            raise OtherStart(
                f"--resume goes on with the same data, but the {part} images of the run in {s.run.path} have changed: "
                f"{change}. Bring them back, or start from its weights with --init {s.run.path} and another --output."
            )


class OtherStart(UserError):
    """A whole state that this start cannot go on with."""


def check_position(at: Position, s: Session) -> None:
    """Whether the loop can stand there.

    Raises:
        UserError: a number is out of its range, or two do not fit each other.
    """
    steps = len(s.batches)
    numbers = {"epoch", f"val_{s.task.best_metric}", "step", "lr", "train_loss", "seconds", "images_per_second"}
    epochs: list[Any] = [row.get("epoch") for row in at.history]
    known = all(
        isinstance(value, (int, float)) for row in at.history for value in (*row.values(), *map(row.get, numbers))
    )
    best = not at.best or (at.best.get("epoch") in epochs and isinstance(at.best.get(s.task.best_metric), (int, float)))
    holds = {
        "epoch": 0 <= at.epoch < s.epochs,
        "batch": 0 <= at.batch <= steps,
        "step": at.step == at.epoch * steps + at.batch,
        "seen": at.seen >= 0,
        "seconds": at.seconds >= 0,
        "history": known and epochs == sorted(set(epochs)) and all(0 <= epoch <= at.epoch for epoch in epochs),
        "best": best,
    }
    for name, right in holds.items():
        if not right:
            raise UserError(f"{name} is {shortened(getattr(at, name))}, which does not fit the rest")


# ---- small things -----------------------------------------------------------------------------------------------


def all_finite(model: nn.Module) -> bool:
    """Whether every floating-point parameter and buffer is free of NaN and infinity."""
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.numel()]
    return all(bool(torch.isfinite(norm)) for norm in torch._foreach_norm(tensors, float("inf")))


def not_finite(s: Session, step: int) -> str:
    """The sentence for a loss or a weight that is NaN or infinite."""
    kept = f"the last good state is in {s.run.path / 'last'}" if s.run.state() else "no state was saved yet"
    return (
        f"The training diverged: the loss of step {step} is not finite; {kept}. Try a lower --lr, a longer "
        "--optim.warmup_epochs, --optim.clip_grad 1, or --precision fp32."
    )


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


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
