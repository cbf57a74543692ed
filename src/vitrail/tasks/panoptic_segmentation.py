"""A segment for every pixel: training, measuring and using panoptic networks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..config import InferenceConfig
from ..data.coco import CocoPanoptic, CocoPictures, large_panoptic, open_panoptic
from ..data.coco_masks import pixels_of
from ..data.joint import Joint
from ..data.large import EnlargedMask, reduced, reduced_size
from ..data.loader import EvalLoader, listed
from ..drawing import Where, colour_of, draw_masks, with_legend
from ..errors import UserError
from ..heads.panoptic_fpn import merge
from ..heads.resizing import small_masks
from ..metrics.panoptic import PanopticQuality, Segment, Tally
from .base import summed, write_classes
from .detection import MASK_THRESH, Detection, packed, unpacked


@dataclass
class Segments:
    """Segments of one picture.

    Attributes:
        classes: names of things, then of stuff.
        ids: (H, W) number of each pixel's segment, 0 where there is none.
        known: for each number {"id", "label": index of its class, "thing", "score": of a thing, else None, "area"}.
    """

    classes: list[str]
    ids: np.ndarray
    known: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """The segments, largest first: id, class, thing, score, and area in pixels."""
        ordered = sorted(self.known, key=lambda segment: -segment["area"])
        names = ("id", "class", "thing", "score", "area")
        return {"segments": [{n: {**s, "class": self.classes[s["label"]]}[n] for n in names} for s in ordered]}

    def sentence(self) -> str:
        """The classes, largest segments first, with the number of segments of things."""
        counts: dict[str, int] = {}
        for segment in self.record()["segments"]:
            counts[segment["class"]] = counts.get(segment["class"], 0) + 1
        return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items()) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """Segments in colours of their own, with a legend of their classes."""
        ordered = sorted(self.known, key=lambda segment: -segment["area"])
        coloured = draw_masks(image, [Where(self.ids, s["id"]) for s in ordered], range(len(ordered)))
        return with_legend(coloured, [(self.classes[s["label"]], colour_of(i)) for i, s in enumerate(ordered)])

    def save(self, folder: Path, stem: str) -> None:
        """The map as COCO's panoptic PNG, and the record as JSON."""
        Image.fromarray(pixels_of(self.ids)).save(folder / f"{stem}.panoptic.png")
        (folder / f"{stem}.json").write_text(json.dumps(self.record()), encoding="utf-8")


class PanopticInference:
    """How a trained panoptic network is used.

    Args:
        classes: names of things, then of stuff.
        num_things: how many are things.
        options: of measuring and predicting.
        in_chans: of the network.

    Raises:
        UserError: an option that is not for this task.
    """

    saves = ("{}.panoptic.png", "{}.json")

    def __init__(self, classes: Sequence[str], num_things: int, options: InferenceConfig, in_chans: int = 3):
        self.prepare = Joint(in_chans=in_chans)
        options.check("panoptic_segmentation")
        self.classes, self.num_things = list(classes), num_things
        given = {
            "score_thresh": options.score_thresh,
            "nms_thresh": options.nms_thresh,
            "least_stuff": options.stuff_area,
        }
        self.thresholds: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.max_detections = options.max_detections

    def batches(self, data: CocoPictures, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Lists of pictures at their own sizes, what is known of them, and their numbers."""
        return EvalLoader(data, self.prepare, batch_size, workers, rank, world, collate=listed)

    def infer(self, model: nn.Module, inputs: list[Tensor]) -> list[Segments]:
        """The segments of every picture."""
        if self.max_detections is not None:
            cast(Any, model).roi_heads.detections_per_img = self.max_detections
        small_masks(model, MASK_THRESH)
        return [self.segments(*merge(found, **self.thresholds)) for found in model(inputs)]

    def segments(self, ids: Tensor, known: list[dict[str, Any]]) -> Segments:
        """The result of `merge`, in which labels of things count from 1 and those of stuff from 0."""
        moved = [{**s, "label": s["label"] - 1 if s["thing"] else s["label"] + self.num_things} for s in known]
        return Segments(self.classes, ids.cpu().numpy(), moved)

    def metrics(self, data: CocoPanoptic) -> PanopticMetrics:
        """Panoptic quality."""
        return PanopticMetrics(data)

    @torch.no_grad()
    def find(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Segments]:
        """The segments of pictures of any sizes."""
        model, most = model.eval(), large_panoptic(len(self.classes))
        return [self._find_one(model, image, most, device) for image in images]

    def _find_one(self, model: nn.Module, image: Image.Image, most: int, device: torch.device | str) -> Segments:
        smaller = reduced(image, most)
        found = self.infer(model, [self.prepare(smaller, {})[0].to(device)])[0]
        return found if smaller is image else enlarged(found, (image.height, image.width))

    def truth(self, target: dict[str, Any]) -> Segments:
        """The segments that are truly there."""
        semantic = np.asarray(target["semantic"])
        ids, known = np.zeros_like(semantic), []
        stuff = len(self.classes) - self.num_things
        parts = [(semantic == label, label + self.num_things, False) for label in np.unique(semantic) if label < stuff]
        things = zip(np.asarray(target["masks"]).astype(bool), target["labels"].tolist(), strict=True)
        for mask, label, thing in [*parts, *((mask, label, True) for mask, label in things)]:
            ids[mask] = len(known) + 1
            area = int(mask.sum())
            known.append({"id": len(known) + 1, "label": int(label), "thing": thing, "score": None, "area": area})
        return Segments(self.classes, ids, known)


def enlarged(found: Segments, size: tuple[int, int]) -> Segments:
    """Segments of an image that was reduced, in the pixels of the image itself, of (height, width)."""
    ids = np.asarray(EnlargedMask(found.ids.astype(np.int32), size))
    areas = np.zeros(len(found.known) + 1, dtype=np.int64)
    for row in ids:  # numpy counts 64-bit numbers
        areas += np.bincount(row, minlength=len(areas))
    known = [{**segment, "area": int(areas[segment["id"]])} for segment in found.known]
    return Segments(found.classes, ids, known)


class PanopticMetrics:
    """Panoptic quality over a COCO data set, and the results as COCO stores them.

    Args:
        data: the pictures, and what is truly there.
    """

    def __init__(self, data: CocoPanoptic):
        self.data = data
        categories = data.read.categories
        self.quality = PanopticQuality(
            {c["id"]: c["id"] in data.things for c in categories}, {c["id"]: c["name"] for c in categories}
        )
        self.ids = [*data.things, *data.stuff]
        self.records: list[dict[str, Any]] = []
        self.maps: dict[str, bytes] = {}  # by file name, as PNG

    def update(self, output: list[Segments], batch: tuple[Any, Any, Tensor]) -> None:
        """Count the segments of one batch."""
        for found, index in zip(output, batch[2].tolist(), strict=True):
            truth = self.data.map(index)
            size = truth.shape[0], truth.shape[1]
            if found.ids.shape != size and found.ids.shape == reduced_size(size, self.data.most):
                found = enlarged(found, size)
            mine = [Segment(s["id"], self.ids[s["label"]]) for s in found.known]
            own = self.data.records[self.data.images[index]["id"]]
            true = [Segment(s["id"], s["category_id"], bool(s["iscrowd"])) for s in own["segments_info"]]
            self.quality.update(found.ids, mine, truth, true, self.data.where(index))
            self._keep(found, mine, own, index)

    def _keep(self, found: Segments, mine: list[Segment], own: dict[str, Any], index: int) -> None:
        # of images of one name in two folders, each has a file
        name = f"{index:06d}_{Path(own['file_name']).stem}.png"
        stream = io.BytesIO()
        Image.fromarray(pixels_of(found.ids)).save(stream, "PNG")
        self.maps[name] = stream.getvalue()
        segments = [{"id": segment.id, "category_id": segment.category} for segment in mine]
        self.records.append({"image_id": own["image_id"], "file_name": name, "segments_info": segments})

    def state(self) -> dict[str, Tensor]:
        """The sums of every category, and the results."""
        tallies = self.quality.tallies.values()
        rows = [[t.iou, t.matched, t.wrong, t.missed] for t in tallies]
        maps = [base64.b64encode(self.maps[record["file_name"]]).decode() for record in self.records]
        found = [{**record, "map": png} for record, png in zip(self.records, maps, strict=True)]
        return {"tallies": torch.tensor(rows, dtype=torch.float64), **packed(found)}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace sums and results by those of all processes together."""
        rows = summed([{"tallies": state["tallies"]} for state in states])["tallies"].tolist()
        for category, (iou, matched, wrong, missed) in zip(self.quality.tallies, rows, strict=True):
            self.quality.tallies[category] = Tally(iou, int(matched), int(wrong), int(missed))
        found = [record for state in states for record in unpacked(state)]
        self.maps = {record["file_name"]: base64.b64decode(record.pop("map")) for record in found}
        self.records = found

    def compute(self) -> dict[str, Any]:
        """PQ, SQ and RQ of all, of things and of stuff, in [0, 1], and the number of pictures."""
        return {**self.quality.compute(), "images": len(self.data)}

    def report(self, folder: Path) -> None:
        """Write per_class.csv, and what was found here as COCO's panoptic JSON beside a folder of PNGs."""
        write_classes(folder, self.compute()["per_class"])
        if self.records:
            (folder / "panoptic.json").write_text(json.dumps({"annotations": self.records}), encoding="utf-8")
            (folder / "panoptic").mkdir(exist_ok=True)
            for name, content in self.maps.items():
                (folder / "panoptic" / name).write_bytes(content)


class PanopticSegmentation(Detection):
    """The task "panoptic_segmentation": a segment for every pixel; PQ decides."""

    name = "panoptic_segmentation"
    best_metric = "PQ"
    heads = ("panoptic_fpn",)

    def open(self, train: bool) -> CocoPanoptic:
        """One part of a COCO data set with panoptic segments."""
        if self.config.detection.zoom_out:
            raise UserError("--detection.zoom_out is not for panoptic_segmentation: nothing is known of the canvas.")
        return open_panoptic(self.config.data, train)

    def usual_options(self) -> dict[str, Any]:
        """Kinds of things and of stuff, sizes and normalisation."""
        if "num_things" in self.config.head_options:  # a network that is trained already
            return self.input_options()
        train_set = cast(CocoPanoptic, self.train_set)
        return {"num_things": len(train_set.things), "num_stuff": len(train_set.stuff), **self.input_options()}

    def build_inference(self) -> Any:
        """How the network is used on the held-back part."""
        return PanopticInference(
            self.classes, self.head_options["num_things"], self.config.inference, self.preprocess.in_chans
        )
