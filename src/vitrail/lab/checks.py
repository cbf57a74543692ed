"""Checks before anything is trained: data, a step of every candidate, the machine's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.load import pick_device
from ..config.train import TrainConfig
from ..data.datasets.base import ImageSet
from ..data.loader import isolated_rng
from ..errors import UserError, printable
from ..tasks import build_task
from ..tasks.classification import Classification

#: copies of a weight that training with an Adam-like optimiser holds: itself, its gradient, two moments
COPIES = 4


def open_task(recipe: TrainConfig) -> Classification:
    """The classification task of a recipe, whose images can be chosen by number.

    Raises:
        UserError: data that cannot be used or that are a stream.
    """
    task = build_task(recipe)
    assert isinstance(task, Classification)
    if not isinstance(task.train_set, ImageSet) or not isinstance(task.eval_set, ImageSet):
        raise UserError(
            f"--data {recipe.data.name} --data.source {recipe.data.source} is a stream, and the laboratory compares "
            "candidates image by image: give data whose images can be chosen by number, such as a folder."
        )
    return task


def try_step(name: str, network: nn.Module, image_size: tuple[int, int], classes: int) -> None:
    """One training step on two random images.

    Args:
        name: of the candidate.
        network: with fresh weights; its gradients are dropped afterwards.
        image_size: (height, width).
        classes: outputs of the network.

    Raises:
        UserError: it fails, or gives something else than a number for each class.
    """
    size = f"images of {image_size[0]}x{image_size[1]}"
    with isolated_rng(0):
        images = torch.randn(2, 3, *image_size)
        try:
            output = network.train()(images)
            output = output[0] if isinstance(output, tuple) else output
            output.float().square().mean().backward()
        except Exception as error:  # whatever a stranger's mixer stops at
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{printable(name)} cannot be trained on {size}: {type(error).__name__}: {printable(reason)[:200]}"
            ) from error
    if output.shape != (2, classes):
        raise UserError(f"{printable(name)} gives {tuple(output.shape)} for 2 {size}, not (2, {classes}).")
    network.zero_grad(set_to_none=True)


def check_memory(name: str, build: Callable[[], nn.Module], image_size: tuple[int, int], recipe: TrainConfig) -> None:
    """Refuse a step that needs more memory than there is.

    Args:
        name: of the candidate.
        build: makes the network.
        image_size: (height, width).
        recipe: of the runs: batch size, device.

    Raises:
        UserError: with both numbers.
    """
    needed, there = step_bytes(build, image_size, -(-recipe.batch_size // recipe.accumulate)), free_bytes(recipe.device)
    if needed is not None and there is not None and needed > there:
        raise UserError(
            f"--batch_size {recipe.batch_size}: a step of {printable(name)} on images of {image_size[0]}x"
            f"{image_size[1]} holds about {needed / 2**30:.1f} GiB, and {there / 2**30:.1f} GiB are free here; give a "
            "smaller --batch_size, or --accumulate."
        )


def step_bytes(build: Callable[[], nn.Module], image_size: tuple[int, int], batch: int) -> int | None:
    """Bytes of weights, their optimiser's state, and what the backward pass of a batch keeps; nothing is computed.

    None for a network that cannot run without data.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    try:
        with torch.device("meta"):
            network = build()
        network = network.to("meta").train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held: Any = network(torch.empty(batch, 3, *image_size, device="meta"))
        del held
    except Exception:  # a stranger's mixer may look at values
        return None
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return sum(kept.values()) + COPIES * weights


def free_bytes(device: str) -> int | None:
    """Memory that is free on a device; None where that is not known."""
    chosen = pick_device(device)
    if chosen.type == "cuda":
        return int(torch.cuda.mem_get_info(chosen)[0])
    found = []
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with suppress(OSError, ValueError):  # of a container
        group = Path("/sys/fs/cgroup")
        most, used = ((group / name).read_text(encoding="utf-8") for name in ("memory.max", "memory.current"))
        found.append(max(0, int(most) - int(used)))
    return min(found, default=None)
