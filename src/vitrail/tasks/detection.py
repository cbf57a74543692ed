"""Detection and instance segmentation: the tasks and the inference of detectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config.tasks import INFERENCE_OPTIONS, InferenceConfig
from ..config.train import TrainConfig
from ..data.datasets.coco import CocoImages, open_instances
from ..data.large import LARGE, LARGE_MASKS, EnlargedMask, reduced
from ..data.loader import EvalLoader
from ..data.transforms.base import PairTransform, collate_lists
from ..data.transforms.detection import DetectionTransform, detection_steps, training_short_sides
from ..errors import UserError
from ..factory import HEADS
from ..heads.resizing import use_bool_masks
from ..metrics.coco import CocoMetrics
from ..structures import Detections
from .base import Inference, all_reduced, process_count, split_batch
from .losses import feature_loss
from .teacher import Teacher
from .with_head import DenseTask

#: attribute of the detectors by option of `InferenceConfig`
SETTINGS = {"score_thresh": "score_thresh", "nms_thresh": "nms_thresh", "max_detections": "detections_per_img"}
#: probability from which a pixel belongs to an object
MASK_THRESH = 0.5


class DetectionInference(Inference):
    """Inference with a trained detector.

    Args:
        head: name of its head.
        classes: names.
        masks: whether it gives masks.
        options: of measuring and predicting.
        in_chans: of the network.

    Raises:
        UserError: an option that the head does not have, or a value it cannot have.
    """

    saves = ("{}.json",)

    def __init__(self, head: str, classes: Sequence[str], masks: bool, options: InferenceConfig, in_chans: int = 3):
        self.prepare = DetectionTransform(in_chans=in_chans)
        self.classes, self.masks = list(classes), masks
        self.label_offset = HEADS[head].first_label
        options.check(head if head in INFERENCE_OPTIONS else "detection")
        given = {attribute: getattr(options, name) for name, attribute in SETTINGS.items()}
        self.settings = {attribute: value for attribute, value in given.items() if value is not None}

    def batches(self, data: CocoImages, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Lists of images at their own sizes, their targets, and their numbers."""
        return EvalLoader(
            data, self.prepare, batch_size=batch_size, workers=workers, rank=rank, world=world, collate=collate_lists
        )

    def inputs(self, images: Sequence[Image.Image], device: torch.device | str) -> list[Tensor]:
        """The images at their own sizes, of values in [0, 1]."""
        return [self.prepare(image, {})[0].to(device) for image in images]

    def infer(self, model: nn.Module, inputs: list[Tensor]) -> list[dict[str, Tensor]]:
        """boxes, labels from 0, scores, and masks (N, H, W) bool, of every image."""
        self._apply_settings(model)
        found = model(inputs)
        return [self._to_prediction(one) for one in found]

    def _apply_settings(self, model: nn.Module) -> None:
        if self.settings and hasattr(model, "runtime"):  # an exported file
            option = next(name for name, attribute in SETTINGS.items() if attribute in self.settings)
            raise UserError(
                f"--inference.{option} has no effect: an exported file has its thresholds inside; give the weights it "
                "was exported from."
            )
        if self.masks:
            use_bool_masks(model, MASK_THRESH)
        owner = cast(Any, getattr(model, "roi_heads", model))
        for name, value in self.settings.items():
            setattr(owner, name, value)

    def _to_prediction(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        one = {"boxes": found["boxes"], "labels": found["labels"] - self.label_offset, "scores": found["scores"]}
        if self.masks:
            masks = found["masks"][:, 0]
            # compared with a number, bool would become floats of four times its memory
            one["masks"] = masks if masks.dtype == torch.bool else masks >= MASK_THRESH
        return one

    def metrics(self, data: CocoImages) -> CocoMetrics:
        """COCO's metrics of boxes, and of masks where there are any."""
        return CocoMetrics(data, ("segm", "bbox") if self.masks else ("bbox",))

    @torch.no_grad()
    def predict(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Detections]:
        """The objects in images of any sizes."""
        model, most = model.eval(), LARGE_MASKS if self.masks else LARGE
        return [self._predict_one(model, image, most, device) for image in images]

    def _predict_one(self, model: nn.Module, image: Image.Image, most: int, device: torch.device | str) -> Detections:
        smaller = reduced(image, most)
        found = self.objects(self.infer(model, self.inputs([smaller], device))[0])
        if smaller is not image:
            scale = image.width / smaller.width, image.height / smaller.height
            found.boxes = found.boxes * np.array([*scale, *scale], dtype=np.float32)
            size = image.height, image.width
            found.masks = (
                None if found.masks is None else [EnlargedMask(np.asarray(mask), size) for mask in found.masks]
            )
        return found

    def ground_truth(self, target: dict[str, Any]) -> Detections:
        """The annotated objects of an image."""
        return self.objects(target)

    def objects(self, found: dict[str, Any]) -> Detections:
        """The detections of one image from its tensors."""
        arrays = {name: np.asarray(found[name].cpu()) for name in ("boxes", "labels", "scores") if name in found}
        masks = np.asarray(found["masks"].cpu()).astype(bool, copy=False) if self.masks else None
        return Detections(
            self.classes, arrays["boxes"], labels=arrays["labels"], scores=arrays.get("scores"), masks=masks
        )


class BatchTotals:
    """Padding and loss weights that the micro-batches of one batch share, over all processes.

    The short sides that images are resized to are drawn here, so that every micro-batch is padded as the batch would be
    and its positive anchors can be counted before the first one is learned.

    Args:
        micro_batches: images and targets of each.
    """

    def __init__(self, micro_batches: Sequence[tuple[list[Tensor], list[dict[str, Any]]]]):
        self.micro_batches = [(images, [dict(target) for target in targets]) for images, targets in micro_batches]
        self.weights: list[dict[str, Tensor]] = []

    def targets_and_weights(self, model: nn.Module, number: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Targets of a micro-batch, and weights of its losses by name, "" for all others."""
        if not self.weights:
            self._count(getattr(model, "module", model))
        return self.micro_batches[number][1], self.weights[number]

    def _count(self, detector: Any) -> None:
        device = self.micro_batches[0][0][0].device
        sizes = torch.tensor([detector.transform.draw_short_sides(*one) for one in self.micro_batches], device=device)
        padded = tuple(all_reduced(sizes.amax(0), largest=True).tolist())
        for _, targets in self.micro_batches:
            for target in targets:
                target["padded"] = padded
        normalizers = [detector.loss_normalizers(*one) for one in self.micro_batches]
        own = torch.tensor([list(one.values()) for one in normalizers], device=device)
        # the losses of a micro-batch are means over its own, or sums where it has none
        weights = own.clamp(min=1) * process_count() / all_reduced(own.sum(0)).clamp(min=1)
        self.weights = [dict(zip(normalizers[0], row, strict=True)) for row in weights]


class Detection(DenseTask):
    """The task "detection": boxes of objects; COCO's AP decides."""

    name = "detection"
    group = "detection"
    best_metric = "AP"
    source = "coco", "images and COCO's annotation files"
    heads = ("retinanet", "ssdlite", "sparse_rcnn")
    default_size = (800, 800)
    collate = staticmethod(collate_lists)
    masks = False

    def __init__(self, config: TrainConfig, classes: Sequence[str] | None = None):
        super().__init__(config, classes)
        if self.teacher is not None:
            self._check_teacher(self.teacher)

    def _check_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher without a pyramid of the student's width.

        Raises:
            UserError: saying what it has.
        """
        if teacher.meta.head != self.head:
            raise UserError(f"--teacher {teacher.path} has the head {teacher.meta.head}, not {self.head}.")
        width, default = cast(Any, teacher.network).backbone.out_channels, 256
        own = self.head_options.get("channels", default)
        if width != own:
            raise UserError(
                f"--teacher {teacher.path} has a pyramid of {width} channels and this network one of {own}: give "
                f"--head_options.channels {width}."
            )

    def open(self, train: bool) -> CocoImages:
        """One split of a COCO data set."""
        return open_instances(self.config.data, train, self.masks)

    def default_head_options(self) -> dict[str, Any]:
        """Number of classes, sizes and normalisation."""
        return {"num_classes": len(self.classes), **self.input_options()}

    def input_options(self) -> dict[str, Any]:
        """Options of the detector's resizing and normalisation.

        Raises:
            UserError: two sides for a detector that keeps the shape of images.
        """
        height, width = self.preprocess.image_size
        normal = {"image_mean": list(self.preprocess.mean), "image_std": list(self.preprocess.std)}
        if HEADS[self.head].one_size:
            return {"image_size": [height, width], **normal}
        if height != width:
            raise UserError(
                f"--image_size {height} {width}: head {self.head} keeps the shape of images; give one side."
            )
        return {"min_size": [height], "max_size": self.config.detection.max_side, **normal}

    def build_model(self) -> nn.Module:
        """The network with fresh weights, which resizes training images to the recipe's short sides."""
        model = super().build_model()
        if not HEADS[self.head].one_size and "min_size" not in self.config.head_options:
            sides = training_short_sides(self.config.detection, self.preprocess.image_size[0])
            cast(Any, model).transform.min_size = sides  # of which torchvision draws in training; the last is measured
        return model

    def smallest_input(self) -> tuple[int, int]:
        """(height, width) of the smallest batch: square, of the shortest side, padded as detectors do."""
        height, width = super().smallest_input()
        if HEADS[self.head].one_size:
            return height, width
        side = min(training_short_sides(self.config.detection, height))
        return -(-side // 32) * 32, -(-side // 32) * 32

    def build_inference(self) -> Any:
        """The inference of the validation split."""
        return DetectionInference(
            self.head, self.classes, masks=self.masks, options=self.config.inference, in_chans=self.preprocess.in_chans
        )

    def transform(self) -> PairTransform:
        """The recipe's changes; the detector resizes and normalises by itself."""
        colour = self.preprocess.mean if self.preprocess.in_chans == 3 else 3 * tuple(self.preprocess.mean)
        return DetectionTransform(detection_steps(self.config.detection, colour), self.preprocess.in_chans)

    def draw_target(self, image: Image.Image, batch: Any, number: int) -> Image.Image:
        """The image with what is annotated in it."""
        return self.inference.ground_truth(batch[1][number]).draw(image)

    def split(self, batch: tuple[list[Tensor], list[dict[str, Any]]], parts: int) -> list[tuple[Any, float]]:
        """A batch in micro-batches (images, targets, totals of the batch, own number), whose losses add up."""
        cut = [micro_batch for micro_batch, _ in split_batch(batch, parts)]
        totals = BatchTotals([(list(images), list(targets)) for images, targets in cut])
        return [((*micro_batch, totals, number), 1.0) for number, micro_batch in enumerate(cut)]

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum of the detector's losses of a micro-batch, normalised over the batch; (images, targets) are one batch.

        With a teacher also the loss between the levels of both pyramids, the mean over images and levels.
        """
        images, targets, totals, number = batch if len(batch) > 2 else self.split((batch[0], batch[1]), 1)[0][0]
        targets, weights = totals.targets_and_weights(model, number)
        offset = HEADS[self.head].first_label
        with seen_levels(model, self.teacher is not None) as seen:
            losses = model(images, [{**target, "labels": target["labels"] + offset} for target in targets])
        total = torch.stack([loss * weights.get(name, weights[""]) for name, loss in losses.items()]).sum()
        if self.teacher is not None:
            share = len(images) / sum(len(part) for part, _ in totals.micro_batches)
            total = total + share * self.config.distill.features * pyramid_loss(self.teacher, *seen[0])
        return total, total.new_full((), float("nan"))


@contextmanager
def seen_levels(model: nn.Module, wanted: bool) -> Iterator[list[tuple[Tensor, dict[str, Tensor]]]]:
    """While the context is open, what a detector's pyramid takes and gives is added to a list, if that is wanted."""
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []
    if not wanted:
        yield seen
        return
    backbone = cast(Any, getattr(model, "module", model)).backbone
    hook = backbone.register_forward_hook(lambda _, inputs, levels: seen.append((inputs[0], levels)))
    try:
        yield seen
    finally:
        hook.remove()


def pyramid_loss(teacher: Teacher, images: Tensor, levels: dict[str, Tensor]) -> Tensor:
    """One minus the cosine of the channels at each place of each level, the mean over places, levels and images.

    Args:
        teacher: a RetinaNet.
        images: (B, C, H, W), resized, normalised and padded as the student sees them.
        levels: of the student, (B, D, h, w) each, by name.
    """
    with torch.no_grad(), teacher.autocast(images.device):
        taught = cast(Any, teacher.on(images.device)).backbone(teacher.inputs(images))
    return torch.stack([feature_loss(level, taught[name]).mean() for name, level in levels.items()]).mean()


class InstanceSegmentation(Detection):
    """The task "instance_segmentation": boxes and masks of objects; COCO's AP of masks decides."""

    name = "instance_segmentation"
    heads = ("mask_rcnn",)
    masks = True
