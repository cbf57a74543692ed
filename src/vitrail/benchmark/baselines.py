"""Baselines: networks of timm with their published accuracy, with which ours are compared."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Baseline:
    """A network of timm.

    Attributes:
        name: timm's.
        top1: ImageNet-1K accuracy as published, in %.
        image_size: height and width of the images of that measurement.
        distilled: trained with a teacher, which ours were not.
        source: where the accuracy was published.
    """

    name: str
    top1: float
    image_size: int
    distilled: bool
    source: str


def baselines() -> list[Baseline]:
    """Every baseline, lightest first."""
    text = resources.files("vitrail.benchmark").joinpath("baselines.csv").read_text(encoding="utf-8")
    return [
        Baseline(
            row["name"],
            float(row["top1"]),
            image_size=int(row["image_size"]),
            distilled=row["distilled"] == "yes",
            source=row["source"],
        )
        for row in csv.DictReader(text.splitlines())
    ]
