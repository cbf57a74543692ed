"""Exported files as networks for prediction and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from ...checkpoint.load import open_network
from ...config.export import RuntimeName
from ...errors import BadOption, UserError
from ...factory import HEADS, resizing_of
from ...utils.files import read_text, shortened
from ...utils.plain import typed
from .backends import BACKENDS, Backend, Runtime, backend_of
from .metadata import KINDS, USABLE, Metadata, metadata_path

#: kinds of outputs with one channel per class
NAMED = (KINDS["classification"], KINDS["semantic_segmentation"])


class DeployedNetwork(nn.Module):
    """An exported file in its runtime, called like the network it was made from.

    Attributes:
        meta: of the network; its preprocessing gives this file's input.

    Args:
        path: the file, for messages.
        runtime: the file in its runtime.
        metadata: its metadata.
    """

    def __init__(self, path: Path, runtime: Runtime, metadata: Metadata):
        super().__init__()
        self.path, self.runtime, self.metadata = path, runtime, metadata
        self.meta: Any = replace(metadata.meta, preprocess=metadata.input_preprocess)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of every input; None where these axes are free."""
        height, width = self.metadata.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, C, H, W), any B: a file for a fixed batch is run several times, with images repeated at the end.

        Raises:
            BadOption: the file does not take this number of channels or size.
        """
        outputs = [torch.from_numpy(np.concatenate(parts)[: len(x)]) for parts in zip(*self._parts(x), strict=True)]
        self._check_classes(outputs)
        return outputs[0] if self.metadata.output_kind in KINDS.values() else tuple(outputs)

    def _check_classes(self, outputs: list[Tensor]) -> None:
        """Refuse metadata with another number of classes than the file's outputs.

        Raises:
            UserError: the message names both numbers.
        """
        named = len(self.meta.classes)
        if self.metadata.output_kind in NAMED and outputs[0].ndim > 1 and outputs[0].shape[1] != named:
            raise UserError(
                f"{metadata_path(self.path)} names {named} classes, {self.path} gives {outputs[0].shape[1]}: they do "
                "not belong together; export the network again."
            )

    def _parts(self, x: Tensor) -> list[list[np.ndarray]]:
        for axis, given in zip(self.metadata.shape[1:], x.shape[1:], strict=True):
            if isinstance(axis, int) and axis != given:
                wanted = " x ".join(map(str, self.metadata.shape[1:]))
                raise BadOption(f"input {tuple(x.shape)} does not fit {self.path}, which takes {wanted}")
        images = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
        batch = self.metadata.shape[0]
        if isinstance(batch, str):
            return [self.runtime(images)]
        images = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
        return [self.runtime(images[i : i + batch]) for i in range(0, len(images), batch)]


class DeployedDetector(DeployedNetwork):
    """An exported file that gives the detections of one image, called like the detector it was made from.

    Images are resized and normalised here as the detector does it. A file for one size gets images of this size, of a
    detector that keeps the shape of images padded at the right and below.
    """

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Images (C, H, W) of any sizes with values in [0, 1] -> "boxes" in their pixels, "scores" and "labels".

        Raises:
            BadOption: the file does not take this number of channels.
            UserError: the file gives labels without a name.
        """
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        x, size = self._fitted(image)
        boxes, scores, labels = (torch.from_numpy(output) for output in self._parts(x[None])[0])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.meta.classes):
            raise UserError(
                f"{metadata_path(self.path)} names {len(self.meta.classes)} classes, {self.path} gives label "
                f"{int(labels.max())}: they do not belong together; export the network again."
            )
        boxes = clip_boxes_to_image(boxes, size)  # an image may have been padded
        original = [int(image.shape[-2]), int(image.shape[-1])]
        return {
            "boxes": resize_boxes(boxes, list(size), original),
            "scores": scores,
            "labels": labels + HEADS[self.meta.head].first_label,
        }

    def _fitted(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input for an image, and the (height, width) of the image in it."""
        pre = self.meta.preprocess
        resizing = resizing_of(self.meta.head_options, pre.mean, pre.std)
        x, full = resizing.normalize(image), self.fixed_size
        if full is None:
            x = resizing.resize(x)[0]
            return x, (x.shape[-2], x.shape[-1])
        if HEADS[self.meta.head].one_size:
            return F.interpolate(x[None], full, mode="bilinear", align_corners=False)[0], full
        scale = min(have / side for have, side in zip(full, x.shape[-2:], strict=True))
        height, width = (max(1, int(side * scale)) for side in x.shape[-2:])
        x = F.interpolate(x[None], (height, width), mode="bilinear", align_corners=False)[0]
        return F.pad(x, (0, full[1] - width, 0, full[0] - height)), (height, width)


def open_deployed(path: str | Path, threads: int = 1) -> DeployedNetwork:
    """An exported file and its metadata as a network.

    Args:
        path: a file of `vitrail export`.
        threads: of its runtime.

    Raises:
        UserError: a file is missing, damaged or not an exported file.
    """
    path, backend = Path(path), backend_of(path)
    if backend is None:
        endings = ", ".join(backend.suffix for backend in BACKENDS.values())
        raise UserError(f"{path} is not an exported file: these end in {endings}.")
    for file in backend.files(path)[:-1]:
        if not file.is_file():
            raise UserError(f"There is no file {file}.")
    metadata = read_metadata(path, backend)  # checked before the runtime reads the file
    kind = DeployedDetector if metadata.output_kind == "detections" else DeployedNetwork
    return kind(path, backend.open(path, threads), metadata)


def read_metadata(path: Path, backend: Backend) -> Metadata:
    """The metadata of an exported file: its JSON file, or the copy inside the file if that is missing.

    Raises:
        UserError: there is none, or it is damaged.
    """
    sibling = metadata_path(path)
    if sibling.is_file():
        made = Metadata.parse(read_text(sibling), str(sibling))
        if made.format != backend.name:
            raise UserError(f"{sibling} describes a file of {shortened(made.format)}, not {path}; export it again.")
        return made
    text = backend.embedded_metadata(path)
    if text is None:
        raise UserError(
            f"{path} has no metadata file {sibling.name} with its classes and preprocessing: put it next to the file, "
            "or export the network again."
        )
    return Metadata.parse(text, str(path))


def open_any(
    weights: str, model: str | None = None, runtime: RuntimeName = "auto", threads: int | None = None
) -> nn.Module:
    """The network of a WEIGHTS argument in PyTorch, or an exported file in its runtime.

    Args:
        weights: what `open_network` takes, or a file of `vitrail export`.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
        runtime: "auto" = the runtime of the file; another name must be that runtime.
        threads: of the runtime; None = as many as PyTorch uses.

    Raises:
        UserError: the file cannot be opened, the runtime does not run it, or it has no prediction outputs.
    """
    typed(RuntimeName, runtime, "--runtime")
    backend = backend_of(weights)
    fits = backend.runtime if backend else "torch"
    if runtime not in ("auto", fits):
        wanted = next(b for b in BACKENDS.values() if b.runtime == runtime)
        raise UserError(
            f"--runtime {runtime} runs {wanted.suffix} files, not {weights}: make one with vitrail export --format "
            f"{wanted.name}, or leave --runtime out."
        )
    if backend is None:
        return open_network(weights, model)
    if model is not None:
        raise UserError(f"{weights} says itself which network it holds: leave --model {model} out.")
    network = open_deployed(weights, threads or torch.get_num_threads())
    if network.metadata.output_kind not in USABLE:
        detector = ", or export these with --end_to_end" if network.metadata.output_kind == "raw_boxes" else ""
        raise UserError(
            f"{weights} has outputs of kind {network.metadata.output_kind}, which predict and evaluate cannot use: "
            f"give the weights it was exported from{detector}."
        )
    return network
