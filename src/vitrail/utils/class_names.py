"""Standard classes of data sets, in the order in which networks number them."""

from __future__ import annotations

import csv
from pathlib import Path

#: value in masks and name of ADE20K's 150 classes
ADE20K = Path(__file__).with_name("ade20k_classes.csv")
#: category id and name of COCO's 133 panoptic classes, and whether each is a thing
COCO_PANOPTIC = Path(__file__).with_name("coco_panoptic_classes.csv")


def ade20k_names() -> list[str]:
    """The 150 classes of ADE20K's scene parsing, in the order of their values."""
    return [row["name"] for row in _rows(ADE20K)]


def coco_panoptic_names() -> list[str]:
    """COCO's 80 things and then its 53 kinds of stuff, each in the order of their category ids."""
    return [row["name"] for row in sorted(_rows(COCO_PANOPTIC), key=lambda row: row["isthing"] != "1")]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
