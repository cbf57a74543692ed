"""Joints of people in boxes: training, measuring and using Simple Baseline (Xiao et al., ECCV 2018)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config import InferenceConfig
from ..data.base import JointTransform
from ..data.config import Preprocess
from ..data.keypoint_names import coco_numbers, mirror_of, mirrored
from ..data.loader import EvalLoader
from ..data.people import CocoPeople, open_people
from ..data.people_transforms import (
    STRIDE,
    PersonCrop,
    TrainingCrop,
    crops_and_heatmaps,
    crops_and_targets,
    moved,
)
from ..data.task_config import KeypointsConfig
from ..drawing import SKELETON, draw_joints
from ..errors import UserError
from ..metrics.coco import average_precision, counting_tools, tolerance_remark, tolerances
from .detection import packed, unpacked
from .headed import HeadedTask, Look, spread

#: least score of a joint that counts towards its pose's score, and that is told of and drawn
SURE = 0.2
#: of two poses more alike than this, by OKS, the surer one stays
ALIKE = 0.9


@dataclass
class People:
    """People of one picture.

    Attributes:
        names: of the joints.
        poses: (N, K, 3) x and y as pixel numbers of the picture, and score; of what is true 1 where it is labelled.
        scores: (N,) of the poses; None of what is truly there.
    """

    names: Sequence[str]
    poses: np.ndarray
    scores: np.ndarray | None = None

    def record(self) -> dict[str, Any]:
        """joints: names; keypoints: of each person [x, y, score] of each joint; scores: of each person."""
        rounded = [[[round(x, 2), round(y, 2), round(s, 6)] for x, y, s in pose] for pose in self.poses.tolist()]
        scores = None if self.scores is None else [round(float(score), 6) for score in self.scores]
        return {"joints": list(self.names), "keypoints": rounded, "scores": scores}

    def sentence(self) -> str:
        """How many people with how many joints, such as "2 people with 17 and 9 of 17 joints"."""
        if not len(self.poses):
            return "nobody"
        *most, last = (str(count) for count in (self.poses[:, :, 2] >= SURE).sum(1))
        counts = f"{', '.join(most)} and {last}" if most else last
        who = "1 person" if len(self.poses) == 1 else f"{len(self.poses)} people"
        return f"{who} with {counts} of {len(self.names)} joints"

    def draw(self, image: Image.Image) -> Image.Image:
        """Joints and the lines between them, a colour a person."""
        return draw_joints(image, list(self.poses), SURE, skeleton_of(self.names))

    def save(self, folder: Path, stem: str) -> None:
        """The record as JSON."""
        (folder / f"{stem}.json").write_text(json.dumps(self.record()), encoding="utf-8")


def skeleton_of(names: Sequence[str]) -> list[tuple[int, int]]:
    """The lines between keypoints that are COCO's by their names, in whatever place these stand."""
    places = {number: place for place, number in enumerate(coco_numbers(names)) if number is not None}
    return [(places[a], places[b]) for a, b in SKELETON if a in places and b in places]


class KeypointsInference:
    """How a trained network for joints is used.

    With `flip` the heat maps of the mirrored crop, mirrored back and with left and right exchanged, are averaged with
    those of the crop. They need no shift, other than in the original: see `data.people_transforms`.

    Args:
        names: of the joints.
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

    def batches(self, data: CocoPeople, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Crops (B, C, H, W), a list of what is known of them, and their numbers."""
        return EvalLoader(data, self.crop, batch_size, workers, rank, world, collate=crops_and_targets)

    def infer(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Crops -> (B, K, 3) places of the joints in the crop, in pixels, and their scores."""
        maps = model(inputs).float()
        if self.options.flip:
            maps = (maps + model(inputs.flip(-1)).float().flip(-1)[:, self.mirrored]) / 2
        return decoded(maps)

    def metrics(self, data: CocoPeople) -> KeypointsMetrics:
        """COCO's figures of poses."""
        return KeypointsMetrics(data)

    def find(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[People]:
        """The joints of one person in each picture, who is taken to fill it: crop others before.

        Raises:
            UserError: boxes are given, which name the pictures of a data set.
        """
        if self.options.boxes is not None:
            raise UserError("--inference.boxes is for measuring: its records name pictures of a data set.")
        return [self.look(model, image, [(0.0, 0.0, *image.size)], [1.0], device) for image in images]

    @torch.no_grad()
    def look(
        self,
        model: nn.Module,
        image: Image.Image,
        boxes: Sequence[Sequence[float] | np.ndarray],
        scores: Sequence[float],
        device: torch.device | str,
    ) -> People:
        """The joints of the people in boxes of one picture.

        Args:
            model: put into evaluation mode.
            image: RGB.
            boxes: left, top, right, bottom in pixels; at least one.
            scores: of the boxes.
            device: where the network is.
        """
        crops, targets = crops_and_targets([self.crop(image, {"box": box}) for box in boxes])
        found = self.infer(model.eval(), crops.to(device)).cpu().double().numpy()
        poses = np.stack([in_picture(pose, target["back"]) for pose, target in zip(found, targets, strict=True)])
        sure = [pose_score(score, pose) for score, pose in zip(scores, poses, strict=True)]
        return People(self.names, poses, np.array(sure))

    def truth(self, target: dict[str, Any]) -> People:
        """The person that is truly in the box; nobody in a detector's."""
        return self.true_people([target["joints"]] if "joints" in target else [])

    def true_people(self, joints: Sequence[np.ndarray]) -> People:
        """Annotated people, from x, y and visibility of their joints."""
        poses = np.reshape([*joints], (-1, len(self.names), 3)).astype(np.float64)
        poses[:, :, 2] = poses[:, :, 2] > 0
        return People(self.names, poses)


def decoded(maps: Tensor) -> Tensor:
    """Heat maps (B, K, h, w) -> (B, K, 3): places in the crop, in pixels from its corner, and the maps' peaks.

    A joint is in the middle of the highest pixel, moved by a quarter of a pixel towards the higher neighbour on each
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


def in_picture(pose: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(K, 3) places in a crop and scores -> pixel numbers of the picture and scores."""
    return np.column_stack([moved(pose[:, :2], back) - 0.5, pose[:, 2]])


def pose_score(score: float, pose: np.ndarray) -> float:
    """The box's score times the mean of the joints' scores above `SURE`; 0 if there are none."""
    sure = pose[pose[:, 2] > SURE, 2]
    return score * float(sure.mean()) if len(sure) else 0.0


class KeypointsMetrics:
    """Poses in the boxes of a COCO data set, and COCO's figures of them.

    As in the original, a pose goes if it is nearly that of a surer one in its picture (see `distinct`).

    Args:
        data: the people, and what is truly there.

    Raises:
        UserError: the extra is missing.
    """

    def __init__(self, data: CocoPeople):
        counting_tools()  # that they are missing is said before anything is counted
        self.data = data
        self.sigmas = tolerances(data.classes)[0]
        self.results: list[dict[str, Any]] = []

    def update(self, output: Tensor, batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Take in the poses of one batch."""
        for found, target in zip(output.cpu().double().numpy(), batch[1], strict=True):
            pose = in_picture(found, target["back"])
            self.results.append(
                {
                    "image_id": target["image_id"],
                    "category_id": self.data.category_id,
                    "keypoints": pose.ravel().tolist(),
                    "score": pose_score(target["score"], pose),
                    "area": target["area"],
                }
            )

    def state(self) -> dict[str, Tensor]:
        """The results as the bytes of their JSON."""
        return packed(self.results)

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the results by those of all processes."""
        self.results = [record for state in states for record in unpacked(state)]

    def compute(self) -> dict[str, Any]:
        """COCO's figures by OKS, in [0, 1], and the number of boxes that were looked into."""
        figures = average_precision(self.data.content, distinct(self.results, self.sigmas), "keypoints")
        return {**figures, "boxes": len(self.data)}

    def report(self, folder: Path) -> None:
        """Write the poses as a COCO results file."""
        (folder / "results.json").write_text(json.dumps(distinct(self.results, self.sigmas)), encoding="utf-8")


def distinct(results: Sequence[dict[str, Any]], sigmas: np.ndarray) -> list[dict[str, Any]]:
    """Poses without those that are more like a surer one of their picture than `ALIKE`, best scores first.

    How alike two poses are is COCO's object keypoint similarity over all joints, with the mean area of their crops.

    Args:
        results: COCO results with "area".
        sigmas: (K,) OKS's tolerance of each keypoint.
    """
    variances = (2 * sigmas) ** 2
    kept: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    places: dict[int | str, list[np.ndarray]] = defaultdict(list)
    for record in sorted(results, key=lambda record: -record["score"]):
        image_id = record["image_id"]
        place = np.reshape(record["keypoints"], (-1, 3))[:, :2]
        if kept[image_id]:
            squares = ((np.stack(places[image_id]) - place) ** 2).sum(2)  # (others, K)
            areas = np.array([(other["area"] + record["area"]) / 2 for other in kept[image_id]])
            if (np.exp(-squares / (2 * areas[:, None] * variances)).mean(1) > ALIKE).any():
                continue
        kept[image_id].append(record)
        places[image_id].append(place)
    return [record for own in kept.values() for record in own]


class Keypoints(HeadedTask):
    """The task "keypoints": joints of people in boxes; COCO's AP by OKS decides."""

    name = "keypoints"
    group = "keypoints"
    best_metric = "AP"
    source = "coco", "pictures and COCO's annotation files"
    heads = ("simple_baseline",)
    usual_size = (256, 192)
    one_size = True
    collate = staticmethod(crops_and_heatmaps)

    def open(self, train: bool) -> CocoPeople:
        """One part of a COCO data set of people with joints."""
        return open_people(self.config.data, train, None if train else self.config.inference.boxes)

    def notes(self) -> list[str]:
        """What of the data is not learned from, what is not mirrored, and which tolerances are not COCO's."""
        notes, config = super().notes(), self.config.keypoints
        partners, why = mirror_of(self.classes, config.flip_pairs)
        if partners is None and config.hflip:
            notes.append(f"crops are not mirrored: {why}")
        others = tolerances(self.classes)[1]
        if others:
            notes.append(tolerance_remark(others))
        return notes

    def usual_options(self) -> dict[str, Any]:
        """A heat map a joint."""
        return {"num_joints": len(self.classes)}

    def build_inference(self) -> KeypointsInference:
        """How the network is used on the held-back part."""
        config: KeypointsConfig = self.config.keypoints
        mirror_of(self.classes, config.flip_pairs)  # that pairs are wrong is said before anything is learned
        return KeypointsInference(
            self.classes, self.preprocess, config.padding, self.config.inference, config.flip_pairs
        )

    def transform(self) -> JointTransform:
        """The recipe's crops, and heat maps of their joints."""
        return TrainingCrop(self.preprocess, self.config.keypoints, self.classes)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean squared error of the heat maps over all pixels, joints and people.

        Joints that are not labelled, or lie outside the map, have no error but count in the mean, as in MMPose and the
        original (which has half of it), so that parts of a batch add up to the whole.
        """
        inputs, heatmaps, weights = batch
        errors = (model(inputs).float() - heatmaps).square().mean((2, 3))
        loss = (weights * errors).mean()
        return loss, loss.new_full((), float("nan"))

    def looks(self, model: nn.Module, device: torch.device, count: int) -> Iterator[Look]:
        """At `count` held-back pictures: the people that the network finds in their boxes."""
        data, inference = cast(CocoPeople, self.eval_set), cast(KeypointsInference, self.inference)
        pictures = data.by_picture()
        for numbers in (pictures[i] for i in spread(len(pictures), count)):
            image, name = data.image(numbers[0]), data.name(numbers[0])
            targets = [data.target(number, image) for number in numbers]
            boxes, scores = [target["box"] for target in targets], [target["score"] for target in targets]
            truth = inference.true_people(data.annotated.get(targets[0]["image_id"], []))
            yield name, image, truth, inference.look(model, image, boxes, scores, device)
