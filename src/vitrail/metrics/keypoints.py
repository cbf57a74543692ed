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
from ..data.transforms.keypoints import transform_points
from ..structures import MIN_KEYPOINT_SCORE
from .base import Metrics
from .coco import average_precision, counting_tools, packed, tolerances, unpacked

#: OKS above which the less confident of two poses in an image is suppressed
MAX_SIMILARITY = 0.9


def to_image(pose: np.ndarray, back: np.ndarray) -> np.ndarray:
    """(K, 3) coordinates in a crop and scores -> pixel numbers of the image and scores."""
    return np.column_stack([transform_points(pose[:, :2], back) - 0.5, pose[:, 2]])


def pose_score(score: float, pose: np.ndarray) -> float:
    """The box's score times the mean of the keypoints' scores above `MIN_KEYPOINT_SCORE`; 0 if there are none."""
    sure = pose[pose[:, 2] > MIN_KEYPOINT_SCORE, 2]
    return score * float(sure.mean()) if len(sure) else 0.0


class KeypointsMetrics(Metrics):
    """COCO's metrics of poses in the boxes of a COCO data set.

    As in the original, duplicates of a pose in one image are suppressed (see `suppress_duplicates`).

    Args:
        data: the annotated persons.

    Raises:
        UserError: the extra is missing.
    """

    def __init__(self, data: CocoKeypoints):
        counting_tools()  # a missing extra is reported before evaluation
        self.data = data
        self.sigmas = tolerances(data.classes)[0]
        self.results: list[dict[str, Any]] = []

    def update(self, output: Tensor, batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Add the poses of one batch."""
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
        """COCO's metrics by OKS, in [0, 1], and the number of boxes."""
        metrics = average_precision(self.data.content, suppress_duplicates(self.results, self.sigmas), "keypoints")
        return {**metrics, "boxes": len(self.data)}

    def report(self, folder: Path) -> None:
        """Write the poses as a COCO results file."""
        (folder / "results.json").write_text(
            json.dumps(suppress_duplicates(self.results, self.sigmas)), encoding="utf-8"
        )


def suppress_duplicates(results: Sequence[dict[str, Any]], sigmas: np.ndarray) -> list[dict[str, Any]]:
    """OKS non-maximum suppression: poses without those that duplicate one of a better score in their image.

    The similarity is COCO's object keypoint similarity over all keypoints, with the mean area of the two crops.

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
            if (np.exp(-squares / (2 * areas[:, None] * variances)).mean(1) > MAX_SIMILARITY).any():
                continue
        kept[image_id].append(record)
        places[image_id].append(place)
    return [record for own in kept.values() for record in own]
