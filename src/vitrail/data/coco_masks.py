"""Masks as COCO stores them: polygons and run lengths, by faster-coco-eval, and the colours of panoptic PNGs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UserError
from ..extras import require

EXTRA = "detection"
BASE = 256


def require_masks() -> Any:
    """The functions on masks of faster-coco-eval.

    Raises:
        UserError: the extra is missing.
    """
    return require("faster_coco_eval.core.mask", EXTRA)


def check_segmentation(segmentation: Any, where: str) -> None:
    """Raise `UserError` unless this looks like polygons or run lengths; cheap enough for every record."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation.get("counts"), (list, str)) and len(segmentation.get("size", ())) == 2:
            return
    elif isinstance(segmentation, list) and segmentation and all(map(_is_polygon, segmentation)):
        return
    raise UserError(
        f"{where}: segmentation must be polygons of three points or more, or run lengths (size and counts)."
    )


def _is_polygon(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0


def mask_of(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """(H, W) bool mask of a record.

    Raises:
        UserError: it is damaged, or for a picture of another size.
    """
    tools = require_masks()
    if isinstance(segmentation, list):
        return tools.decode(tools.merge(tools.frPyObjects(segmentation, height, width))).astype(bool)
    if list(segmentation["size"]) != [height, width]:
        raise UserError(f"{where}: a mask of {segmentation['size']} for a picture of {[height, width]}.")
    counts = segmentation["counts"]
    runs = np.array(counts, dtype=np.int64) if isinstance(counts, list) else run_lengths(counts)
    if runs is None or runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise UserError(f"{where}: the counts of its segmentation do not fill {height * width} pixels.")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) mask -> compressed run lengths, as COCO results hold them."""
    runs = require_masks().encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = runs["counts"]
    return {"size": list(map(int, runs["size"])), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def run_lengths(counts: str | bytes) -> np.ndarray | None:
    """The runs of a compressed encoding, background first; None if it cannot be read.

    Five bits a character, lowest first; the sixth says that more follow, the highest of the last group is the sign.
    From the fourth run on the difference to the one two places before is stored.
    """
    raw = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1]).astype(np.int64)
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    if place.max() > 6:  # more than a run of any picture needs
        return None
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= ((digits[last] >> 4) & 1) << (5 * (place[last] + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def ids_of(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a panoptic PNG -> (H, W) ids: red + 256 green + 65536 blue."""
    wide = pixels.astype(np.int64)
    return wide[..., 0] + BASE * wide[..., 1] + BASE * BASE * wide[..., 2]


def pixels_of(ids: np.ndarray) -> np.ndarray:
    """(H, W) ids -> (H, W, 3) uint8 of a panoptic PNG."""
    return np.stack([ids % BASE, ids // BASE % BASE, ids // (BASE * BASE)], axis=-1).astype(np.uint8)
