"""Options of a training run, as in recipes; the defaults train a classifier of handwritten digits."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..utils.plain import limited, limits_of
from .data import MAX_SIDE, AugmentConfig, DataConfig
from .tasks import DetectionConfig, InferenceConfig, KeypointsConfig, ReidConfig, SegmentationConfig

#: largest values of options; larger ones are typing errors or exceed any memory
MAX_EPOCHS, MAX_STEPS, MAX_BATCH = 100_000, 1_000_000_000, 1 << 20
#: a step with a larger rate overflows float32; lower rates that are too high let the training diverge
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
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule.

    Attributes:
        optimizer: timm's name: "adamw", "adam", "sgd" (Nesterov), "momentum" (plain), "lamb", ...
        weight_decay: weight decay of matrices and kernels; biases, norms and parameters that the network exempts have
            none.
        decay_norms: apply weight decay to biases, norms and exempt parameters, too.
        betas: betas of Adam-like optimisers; None = the optimiser's own.
        eps: epsilon of Adam-like optimisers; None = the optimiser's own.
        momentum: momentum of optimisers that use it.
        layer_decay: factor of the learning rate from each layer to the one before it; None = the same for all.
        backbone_lr_scale: learning rate of the backbone, relative to the classifier's.
        clip_grad: largest norm of the gradient; None = no clipping.
        lr_base_batch: batch size for which `lr` is given: the peak is lr * batch_size / lr_base_batch; None = lr.
        schedule: decay of the learning rate.
        power: exponent of the schedule "poly".
        warmup_epochs: epochs of linear warm-up from `warmup_lr`, at most half of the run; part of `epochs`. None with
            `warmup_iterations`.
        warmup_iterations: optimiser steps of the warm-up, instead of `warmup_epochs`.
        warmup_lr: learning rate at the first step of the warm-up.
        min_lr: learning rate at the end of the schedules "cosine" and "poly".
        decay_epochs: with "step", the epochs at which the learning rate is multiplied by `decay_rate`.
        decay_rate: factor of the learning rate at each of `decay_epochs`.
        cooldown_epochs: number of last epochs at `min_lr`; part of `epochs`.
        fused: update all parameters in one kernel; adamw, adam, sgd and momentum can.
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
    fused: bool = True


@dataclass
class DistillConfig:
    """Learning from a teacher.

    Attributes:
        loss: what the student takes from the teacher's scores: "soft", the Kullback-Leibler divergence from the
            teacher's probabilities, or "hard", the cross-entropy with the teacher's likeliest class.
        weight: share of the teacher in the loss; the labels have the rest. Images without labels have the teacher's
            alone.
        temperature: by which the scores of both are divided before the softmax of "soft"; the loss is multiplied by its
            square.
        features: weight of an additional loss, one minus the cosine between the features of student and teacher: those
            that the classifier reads, projected to the teacher's width by a layer that is not saved, or the levels of
            a RetinaNet's pyramid; 0 = none.
    """

    loss: Literal["soft", "hard"] = "soft"
    weight: float = limited(0.5, least=0, most=1)
    temperature: float = limited(2.0, above=0, most=1000)
    features: float = limited(0.0, least=0, most=1000)


def _digits_augment() -> AugmentConfig:
    # mirrored digits and small crops of digits cannot be recognised
    return AugmentConfig(scale=(0.7, 1.0), ratio=(0.85, 1.18), hflip=0.0)


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        task: task of the network.
        model: a network of this library, or any of timm's; or weights, as `init` takes them, whose network is built and
            starts from them.
        model_options: constructor options of the network, such as {"drop_path_rate": 0.1}.
        head: head on the features of the network; None = the default of the task.
        head_options: constructor options of the head.
        data: data set.
        augment: augmentation of training images (classification).
        detection: training images of detection, instance and panoptic segmentation.
        segmentation: training images of semantic segmentation.
        keypoints: training images of keypoints.
        reid: training images of re-identification.
        inference: inference on the validation images.
        optim: optimiser and learning-rate schedule.
        image_size: height and width in pixels, one number or two; for images with boxes one number is the short side;
            None = the size of the data (digits, cifar: 32), of the task or of the network (224).
        mean: mean per channel of values in [0, 1], subtracted from the image; None = the network's.
        std: standard deviation per channel, by which the image is divided; None = the network's.
        crop_pct: size of the evaluation crop relative to the resized short side; None = the network's from 96 pixels
            on, and 1.0 for smaller images.
        epochs: passes over the data, warm-up and cool-down included. None with `iterations`.
        iterations: optimiser steps of the whole run and of its schedule, instead of `epochs`; the last epoch may end
            early.
        batch_size: images in one optimiser step, over all processes and micro-batches.
        accumulate: number of micro-batches in which each process computes its share of a batch: the same loss with less
            memory. Batch norms use the statistics of each micro-batch. Not with the triplet loss of reid, which
            compares all images.
        lr: learning rate at its peak.
        smoothing: label smoothing.
        token_labels: folder of label maps, one per training image, with labels of every token for LVT, VOLO and Pale
            (made by `vitrail token_labels`, or the public ones); None = the class of the image is the label of its
            tokens.
        token_loss_weight: weight of the token loss.
        token_ground_truth: mix the true class into the image label of the label maps.
        token_swap_axes: crop label maps with rows and columns exchanged, as the public pipeline does.
        teacher: trained network to learn from beside the labels: a run, a .safetensors of vitrail, timm:NAME,
            hf-hub:ORG/NAME or a folder in the Hub's form, of the same classes, or a folder of `vitrail teach`; None =
            no teacher.
        distill: learning from the teacher.
        init: initial weights: a .safetensors, a run directory, timm:NAME, hf-hub:ORG/NAME, a folder in the Hub's form,
            or a file of tensors (authors', timm's, torchvision's); None = random weights.
        pretrained: start from timm's weights of `model`, the default ones or those of its tag, as with --init
            timm:MODEL.
        freeze: what is not trained; with "backbone" only the head or classifier is trained.
        batch_norm: statistics of batch norms in training: "sync" (of all processes together), "own" (of each process's
            share of the batch), or "frozen" (the backbone's are not updated); "auto" = "sync".
        ema_decay: decay of the exponential moving average of the weights, which is then evaluated and saved; None = no
            average.
        ema_warmup: use a smaller decay at first, which short runs need.
        output: run directory.
        resume: continue from the state in the run directory.
        overwrite: delete the run in the run directory and start anew.
        tracker: where losses and metrics are logged, with commas between several: TensorBoard's events in the run
            directory, or Weights & Biases, MLflow or Trackio, which you install and set up yourself.
        device: "auto", "cpu", "cuda", "cuda:1", ... or "mps".
        precision: precision of the computation; fp16 is for GPUs only.
        tf32: let products and convolutions of a GPU round fp32 numbers to TF32 (10 bits of the mantissa).
        compile: compile the network for the training steps (torch.compile); the first step then takes minutes.
        pin_memory: put training batches into pinned memory, from which a GPU fetches them while it computes; None =
            with a GPU.
        prefetch: batches that each of `data.workers` has ready in advance; None = 2.
        seed: seed of the initial weights, the order of the images and every augmentation.
        eval_every: validate every so many epochs, and after the last one.
        keep: which weights are kept, of the epochs that were validated: those of the best one, or of the last. The
            best one's metrics are a little too good, as the validation images have chosen it.
        patience: end the run once so many epochs have passed without a better one; `eval_every` says how often that is
            known. None = never.
        max_steps: stop after this number of optimiser steps, with the schedule of the whole run; None = all epochs.
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
    teacher: str | None = None
    distill: DistillConfig = field(default_factory=DistillConfig)
    init: str | None = None
    pretrained: bool = False
    freeze: Literal["none", "backbone"] = "none"
    batch_norm: Literal["auto", "own", "sync", "frozen"] = "auto"
    ema_decay: float | None = limited(None, least=0, below=1)
    ema_warmup: bool = True
    output: str = "runs/first"
    resume: bool = False
    overwrite: bool = False
    tracker: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    compile: bool = False
    pin_memory: bool | None = None
    prefetch: int | None = limited(None, above=0, most=1024)
    seed: int = limited(0, least=0, below=2**63)
    eval_every: int = limited(1, above=0, most=MAX_EPOCHS)
    keep: Literal["best", "last"] = "best"
    patience: int | None = limited(None, above=0, most=MAX_EPOCHS)
    max_steps: int | None = limited(None, above=0, most=MAX_STEPS)
    checkpoint_every: int = limited(0, least=0, most=MAX_STEPS)


#: groups of settings with dotted names
GROUPS = tuple(name for name, hint in typing.get_type_hints(TrainConfig).items() if dataclasses.is_dataclass(hint))


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one side or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
