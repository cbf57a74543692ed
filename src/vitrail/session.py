"""What a training run works with, where it stands, and how that is saved and found again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .config import TrainConfig
from .data.config import TRAINING_IMAGES
from .data.fingerprint import Fingerprint, difference, fingerprint
from .errors import UserError
from .extras import require
from .files import read_json, shortened
from .optim import build_optimizer, build_schedule, run_steps, schedule_remarks
from .plain import from_dict, typed
from .processes import together, with_synced_norms
from .progress import Progress
from .runs import EVENTS, NEW, Position, RunDirectory, saving
from .tasks import Batches, Metrics, Task, build_task
from .tasks.small_parts import training_mode
from .weights import InitReport, WeightsMeta, check_class_names

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
    note, licence = ("", None) if report is None else (report.sentence(), report.licence)
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


class StopSignal:
    """Ctrl-C and SIGTERM as a wish that the loop meets at the next whole step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> StopSignal:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._owner:  # a worker that inherited the handler: it ends when the loop does
            if number == signal.SIGTERM:
                os._exit(143)
            return
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


# ---- small things -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def accelerating(config: TrainConfig) -> Iterator[Any]:
    """Accelerate's object for the recipe's device and precision; forgotten afterwards, so that a next run may differ.

    Raises:
        UserError: a package of the extra is missing, or the device is not there or cannot do the precision.
    """
    for module in ("accelerate", "matplotlib", "tensorboard"):  # said now, though some are needed at the end alone
        require(module, "train")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    _check_device(config)
    mixed = {"fp32": "no"}.get(config.precision, config.precision)
    with _environment("ACCELERATE_TORCH_DEVICE", config.device if ":" in config.device else None):
        accelerator = Accelerator(mixed_precision=mixed, cpu=config.device == "cpu")
    try:
        if config.precision == "fp16" and accelerator.device.type == "cpu":
            raise UserError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
        yield accelerator
    finally:
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _check_device(config: TrainConfig) -> None:
    kind, _, index = config.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
        raise UserError(f"--device {config.device!r} is none of auto, cpu, cuda, cuda:N, mps.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise UserError(f"--device {config.device}: this machine has {count} usable CUDA device(s).")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no usable Apple GPU.")
    if config.precision == "fp16" and kind == "cpu":
        raise UserError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    old = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            if old is not None:
                os.environ[name] = old


def seed_everything(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch on all devices with a mix of `numbers`."""
    a, b = np.random.SeedSequence(numbers).generate_state(2)
    random.seed(int(a))
    np.random.seed(int(a))  # noqa: NPY002 - timm's Mixup draws from the global generator
    torch.manual_seed((int(a) << 32) | int(b))


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
