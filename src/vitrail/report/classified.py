"""What a classifier said of every image of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets.base import ImageSet
from ..metrics.classification import ClassificationMetrics


class Recorder(ClassificationMetrics):
    """The metrics of a classifier, and what it said of each image."""

    def __init__(self, classes: Sequence[str], title: str = ""):
        super().__init__(classes, title)
        self._seen: list[Tensor] = []

    def update(self, output: Tensor, batch: Sequence[Tensor]) -> None:
        """Count a batch, and keep number, true and likeliest class of its images and their probabilities."""
        super().update(output, batch)
        chances = output.detach().double().softmax(1).cpu()
        target, number = batch[1].cpu(), batch[2].cpu()
        best, found = chances.max(1)
        own = chances.gather(1, target[:, None])[:, 0]
        self._seen.append(torch.stack([number.double(), target.double(), found.double(), best, own], 1))

    def classified(self, images: Any) -> Classified:
        """The images in the order of their numbers."""
        table = torch.cat(self._seen).numpy()
        table = table[np.argsort(table[:, 0], kind="stable")]
        numbers, truth, found = (table[:, i].astype(np.int64) for i in range(3))
        return Classified(images, self.classes, numbers, truth=truth, found=found, best=table[:, 3], own=table[:, 4])


@dataclass
class Classified:
    """The images of a data set with their true classes and what a classifier said.

    Attributes:
        images: the data set; only those of an `ImageSet` can be shown.
        classes: names.
        numbers: (N,) of the images in the data set.
        truth: (N,) true class.
        found: (N,) likeliest class.
        best: (N,) its probability.
        own: (N,) probability of the true class.
    """

    images: Any
    classes: list[str]
    numbers: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    best: np.ndarray
    own: np.ndarray

    @property
    def can_be_shown(self) -> bool:
        """True if images can be chosen by number; those of a stream cannot."""
        return isinstance(self.images, ImageSet)

    def worst(self, count: int) -> list[int]:
        """Places of the wrong predictions, those with the least probability of the true class first."""
        order = np.argsort(self.own, kind="stable")
        return [int(i) for i in order if self.found[i] != self.truth[i]][:count]

    def best_ones(self, count: int) -> list[int]:
        """Places of the right predictions, the most certain first."""
        order = np.argsort(-self.own, kind="stable")
        return [int(i) for i in order if self.found[i] == self.truth[i]][:count]

    def cells(self) -> dict[tuple[int, int], list[int]]:
        """Places of the images of each cell of the confusion matrix, the most certain predictions first."""
        found: dict[tuple[int, int], list[int]] = {}
        for place in np.argsort(-self.best, kind="stable").tolist():
            found.setdefault((int(self.truth[place]), int(self.found[place])), []).append(place)
        return found

    def name(self, place: int) -> str:
        """Name of an image in messages."""
        return self.images.name(int(self.numbers[place]))

    def image(self, place: int) -> Any:
        """An image, RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return self.images.image(int(self.numbers[place]))

    def true_name(self, place: int) -> str:
        """Name of the true class."""
        return self.classes[int(self.truth[place])]

    def found_name(self, place: int) -> str:
        """Name of the likeliest class."""
        return self.classes[int(self.found[place])]
