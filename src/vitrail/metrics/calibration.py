"""Calibration of a classifier: are its probabilities the shares in which it is right?

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: bins of equal width, as in the paper; bin m holds the confidences above m / BINS, up to (m + 1) / BINS
BINS = 15
#: confidences are summed in units of it, so that the sum is the same in any order and over any processes
STEP = 2.0**-36


def empty_bins() -> dict[str, Tensor]:
    """Counts of no image: images, right ones and summed confidence of each bin."""
    return {
        "bin_images": torch.zeros(BINS, dtype=torch.int64),
        "bin_hits": torch.zeros(BINS, dtype=torch.int64),
        "bin_confidence": torch.zeros(BINS, dtype=torch.int64),
    }


def add_to_bins(bins: dict[str, Tensor], logits: Tensor, target: Tensor) -> None:
    """Count images by the probability of their likeliest class, in place; those whose probabilities are NaN in none.

    Args:
        bins: of `empty_bins`; other entries stay as they are.
        logits: (B, classes).
        target: (B,) true classes.
    """
    confidence, found = logits.double().softmax(1).max(1)
    known = confidence.isfinite()
    confidence, found, target = confidence[known], found[known], target[known]
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    bins["bin_images"] += torch.bincount(places, minlength=BINS)
    bins["bin_hits"] += torch.bincount(places[found == target], minlength=BINS)
    bins["bin_confidence"].index_add_(0, places, (confidence / STEP).round().long())


def calibration(bins: dict[str, Tensor], total: int) -> dict[str, Any]:
    """The expected calibration error, and the bins of the reliability diagram.

    Args:
        bins: see `add_to_bins`.
        total: number of images; the error is NaN where some of them are in no bin.

    Returns:
        ece: sum over bins of the bin's share of images times |accuracy - mean confidence|, in %; calibration: a row a
        bin of {"above", "up_to", "images", "confidence", "accuracy"}, the last two in [0, 1], None in an empty bin.
    """
    images, hits, steps = (bins[name].double() for name in ("bin_images", "bin_hits", "bin_confidence"))
    gaps = (hits - steps * STEP).abs()
    ece = 100 * float(gaps.sum() / total) if int(images.sum()) == total else math.nan
    return {"ece": ece, "calibration": _rows(bins)}


def _rows(bins: dict[str, Tensor]) -> Sequence[dict[str, Any]]:
    columns = (bins[name].tolist() for name in ("bin_images", "bin_hits", "bin_confidence"))
    return [
        {
            "above": place / BINS,
            "up_to": (place + 1) / BINS,
            "images": images,
            "confidence": steps * STEP / images if images else None,
            "accuracy": hits / images if images else None,
        }
        for place, (images, hits, steps) in enumerate(zip(*columns, strict=True))
    ]
