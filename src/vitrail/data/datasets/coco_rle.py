"""Masks as COCO stores them: polygons and run lengths, by faster-coco-eval, and the colours of panoptic PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import UserError
from ...utils.extras import require
from ...utils.files import shortened
from ..large import EnlargedMask

EXTRA = "detection"
BASE = 256
#: farther from an image's corner, in pixels, lies no box, polygon or keypoint; JPEG's longest side is 65,535
MAX_COORDINATE = 100_000
#: longest outline of one mask, in pixels: the tools need memory for every pixel of it
MAX_OUTLINE = 4_000_000
#: what run lengths and polygons must look like
SHAPES = "polygons of three points or more, or run lengths (size and counts)"


def require_masks() -> Any:
    """The functions on masks of faster-coco-eval.

    Raises:
        UserError: the extra is missing.
    """
    return require("faster_coco_eval.core.mask", EXTRA)


def finite_numbers(values: Any) -> np.ndarray | None:
    """A list of finite numbers of any size as floats; None for anything else, such as texts, true and infinity."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return None
    try:
        made = np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond every float
        return None
    return made if np.isfinite(made).all() else None


def checked_numbers(values: Any, count: int, name: str, says: str, where: str, shown: Any = None) -> np.ndarray:
    """So many numbers of a record, none of which is farther from 0 than `MAX_COORDINATE`; areas than its square.

    Raises:
        UserError: there are others, or some are not finite or too large.
    """
    if not isinstance(values, list) or len(values) != count or not set(map(type, values)) <= {int, float}:
        raise UserError(f"{where}: {name} must be {says}, not {shortened(values if shown is None else shown)}.")
    made = finite_numbers(values)
    if made is None:
        raise UserError(f"{where}: {name} holds a number that is not finite.")
    most = MAX_COORDINATE * MAX_COORDINATE if name == "area" else MAX_COORDINATE
    if np.abs(made).max() > most:
        raise UserError(f"{where}: {name} holds {shortened(_largest(values))}, which lies beyond any image.")
    return made


def _largest(values: Sequence[Any]) -> Any:
    return max(values, key=abs)


# ---- the check --------------------------------------------------------------------------------------------------


def check_mask(segmentation: Any, size: tuple[int, int] | None, where: str) -> None:
    """Raise `UserError` unless this is a mask of an image of (width, height); nothing is decoded.

    Where the size is unknown, run lengths must fill the size they state themselves, and polygons are refused.
    """
    if isinstance(segmentation, dict):
        runs_in(segmentation, size, where)
        return
    if not isinstance(segmentation, list) or not segmentation:
        raise UserError(f"{where}: segmentation must be {SHAPES}, not {shortened(segmentation)}.")
    if size is None:
        raise UserError(
            f"{where}: the size of the image is unknown, so its polygons are no mask: name the folder of the images "
            "with --data.images, or state width and height."
        )
    _check_polygons(segmentation, where)


def _check_polygons(polygons: Sequence[Any], where: str) -> None:
    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"{where}: segmentation must be {SHAPES}, not {shortened(polygon)}.")
        points = finite_numbers(polygon)
        if points is None:
            raise UserError(f"{where}: segmentation holds what is no finite number: {shortened(polygon)}.")
        if np.abs(points).max() > MAX_COORDINATE:
            raise UserError(f"{where}: segmentation holds {_largest(polygon)}, which lies beyond any image.")
        steps = np.abs(np.diff(points.reshape(-1, 2), axis=0, append=points[None, :2])).max(1)
        outline += float(steps.sum())
    if outline > MAX_OUTLINE:
        raise UserError(f"{where}: the outline of its segmentation is longer than {MAX_OUTLINE:,} pixels.")


def runs_in(mask: dict[str, Any], size: tuple[int, int] | None, where: str) -> np.ndarray:
    """The run lengths of a mask, background first, which fill exactly the pixels of its size.

    Args:
        mask: {"size": [height, width], "counts": list of numbers, or their compressed text}.
        size: (width, height) of the image; None = unknown, the mask's own counts.
        where: what messages call it.

    Raises:
        UserError: it is damaged, or of another size.
    """
    stated, counts = mask.get("size"), mask.get("counts")
    sides = stated if isinstance(stated, (list, tuple)) else []
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_COORDINATE for side in sides):
        raise UserError(f"{where}: the size of a mask must be its height and width in pixels, not {shortened(stated)}.")
    if size is not None and list(sides) != [size[1], size[0]]:
        swapped = " (height and width are exchanged)" if list(sides) == list(size) else ""
        raise UserError(
            f"{where}: a mask of {list(sides)} for an image of {[size[1], size[0]]} (height, width){swapped}."
        )
    pixels = sides[0] * sides[1]
    if pixels >= 2**31:  # more than the tools can count
        raise UserError(f"{where}: a mask of {list(sides)} is larger than any image.")
    if isinstance(counts, list):
        fits = set(map(type, counts)) <= {int} and all(0 <= run <= pixels for run in counts)
        runs = np.array(counts, dtype=np.int64) if fits else None
    elif isinstance(counts, (str, bytes)):
        runs = run_lengths(counts)
    else:
        raise UserError(f"{where}: the counts of a mask must be run lengths, not {shortened(counts)}.")
    if runs is None or runs.min(initial=0) < 0 or runs.max(initial=0) > pixels or runs.sum() != pixels:
        raise UserError(f"{where}: the counts of its segmentation are damaged: they do not fill {pixels} pixels.")
    return runs


# ---- decoding ---------------------------------------------------------------------------------------------------


def mask_of(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """(H, W) bool mask of a record.

    Raises:
        UserError: it is damaged, or for an image of another size.
    """
    if isinstance(segmentation, dict):
        runs = runs_in(segmentation, (width, height), where)
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    check_mask(segmentation, (width, height), where)
    tools = require_masks()
    return tools.decode(tools.merge(tools.frPyObjects(segmentation, height, width))).astype(bool)


def encoded(segmentation: Any, size: tuple[int, int] | None, where: str) -> dict[str, Any]:
    """A mask as compressed run lengths; the tools' area and box of it are COCO's.

    Raises:
        UserError: it is damaged, or for an image of another size.
    """
    tools = require_masks()
    if isinstance(segmentation, dict):
        runs_in(segmentation, size, where)
        height, width = segmentation["size"]
        if isinstance(segmentation["counts"], list):
            return tools.frPyObjects(segmentation, height, width)
        return segmentation
    if size is None and isinstance(segmentation, list):  # as large as its points need
        _check_polygons(segmentation, where)
        size = tuple(max(1, int(max(max(p[i::2]) for p in segmentation)) + 1) for i in (0, 1))  # pyright: ignore
    check_mask(segmentation, size, where)
    assert size is not None
    return tools.merge(tools.frPyObjects(segmentation, size[1], size[0]))


def area_of(segmentation: Any, size: tuple[int, int] | None, where: str) -> float:
    """Pixels of a mask.

    Raises:
        UserError: it is damaged, or for an image of another size.
    """
    return float(require_masks().area(encoded(segmentation, size, where)))


def box_of_mask(segmentation: Any, size: tuple[int, int] | None, where: str) -> list[float]:
    """Left, top, width and height of a mask's pixels.

    Raises:
        UserError: it is damaged, or for an image of another size.
    """
    return [float(v) for v in require_masks().toBbox(encoded(segmentation, size, where))]


def runs_of(mask: np.ndarray | EnlargedMask) -> dict[str, Any]:
    """(H, W) mask -> compressed run lengths, as COCO results hold them."""
    tools = require_masks()
    if isinstance(mask, EnlargedMask):
        runs = tools.frPyObjects({"size": list(mask.shape), "counts": mask.runs().tolist()}, *mask.shape)
    else:
        runs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
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
    if place.max() > 6:  # more than a run of any image needs
        return None
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= ((digits[last] >> 4) & 1) << (5 * (place[last] + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def ids_of(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a panoptic PNG -> (H, W) int32 ids: red + 256 green + 65536 blue."""
    ids = pixels[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids *= BASE
        ids += pixels[..., channel]
    return ids


def pixels_of(ids: np.ndarray) -> np.ndarray:
    """(H, W) ids -> (H, W, 3) uint8 of a panoptic PNG."""
    pixels = np.empty((*ids.shape, 3), dtype=np.uint8)
    for row, own in enumerate(ids):  # of a large map all at once would take gigabytes
        for channel in range(3):
            pixels[row, :, channel] = own // BASE**channel % BASE
    return pixels
