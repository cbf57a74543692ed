"""Teachers: trained networks that label the images another one learns from, at once or from `vitrail teach`'s cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.task.distillation import FeatureDistillationTrainableModule
from torch import Tensor, nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.header import read_header
from ..checkpoint.load import open_network
from ..config.data import Preprocess
from ..config.train import DistillConfig, TrainConfig
from ..data.datasets.base import ImageSet, ImageStream
from ..data.datasets.classes import class_positions
from ..data.datasets.teacher_labels import PROBES, ROWS, LabelsInfo, TeacherLabels, is_labels_folder, kinds_of
from ..data.fingerprint import fingerprint
from ..data.loader import TrainLoader, isolated_rng
from ..errors import UserError
from ..heads.resizing import with_sizes_of
from ..utils.plain import to_dict
from .losses import feature_loss, hard_label_loss, soft_label_loss

#: weights of red, green and blue in grey, as Pillow has them
GREY = (0.299, 0.587, 0.114)


class Teacher:
    """A trained network that labels batches of another's training images, as that one sees them.

    It is in evaluation mode, and no gradient reaches it.

    Args:
        path: whatever `open_network` opens.
        preprocess: of the images as they come: their normalisation is undone, and the teacher's own is applied.
        precision: of the computation, as of the training's.

    Attributes:
        meta: the network's description.
        digest: of its weights and preprocessing.

    Raises:
        UserError: weights that cannot be opened.
    """

    def __init__(self, path: str, preprocess: Preprocess, precision: str = "fp32") -> None:
        file = Path(path)
        if file.is_file() and (file.suffix != ".safetensors" or read_header(file).text is None):
            raise UserError(
                f"--teacher {path} is a file of tensors, which does not say its network: give a run, a .safetensors of "
                "vitrail, timm:NAME or hf-hub:ORG/NAME."
            )
        with isolated_rng():  # the student starts from the same weights as without a teacher
            self.network = open_network(path).eval().requires_grad_(False)
        self.meta: WeightsMeta = meta_of(self.network)
        self.path, self.preprocess = path, preprocess
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.digest = _digest(self.network, self.meta)

    def __str__(self) -> str:
        return self.meta.model + (f" ({self.meta.licence})" if self.meta.licence else "")

    def on(self, device: torch.device) -> nn.Module:
        """The network, on a device."""
        if next(self.network.parameters()).device != device:
            self.network.to(device)
        return self.network

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context of its computation."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype)

    def inputs(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images (B, C, H, W) of the student as the teacher takes them.

        Args:
            x: normalised as the student's.
            size: (height, width) to which they are resized; None = as they are.
        """
        student, own, images = self.preprocess, self.meta.preprocess, x
        if (student.mean, student.std, student.in_chans) != (own.mean, own.std, own.in_chans):
            x = x * _channels(student.std, x) + _channels(student.mean, x)
            if own.in_chans == 1 and student.in_chans == 3:
                x = (x * _channels(GREY, x)).sum(1, keepdim=True)
            x = x.expand(-1, own.in_chans, -1, -1)
            x = (x - _channels(own.mean, x)) / _channels(own.std, x)
        if size is not None and tuple(x.shape[-2:]) != tuple(size):
            x = F.interpolate(x.float(), size, mode="bicubic", antialias=True)
        return with_sizes_of(x, images)

    def note(self, size: tuple[int, int] | None) -> str:
        """What it is and how it sees the images, a sentence for the user."""
        own, student = self.meta.preprocess, self.preprocess
        views = []
        if size is not None and tuple(size) != tuple(student.image_size):
            pair = "x".join(map(str, student.image_size)), "x".join(map(str, size))
            views.append(f"resized from {pair[0]} to its {pair[1]} pixels")
        if (student.mean, student.std) != (own.mean, own.std):
            views.append("normalised by its own mean and std")
        if student.in_chans != own.in_chans:
            views.append("in grey" if own.in_chans == 1 else "with three equal channels")
        seen = f"; it sees the augmented images {', '.join(views)}" if views else ""
        return f"teacher: {self} of {self.path}{seen}"


def _channels(values: Sequence[float], x: Tensor) -> Tensor:
    return x.new_tensor(values).view(1, -1, 1, 1)


def _digest(network: nn.Module, meta: WeightsMeta) -> str:
    state = hashlib.blake2b(json.dumps(to_dict(meta.preprocess), sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def teacher_of(config: TrainConfig, preprocess: Preprocess, classes: Sequence[str]) -> Teacher | None:
    """The teacher of a task with a head: a network of the same task; None where the recipe has none.

    Its classes must be those of the data, in any order, except in detection, where its features alone are learned.

    Raises:
        UserError: outputs of `vitrail teach`, or weights of another task or other classes.
    """
    if config.teacher is None:
        return None
    if is_labels_folder(config.teacher):
        raise UserError(
            f"--teacher {config.teacher} holds outputs of vitrail teach, which are for classification: give the "
            "teacher itself."
        )
    teacher = Teacher(config.teacher, preprocess, config.precision)
    if teacher.meta.task != config.task:
        raise UserError(f"--teacher {config.teacher} is a network for {teacher.meta.task}, not {config.task}.")
    if config.task != "detection" and sorted(teacher.meta.classes) != sorted(classes):
        other = next((name for name in classes if name not in teacher.meta.classes), None)
        reason = f"it does not know {other!r}" if other is not None else "it knows more"
        raise UserError(f"--teacher {config.teacher} has other classes than the data: {reason}.")
    return teacher


# ---- classification ---------------------------------------------------------------------------------------------


class Distiller:
    """What a classifier learns from its teacher: scores, features or both.

    Args:
        config: the recipe, with a teacher.
        preprocess: of the student.
        images: the training images.

    Attributes:
        digest: of the teacher, or of its cached outputs.

    Raises:
        UserError: weights or a folder that cannot be used, or other classes.
    """

    def __init__(self, config: TrainConfig, preprocess: Preprocess, images: ImageSet | ImageStream) -> None:
        path = cast(str, config.teacher)
        self.config, self.options = config, config.distill
        self.teacher: Teacher | None = None
        self.labels: TeacherLabels | None = None
        self.positions: list[int] | None = None
        if is_labels_folder(path):
            self.labels = TeacherLabels(path)
            self.name, self.digest = str(self.labels.info), f"outputs of {self.labels.info.digest}"
            self._check_kinds(path, self.labels.info)
            return
        self.teacher = Teacher(path, preprocess, config.precision)
        self.name, self.digest = str(self.teacher), self.teacher.digest
        meta = self.teacher.meta
        if meta.head is not None:
            raise UserError(f"--teacher {path} is a network for {meta.task}, not for classification.")
        if self.options.weight > 0:
            self.positions = class_positions(meta.classes, images, f"--teacher {path}")

    def _check_kinds(self, path: str, info: LabelsInfo) -> None:
        if self.options.weight > 0 and not info.classes:
            raise UserError(
                f"--teacher {path} holds features alone, of a teacher with other classes: give --distill.weight 0."
            )
        if self.options.features > 0 and not info.features:
            raise UserError(
                f"--teacher {path} holds no features, which --distill.features {self.options.features:g} asks for: "
                "make them with vitrail teach --outputs both, or give the teacher itself."
            )

    def notes(self) -> list[str]:
        """What the user should know of the teacher."""
        if self.teacher is None:
            return [f"teacher: outputs of {self.name} in {self.config.teacher}"]
        known, used = len(self.teacher.meta.classes), self.positions or []
        more = [f"of the teacher's {known:,} classes the {len(used):,} of the data count"] if len(used) < known else []
        return [self.teacher.note(self.teacher.meta.preprocess.image_size), *(more if used else [])]

    @property
    def width(self) -> int:
        """Width of the teacher's features."""
        return self.labels.info.features if self.labels else int(cast(Any, self.teacher).network.head_hidden_size)

    @torch.no_grad()
    def outputs(self, x: Tensor, cached: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """The teacher's logits (B, K) of the data's classes, and its features (B, D), as far as they are learned.

        Args:
            x: (B, C, H, W) as the student sees them.
            cached: what stands behind a batch of `TaughtBatches`.
        """
        if self.labels is not None:
            return dict(zip(kinds_of(self.labels.info), cached, strict=True))
        teacher = cast(Teacher, self.teacher)
        network: Any = teacher.on(x.device)
        with teacher.autocast(x.device):
            maps = network.forward_features(teacher.inputs(x, teacher.meta.preprocess.image_size))
            found = {}
            if self.positions is not None:
                found["logits"] = network.forward_head(maps).float()[:, self.positions]
            if self.options.features > 0:
                found["features"] = network.forward_head(maps, pre_logits=True).float()
        return found

    def loss(self, logits: Tensor, features: Tensor | None, taught: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of the scores of each image (B,), and that of its features (B,) with its weight.

        Args:
            logits: (B, K) of the student.
            features: (B, D) of the student, projected; None = not learned.
            taught: what `outputs` gave.
        """
        options = self.options
        zero = logits.new_zeros(len(logits))
        scores = zero if options.weight == 0 else score_loss(logits, taught["logits"], options)
        return scores, zero if features is None else options.features * feature_loss(features, taught["features"])


def score_loss(logits: Tensor, teacher: Tensor, options: DistillConfig) -> Tensor:
    """The loss that the recipe names, (B, ...), of logits (B, K, ...)."""
    if options.loss == "hard":
        return hard_label_loss(logits, teacher)
    return soft_label_loss(logits, teacher, options.temperature)


class WithProjection(FeatureDistillationTrainableModule):
    """A classifier that gives its logits and, projected to the teacher's width, its features (B, D).

    Args:
        network: the classifier.
        width: D.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__(network, nn.Linear(int(cast(Any, network).head_hidden_size), width))


def kept(model: nn.Module) -> nn.Module:
    """The network that is measured and saved, of what `Task.trained` gave."""
    return model.student if isinstance(model, WithProjection) else model


def training_only(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are learned and not saved."""
    return list(cast(nn.Module, model.projection).parameters()) if isinstance(model, WithProjection) else []


# ---- cached outputs ---------------------------------------------------------------------------------------------


class TaughtBatches:
    """Training batches with the teacher's cached outputs behind them.

    Args:
        loader: of the batches.
        labels: the outputs.
    """

    def __init__(self, loader: TrainLoader, labels: TeacherLabels) -> None:
        self.loader, self.labels = loader, labels
        self.dataset, self.batch_size = loader.dataset, loader.batch_size

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """See `TrainLoader`."""
        self.loader.set_epoch(epoch, start_batch)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        epoch = self.loader.epoch
        for number, batch in enumerate(self.loader, self.loader.start_batch):
            outputs = self.labels.outputs(epoch, self.loader.slice_of(number))
            yield (*batch, *(torch.from_numpy(array) for array in outputs.values()))


def describe_views(config: TrainConfig, preprocess: Preprocess, loader: TrainLoader) -> LabelsInfo:
    """Description of a run's views, with nothing of a teacher.

    Args:
        config: the recipe.
        preprocess: of the student.
        loader: of its batches.

    Raises:
        UserError: a stream, whose images have no positions.
    """
    if not isinstance(loader.dataset, ImageSet):
        raise UserError("A teacher's outputs are cached of images that can be found by number, not of a stream.")
    augment = to_dict(config.augment)
    mixes = config.augment.mixup > 0 or config.augment.cutmix > 0
    views = {f"augment.{name}": value for name, value in augment.items()} | {
        name: value for name, value in to_dict(preprocess).items() if name != "crop_pct"
    }
    views |= {"seed": config.seed}
    if mixes:  # images are mixed with those beside them
        views |= {"batch_size": loader.batch_size, "number of processes": loader.world}
    return LabelsInfo(
        teacher="",
        digest="",
        licence=None,
        trained_on="",
        data=fingerprint(loader.dataset),
        views=views,
        positions=loader.slice_of(len(loader) - 1).stop if mixes and loader.world == 1 else len(loader.dataset),
        rows=ROWS,
    )


def first_views(loader: TrainLoader) -> np.ndarray:
    """(n, C, H, W) the first images of epoch 0, augmented and not mixed, by which the views are recognised."""
    few = TrainLoader(
        loader.dataset,
        loader.transform,
        min(PROBES, len(loader.dataset)),
        loader.seed,
        repeats=loader.repeats,
        collate=loader.collate,
    )
    x, _ = next(iter(few))
    return x.contiguous().numpy()


def merged(views: LabelsInfo, distiller: Distiller, classes: int) -> LabelsInfo:
    """The description of a teacher's outputs for a run's views."""
    teacher = cast(Teacher, distiller.teacher)
    return dataclasses.replace(
        views,
        teacher=teacher.meta.model,
        digest=teacher.digest,
        licence=teacher.meta.licence,
        trained_on=teacher.meta.training_data,
        classes=classes if distiller.positions is not None else 0,
        features=distiller.width if distiller.options.features > 0 else 0,
    )
