"""Prediction of image files with trained weights: classes or the output of a head, and annotated copies."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.load import notes, pick_device
from ..config.export import RuntimeName
from ..config.tasks import InferenceConfig
from ..data.images import BadImage, find_images, iterate_images, left_out_sentence, levels_of, open_image
from ..data.levels import LEVEL_SAMPLES, Levels, levels_note
from ..data.transforms.classification import eval_transform
from ..deploy.export.runtime import open_any
from ..errors import UserError
from ..structures import ClassProbabilities, Prediction
from ..tasks import task_of
from ..tasks.classification import predictions
from ..utils.output_folder import OutputFolder
from .shards import shard_of


@dataclass
class FileResult:
    """The prediction for one image file.

    Attributes:
        path: the image file.
        prediction: `ClassProbabilities`, or what the network's head finds; None with an error.
        error: why the image could not be read.
        saved: where the annotated image was written.
    """

    path: str
    prediction: Prediction | None = None
    error: str | None = None
    saved: str | None = None


@dataclass
class FilePredictions:
    """Results of image files, computed while they are iterated over.

    Attributes:
        meta: description of the network.
        paths: the image files.
        results: a result for each file.
    """

    meta: WeightsMeta
    paths: list[Path]
    results: Iterator[FileResult]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[FileResult]:
        return self.results


#: classes listed per image, where nothing is said
TOP_K = 5
#: images in one forward pass of a classifier, where nothing is said
BATCH_SIZE = 16
#: pixels of the original images kept in memory with a batch, to draw on; above it the batch is computed unfilled
MAX_BATCH_PIXELS = 2**27
#: bytes of a saved file's stem; file systems allow names of 255
MAX_STEM_BYTES = 200


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
        left_out["written by an earlier call"] += len(mine)
    if mine and len(mine) == len(found):
        raise UserError(f"All images found were written to {save} by vitrail itself: name other images.")
    return [path for path in found if path not in mine]


class ImageFiles:
    """The image files behind files, folders and globs, in the order given, found while they are iterated over.

    Of a folder only the names of the folders on the way are in memory, so that ten million images can be predicted. Of
    several patterns, which may mean the same image, all names are.

    Args:
        patterns: what the user named.

    Attributes:
        left_out: files that are no images, by ending, of the last iteration (see `data.images.survey`).

    Raises:
        UserError: while iterated over: a pattern matches nothing.
    """

    def __init__(self, patterns: Sequence[str]):
        self.patterns = list(patterns)
        self.left_out: Counter[str] = Counter()

    @property
    def folder(self) -> Path | None:
        """The folder, if one is all that is named."""
        path = Path(os.path.expanduser(self.patterns[0])) if len(self.patterns) == 1 else None
        return path if path is not None and path.is_dir() else None

    def __iter__(self) -> Iterator[Path]:
        self.left_out.clear()
        folder = self.folder
        names = iter(()) if folder is None else iterate_images(folder, self.left_out)
        first = next(names, None)
        if folder is None or first is None:  # of an empty folder: to say so
            yield from collect(self.patterns, self.left_out)
            return
        yield folder / first
        for name in names:
            yield folder / name


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
        while len(os.fsencode(first)) > MAX_STEM_BYTES:
            first = first[:-1]
        stem, n = first, 1
        while not used.isdisjoint(names := {_folded(pattern.format(stem)) for pattern in patterns}):
            stem, n = f"{first}_{n}", n + 1
        used |= names
        stems.append(stem)
    return stems


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Predictor:
    """A network as a function from images to typed predictions.

    Args:
        network: a network from `open_any`, with its description.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        top_k: largest number of classes listed per image (classification).
        inference: inference of a network with a head; None = the defaults.

    Attributes:
        meta: description of the network.
        saves: names of the files that go with an annotated copy, with "{}" for its stem; None of a classifier.

    Raises:
        UserError: a device that is not there, or options that are not for this task.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str = "auto",
        *,
        top_k: int = 5,
        inference: InferenceConfig | None = None,
    ):
        self.meta = meta_of(network)
        self.top_k = top_k
        self.device = pick_device(device, network)
        self.transform = eval_transform(self.meta.preprocess)
        self.inference = None if self.meta.head is None else task_of(self.meta, None, inference).inference
        if self.inference is None and inference is not None:
            inference.check("classification")
        self.saves = None if self.inference is None else self.inference.saves
        self.network = network.to(self.device).eval()

    def batch_of(self, batch_size: int | None) -> int:
        """Images in one forward pass: as given, else `BATCH_SIZE` of a classifier and 1 of a network with a head.

        Raises:
            UserError: a size below 1, or any for a network with a head.
        """
        if batch_size is None:
            return BATCH_SIZE if self.inference is None else 1
        if self.inference is not None:
            raise UserError(f"batch_size={batch_size} is for classification; this is a network for {self.meta.task}.")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1.")
        return batch_size

    def prepare(self, image: Image.Image) -> Any:
        """What `predict` takes of an RGB image: a classifier's input (C, H, W), or the image itself."""
        return self.transform(image) if self.inference is None else image

    @torch.inference_mode()
    def predict(self, prepared: Sequence[Any]) -> list[Prediction]:
        """The predictions for a batch of prepared images."""
        if self.inference is not None:
            return list(self.inference.predict(self.network, list(prepared), self.device))
        logits = self.network(torch.stack(list(prepared)).to(self.device))
        return [
            ClassProbabilities([one["class"] for one in ranked], [one["probability"] for one in ranked])
            for ranked in predictions(logits, self.meta.classes, self.top_k)
        ]


def predict(
    weights: str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    model: str | None = None,
    top_k: int | None = None,
    save: str | Path | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    white: float | None = None,
    inference: InferenceConfig | None = None,
    note: Callable[[str], None] = warnings.warn,
) -> FilePredictions:
    """Predict image files with trained weights: classes, or the output of the network's head.

    An image that cannot be read gives a result with `error`; the others are predicted.

    Args:
        weights: a .safetensors, a run directory, timm:NAME, hf-hub:ORG/NAME, a folder in the Hub's form, a file of
            tensors with `model`, random:MODEL, or a file of vitrail export.
        images: image files, folders or globs.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
        top_k: number of classes listed per image (classification); None = 5.
        save: folder for annotated copies of the images and further results, such as class maps; only files of an
            earlier prediction are replaced.
        batch_size: images in one forward pass, fewer if they are large (classification); None = 16.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        runtime: runtime of an exported file; auto = by its ending.
        white: white level of images with more than 8 bits a sample, such as 4095; None = that of the training images,
            else chosen by the largest sample of these images.
        inference: inference of a network with a head; None = the defaults.
        note: called with notes for the user: skipped files, origin and licence of the weights.

    Raises:
        UserError: weights or images that cannot be used, an option that is not for this task, or a file in `save` that
            must not be replaced.
    """
    if shard_of(None).count > 1:
        raise UserError("Several processes need --output FILE, into a part of which each writes its share.")
    patterns = patterns_of(images)
    folder = None if save is None else Path(save)
    left_out: Counter[str] = Counter()
    paths = collect(patterns, left_out, folder)
    if sentence := left_out_sentence(left_out, ", ".join(patterns[:3])):
        note(sentence)
    predictor = open_predictor(
        weights, model, runtime, device=device, top_k=top_k, batch_size=batch_size, inference=inference, note=note
    )
    batch = predictor.batch_of(batch_size)
    levels = levels_for(predictor.network, paths, white)
    copies = None if folder is None else AnnotatedCopies(folder, paths, predictor.saves or ())
    return FilePredictions(
        predictor.meta, paths, predict_files(predictor, paths, batch_size=batch, copies=copies, levels=levels)
    )


def patterns_of(images: str | Path | Iterable[str | Path]) -> list[str]:
    """What names images, as texts."""
    return [str(one) for one in ([images] if isinstance(images, (str, Path)) else images)]


def open_predictor(
    weights: str | Path,
    model: str | None,
    runtime: RuntimeName,
    *,
    device: str,
    top_k: int | None,
    batch_size: int | None,
    inference: InferenceConfig | None,
    note: Callable[[str], None],
) -> Predictor:
    """The predictor of weights; the arguments are those of `predict`.

    Raises:
        UserError: weights that cannot be used, or an option that is not for their task.
    """
    network = open_any(str(weights), model, runtime)
    for text in notes(network):
        note(f"{weights}: {text}")
    meta = meta_of(network)
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value is not None and meta.head is not None:
            raise UserError(f"--{name} is for classification; {weights} is a network for {meta.task}.")
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1.")
    return Predictor(network, device, top_k=TOP_K if top_k is None else top_k, inference=inference)


def levels_for(model: nn.Module, paths: Sequence[Path], white: float | None) -> Levels | None:
    """Black and white level of samples of more than 8 bits, one for all images (see `data.levels`).

    Args:
        model: a network from `open_any`; by default the levels are those of its training images.
        paths: the images, by which they are guessed, with a warning, where the network learned from 8 bits.
        white: the sample value that is white, as the user says.

    Raises:
        UserError: a white where no image has such samples.
    """
    if white is None and (known := as_levels(model, None)) is not None:
        return known
    count = min(LEVEL_SAMPLES, len(paths))
    found = levels_of(paths[i * len(paths) // count] for i in range(count))
    if white is None:
        if found is not None:
            warnings.warn(levels_note(found, "--white"), stacklevel=2)
        return found
    if found is None:
        raise UserError(NO_WHITE.format(white))
    return as_levels(model, white)


#: a white that cannot be
NO_WHITE = (
    "--white {:g} is not allowed; give a value above 0, for images with samples of more than 8 bits whose range their "
    "files do not state."
)


def as_levels(model: nn.Module, white: float | None) -> Levels | None:
    """Black and white as the user says, else those of the network's training images; None = they had 8 bits.

    Raises:
        UserError: a white of 0 or less.
    """
    if white is None:
        return meta_of(model).preprocess.levels
    if not white > 0:
        raise UserError(NO_WHITE.format(white))
    return 0.0, float(white)


@dataclass
class PreparedImage:
    """One image of a batch.

    Attributes:
        index: number of the image.
        path: its file.
        prepared: what the predictor takes of it; None of one that could not be read.
        image: the original, where it is drawn on.
        error: why it could not be read.
    """

    index: int
    path: Path
    prepared: Any = None
    image: Image.Image | None = None
    error: str | None = None


def predict_files(
    predictor: Predictor,
    paths: Iterable[Path],
    batch_size: int,
    copies: AnnotatedCopies | None,
    levels: Levels | None,
) -> Iterator[FileResult]:
    """The results in the order of the paths."""
    batch: list[PreparedImage] = []
    for index, path in enumerate(paths):
        try:
            image = open_image(path, levels=levels)
        except BadImage as error:
            batch.append(PreparedImage(index, path, error=str(error)))
        else:
            batch.append(PreparedImage(index, path, predictor.prepare(image), image if copies else None))
        pixels = sum(one.image.width * one.image.height for one in batch if one.image is not None)
        if len(batch) == batch_size or pixels > MAX_BATCH_PIXELS:
            yield from _predict_batch(predictor, batch, copies)
            batch = []
    if batch:
        yield from _predict_batch(predictor, batch, copies)


def _predict_batch(
    predictor: Predictor, batch: list[PreparedImage], copies: AnnotatedCopies | None
) -> list[FileResult]:
    read = [one.prepared for one in batch if one.error is None]
    found = iter(predictor.predict(read) if read else ())
    results = []
    for one in batch:
        if one.error is not None:
            results.append(FileResult(str(one.path), error=one.error))
            continue
        result = FileResult(str(one.path), prediction := next(found))
        if copies is not None and one.image is not None:
            others = None if predictor.saves is None else prediction.save
            result.saved = copies.add(one.index, prediction.draw(one.image), others)
        results.append(result)
    return results
