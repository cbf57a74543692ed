"""What trained weights find in pictures: classes, or what a head finds; and annotated copies of the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from .data.images import MAX_PIXELS, BadImage, find_images, open_image
from .data.task_config import InferenceConfig
from .data.transforms import eval_transform
from .tasks import task_of
from .tasks.base import Finding
from .tasks.classification import predictions
from .weights import meta_of


@dataclass
class Prediction:
    """What the network says of one picture.

    Attributes:
        path: the picture's file.
        classes: the likeliest classes, best first.
        probabilities: of those classes, in [0, 1].
        error: why the picture could not be read; the other fields are then empty.
        saved: where the annotated picture was written.
    """

    path: str
    classes: list[str] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    error: str | None = None
    saved: str | None = None


@dataclass
class Found:
    """What a network with a head finds in one picture.

    Attributes:
        path: the picture's file.
        finding: what it finds; None with an error.
        error: why the picture could not be read.
        saved: where the annotated picture was written.
    """

    path: str
    finding: Finding | None = None
    error: str | None = None
    saved: str | None = None


def collect(patterns: Iterable[str]) -> list[Path]:
    """The picture files behind files, folders and globs, each once, in the order given.

    Raises:
        UserError: if a pattern matches nothing.
    """
    return list(dict.fromkeys(path for pattern in patterns for path in find_images(pattern)))


def predict(
    model: nn.Module,
    paths: Iterable[Path],
    top_k: int = 5,
    save: Path | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Prediction]:
    """Predict picture by picture; an unreadable one gives a `Prediction` with `error` and the others go on.

    Args:
        model: a network from `vitrail.load`, with `meta.preprocess` and `meta.classes`.
        paths: picture files.
        top_k: classes listed a picture, at most the number of classes.
        save: folder for annotated copies (made if missing).
        batch_size: pictures in one forward pass.
        device: where to compute.
        max_pixels: larger pictures are refused.
    """
    transform = eval_transform(meta_of(model).preprocess)
    model = model.to(device).eval()
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    batch: list[tuple[Path, Image.Image]] = []
    used: set[str] = set()
    for path in paths:
        try:
            batch.append((path, open_image(path, max_pixels)))
        except BadImage as error:
            yield Prediction(str(path), error=str(error))
            continue
        if len(batch) == batch_size:
            yield from _predict_batch(model, transform, batch, top_k, save, device, used)
            batch = []
    if batch:
        yield from _predict_batch(model, transform, batch, top_k, save, device, used)


def find(
    model: nn.Module,
    paths: Iterable[Path],
    save: Path | None = None,
    device: torch.device | str = "cpu",
    inference: InferenceConfig | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Found]:
    """What a network with a head finds, picture by picture; an unreadable one gives an `error` and the others go on.

    Args:
        model: a network from `vitrail.load` with a head.
        paths: picture files.
        save: folder for annotated copies, and what they cannot hold (made if missing).
        device: where to compute.
        inference: how the network is used; None = as usual.
        max_pixels: larger pictures are refused.

    Raises:
        UserError: options that are not for this task.
    """
    use = task_of(meta_of(model), None, inference).inference
    model = model.to(device).eval()
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    for path in paths:
        try:
            image = open_image(path, max_pixels)
        except BadImage as error:
            yield Found(str(path), error=str(error))
            continue
        result = Found(str(path), use.find(model, [image], device)[0])
        if save is not None and result.finding is not None:
            name = _free_name(path.stem, used)
            result.saved = str(save / name)
            result.finding.draw(image).save(result.saved)
            result.finding.save(save, Path(name).stem)
        yield result


@torch.inference_mode()
def _predict_batch(model, transform, batch, top_k, save, device, used) -> list[Prediction]:
    inputs = torch.stack([transform(image) for _, image in batch]).to(device)
    results = []
    for (path, image), ranked in zip(batch, predictions(model(inputs), meta_of(model).classes, top_k), strict=True):
        result = Prediction(str(path), [r["class"] for r in ranked], [r["probability"] for r in ranked])
        if save is not None:
            result.saved = str(save / _free_name(path.stem, used))
            annotate(image, result).save(result.saved)
        results.append(result)
    return results


def _free_name(stem: str, used: set[str]) -> str:
    """A file name no other picture of this run has: pictures of different folders may share a name."""
    name, n = f"{stem}.png", 1
    while name in used:
        name, n = f"{stem}_{n}.png", n + 1
    used.add(name)
    return name


def annotate(image: Image.Image, prediction: Prediction, min_side: int = 256) -> Image.Image:
    """A copy of the picture with a panel below it: one bar a class, its length the probability."""
    factor = max(1, -(-min_side // min(image.size)))
    resample = Image.Resampling.NEAREST if min(image.size) < 64 else Image.Resampling.LANCZOS
    picture = image.resize((image.width * factor, image.height * factor), resample) if factor > 1 else image
    line = max(18, picture.width // 20)
    font = ImageFont.load_default(size=int(line * 0.62))
    panel = Image.new("RGB", (picture.width, picture.height + line * len(prediction.classes) + 8), "white")
    panel.paste(picture, (0, 0))
    draw = ImageDraw.Draw(panel)
    for row, (name, p) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True)):
        top = picture.height + 4 + row * line
        color = "#2f7fb8" if row == 0 else "#b9cfe0"
        draw.rectangle((4, top + 2, 4 + int((picture.width - 9) * p), top + line - 2), fill=color)
        draw.text((8, top + line // 2), f"{name}  {100 * p:.1f} %", fill="black", font=font, anchor="lm")
    return panel
