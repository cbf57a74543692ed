"""Semantic segmentation: the task and its inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config.data import Preprocess
from ..config.tasks import InferenceConfig
from ..config.train import TrainConfig
from ..data.datasets.base import AnnotatedSet
from ..data.datasets.index_masks import IGNORE
from ..data.datasets.segmentation import SemanticSet, open_semantic, survey_masks
from ..data.datasets.splits import check_disjoint
from ..data.loader import EvalLoader
from ..data.transforms.base import collate_lists
from ..data.transforms.segmentation import SegmentationAugmentation, SegmentationViews
from ..errors import UserError
from ..factory import HEADS
from ..heads.common import resize
from ..metrics.segmentation import SemanticMetrics
from ..structures import SegmentationMap
from ..utils.files import shortened
from .base import Inference, all_reduced, process_count, split_batch, to_device
from .losses import pixel_loss
from .sliding_window import Scores, enlarged_class_map, fixed_size, logits_of, starts
from .teacher import Teacher, score_loss
from .with_head import DenseTask

#: an image at each scale of inference, (3, h, w), and its own (height, width)
Views = tuple[list[Tensor], tuple[int, int]]


# ---- inference --------------------------------------------------------------------------------------------------


class SemanticInference(Inference):
    """Inference with a trained network.

    Args:
        head: name of its head.
        classes: names.
        preprocess: of its input; the size is that of the crop in training.
        options: of measuring and predicting.
        short_side: of images in pixels; None = the smaller side of the crop in training.
        max_side: longest side of images in pixels.
        values: of the classes in saved masks; None = their indices.

    Raises:
        UserError: an option that is not for this task, or a value it cannot have.
    """

    saves = ("masks/{}.png",)

    def __init__(
        self,
        head: str,
        classes: Sequence[str],
        preprocess: Preprocess,
        options: InferenceConfig,
        short_side: int | None,
        max_side: int,
        values: Sequence[int] | None = None,
    ):
        options.check("semantic_segmentation")
        self.classes, self.flip, self.window = list(classes), options.flip, options.window
        self.values = values
        self.views = SegmentationViews(
            preprocess, short_side, max_side=max_side, scales=options.scales, multiple=HEADS[head].multiple
        )

    def batches(self, data: AnnotatedSet, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Lists of images as `Views`, their targets, and their numbers."""
        return EvalLoader(
            data, self.views, batch_size=batch_size, workers=workers, rank=rank, world=world, collate=collate_lists
        )

    def inputs(self, images: Sequence[Image.Image], device: torch.device | str) -> list[Views]:
        """The images at each scale, and their own sizes."""
        return to_device([self.views(image, {})[0] for image in images], device)

    def infer(self, model: nn.Module, inputs: list[Views]) -> list[Tensor]:
        """The map of classes (H, W) uint8 of every image, at its own size; equal sizes go through together."""
        shapes = {tuple(view.shape for view in views) for views, _ in inputs}
        groups = [inputs] if len(shapes) == 1 else [[one] for one in inputs]
        return [found for group in groups for found in self._infer_batch(model, group)]

    def _infer_batch(self, model: nn.Module, inputs: list[Views]) -> list[Tensor]:
        scores: list[list[Scores]] = []
        for x in (torch.stack(alike) for alike in zip(*(views for views, _ in inputs), strict=True)):
            scores.append(self._forward_view(model, x))
            if self.flip:
                scores.append(self._forward_view(model, x.flip(-1), mirrored=True))
        return [
            enlarged_class_map(views, size) for views, (_, size) in zip(zip(*scores, strict=True), inputs, strict=True)
        ]

    def _forward_view(self, model: nn.Module, x: Tensor, mirrored: bool = False) -> list[Scores]:
        """Scores of images (B, 3, h, w), at once or window by window.

        An exported file of one size takes larger images in windows of that size, so that their scale stays that of
        training.

        Raises:
            UserError: a window larger than such a file takes.
        """
        size = x.shape[-2], x.shape[-1]
        most = fixed_size(model) or size
        if fixed_size(model) and self.window is not None and self.window > min(most):
            raise UserError(
                f"--inference.window {self.window} is larger than the {most[0]}x{most[1]} pixels that the exported "
                "file takes."
            )
        window = [min(side, self.window or side) for side in most]
        if all(side >= length for side, length in zip(window, size, strict=True)):
            logits = logits_of(model, x)
            full = logits.shape[-2], logits.shape[-1]
            return [Scores([(0, 0, one)], full, full, mirrored) for one in logits]
        height, width = min(size[0], window[0]), min(size[1], window[1])
        corners = [(top, left) for top in starts(size[0], height) for left in starts(size[1], width)]
        found = [logits_of(model, x[..., top : top + height, left : left + width]) for top, left in corners]
        return [
            Scores(
                [(*corner, logits[i]) for corner, logits in zip(corners, found, strict=True)],
                (height, width),
                size,
                mirrored,
            )
            for i in range(len(x))
        ]

    def metrics(self, data: AnnotatedSet) -> SemanticMetrics:
        """A fresh confusion matrix of pixels."""
        return SemanticMetrics(data.classes)

    @torch.no_grad()
    def predict(
        self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str
    ) -> list[SegmentationMap]:
        """The class of every pixel of images of any sizes."""
        model = model.eval()
        return [SegmentationMap(self.classes, self._predict_one(model, image, device), self.values) for image in images]

    def _predict_one(self, model: nn.Module, image: Image.Image, device: torch.device | str) -> np.ndarray:
        return self.infer(model, self.inputs([image], device))[0].cpu().numpy()

    def ground_truth(self, target: dict[str, Any]) -> SegmentationMap:
        """The annotated class of every pixel."""
        return SegmentationMap(self.classes, np.asarray(target["mask"].cpu()).astype(np.uint8), self.values)


# ---- training ---------------------------------------------------------------------------------------------------


class SemanticSegmentation(DenseTask):
    """The task "semantic_segmentation": a class for every pixel; the mean IoU of all classes decides."""

    name = "semantic_segmentation"
    group = "segmentation"
    best_metric = "mIoU"
    source = "ade20k", "any images with masks of classes"
    heads = ("semantic_fpn", "upernet", "segformer")
    default_size = (512, 512)

    def __init__(self, config: TrainConfig, classes: Sequence[str] | None = None):
        super().__init__(config, classes)
        if classes is None:
            learned, measured = cast(SemanticSet, self.train_set), cast(SemanticSet, self.eval_set)
            if not config.data.measures_training:
                check_disjoint(learned, measured)
            survey_masks(learned, learned=True)
            survey_masks(measured, learned=False)

    def open(self, train: bool) -> SemanticSet:
        """One split of a data set of masks."""
        return open_semantic(self.config.data, train)

    @property
    def mask_values(self) -> list[int] | None:
        """The value of each class in masks: of the recipe or of the weights, otherwise of the data; None = unknown."""
        named = self.config.segmentation.mask_values
        if named is None and "train_set" in vars(self):
            return list(cast(SemanticSet, self.train_set).labels.values)
        if named is not None and not (len(named) == len(set(named)) == len(self.classes)):
            raise UserError(
                f"--segmentation.mask_values must give each of the {len(self.classes)} classes a value of its own, not "
                f"{shortened(named)}."
            )
        if named is not None and not all(0 <= value < IGNORE for value in named):
            raise UserError(f"--segmentation.mask_values must be from 0 to {IGNORE - 1}, not {shortened(named)}.")
        return named

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's group of settings, with the values of the classes, which saved masks hold."""
        return {self.group: {**super().settings[self.group], "mask_values": self.mask_values}}

    def default_head_options(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_classes": len(self.classes)}

    def build_inference(self) -> SemanticInference:
        """The inference of the validation split."""
        options = self.config.segmentation
        return SemanticInference(
            self.head,
            self.classes,
            preprocess=self.preprocess,
            options=self.config.inference,
            short_side=options.short_side,
            max_side=options.max_side,
            values=self.mask_values,
        )

    def transform(self) -> SegmentationAugmentation:
        """The recipe's changes to an image and its mask."""
        return SegmentationAugmentation(self.config.segmentation, self.preprocess)

    def draw_target(self, image: Image.Image, batch: Any, number: int) -> Image.Image:
        """The image with its mask over it."""
        return SegmentationMap(self.classes, batch[1][number].numpy()).draw(image)

    def split(self, batch: tuple[Tensor, Tensor], parts: int) -> list[tuple[Any, Tensor]]:
        """Micro-batches, weighted by their labelled pixels over all processes."""
        cut = [micro_batch for micro_batch, _ in split_batch(batch, parts)]
        labelled = torch.stack([(masks != IGNORE).sum() for _, masks in cut])
        total = all_reduced(labelled.sum()).clamp(min=1)
        return list(zip(cut, labelled * process_count() / total, strict=True))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy at the masks' size, with the auxiliary classifier's; share of right pixels times images.

        A teacher has its share of the main classifier's loss. Pixels without a class count nowhere.
        """
        images, masks = batch
        output = model(images)
        main, *auxiliary = output if isinstance(output, tuple) else (output,)
        logits = resize(main.float(), masks.shape[-2:])
        loss = pixel_loss(logits, masks)
        if self.teacher is not None:
            weight = self.config.distill.weight
            loss = (1 - weight) * loss + weight * self._teacher_loss(self.teacher, images, logits, masks)
        for other in auxiliary:
            other = resize(other.float(), masks.shape[-2:])
            loss = loss + self.config.segmentation.auxiliary_weight * pixel_loss(other, masks)
        right = (logits.detach().argmax(1) == masks).sum()  # no class has the number of pixels without one
        return loss, right / (masks != IGNORE).sum().clamp(min=1) * len(images)

    def _teacher_loss(self, teacher: Teacher, images: Tensor, logits: Tensor, masks: Tensor) -> Tensor:
        """Mean of the loss with the teacher's scores over the pixels that have a class, and 0 where none has.

        Args:
            teacher: a network of the same classes, perhaps in another order.
            images: (B, C, H, W) as the student sees them.
            logits: (B, classes, H, W) of the student.
            masks: (B, H, W).
        """
        with torch.no_grad(), teacher.autocast(images.device):
            found = logits_of(teacher.on(images.device), teacher.inputs(images))
        order = [teacher.meta.classes.index(name) for name in self.classes]
        losses = score_loss(logits, resize(found[:, order], masks.shape[-2:]), self.config.distill)
        labelled = masks != IGNORE
        return (losses * labelled).sum() / labelled.sum().clamp(min=1)
