"""Plain-value settings of a training run, as they stand in recipes; the defaults are the embedded default job."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .data.config import AugmentConfig, DataConfig
from .data.task_config import DetectionConfig, InferenceConfig, KeypointsConfig, ReidConfig, SegmentationConfig
from .errors import UserError


@dataclass
class OptimConfig:
    """How the weights follow the gradient.

    Attributes:
        optimizer: timm's name: "adamw", "adam", "sgd" (Nesterov), "momentum" (plain), "lamb", ...
        weight_decay: of matrices and kernels; biases, norms and what the network exempts are spared.
        decay_norms: let biases, norms and what the network exempts decay, too.
        betas: of Adam-like optimisers; None = the optimiser's own.
        eps: of Adam-like optimisers; None = the optimiser's own.
        momentum: of optimisers that have one.
        layer_decay: factor of the learning rate from each layer to the one before it; None = the same for all.
        backbone_lr_scale: learning rate of everything but the classifier, relative to the classifier's.
        clip_grad: largest norm of the gradient; None = no clipping.
        lr_base_batch: the batch that `lr` is meant for: the peak is lr * batch_size / lr_base_batch. None = lr as is.
        schedule: "cosine", "poly", "step" or "constant".
        power: of "poly".
        warmup_epochs: epochs of linear rise from `warmup_lr`, at most half the run; counted inside `epochs`. None where
            `warmup_iterations` says it.
        warmup_iterations: optimiser steps of that rise, instead of `warmup_epochs`.
        warmup_lr: learning rate of the first step when there is warm-up.
        min_lr: where the cosine or the polynomial ends.
        decay_epochs: with "step", the epochs from which the learning rate is multiplied by `decay_rate` once more.
        decay_rate: that factor.
        cooldown_epochs: last epochs at `min_lr`, counted inside `epochs`.
    """

    optimizer: str = "adamw"
    weight_decay: float = 0.05
    decay_norms: bool = False
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float = 0.9
    layer_decay: float | None = None
    backbone_lr_scale: float = 1.0
    clip_grad: float | None = None
    lr_base_batch: int | None = None
    schedule: str = "cosine"
    power: float = 1.0
    warmup_epochs: float | None = 2.0
    warmup_iterations: int | None = None
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    decay_epochs: list[float] = field(default_factory=list)
    decay_rate: float = 0.1
    cooldown_epochs: float = 0.0


def _digits_augment() -> AugmentConfig:
    # a mirrored digit is another sign, and a small crop of one is no digit
    return AugmentConfig(scale=(0.7, 1.0), ratio=(0.85, 1.18), hflip=0.0)


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        task: what is learned: "classification", "detection", "instance_segmentation", "semantic_segmentation",
            "panoptic_segmentation", "keypoints" or "reid".
        model: a network of this library, or any of timm's.
        model_options: constructor options of the network, such as {"drop_path_rate": 0.1}.
        head: what stands on the network's maps; None = the task's usual one.
        head_options: constructor options of the head.
        data: which images.
        augment: what is done to training images (classification).
        detection: what is done to pictures with boxes, masks and panoptic segments.
        segmentation: what is done to pictures with a class for every pixel.
        keypoints: what is done to pictures of people with joints.
        reid: what is done to pictures of identities.
        inference: how the network is used on the held-back pictures.
        optim: optimiser and learning-rate schedule.
        image_size: side, or (height, width), in pixels; of pictures with boxes one number is the short side; None =
            that of the data (digits, cifar: 32), of the task or of the network (224).
        mean: per channel, of values in [0, 1], subtracted from the image; None = the network's own.
        std: per channel, what the image is divided by; None = the network's own.
        crop_pct: share of the resized short side that evaluation looks at; None = the network's own from 96 pixels on,
            and everything (1.0) below, where there is no margin to lose.
        epochs: passes over the data, warm-up and cool-down included. None where `iterations` says it.
        iterations: optimiser steps of the whole run and of its schedule, instead of `epochs`; the last pass over the
            data ends where they do.
        batch_size: images in one optimiser step, over all processes and accumulated parts.
        accumulate: parts each process computes its share of a batch in: the same loss of the whole batch, with less
            memory; batch norms that learn see a part each. Not with reid's triplet loss, which compares all images.
        lr: learning rate at its peak.
        smoothing: label smoothing.
        token_labels: folder of label maps, one a training picture, from which LVT, VOLO and Pale learn what each token
            shows (made by `vitrail token_labels`, or the public ones); None = the picture's class serves its tokens.
        token_loss_weight: of the tokens' part of the loss.
        token_ground_truth: mix the true class into what the label maps say of the whole picture.
        token_swap_axes: cut label maps with rows and columns exchanged, as the public pipeline does.
        init: weights to start from: a .safetensors, a run directory or an authors' file; None = fresh weights.
        freeze: "none", or "backbone" to train the classifier only.
        batch_norm: whose statistics batch norms learn with: "own" (each process's part of the batch), "sync" (those of
            all processes together; GPUs only), or "frozen" (the backbone's stay as they are).
        ema_decay: decay of the running average of the weights that is evaluated and kept; None = no average.
        ema_warmup: let the average follow faster at first, which short runs need.
        output: run directory.
        resume: go on from the state in the run directory.
        overwrite: delete the run that the run directory holds, and start anew.
        device: "auto", "cpu", "cuda", "cuda:1", ... or "mps".
        precision: "fp32", "bf16" or "fp16" (the last on GPUs only).
        seed: of the initial weights, the order of the images and every augmentation.
        eval_every: epochs from one measurement on the held-back data to the next; the last epoch is always measured.
        max_steps: stop after so many optimiser steps, with the schedule of the whole run; None = all epochs.
        checkpoint_every: optimiser steps between saved states inside an epoch; 0 = only at the end of each epoch.
    """

    task: str = "classification"
    model: str = "mat_1"
    model_options: dict[str, Any] = field(default_factory=dict)
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=_digits_augment)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    keypoints: KeypointsConfig = field(default_factory=KeypointsConfig)
    reid: ReidConfig = field(default_factory=ReidConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    image_size: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    epochs: int | None = 16
    iterations: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 1e-3
    smoothing: float = 0.0
    token_labels: str | None = None
    token_loss_weight: float = 0.5
    token_ground_truth: bool = False
    token_swap_axes: bool = False
    init: str | None = None
    freeze: str = "none"
    batch_norm: str = "own"
    ema_decay: float | None = None
    ema_warmup: bool = True
    output: str = "runs/first"
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
    precision: str = "fp32"
    seed: int = 0
    eval_every: int = 1
    max_steps: int | None = None
    checkpoint_every: int = 0


#: groups of settings with dotted names
GROUPS = tuple(name for name, hint in typing.get_type_hints(TrainConfig).items() if dataclasses.is_dataclass(hint))


def check(config: TrainConfig) -> None:
    """Refuse values that cannot work.

    Raises:
        UserError: naming the option, the value and what is allowed.
    """
    optim = config.optim
    choices = {
        "freeze": (config.freeze, ("none", "backbone")),
        "batch_norm": (config.batch_norm, ("own", "sync", "frozen")),
        "precision": (config.precision, ("fp32", "bf16", "fp16")),
        "optim.schedule": (optim.schedule, ("cosine", "poly", "step", "constant")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"--{name} {value!r} is none of {', '.join(allowed)}.")
    positive = {
        "epochs": config.epochs,
        "iterations": config.iterations,
        "batch_size": config.batch_size,
        "accumulate": config.accumulate,
        "eval_every": config.eval_every,
        "lr": config.lr,
        "max_steps": config.max_steps,
        "optim.lr_base_batch": optim.lr_base_batch,
        "optim.layer_decay": optim.layer_decay,
        "optim.clip_grad": optim.clip_grad,
        "optim.power": optim.power,
    }
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value} must be above 0.")
    not_negative = {
        "checkpoint_every": config.checkpoint_every,
        "seed": config.seed,
        "token_loss_weight": config.token_loss_weight,
        "optim.weight_decay": optim.weight_decay,
        "optim.backbone_lr_scale": optim.backbone_lr_scale,
        "optim.warmup_epochs": optim.warmup_epochs,
        "optim.warmup_iterations": optim.warmup_iterations,
        "optim.cooldown_epochs": optim.cooldown_epochs,
        "optim.min_lr": optim.min_lr,
    }
    for name, value in not_negative.items():
        if value is not None and not value >= 0:
            raise UserError(f"--{name} {value} must be 0 or more.")
    _check_one(("epochs", config.epochs), ("iterations", config.iterations), "how long the run is")
    _check_one(
        ("optim.warmup_epochs", optim.warmup_epochs),
        ("optim.warmup_iterations", optim.warmup_iterations),
        "how long the warm-up is",
    )
    if not 0 <= config.smoothing < 1:
        raise UserError(f"--smoothing {config.smoothing} must be in [0, 1).")
    if config.ema_decay is not None and not 0 <= config.ema_decay < 1:
        raise UserError(f"--ema_decay {config.ema_decay} must be in [0, 1).")
    if config.epochs is not None and optim.cooldown_epochs >= config.epochs:
        raise UserError(
            f"--optim.cooldown_epochs {optim.cooldown_epochs} leaves nothing of --epochs {config.epochs}: "
            "the cool-down counts inside the epochs."
        )
    if config.token_labels is None and (config.token_ground_truth or config.token_swap_axes):
        raise UserError("--token_ground_truth and --token_swap_axes say how label maps are used: give --token_labels.")
    if config.resume and config.overwrite:
        raise UserError("--resume goes on with the run and --overwrite deletes it: choose one.")


def _check_one(first: tuple[str, Any], second: tuple[str, Any], what: str) -> None:
    """Raise `UserError` unless exactly one of two options, given by name and value, is set."""
    (name, value), (other, count) = first, second
    if value is None and count is None:
        raise UserError(f"Neither --{name} nor --{other} says {what}: give one of them.")
    if value is not None and count is not None:
        raise UserError(f"--{name} {value} and --{other} {count} both say {what}: add --{name} null or --{other} null.")


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
