"""Forms of files of predictions: CSV, JSON lines, Parquet, and COCO's results."""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.description import WeightsMeta
from ..data.datasets.coco_files import key_of, whole_number
from ..data.datasets.coco_rle import runs_of
from ..errors import UserError, printable, unknown
from ..metrics.coco import results_of
from ..structures import Detections, Prediction
from ..utils.extras import require
from ..utils.files import read_json, shortened

#: rows of a Parquet file that are in memory
ROW_GROUP = 10_000
#: of the columns of tables: name and kind
Columns = list[tuple[str, str]]


class ResultFile(ABC):
    """A form of a file of predictions.

    Results are kept as plain values, line by line, before the file is made of them at the end (see `engine.journal`).

    Args:
        meta: description of the network.
        top_k: classes listed per image (classification).
        of_video: results are of frames: their names are a video's, "#" and a number, and records have `frame` and
            `seconds`.
    """

    #: of the file's name
    ending = ""

    def __init__(self, meta: WeightsMeta, top_k: int, of_video: bool = False):
        self.meta, self.top_k, self.of_video = meta, top_k, of_video

    def path_of(self, name: str) -> str:
        """The file that a result's name means."""
        return name.rpartition("#")[0] if self.of_video else name

    def admits(self, path: Path) -> bool:
        """True if the image belongs into the file."""
        return True

    def record(self, path: Path, prediction: Prediction) -> Any:
        """What the file says of one image, as plain values."""
        return prediction.to_dict()

    @abstractmethod
    def write(self, results: Iterable[dict[str, Any]], file: Path) -> None:
        """Write the file.

        Args:
            results: path, error and record of each image.
            file: a new one.
        """


class JsonLines(ResultFile):
    """One JSON document a line and image, as `predict --json` lists them."""

    ending = ".jsonl"

    def write(self, results: Iterable[dict[str, Any]], file: Path) -> None:
        """Lines of path, what was found, and error."""
        with open(file, "x", encoding="ascii") as stream:
            for one in results:
                line = {"path": self.path_of(one["path"]), **(one["record"] or {}), "error": one["error"]}
                stream.write(json.dumps(line) + "\n")


# ---- tables -----------------------------------------------------------------------------------------------------


class Table(ResultFile):
    """A table with the columns of `columns_of` between path and error.

    An image in which nothing is found, or that cannot be read, has one row with nothing in these columns.
    """

    def __init__(self, meta: WeightsMeta, top_k: int, of_video: bool = False):
        super().__init__(meta, top_k, of_video)
        moment: Columns = [("frame", "count"), ("seconds", "number")] if of_video else []
        self.columns: Columns = [("path", "text"), *moment, *columns_of(meta, top_k), ("error", "text")]

    def rows(self, results: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
        """A value for each column."""
        empty = [None] * len(columns_of(self.meta, self.top_k))
        for one in results:
            record: Any = one["record"]  # that of a frame is never None
            moment = [record["frame"], record["seconds"]] if self.of_video else []
            found = list(rows_of(self.meta.task, record)) if record is not None else []
            for row in found or [empty]:
                yield [self.path_of(one["path"]), *moment, *row, *empty[len(row) :], one["error"]]


class Csv(Table):
    """Comma-separated values in UTF-8; names of files that are no UTF-8 keep their bytes."""

    ending = ".csv"

    def write(self, results: Iterable[dict[str, Any]], file: Path) -> None:
        """A line of headings, then the rows; lists as JSON."""
        with open(file, "x", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow([name for name, _ in self.columns])
            for row in self.rows(results):
                writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row])


class Parquet(Table):
    """An Apache Parquet file; needs pyarrow."""

    ending = ".parquet"

    def __init__(self, meta: WeightsMeta, top_k: int, of_video: bool = False):
        super().__init__(meta, top_k, of_video)
        arrow = require("pyarrow", "parquet")
        self.writer = require("pyarrow.parquet", "parquet").ParquetWriter
        kinds = {"text": arrow.string(), "number": arrow.float64(), "count": arrow.int64(), "truth": arrow.bool_()}
        kinds["numbers"] = arrow.list_(arrow.float64())
        self.schema = arrow.schema([(name, kinds[kind]) for name, kind in self.columns])
        self.batch_of = arrow.RecordBatch.from_arrays
        self.array_of = arrow.array

    def write(self, results: Iterable[dict[str, Any]], file: Path) -> None:
        """Row groups of `ROW_GROUP` rows; names of files are printable text."""
        rows = self.rows(results)
        with self.writer(str(file), self.schema) as writer:
            while group := list(islice(rows, ROW_GROUP)):
                columns = [list(column) for column in zip(*group, strict=True)]
                columns[0] = [printable(path) for path in columns[0]]
                arrays = [self.array_of(c, one.type) for c, one in zip(columns, self.schema, strict=True)]
                writer.write_batch(self.batch_of(arrays, schema=self.schema))


def columns_of(meta: WeightsMeta, top_k: int) -> Columns:
    """The columns that say what was found: a row an image, an object, a class or a segment, as the task has it."""
    if meta.task == "classification":
        numbers = ["", *(f"_{place}" for place in range(2, min(top_k, len(meta.classes)) + 1))]
        return [c for n in numbers for c in ((f"class{n}", "text"), (f"probability{n}", "number"))]
    boxes = [("class", "text"), ("score", "number"), *((side, "number") for side in ("left", "top", "right", "bottom"))]
    if meta.task == "keypoints":
        places = [(f"{name}_{value}", "number") for name in meta.classes for value in ("x", "y", "score")]
        return [("score", "number"), *places]
    return {
        "detection": boxes,
        "instance_segmentation": [*boxes, ("mask", "text")],
        "semantic_segmentation": [("class", "text"), ("share", "number")],
        "panoptic_segmentation": [
            ("segment", "count"),
            ("class", "text"),
            ("thing", "truth"),
            ("score", "number"),
            ("area", "count"),
        ],
        "reid": [("embedding", "numbers")],
    }[meta.task]


def rows_of(task: str, record: dict[str, Any]) -> Iterator[list[Any]]:
    """The values of `columns_of` for what was found in one image, as `Prediction.to_dict` says it."""
    if task == "classification":
        yield [v for pair in zip(record["classes"], record["probabilities"], strict=True) for v in pair]
    elif task in ("detection", "instance_segmentation"):
        found = zip(record["classes"], record["scores"], record["boxes"], strict=True)
        masks = [[json.dumps(mask)] for mask in record.get("masks", [])] or [[]] * len(record["boxes"])
        yield from ([name, score, *box, *mask] for (name, score, box), mask in zip(found, masks, strict=True))
    elif task == "semantic_segmentation":
        yield from ([name, share] for name, share in record["shares"].items())
    elif task == "panoptic_segmentation":
        yield from ([s["id"], s["class"], s["thing"], s["score"], s["area"]] for s in record["segments"])
    elif task == "keypoints":
        for score, pose in zip(record["scores"], record["keypoints"], strict=True):
            yield [score, *(value for place in pose for value in place)]
    else:
        yield [record["embedding"]]


# ---- COCO's results ---------------------------------------------------------------------------------------------

#: tasks whose predictions have COCO's form
COCO_TASKS = ("detection", "instance_segmentation")


class CocoResults(ResultFile):
    """COCO's results: a list of image_id, category_id, bbox, score, and segmentation where there are masks.

    Without a file of the images, an image's id is the number that its name consists of, as COCO's do, else its name
    without ending; a category's is its place in the network's classes, from 1.

    Args:
        meta: description of the network.
        top_k: not used.
        images: COCO file that lists the images and the categories, such as image_info_test-dev2017.json.

    Raises:
        UserError: another task than `COCO_TASKS`, or a file that lacks one of the network's classes.
    """

    ending = ".json"

    def __init__(self, meta: WeightsMeta, top_k: int, images: str | None = None):
        super().__init__(meta, top_k)
        if meta.task not in COCO_TASKS:
            raise UserError(f"COCO's form (.json) is for {' and '.join(COCO_TASKS)}, not {meta.task}: take .jsonl.")
        self.category_ids: list[int] = list(range(1, len(meta.classes) + 1))
        self.image_ids: dict[str, int | str] | None = None
        if images is not None:
            self.image_ids, self.category_ids = _ids_in(images, meta.classes)
        self.seen: dict[str, str] = {}

    def admits(self, path: Path) -> bool:
        """True if the image belongs into the file: all, or those that the file of the images lists.

        Raises:
            UserError: an earlier image has the same id.
        """
        if self.image_ids is not None and path.name not in self.image_ids:
            return False
        made = self.image_id(path)
        if (other := self.seen.setdefault(str(made), str(path))) != str(path):
            raise UserError(f"{other} and {path} have the same image id, {made}: predict them one by one.")
        return True

    def image_id(self, path: Path) -> int | str:
        """An image's id."""
        if self.image_ids is not None:
            return self.image_ids[path.name]
        return int(path.stem) if re.fullmatch(r"[0-9]{1,18}", path.stem) else printable(path.stem)

    def record(self, path: Path, prediction: Prediction) -> list[dict[str, Any]]:
        """The results of one image."""
        assert isinstance(prediction, Detections)
        assert prediction.scores is not None
        tensors = {"boxes": prediction.boxes, "labels": prediction.labels, "scores": prediction.scores}
        found = {name: torch.as_tensor(values) for name, values in tensors.items()}
        found["boxes"] = found["boxes"].reshape(-1, 4)
        image_id: Any = self.image_id(path)
        results = results_of(found, image_id, self.category_ids)
        if prediction.masks is not None:
            for result, mask in zip(results, prediction.masks, strict=True):
                result["segmentation"] = runs_of(mask)
        return results

    def write(self, results: Iterable[dict[str, Any]], file: Path) -> None:
        """A list, one result a line."""
        with open(file, "x", encoding="ascii") as stream:
            separator = "["
            for record in (record for one in results for record in one["record"] or ()):
                stream.write(f"{separator}\n{json.dumps(record)}")
                separator = ","
            stream.write("[]\n" if separator == "[" else "\n]\n")


def _ids_in(file: str, classes: Iterable[str]) -> tuple[dict[str, int | str], list[int]]:
    """The ids of a COCO file's images by file name, and those of classes.

    Raises:
        UserError: no COCO file, two images of one name, or a class that it has not.
    """
    content = read_json(file)
    images, categories = (content.get(key) if isinstance(content, dict) else None for key in ("images", "categories"))
    if not isinstance(images, list) or not isinstance(categories, list):
        raise UserError(f"{file} is no COCO file: it needs the lists images and categories.")
    by_name: dict[str, int | str] = {}
    for number, image in enumerate(images):
        name, key = (image.get(n) if isinstance(image, dict) else None for n in ("file_name", "id"))
        if not isinstance(name, str) or key is None or key_of(key) is None:
            raise UserError(f"{file}, image {number}: it needs a file_name and an id, not {shortened(image)}.")
        if by_name.setdefault(Path(name).name, key) != key:
            raise UserError(f"{file} has two images of the name {shortened(Path(name).name)}.")
    ids: dict[Any, int | None] = {c.get("name"): whole_number(c.get("id")) for c in categories if isinstance(c, dict)}
    for name in classes:
        if ids.get(name) is None:
            raise UserError(f"{file}: {unknown('category', name, [n for n in ids if isinstance(n, str)])}")
    return by_name, [number for name in classes if (number := ids[name]) is not None]


#: every form
FORMS: tuple[type[ResultFile], ...] = (Csv, JsonLines, Parquet, CocoResults)


def form_of(file: Path) -> type[ResultFile]:
    """The form that a file's ending means.

    Raises:
        UserError: another ending.
    """
    for form in FORMS:
        if file.name.lower().endswith(form.ending) and file.name.lower() != form.ending:
            return form
    raise UserError(
        f"--output {file} must end in {', '.join(f.ending for f in FORMS[:-1])} or {FORMS[-1].ending} (COCO's results)."
    )
