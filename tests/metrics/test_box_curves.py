"""Precision-recall and F1 curves of boxes: by hand, and against the AP50 of faster-coco-eval."""

from __future__ import annotations

import numpy as np
import pytest

from vitrail.metrics.box_curves import GRID, box_curves
from vitrail.metrics.coco import average_precision


def truth_of(boxes: list[tuple[int, int, list[float], int]], images: int = 3, categories: int = 1) -> dict:
    """Annotations of (image, category, box, iscrowd)."""
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(images)],
        "categories": [{"id": k, "name": f"c{k}"} for k in range(1, categories + 1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            for n, (i, k, box, crowd) in enumerate(boxes)
        ],
    }


def result(image: int, box: list[float], score: float, category: int = 1) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_curves_by_hand():
    """Two objects; found at 0.9, a wrong box at 0.8, found at 0.7."""
    truth = truth_of([(0, 1, [0, 0, 10, 10], 0), (1, 1, [0, 0, 10, 10], 0)])
    found = [result(0, [0, 0, 10, 10], 0.9), result(0, [50, 50, 10, 10], 0.8), result(1, [0, 0, 10, 8], 0.7)]
    curves = box_curves(truth, found)
    assert curves is not None
    assert curves.precision == pytest.approx(np.where(GRID <= 0.5, 1.0, 2 / 3))
    at = {round(float(score), 2): value for score, value in zip(GRID, curves.f1, strict=True)}
    assert at[0.95] == 0
    assert at[0.85] == pytest.approx(2 / 3)  # one of one box right, one of two objects
    assert at[0.75] == pytest.approx(1 / 2)  # one of two right
    assert at[0.3] == at[0.65] == pytest.approx(4 / 5)  # two of three right, all objects
    assert at[curves.best_score] == curves.f1.max()


def test_crowds_count_neither_way_and_an_object_is_found_once():
    truth = truth_of([(0, 1, [0, 0, 100, 100], 1), (1, 1, [0, 0, 10, 10], 0)])
    found = [result(0, [5, 5, 10, 10], 0.9), result(1, [0, 0, 10, 10], 0.8), result(1, [0, 0, 10, 10], 0.6)]
    curves = box_curves(truth, found)
    assert curves is not None
    assert curves.precision == pytest.approx(np.ones(101))  # the second box on the object comes behind it
    assert curves.f1[85] == 0
    assert curves.f1[70] == 1
    assert curves.f1[0] == pytest.approx(2 / 3)


def test_nothing_to_find_and_nothing_found():
    assert box_curves(truth_of([(0, 1, [0, 0, 9, 9], 1)]), []) is None
    nothing = box_curves(truth_of([(0, 1, [0, 0, 9, 9], 0)]), [])
    assert nothing is not None
    assert not nothing.precision.any()
    assert not nothing.f1.any()


@pytest.mark.parametrize("seed", range(6))
def test_the_mean_precision_is_the_ap50_of_the_coco_tools(seed):
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for _ in range(40):
        box = [float(v) for v in (*rng.integers(0, 120, 2), *rng.integers(10, 60, 2))]
        image, category = int(rng.integers(0, 6)), int(rng.integers(1, 4))
        objects.append((image, category, box, int(rng.random() < 0.1)))
        for _ in range(rng.integers(0, 4)):
            moved = [v + float(rng.normal(0, 5)) for v in box[:2]] + [
                max(1.0, v + float(rng.normal(0, 5))) for v in box[2:]
            ]
            found.append(result(image, moved, float(rng.random()), category))
    truth = truth_of(objects, images=6, categories=3)
    curves = box_curves(truth, found)
    assert curves is not None
    assert curves.precision.mean() == pytest.approx(average_precision(truth, found, "bbox")["AP50"], abs=1e-9)
