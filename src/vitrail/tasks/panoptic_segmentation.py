"""Panoptic segmentation: the task and its inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config.tasks import InferenceConfig
from ..data.datasets.coco import CocoImages, CocoPanoptic, large_panoptic, open_panoptic
from ..data.large import reduced
from ..data.loader import EvalLoader
from ..data.transforms.base import collate_lists
from ..data.transforms.detection import DetectionTransform
from ..errors import UserError
from ..heads.panoptic_fpn import merge
from ..heads.resizing import use_bool_masks
from ..metrics.panoptic import PanopticMetrics
from ..structures import PanopticSegments, enlarged
from .base import Inference
from .detection import MASK_THRESH, Detection


class PanopticInference(Inference):
    """Inference with a trained panoptic network.

    Args:
        classes: names of things, then of stuff.
        num_things: number of things.
        options: of measuring and predicting.
        in_chans: of the network.

    Raises:
        UserError: an option that is not for this task.
    """

    saves = ("{}.panoptic.png", "{}.json")

    def __init__(self, classes: Sequence[str], num_things: int, options: InferenceConfig, in_chans: int = 3):
        self.prepare = DetectionTransform(in_chans=in_chans)
        options.check("panoptic_segmentation")
        self.classes, self.num_things = list(classes), num_things
        given = {
            "score_thresh": options.score_thresh,
            "nms_thresh": options.nms_thresh,
            "min_stuff_area": options.stuff_area,
        }
        self.thresholds: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.max_detections = options.max_detections

    def batches(self, data: CocoImages, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Lists of images at their own sizes, their targets, and their numbers."""
        return EvalLoader(
            data, self.prepare, batch_size=batch_size, workers=workers, rank=rank, world=world, collate=collate_lists
        )

    def inputs(self, images: Sequence[Image.Image], device: torch.device | str) -> list[Tensor]:
        """The images at their own sizes, of values in [0, 1]."""
        return [self.prepare(image, {})[0].to(device) for image in images]

    def infer(self, model: nn.Module, inputs: list[Tensor]) -> list[PanopticSegments]:
        """The segments of every image."""
        if self.max_detections is not None:
            cast(Any, model).roi_heads.detections_per_img = self.max_detections
        use_bool_masks(model, MASK_THRESH)
        return [self.segments(*merge(found, **self.thresholds)) for found in model(inputs)]

    def segments(self, ids: Tensor, known: list[dict[str, Any]]) -> PanopticSegments:
        """The result of `merge`, in which labels of things count from 1 and those of stuff from 0."""
        segments = [{**s, "label": s["label"] - 1 if s["thing"] else s["label"] + self.num_things} for s in known]
        return PanopticSegments(self.classes, ids.cpu().numpy(), segments)

    def metrics(self, data: CocoPanoptic) -> PanopticMetrics:
        """Panoptic quality."""
        return PanopticMetrics(data)

    @torch.no_grad()
    def predict(
        self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str
    ) -> list[PanopticSegments]:
        """The segments of images of any sizes."""
        model, most = model.eval(), large_panoptic(len(self.classes))
        return [self._predict_one(model, image, most, device) for image in images]

    def _predict_one(
        self, model: nn.Module, image: Image.Image, most: int, device: torch.device | str
    ) -> PanopticSegments:
        smaller = reduced(image, most)
        found = self.infer(model, self.inputs([smaller], device))[0]
        return found if smaller is image else enlarged(found, (image.height, image.width))

    def ground_truth(self, target: dict[str, Any]) -> PanopticSegments:
        """The annotated segments of an image."""
        semantic = np.asarray(target["semantic"])
        ids, known = np.zeros_like(semantic), []
        stuff = len(self.classes) - self.num_things
        masks = [(semantic == label, label + self.num_things, False) for label in np.unique(semantic) if label < stuff]
        things = zip(np.asarray(target["masks"]).astype(bool), target["labels"].tolist(), strict=True)
        for mask, label, thing in [*masks, *((mask, label, True) for mask, label in things)]:
            ids[mask] = len(known) + 1
            area = int(mask.sum())
            known.append({"id": len(known) + 1, "label": int(label), "thing": thing, "score": None, "area": area})
        return PanopticSegments(self.classes, ids, known)


class PanopticSegmentation(Detection):
    """The task "panoptic_segmentation": a segment for every pixel; PQ decides."""

    name = "panoptic_segmentation"
    best_metric = "PQ"
    heads = ("panoptic_fpn",)

    def open(self, train: bool) -> CocoPanoptic:
        """One split of a COCO data set with panoptic segments."""
        if self.config.detection.zoom_out:
            raise UserError("--detection.zoom_out is not for panoptic_segmentation: nothing is known of the canvas.")
        return open_panoptic(self.config.data, train)

    def default_head_options(self) -> dict[str, Any]:
        """Numbers of things and stuff, sizes and normalisation."""
        if "num_things" in self.config.head_options:  # a network that is trained already
            return self.input_options()
        train_set = cast(CocoPanoptic, self.train_set)
        return {"num_things": len(train_set.things), "num_stuff": len(train_set.stuff), **self.input_options()}

    def build_inference(self) -> Any:
        """The inference of the validation split."""
        return PanopticInference(
            self.classes, self.head_options["num_things"], self.config.inference, self.preprocess.in_chans
        )
