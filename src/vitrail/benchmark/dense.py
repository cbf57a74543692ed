"""Networks of dense tasks in benchmarks: built with fresh weights, at a size of images, with their decoding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.description import COUNTS, WeightsMeta
from ..checkpoint.format import meta_of, set_meta
from ..config.data import Preprocess
from ..errors import UserError, unknown
from ..factory import HEADS
from ..structures import PanopticSegments
from ..tasks import TASKS, Inference, heads_of, task_of
from ..utils.plain import Limits, typed

#: numbers of classes of a head that is timed
CLASSES = Limits(least=1, most=100_000)


def check_head(task: str | None, head: str | None) -> tuple[str, str]:
    """Task and head, of which one may be left out: the task's default head, or the head's task.

    Raises:
        UserError: an unknown name, a task without heads, or a head of another task.
    """
    if head is not None and head not in HEADS:
        raise UserError(unknown("head", head, HEADS))
    if task is None:
        task = next(name for name in TASKS if head in heads_of(name))
    heads = heads_of(task)
    if not heads:
        raise UserError(f"--task {task} has no heads: leave it out to time a network under its own classifier.")
    if head is not None and head not in heads:
        raise UserError(unknown(f"head of {task}", head, heads))
    return task, head or heads[0]


def class_counts(head: str, options: dict[str, Any]) -> dict[str, int]:
    """The numbers of classes of a head, by option: those given, else the head's defaults.

    Raises:
        UserError: a number that cannot be.
    """
    known = inspect.signature(HEADS[head].make).parameters
    found = {}
    for name in COUNTS:
        if name in known:
            found[name] = typed(int, options.get(name, known[name].default), f"--head_options.{name}")
            CLASSES.check(f"--head_options.{name}", found[name])
    return found


def fresh(
    model: str,
    model_options: dict[str, Any],
    task: str,
    head: str,
    head_options: dict[str, Any],
    image_size: tuple[int, int],
) -> nn.Module:
    """A network under a head with fresh weights, as a task builds it, described by `.meta`.

    Args:
        model: name of ours or of timm's.
        model_options: constructor options of the network.
        task: of the head.
        head: one of `HEADS`.
        head_options: constructor options of the head, the numbers of classes among them.
        image_size: (height, width); detectors that keep the shape of images take the smaller side.

    Raises:
        UserError: unknown name or option, or impossible value.
    """
    counts = class_counts(head, head_options)
    meta = WeightsMeta(
        model=model,
        model_options=model_options,
        head=head,
        head_options={**head_options, **counts},
        task=task,
        classes=[str(number) for number in range(sum(counts.values()))],
        preprocess=Preprocess(image_size=_sides(head, image_size)),
        training_data="none",
        note="fresh random weights: predictions mean nothing",
    )
    made = task_of(meta)
    meta.preprocess, meta.head_options = made.preprocess, made.head_options
    return set_meta(made.build_model(), meta).eval()


def keeps_shape(head: str) -> bool:
    """True of detectors that resize images to a short side."""
    return HEADS[head].detector and not HEADS[head].one_size


def _sides(head: str, size: tuple[int, int]) -> tuple[int, int]:
    return (min(size), min(size)) if keeps_shape(head) else size


def resized(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The network of a dense task, changed to take images of (height, width) as they are; a classifier is not changed.

    A head that pads images to multiples of a side still does.
    """
    meta = meta_of(network)
    if meta.head is None:
        return network
    settings = {name: dict(values) for name, values in meta.settings.items()}
    if meta.task == "semantic_segmentation":
        settings["segmentation"] = {
            **settings.get("segmentation", {}),
            "short_side": min(size),
            "max_side": max(size),
        }
    preprocess = replace(meta.preprocess, image_size=_sides(meta.head, size))
    if HEADS[meta.head].detector:
        transform = cast(Any, network).transform
        if transform.fixed_size is not None:
            transform.fixed_size = (size[1], size[0])
        transform.min_size, transform.max_size = (min(size),), max(size)
    return set_meta(network, replace(meta, settings=settings, preprocess=preprocess))


def is_detector(network: nn.Module) -> bool:
    """True of a network that takes lists of images and gives what it finds in them."""
    head = meta_of(network).head
    return head is not None and HEADS[head].detector


def prepared(network: nn.Module, batch: int, size: tuple[int, int], device: torch.device) -> tuple[Inference, Any]:
    """The inference of a network of a dense task, and the input that it makes of random images, the same every time."""
    inference = task_of(meta_of(network)).inference
    pixels = np.random.default_rng(1).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    return inference, inference.inputs([Image.fromarray(one) for one in pixels], device)


def found_in(outputs: Any) -> int | None:
    """Number of objects or segments in the outputs of `Inference.infer`; None where every image has the same number."""
    if not isinstance(outputs, list) or not outputs:
        return None
    if isinstance(outputs[0], PanopticSegments):
        return sum(len(one.segments) for one in outputs)
    return sum(len(one["boxes"]) for one in outputs) if isinstance(outputs[0], dict) else None


class InDtype(nn.Module):
    """A network as `Inference.infer` calls it: images in another precision, outputs in fp32."""

    def __init__(self, network: Callable[[Tensor], Any], dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) fp32 -> the network's output in fp32."""
        return self.network(images.to(self.dtype)).float()
