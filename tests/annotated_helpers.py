"""A small data set in COCO's format: coloured rectangles on grey, with boxes, masks, and a segment for every pixel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.data.datasets.coco_rle import pixels_of

#: things first; the order of the ids is not that of the list
CATEGORIES = [
    {"id": 7, "name": "blue", "isthing": 1, "color": [0, 0, 255]},
    {"id": 3, "name": "red", "isthing": 1, "color": [255, 0, 0]},
    {"id": 90, "name": "floor", "isthing": 0, "color": [90, 90, 90]},
    {"id": 95, "name": "wall", "isthing": 0, "color": [160, 160, 160]},
]
COLOURS = {7: (20, 40, 230), 3: (230, 30, 20)}


def rectangles(seed: int, size: tuple[int, int]) -> list[tuple[int, list[int]]]:
    """Two rectangles that do not touch: category, and left, top, width, height."""
    rng = np.random.default_rng(seed)
    width, height = size[0] // 2, size[1]
    found = []
    for i, category in enumerate(rng.permutation([3, 7]).tolist()):
        w, h = rng.integers(width // 3, width - 4), rng.integers(height // 3, height - 4)
        left, top = rng.integers(1, width - w), rng.integers(1, height - h)
        found.append((category, [int(i * width + left), int(top), int(w), int(h)]))
    return found


def sample_image(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """(H, W, 3) pixels, (H, W) ids of segments (1, 2 things, 3 wall above, 4 floor below), and the rectangles."""
    found = rectangles(seed, size)
    pixels = np.full((size[1], size[0], 3), 160, dtype=np.uint8)
    pixels[size[1] // 2 :] = 90
    ids = np.full((size[1], size[0]), 3, dtype=np.int64)
    ids[size[1] // 2 :] = 4
    for number, (category, (left, top, width, height)) in enumerate(found):
        pixels[top : top + height, left : left + width] = COLOURS[category]
        ids[top : top + height, left : left + width] = number + 1
    return pixels, ids, found


def write_coco(root: Path, counts: dict[str, int], size: tuple[int, int] = (64, 48)) -> Path:
    """Parts with so many images, as instances and panoptic annotations."""
    for part, count in counts.items():
        (root / "images" / part).mkdir(parents=True)
        maps = root / "annotations" / f"panoptic_{part}"
        maps.mkdir(parents=True)
        images, instances, panoptic = [], [], []
        for number in range(count):
            pixels, ids, found = sample_image(number + (100 if part == "val" else 0), size)
            name = f"{number:03d}.png"
            Image.fromarray(pixels).save(root / "images" / part / name)
            Image.fromarray(pixels_of(ids)).save(maps / name)
            images.append({"id": 10 + number, "file_name": name, "width": size[0], "height": size[1]})
            for k, (category, box) in enumerate(found):
                instances.append(annotation(10 * number + k, 10 + number, category, box))
            kinds = [*[category for category, _ in found], 95, 90]
            segments = [{"id": i + 1, "category_id": c, "iscrowd": 0} for i, c in enumerate(kinds)]
            panoptic.append({"image_id": 10 + number, "file_name": name, "segments_info": segments})
        things = [c for c in CATEGORIES if c["isthing"]]
        write_json(root, f"instances_{part}", images, instances, things)
        write_json(root, f"panoptic_{part}", images, panoptic, CATEGORIES)
    return root


def annotation(number: int, image: int, category: int, box: list[int], **more: Any) -> dict[str, Any]:
    """One object: a rectangle, its mask as a polygon."""
    left, top, width, height = box
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    known = {"id": number + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
    return {**known, "area": width * height, "segmentation": [corners], **more}


def write_json(root: Path, name: str, images: Any, annotations: Any, categories: Any) -> Path:
    """An annotation file."""
    path = root / "annotations" / f"{name}.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path
