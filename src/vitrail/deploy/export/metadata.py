"""Metadata of an exported file: its inputs and outputs, in a JSON file next to it and, for ONNX, inside the file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...checkpoint.description import WeightsMeta, meta_from
from ...config.data import Preprocess
from ...errors import UserError
from ...utils.files import parse_json, shortened
from ...utils.plain import to_dict, typed

INPUT = "images"
#: task -> kind of its network's output, for networks with one output tensor
KINDS = {
    "classification": "logits",
    "semantic_segmentation": "class_maps",
    "keypoints": "heat_maps",
    "reid": "embedding",
}
#: kinds of outputs of networks that see all images at one size
ONE_SIZE = ("logits", "heat_maps", "embedding")
#: all kinds of outputs
OUTPUT_KINDS = (*KINDS.values(), "features", "raw_boxes", "detections")
#: kinds of outputs that `predict` and `evaluate` can use
USABLE = (*KINDS.values(), "detections")
#: names of the input's axes
AXES = ("batch", "channels", "height", "width")
#: largest fixed batch
MAX_BATCH = 4096
NORMALISED = "RGB, scaled to 0..1, then (value - mean) / std per channel"
PIXELS = "RGB pixel values from 0 to 255 as float32; scaling and normalisation are in the graph"


#: increased with every incompatible change; files of another version are refused
METADATA_VERSION = 2


def metadata_path(path: Path) -> Path:
    """Path of an exported file's metadata: its name with .json appended."""
    return path.with_name(path.name + ".json")


@dataclass
class Metadata:
    """The metadata of one exported file.

    Attributes:
        meta: the network, its classes and its preprocessing, as of the weights it was made from.
        format: as in `--format`.
        shape: of the input; a number, or "batch", "height", "width" for an axis that is free.
        outputs: names, in order.
        output_kind: kind of the outputs, see `wrappers.Part`.
        embedded: whether scaling and normalisation are in the graph; the input is then pixel values 0..255.
        quantized: None or "int8".
        decoding: of "detections": meaning of the outputs and the thresholds in the graph.
        versions: of the packages that wrote the file.
    """

    meta: WeightsMeta
    format: str
    shape: list[int | str]
    outputs: list[str]
    output_kind: str = "logits"
    embedded: bool = False
    quantized: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def dynamic(self) -> list[str]:
        """Names of the free axes."""
        return [axis for axis in self.shape if isinstance(axis, str)]

    @property
    def input_preprocess(self) -> Preprocess:
        """Preprocessing of this file's input: the network's, or only resizing if the graph includes normalisation."""
        own = self.meta.preprocess
        if not self.embedded:
            return own
        return dataclasses.replace(own, mean=(0.0,) * own.in_chans, std=(1 / 255,) * own.in_chans)

    def text(self) -> str:
        """The JSON document."""
        values = to_dict(self.meta)
        values |= {
            "metadata_version": METADATA_VERSION,
            "format": self.format,
            "input": {
                "name": INPUT,
                "shape": self.shape,
                "layout": "NCHW",
                "dtype": "float32",
                "values": PIXELS if self.embedded else NORMALISED,
                "preprocessing_embedded": self.embedded,
            },
            "dynamic": self.dynamic,
            "outputs": self.outputs,
            "output_kind": self.output_kind,
            "quantized": self.quantized,
            "versions": self.versions,
        }
        values |= {"decoding": self.decoding} if self.decoding else {}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str, source: str) -> Metadata:
        """The metadata in a JSON document.

        Raises:
            UserError: it is damaged or of another program.
        """
        try:
            values = _object(parse_json(text, source))
            _check_version(values, source)
            meta = meta_from(values)
            about = _object(values.get("input"))
            made = cls(
                meta=meta,
                format=typed(str, values.get("format"), "format"),
                shape=_shape(about.get("shape"), meta.preprocess),
                outputs=typed(list[str], values.get("outputs"), "outputs"),
                output_kind=_choice(values.get("output_kind"), "output_kind", OUTPUT_KINDS),
                embedded=typed(bool, about.get("preprocessing_embedded"), "input.preprocessing_embedded"),
                quantized=_choice(values.get("quantized"), "quantized", (None, "int8")),
                decoding=typed(dict[str, Any], values.get("decoding", {}), "decoding"),
                versions=typed(dict[str, Any], values.get("versions"), "versions"),
            )
            if made.output_kind == "detections":
                _check_detections(made)
        except OtherVersion:
            raise
        except UserError as error:
            raise UserError(f"{source} is damaged or not the metadata of an exported file: {error}") from error
        return made


def _check_detections(made: Metadata) -> None:
    if made.meta.task != "detection" or len(made.outputs) != 3 or made.shape[0] != 1:
        raise UserError("detections are boxes, scores and labels of one image, by a network for detection.")


class OtherVersion(UserError):
    """Metadata of a file that another version of the library wrote."""


def _check_version(values: dict[str, Any], source: str) -> None:
    found = values.get("metadata_version", 1)
    if found == METADATA_VERSION or not {"format", "input", "outputs"} <= values.keys():
        return
    age = "a newer" if isinstance(found, int) and found > METADATA_VERSION else "an earlier"
    raise OtherVersion(
        f"{source} belongs to a file exported by {age} version of vitrail (metadata version {shortened(found)}, not "
        f"{METADATA_VERSION}): export the network again."
    )


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"it must hold entries by name, not {shortened(value)}.")
    return value


def _choice(value: Any, name: str, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(map(str, allowed))}, not {shortened(value)}.")
    return value


def _shape(value: Any, preprocess: Preprocess) -> list[int | str]:
    """The input's axes, each a length or the name of a free axis.

    Raises:
        UserError: other axes, or lengths that do not go with the preprocessing.
    """
    shape = typed(list[int | str], value, "input.shape")
    sides = (preprocess.in_chans, *preprocess.image_size)
    fits = len(shape) == len(AXES) and all(
        axis == name if isinstance(axis, str) else axis == side if side else 1 <= axis <= MAX_BATCH
        for axis, name, side in zip(shape, AXES, (0, *sides), strict=False)
    )
    if not fits or shape[1] != preprocess.in_chans:
        raise UserError(
            f"input.shape {shortened(shape)} does not go with inputs of {' x '.join(map(str, sides))} numbers."
        )
    return shape


def versions_of(*packages: str) -> dict[str, str]:
    """Installed versions of packages, of those that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
