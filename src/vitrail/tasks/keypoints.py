"""Keypoints of persons in boxes: task and inference of Simple Baseline (Xiao et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config.data import Preprocess
from ..config.tasks import InferenceConfig, KeypointsConfig
from ..data.datasets.base import AnnotatedSet
from ..data.datasets.coco_keypoints import CocoKeypoints, open_keypoints
from ..data.datasets.keypoint_names import mirror_of, mirrored
from ..data.loader import EvalLoader
from ..data.transforms.base import PairTransform
from ..data.transforms.keypoints import STRIDE, PersonCrop, TrainingCrop, crops_and_heatmaps, crops_and_targets
from ..errors import UserError
from ..metrics.coco import tolerance_note, tolerances
from ..metrics.keypoints import KeypointsMetrics, pose_score, to_image
from ..structures import Poses
from .base import Inference
from .with_head import DenseTask, Example


class KeypointsInference(Inference):
    """Inference with a trained network for keypoints.

    With `flip` the heat maps of the mirrored crop, mirrored back and with left and right exchanged, are averaged with
    those of the crop. They need no shift, other than in the original: see `data.transforms.keypoints`.

    Args:
        names: of the keypoints.
        preprocess: how a crop becomes the network's input.
        padding: a crop's sides over those of its box.
        options: of measuring and predicting.
        pairs: keypoints that change places in a mirror; None = as their names say.

    Raises:
        UserError: an option that is not for this task, an impossible size or padding, or `flip` where it is not known
            which keypoints change places.
    """

    saves = ("{}.json",)

    def __init__(
        self,
        names: Sequence[str],
        preprocess: Preprocess,
        padding: float,
        options: InferenceConfig,
        pairs: Sequence[tuple[int | str, int | str]] | None = None,
    ):
        options.check("keypoints")
        self.names, self.options = list(names), options
        self.mirrored = mirrored(names, pairs) if options.flip else []
        self.crop = PersonCrop(preprocess, padding)

    def batches(self, data: CocoKeypoints, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Crops (B, C, H, W), a list of their targets, and their numbers."""
        return EvalLoader(
            data, self.crop, batch_size=batch_size, workers=workers, rank=rank, world=world, collate=crops_and_targets
        )

    def inputs(self, images: Sequence[Image.Image], device: torch.device | str) -> Tensor:
        """Whole images as crops (B, C, H, W)."""
        return crops_and_targets([self.crop(image, {"box": whole(image)}) for image in images])[0].to(device)

    def infer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Crops -> (B, K, 3) positions of the keypoints in the crop, in pixels, and their scores."""
        maps = model(inputs).float()
        if self.options.flip:
            maps = (maps + model(inputs.flip(-1)).float().flip(-1)[:, self.mirrored]) / 2
        return decode_heatmaps(maps)

    def metrics(self, data: CocoKeypoints) -> KeypointsMetrics:
        """COCO's metrics of poses."""
        return KeypointsMetrics(data)

    def predict(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Poses]:
        """The keypoints of one person in each image, taken to fill it: crop the persons of larger images before.

        Raises:
            UserError: boxes are given, which name the images of a data set.
        """
        if self.options.boxes is not None:
            raise UserError("--inference.boxes is for measuring: its records name images of a data set.")
        return [self.predict_boxes(model, image, boxes=[whole(image)], scores=[1.0], device=device) for image in images]

    @torch.no_grad()
    def predict_boxes(
        self,
        model: nn.Module,
        image: Image.Image,
        boxes: Sequence[Sequence[float] | np.ndarray],
        scores: Sequence[float],
        device: torch.device | str,
    ) -> Poses:
        """The keypoints of the persons in boxes of one image.

        Args:
            model: put into evaluation mode.
            image: RGB.
            boxes: left, top, right, bottom in pixels; at least one.
            scores: of the boxes.
            device: where the network is.
        """
        crops, targets = crops_and_targets([self.crop(image, {"box": box}) for box in boxes])
        found = self.infer(model.eval(), crops.to(device)).cpu().double().numpy()
        poses = np.stack([to_image(pose, target["back"]) for pose, target in zip(found, targets, strict=True)])
        sure = [pose_score(score, pose) for score, pose in zip(scores, poses, strict=True)]
        return Poses(self.names, poses, np.array(sure))

    def ground_truth(self, target: dict[str, Any]) -> Poses:
        """The annotated person of the box; no person of a detector's box."""
        return self.annotated_poses([target["keypoints"]] if "keypoints" in target else [])

    def annotated_poses(self, keypoints: Sequence[np.ndarray]) -> Poses:
        """Annotated persons, from x, y and visibility of their keypoints."""
        poses = np.reshape([*keypoints], (-1, len(self.names), 3)).astype(np.float64)
        poses[:, :, 2] = poses[:, :, 2] > 0
        return Poses(self.names, poses)


def whole(image: Image.Image) -> tuple[float, float, float, float]:
    """The box of a whole image: left, top, right, bottom in pixels."""
    return (0.0, 0.0, float(image.width), float(image.height))


def decode_heatmaps(maps: Tensor) -> Tensor:
    """Heat maps (B, K, h, w) -> (B, K, 3): places in the crop, in pixels from its corner, and the maps' peaks.

    A keypoint is in the middle of the highest pixel, moved by a quarter of a pixel towards the higher neighbour on each
    axis; not at the map's edge.
    """
    rows, cols = maps.shape[-2:]
    flat = maps.flatten(2)
    peak, at = flat.max(2)
    y, x = at // cols, at % cols

    def higher(step: int, place: Tensor, count: int) -> Tensor:
        """-1, 0 or 1: where the higher of the neighbours `step` before and behind is."""
        inside = (place > 0) & (place < count - 1)
        before, behind = (flat.gather(2, torch.where(inside, at + by, at)[..., None])[..., 0] for by in (-step, step))
        return (behind - before).sign()

    place = torch.stack([x + 0.5 + higher(1, x, cols) / 4, y + 0.5 + higher(cols, y, rows) / 4], -1)
    return torch.cat([STRIDE * place, peak[..., None]], -1)


class Keypoints(DenseTask):
    """The task "keypoints": keypoints of persons in boxes; COCO's AP by OKS decides."""

    name = "keypoints"
    group = "keypoints"
    best_metric = "AP"
    source = "coco", "images and COCO's annotation files"
    heads = ("simple_baseline",)
    default_size = (256, 192)
    one_size = True
    collate = staticmethod(crops_and_heatmaps)

    def open(self, train: bool) -> CocoKeypoints:
        """One split of a COCO data set of persons with keypoints."""
        return open_keypoints(self.config.data, train, None if train else self.config.inference.boxes)

    def notes(self) -> list[str]:
        """Notes on the data, on crops that are not mirrored, and on tolerances that are not COCO's."""
        notes, config = super().notes(), self.config.keypoints
        partners, why = mirror_of(self.classes, config.flip_pairs)
        if partners is None and config.hflip:
            notes.append(f"crops are not mirrored: {why}")
        others = tolerances(self.classes)[1]
        if others:
            notes.append(tolerance_note(others))
        return notes

    def default_head_options(self) -> dict[str, Any]:
        """One heat map a keypoint."""
        return {"num_keypoints": len(self.classes)}

    def build_inference(self) -> KeypointsInference:
        """The inference of the validation split."""
        config: KeypointsConfig = self.config.keypoints
        mirror_of(self.classes, config.flip_pairs)  # wrong pairs are reported before training
        return KeypointsInference(
            self.classes,
            self.preprocess,
            padding=config.padding,
            options=self.config.inference,
            pairs=config.flip_pairs,
        )

    def transform(self) -> PairTransform:
        """The recipe's crops, and heat maps of their keypoints."""
        return TrainingCrop(self.preprocess, self.config.keypoints, self.classes)

    def draw_target(self, image: Image.Image, batch: Any, number: int) -> Image.Image:
        """The person with the highest places of its heatmaps."""
        _, maps, weights = batch
        pose = decode_heatmaps(maps[number : number + 1])[0]
        pose[:, 2] = (weights[number] > 0).float()
        return cast(KeypointsInference, self.inference).annotated_poses([pose.numpy()]).draw(image)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean squared error of the heat maps over all pixels, keypoints and persons.

        Keypoints that are not labelled, or lie outside the map, have no error but count in the mean, as in MMPose and
        the original (which has half of it), so that parts of a batch add up to the whole.
        """
        inputs, heatmaps, weights = batch
        errors = (model(inputs).float() - heatmaps).square().mean((2, 3))
        loss = (weights * errors).mean()
        return loss, loss.new_full((), float("nan"))

    def samples_by_image(self, data: AnnotatedSet) -> list[list[int]]:
        """Numbers of the persons in each image."""
        return cast(CocoKeypoints, data).by_image()

    def example(self, model: nn.Module, device: torch.device, data: AnnotatedSet, samples: Sequence[int]) -> Example:
        """Ground truth of one image, and the poses predicted in the boxes of the data."""
        data, inference = cast(CocoKeypoints, data), cast(KeypointsInference, self.inference)
        image, name = data.image(samples[0]), data.name(samples[0])
        targets = [data.target(number, image) for number in samples]
        boxes, scores = [target["box"] for target in targets], [target["score"] for target in targets]
        truth = inference.annotated_poses(data.annotated.get(targets[0]["image_id"], []))
        found = inference.predict_boxes(model, image, boxes=boxes, scores=scores, device=device)
        return Example(name, image, truth, found)
