"""Plain-value settings of a training run, as they stand in recipes; the defaults are the embedded default job."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..utils.plain import limited, limits_of
from .data import MAX_SIDE, AugmentConfig, DataConfig
from .tasks import DetectionConfig, InferenceConfig, KeypointsConfig, ReidConfig, SegmentationConfig

#: ends of what options can be: beyond them lies a slip of the finger, or a number that needs more memory than there is
MAX_EPOCHS, MAX_STEPS, MAX_BATCH = 100_000, 1_000_000_000, 1 << 20
#: a step of float32 weights overflows beyond; what is merely too high is for the training to say
MAX_LR = 1e37

Task = Literal[
    "classification",
    "detection",
    "instance_segmentation",
    "semantic_segmentation",
    "panoptic_segmentation",
    "keypoints",
    "reid",
]
Head = Literal[
    "retinanet",
    "ssdlite",
    "sparse_rcnn",
    "mask_rcnn",
    "panoptic_fpn",
    "semantic_fpn",
    "upernet",
    "segformer",
    "simple_baseline",
    "bnneck",
]


@dataclass
class OptimConfig:
    """How the weights follow the gradient.

    Attributes:
        optimizer: timm's name: "adamw", "adam", "sgd" (Nesterov), "momentum" (plain), "lamb", ...
        weight_decay: weight decay of matrices and kernels; biases, norms and what the network exempts have none.
        decay_norms: let biases, norms and what the network exempts decay, too.
        betas: betas of Adam-like optimisers; None = the optimiser's own.
        eps: epsilon of Adam-like optimisers; None = the optimiser's own.
        momentum: momentum of the optimisers that have it.
        layer_decay: factor of the learning rate from each layer to the one before it; None = the same for all.
        backbone_lr_scale: learning rate of everything but the classifier, relative to the classifier's.
        clip_grad: largest norm of the gradient; None = no clipping.
        lr_base_batch: the batch that `lr` is meant for: the peak is lr * batch_size / lr_base_batch. None = lr as is.
        schedule: how the learning rate falls.
        power: exponent of the schedule "poly".
        warmup_epochs: epochs of linear rise from `warmup_lr`, at most half the run; counted inside `epochs`. None where
            `warmup_iterations` says it.
        warmup_iterations: optimiser steps of that rise, instead of `warmup_epochs`.
        warmup_lr: learning rate of the first step when there is warm-up.
        min_lr: learning rate at the end of the cosine or the polynomial.
        decay_epochs: with "step", the epochs from which the learning rate is multiplied by `decay_rate` once more.
        decay_rate: factor of the learning rate at each of `decay_epochs`.
        cooldown_epochs: number of last epochs at `min_lr`, counted inside `epochs`.
    """

    optimizer: str = "adamw"
    weight_decay: float = limited(0.05, least=0, most=100)
    decay_norms: bool = False
    betas: tuple[float, float] | None = limited(None, least=0, below=1)
    eps: float | None = limited(None, above=0, most=1)
    momentum: float = limited(0.9, least=0, below=1)
    layer_decay: float | None = limited(None, above=0, most=1)
    backbone_lr_scale: float = limited(1.0, least=0, most=1000)
    clip_grad: float | None = limited(None, above=0)
    lr_base_batch: int | None = limited(None, above=0, most=MAX_BATCH)
    schedule: Literal["cosine", "poly", "step", "constant"] = "cosine"
    power: float = limited(1.0, above=0, most=100)
    warmup_epochs: float | None = limited(2.0, least=0, most=MAX_EPOCHS)
    warmup_iterations: int | None = limited(None, least=0, most=MAX_STEPS)
    warmup_lr: float = limited(1e-6, least=0, most=MAX_LR)
    min_lr: float = limited(1e-5, least=0, most=MAX_LR)
    decay_epochs: list[float] = field(default_factory=list, metadata=limits_of(least=0, most=MAX_EPOCHS))
    decay_rate: float = limited(0.1, above=0)
    cooldown_epochs: float = limited(0.0, least=0, most=MAX_EPOCHS)


def _digits_augment() -> AugmentConfig:
    # a mirrored digit is another sign, and a small crop of one is no digit
    return AugmentConfig(scale=(0.7, 1.0), ratio=(0.85, 1.18), hflip=0.0)


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        task: what the network learns.
        model: a network of this library, or any of timm's.
        model_options: constructor options of the network, such as {"drop_path_rate": 0.1}.
        head: the head on the feature maps of the network; None = the default of the task.
        head_options: constructor options of the head.
        data: which images.
        augment: what is done to training images (classification).
        detection: what is done to images with boxes, masks and panoptic segments.
        segmentation: what is done to images with a class for every pixel.
        keypoints: what is done to images of persons with keypoints.
        reid: what is done to images of identities.
        inference: how the network is used on the validation images.
        optim: optimiser and learning-rate schedule.
        image_size: side, or (height, width), in pixels; of images with boxes one number is the short side; None =
            that of the data (digits, cifar: 32), of the task or of the network (224).
        mean: mean per channel of values in [0, 1], subtracted from the image; None = the network's own.
        std: standard deviation per channel, which the image is divided by; None = the network's own.
        crop_pct: share of the resized short side that evaluation crops; None = the network's own from 96 pixels on,
            and everything (1.0) below, where there is no margin to lose.
        epochs: passes over the data, warm-up and cool-down included. None where `iterations` says it.
        iterations: optimiser steps of the whole run and of its schedule, instead of `epochs`; the last pass over the
            data ends with them.
        batch_size: images in one optimiser step, over all processes and accumulated parts.
        accumulate: parts each process computes its share of a batch in: the same loss of the whole batch, with less
            memory; batch norms that learn see a part each. Not with reid's triplet loss, which compares all images.
        lr: learning rate at its peak.
        smoothing: label smoothing.
        token_labels: folder of label maps, one a training image, from which LVT, VOLO and Pale learn what each token
            shows (made by `vitrail token_labels`, or the public ones); None = the class of the image serves its tokens.
        token_loss_weight: weight of the loss of the tokens.
        token_ground_truth: mix the true class into what the label maps say of the image.
        token_swap_axes: cut label maps with rows and columns exchanged, as the public pipeline does.
        init: weights to start from: a .safetensors, a run directory or an authors' file; None = fresh weights.
        freeze: parts that are not trained; with the backbone frozen only the classifier is.
        batch_norm: whose statistics batch norms learn with: "sync" (those of all processes together), "own" (each
            process's part of the batch), or "frozen" (the backbone's stay as they are); "auto" = "sync".
        ema_decay: decay of the running average of the weights that is evaluated and kept; None = no average.
        ema_warmup: let the average follow faster at first, which short runs need.
        output: run directory.
        resume: go on from the state in the run directory.
        overwrite: delete the run that the run directory holds, and start anew.
        device: "auto", "cpu", "cuda", "cuda:1", ... or "mps".
        precision: number format of the computation; fp16 is for GPUs only.
        seed: seed of the initial weights, the order of the images and every augmentation.
        eval_every: epochs from one validation to the next; the last epoch is always validated.
        max_steps: stop after so many optimiser steps, with the schedule of the whole run; None = all epochs.
        checkpoint_every: optimiser steps between saved states inside an epoch; 0 = only at the end of each epoch.
    """

    task: Task = "classification"
    model: str = "mat_1"
    model_options: dict[str, Any] = field(default_factory=dict)
    head: Head | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=_digits_augment)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    keypoints: KeypointsConfig = field(default_factory=KeypointsConfig)
    reid: ReidConfig = field(default_factory=ReidConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    image_size: int | tuple[int, int] | None = limited(None, least=1, most=MAX_SIDE)
    mean: tuple[float, ...] | None = limited(None, above=-10, below=10, lengths=(1, 3))
    std: tuple[float, ...] | None = limited(None, above=1e-4, below=10, lengths=(1, 3))
    crop_pct: float | None = limited(None, least=0.01, most=1)
    epochs: int | None = limited(16, above=0, most=MAX_EPOCHS)
    iterations: int | None = limited(None, above=0, most=MAX_STEPS)
    batch_size: int = limited(64, above=0, most=MAX_BATCH)
    accumulate: int = limited(1, above=0, most=MAX_BATCH)
    lr: float = limited(1e-3, above=0, most=MAX_LR)
    smoothing: float = limited(0.0, least=0, below=1)
    token_labels: str | None = None
    token_loss_weight: float = limited(0.5, least=0, most=1000)
    token_ground_truth: bool = False
    token_swap_axes: bool = False
    init: str | None = None
    freeze: Literal["none", "backbone"] = "none"
    batch_norm: Literal["auto", "own", "sync", "frozen"] = "auto"
    ema_decay: float | None = limited(None, least=0, below=1)
    ema_warmup: bool = True
    output: str = "runs/first"
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = limited(0, least=0, below=2**63)
    eval_every: int = limited(1, above=0, most=MAX_EPOCHS)
    max_steps: int | None = limited(None, above=0, most=MAX_STEPS)
    checkpoint_every: int = limited(0, least=0, most=MAX_STEPS)


#: groups of settings with dotted names
GROUPS = tuple(name for name, hint in typing.get_type_hints(TrainConfig).items() if dataclasses.is_dataclass(hint))


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
