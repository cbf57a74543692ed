"""Average precision of boxes, masks and keypoints as the COCO tools count it; the counting is faster-coco-eval's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.coco_masks import EXTRA, run_lengths
from ..errors import UserError
from ..extras import require

_OF_REGIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
#: what each kind compares, and the figures in the order the COCO tools print them
KINDS = {
    "bbox": ("bbox", _OF_REGIONS),
    "segm": ("segmentation", _OF_REGIONS),
    "keypoints": ("keypoints", ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")),
}
LENGTHS = {"bbox": 4, "keypoints": 51}


def average_precision(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str, name: str = "the predictions"
) -> dict[str, Any]:
    """The COCO figures of results, in [0, 1]; -1 where the data has no object of that size.

    Args:
        truth: a COCO annotation file's content (images, annotations, categories).
        results: COCO results: image_id, category_id, score, and bbox (x, y, width, height), segmentation (RLE) or
            keypoints (x, y, v of each).
        kind: "bbox", "segm" or "keypoints".
        name: what messages call the results.

    Returns:
        The figures of `KINDS`, and per_class rows of {"class", "AP" or None}.

    Raises:
        UserError: a record that is no result of this data, or the extra is missing.
    """
    check_results(truth, results, kind, name)
    counted = _counted(truth, results, kind)
    # the library adds figures of its own behind those of the COCO tools
    figures: dict[str, Any] = dict(zip(KINDS[kind][1], map(float, counted.stats), strict=False))
    names = {category["id"]: category["name"] for category in truth["categories"]}
    # (IoU thresholds, recalls, categories, areas, detections): all areas, most detections
    precision = counted.eval["precision"][:, :, :, 0, -1]
    figures["per_class"] = [
        {"class": names[category], "AP": float(np.mean(own)) if own.size else None}
        for category, own in ((c, _known(precision[:, :, k])) for k, c in enumerate(counted.params.catIds))
    ]
    return figures


def _known(precision: np.ndarray) -> np.ndarray:
    """The entries of categories that occur."""
    return precision[precision > -1]


def counting_tools() -> Any:
    """faster-coco-eval.

    Raises:
        UserError: the extra is missing.
    """
    return require("faster_coco_eval", EXTRA)


def _counted(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str) -> Any:
    tools = counting_tools()
    known = tools.COCO(copy.deepcopy(truth))  # it writes into what it is given
    found = known.loadRes(copy.deepcopy(list(results)))
    evaluation = tools.COCOeval_faster(known, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def check_results(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str, name: str) -> None:
    """Raise `UserError`, naming the record, for what the COCO tools would crash on or silently leave out."""
    images = {image["id"]: image for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    entry = KINDS[kind][0]
    for number, record in enumerate(results):
        where = f"{name}, record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where} is no record: COCO results are objects with named entries.")
        missing = [key for key in ("image_id", "category_id", "score", entry) if key not in record]
        if missing:
            raise UserError(f"{where} has no {missing[0]}: COCO results for {kind} need it.")
        if record["image_id"] not in images:
            raise UserError(f"{where}: the data has no image {record['image_id']}.")
        if record["category_id"] not in categories:
            raise UserError(f"{where}: the data has no category {record['category_id']}.")
        if not _numbers([record["score"]], 1):
            raise UserError(f"{where}: the score {record['score']!r} is no finite number.")
        wanted = LENGTHS.get(kind)
        if wanted is None:
            _check_mask(record[entry], images[record["image_id"]], where)
        elif not _numbers(record[entry], wanted):
            raise UserError(f"{where}: {entry} must be {wanted} finite numbers.")


def _numbers(values: Any, count: int) -> bool:
    """Whether these are so many finite numbers."""
    plain = isinstance(values, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return plain and len(values) == count and bool(np.isfinite(values).all())


def _check_mask(mask: Any, image: dict[str, Any], where: str) -> None:
    """Raise `UserError` unless this is a compressed run-length encoding of the image's size."""
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, bytes)) or "size" not in mask:
        raise UserError(f"{where}: segmentation must be a compressed run-length encoding: size, and counts as a text.")
    size = [image.get("height"), image.get("width")]
    if None not in size and list(mask["size"]) != size:
        raise UserError(f"{where}: a mask of {mask['size']} for an image of {size} (height, width).")
    runs = run_lengths(mask["counts"])  # the COCO tools hang or crash on wrong ones
    if runs is None or runs.min() < 0 or runs.sum() != np.prod(mask["size"]):
        raise UserError(f"{where}: the counts of its segmentation are damaged: they do not fill {mask['size']} pixels.")
