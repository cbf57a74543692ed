"""What the page of `vitrail demo` has to know of a network: preprocessing, decoding, classes, and a checked result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.format import meta_of
from ..config.data import Preprocess, check_sides
from ..config.train import height_width
from ..data.transforms.classification import SLENDERNESS, eval_transform
from ..data.transforms.detection import DetectionTransform
from ..data.transforms.segmentation import SegmentationViews, statistics
from ..deploy.export.export import resize_input
from ..deploy.export.metadata import INPUT
from ..deploy.export.wrappers import Part
from ..errors import UserError, printable
from ..heads.retinanet import LEVEL_STRIDES, RetinaNet
from ..structures import MIN_SHOWN_SCORE
from ..tasks import task_of
from ..tasks.semantic_segmentation import SemanticInference
from ..tasks.sliding_window import MIN_SIDE
from ..utils.draw import colour_of

#: tasks whose results the page draws
TASKS = ("classification", "detection", "semantic_segmentation")
#: pixels of a class map that is computed; the page enlarges it for larger images
MOST_MAP_PIXELS = 2**20
#: (width, height) of the made-up image by which the page checks a device
PROBE = (96, 80)
#: output values that are compared
PROBED = 64


@dataclass
class Preparation:
    """From an image to the network's input, in the page and here.

    Attributes:
        how: of `prepare.js`.
        prepare: the same in Python: an RGB image -> (1, C, h, w).
        statistics: mean and deviation of each channel.
        free_size: whether inputs have the sizes of their images.
    """

    how: dict[str, Any]
    prepare: Callable[[Image.Image], Tensor]
    statistics: tuple[list[float], list[float]]
    free_size: bool


def preparation_of(network: nn.Module, part: nn.Module, image_size: int | tuple[int, int] | None = None) -> Preparation:
    """How the network's input is made.

    Args:
        network: with its `.meta`, in evaluation mode.
        part: of it that is in the ONNX file.
        image_size: height and width of the input, one number or two; of a network with a head the short side, to which
            the longest side follows. It is set in the network. None = as it is.

    Raises:
        UserError: the page has no such network, since its task or its head is another, or the network no such size.
    """
    meta = meta_of(network)
    if meta.task not in TASKS:
        raise UserError(f"vitrail demo shows {', '.join(TASKS)}; this is a network for {meta.task}.")
    if meta.head is None:
        resize_input(network, part, image_size)
        return of_classifier(meta.preprocess)
    short_side = None if image_size is None else _one_side(image_size, meta.head)
    task = task_of(meta)
    inference: Any = task.inference
    if isinstance(network, RetinaNet):
        return _of_detector(network, meta.preprocess, short_side)
    if isinstance(inference, SemanticInference):
        return _of_segmentation(inference.views, task.preprocess, short_side)
    raise UserError(f"vitrail demo shows detections of head retinanet; this network has head {meta.head}.")


def _one_side(image_size: int | tuple[int, int], head: str) -> int:
    height, width = height_width(image_size)
    if height != width:
        raise UserError(f"--image_size {height} {width}: head {head} keeps the shape of images; give one side.")
    check_sides((height, width), "--image_size")
    return height


def of_classifier(preprocess: Preprocess) -> Preparation:
    """How a classifier's input is made."""
    height, width = preprocess.image_size
    transform = eval_transform(preprocess)
    how = {
        "kind": "crop",
        "resize": [math.floor(side / preprocess.crop_pct) for side in (height, width)],
        "filter": preprocess.interpolation,
        "tall_first": resizes_tall_first(),
        "slenderness": SLENDERNESS * max(height / width, width / height),
    }
    return Preparation(how, lambda image: transform(image)[None], statistics(preprocess), free_size=False)


def _of_segmentation(views: SegmentationViews, preprocess: Preprocess, short_side: int | None) -> Preparation:
    views.sides = _scaled(views.sides, short_side)
    short_side, max_side = views.sides
    how = {
        "kind": "fit",
        "short_side": short_side,
        "max_side": max_side,
        "multiple": views.multiple,
        "filter": preprocess.interpolation,
        "tall_first": resizes_tall_first(),
        "least": MIN_SIDE,
    }

    def prepare(image: Image.Image) -> Tensor:
        x = views(image, {})[0][0][0]
        below, right = (max(0, MIN_SIDE - side) for side in x.shape[-2:])
        return nn.functional.pad(x, (0, right, 0, below))[None]

    return Preparation(how, prepare, statistics(preprocess), free_size=True)


def _of_detector(network: RetinaNet, preprocess: Preprocess, short_side: int | None) -> Preparation:
    resizing = cast(Any, network.transform)
    least, resizing.max_size = _scaled((resizing.min_size[-1], resizing.max_size), short_side)
    resizing.min_size = (least,)
    how = {
        "kind": "detector",
        "min_size": least,
        "max_size": resizing.max_size,
        "divisible": resizing.size_divisible,
    }
    pixels = DetectionTransform(in_chans=preprocess.in_chans)

    def prepare(image: Image.Image) -> Tensor:
        return resizing([pixels(image, {})[0]])[0].tensors

    colours = list(map(float, resizing.image_mean)), list(map(float, resizing.image_std))
    return Preparation(how, prepare, colours, free_size=True)


def _scaled(sides: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """The least and the longest side of images, in the same proportion with another least side."""
    return sides if short_side is None else (short_side, round(sides[1] * short_side / sides[0]))


def resizes_tall_first() -> bool:
    """True if this Pillow resizes the height of tall images before the width, as version 13: each step is rounded."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 8), dtype=np.uint8))
    size, bilinear = (6, 9), Image.Resampling.BILINEAR
    in_turn = image.resize((image.width, size[1]), bilinear).resize(size, bilinear)
    return np.array_equal(np.asarray(image.resize(size, bilinear)), np.asarray(in_turn))


def decoding_of(network: nn.Module, part: Part) -> dict[str, Any]:
    """How `decode.js` reads the network's outputs."""
    if isinstance(network, RetinaNet):
        anchors, coder = cast(Any, network.anchor_generator), cast(Any, network.box_coder)
        return {
            "kind": "retinanet",
            "scores": part.outputs[0],
            "deltas": part.outputs[1],
            "levels": [
                {"stride": stride, "cells": cells.tolist()}
                for stride, cells in zip(LEVEL_STRIDES, anchors.cell_anchors, strict=True)
            ],
            "weights": list(coder.weights),
            "clip": coder.bbox_xform_clip,
            "candidates": network.topk_candidates,
            "score_thresh": network.score_thresh,
            "nms_thresh": network.nms_thresh,
            "max_detections": network.detections_per_img,
            "shown_score": MIN_SHOWN_SCORE,
        }
    if part.kind == "class_maps":
        return {"kind": "class_maps", "output": part.outputs[0], "most_pixels": MOST_MAP_PIXELS}
    return {"kind": "softmax", "output": part.outputs[0]}


def description_of(network: nn.Module, part: Part, preparation: Preparation, title: str) -> dict[str, Any]:
    """The content of network.json, without what is about files.

    Args:
        network: with its `.meta`, in evaluation mode.
        part: that is in the ONNX file.
        preparation: of its input.
        title: of the page.
    """
    meta = meta_of(network)
    pre = meta.preprocess
    mean, std = preparation.statistics
    height, width = (None, None) if preparation.free_size else pre.image_size
    return {
        "title": printable(title),
        "network": meta.model,
        "head": meta.head,
        "task": meta.task,
        "classes": [printable(name) for name in meta.classes],
        "colours": [list(colour_of(i)) for i in range(len(meta.classes))],
        "licence": printable(meta.licence or ""),
        "note": printable(meta.note),
        "parameters": sum(p.numel() for p in network.parameters()),
        "input": {
            "name": INPUT,
            "channels": pre.in_chans,
            "height": height,
            "width": width,
            "mean": mean,
            "std": std,
        },
        "prepare": preparation.how,
        "decode": decoding_of(network, part),
        "probe": probe_of(part, preparation.prepare),
    }


# ---- check of a device ------------------------------------------------------------------------------------------


def probe_image() -> Image.Image:
    """The made-up image of `probe` in prepare.js."""
    width, height = PROBE
    y, x, c = np.ogrid[:height, :width, :3]
    return Image.fromarray(((7 * x + 13 * y + 101 * c + ((x * y) >> 4)) & 255).astype(np.uint8))


@torch.inference_mode()
def probe_of(part: Part, prepare: Callable[[Image.Image], Tensor]) -> dict[str, Any]:
    """The network's outputs for `probe_image`: of each some values, their places, and its largest one.

    Args:
        part: that is in the ONNX file.
        prepare: makes its input.
    """
    found = part.module(prepare(probe_image()))
    outputs = {}
    for name, output in zip(part.outputs, [found] if isinstance(found, Tensor) else found, strict=True):
        flat = output.flatten()
        places = sorted({i * len(flat) // PROBED for i in range(PROBED)})
        outputs[name] = {
            "places": places,
            "values": [float(flat[i]) for i in places],
            "largest": float(flat.abs().max()),
        }
    return {"width": PROBE[0], "height": PROBE[1], "outputs": outputs}
