"""Make the small set of docs/gallery.md for semantic segmentation: `python docs/gallery_masks.py runs/flower_sky`.

The photographs are scikit-learn's two sample images, and the classes come from thresholds of colour: flower, sky (with
the water below it, which has its colours) and rest. The left parts make 24 training images, the right parts two for
validation. Masks by colour are a stand-in for annotations: good enough to see predictions beside a truth.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

CLASSES = ("rest", "flower", "sky")
#: the left part of each photograph that is for training, and the side of its crops
LEFT, SIDE, CROPS = 400, 224, 12


def classes_of(name: str, pixels: np.ndarray) -> np.ndarray:
    """(H, W) numbers of the classes."""
    red, green, blue = pixels.astype(int).transpose(2, 0, 1)
    if name == "flower":
        return (red - green > 40).astype(np.uint8)
    return 2 * ((blue > red) & (blue > 150)).astype(np.uint8)


def write(folder: Path, part: str, stem: str, pixels: np.ndarray, classes: np.ndarray) -> None:
    """One image and its mask."""
    for kind, array in (("images", pixels), ("annotations", classes)):
        path = folder / kind / part / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rng = np.random.default_rng(0)
    for name in ("flower", "china"):
        pixels = load_sample_image(f"{name}.jpg")
        classes = classes_of(name, pixels)
        for number in range(CROPS):
            top, left = rng.integers(0, pixels.shape[0] - SIDE), rng.integers(0, LEFT - SIDE)
            part = (slice(top, top + SIDE), slice(left, left + SIDE))
            write(folder, "train", f"{name}_{number:02}", pixels[part], classes[part])
        write(folder, "val", name, pixels[:, LEFT:], classes[:, LEFT:])
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES, "ignore_index": 255}), encoding="utf-8")


if __name__ == "__main__":
    main()
