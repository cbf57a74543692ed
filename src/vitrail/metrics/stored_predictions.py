"""The metrics of stored predictions: what `vitrail evaluate --predictions` measures, without a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.data import DataConfig
from ..config.train import Task
from ..data.arrays import read_arrays
from ..data.datasets import coco_files, index_masks
from ..data.datasets.coco import checked_map, map_path, read_map
from ..data.datasets.coco_files import INSTANCES, KEYPOINTS, PANOPTIC, Annotations, Wanted, key_of, read_annotations
from ..data.datasets.coco_keypoints import annotated_persons, limit_persons
from ..data.datasets.division import changed_options, check_division, validation_split
from ..data.datasets.segmentation import by_stem, is_mask_name, open_semantic
from ..data.datasets.splits import for_measuring
from ..errors import UserError, unknown
from ..utils.files import read_json, shortened
from .coco import average_precision, check_results, keypoint_names_in, notes_on_results, tolerance_note, tolerances
from .panoptic import PanopticQuality, Segment
from .retrieval import Gallery, retrieval
from .segmentation import Confusion

#: options of how images are read
UNREAD = ("workers", "white")
#: fields of a file of embeddings
EMBEDDINGS = tuple(f"{side}_{field}" for side in ("query", "gallery") for field in ("feat", "pid", "cam"))


def score(task: Task, predictions: str | Path, data: DataConfig | None = None) -> dict[str, Any]:
    """The task's metrics of stored predictions on the validation split of a data set.

    Args:
        task: of the predictions.
        predictions: COCO results (.json), panoptic results (.json and its folder of PNGs), a folder of masks, or
            embeddings (.npz).
        data: the ground truth; None for embeddings, which hold theirs.

    Raises:
        UserError: an unknown task, or files that cannot be used; the sentence names file and record.
    """
    if task not in SCORES:
        raise UserError(unknown("task", task, SCORES))
    predictions = Path(predictions)
    if not predictions.exists():
        raise UserError(f"There is no {predictions}.")
    measured, truth = SCORES[task]
    if truth is None and data is not None:
        option = ".".join(["data", *sorted(changed_options(data))[:1]])
        raise UserError(f"--{option} has no effect: embeddings of {task} hold their identities and cameras.")
    data = DataConfig() if data is None else data
    if truth is not None:
        if data.name != truth:
            raise UserError(f"Predictions of {task} are measured on --data {truth}, not {data.name}.")
        data.check()
        _check_effect(task, data)
    return measured(predictions, data)


def _check_effect(task: str, data: DataConfig) -> None:
    """Refuse options of data that measuring stored predictions does not read.

    Raises:
        UserError: naming the first.
    """
    named = changed_options(data)
    for name in UNREAD:
        if name in named:
            raise UserError(f"--data.{name} has no effect: no image is decoded to measure stored predictions.")
    measured = for_measuring(data, None)
    check_division(measured, task, named)
    if "train_split" in named and (part := validation_split(measured, task)):
        raise UserError(f"--data.train_split has no effect: predictions are measured on {part}.")


# ---- boxes, masks, keypoints ------------------------------------------------------------------------------------


def _detection(predictions: Path, data: DataConfig) -> dict[str, Any]:
    return _precision(predictions, data, file=INSTANCES, wanted="boxes", kind="bbox")


def _instances(predictions: Path, data: DataConfig) -> dict[str, Any]:
    return _precision(predictions, data, file=INSTANCES, wanted="masks", kind="segm")


def _keypoints(predictions: Path, data: DataConfig) -> dict[str, Any]:
    return _precision(predictions, data, file=KEYPOINTS, wanted="keypoints", kind="keypoints")


def _precision(predictions: Path, data: DataConfig, file: str, wanted: Wanted, kind: str) -> dict[str, Any]:
    truth = _truth(data, file, wanted)
    results = read_json(predictions)
    if not isinstance(results, list):
        raise UserError(f"{predictions} is no file of COCO results: it must hold a list of records.")
    check_results(truth.content, results, kind, str(predictions))
    _limit(truth, data.limit, kind)
    measured = {key_of(image["id"]) for image in truth.images}
    results = [record for record in results if key_of(record["image_id"]) in measured]
    remarks = notes_on_results(truth.content, results, kind)
    if kind == "keypoints" and (others := tolerances(keypoint_names_in(truth.content))[1]):
        remarks.append(tolerance_note(others))
    for remark in remarks:
        warnings.warn(f"{predictions}: {remark}.", stacklevel=2)
    return average_precision(truth.content, results, kind, str(predictions))


def _truth(data: DataConfig, file: str, wanted: Wanted) -> Annotations:
    """The ground truth, checked as training data are.

    Images are looked at as for training where `data.images` names their folder, else only for sizes that no record
    states.
    """
    source = coco_files.locate(for_measuring(data, None), file, train=False)
    truth = read_annotations(source, wanted, max_pixels=data.max_pixels, only_sizes=data.images is None)
    coco_files.warn_counts(truth.counts, truth.file)
    return truth


def _limit(truth: Annotations, limit: int | None, kind: str) -> None:
    """Leave the first images, or of keypoints the first persons, as training does."""
    if limit is None:
        return
    if kind == "keypoints":
        limit_persons(truth, annotated_persons(truth), limit, keep_images=False)
    else:
        truth.keep(truth.images[:limit])


# ---- panoptic ---------------------------------------------------------------------------------------------------


def _panoptic(predictions: Path, data: DataConfig) -> dict[str, Any]:
    truth = _truth(data, PANOPTIC, "segments")
    listed = _listing(predictions)
    found = {record["image_id"]: record for record in _records(listed, truth)}
    _limit(truth, data.limit, "segments")
    categories = truth.categories
    quality = PanopticQuality(
        {c["id"]: bool(c["isthing"]) for c in categories}, {c["id"]: c["name"] for c in categories}
    )
    for record in truth.annotations:
        if record["image_id"] not in found:
            raise UserError(f"{listed} has no prediction for image {record['image_id']}.")
        mine = found[record["image_id"]]
        where = [f"{file}, image {shortened(record['image_id'])}" for file in (listed, truth.file)]
        predicted = read_map(_map_of(listed, mine, where[0]), where[0])
        true = checked_map(_map_of(truth.file, record, where[1]), record, where[1])
        quality.update(predicted, _segments(mine), truth=true, true=_segments(record), name=where[0])
    return quality.compute()


def _map_of(file: Path, record: dict[str, Any], where: str) -> Path:
    """The map of a record, from the folder of its file's name or from the file's own."""
    path = map_path(file, record, where)
    return path if path.parent.is_dir() or file.with_suffix("").is_dir() else file.parent / record["file_name"]


def _listing(predictions: Path) -> Path:
    """The JSON of panoptic results, whose PNGs lie in the folder of its name."""
    if not predictions.is_dir():
        return predictions
    sibling = predictions.with_name(predictions.name + ".json")
    inside = sorted(p for p in predictions.iterdir() if p.suffix.lower() == ".json" and not p.name.startswith("."))
    if sibling.is_file():
        return sibling
    if len(inside) == 1:
        return inside[0]
    raise UserError(f"{predictions} needs one JSON of panoptic results beside it ({sibling.name}) or in it.")


def _records(listed: Path, truth: Annotations) -> list[dict[str, Any]]:
    """The records of panoptic results, checked as true ones are."""
    content = read_json(listed)
    records = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise UserError(f"{listed} is no file of panoptic results: it has no list of annotations.")
    return coco_files.panoptic_records(listed, records, truth)


def _segments(record: dict[str, Any]) -> list[Segment]:
    return [Segment(s["id"], s["category_id"], bool(s["iscrowd"])) for s in record["segments_info"]]


# ---- semantic segmentation --------------------------------------------------------------------------------------


def _semantic(predictions: Path, data: DataConfig) -> dict[str, Any]:
    labels = index_masks.labels_of(data)
    confusion = Confusion(labels.names)
    truths, remarks = _ground_truths(for_measuring(data, None), labels)
    found, left_out = by_stem(predictions, "predicted masks", "(.png)", is_mask_name)
    for remark in [*left_out, *remarks]:
        warnings.warn(f"{remark.rstrip('.')}.", stacklevel=2)
    for stem, read in truths.items():
        if stem not in found:
            raise UserError(f"{predictions} has no mask {stem}.png.")
        true, mine = read(), labels.indices(index_masks.read_mask(found[stem], data.max_pixels), str(found[stem]))
        if mine.shape != true.shape:
            raise UserError(
                f"{found[stem]} is {mine.shape[1]}x{mine.shape[0]} pixels, the true mask "
                f"{true.shape[1]}x{true.shape[0]}."
            )
        confusion.update(torch.from_numpy(mine), torch.from_numpy(true))
    return confusion.compute()


def _ground_truths(
    data: DataConfig, labels: index_masks.Labels
) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Functions that read the class map of each image, by its name without extension; and notes on the data.

    Where the images are there, masks of images that the camera turned are turned with these.
    """
    place = index_masks.locate(data, train=False)
    alone = data.annotations is not None and data.images is None
    if place.images is not None and place.images.is_dir() and not alone:
        images = open_semantic(data, train=False)
        return {pair[0].stem: partial(images.class_map, i) for i, pair in enumerate(images.pairs)}, images.remarks
    masks, left_out = by_stem(place.masks, "masks", "(.png)", is_mask_name)
    if place.divided:
        raise UserError(
            f"Which masks of {place.masks} are for validation is not known without the folder of their images."
        )
    read = {stem: partial(_mask, labels, path, data.max_pixels) for stem, path in masks.items()}
    return dict(islice(read.items(), data.limit)), left_out


def _mask(labels: index_masks.Labels, path: Path, max_pixels: int) -> np.ndarray:
    return labels.indices(index_masks.read_mask(path, max_pixels), str(path))


# ---- re-identification ------------------------------------------------------------------------------------------


def _reid(predictions: Path, data: DataConfig) -> dict[str, Any]:
    values = read_arrays(predictions, EMBEDDINGS, "file of embeddings")
    return retrieval(Gallery(*values[:3]), Gallery(*values[3:]))


#: the function that measures a task's predictions, and the data that must be named for it
SCORES: dict[str, tuple[Callable[[Path, DataConfig], dict[str, Any]], str | None]] = {
    "detection": (_detection, "coco"),
    "instance_segmentation": (_instances, "coco"),
    "keypoints": (_keypoints, "coco"),
    "panoptic_segmentation": (_panoptic, "coco"),
    "semantic_segmentation": (_semantic, "ade20k"),
    "reid": (_reid, None),
}
