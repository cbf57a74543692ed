"""Panoptic quality (Kirillov et al., CVPR 2019, section 4): how well segments are found and how well they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError

VOID = 0
#: IoUs are rounded to it, so that sums of 100,000 of them are exact in any order and over any processes
STEP = 2.0**-36
#: pixels that are counted at once, as 64-bit numbers
BAND = 2**24


@dataclass(frozen=True)
class Segment:
    """One segment of an image.

    Attributes:
        id: its value in the map; never `VOID`.
        category: id of its category.
        crowd: whether it stands for a group; such segments are not matched, and what lies on them is no mistake.
    """

    id: int
    category: int
    crowd: bool = False


@dataclass
class Tally:
    """Sums of one category."""

    iou: float = 0.0
    matched: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def seen(self) -> bool:
        """Whether the category occurs in truth or prediction."""
        return self.matched + self.wrong + self.missed > 0

    def figures(self) -> tuple[float, float, float]:
        """PQ = SQ x RQ, SQ the mean IoU of what is found, RQ an F1 of segments (eq. 1 and 2)."""
        sq = self.iou / self.matched if self.matched else 0.0
        rq = self.matched / (self.matched + 0.5 * self.wrong + 0.5 * self.missed)
        return sq * rq, sq, rq


@dataclass
class PanopticQuality:
    """Panoptic quality over a data set.

    Args:
        things: for every category id, whether it is a thing (otherwise stuff).
        names: of the categories, for the table by class.
    """

    things: Mapping[int, bool]
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tallies = {category: Tally() for category in self.things}

    def update(
        self, predicted: np.ndarray, found: Sequence[Segment], truth: np.ndarray, true: Sequence[Segment], name: str
    ) -> None:
        """Count one image; a true segment without a pixel is missed.

        Args:
            predicted: (H, W) ids of the predicted segments; `VOID` where there is none.
            found: those segments.
            truth: (H, W) ids of the true segments; `VOID` where nothing is known.
            true: those segments.
            name: what messages call the image.

        Raises:
            UserError: maps of two sizes, a predicted id that only the map or only the list has, or an unknown category.
        """
        if predicted.shape != truth.shape:
            raise UserError(
                f"{name}: the predicted map is {predicted.shape[1]}x{predicted.shape[0]} pixels, the true one "
                f"{truth.shape[1]}x{truth.shape[0]}."
            )
        mine, theirs = self._by_id(found, name), self._by_id(true, name)
        common = _common(truth, predicted)
        _check_listed({j for _, j in common}, mine, name)
        areas = _sums(common, 0), _sums(common, 1)
        matched_true, matched_mine = set(), set()
        for (i, j), overlap in common.items():
            if i not in theirs or j not in mine or theirs[i].crowd or theirs[i].category != mine[j].category:
                continue
            # pixels of the prediction where nothing is known count neither way
            union = areas[1][j] + areas[0][i] - overlap - common.get((VOID, j), 0)
            if overlap / union > 0.5:  # at most one pair a segment can
                tally = self.tallies[mine[j].category]
                tally.matched += 1
                tally.iou += round(overlap / union / STEP) * STEP
                matched_true.add(i)
                matched_mine.add(j)
        crowds = {segment.category: segment.id for segment in true if segment.crowd}
        for i, segment in theirs.items():
            self.tallies[segment.category].missed += i not in matched_true and not segment.crowd
        for j, segment in mine.items():
            forgiven = common.get((VOID, j), 0) + common.get((crowds.get(segment.category, -1), j), 0)
            wrong = j not in matched_mine and forgiven / areas[1][j] <= 0.5
            self.tallies[segment.category].wrong += wrong

    def _by_id(self, segments: Sequence[Segment], name: str) -> dict[int, Segment]:
        by_id = {segment.id: segment for segment in segments}
        if len(by_id) < len(segments) or VOID in by_id:
            raise UserError(f"{name}: ids of segments must differ, and none may be {VOID}.")
        for segment in segments:
            if segment.category not in self.things:
                raise UserError(f"{name}: segment {segment.id} has the unknown category {segment.category}.")
        return by_id

    def compute(self) -> dict[str, Any]:
        """The figures, in [0, 1].

        Returns:
            PQ, SQ, RQ over all categories that occur; the same with _things and _stuff; and per_class rows of
            {"class", "category", "PQ", "SQ", "RQ"}.

        Raises:
            UserError: no segment was counted.
        """
        found = {category: tally.figures() for category, tally in self.tallies.items() if tally.seen}
        if not found:
            raise UserError("There is no segment in truth or prediction: there is nothing to measure on.")
        figures: dict[str, Any] = {}
        for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            own = [values for category, values in found.items() if self.things[category] in wanted]
            means = np.mean(own, axis=0) if own else [0.0, 0.0, 0.0]
            figures |= {f"{key}{suffix}": float(value) for key, value in zip(("PQ", "SQ", "RQ"), means, strict=True)}
        figures["per_class"] = [
            {"class": self.names.get(c, str(c)), "category": c, "PQ": pq, "SQ": sq, "RQ": rq}
            for c, (pq, sq, rq) in found.items()
        ]
        return figures


def _check_listed(there: set[int], segments: Mapping[int, Segment], name: str) -> None:
    """Those in the list have pixels, those in the map are listed."""
    there = there - {VOID}
    if there != set(segments):
        odd = min(there ^ set(segments))
        where = "the map but not in the list" if odd in there else "the list but not in the map"
        raise UserError(f"{name}: segment {odd} is in {where} of segments.")


def _common(truth: np.ndarray, predicted: np.ndarray) -> dict[tuple[int, int], int]:
    """Pixels of every pair of a true and a predicted id that touch."""
    common: dict[tuple[int, int], int] = {}
    step = max(1, BAND // max(1, truth.shape[1]))
    for top in range(0, len(truth), step):
        rows = slice(top, top + step)
        both = truth[rows].astype(np.int64) << 32 | predicted[rows].astype(np.int64)
        for pair, count in zip(*(array.tolist() for array in np.unique(both, return_counts=True)), strict=True):
            key = pair >> 32, pair & 0xFFFFFFFF
            common[key] = common.get(key, 0) + count
    return common


def _sums(common: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    """Areas of the segments of one side."""
    areas: dict[int, int] = {}
    for pair, count in common.items():
        areas[pair[side]] = areas.get(pair[side], 0) + count
    return areas
