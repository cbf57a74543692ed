"""Expected calibration error: closed forms, and an independent count."""

import math

import numpy as np
import pytest
import torch

from vitrail.metrics.calibration import BINS
from vitrail.metrics.classification import ClassificationMetrics


def measured(confidences, hits):
    """Metrics of a classifier of two classes with these confidences, right where `hits` says so."""
    metrics = ClassificationMetrics("ab")
    logits = torch.tensor([[math.log(p), math.log(1 - p) if p < 1 else -math.inf] for p in confidences]).double()
    target = torch.tensor([0 if hit else 1 for hit in hits])
    metrics.update(logits, (None, target))
    return metrics.compute()


@pytest.mark.parametrize(
    ("confidence", "hits", "images", "ece"),
    [
        (0.75, 6, 8, 0.0),  # says 75 %, and is right so often
        (0.75, 4, 8, 25.0),  # too sure
        (0.625, 8, 8, 37.5),  # not sure enough
        (1.0, 3, 4, 25.0),  # certain, the upper end of the last bin
    ],
)
def test_one_confidence(confidence, hits, images, ece):
    found = measured([confidence] * images, [i < hits for i in range(images)])
    assert found["ece"] == pytest.approx(ece, abs=1e-4)
    (row,) = [row for row in found["calibration"] if row["images"]]
    assert row["above"] < confidence <= row["up_to"]
    assert row["confidence"] == pytest.approx(confidence, abs=1e-6)
    assert row["accuracy"] == hits / images


def test_probabilities_that_are_no_numbers_give_no_error():
    metrics = ClassificationMetrics("ab")
    metrics.update(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), (None, torch.tensor([0, 0])))
    found = metrics.compute()
    assert math.isnan(found["ece"])
    assert sum(row["images"] for row in found["calibration"]) == 1
    assert all(0 <= (row["confidence"] or 0) <= 1 for row in found["calibration"])


def test_gaps_of_a_bin_cancel_and_those_of_two_bins_do_not():
    # in one bin 0.94 is always and 0.96 never right: 0.95 on average, half of them right
    assert measured([0.94, 0.96], [True, False])["ece"] == pytest.approx(45, abs=1e-4)
    assert measured([0.55, 0.95], [True, False])["ece"] == pytest.approx((45 + 95) / 2, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_against_an_independent_count(seed):
    rng = np.random.default_rng(seed)
    classes, images = int(rng.integers(2, 12)), int(rng.integers(1, 400))
    logits, target = torch.tensor(rng.normal(size=(images, classes)) * 3), rng.integers(0, classes, images)
    metrics = ClassificationMetrics([str(i) for i in range(classes)])
    for part in torch.arange(images).split(7):
        metrics.update(logits[part], (None, torch.tensor(target)[part]))
    # the metrics count float32 logits, as networks give them
    scores = np.exp(logits.float().double().numpy())
    scores /= scores.sum(1, keepdims=True)
    total = 0.0
    for m in range(BINS):
        inside = (scores.max(1) > m / BINS) & (scores.max(1) <= (m + 1) / BINS)
        if inside.any():
            right = (scores.argmax(1) == target)[inside]
            total += inside.sum() / images * abs(right.mean() - scores.max(1)[inside].mean())
    found = metrics.compute()
    assert found["ece"] == pytest.approx(100 * total, abs=1e-9)
    assert sum(row["images"] for row in found["calibration"]) == images


def test_precision():
    metrics = ClassificationMetrics("abc")
    metrics.update(torch.tensor([[3.0, 0, 0], [3, 0, 0], [0, 3, 0]]), (None, torch.tensor([0, 1, 1])))
    assert [row["precision"] for row in metrics.compute()["per_class"]] == [50.0, 100.0, None]


def test_a_state_of_an_earlier_version_has_no_calibration():
    metrics = ClassificationMetrics("ab")
    metrics.update(torch.eye(2), (None, torch.tensor([0, 1])))
    state = {name: value for name, value in metrics.state().items() if not name.startswith("bin_")}
    metrics.load([state])
    assert metrics.compute()["top1"] == 100
    assert "ece" not in metrics.compute()
