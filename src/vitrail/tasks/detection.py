"""Objects in boxes, and with masks: training, measuring and using detectors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config import InferenceConfig
from ..data.base import JointTransform
from ..data.coco import CocoPictures, open_instances
from ..data.coco_masks import runs_of
from ..data.joint import Joint, detection_steps, training_sides
from ..data.large import LARGE, LARGE_MASKS, EnlargedMask, reduced
from ..data.loader import EvalLoader, listed
from ..data.task_config import INFERENCE_OPTIONS
from ..drawing import draw_boxes, draw_masks
from ..errors import UserError
from ..heads.resizing import small_masks
from ..metrics.coco import average_precision, counting_tools
from .base import over_processes, parts_of, process_count
from .headed import HeadedTask

#: label of the first class, where it is not 0: the background has that
FIRST_LABEL = {"mask_rcnn": 1, "ssdlite": 1, "panoptic_fpn": 1}
#: option of `InferenceConfig` -> attribute of the detectors
SETTINGS = {"score_thresh": "score_thresh", "nms_thresh": "nms_thresh", "max_detections": "detections_per_img"}
#: probability from which a pixel belongs to an object
MASK_THRESH = 0.5
#: least score of what is drawn and told of
SHOWN = 0.5


@dataclass
class Objects:
    """Objects of one picture.

    Attributes:
        classes: names of all classes.
        boxes: (N, 4) left, top, right, bottom in pixels.
        labels: (N,) indices of classes.
        scores: (N,) in [0, 1]; None of what is truly there.
        masks: (N, H, W) bool, or of a large image N of `EnlargedMask`; None = there are none.
    """

    classes: Sequence[str]
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    masks: np.ndarray | list[EnlargedMask] | None = None

    def record(self) -> dict[str, Any]:
        """boxes, classes, scores, and masks as COCO's run lengths, where there are any; best scores first."""
        record: dict[str, Any] = {
            "boxes": [[round(float(v), 2) for v in box] for box in self.boxes],
            "classes": [self.classes[i] for i in self.labels],
            "scores": None if self.scores is None else [round(float(s), 6) for s in self.scores],
        }
        if self.masks is not None:
            record["masks"] = [runs_of(mask) for mask in self.masks]
        return record

    def shown(self) -> np.ndarray:
        """Indices of what is sure enough to be drawn, the surest last, so that it lies on top."""
        if self.scores is None:
            return np.arange(len(self.boxes))
        order = np.argsort(self.scores, kind="stable")
        return order[self.scores[order] >= SHOWN]

    def sentence(self) -> str:
        """How many of each class, such as "2 person, 1 dog"."""
        counts = Counter(self.classes[int(label)] for label in self.labels[self.shown()])
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """Boxes with class and score, and masks."""
        shown = self.shown()
        if self.masks is not None:
            image = draw_masks(image, [self.masks[i] for i in shown], range(len(shown)))
        labels = [int(label) for label in self.labels[shown]]
        scores = ["" if self.scores is None else f" {self.scores[i]:.2f}" for i in shown]
        texts = [self.classes[label] + score for label, score in zip(labels, scores, strict=True)]
        return draw_boxes(image, self.boxes[shown].tolist(), texts, labels)

    def save(self, folder: Path, stem: str) -> None:
        """The record as JSON."""
        (folder / f"{stem}.json").write_text(json.dumps(self.record()), encoding="utf-8")


class DetectionInference:
    """How a trained detector is used.

    Args:
        head: its name.
        classes: names.
        masks: it finds masks, too.
        options: of measuring and predicting.
        in_chans: of the network.

    Raises:
        UserError: an option the head has not, or a value it cannot have.
    """

    saves = ("{}.json",)

    def __init__(self, head: str, classes: Sequence[str], masks: bool, options: InferenceConfig, in_chans: int = 3):
        self.prepare = Joint(in_chans=in_chans)
        self.classes, self.masks = list(classes), masks
        self.first = FIRST_LABEL.get(head, 0)
        options.check(head if head in INFERENCE_OPTIONS else "detection")
        given = {attribute: getattr(options, name) for name, attribute in SETTINGS.items()}
        self.settings = {attribute: value for attribute, value in given.items() if value is not None}

    def batches(self, data: CocoPictures, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Lists of pictures at their own sizes, what is known of them, and their numbers."""
        return EvalLoader(data, self.prepare, batch_size, workers, rank, world, collate=listed)

    def infer(self, model: nn.Module, inputs: list[Tensor]) -> list[dict[str, Tensor]]:
        """boxes, labels from 0, scores, and masks (N, H, W) bool, of every picture."""
        self._set(model)
        found = model(inputs)
        return [self._plain(one) for one in found]

    def _set(self, model: nn.Module) -> None:
        if self.masks:
            small_masks(model, MASK_THRESH)
        owner = cast(Any, getattr(model, "roi_heads", model))
        for name, value in self.settings.items():
            setattr(owner, name, value)

    def _plain(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        one = {"boxes": found["boxes"], "labels": found["labels"] - self.first, "scores": found["scores"]}
        if self.masks:
            masks = found["masks"][:, 0]
            # compared with a number, bool would become floats of four times its memory
            one["masks"] = masks if masks.dtype == torch.bool else masks >= MASK_THRESH
        return one

    def metrics(self, data: CocoPictures) -> CocoMetrics:
        """COCO's figures of boxes, and of masks where there are any."""
        return CocoMetrics(data, ("segm", "bbox") if self.masks else ("bbox",))

    @torch.no_grad()
    def find(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Objects]:
        """The objects in pictures of any sizes."""
        model, most = model.eval(), LARGE_MASKS if self.masks else LARGE
        return [self._find_one(model, image, most, device) for image in images]

    def _find_one(self, model: nn.Module, image: Image.Image, most: int, device: torch.device | str) -> Objects:
        smaller = reduced(image, most)
        found = self.objects(self.infer(model, [self.prepare(smaller, {})[0].to(device)])[0])
        if smaller is not image:
            scale = image.width / smaller.width, image.height / smaller.height
            found.boxes = found.boxes * np.array([*scale, *scale], dtype=np.float32)
            size = image.height, image.width
            found.masks = (
                None if found.masks is None else [EnlargedMask(np.asarray(mask), size) for mask in found.masks]
            )
        return found

    def truth(self, target: dict[str, Any]) -> Objects:
        """The objects that are truly there."""
        return self.objects(target)

    def objects(self, found: dict[str, Any]) -> Objects:
        """Tensors of one picture as objects."""
        arrays = {name: np.asarray(found[name].cpu()) for name in ("boxes", "labels", "scores") if name in found}
        masks = np.asarray(found["masks"].cpu()).astype(bool, copy=False) if self.masks else None
        return Objects(self.classes, arrays["boxes"], arrays["labels"], arrays.get("scores"), masks)


class CocoMetrics:
    """What a detector finds in the pictures of a COCO data set, and COCO's figures of it.

    Args:
        data: the pictures, and what is truly there.
        kinds: of `metrics.coco.KINDS`; the first one's figures have the plain names, those of boxes beside masks begin
            with "box_".

    Raises:
        UserError: the extra is missing.
    """

    def __init__(self, data: CocoPictures, kinds: Sequence[str]):
        counting_tools()  # that they are missing is said before anything is counted
        self.data, self.kinds = data, kinds
        self.results: list[dict[str, Any]] = []

    def update(self, output: list[dict[str, Tensor]], batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Take in what was found in one batch."""
        for found, target in zip(output, batch[1], strict=True):
            self.results += results_of(found, target["image_id"], self.data.category_ids, target.get("sizes"))

    def state(self) -> dict[str, Tensor]:
        """The results as the bytes of their JSON."""
        return packed(self.results)

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the results by those of all processes."""
        self.results = [record for state in states for record in unpacked(state)]

    def compute(self) -> dict[str, Any]:
        """COCO's figures in [0, 1], and the number of pictures."""
        figures: dict[str, Any] = {}
        for i, kind in enumerate(self.kinds):
            own = average_precision(self.data.content, self.results, kind)
            rows = own.pop("per_class")
            figures |= {f"{'' if i == 0 else 'box_'}{name}": value for name, value in own.items()}
            figures.setdefault("per_class", rows)
        figures["images"] = len(self.data)
        return figures

    def report(self, folder: Path) -> None:
        """Write the results as a COCO results file."""
        (folder / "results.json").write_text(json.dumps(self.results), encoding="utf-8")


def packed(results: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Records as one tensor of bytes."""
    return {"results": torch.frombuffer(bytearray(json.dumps(results).encode()), dtype=torch.uint8)}


def unpacked(state: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The records of `packed`."""
    return json.loads(bytes(state["results"].cpu().numpy()).decode())


def results_of(
    found: dict[str, Tensor],
    image_id: int,
    category_ids: Sequence[int],
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """The objects of one image as COCO results.

    Args:
        found: boxes, labels, scores, and masks where there are any.
        image_id: of the image.
        category_ids: of the labels.
        sizes: (height, width) of a large image, and of what it was reduced to and looked at; None = it was not.
    """
    boxes = found["boxes"].float().cpu()
    if sizes is not None:
        (height, width), (h, w) = sizes
        boxes = boxes * torch.tensor([width / w, height / h]).repeat(2)
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    if "masks" in found:
        for record, mask in zip(results, found["masks"].cpu().numpy(), strict=True):
            record["segmentation"] = runs_of(mask if sizes is None else EnlargedMask(mask, sizes[0]))
    return results


class WholeBatch:
    """What the parts of a batch have to know of all of it, over all processes.

    The short sides that images are resized to are drawn here, so that every part is padded as the whole batch would be
    and its positive anchors can be counted before the first part is learned.

    Args:
        parts: images and targets of each.
    """

    def __init__(self, parts: Sequence[tuple[list[Tensor], list[dict[str, Any]]]]):
        self.parts = [(images, [dict(target) for target in targets]) for images, targets in parts]
        self.weights: list[dict[str, Tensor]] = []

    def part(self, model: nn.Module, number: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Targets of a part, and weights of its losses by their names, "" for all others."""
        if not self.weights:
            self._count(getattr(model, "module", model))
        return self.parts[number][1], self.weights[number]

    def _count(self, detector: Any) -> None:
        device = self.parts[0][0][0].device
        sizes = torch.tensor([detector.transform.choose(*part) for part in self.parts], device=device)
        padded = tuple(over_processes(sizes.amax(0), largest=True).tolist())
        for _, targets in self.parts:
            for target in targets:
                target["padded"] = padded
        counts = [detector.counts(*part) for part in self.parts]
        own = torch.tensor([list(count.values()) for count in counts], device=device)
        # each part's losses are means over its own, or sums where it has none
        weights = own.clamp(min=1) * process_count() / over_processes(own.sum(0)).clamp(min=1)
        self.weights = [dict(zip(counts[0], row, strict=True)) for row in weights]


class Detection(HeadedTask):
    """The task "detection": boxes of objects; COCO's AP decides."""

    name = "detection"
    group = "detection"
    best_metric = "AP"
    source = "coco", "pictures and COCO's annotation files"
    heads = ("retinanet", "ssdlite", "sparse_rcnn")
    usual_size = (800, 800)
    collate = staticmethod(listed)
    masks = False

    def open(self, train: bool) -> CocoPictures:
        """One part of a COCO data set."""
        return open_instances(self.config.data, train, self.masks)

    def usual_options(self) -> dict[str, Any]:
        """Classes, sizes and normalisation."""
        return {"num_classes": len(self.classes), **self.input_options()}

    def input_options(self) -> dict[str, Any]:
        """How the detector resizes and normalises.

        Raises:
            UserError: two sides for a detector that keeps the shape of pictures.
        """
        height, width = self.preprocess.image_size
        normal = {"image_mean": list(self.preprocess.mean), "image_std": list(self.preprocess.std)}
        if self.head == "ssdlite":
            return {"image_size": [height, width], **normal}
        if height != width:
            raise UserError(
                f"--image_size {height} {width}: head {self.head} keeps the shape of pictures; give one side."
            )
        return {"min_size": [height], "max_size": self.config.detection.max_side, **normal}

    def build_model(self) -> nn.Module:
        """The network with fresh weights, which resizes training images to the recipe's short sides."""
        model = super().build_model()
        if self.head != "ssdlite" and "min_size" not in self.config.head_options:
            sides = training_sides(self.config.detection, self.preprocess.image_size[0])
            cast(Any, model).transform.min_size = sides  # of which torchvision draws in training; the last is measured
        return model

    def smallest_input(self) -> tuple[int, int]:
        """(height, width) of the smallest batch: square, of the shortest side, padded as detectors do."""
        height, width = super().smallest_input()
        if self.head == "ssdlite":
            return height, width
        side = min(training_sides(self.config.detection, height))
        return -(-side // 32) * 32, -(-side // 32) * 32

    def build_inference(self) -> Any:
        """How the detector is used on the held-back part."""
        return DetectionInference(self.head, self.classes, self.masks, self.config.inference, self.preprocess.in_chans)

    def transform(self) -> JointTransform:
        """The recipe's changes; the detector resizes and normalises by itself."""
        colour = self.preprocess.mean if self.preprocess.in_chans == 3 else 3 * tuple(self.preprocess.mean)
        return Joint(detection_steps(self.config.detection, colour), self.preprocess.in_chans)

    def split(self, batch: tuple[list[Tensor], list[dict[str, Any]]], parts: int) -> list[tuple[Any, float]]:
        """A batch in parts (images, targets, the whole batch, number of the part), whose losses add up."""
        cut = [part for part, _ in parts_of(batch, parts)]
        whole = WholeBatch([(list(images), list(targets)) for images, targets in cut])
        return [((*part, whole, number), 1.0) for number, part in enumerate(cut)]

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum of the detector's losses of a part, over what is in the whole batch; (images, targets) are one batch."""
        images, targets, whole, number = batch if len(batch) > 2 else self.split((batch[0], batch[1]), 1)[0][0]
        targets, weights = whole.part(model, number)
        first = FIRST_LABEL.get(self.head, 0)
        moved = [{**target, "labels": target["labels"] + first} for target in targets]
        losses = model(images, moved)
        total = torch.stack([loss * weights.get(name, weights[""]) for name, loss in losses.items()]).sum()
        return total, total.new_full((), float("nan"))


class InstanceSegmentation(Detection):
    """The task "instance_segmentation": boxes and masks of objects; COCO's AP of masks decides."""

    name = "instance_segmentation"
    heads = ("mask_rcnn",)
    masks = True
