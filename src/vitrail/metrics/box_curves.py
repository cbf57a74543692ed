"""Precision over recall and F1 over the score of detected boxes, counted as COCO's AP50 is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.datasets.coco_files import key_of, whole_number

#: overlap from which a box counts as found, and most boxes of a category in an image, as for AP50
OVERLAP, MOST = 0.5, 100
#: recalls and scores of the curves
GRID = np.linspace(0, 1, 101)


@dataclass
class BoxCurves:
    """Curves of detected boxes at an IoU of 0.5, on `GRID`: means over the categories that occur.

    Attributes:
        precision: (101,) over the recall, interpolated: the highest at this recall or above. Its mean is AP50.
        f1: (101,) of the boxes whose score is at least so much.
    """

    precision: np.ndarray
    f1: np.ndarray

    @property
    def best_score(self) -> float:
        """The score from which boxes are taken for the highest F1."""
        return float(GRID[int(self.f1.argmax())])


def box_curves(truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> BoxCurves | None:
    """The curves of COCO results.

    Args:
        truth: content of a COCO annotation file, as `data.coco_files.read_annotations` gives it.
        results: COCO results with image_id, category_id, score and bbox, checked by `metrics.coco.check_results`.

    Returns:
        The curves; None where there is no object to find, crowds aside.
    """
    objects, found = _by_place(truth["annotations"]), _by_place(results)
    judged: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    counts: dict[int, int] = defaultdict(int)
    for (_, category), records in objects.items():
        counts[category] += sum(not record["iscrowd"] for record in records)
    for (image, category), records in found.items():
        judged[category] += matched(objects.get((image, category), []), records)
    curves = [_of_category(judged[category], count) for category, count in counts.items() if count]
    return BoxCurves(*(np.mean(own, axis=0) for own in zip(*curves, strict=True))) if curves else None


def matched(objects: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[tuple[float, bool]]:
    """Score of each box of one category in an image, and whether it finds an object.

    Best scores first, a box takes the object left that it overlaps most. Boxes on crowds count neither way.
    """
    best = sorted(found, key=lambda record: -record["score"])[:MOST]
    single = [record["bbox"] for record in objects if not record["iscrowd"]]
    crowds = [record["bbox"] for record in objects if record["iscrowd"]]
    left, judged = set(range(len(single))), []
    for record in best:
        box = record["bbox"]
        # of equal overlaps COCO takes the last object
        overlap, number = max(((_overlap(box, single[i]), i) for i in left), default=(0.0, -1))
        if overlap >= OVERLAP:
            left.remove(number)
            judged.append((record["score"], True))
        elif all(_overlap(box, crowd, of_crowd=True) < OVERLAP for crowd in crowds):
            judged.append((record["score"], False))
    return judged


def _of_category(judged: Sequence[tuple[float, bool]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated precision on the recalls, and F1 on the scores, of one category with so many objects."""
    scores, hits = (np.array(values) for values in zip(*judged, strict=True)) if judged else (np.zeros(0),) * 2
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[order].astype(float))
    precision = right / np.arange(1, len(right) + 1)
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    reached = np.searchsorted(right / count, GRID, side="left")
    taken = np.searchsorted(-scores[order], -GRID, side="right")  # boxes of at least each score
    hit = np.append(0.0, right)[taken]
    return highest[reached], 2 * hit / (count + taken)


def _by_place(records: Iterable[dict[str, Any]]) -> dict[tuple[str | None, int], list[dict[str, Any]]]:
    """Records by image and category."""
    found: dict[tuple[str | None, int], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        found[key_of(record["image_id"]), int(whole_number(record["category_id"]) or 0)].append(record)
    return found


def _overlap(box: Sequence[float], other: Sequence[float], of_crowd: bool = False) -> float:
    """IoU of two boxes (x, y, width, height); beside a crowd the share of the first that lies in it."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    own = box[2] * box[3]
    whole = own if of_crowd else own + other[2] * other[3] - common
    return common / whole if whole > 0 else 0.0
