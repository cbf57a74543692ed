"""Checks of micro-batches: batch normalisation cannot learn from a single value of a channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config.train import TrainConfig
from ..data.loader import TrainLoader, isolated_rng
from ..errors import UserError
from .base import split_batch

#: what PyTorch says of a channel's only value
ONE_VALUE = "Expected more than 1 value per channel"


def training_mode(model: nn.Module, config: TrainConfig, is_head: Callable[[str], bool]) -> None:
    """Set training mode except for what is frozen: the backbone (no drop path), or the statistics of its norms.

    Args:
        model: the network, without wrappers.
        config: the recipe.
        is_head: whether the parameter of a name lies outside the backbone.
    """
    model.train()
    for name, module in model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        frozen = config.freeze == "backbone" or (norm and config.batch_norm == "frozen")
        if frozen:
            module.training = is_head(f"{name}.")


def check_micro_batches(task: Any, batches: TrainLoader, world: int, size: tuple[int, int]) -> None:
    """Refuse micro-batches of one image if a norm of the network would then see a single value of a channel.

    Args:
        task: the network's.
        batches: the training batches.
        world: number of processes.
        size: (height, width) of the smallest input.

    Raises:
        UserError: they are too small.
    """
    config: TrainConfig = task.config
    micro_batches = split_batch((range(batches.batch_size // world),), config.accumulate)
    synced = config.batch_norm in ("auto", "sync") and world > 1
    if synced or min(len(images[0]) for images, _ in micro_batches) > 1 or learns_from_one(task, size):
        return
    height, width = size
    head = f"head {task.head}" if task.head else config.model
    raise UserError(
        f"--batch_size {batches.batch_size} in {world} process(es) with --accumulate {config.accumulate} makes "
        f"micro-batches of one image, of which {head} cannot learn at {height}x{width} pixels: its batch normalisation "
        "needs two values of a channel; give a larger --batch_size, --image_size or a smaller --accumulate."
    )


@torch.no_grad()
def learns_from_one(task: Any, size: tuple[int, int]) -> bool:
    """True if every norm of the network sees two values or more of one image of (height, width)."""
    with isolated_rng():
        for device in ("meta", "cpu"):  # not every network can be built or run without memory
            try:
                with torch.device(device):
                    model = task.build_model()
                    training_mode(model, task.config, lambda name, model=model: task.is_head(name, model))
                    forward_norms(model, torch.zeros(1, task.preprocess.in_chans, *size))
                return True
            except ValueError as error:
                if ONE_VALUE in str(error):
                    return False
            except (RuntimeError, NotImplementedError, AssertionError):
                pass  # the training will say what is wrong
    return True


def forward_norms(model: nn.Module, x: Tensor) -> None:
    """Forward pass through the modules of a network that have norms: of a detector those before boxes are chosen."""
    if not hasattr(model, "transform"):
        model(x)
        return
    detector = cast(Any, model)
    levels = list(detector.backbone(x).values())
    for dense in (getattr(detector, name, None) for name in ("head", "semantic")):
        if dense is not None:
            dense(levels)
