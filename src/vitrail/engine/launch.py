"""Device, precision, random seeds and stop signals of a run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..config.train import TrainConfig
from ..errors import UserError
from ..utils.extras import require
from ..utils.tf32 import CAPABILITY, tf32
from .trackers import others


class StopSignal:
    """Ctrl-C and SIGTERM as a request to stop after the current step; a second Ctrl-C stops at once."""

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


@contextlib.contextmanager
def accelerating(config: TrainConfig) -> Iterator[Any]:
    """Accelerate's object for the recipe's device and precision; reset afterwards, so that the next run may differ.

    Raises:
        UserError: a package of the extra or a tracker is missing, the device is not there, or cannot do the precision.
    """
    for module in ("accelerate", "matplotlib", "tensorboard"):  # checked now, though some are needed at the end only
        require(module, "train")
    logged: Any = others(config)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    _check_device(config)
    mixed = {"fp32": "no"}.get(config.precision, config.precision)
    with _environment("ACCELERATE_TORCH_DEVICE", config.device if ":" in config.device else None):
        # without being told, Accelerate runs two processes of a machine without a GPU as two runs of one
        on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
        accelerator = Accelerator(mixed_precision=mixed, cpu=on_cpu, log_with=logged or None)
    try:
        _check_numbers(config, accelerator.device)
        with tf32(config.tf32):
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


def _check_numbers(config: TrainConfig, device: torch.device) -> None:
    """Refuse number formats and memory that the run's device does not have."""
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU.")
    if config.pin_memory and device.type != "cuda":
        raise UserError(f"--pin_memory true needs a CUDA GPU, which fetches from it; the run is on {device.type}.")
    if not config.tf32:
        return
    if device.type != "cuda":
        raise UserError(f"--tf32 true needs a CUDA GPU, whose number format it is; the run is on {device.type}.")
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        raise UserError(
            f"--tf32 true needs a GPU of compute capability {'.'.join(map(str, CAPABILITY))} or newer, which "
            f"{torch.cuda.get_device_name(device)} is not."
        )


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
