"""Average precision of keypoints by object keypoint similarity."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.datasets.coco_keypoints import CocoKeypoints
from ..data.transforms.keypoints import moved
from ..structures import SURE
from .base import Metrics
from .coco import average_precision, counting_tools, packed, tolerances, unpacked

#: of two poses more alike than this, by OKS, the surer one stays
ALIKE = 0.9


def to_image(pose: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(K, 3) places in a crop and scores -> pixel numbers of the image and scores."""
    return np.column_stack([moved(pose[:, :2], back) - 0.5, pose[:, 2]])


def pose_score(score: float, pose: np.ndarray) -> float:
    """The box's score times the mean of the keypoints' scores above `SURE`; 0 if there are none."""
    sure = pose[pose[:, 2] > SURE, 2]
    return score * float(sure.mean()) if len(sure) else 0.0


class KeypointsMetrics(Metrics):
    """Poses in the boxes of a COCO data set, and COCO's metrics of them.

    As in the original, a pose goes if it is nearly that of a surer one in its image (see `distinct`).

    Args:
        data: the persons, and what is truly there.

    Raises:
        UserError: the extra is missing.
    """

    def __init__(self, data: CocoKeypoints):
        counting_tools()  # that they are missing is said before anything is counted
        self.data = data
        self.sigmas = tolerances(data.classes)[0]
        self.results: list[dict[str, Any]] = []

    def update(self, output: Tensor, batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Take in the poses of one batch."""
        for found, target in zip(output.cpu().double().numpy(), batch[1], strict=True):
            pose = to_image(found, target["back"])
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
        """COCO's metrics by OKS, in [0, 1], and the number of boxes that were looked into."""
        metrics = average_precision(self.data.content, distinct(self.results, self.sigmas), "keypoints")
        return {**metrics, "boxes": len(self.data)}

    def report(self, folder: Path) -> None:
        """Write the poses as a COCO results file."""
        (folder / "results.json").write_text(json.dumps(distinct(self.results, self.sigmas)), encoding="utf-8")


def distinct(results: Sequence[dict[str, Any]], sigmas: np.ndarray) -> list[dict[str, Any]]:
    """Poses without those that are more like a surer one of their image than `ALIKE`, best scores first.

    How alike two poses are is COCO's object keypoint similarity over all keypoints, with the mean area of their crops.

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
