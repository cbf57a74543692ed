"""Optimiser and learning-rate schedule of a recipe, built by timm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ..config.train import OptimConfig, TrainConfig
from ..errors import UserError, unknown

#: optimisers that PyTorch updates in one kernel for all parameters: saves a tenth of a small network's step on CPUs
FUSED = ("adam", "adamw", "sgd", "momentum")


def peak_lr(config: TrainConfig) -> float:
    """The highest learning rate: `lr`, scaled by batch_size / `lr_base_batch` where that is given."""
    base = config.optim.lr_base_batch
    return config.lr * config.batch_size / base if base else config.lr


def run_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run, over which its schedule is computed."""
    return config.iterations if config.epochs is None else config.epochs * steps_per_epoch  # pyright: ignore[reportReturnType]


def param_groups(model: nn.Module, optim: OptimConfig, is_head: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The learnable parameters in timm's groups, each with `weight_decay` and `lr_scale`.

    Biases, norms and the parameters that the network's `no_weight_decay` names have no weight decay, unless
    `decay_norms`;
    `lr_scale` is the product of layer decay and, for all but the head, `backbone_lr_scale`.
    """
    no_decay = getattr(model, "no_weight_decay", set)()
    if optim.layer_decay is None:
        groups = param_groups_weight_decay(model, optim.weight_decay, no_weight_decay_list=no_decay)
    else:
        groups = param_groups_layer_decay(
            model, optim.weight_decay, no_weight_decay_list=no_decay, layer_decay=optim.layer_decay
        )
    if optim.decay_norms:
        groups = [{**group, "weight_decay": optim.weight_decay} for group in groups]
    if optim.backbone_lr_scale == 1.0:
        return groups
    head = {id(p) for name, p in model.named_parameters() if is_head(name)}
    split = []
    for group in groups:
        for factor, chosen in ((optim.backbone_lr_scale, False), (1.0, True)):
            params = [p for p in group["params"] if (id(p) in head) == chosen]
            if params:
                split.append({**group, "params": params, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return split


def build_optimizer(
    model: nn.Module, config: TrainConfig, is_head: Callable[[str], bool], more: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """timm's optimiser over `param_groups`.

    Args:
        model: the network.
        config: the recipe.
        is_head: whether the parameter of a name is the head's.
        more: parameters outside the network, with the full learning rate and weight decay.

    Raises:
        UserError: unknown optimiser, values it refuses, or nothing to learn.
    """
    optim = config.optim
    known = [str(name) for name in list_optimizers()]
    if optim.optimizer.lower() not in known:
        raise UserError(unknown("optimizer", optim.optimizer, known))
    groups = param_groups(model, optim, is_head)
    if not groups:
        raise UserError("Everything is frozen: the network has no classifier to train with --freeze backbone.")
    groups += [{"params": list(more), "weight_decay": optim.weight_decay}] if more else []
    given = {"betas": optim.betas, "eps": optim.eps}
    options = {name: value for name, value in given.items() if value is not None}
    if optim.fused and optim.optimizer.lower() in FUSED:
        options["fused"] = True
    try:
        return create_optimizer_v2(
            groups,
            opt=optim.optimizer,
            lr=peak_lr(config),
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            **options,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"Optimizer {optim.optimizer} refuses its settings: {error}") from error


def _warmup_steps(optim: OptimConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of the requested warm-up."""
    if optim.warmup_epochs is None:
        return optim.warmup_iterations or 0
    return round(optim.warmup_epochs * steps_per_epoch)


def schedule_warnings(config: TrainConfig, steps_per_epoch: int) -> list[str]:
    """Warnings where the schedule differs from the given options, a sentence each; defaults are not mentioned."""
    optim, default, total, peak = config.optim, OptimConfig(), run_steps(config, steps_per_epoch), peak_lr(config)
    warnings = []
    given = "warmup_iterations" if optim.warmup_epochs is None else "warmup_epochs"
    warmup = _warmup_steps(optim, steps_per_epoch)
    if warmup > total // 2 and getattr(optim, given) != getattr(default, given):
        warnings.append(
            f"--optim.{given} {getattr(optim, given):g} is more than half the run: the warm-up takes {total // 2} of "
            f"its {total} steps"
        )
    for name, works in (("warmup_lr", warmup > 0), ("min_lr", optim.schedule in ("cosine", "poly"))):
        value = getattr(optim, name)
        if works and value > peak and value != getattr(default, name):
            warnings.append(
                f"--optim.{name} {value:g} is above the highest learning rate, {peak:g}, which counts instead"
            )
    if optim.cooldown_epochs and not round(optim.cooldown_epochs * steps_per_epoch):
        warnings.append(f"--optim.cooldown_epochs {optim.cooldown_epochs:g} is less than half a step and has no effect")
    late = [epoch for epoch in optim.decay_epochs if round(epoch * steps_per_epoch) >= total]
    if late and optim.schedule == "step":
        warnings.append(f"--optim.decay_epochs {late[0]:g} lies behind the last step, {total}, and has no effect")
    return warnings


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> Scheduler:
    """The learning rate as a function of the optimiser step: `step_update(n)` sets that of step n (from 0).

    Linear warm-up to the peak over w steps, at most half the run; then, over T = the steps before the cool-down,
    min_lr + (peak - min_lr) (1 + cos(pi n / T)) / 2 for "cosine", min_lr + (peak - min_lr) (1 - n / T)^power for
    "poly", and `min_lr` in the cool-down; for "step" the peak times decay_rate^k once k of `decay_epochs` have begun;
    for "constant" the peak. Neither `min_lr` nor `warmup_lr` counts where it is above the peak.

    Raises:
        UserError: the cool-down is as long as the run.
    """
    optim = config.optim
    total = run_steps(config, steps_per_epoch)
    warmup = min(_warmup_steps(optim, steps_per_epoch), total // 2)
    if optim.cooldown_epochs and round(optim.cooldown_epochs * steps_per_epoch) >= total:
        raise UserError(
            f"--optim.cooldown_epochs {optim.cooldown_epochs}, of {steps_per_epoch} steps each, leaves nothing of "
            f"--iterations {total}: the cool-down counts inside them."
        )
    common: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": min(optim.warmup_lr, peak_lr(config)),
        "t_in_epochs": False,
    }
    if optim.schedule in ("cosine", "poly"):
        steps = max(1, total - round(optim.cooldown_epochs * steps_per_epoch))
        common |= {"t_initial": steps, "lr_min": min(optim.min_lr, peak_lr(config))}
        for name in ("cosine_lr", "poly_lr"):
            logging.getLogger(f"timm.scheduler.{name}").setLevel(logging.ERROR)  # its warning about one-step runs
        if optim.schedule == "poly":
            return PolyLRScheduler(optimizer, power=optim.power, **common)
        return CosineLRScheduler(optimizer, **common)
    # timm applies a milestone m from step m - 1 on
    epochs = sorted(optim.decay_epochs) if optim.schedule == "step" else []
    milestones = [round(epoch * steps_per_epoch) + 1 for epoch in epochs]
    return MultiStepLRScheduler(optimizer, milestones, decay_rate=optim.decay_rate, warmup_prefix=False, **common)
