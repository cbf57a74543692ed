"""Metrics of semantic segmentation, from one confusion matrix of all pixels of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .base import Metrics, sum_states, write_classes

#: pixels that are counted at once, as 64-bit numbers
BAND = 2**24


class Confusion:
    """Confusion matrix of the pixels of a data set (the ADE20K benchmark's rules).

    Pixels without a true class never count. A pixel whose prediction is no class is missed by its true class, and by
    no class taken wrongly.

    Args:
        classes: names, in the order of the indices.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        n = len(self.classes)
        self.counts = torch.zeros(n, n + 1, dtype=torch.int64)  # the last column: predicted as no class

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Count maps of class indices of the same shape.

        Args:
            predicted: integers; anything outside 0..classes-1 is no class.
            truth: integers; anything outside 0..classes-1 is ignored.

        Raises:
            ValueError: the shapes differ.
        """
        if predicted.shape != truth.shape:
            raise ValueError(
                f"prediction of {tuple(predicted.shape)} and truth of {tuple(truth.shape)} differ in shape"
            )
        for one, other in zip(predicted.reshape(-1).split(BAND), truth.reshape(-1).split(BAND), strict=True):
            self._count(one.long().cpu(), other.long().cpu())

    def _count(self, predicted: Tensor, truth: Tensor) -> None:
        n = len(self.classes)
        counted = (truth >= 0) & (truth < n)
        predicted, truth = predicted[counted], truth[counted]
        predicted = torch.where((predicted >= 0) & (predicted < n), predicted, n)
        self.counts += torch.bincount(truth * (n + 1) + predicted, minlength=n * (n + 1)).view(n, n + 1)

    def compute(self) -> dict[str, Any]:
        """The metrics, all in [0, 1].

        Returns:
            mIoU over the classes that occur in truth or prediction, mIoU_all over all classes with 0 for those that
            do not, mAcc over the classes that occur in truth, aAcc of all pixels, and per_class rows of {"class",
            "IoU" or None, "accuracy" or None, "pixels"}.

        Raises:
            UserError: not one pixel had a class.
        """
        hits = self.counts.diagonal().double()
        true, predicted = self.counts.sum(1).double(), self.counts[:, :-1].sum(0).double()
        total = true.sum()
        if total == 0:
            raise UserError("No pixel of the data has a class: there is nothing to measure on.")
        union = true + predicted - hits
        iou, accuracy = hits / union, hits / true  # nan where a class does not occur
        return {
            "mIoU": float(iou[union > 0].mean()),
            "mIoU_all": float(iou.nan_to_num().mean()),
            "mAcc": float(accuracy[true > 0].mean()),
            "aAcc": float(hits.sum() / total),
            "pixels": int(total),
            "per_class": [
                {
                    "class": name,
                    "IoU": float(iou[i]) if union[i] else None,
                    "accuracy": float(accuracy[i]) if true[i] else None,
                    "pixels": int(true[i]),
                }
                for i, name in enumerate(self.classes)
            ],
        }


class SemanticMetrics(Metrics):
    """IoU and accuracy over the pixels of all images at their own sizes.

    Args:
        classes: names.
    """

    def __init__(self, classes: Sequence[str]):
        self.confusion = Confusion(classes)
        self.images = torch.zeros((), dtype=torch.int64)

    def update(self, output: list[Tensor], batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Count maps of classes against `mask` of the targets."""
        for found, target in zip(output, batch[1], strict=True):
            self.confusion.update(found, target["mask"])
            self.images += 1

    def state(self) -> dict[str, Tensor]:
        """The counts."""
        return {"counts": self.confusion.counts, "images": self.images}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the counts by those of all processes together."""
        total = sum_states(states)
        self.confusion.counts, self.images = total["counts"], total["images"]

    def compute(self) -> dict[str, Any]:
        """The metrics of `Confusion.compute`, and the number of images."""
        return {**self.confusion.compute(), "images": int(self.images)}

    def report(self, folder: Path) -> None:
        """Write `per_class.csv`."""
        write_classes(folder, self.compute()["per_class"])
