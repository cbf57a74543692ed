"""Checks of a recipe before a run: values that fit each other, and options that have an effect.

An option that would have no effect is refused, and the right one is named.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..config.data import OWNERS, check_sides
from ..config.tasks import INFERENCE_OPTIONS, TASK_GROUPS
from ..config.train import GROUPS, TrainConfig, height_width
from ..data.datasets.division import check_division, has_splits
from ..errors import UserError, printable
from ..tasks import TASKS, data_of, group_of, heads_of
from ..utils.files import shortened
from ..utils.plain import from_dict, to_dict
from .optim import FUSED

#: kinds of timm's sources whose fields have names, and those that are streams
FIELD_SOURCES, STREAMED_SOURCES = ("hfds", "hfids", "wds", "tfds"), ("hfids", "wds", "tfds")
#: tasks of single options; those of a task's own group and of a head follow from the tasks
TASKS_OF_OPTION = {
    "crop_pct": ("classification",),
    # detectors' training images differ in size from batch to batch, and every size would be compiled anew
    "compile": ("classification", "semantic_segmentation", "keypoints", "reid"),
    "smoothing": ("classification", "reid"),
    **dict.fromkeys(
        ("token_labels", "token_loss_weight", "token_ground_truth", "token_swap_axes"), ("classification",)
    ),
    "teacher": ("classification", "detection", "semantic_segmentation"),
    **dict.fromkeys(
        ("distill.loss", "distill.weight", "distill.temperature"), ("classification", "semantic_segmentation")
    ),
    "distill.features": ("classification", "detection"),
}
#: options of timm's `create_model` that are no options of the network: prefixes of the weights' origin, and others
WEIGHT_ORIGINS = ("pretrained", "checkpoint", "cache_dir")
REFUSED_MODEL_OPTIONS = (
    "features_only",
    "out_indices",
    "feature_cfg",
    "device",
    "dtype",
    "model_name",
    "num_classes",
    "scriptable",
)
#: options of several tasks with the same effect under other names
EQUIVALENT_OPTIONS = (
    ("augment.random_erasing", "reid.random_erasing"),
    ("augment.scale", "segmentation.scale", "keypoints.scale"),
    ("augment.color_jitter", "detection.photometric", "segmentation.photometric"),
    ("augment.crop_padding", "reid.padding"),
    ("detection.short_sides", "segmentation.short_side"),
    ("detection.max_side", "segmentation.max_side"),
    tuple(f"{group}.hflip" for group in ("augment", *TASK_GROUPS)),
)


@dataclass(frozen=True)
class Rule:
    """Options that have an effect under a condition only.

    Attributes:
        names: of the options, dotted.
        switches: of the options that decide it.
        works: whether the options have an effect in a run.
        needs: what they need, in words.
        strict: a recipe that states them at all is refused, though it states their defaults.
    """

    names: tuple[str, ...]
    switches: tuple[str, ...]
    works: Callable[[TrainConfig], bool]
    needs: str
    strict: bool = False


def _mixes(config: TrainConfig) -> bool:
    return config.augment.mixup > 0 or config.augment.cutmix > 0


def _has_warmup(config: TrainConfig) -> bool:
    return bool(config.optim.warmup_epochs or config.optim.warmup_iterations)


def _has_min_lr(config: TrainConfig) -> bool:
    return config.optim.schedule in ("cosine", "poly")


def _learns_scores(config: TrainConfig) -> bool:
    """True if the teacher's scores are learned."""
    return config.teacher is not None and config.task != "detection" and config.distill.weight > 0


def _learns_features(config: TrainConfig) -> bool:
    """True if the teacher's features are learned."""
    return config.teacher is not None and config.task != "semantic_segmentation" and config.distill.features > 0


def _optimizer_has(feature: str) -> Callable[[TrainConfig], bool]:
    def has(config: TrainConfig) -> bool:
        from timm.optim import get_optimizer_info, list_optimizers

        name = config.optim.optimizer.lower()
        # an unknown one is refused where it is built
        return name not in list_optimizers() or bool(getattr(get_optimizer_info(name), feature))

    return has


RULES = (
    Rule(
        ("optim.momentum",),
        ("optim.optimizer",),
        _optimizer_has("has_momentum"),
        "an --optim.optimizer with momentum, such as sgd",
    ),
    Rule(
        ("optim.betas",),
        ("optim.optimizer",),
        _optimizer_has("has_betas"),
        "an --optim.optimizer with betas, such as adamw",
    ),
    Rule(
        ("optim.eps",), ("optim.optimizer",), _optimizer_has("has_eps"), "an --optim.optimizer with eps, such as adamw"
    ),
    Rule(
        ("optim.fused",),
        ("optim.optimizer",),
        lambda c: c.optim.optimizer.lower() in FUSED,
        f"an --optim.optimizer with a fused kernel: {', '.join(FUSED)}",
    ),
    Rule(("optim.power",), ("optim.schedule",), lambda c: c.optim.schedule == "poly", "--optim.schedule poly"),
    Rule(("optim.decay_epochs",), ("optim.schedule",), lambda c: c.optim.schedule == "step", "--optim.schedule step"),
    Rule(
        ("optim.decay_rate",),
        ("optim.schedule", "optim.decay_epochs"),
        lambda c: c.optim.schedule == "step" and bool(c.optim.decay_epochs),
        "--optim.schedule step and --optim.decay_epochs",
    ),
    Rule(
        ("optim.min_lr", "optim.cooldown_epochs"), ("optim.schedule",), _has_min_lr, "--optim.schedule cosine or poly"
    ),
    Rule(
        ("optim.warmup_lr",),
        ("optim.warmup_epochs", "optim.warmup_iterations"),
        _has_warmup,
        "--optim.warmup_epochs above 0",
    ),
    Rule(
        ("optim.decay_norms",),
        ("optim.weight_decay",),
        lambda c: c.optim.weight_decay > 0,
        "--optim.weight_decay above 0",
    ),
    Rule(
        ("optim.backbone_lr_scale", "optim.layer_decay"),
        ("freeze",),
        lambda c: c.freeze == "none",
        "--freeze none: a frozen backbone has no learning rate",
    ),
    Rule(
        ("freeze",),
        ("init",),
        lambda c: c.freeze == "none" or c.init is not None,
        "--init: without it the frozen weights are random",
    ),
    Rule(
        ("compile",),
        ("token_labels", "model_options"),
        lambda c: c.token_labels is None and not c.model_options.get("mix_token"),
        "a network without MixToken (--token_labels, --model_options.mix_token): every box would be compiled anew",
    ),
    Rule(
        ("tf32",),
        ("precision",),
        lambda c: c.precision == "fp32",
        "--precision fp32: the products of bf16 and fp16 have fewer bits already",
    ),
    Rule(
        ("prefetch",),
        ("data.workers",),
        lambda c: c.data.workers > 0,
        "--data.workers above 0, which prepare batches in advance",
    ),
    Rule(("patience",), ("keep",), lambda c: c.keep == "best", "--keep best: the last epoch is always the kept one"),
    Rule(("ema_warmup",), ("ema_decay",), lambda c: c.ema_decay is not None, "--ema_decay"),
    Rule(
        ("augment.mixup_prob",),
        ("augment.mixup", "augment.cutmix"),
        _mixes,
        "--augment.mixup or --augment.cutmix above 0",
    ),
    Rule(
        ("augment.mixup_switch_prob",),
        ("augment.mixup", "augment.cutmix"),
        lambda c: c.augment.mixup > 0 and c.augment.cutmix > 0,
        "--augment.mixup and --augment.cutmix above 0",
    ),
    Rule(
        ("augment.mixup", "augment.cutmix"),
        ("augment.mixup_prob",),
        lambda c: not _mixes(c) or c.augment.mixup_prob > 0,
        "--augment.mixup_prob above 0",
    ),
    Rule(
        ("augment.erasing_mode", "augment.erasing_count"),
        ("augment.random_erasing",),
        lambda c: c.augment.random_erasing > 0,
        "--augment.random_erasing above 0",
    ),
    Rule(
        ("augment.color_jitter",),
        ("augment.auto_augment",),
        lambda c: not c.augment.auto_augment,
        "--augment.auto_augment null, which changes colours itself",
    ),
    Rule(
        ("augment.scale", "augment.ratio", "augment.interpolation"),
        ("augment.crop_padding",),
        lambda c: not c.augment.crop_padding,
        "--augment.crop_padding 0: padded crops are not resized",
    ),
    Rule(
        ("token_ground_truth", "token_swap_axes"),
        ("token_labels",),
        lambda c: c.token_labels is not None,
        "--token_labels",
    ),
    Rule(
        ("token_loss_weight",),
        ("token_labels", "model_options"),
        lambda c: c.token_labels is not None or bool(c.model_options.get("mix_token")),
        "--token_labels, or --model_options.mix_token true",
    ),
    Rule(
        ("distill.loss", "distill.weight", "distill.temperature", "distill.features", "data.unlabelled"),
        ("teacher",),
        lambda c: c.teacher is not None,
        "--teacher",
    ),
    Rule(
        ("distill.loss", "data.unlabelled"),
        ("teacher", "distill.weight"),
        _learns_scores,
        "--distill.weight above 0",
    ),
    Rule(
        ("distill.temperature",),
        ("teacher", "distill.weight", "distill.loss"),
        lambda c: _learns_scores(c) and c.distill.loss == "soft",
        "--distill.loss soft and --distill.weight above 0",
    ),
    Rule(
        ("teacher",),
        ("distill.weight", "distill.features"),
        lambda c: c.teacher is None or _learns_scores(c) or _learns_features(c),
        "--distill.features above 0, or for classification and semantic_segmentation --distill.weight above 0",
    ),
    Rule(
        ("teacher",),
        ("token_labels", "model_options"),
        lambda c: c.token_labels is None and not c.model_options.get("mix_token"),
        "a network without MixToken (--token_labels, --model_options.mix_token), whose tokens have labels of their own",
    ),
    Rule(
        ("teacher",),
        ("head",),
        lambda c: c.task != "detection" or c.head in (None, "retinanet"),
        "--head retinanet, whose pyramid has a teacher's levels",
    ),
    Rule(
        ("detection.short_sides", "detection.short_side_range", "detection.max_side"),
        ("head",),
        lambda c: c.head != "ssdlite",
        "another head than ssdlite, whose input has one size (--image_size)",
    ),
    Rule(
        ("detection.zoom_out",),
        ("task",),
        lambda c: c.task != "panoptic_segmentation",
        "a task without stuff: nothing is known of the canvas",
    ),
    Rule(
        ("segmentation.auxiliary_weight",),
        ("head", "head_options"),
        lambda c: c.head == "upernet" and c.head_options.get("aux_channels", 1) != 0,
        "--head upernet with its auxiliary classifier",
    ),
    Rule(
        ("keypoints.rotation",),
        ("keypoints.rotation_prob",),
        lambda c: c.keypoints.rotation_prob > 0 or c.keypoints.rotation == 0,
        "--keypoints.rotation_prob above 0",
    ),
    Rule(
        ("keypoints.rotation_prob",),
        ("keypoints.rotation",),
        lambda c: c.keypoints.rotation > 0 or c.keypoints.rotation_prob == 0,
        "--keypoints.rotation above 0",
    ),
    Rule(
        ("keypoints.flip_pairs",),
        ("keypoints.hflip", "inference.flip"),
        lambda c: c.keypoints.hflip > 0 or c.inference.flip,
        "--keypoints.hflip above 0 or --inference.flip",
    ),
    Rule(
        ("reid.margin",), ("reid.triplet_weight",), lambda c: c.reid.triplet_weight > 0, "--reid.triplet_weight above 0"
    ),
)


def check(config: TrainConfig, typed: Collection[str] = (), recipe: Collection[str] = ()) -> None:
    """Refuse values that cannot work and options that cannot have an effect.

    Args:
        config: the run.
        typed: dotted names of options that were given deliberately, also with their defaults.
        recipe: those that a recipe states, also with their defaults.

    Raises:
        UserError: naming the option, the value and what is allowed.
    """
    from_dict(TrainConfig, to_dict(config), "--")
    _check_texts(config)
    _check_together(config)
    _check_output(config)
    given = set(typed) | set(changed(config))
    for name in _options_of_other_tasks(config, given | set(recipe)):
        raise UserError(_other_task_message(config, name))
    _check_data(config, given)
    _check_inference(config, given)
    for rule in RULES:
        if not rule.works(config):
            for name in rule.names:
                if name in given:
                    raise UserError(f"--{name} {_shown(config, name)} has no effect: it needs {rule.needs}.")


def drop_ineffective(config: TrainConfig, typed: Collection[str]) -> tuple[TrainConfig, list[str]]:
    """Reset the recipe's options that the command line makes ineffective to their defaults.

    `--optim.schedule constant` with a recipe that has `decay_epochs` drops these; that is reported, not refused.

    Args:
        config: recipe and command line together.
        typed: dotted names of the options on the command line.

    Returns:
        The run, and a sentence for every value that was left out.
    """
    notes: list[str] = []
    for rule in RULES:
        switch = next((name for name in rule.switches if name in typed), None)
        if switch is None or rule.works(config):
            continue
        for name in rule.names:
            if name not in typed and name in changed(config):
                notes.append(f"the recipe's --{name} {_shown(config, name)} is left out: it needs {rule.needs}.")
                config = with_option(config, name, option(TrainConfig(), name))
    return config, notes


def changed(config: TrainConfig) -> list[str]:
    """Dotted names of the options that have other values than their defaults."""
    default = TrainConfig()
    # a run's own defaults of a group, such as the augmentation of digits, are as good as the group's
    bare = replace(default, **{group: type(getattr(default, group))() for group in GROUPS})
    return [n for n in names() if option(config, n) not in (option(default, n), option(bare, n))]


def names() -> Iterator[str]:
    """Dotted names of all options of a run."""
    for one in dataclasses.fields(TrainConfig):
        if one.name in GROUPS:
            group = typing.get_type_hints(TrainConfig)[one.name]
            yield from (f"{one.name}.{inner.name}" for inner in dataclasses.fields(group))
        else:
            yield one.name


def option(config: TrainConfig, name: str) -> Any:
    """The value of an option by its dotted name."""
    group, _, last = name.rpartition(".")
    return getattr(getattr(config, group) if group else config, last)


def with_option(config: TrainConfig, name: str, value: Any) -> TrainConfig:
    """A run with another value of one option."""
    group, _, last = name.rpartition(".")
    if not group:
        return replace(config, **{last: value})
    return replace(config, **{group: replace(getattr(config, group), **{last: value})})


def _shown(config: TrainConfig, name: str) -> str:
    value = option(config, name)
    value = list(value) if isinstance(value, tuple) else value
    return value if isinstance(value, str) and value.isprintable() and len(value) < 80 else shortened(value)


# ---- values -----------------------------------------------------------------------------------------------------


def _check_texts(config: TrainConfig) -> None:
    """Refuse empty texts: they come from unset variables, and as paths they mean the current folder."""
    for name in names():
        value = option(config, name)
        # timm calls its reader of folders so
        if isinstance(value, str) and not value.strip() and name != "data.source":
            raise UserError(f"--{name} is empty: give a value or leave the option out.")


def _check_together(config: TrainConfig) -> None:
    """Refuse values that are allowed, but not together."""
    optim = config.optim
    _check_one(("epochs", config.epochs), ("iterations", config.iterations), "how long the run is")
    _check_one(
        ("optim.warmup_epochs", optim.warmup_epochs),
        ("optim.warmup_iterations", optim.warmup_iterations),
        "how long the warm-up is",
    )
    if config.epochs is not None and optim.cooldown_epochs >= config.epochs:
        raise UserError(
            f"--optim.cooldown_epochs {optim.cooldown_epochs} leaves nothing of --epochs {config.epochs}: "
            "the cool-down counts inside the epochs."
        )
    late = [epoch for epoch in optim.decay_epochs if config.epochs is not None and epoch >= config.epochs]
    if late and optim.schedule == "step":
        raise UserError(f"--optim.decay_epochs {late[0]:g} lies after the last of --epochs {config.epochs}.")
    if optim.schedule == "step" and not optim.decay_epochs:
        raise UserError(
            "--optim.schedule step has no effect without --optim.decay_epochs: give them, or --optim.schedule constant."
        )
    if optim.schedule == "step" and optim.decay_rate == 1:
        raise UserError(
            "--optim.decay_rate 1 changes no learning rate: give a factor below 1, or --optim.schedule constant."
        )
    if config.iterations is not None and (config.max_steps or 0) > config.iterations:
        raise UserError(
            f"--max_steps {config.max_steps} lies after the last of --iterations {config.iterations}: leave it out, "
            "or give more --iterations."
        )
    if config.resume and config.overwrite:
        raise UserError("--resume goes on with the run and --overwrite deletes it: choose one.")
    if config.accumulate > config.batch_size:
        raise UserError(
            f"--accumulate {config.accumulate} is more than the {config.batch_size} image(s) of --batch_size: it says "
            "in how many micro-batches a batch is computed."
        )
    if config.image_size is not None:
        check_sides(height_width(config.image_size), "--image_size")
    channels = config.model_options.get("in_chans", 3)
    if isinstance(channels, bool) or channels not in (1, 3):
        raise UserError(f"--model_options.in_chans {shortened(channels)} must be 3 (RGB) or 1 (grey).")
    for name in config.model_options:
        if name in REFUSED_MODEL_OPTIONS or name.startswith(WEIGHT_ORIGINS):
            raise UserError(
                f"--model_options.{name} is not taken: the options are those of the network itself; weights come from "
                "--init or --pretrained, classes from the data."
            )
    for name in ("mean", "std"):
        values = getattr(config, name)
        if values is not None and channels == 1 and len(values) != 1:
            raise UserError(f"--{name} {shortened(list(values))} must have 1 entry for --model_options.in_chans 1.")


def _check_output(config: TrainConfig) -> None:
    """Refuse a run directory among the images, where it would count as a class of the next run."""
    if config.data.root is None or config.resume:
        return
    try:
        root, output = (Path(os.path.realpath(os.path.expanduser(path))) for path in (config.data.root, config.output))
    except ValueError:  # a name with a null character, which is said where it is used
        return
    among = config.data.name == "folder" and root in output.parents and not has_splits(config.data)
    if output == root or among:
        raise UserError(
            f"--output {printable(config.output)} lies in the folder of the images, --data.root "
            f"{printable(config.data.root)}, whose folders are classes: choose one beside it."
        )


def _check_one(first: tuple[str, Any], second: tuple[str, Any], what: str) -> None:
    """Raise `UserError` unless exactly one of two options, given by name and value, is set."""
    (name, value), (other, count) = first, second
    if value is None and count is None:
        raise UserError(f"Neither --{name} nor --{other} says {what}: give one of them.")
    if value is not None and count is not None:
        raise UserError(f"--{name} {value} and --{other} {count} both say {what}: add --{name} null or --{other} null.")


# ---- options of other tasks and data ----------------------------------------------------------------------------


@cache
def tasks_of(name: str) -> Sequence[str] | None:
    """The tasks an option is for; None = all."""
    group = name.partition(".")[0]
    if group in ("head", "head_options"):
        return tuple(task for task in TASKS if heads_of(task))
    return TASKS_OF_OPTION.get(name) or tuple(task for task in TASKS if group_of(task) == group) or None


def options_of(task: str) -> list[str]:
    """Dotted names of the options that have an effect in some run of a task, in their order."""
    heads, run = heads_of(task), replace(TrainConfig(), task=typing.cast(Any, task))
    inference = {name for owner in (task, *heads) for name in INFERENCE_OPTIONS.get(owner, ())}
    without = {n for rule in RULES if rule.switches == ("task",) and not rule.works(run) for n in rule.names}

    def applies(name: str) -> bool:
        group, _, last = name.partition(".")
        owners = OWNERS.get(last, data_of(task)) if group == "data" else data_of(task)
        return (
            task in (tasks_of(name) or [task])
            and (group != "inference" or last in inference)
            and not set(owners).isdisjoint(data_of(task))
            and name not in without
        )

    return [name for name in names() if applies(name)]


def _options_of_other_tasks(config: TrainConfig, given: Collection[str]) -> list[str]:
    """The given options of other tasks than the run's, in their order."""
    return [name for name in names() if name in given and config.task not in (tasks_of(name) or [config.task])]


def _other_task_message(config: TrainConfig, name: str) -> str:
    """The error for an option of another task."""
    own = tasks_of(name) or ()
    alike = (other for group in EQUIVALENT_OPTIONS if name in group for other in group)
    right = next((other for other in alike if config.task in (tasks_of(other) or ())), None)
    hint = f"use --{right}" if right else "leave it out"
    return f"--{name} {_shown(config, name)} is for --task {' or '.join(own)}; with {config.task} {hint}."


def _check_data(config: TrainConfig, given: Collection[str]) -> None:
    """Refuse options of other data sets, and options of the validation split that have no effect."""
    data = config.data
    for name, owners in OWNERS.items():
        if f"data.{name}" in given and data.name not in owners:
            raise UserError(
                f"--data.{name} {_shown(config, f'data.{name}')} is not allowed for --data {data.name}; it is for "
                f"{', '.join(owners)}."
            )
    if data.name == "timm" and (kind := (data.source or "").partition("/")[0].lower()):
        fields = {"data.input_key", "data.target_key"} & set(given)
        if fields and kind not in FIELD_SOURCES:
            raise UserError(
                f"--{min(fields)} is not for --data.source {data.source}; it is for {', '.join(FIELD_SOURCES)}."
            )
        if "data.max_pixels" in given and kind in STREAMED_SOURCES:
            raise UserError(f"--data.max_pixels is not for --data.source {data.source}, whose images timm decodes.")
    check_division(data, config.task, {name.removeprefix("data.") for name in given})


def _check_inference(config: TrainConfig, given: Collection[str]) -> None:
    """Refuse inference options that the task or its head does not have."""
    known = INFERENCE_OPTIONS.get(config.head or "", INFERENCE_OPTIONS.get(config.task, ()))
    for name in names():
        group, _, last = name.partition(".")
        if group == "inference" and name in given and last not in known:
            listed = ", ".join(known) or "none"
            raise UserError(
                f"--{name} {_shown(config, name)} is not for {config.head or config.task}, which knows of these "
                f"options {listed}."
            )
