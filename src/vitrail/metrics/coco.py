"""COCO's average precision of boxes, masks and keypoints, counted by faster-coco-eval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets.coco import CocoImages
from ..data.datasets.coco_files import are_shares, exceeds_image, key_of, whole_number
from ..data.datasets.coco_rle import EXTRA, encoded, finite_numbers, runs_in, runs_of
from ..data.datasets.keypoint_names import COCO_KEYPOINTS, coco_numbers
from ..data.large import EnlargedMask
from ..errors import UserError
from ..utils.extras import require
from ..utils.files import shortened
from .base import Metrics

_OF_REGIONS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
#: entry that each kind compares, and its metrics in the order the COCO tools print them
KINDS = {
    "bbox": ("bbox", _OF_REGIONS),
    "segm": ("segmentation", _OF_REGIONS),
    "keypoints": ("keypoints", ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")),
}

#: what the COCO tools say of objects that the data does not have
ABSENT = -1
#: entries of a result that are numbers of any size
_FLOATS = ("score", "bbox", "keypoints")
#: largest absolute coordinate of a result
MAX_COORDINATE = 1e9


def average_precision(
    truth: dict[str, Any], results: Sequence[Any], kind: str, name: str = "the predictions"
) -> dict[str, Any]:
    """The COCO metrics of results, in [0, 1]; None where the data has no object of that size.

    The COCO tools say -1 there, which is no average precision.

    Only the entry of the kind is compared: masks are sorted into small, medium and large by their own area, whatever
    box a record also holds. Annotations are numbered anew, images in the order of their ids, before they are counted.

    Args:
        truth: a COCO annotation file's content as `data.coco_files.read_annotations` gives it.
        results: COCO results: image_id, category_id, score, and bbox (x, y, width, height), segmentation (RLE) or
            keypoints (x, y, v of each).
        kind: "bbox", "segm" or "keypoints".
        name: what messages call the results.

    Returns:
        The metrics of `KINDS`, and per_class rows of {"class", "AP" or None}.

    Raises:
        UserError: a record that is no result of this data, no object to find, or the extra is missing.
    """
    check_results(truth, results, kind, name)
    if all(record["iscrowd"] for record in truth["annotations"]):
        raise UserError("The data has no object to find, crowds aside: there is nothing to measure on.")
    counted = _counted(truth, results, kind)
    # the library adds metrics of its own behind those of the COCO tools
    values = (None if value == ABSENT else float(value) for value in counted.stats)
    metrics: dict[str, Any] = dict(zip(KINDS[kind][1], values, strict=False))
    names = {category["id"]: category["name"] for category in truth["categories"]}
    # (IoU thresholds, recalls, categories, areas, detections): all areas, most detections
    precision = counted.eval["precision"][:, :, :, 0, -1]
    metrics["per_class"] = [
        {"class": names[category], "AP": float(np.mean(own)) if own.size else None}
        for category, own in ((c, _known(precision[:, :, k])) for k, c in enumerate(counted.params.catIds))
    ]
    return metrics


def _known(precision: np.ndarray) -> np.ndarray:
    """The entries of categories that occur."""
    return precision[precision != ABSENT]


def counting_tools() -> Any:
    """faster-coco-eval.

    Raises:
        UserError: the extra is missing.
    """
    return require("faster_coco_eval", EXTRA)


def tolerances(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """OKS's sigmas (K,): the spread of annotated positions of each keypoint, relative to the person's size.

    COCO's own by the keypoints' names, wherever they stand (left_eye, "Left Eye", l_eye); the mean of COCO's for all
    others.

    Returns:
        The sigmas, and the names that are none of COCO's.

    Raises:
        UserError: the extra is missing.
    """
    sigmas = require("faster_coco_eval.core.cocoeval", EXTRA).Params(iouType="keypoints").kpt_oks_sigmas
    assert len(sigmas) == len(COCO_KEYPOINTS)
    numbers = coco_numbers(names)
    others = [name for name, number in zip(names, numbers, strict=True) if number is None]
    return np.array([sigmas.mean() if number is None else sigmas[number] for number in numbers]), others


def tolerance_note(others: Sequence[str]) -> str:
    """The note on keypoints that are none of COCO's."""
    return (
        f"keypoints that are none of COCO's ({', '.join(map(shortened, others[:5]))}{', ...' * (len(others) > 5)}) are "
        "measured with the mean of COCO's tolerances: their AP compares with no published one"
    )


def _counted(truth: dict[str, Any], results: Sequence[Any], kind: str) -> Any:
    tools = counting_tools()
    order = sorted((image["id"] for image in truth["images"]), key=lambda value: (isinstance(value, str), value))
    numbers = {key_of(value): number for number, value in enumerate(order, 1)}
    known = tools.COCO(_numbered(truth, numbers, results, kind))
    found = known.loadRes([_plain(_packed(_only(record, numbers, kind, ("score",)))) for record in results])
    evaluation = tools.COCOeval_faster(
        known, found, kind, kpt_oks_sigmas=_sigmas(truth) if kind == "keypoints" else None
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _sigmas(truth: dict[str, Any]) -> list[float]:
    return tolerances(keypoint_names_in(truth))[0].tolist()


def keypoint_names_in(truth: dict[str, Any]) -> list[str]:
    """The names of the keypoints."""
    return list(truth["categories"][0]["keypoints"])


def _numbered(
    truth: dict[str, Any], numbers: dict[str | None, int], results: Sequence[Any], kind: str
) -> dict[str, Any]:
    """The ground truth as the tools need it: ids from 1, and a size for every image."""
    sizes = _sizes(truth, results) if kind == "segm" else {}
    images = []
    for image in truth["images"]:
        width, height = sizes.get(key_of(image["id"])) or (image.get("width", 1), image.get("height", 1))
        images.append({"id": numbers[key_of(image["id"])], "width": width, "height": height})
    more = ("bbox", "area", "iscrowd", "num_keypoints")
    annotations = [_only(record, numbers, kind, more) for record in truth["annotations"]]
    for number, record in enumerate(annotations, 1):
        record["id"] = number
    return {"images": images, "annotations": annotations, "categories": [dict(c) for c in truth["categories"]]}


def _only(record: dict[str, Any], numbers: dict[str | None, int], kind: str, more: Sequence[str]) -> dict[str, Any]:
    """A record's entry of the kind, and little else."""
    kept = {key: record[key] for key in ("category_id", KINDS[kind][0], *more) if key in record}
    return {**kept, "image_id": numbers[key_of(record["image_id"])], "category_id": whole_number(record["category_id"])}


def _packed(record: dict[str, Any]) -> dict[str, Any]:
    """A result whose run lengths, checked before, are compressed, as the tools need them."""
    mask = record.get("segmentation")
    if mask is None or isinstance(mask["counts"], str):
        return record
    return {**record, "segmentation": encoded(mask, None, "a result")}


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """A result with floats for whole numbers, which the tools would turn into C's."""
    floats = {name: np.array(v, dtype=np.float64).tolist() for name, v in record.items() if name in _FLOATS}
    return {**record, **floats}


def _sizes(truth: dict[str, Any], results: Sequence[Any] = ()) -> dict[str | None, tuple[int, int]]:
    """(width, height) of images: as stated, or else that of their masks, true ones first."""
    sizes: dict[str | None, tuple[int, int]] = {}
    for image in truth["images"]:
        if "width" in image:
            sizes[key_of(image["id"])] = image["width"], image["height"]
    for record in (*truth["annotations"], *results):
        mask = record["segmentation"]
        if isinstance(mask, dict):
            sizes.setdefault(key_of(record["image_id"]), (mask["size"][1], mask["size"][0]))
    return sizes


# ---- the check of results ---------------------------------------------------------------------------------------


def check_results(truth: dict[str, Any], results: Sequence[Any], kind: str, name: str) -> None:
    """Raise `UserError`, naming the record, for what the COCO tools would crash on or silently leave out.

    Ids of images may be numbers or the same as texts.
    """
    images = {key_of(image["id"]) for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    entry, wanted = (
        KINDS[kind][0],
        {"bbox": 4, "keypoints": 3 * len(keypoint_names_in(truth)) if kind == "keypoints" else 0},
    )
    for number, record in enumerate(results):
        where = f"{name}, record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where} is no record: COCO results are objects with named entries.")
        missing = [key for key in ("image_id", "category_id", "score", entry) if key not in record]
        if missing:
            raise UserError(f"{where} has no {missing[0]}: COCO results for {kind} need it.")
        if key_of(record["image_id"]) is None or key_of(record["image_id"]) not in images:
            raise UserError(f"{where}: the data has no image {shortened(record['image_id'])}.")
        if whole_number(record["category_id"]) not in categories:
            raise UserError(f"{where}: the data has no category {shortened(record['category_id'])}.")
        if finite_numbers([record["score"]]) is None:
            raise UserError(f"{where}: the score {shortened(record['score'])} is no finite number.")
        if kind == "segm":
            continue
        numbers = finite_numbers(record[entry])
        if numbers is None or len(numbers) != wanted[kind]:
            raise UserError(f"{where}: {entry} must be {wanted[kind]} finite numbers.")
        if np.abs(numbers).max() > MAX_COORDINATE:
            raise UserError(f"{where}: {entry} holds {max(record[entry], key=abs):g}, which lies beyond any image.")
        if kind == "bbox" and numbers[2:].min() < 0:
            raise UserError(f"{where}: bbox {shortened(record[entry])} has a width or height below 0.")
    if kind == "segm":
        _check_masks(truth, results, name)


def _check_masks(truth: dict[str, Any], results: Sequence[dict[str, Any]], name: str) -> None:
    """Raise `UserError` unless all are run lengths, compressed or not, of their images' sizes."""
    sizes = _sizes(truth)
    for number, record in enumerate(results):
        mask = record["segmentation"]
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), (str, list)) or "size" not in mask:
            raise UserError(
                f"{name}, record {number}: segmentation must be run lengths: size, and counts as a text or as numbers."
            )
        key = key_of(record["image_id"])
        runs_in(mask, sizes.get(key), f"{name}, record {number}")
        sizes.setdefault(key, (mask["size"][1], mask["size"][0]))


def notes_on_results(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Notes for the user on results."""
    if not results:
        return ["no result: nothing was found in any image"]
    remarks = []
    seen = {key_of(record["image_id"]) for record in results}
    total = len(truth["images"])
    if 2 * len(seen) < total:
        remarks.append(f"results name {len(seen)} of {total} images, and the metrics are of all {total}")
    if kind == "bbox" and are_shares(record["bbox"] for record in results):
        remarks.append("no box has a number above 1: COCO's boxes are pixels, not shares of the image's sides")
    sizes = {key_of(i["id"]): (i["width"], i["height"]) for i in truth["images"] if "width" in i}
    boxes = [(r["bbox"], sizes[key]) for r in results if kind == "bbox" and (key := key_of(r["image_id"])) in sizes]
    outside = sum(exceeds_image(box, size) for box, size in boxes)
    if outside and 2 * outside >= len(boxes):  # some detectors do not cut theirs at the edges
        remarks.append(
            f"{outside} of {len(results)} boxes reach beyond their images; COCO's are left, top, width and height"
        )
    same = Counter((key_of(r["image_id"]), r["category_id"], r["score"], str(r[KINDS[kind][0]])) for r in results)
    twice = sum(count - 1 for count in same.values())
    if twice:
        remarks.append(f"{twice} of {len(results)} results are repeated: all but one of each count as wrong")
    return remarks


class CocoMetrics(Metrics):
    """COCO's metrics of detections, accumulated over the images of a data set.

    Args:
        data: the annotated images.
        kinds: of `metrics.coco.KINDS`; the first one's metrics have the plain names, those of boxes beside masks begin
            with "box_".

    Raises:
        UserError: the extra is missing.
    """

    def __init__(self, data: CocoImages, kinds: Sequence[str]):
        counting_tools()  # a missing extra is reported before evaluation
        self.data, self.kinds = data, kinds
        self.results: list[dict[str, Any]] = []

    def update(self, output: list[dict[str, Tensor]], batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Add the detections of one batch."""
        for found, target in zip(output, batch[1], strict=True):
            self.results += results_of(found, target["image_id"], self.data.category_ids, target.get("sizes"))

    def state(self) -> dict[str, Tensor]:
        """The results as the bytes of their JSON."""
        return packed(self.results)

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the results by those of all processes."""
        self.results = [record for state in states for record in unpacked(state)]

    def compute(self) -> dict[str, Any]:
        """COCO's metrics in [0, 1], None where there is no such object; and the number of images."""
        metrics: dict[str, Any] = {}
        for i, kind in enumerate(self.kinds):
            own = average_precision(self.data.content, self.results, kind)
            rows = own.pop("per_class")
            metrics |= {f"{'' if i == 0 else 'box_'}{name}": value for name, value in own.items()}
            metrics.setdefault("per_class", rows)
        metrics["images"] = len(self.data)
        return metrics

    def report(self, folder: Path) -> None:
        """Write the results as a COCO results file."""
        (folder / "results.json").write_text(json.dumps(self.results), encoding="utf-8")


def packed(results: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Records as one tensor of bytes."""
    return {"results": torch.frombuffer(bytearray(json.dumps(results).encode()), dtype=torch.uint8)}


def unpacked(state: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The records of `packed`."""
    return json.loads(bytes(state["results"].cpu().numpy()).decode())


def results_of(
    found: dict[str, Tensor],
    image_id: int,
    category_ids: Sequence[int],
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """The objects of one image as COCO results.

    Args:
        found: boxes, labels, scores, and masks where there are any.
        image_id: of the image.
        category_ids: of the labels.
        sizes: (height, width) of a large image, and of its reduced form; None = it was not reduced.
    """
    boxes = found["boxes"].float().cpu()
    if sizes is not None:
        (height, width), (h, w) = sizes
        boxes = boxes * torch.tensor([width / w, height / h]).repeat(2)
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(boxes, labels, scores, strict=True)
    ]
    if "masks" in found:
        for record, mask in zip(results, found["masks"].cpu().numpy(), strict=True):
            record["segmentation"] = runs_of(mask if sizes is None else EnlargedMask(mask, sizes[0]))
    return results
