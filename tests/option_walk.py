"""Every option of a run under every task: it changes something that can be observed, or it is refused.

`python tests/option_walk.py [TASK or COMMAND ...]` prints a line for each and the totals; for the commands beside
`train` see `command_walk`. A run is observed on small generated
data: its batches, its network, optimiser and schedule, one optimiser step, and what is inferred of the data to measure
on. An option is given in the plain run of the task, and, where it is refused there for want of another option, beside
that one: there it must have an effect.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import typing
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from annotated_helpers import write_coco
from head_helpers import SMALL as SMALL_HEADS
from keypoint_helpers import four_persons, write_keypoints
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.checkpoint.run_dir import RunDirectory
from vitrail.config.train import Task as TaskName
from vitrail.config.train import TrainConfig
from vitrail.engine.launch import StopSignal, accelerating
from vitrail.engine.named_weights import with_named_weights
from vitrail.engine.option_rules import check, names, option, tasks_of, with_option
from vitrail.engine.trainer import Trainer, fit
from vitrail.errors import UserError
from vitrail.tasks import heads_of

TASKS = typing.get_args(TaskName)
SMALL = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
DETECTORS = ("detection", "instance_segmentation", "panoptic_segmentation")
COCO = ("detection", "instance_segmentation", "panoptic_segmentation", "keypoints")

Options = dict[str, Any]


# ---- data -------------------------------------------------------------------------------------------------------


def write_data(base: Path) -> None:
    """Small data of every layout below `base`, each twice, the second a little larger."""
    rng = np.random.default_rng(0)

    def noise(path: Path, width: int, height: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(path)

    for copy in (0, 1):
        for part, count in (("train", 4 + copy), ("val", 2)):
            for name in ("cat", "dog"):
                for i in range(count):
                    noise(base / f"classes{copy}" / part / name / f"{i}.png", 48, 40)
                    noise(base / f"flat{copy}" / name / f"{part}{i}.png", 48, 40)
                    noise(base / f"splits{copy}" / f"{part}2" / name / f"{i}.png", 48, 40)
                    noise(base / f"splits{copy}" / part / name / f"{i}.png", 48, 40)
        write_coco(base / f"coco{copy}", {"train": 4 + copy, "val": 2 + copy})
        for i, part in enumerate(("train", "val")):
            persons = [{**person, "id": person["id"] + 10 * i} for person in four_persons()]
            write_keypoints(base / f"persons{copy}", persons[copy:], part)
        for path in (base / f"persons{copy}" / "images" / "val").iterdir():  # not the pixels of the training images
            Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
        for part, count in (("train", 4), ("val", 2)):
            for i in range(count):
                noise(base / f"masks{copy}" / "images" / part / f"{i}.jpg", 72, 64)
                mask = rng.integers(0, 4, (64, 72), dtype=np.uint8)
                (base / f"masks{copy}" / "annotations" / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(base / f"masks{copy}" / "annotations" / part / f"{i}.png")
        for i in range(6):
            noise(base / "flat_masks" / "images" / f"{i}.jpg", 72, 64)
            (base / "flat_masks" / "annotations").mkdir(exist_ok=True, parents=True)
            mask = rng.integers(0, 4, (64, 72), dtype=np.uint8)
            Image.fromarray(mask).save(base / "flat_masks" / "annotations" / f"{i}.png")
        (base / f"masks{copy}" / "classes.json").write_text('{"classes": ["a", "b", "c", "d"]}')
        for part, ids in (("bounding_box_train", 4 + copy), ("query", 2), ("bounding_box_test", 2)):
            for pid in range(1, ids + 1):
                for camera in range(1, 5):
                    second = {"query": 1}.get(part, 2)
                    noise(base / f"persons_ids{copy}" / part / f"{pid:04d}_c{camera}s{second}_000001_00.jpg", 32, 64)
    (base / "flat_masks" / "classes.json").write_text('{"classes": ["a", "b", "c", "d"]}')
    more_persons(base / "persons0" / "annotations" / "person_keypoints_train.json", base / "more_persons.json")
    truth = json.loads((base / "coco0" / "annotations" / "instances_val.json").read_text())["annotations"]
    found = [{key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for one in truth[1:]]
    (base / "boxes.json").write_text(json.dumps(found))
    persons = [{"image_id": i, "category_id": 1, "bbox": [2, 3, 40, 50], "score": 0.5} for i in (1, 2)]
    (base / "person_boxes.json").write_text(json.dumps(persons))
    (base / "fewer_boxes.json").write_text(json.dumps(found[1:]))
    (base / "other_classes.json").write_text('{"classes": ["w", "x", "y", "z", "v"]}')
    (base / "maps").mkdir()
    for path in (base / "classes0" / "train").rglob("*.png"):
        target = (base / "maps" / path.relative_to(base / "classes0" / "train")).with_suffix(".npy")
        target.parent.mkdir(exist_ok=True)
        scores, kinds = rng.normal(size=(2, 2, 2)), np.stack([np.zeros((2, 2)), np.ones((2, 2))])
        np.save(target, np.stack([scores, kinds]).astype(np.float16))


def more_persons(file: Path, to: Path) -> None:
    """The annotations of the same images under eight names."""
    content = json.loads(file.read_text())
    images, persons = content["images"], content["annotations"]
    folder = file.parent.parent / "images" / "train"
    for i in range(1, 4):
        for image in images[:2]:
            name = f"{i}{image['file_name']}"
            pixels = np.asarray(Image.open(folder / image["file_name"])) // (i + 1)
            (folder.parent / "more").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder.parent / "more" / name)
            content["images"] = [*content["images"], {**image, "id": image["id"] + 10 * i, "file_name": name}]
        moved = [{**p, "id": p["id"] + 100 * i, "image_id": p["image_id"] + 10 * i} for p in persons]
        content["annotations"] = [*content["annotations"], *moved]
    for image in images[:2]:
        shutil.copy(folder / image["file_name"], folder.parent / "more")
    to.write_text(json.dumps(content))


def root_of(task: str, base: Path, copy: int = 0) -> Path:
    """The data of a task."""
    folder = {
        "classification": "classes",
        "semantic_segmentation": "masks",
        "keypoints": "persons",
        "reid": "persons_ids",
    }
    return base / f"{folder.get(task, 'coco')}{copy}"


def plain_run(task: str, base: Path) -> TrainConfig:
    """The smallest run of a task."""
    head = next(iter(heads_of(task)), None)
    sizes = {"keypoints": (64, 64), "reid": (64, 32)}
    data = {"classification": "folder", "semantic_segmentation": "ade20k", "reid": "market1501"}
    config = TrainConfig(
        task=typing.cast(Any, task),
        model="mat_1",
        model_options=dict(SMALL),
        head=typing.cast(Any, head),
        head_options=dict(SMALL_HEADS[head]) if head else {},
        image_size=sizes.get(task, 64),
        epochs=4,
        batch_size=8 if task == "reid" else 4,
        device="cpu",
        output=str(base / "run"),
    )
    config = replace(config, data=replace(config.data, name=data.get(task, "coco"), root=str(root_of(task, base))))
    if task in DETECTORS:  # fresh weights are sure of nothing
        config = replace(config, inference=replace(config.inference, score_thresh=0.0))
    if task == "classification":
        config = replace(config, augment=replace(config.augment, hflip=0.5))
    return config


# ---- other values -----------------------------------------------------------------------------------------------


def other_values(config: TrainConfig, name: str, base: Path) -> list[Any]:
    """Values of an option, of a kind that works, other than that of the plain run; one of them must have an effect."""
    task, again = config.task, root_of(config.task, base, 1)
    annotations = {
        "semantic_segmentation": again / "annotations",
        "panoptic_segmentation": again / "annotations" / "panoptic_train.json",
        "keypoints": again / "annotations" / "person_keypoints_train.json",
    }
    values = {
        "task": TASKS[(TASKS.index(task) + 1) % len(TASKS)],
        "model": "emsnet_xxtiny",
        "model_options": {**SMALL, "depths": [1, 2, 1, 1]},
        "head": {"detection": "ssdlite", "semantic_segmentation": "segformer"}.get(task, "upernet"),
        "head_options": {"detection": {"channels": 16}, "semantic_segmentation": {"channels": 16}}.get(
            task,
            {"dropout": 0.5}
            if task == "reid"
            else {"deconv_channels": 16}
            if task == "keypoints"
            else {"channels": 16},
        ),
        "data.name": "digits",
        "data.root": str(again),
        "data.images": str(again / "images" / "train"),
        "data.annotations": str(annotations.get(task, again / "annotations" / "instances_train.json")),
        "data.classes": str(base / "other_classes.json"),
        "data.source": "torch/folder",
        "data.input_key": "png",
        "data.target_key": "label",
        "data.train_split": "val",
        "data.val_split": "train",
        "data.unlabelled": str(base / "classes1" / "val"),
        "data.limit": 2,
        "data.val_fraction": 0.5,
        "data.workers": 1,
        "data.max_pixels": 10,
        "augment.scale": (0.5, 0.6),
        "augment.ratio": (0.5, 0.6),
        "augment.auto_augment": "rand-m9",
        "augment.color_jitter": 0.4,
        "augment.erasing_mode": "const",
        "augment.interpolation": "nearest",
        "detection.short_sides": [48, 64],
        "detection.short_side_range": (48, 72),
        "detection.crop_first": (24, 32),
        "segmentation.scale": (1.5, 1.6),
        "segmentation.short_side": 96,
        "segmentation.mask_values": [9, 8, 7, 6],
        "segmentation.max_side": 40,
        "segmentation.max_class_share": 0.2,
        "detection.max_side": 70,
        "keypoints.flip_pairs": [["nose", "left_eye"]],
        "reid.images_per_identity": 2,
        "inference.scales": [0.5, 1.0],
        "inference.window": 40,
        "inference.score_thresh": 0.9,
        "inference.nms_thresh": 0.01,
        "inference.max_detections": 1,
        "inference.boxes": str(base / "person_boxes.json"),
        "optim.optimizer": "sgd",
        "optim.betas": (0.5, 0.6),
        "optim.eps": 1e-3,
        "optim.layer_decay": 0.5,
        "optim.clip_grad": 1e-3,
        "optim.lr_base_batch": 7,
        "optim.schedule": "constant",
        "optim.warmup_iterations": 1,
        "optim.decay_epochs": [1.0],
        "image_size": (96, 64) if task == "keypoints" else (96, 48) if task == "reid" else 96,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.1, 0.2, 0.3),
        "crop_pct": 0.5,
        "epochs": 5,
        "iterations": 3,
        "batch_size": 16 if task == "reid" else 2,
        "accumulate": 2,
        "smoothing": 0.3,
        "token_labels": str(base / "maps"),
        "teacher": str(base / f"{task}.safetensors"),
        "distill.loss": "hard",
        "init": str(base / f"{task}.safetensors"),
        "freeze": "backbone",
        "batch_norm": "frozen",
        "keep": "last",
        "tracker": ["wandb"],  # installed by the user: refused
        "patience": 3,
        "ema_decay": 0.9,
        "output": str(base / "another"),
        "device": "cuda",
        "precision": "bf16",
        "max_steps": 1,
        "pin_memory": True,
        "prefetch": 3,
    }
    if name in values:
        return [values[name]]
    own = option(config, name)
    if name == "data.split_seed":  # of few images another seed may choose the same
        return [7, 1, 2, 3, 4]
    if isinstance(own, bool):
        return [not own]
    if isinstance(own, int):
        return [own + 1]
    # a probability's draws may come out alike: of 0 and 1 one tells
    return [own / 2, 0.0, 1.0] if own else [0.5, 1.0]


def beside(task: str, name: str, base: Path) -> Options | None:
    """Other options that let an option have an effect, where the plain run has them not."""
    timm = {"data.name": "timm", "data.source": "folder"}
    mixing = {"augment.mixup": 0.8, "augment.cutmix": 1.0}
    maps = {"model": "lvt", "model_options": {}, "token_labels": str(base / "maps")}
    taught = {"teacher": str(base / f"{task}.safetensors"), "distill.features": 0.25 if task == "detection" else 0.0}
    found = {
        "teacher": {"distill.features": 0.25},
        **dict.fromkeys(("data.unlabelled", "distill.features", "distill.loss"), taught),
        **dict.fromkeys(("distill.weight", "distill.temperature"), taught),
        "model": {"model_options": {}},
        "epochs": {},
        "iterations": {"epochs": None},
        "optim.warmup_iterations": {"optim.warmup_epochs": None},
        "optim.momentum": {"optim.optimizer": "sgd"},
        "optim.power": {"optim.schedule": "poly"},
        "optim.decay_epochs": {"optim.schedule": "step"},
        "optim.decay_rate": {"optim.schedule": "step", "optim.decay_epochs": [1.0]},
        "freeze": {"init": str(base / f"{task}.safetensors")},
        "ema_warmup": {"ema_decay": 0.9},
        "prefetch": {"data.workers": 1},
        "augment.mixup_prob": mixing,
        "augment.mixup_switch_prob": mixing,
        "augment.erasing_mode": {"augment.random_erasing": 1.0},
        "augment.erasing_count": {"augment.random_erasing": 1.0},
        "data.source": {**timm, "data.root": str(base / "splits0")},
        "data.train_split": {**timm, "data.root": str(base / "splits0"), "data.val_split": "train2"},
        "data.val_split": {**timm, "data.root": str(base / "splits0"), "data.train_split": "val2"},
        "data.val_fraction": {"data.root": str(base / "flat0")},
        "data.split_seed": {"data.root": str(base / "flat0")},
        "data.classes": {},
        "token_labels": {"model": "lvt", "model_options": {}},
        **dict.fromkeys(("token_loss_weight", "token_ground_truth", "token_swap_axes"), maps),
        "segmentation.auxiliary_weight": {"head": "upernet", "head_options": SMALL_HEADS["upernet"]},
        # a run is there: without them it is refused
        "resume": {"output": str(base / "held"), "max_steps": 1},
        "overwrite": {"output": str(base / "held")},
    }
    chosen = found.get(name)
    if task in COCO and name in ("data.val_fraction", "data.split_seed"):
        own = {"keypoints": "person_keypoints", "panoptic_segmentation": "panoptic"}.get(task, "instances")
        if task == "keypoints":
            persons = {"data.annotations": str(base / "more_persons.json")}
            return {"data.root": None, **persons, "data.images": str(root_of(task, base) / "images" / "more")}
        return {
            "data.root": None,
            "data.annotations": str(root_of(task, base) / "annotations" / f"{own}_train.json"),
            "data.images": str(root_of(task, base) / "images" / "train"),
        }
    if task == "semantic_segmentation" and name in ("data.val_fraction", "data.split_seed"):
        return {"data.root": str(base / "flat_masks")}
    if task in COCO and name == "data.annotations":
        return {"data.images": str(root_of(task, base, 1) / "images" / "train")}
    if name == "head":
        new = {"detection": SMALL_HEADS["ssdlite"], "semantic_segmentation": {"channels": 8}}
        return {"head_options": new[task]} if task in new else None
    if task == "classification" or name not in (
        *("data.source", "data.train_split", "data.val_split", "data.unlabelled"),
    ):
        return chosen
    return None


# ---- observing --------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """A short text that differs where a value differs: tensors and images by their content."""
    made = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            made.update(str((item.dtype, tuple(item.shape))).encode())
            made.update(item.detach().cpu().float().contiguous().numpy().tobytes())
        elif isinstance(item, np.ndarray):
            made.update(str((item.dtype, item.shape)).encode() + np.ascontiguousarray(item).tobytes())
        elif isinstance(item, Image.Image):
            feed(np.asarray(item))
        elif isinstance(item, dict):
            for key, inner in item.items():
                made.update(str(key).encode())
                feed(inner)
        elif isinstance(item, list | tuple):
            made.update(str(len(item)).encode())
            for inner in item:
                feed(inner)
        elif hasattr(item, "__dict__") and type(item).__module__.startswith("vitrail"):
            feed(vars(item))
        else:
            made.update(repr(item).encode())

    feed(value)
    return made.hexdigest()[:12]


class Compiled(torch.nn.Sequential):
    """What stands for the compiled network, which takes minutes to make."""


def observe(config: TrainConfig, base: Path) -> dict[str, str]:
    """What can be seen of a run, as texts by name; {"refused": sentence} where it is refused."""
    for folder in ("run", "another"):
        shutil.rmtree(base / folder, ignore_errors=True)
    torch.manual_seed(0)
    with warnings.catch_warnings(), patch("vitrail.engine.setup.compiled", Compiled):
        warnings.simplefilter("ignore")
        try:
            config = with_named_weights(config)  # as `fit` does
            with accelerating(config) as accelerator, RunDirectory(config.output) as run:
                return seen_of(config, run, accelerator)
        except UserError as error:
            return {"refused": str(error)}


def seen_of(config: TrainConfig, run: RunDirectory, accelerator: Any) -> dict[str, str]:
    """What can be seen of an opened run, of its first step and of what it then infers."""
    trainer = Trainer(config, run, accelerator, StopSignal())
    trainer.start()
    task, network = trainer.task, trainer.network
    with trainer.progress:
        found: dict[str, Any] = {
            "names": [task.train_set.name(0), task.eval_set.name(0)],
            "parts": [len(task.train_set), len(task.eval_set), task.classes, vars(task.preprocess)],
            "steps": [len(trainer.batches), trainer.total_steps, trainer.batches.workers],
            "loading": [trainer.batches.pin_memory, trainer.batches.prefetch],
            "device": [str(accelerator.device), accelerator.mixed_precision],
            "compiled": isinstance(trainer.step_model, Compiled),
            "output": str(run.path),
            "loop": [config.eval_every, config.keep, config.patience, config.checkpoint_every],  # see `observe_loop`
            "weights": network.state_dict(),
            "learned": [p.requires_grad for p in network.parameters()],
        }
        groups = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
        found["optimizer"] = [type(trainer.optimizer.optimizer).__name__, groups]
        rates = []
        for step in range(trainer.total_steps):
            trainer.schedule.step_update(step)
            rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        found["rates"] = rates
        if trainer.ema is not None:
            found["ema"] = [trainer.ema.decay, trainer.ema.use_warmup]
        trainer.batches.set_epoch(0, 0)
        batches = list(trainer.batches)
        found["batches"] = batches
        trainer.set_train_mode()
        found["modes"] = [m.training for m in network.modules()]
        trainer.schedule.step_update(0)
        found["loss"] = trainer.train_step(batches[0])
        found["stepped"] = trainer.eval_network.state_dict()
        measured = [batch for _, batch in zip(range(2), task.eval_batches(0, 1), strict=False)]
        found["measured"] = measured
        trainer.eval_network.eval()
        with torch.no_grad():
            found["inferred"] = [task.infer(trainer.eval_network, batch[0]) for batch in measured]
        meta = trainer.weights_meta({})
        found["saved"] = meta.settings.get("segmentation", {}).get("mask_values")
        trainer.events.close()
    return {name: digest(value) for name, value in found.items()}


# ---- the walk ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What became of an option under a task.

    Attributes:
        task: its name.
        name: of the option, dotted.
        verdict: "effective", "refused" or "ignored".
        detail: what changed, or the sentence.
        beside: other options it was given with.
    """

    task: str
    name: str
    verdict: str
    detail: str
    beside: Options


def given(config: TrainConfig, changes: Options) -> TrainConfig:
    """A run with other values of some options."""
    for name, value in changes.items():
        config = with_option(config, name, value)
    return config


def verdict(plain: dict[str, str], config: TrainConfig, name: str, values: list[Any], base: Path) -> tuple[str, str]:
    """Whether one of an option's values in a run has an effect beside what is seen without it."""
    found = [_verdict(plain, with_option(config, name, value), name, base) for value in values[:1]]
    while found[-1][0] == "ignored" and len(found) < len(values):
        found.append(_verdict(plain, with_option(config, name, values[len(found)]), name, base))
    return found[-1]


def _verdict(plain: dict[str, str], config: TrainConfig, name: str, base: Path) -> tuple[str, str]:
    try:
        check(config, {name})
    except UserError as error:
        return "refused", str(error)
    found = observe(config, base)
    if "refused" in found:
        return "refused", found["refused"]
    changed = [key for key in found if found[key] != plain.get(key)]
    return ("effective", ", ".join(changed)) if changed else ("ignored", "")


def walk(task: str, base: Path) -> Iterator[Row]:
    """Every option under one task."""
    config = plain_run(task, base)
    plain = observe(config, base)
    assert "refused" not in plain, plain
    shutil.rmtree(base / "held", ignore_errors=True)
    fit(given(config, {"output": str(base / "held"), "max_steps": 1}))
    if not (base / f"{task}.safetensors").exists():
        write_weights(config, base)
    for name in names():
        values = other_values(config, name, base)
        row = Row(task, name, *verdict(plain, config, name, values, base), {})
        changes = beside(task, name, base)
        alone = row.verdict == "refused" or name == "overwrite"  # of what is not there nothing is overwritten
        if alone and changes and task in (tasks_of(name) or [task]):
            context = given(config, changes)
            # options that stand for another, such as iterations for epochs, are compared with that
            instead = name == "head" or (None in changes.values() and not name.startswith("data."))
            seen = plain if instead else observe(context, base)
            row = Row(task, name, *verdict(seen, context, name, values, base), changes)
        yield row


def write_weights(config: TrainConfig, base: Path) -> None:
    """Weights to start from."""
    from vitrail.tasks import build_task

    torch.manual_seed(1)
    task = build_task(config)
    meta = WeightsMeta(
        config.model,
        config.model_options,
        head=task.head,
        head_options=task.head_options,
        task=config.task,
        classes=list(task.classes),
        preprocess=task.preprocess,
    )
    save_weights(base / f"{config.task}.safetensors", task.build_model().state_dict(), meta)


def main(wanted: list[str]) -> int:
    """Print the table of tasks and commands; 1 if an option is ignored."""
    from command_walk import COMMANDS, walk_command

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_data(base)
        for one in wanted or (*TASKS, *COMMANDS):
            for row in walk_command(one, base) if one in COMMANDS else walk(one, base):
                rows.append(row)
                context = f" beside {', '.join(row.beside)}" if row.beside else ""
                print(f"{row.task:<32}{row.name:<30}{row.verdict:<10}{row.detail[:150]}{context}", flush=True)
    counts = {word: sum(row.verdict == word for row in rows) for word in ("effective", "refused", "ignored")}
    options, kinds = len({row.name for row in rows}), len({row.task for row in rows})
    found = ", ".join(f"{n} {w}" for w, n in counts.items())
    print(f"{options} options, {kinds} tasks and kinds of calls, {len(rows)} pairs: {found}")
    return 1 if counts["ignored"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
