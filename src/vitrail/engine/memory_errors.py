"""Errors of too little memory, or of too small batches for batch normalisation, as one sentence with a remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..config.train import TrainConfig
from ..errors import UserError
from ..tasks.micro_batches import ONE_VALUE

#: in the messages of RuntimeErrors that mean a lack of memory
SIGNS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")


@contextlib.contextmanager
def memory_errors_explained(config: TrainConfig, processes: int) -> Iterator[None]:
    """Turn a lack of memory, or of images for batch normalisation, into a `UserError`.

    Args:
        config: the recipe.
        processes: number of processes that share each batch.
    """
    try:
        yield
    except ValueError as error:
        if ONE_VALUE not in str(error):
            raise
        raise UserError(
            f"--batch_size {config.batch_size} with --accumulate {config.accumulate} makes micro-batches of one image, "
            "of which batch normalisation cannot learn at this --image_size: it needs two values of a channel; give a "
            "larger --batch_size, a smaller --accumulate or larger images."
        ) from error
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        raise UserError(
            f"The batch is too large for the memory: --batch_size {config.batch_size} with --accumulate "
            f"{config.accumulate}; try {_remedy(config, processes)}."
        ) from error


def _remedy(config: TrainConfig, processes: int) -> str:
    """Options of this run that take less memory and that are not refused."""
    reid = config.task == "reid"
    group = config.reid.images_per_identity if reid else 1
    paired = config.task == "classification" and (config.augment.mixup > 0 or config.augment.cutmix > 0)
    # what a batch must be a multiple of, and its smallest size
    unit = processes * (group * config.accumulate if reid else 2 if paired else 1)
    least = max(2 * unit if reid else unit, config.accumulate)
    smaller = config.batch_size // 2 // unit * unit
    micro_batches = 2 * config.accumulate * processes
    # micro-batches of one image or of one identity are refused
    divisible = (
        config.batch_size >= 2 * group * micro_batches
        and config.batch_size % (group * micro_batches if reid else 1) == 0
    )
    ways = [f"--batch_size {smaller}"] if smaller >= least else []
    if divisible and not (reid and config.reid.triplet_weight):
        ways.append(f"for the same result --accumulate {2 * config.accumulate}")
    return ", or ".join(ways) or "a smaller --image_size or --model"
