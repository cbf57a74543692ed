"""A small keypoint data set in COCO's format: persons in boxes on noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from torch.nn import functional as F

SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
NAMES = ["nose", *(f"{side}_{part}" for part in SIDED for side in ("left", "right"))]
PERSON = {"id": 1, "name": "person", "keypoints": NAMES}
#: of the images, width and height
SIZE = (96, 80)


def person(number: int, image: int, box: list[float], seed: int = 0, **changes: Any) -> dict[str, Any]:
    """An annotation with keypoints on whole pixels of its box, the last two of which are not labelled."""
    rng = np.random.default_rng(seed + number)
    left, top, width, height = box
    keypoints = np.zeros((17, 3), dtype=int)
    keypoints[:15, 0] = int(left) + rng.integers(0, int(width) + 1, 15)
    keypoints[:15, 1] = int(top) + rng.integers(0, int(height) + 1, 15)
    keypoints[:15, 2] = rng.integers(1, 3, 15)
    known = {"id": number, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0, "num_keypoints": 15}
    return {**known, "area": 0.6 * width * height, "keypoints": keypoints.ravel().tolist(), **changes}


def write_keypoints(root: Path, annotations: list[dict[str, Any]], part: str = "train", **changes: Any) -> Path:
    """One part of a data set: images 1 and 2 of noise, c.png and a.png, and these annotations."""
    (root / "images" / part).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images = []
    for number, name in ((1, "c.png"), (2, "a.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / part / name)
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    content = {"images": images, "annotations": annotations, "categories": [PERSON], **changes}
    path = root / "annotations" / f"person_keypoints_{part}.json"
    path.write_text(json.dumps(content))
    return path


def four_persons() -> list[dict[str, Any]]:
    """Two in each image, ids not in order."""
    return [
        person(9, 1, [10, 12, 30, 40]),
        person(4, 1, [50.5, 20, 40, 50.25]),
        person(7, 2, [5, 5, 60, 30]),
        person(8, 2, [40, 30, 25, 45]),
    ]


class Fixed(nn.Module):
    """A network that answers the same maps to anything."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return self.maps.expand(len(x), -1, -1, -1)


class Bright(nn.Module):
    """A network that takes brightness for every keypoint."""

    def forward(self, x):
        return F.avg_pool2d(x.mean(1, keepdim=True), 4).expand(-1, 17, -1, -1)
