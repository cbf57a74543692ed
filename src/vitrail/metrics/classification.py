"""Top-1, top-5, calibration and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .base import Metrics, sum_states, write_classes
from .calibration import add_to_bins, calibration, empty_bins

#: above so many classes no confusion matrix is counted: its memory and its image grow with the square
MAX_CONFUSION = 2048


class ClassificationMetrics(Metrics):
    """Exact counts of a classifier: loss, top-1, top-5, calibration, accuracy of each class, confusion matrix.

    Args:
        classes: names, in the order of the outputs.
        title: of `confusion.png`.
    """

    def __init__(self, classes: Sequence[str], title: str = ""):
        self.classes, self.title = list(classes), title
        n = len(self.classes)
        self._counts = {
            "loss": torch.zeros((), dtype=torch.float64),
            "top5": torch.zeros((), dtype=torch.int64),
            "images": torch.zeros(n, dtype=torch.int64),
            "hits": torch.zeros(n, dtype=torch.int64),
            **empty_bins(),
        }
        if n <= MAX_CONFUSION:
            self._counts["confusion"] = torch.zeros(n, n, dtype=torch.int64)

    def update(self, output: Tensor, batch: Sequence[Tensor]) -> None:
        """Count logits (B, classes) against `batch[1]`, the true classes (B,)."""
        logits, target = output.detach().float().cpu(), batch[1].cpu()
        n = len(self.classes)
        order = logits.topk(min(5, n), dim=1).indices
        hit = order[:, 0] == target
        counts = self._counts
        counts["loss"] += F.cross_entropy(logits, target, reduction="sum").double()
        counts["top5"] += (order == target[:, None]).any(1).sum()
        counts["images"] += torch.bincount(target, minlength=n)
        counts["hits"] += torch.bincount(target[hit], minlength=n)
        add_to_bins(counts, logits, target)
        if "confusion" in counts:
            counts["confusion"] += torch.bincount(target * n + order[:, 0], minlength=n * n).view(n, n)

    def state(self) -> dict[str, Tensor]:
        """The counts."""
        return self._counts

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the counts by those of all processes together."""
        self._counts = sum_states(states)

    @property
    def confusion(self) -> Tensor | None:
        """(classes, classes) counts, true class by row, predicted by column; None for very many classes."""
        return self._counts.get("confusion")

    def compute(self) -> dict[str, Any]:
        """top1 and top5 (of min(5, classes)), mean_class accuracy and ece in %, mean cross-entropy, images, per_class.

        Returns:
            Plain values; `per_class` is a list of {"class", "accuracy" in % or None without images, "images",
            "precision" in % or None where it was never predicted or classes are very many}, and
            `calibration` as in `metrics.calibration`.
        """
        images, hits = self._counts["images"].tolist(), self._counts["hits"].tolist()
        total = sum(images)
        if not total:
            raise UserError("There are no validation images to measure on.")
        shares = [100 * h / n if n else None for h, n in zip(hits, images, strict=True)]
        seen = [share for share in shares if share is not None]
        # a state that an earlier version saved has no bins
        calibrated = calibration(self._counts, total) if "bin_images" in self._counts else {}
        return {
            "top1": 100 * sum(hits) / total,
            "top5": 100 * int(self._counts["top5"]) / total,
            "mean_class": sum(seen) / len(seen),
            "loss": float(self._counts["loss"]) / total,
            "images": total,
            "per_class": [
                {"class": name, "accuracy": share, "images": n, "precision": precision}
                for name, share, n, precision in zip(self.classes, shares, images, self._precisions(), strict=True)
            ],
            **calibrated,
        }

    def _precisions(self) -> list[float | None]:
        """Of the images predicted as each class the share that are, in %."""
        if self.confusion is None:
            return [None] * len(self.classes)
        hits, predicted = self.confusion.diagonal().tolist(), self.confusion.sum(0).tolist()
        return [100 * h / n if n else None for h, n in zip(hits, predicted, strict=True)]

    def report(self, folder: Path) -> None:
        """Write `per_class.csv`, and `confusion.png` where there is a confusion matrix."""
        write_classes(folder, self.compute()["per_class"])
        if self.confusion is not None:
            from ..utils.plot import draw_confusion

            draw_confusion(self.confusion, self.classes, folder / "confusion.png", self.title)
