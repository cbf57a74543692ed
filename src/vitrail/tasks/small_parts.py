"""Parts of one image: whether a network's normalisation can learn from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config.train import TrainConfig
from ..data.loader import TrainLoader, isolated_rng
from ..errors import UserError
from .base import parts_of

#: what PyTorch says of a channel's only value
ONE_VALUE = "Expected more than 1 value per channel"


def training_mode(model: nn.Module, config: TrainConfig, is_head: Callable[[str], bool]) -> None:
    """Training mode, but for what is frozen: of a backbone everything (no drop path), or the norms' statistics.

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


def check_parts(task: Any, batches: TrainLoader, world: int, size: tuple[int, int]) -> None:
    """Refuse parts of one image if a norm of the network then sees one value of a channel, which says nothing.

    Args:
        task: the network's.
        batches: the training batches.
        world: number of processes.
        size: (height, width) of the smallest input.

    Raises:
        UserError: they are too small.
    """
    config: TrainConfig = task.config
    parts = parts_of((range(batches.batch_size // world),), config.accumulate)
    synced = config.batch_norm in ("auto", "sync") and world > 1
    if synced or min(len(part[0]) for part, _ in parts) > 1 or learns_from_one(task, size):
        return
    height, width = size
    head = f"head {task.head}" if task.head else config.model
    raise UserError(
        f"--batch_size {batches.batch_size} in {world} process(es) with --accumulate {config.accumulate} makes parts "
        f"of one image, of which {head} cannot learn at {height}x{width} pixels: its batch normalisation needs two "
        "values of a channel; give a larger --batch_size, --image_size or a smaller --accumulate."
    )


@torch.no_grad()
def learns_from_one(task: Any, size: tuple[int, int]) -> bool:
    """Whether every norm of the network sees two values or more of one image (height, width)."""
    with isolated_rng():
        for device in ("meta", "cpu"):  # not every network can be built or run without memory
            try:
                with torch.device(device):
                    model = task.build_model()
                    training_mode(model, task.config, lambda name, model=model: task.is_head(name, model))
                    run(model, torch.zeros(1, task.preprocess.in_chans, *size))
                return True
            except ValueError as error:
                if ONE_VALUE in str(error):
                    return False
            except (RuntimeError, NotImplementedError, AssertionError):
                pass  # the training will say what is wrong
    return True


def run(model: nn.Module, x: Tensor) -> None:
    """The parts of a network in which there are norms: of detectors those before boxes are chosen."""
    if not hasattr(model, "transform"):
        model(x)
        return
    detector = cast(Any, model)
    levels = list(detector.backbone(x).values())
    for dense in (getattr(detector, name, None) for name in ("head", "semantic")):
        if dense is not None:
            dense(levels)
