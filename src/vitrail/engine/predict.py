"""Prediction of image files with trained weights: classes or the output of a head, and annotated copies."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..checkpoint.format import meta_of
from ..config.tasks import InferenceConfig
from ..data.images import MAX_PIXELS, BadImage, find_images, levels_of, open_image
from ..data.levels import LEVEL_SAMPLES, Levels, sentence
from ..data.transforms.classification import eval_transform
from ..errors import UserError
from ..structures import ClassProbabilities, Prediction
from ..tasks import task_of
from ..tasks.classification import predictions
from ..utils.output_folder import OutputFolder


@dataclass
class ClassificationResult:
    """Class probabilities of one image file.

    Attributes:
        path: the image file.
        classes: the likeliest classes, best first.
        probabilities: of those classes, in [0, 1].
        error: why the image could not be read; the other fields are then empty.
        saved: where the annotated image was written.
    """

    path: str
    classes: list[str] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    error: str | None = None
    saved: str | None = None


@dataclass
class DenseResult:
    """Output of a network with a head for one image file.

    Attributes:
        path: the image file.
        prediction: the output; None with an error.
        error: why the image could not be read.
        saved: where the annotated image was written.
    """

    path: str
    prediction: Prediction | None = None
    error: str | None = None
    saved: str | None = None


#: pixels of the original images kept in memory with a batch, to draw on; above it the batch is computed unfilled
MAX_BATCH_PIXELS = 2**27
#: bytes of a saved file's stem; file systems allow names of 255
LONGEST_STEM = 200


def collect(patterns: Iterable[str], left_out: Counter[str] | None = None, save: Path | None = None) -> list[Path]:
    """The image files behind files, folders and globs, each once, in the order given.

    Args:
        patterns: what the user named.
        left_out: files that are no images are added here, by ending (see `data.images.survey`).
        save: folder of annotated copies: those that are there already are no images to predict, unless one is named
            outright.

    Raises:
        UserError: if a pattern matches nothing.
    """
    left_out = Counter() if left_out is None else left_out
    named = list(patterns)
    found = list(dict.fromkeys(path for pattern in named for path in find_images(pattern, left_out)))
    if save is None or not save.is_dir():
        return found
    folder = OutputFolder(save, "--save")
    outright = {Path(os.path.expanduser(pattern)) for pattern in named}
    mine = {path for path in found if path not in outright and _is_of(folder, path)}
    if mine:
        left_out["written by an earlier predict"] += len(mine)
    if mine and len(mine) == len(found):
        raise UserError(f"All images found were written to {save} by vitrail predict itself: name other images.")
    return [path for path in found if path not in mine]


def _is_of(folder: OutputFolder, path: Path) -> bool:
    root = os.path.realpath(folder.path)
    real = os.path.realpath(path)
    return real.startswith(root + os.sep) and folder.wrote(os.path.relpath(real, root).replace(os.sep, "/"))


class AnnotatedCopies:
    """Writer of annotated copies: one PNG an image, and the files that go with it.

    All file names are chosen and checked before the first file is written.

    Args:
        folder: of the copies.
        paths: the images.
        others: names of the files that go with a copy, with "{}" for its stem.

    Raises:
        UserError: a file is there that must not be replaced.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], others: Sequence[str] = ()):
        self.folder = OutputFolder(folder, "--save", paths)
        patterns = ("{}.png", *others)
        self.stems = stems_of(paths, patterns)
        self.folder.check(pattern.format(stem) for stem in self.stems for pattern in patterns)

    def add(self, index: int, copy: Image.Image, others: Callable[[Path, str], None] | None = None) -> str:
        """Write the copy of image number `index` and the files that go with it; returns the copy's path.

        Args:
            index: number of the image.
            copy: annotated copy of the image.
            others: called with (folder, stem); writes the other files.
        """
        stem = self.stems[index]
        with self.folder.adding() as fresh:
            copy.save(fresh / f"{stem}.png")
            if others is not None:
                others(fresh, stem)
        return str(self.folder.path / f"{stem}.png")


def stems_of(paths: Sequence[Path], patterns: Sequence[str]) -> list[str]:
    """A stem for each image, so that no two files collide, not even where a file system folds case and accents.

    Args:
        paths: images of any folders; those of one stem get a number behind it.
        patterns: names of all files of one image, with "{}" for the stem.
    """
    used: set[str] = set()
    stems = []
    for path in paths:
        first = path.stem.replace("\\", "_").replace(":", "_").replace("\0", "_")
        while len(os.fsencode(first)) > LONGEST_STEM:
            first = first[:-1]
        stem, n = first, 1
        while not used.isdisjoint(names := {_folded(pattern.format(stem)) for pattern in patterns}):
            stem, n = f"{first}_{n}", n + 1
        used |= names
        stems.append(stem)
    return stems


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def predict(
    model: nn.Module,
    paths: Iterable[Path],
    top_k: int = 5,
    save: Path | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    max_pixels: int = MAX_PIXELS,
    white: float | None = None,
) -> Iterator[ClassificationResult]:
    """Classify image by image; an unreadable one gives a result with `error` and the others go on.

    Args:
        model: a network from `load_network` or `open_any`, with `meta.preprocess` and `meta.classes`.
        paths: image files.
        top_k: classes listed an image, at most the number of classes.
        save: folder for annotated copies (made if missing); nothing is replaced there but what was written so before.
        batch_size: images in one forward pass; fewer where they are large.
        device: where to compute.
        max_pixels: larger images are refused.
        white: see `levels_for`.

    Raises:
        UserError: a number below 1, or a file in `save` that must not be replaced.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"--{name} {value} must be at least 1.")
    paths = list(paths)
    levels = levels_for(model, paths, white)
    return _predict(model, paths, top_k, save, batch_size, device, max_pixels, levels)


def levels_for(model: nn.Module, paths: Sequence[Path], white: float | None) -> Levels | None:
    """Black and white level of samples of more than 8 bits, one for all images (see `data.levels`).

    Args:
        model: a network from `load_network` or `open_any`; by default the levels are those of its training images.
        paths: the images, by which they are guessed, with a warning, where the network learned from 8 bits.
        white: the sample value that is white, as the user says.

    Raises:
        UserError: a white where no image has such samples.
    """
    known = meta_of(model).preprocess.levels
    if white is None and known is not None:
        return known
    count = min(LEVEL_SAMPLES, len(paths))
    found = levels_of(paths[i * len(paths) // count] for i in range(count))
    if white is None:
        if found is not None:
            warnings.warn(sentence(found, "--white"), stacklevel=2)
        return found
    if not white > 0 or found is None:
        raise UserError(
            f"--white {white:g} is not allowed; give a value above 0, for images with samples of more than 8 bits "
            "whose range their files do not state."
        )
    return 0.0, float(white)


def _predict(
    model: nn.Module,
    paths: list[Path],
    top_k: int,
    save: Path | None,
    batch_size: int,
    device: torch.device | str,
    max_pixels: int,
    levels: Levels | None,
) -> Iterator[ClassificationResult]:
    transform = eval_transform(meta_of(model).preprocess)
    copies = None if save is None else AnnotatedCopies(save, paths)
    model = model.to(device).eval()
    batch: list[PreparedImage] = []
    for index, path in enumerate(paths):
        try:
            image = open_image(path, max_pixels, levels=levels)
        except BadImage as error:
            yield ClassificationResult(str(path), error=str(error))
            continue
        batch.append(PreparedImage(index, path, transform(image), image if copies else None))
        pixels = sum(one.image.width * one.image.height for one in batch if one.image is not None)
        if len(batch) == batch_size or pixels > MAX_BATCH_PIXELS:
            yield from _predict_batch(model, batch, top_k, copies, device)
            batch = []
    if batch:
        yield from _predict_batch(model, batch, top_k, copies, device)


@dataclass
class PreparedImage:
    """One image of a batch."""

    index: int  # number of the image
    path: Path
    x: torch.Tensor  # input of the network, (C, H, W)
    image: Image.Image | None  # the original, where it is drawn on


def predict_dense(
    model: nn.Module,
    paths: Iterable[Path],
    save: Path | None = None,
    device: torch.device | str = "cpu",
    inference: InferenceConfig | None = None,
    max_pixels: int = MAX_PIXELS,
    white: float | None = None,
) -> Iterator[DenseResult]:
    """Predict image by image with a network with a head; an unreadable one gives a result with `error`.

    Args:
        model: a network from `load_network` or `open_any` with a head.
        paths: image files.
        save: folder for annotated copies and the files that go with them (made if missing); nothing is replaced there
            but what was written so before.
        device: where to compute.
        inference: how the network is used; None = the defaults.
        max_pixels: larger images are refused.
        white: see `levels_for`.

    Raises:
        UserError: options that are not for this task, or a file in `save` that must not be replaced.
    """
    use = task_of(meta_of(model), None, inference).inference
    paths = list(paths)
    levels = levels_for(model, paths, white)
    copies = None if save is None else AnnotatedCopies(save, paths, use.saves)
    model = model.to(device).eval()
    for index, path in enumerate(paths):
        try:
            image = open_image(path, max_pixels, levels=levels)
        except BadImage as error:
            yield DenseResult(str(path), error=str(error))
            continue
        prediction = use.find(model, [image], device)[0]
        result = DenseResult(str(path), prediction)
        if copies is not None:
            result.saved = copies.add(index, prediction.draw(image), prediction.save)
        yield result


@torch.inference_mode()
def _predict_batch(
    model: nn.Module, batch: list[PreparedImage], top_k: int, copies: AnnotatedCopies | None, device: torch.device | str
) -> list[ClassificationResult]:
    logits = model(torch.stack([one.x for one in batch]).to(device))
    results = []
    for one, ranked in zip(batch, predictions(logits, meta_of(model).classes, top_k), strict=True):
        result = ClassificationResult(str(one.path), [r["class"] for r in ranked], [r["probability"] for r in ranked])
        if copies is not None and one.image is not None:
            drawn = annotate(one.image, result)
            result.saved = copies.add(one.index, drawn)
        results.append(result)
    return results


def annotate(image: Image.Image, result: ClassificationResult) -> Image.Image:
    """A copy of the image with a panel below it: one bar a class, its length the probability."""
    return ClassProbabilities(result.classes, result.probabilities).draw(image)
