"""Networks of timm that ours are measured beside, with the accuracy published for them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Peer:
    """One network of timm.

    Attributes:
        name: timm's.
        top1: ImageNet-1K accuracy as published, in %.
        image_size: side of the images it was measured at.
        distilled: trained with a teacher, which ours were not.
        source: who published the figure.
    """

    name: str
    top1: float
    image_size: int
    distilled: bool
    source: str


def peers() -> list[Peer]:
    """Every peer, lightest first."""
    text = resources.files("vitrail.benchmark").joinpath("peers.csv").read_text(encoding="utf-8")
    return [
        Peer(row["name"], float(row["top1"]), int(row["image_size"]), row["distilled"] == "yes", row["source"])
        for row in csv.DictReader(text.splitlines())
    ]
