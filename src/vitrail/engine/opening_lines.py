"""The first lines of a run: what is trained on what, and where the run will differ from the given numbers."""

from __future__ import annotations

import torch

from ..checkpoint.run_dir import TrainerState
from .optim import run_steps, schedule_warnings
from .setup import Setup


def opening_lines(setup: Setup, state: TrainerState, has_stalled: bool) -> list[str]:
    """First lines of a run: network, size and device, then warnings and notes.

    Args:
        setup: what is trained.
        state: progress of the run.
        has_stalled: `patience` epochs have passed since the best one.
    """
    config, task, accelerator, done = setup.config, setup.task, setup.accelerator, state.step
    learnable = sum(p.numel() for p in setup.network.parameters() if p.requires_grad)
    height, width = task.preprocess.image_size
    lines = [
        f"{config.model}: {learnable:,} parameters to learn, {len(task.classes)} classes, {height}x{width} pixels, "
        f"{len(setup.batches)} steps an epoch, {accelerator.device}, {setup.arithmetic}, "
        f"{accelerator.num_processes} process(es), {torch.get_num_threads()} thread(s)",
        *length_warnings(setup),
    ]
    if done:
        is_complete = done == setup.total_steps or (state.batch == len(setup.batches) and has_stalled)
        lines.append(
            "the run is complete: nothing is left to do"
            if is_complete
            else f"going on at step {done} of {setup.total_steps}"
        )
    return [*lines, *task.notes(), *([setup.note] if setup.note else [])]


def length_warnings(setup: Setup) -> list[str]:
    """Warnings where batches, steps or learning rate differ from the given numbers."""
    config, steps = setup.config, len(setup.batches)
    total = run_steps(config, steps)
    warnings = schedule_warnings(config, steps)
    batch = setup.batches.batch_size
    share = batch // setup.accelerator.num_processes
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
    if config.eval_every > setup.total_epochs:
        warnings.append(
            f"--eval_every {config.eval_every} is more than the {setup.total_epochs} epochs of the run: it is "
            "measured once, at its end"
        )
    if config.patience is not None and config.patience >= setup.total_epochs:
        warnings.append(
            f"--patience {config.patience} never ends a run of {setup.total_epochs} epochs: give a smaller number"
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
