"""Comparison of an exported file with its network: outputs on images at several sizes and batches, and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...checkpoint.description import WeightsMeta
from ...config.data import DataConfig, Preprocess
from ...data import eval_transform, find_images, levels_of, open_dataset, open_image
from ...data.datasets.base import AnnotatedSet, ImageSet
from ...errors import UserError
from ...tasks import task_of
from ...utils.extras import how_to_install
from .backends.base import Runtime
from .trace import CannotExport, Shape, first_line

#: images kept for the comparison
MAX_IMAGES = 8
#: difference of boxes, as a share of the image, and of scores, below which two detections are the same one
SAME = 0.01
#: share of detections that may be others: of two boxes with equal scores, rounding decides which one is suppressed
ODD_ONES = 0.02


class Disagrees(CannotExport):
    """The outputs of a file differ from the network's."""


@dataclass
class Check:
    """Comparison at one shape.

    Attributes:
        batch: images.
        size: (height, width).
        absolute: largest difference of any output value.
        relative: the largest difference of an output, divided by the largest value of that output.
        detections: how many were compared; None of other outputs.
    """

    batch: int
    size: tuple[int, int]
    absolute: float
    relative: float
    detections: int | None = None


def images_to_compare(
    named: Sequence[str], data: DataConfig | None, meta: WeightsMeta
) -> tuple[list[Image.Image], str]:
    """Images to compare on, and their source: named files, validation data, or scikit-learn's two sample images.

    Raises:
        UserError: there are no such images.
    """
    if named:
        paths = [path for pattern in named for path in find_images(pattern)][:MAX_IMAGES]
        levels = meta.preprocess.levels or levels_of(paths)
        return [open_image(path, levels=levels) for path in paths], f"{len(paths)} image(s) of --images"
    if data is not None and (found := validation_images(data, meta, MAX_IMAGES)):
        return found, f"{len(found)} validation images of {data.title}"
    return _embedded(), "the two sample photographs of scikit-learn"


def validation_images(data: DataConfig, meta: WeightsMeta, most: int) -> list[Image.Image]:
    """Images of the validation split, evenly spread over it; none of data that can only be streamed.

    Args:
        data: of a run.
        meta: of the network.
        most: number of images.

    Raises:
        UserError: the data cannot be read.
    """
    levels = meta.preprocess.levels
    validation = open_dataset(data, train=False, levels=levels) if meta.head is None else task_of(meta, data).eval_set
    if not isinstance(validation, (ImageSet, AnnotatedSet)):
        return []
    count = min(most, len(validation))
    return [validation.image(i * len(validation) // count) for i in range(count)]


def _embedded() -> list[Image.Image]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise UserError(
            f"The sample photographs come with scikit-learn: name images with --images, or {how_to_install('train')}."
        ) from None
    return [Image.fromarray(np.asarray(pixels)) for pixels in load_sample_images()["images"]]


def shapes_to_check(shape: Shape, least: int = 33) -> list[tuple[int, tuple[int, int]]]:
    """(batch, size) pairs: the recorded size, and where axes are free another batch, a larger and a smaller size.

    Args:
        shape: of the graph.
        least: smallest height and width the graph takes.
    """
    height, width = shape.size
    batch = shape.batch or 1
    pairs = [(batch, (height, width))]
    if shape.batch is None:
        pairs.append((3, (height, width)))
    if shape.free_size:  # neither is a multiple of a network's window sizes or strides
        other = 2 if shape.batch is None else batch
        pairs.append((other, (height + height // 4 + 3, width + width // 2 + 5)))
        pairs.append((other, (max(least, height // 2 + 1), max(least + 8, width // 2 + 9))))
    return pairs


def inputs(images: Sequence[Image.Image], preprocess: Preprocess, batch: int, size: tuple[int, int]) -> Tensor:
    """A batch of preprocessed images, repeated as needed."""
    transform = eval_transform(replace(preprocess, image_size=size))
    return torch.stack([transform(images[i % len(images)]) for i in range(batch)])


@torch.no_grad()
def compare(
    reference: nn.Module,
    runtime: Runtime,
    images: Sequence[Image.Image],
    preprocess: Preprocess,
    pairs: Sequence[tuple[int, tuple[int, int]]],
) -> list[Check]:
    """Differences of a file's outputs from those of its graph, at each of the (batch, size) pairs.

    Raises:
        Disagrees: the runtime fails at one of them, or gives outputs of another shape.
    """
    checks = []
    for batch, size in pairs:
        x = inputs(images, preprocess, batch, size)
        expected = reference(x)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        where = f"at batch {batch}, {size[0]} x {size[1]} pixels"
        found = _outputs(runtime, x, where)
        if [tuple(f.shape) for f in found] != [tuple(e.shape) for e in expected]:
            raise Disagrees(f"its runtime gives outputs of another shape {where}")
        absolute, relative = difference(found, [e.numpy() for e in expected])
        checks.append(Check(batch, size, absolute, relative))
    return checks


@torch.no_grad()
def compare_detections(
    reference: nn.Module,
    runtime: Runtime,
    images: Sequence[Image.Image],
    preprocess: Preprocess,
    pairs: Sequence[tuple[int, tuple[int, int]]],
) -> list[Check]:
    """As `compare`, of files that give the boxes, scores and labels of one image; all images at the first size.

    Detections are compared with those of the same label that lie next to them, as scores that are equal but for
    rounding may come in another order.

    Raises:
        Disagrees: the runtime fails, or more than `ODD_ONES` of the detections have no counterpart.
    """
    checks = []
    for number, (_, size) in enumerate(pairs):
        total, absolute, relative = 0, 0.0, 0.0
        for image in images if number == 0 else images[:1]:
            x = inputs([image], preprocess, 1, size)
            expected = [output.numpy() for output in reference(x)]
            found = _outputs(runtime, x, f"at {size[0]} x {size[1]} pixels")
            mine, theirs = matched(found, expected, size)
            odd = max(len(found[0]), len(expected[0])) - len(mine[0])
            if odd > ODD_ONES * max(len(found[0]), len(expected[0])):
                raise Disagrees(
                    f"{odd} of its {len(found[0])} detections at {size[0]} x {size[1]} pixels are not among PyTorch's "
                    f"{len(expected[0])}"
                )
            gaps = difference(mine, theirs) if len(mine[0]) else (0.0, 0.0)
            total, absolute, relative = total + len(mine[0]), max(absolute, gaps[0]), max(relative, gaps[1])
        checks.append(Check(1, size, absolute, relative, detections=total))
    return checks


def _outputs(runtime: Runtime, x: Tensor, where: str) -> list[np.ndarray]:
    try:
        return list(runtime(x.numpy()))
    except Exception as error:  # each runtime raises errors of its own types
        raise Disagrees(f"its runtime fails {where}: {first_line(error)}") from error


def matched(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], size: tuple[int, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Boxes and scores of the detections of both that have a counterpart of the same label, pair by pair.

    Args:
        found: boxes (N, 4), scores (N,) and labels (N,).
        expected: the same of M others.
        size: (height, width) of the image.
    """
    (boxes, scores, labels), (others, other_scores, other_labels) = found, expected
    gaps = np.abs(boxes[:, None].astype(np.float64) - others).max(2, initial=0) / max(size)
    gaps = np.maximum(gaps, np.abs(scores[:, None] - other_scores))
    gaps[labels[:, None] != other_labels] = np.inf
    pairs = []
    for mine in range(len(boxes)):
        theirs = int(gaps[mine].argmin()) if len(others) else 0
        if len(others) and gaps[mine, theirs] < SAME:
            pairs.append((mine, theirs))
            gaps[:, theirs] = np.inf
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return [boxes[first], scores[first]], [others[second], other_scores[second]]


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> tuple[float, float]:
    """Largest absolute and largest relative difference of the outputs, relative to each output's largest value."""
    gaps = [float(np.abs(f.astype(np.float64) - e).max()) for f, e in zip(found, expected, strict=True)]
    scales = [float(np.abs(e).max()) or 1.0 for e in expected]
    if not all(np.isfinite(gaps)):
        return float("inf"), float("inf")
    return max(gaps), max(g / s for g, s in zip(gaps, scales, strict=True))


def refuse_disagreement(checks: Sequence[Check], tolerance: float) -> None:
    """Raise `Disagrees` for the first shape at which the outputs differ by more than `tolerance`."""
    for check in checks:
        if check.relative > tolerance:
            raise Disagrees(
                f"its outputs differ from PyTorch's by {check.relative:.2g} of the largest at batch {check.batch}, "
                f"{check.size[0]} x {check.size[1]} pixels, more than --tolerance {tolerance:g}"
            )


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use this number of threads."""
    old = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(old)


@torch.inference_mode()
def latency(first: Callable[[], object], second: Callable[[], object], seconds: float = 4.0) -> tuple[float, float]:
    """Median milliseconds of two functions whose calls alternate, so that other load affects both.

    Stops after `seconds`, with at least three calls each after a warm-up call.
    """
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    for call in (first, second):
        call()
    while len(times[0]) < 3 or (time.perf_counter() < until and len(times[0]) < 30):
        for call, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def size_of(files: Sequence[Path]) -> int:
    """Bytes of all files together."""
    return sum(file.stat().st_size for file in files)
