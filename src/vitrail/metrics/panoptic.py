"""Panoptic quality (Kirillov et al., CVPR 2019, section 4)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.datasets.coco import CocoPanoptic
from ..data.datasets.coco_rle import pixels_of
from ..data.large import reduced_size
from ..errors import UserError
from ..structures import PanopticSegments, enlarged
from .base import Metrics, sum_states, write_classes
from .coco import packed, unpacked

VOID = 0
#: IoUs are rounded to it, so that sums of 100,000 of them are exact in any order and over any processes
STEP = 2.0**-36
#: pixels that are counted at once, as 64-bit numbers
BAND = 2**24


@dataclass(frozen=True)
class Segment:
    """One segment of an image.

    Attributes:
        id: its value in the map; never `VOID`.
        category: id of its category.
        crowd: whether it stands for a group; such segments are not matched, and predictions on them are no mistake.
    """

    id: int
    category: int
    crowd: bool = False


@dataclass
class Tally:
    """Counts of one category: summed IoU, matched (TP), wrong (FP) and missed (FN) segments."""

    iou: float = 0.0
    matched: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def seen(self) -> bool:
        """True if the category occurs in ground truth or prediction."""
        return self.matched + self.wrong + self.missed > 0

    def metrics(self) -> tuple[float, float, float]:
        """PQ = SQ x RQ, SQ the mean IoU of what is found, RQ an F1 of segments (eq. 1 and 2)."""
        sq = self.iou / self.matched if self.matched else 0.0
        rq = self.matched / (self.matched + 0.5 * self.wrong + 0.5 * self.missed)
        return sq * rq, sq, rq


@dataclass
class PanopticQuality:
    """Panoptic quality over a data set.

    Args:
        things: for every category id, whether it is a thing (otherwise stuff).
        names: of the categories, for the table by class.
    """

    things: Mapping[int, bool]
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tallies = {category: Tally() for category in self.things}

    def update(
        self, predicted: np.ndarray, found: Sequence[Segment], truth: np.ndarray, true: Sequence[Segment], name: str
    ) -> None:
        """Count one image; a true segment without a pixel is missed.

        Args:
            predicted: (H, W) ids of the predicted segments; `VOID` where there is none.
            found: those segments.
            truth: (H, W) ids of the true segments; `VOID` where nothing is known.
            true: those segments.
            name: what messages call the image.

        Raises:
            UserError: maps of two sizes, a predicted id that only the map or only the list has, or an unknown category.
        """
        if predicted.shape != truth.shape:
            raise UserError(
                f"{name}: the predicted map is {predicted.shape[1]}x{predicted.shape[0]} pixels, the true one "
                f"{truth.shape[1]}x{truth.shape[0]}."
            )
        mine, theirs = self._by_id(found, name), self._by_id(true, name)
        common = _intersections(truth, predicted)
        _check_listed({j for _, j in common}, mine, name)
        areas = _areas(common, 0), _areas(common, 1)
        matched_true, matched_mine = set(), set()
        for i, j, iou in _matches(common, areas, mine, theirs):
            tally = self.tallies[mine[j].category]
            tally.matched += 1
            tally.iou += round(iou / STEP) * STEP
            matched_true.add(i)
            matched_mine.add(j)
        crowds = {segment.category: segment.id for segment in true if segment.crowd}
        for i, segment in theirs.items():
            self.tallies[segment.category].missed += i not in matched_true and not segment.crowd
        for j, segment in mine.items():
            forgiven = common.get((VOID, j), 0) + common.get((crowds.get(segment.category, -1), j), 0)
            wrong = j not in matched_mine and forgiven / areas[1][j] <= 0.5
            self.tallies[segment.category].wrong += wrong

    def _by_id(self, segments: Sequence[Segment], name: str) -> dict[int, Segment]:
        by_id = {segment.id: segment for segment in segments}
        if len(by_id) < len(segments) or VOID in by_id:
            raise UserError(f"{name}: ids of segments must differ, and none may be {VOID}.")
        for segment in segments:
            if segment.category not in self.things:
                raise UserError(f"{name}: segment {segment.id} has the unknown category {segment.category}.")
        return by_id

    def compute(self) -> dict[str, Any]:
        """The metrics, in [0, 1].

        Returns:
            PQ, SQ, RQ over all categories that occur; the same with _things and _stuff; and per_class rows of
            {"class", "category", "PQ", "SQ", "RQ"}.

        Raises:
            UserError: no segment was counted.
        """
        found = {category: tally.metrics() for category, tally in self.tallies.items() if tally.seen}
        if not found:
            raise UserError("There is no segment in truth or prediction: there is nothing to measure on.")
        metrics: dict[str, Any] = {}
        for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            own = [values for category, values in found.items() if self.things[category] in wanted]
            means = np.mean(own, axis=0) if own else [0.0, 0.0, 0.0]
            metrics |= {f"{key}{suffix}": float(value) for key, value in zip(("PQ", "SQ", "RQ"), means, strict=True)}
        metrics["per_class"] = [
            {"class": self.names.get(c, str(c)), "category": c, "PQ": pq, "SQ": sq, "RQ": rq}
            for c, (pq, sq, rq) in found.items()
        ]
        return metrics


def matched_segments(
    predicted: np.ndarray, found: Sequence[Segment], truth: np.ndarray, true: Sequence[Segment]
) -> list[tuple[int, int, float]]:
    """Pairs of a true and a predicted segment of one category with an IoU above 0.5: ids and IoU.

    Args:
        predicted: (H, W) ids of the predicted segments; `VOID` where there is none.
        found: those segments.
        truth: (H, W) ids of the true segments; `VOID` where nothing is known.
        true: those segments.
    """
    common = _intersections(truth, predicted)
    mine, theirs = ({segment.id: segment for segment in one} for one in (found, true))
    return list(_matches(common, (_areas(common, 0), _areas(common, 1)), mine, theirs))


def _matches(
    common: Mapping[tuple[int, int], int],
    areas: tuple[Mapping[int, int], Mapping[int, int]],
    mine: Mapping[int, Segment],
    theirs: Mapping[int, Segment],
) -> Iterator[tuple[int, int, float]]:
    """See `matched_segments`; of the intersections, and of the areas of true and predicted segments."""
    for (i, j), overlap in common.items():
        if i not in theirs or j not in mine or theirs[i].crowd or theirs[i].category != mine[j].category:
            continue
        # pixels of the prediction where nothing is known count neither way
        union = areas[1][j] + areas[0][i] - overlap - common.get((VOID, j), 0)
        if overlap / union > 0.5:  # at most one pair a segment can
            yield i, j, overlap / union


def _check_listed(there: set[int], segments: Mapping[int, Segment], name: str) -> None:
    """Raise unless the list and the map have the same segments."""
    there = there - {VOID}
    if there != set(segments):
        odd = min(there ^ set(segments))
        where = "the map but not in the list" if odd in there else "the list but not in the map"
        raise UserError(f"{name}: segment {odd} is in {where} of segments.")


def _intersections(truth: np.ndarray, predicted: np.ndarray) -> dict[tuple[int, int], int]:
    """Intersections: pixels of every pair of a true and a predicted id that overlap."""
    common: dict[tuple[int, int], int] = {}
    step = max(1, BAND // max(1, truth.shape[1]))
    for top in range(0, len(truth), step):
        rows = slice(top, top + step)
        both = truth[rows].astype(np.int64) << 32 | predicted[rows].astype(np.int64)
        for pair, count in zip(*(array.tolist() for array in np.unique(both, return_counts=True)), strict=True):
            key = pair >> 32, pair & 0xFFFFFFFF
            common[key] = common.get(key, 0) + count
    return common


def _areas(common: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    """Areas of the segments of one side."""
    areas: dict[int, int] = {}
    for pair, count in common.items():
        areas[pair[side]] = areas.get(pair[side], 0) + count
    return areas


class PanopticMetrics(Metrics):
    """Panoptic quality over a COCO data set, and the results as COCO stores them.

    Args:
        data: the annotated images.
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

    def update(self, output: list[PanopticSegments], batch: tuple[Any, Any, Tensor]) -> None:
        """Count the segments of one batch."""
        for found, index in zip(output, batch[2].tolist(), strict=True):
            truth = self.data.map(index)
            size = truth.shape[0], truth.shape[1]
            if found.ids.shape != size and found.ids.shape == reduced_size(size, self.data.max_image_pixels):
                found = enlarged(found, size)
            mine = [Segment(s["id"], self.ids[s["label"]]) for s in found.segments]
            own = self.data.records[self.data.images[index]["id"]]
            true = [Segment(s["id"], s["category_id"], bool(s["iscrowd"])) for s in own["segments_info"]]
            self.quality.update(found.ids, mine, truth=truth, true=true, name=self.data.where(index))
            self._keep(found, mine, own, index)

    def _keep(self, found: PanopticSegments, mine: list[Segment], own: dict[str, Any], index: int) -> None:
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
        rows = sum_states([{"tallies": state["tallies"]} for state in states])["tallies"].tolist()
        for category, (iou, matched, wrong, missed) in zip(self.quality.tallies, rows, strict=True):
            self.quality.tallies[category] = Tally(iou, int(matched), int(wrong), int(missed))
        found = [record for state in states for record in unpacked(state)]
        self.maps = {record["file_name"]: base64.b64decode(record.pop("map")) for record in found}
        self.records = found

    def compute(self) -> dict[str, Any]:
        """PQ, SQ and RQ of all, of things and of stuff, in [0, 1], and the number of images."""
        return {**self.quality.compute(), "images": len(self.data)}

    def report(self, folder: Path) -> None:
        """Write per_class.csv, and the results as COCO's panoptic JSON beside a folder of PNGs."""
        write_classes(folder, self.compute()["per_class"])
        if self.records:
            (folder / "panoptic.json").write_text(json.dumps({"annotations": self.records}), encoding="utf-8")
            (folder / "panoptic").mkdir(exist_ok=True)
            for name, content in self.maps.items():
                (folder / "panoptic" / name).write_bytes(content)
