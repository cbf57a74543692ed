"""A class for every pixel: training, measuring and using a backbone under a segmentation head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import InferenceConfig, TrainConfig
from ..data import large
from ..data.annotated import AnnotatedSet
from ..data.config import Preprocess
from ..data.index_masks import IGNORE
from ..data.large import EnlargedMask, reduced_size
from ..data.loader import EvalLoader, listed
from ..data.parts import check_disjoint
from ..data.semantic import SemanticSet, open_semantic, survey_masks
from ..data.semantic_transforms import SemanticTraining, SemanticViews
from ..drawing import draw_classes
from ..errors import UserError
from ..files import shortened
from ..heads.parts import resize
from ..metrics.segmentation import Confusion
from .base import moved, over_processes, parts_of, process_count, summed, write_classes
from .headed import HeadedTask

#: sides to which the sizes of pictures are rounded up in measuring, as the head's authors do
MULTIPLES = {"segformer": 32}
#: shortest side a network gets: its coarsest map then has one pixel
LEAST_SIDE = 32
#: scores that are resized at once: 16 MiB, which caches hold
STRIP = 2**22
#: classes a sentence names
NAMED = 3

#: a picture's views at the sizes it is looked at, each (3, h, w), and its own (height, width)
Views = tuple[list[Tensor], tuple[int, int]]


@dataclass
class Maps:
    """The class of every pixel of a picture.

    Attributes:
        classes: names.
        indices: (H, W) uint8 indices of classes; 255 = none.
        values: of the classes in saved masks; None = their indices.
    """

    classes: Sequence[str]
    indices: np.ndarray
    values: Sequence[int] | None = None

    def shares(self) -> list[tuple[str, float]]:
        """The classes that occur, each with its share of the picture, the greatest first."""
        found, counts = np.unique(self.indices[self.indices != IGNORE], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(self.classes[int(found[i])], float(counts[i] / self.indices.size)) for i in order]

    def record(self) -> dict[str, Any]:
        """shares of the picture by the names of the classes that occur, the greatest first."""
        return {"shares": {name: round(share, 6) for name, share in self.shares()}}

    def sentence(self) -> str:
        """The classes with most pixels, such as "road 41 %, sky 30 %, tree 12 % and 2 more"."""
        shares = self.shares()
        text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares[:NAMED])
        more = len(shares) - NAMED
        return (f"{text} and {more} more" if more > 0 else text) or "nothing"

    def draw(self, image: Image.Image) -> Image.Image:
        """The map over the picture, above a legend."""
        return draw_classes(image, self.indices, self.classes)

    def save(self, folder: Path, stem: str) -> None:
        """The map as masks/STEM.png, one channel: the value of each pixel's class in the data; 255 = no class."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[: len(self.classes)] = range(len(self.classes)) if self.values is None else self.values
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(table[self.indices]).save(folder / "masks" / f"{stem}.png")


# ---- scores of whole pictures -----------------------------------------------------------------------------------


@dataclass
class Scores:
    """Logits of one picture as the network gave them, resized and averaged only where they are asked for.

    A map of 150 classes of 4000x4000 pixels would be 9.6 GB; its logits at stride 4 are a sixteenth of that.

    Attributes:
        pieces: top and left of each part of the picture that was looked at, and its logits (classes, h, w).
        cover: height and width of each part.
        size: of all together. The whole picture at once is one part, in which a pixel is a logit.
        mirrored: the picture was looked at in a mirror.
    """

    pieces: list[tuple[int, int, Tensor]]
    cover: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to before `last` of the mean over all parts: (classes, rows, width)."""
        logits = self.pieces[0][2]
        total = logits.new_zeros(len(logits), last - first, self.size[1])
        times = logits.new_zeros(last - first, self.size[1])
        for top, left, logits in self.pieces:
            start, stop = max(first, top), min(last, top + self.cover[0])
            if start < stop:
                place = slice(start - first, stop - first), slice(left, left + self.cover[1])
                part = resized_rows(
                    lambda a, b, x=logits: x[:, a:b], logits.shape[1], self.cover, start - top, stop - top
                )
                total[:, *place] += part
                times[place] += 1
        total /= times
        return total.flip(-1) if self.mirrored else total


def resized_rows(
    rows: Callable[[int, int], Tensor], height: int, size: tuple[int, int], first: int, last: int
) -> Tensor:
    """Rows `first` to before `last` of a map resized bilinearly (corners not aligned), from the rows these need.

    Args:
        rows: gives (C, rows, w), from the number of the first row and of the one behind the last.
        height: of the map.
        size: (height, width) of the resized map.
    """
    centres = ((torch.arange(first, last, dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    upper = centres.long()
    lower = (upper + 1).clamp(max=height - 1)
    start = int(upper[0])
    source = rows(start, int(lower[-1]) + 1)
    share = (centres - upper).to(source)[:, None]
    upper, lower = (index.to(source.device) - start for index in (upper, lower))
    mixed = torch.lerp(source.index_select(1, upper), source.index_select(1, lower), share)
    return resize(mixed[None], (last - first, size[1]))[0]


def class_map(views: Sequence[Scores], size: tuple[int, int]) -> Tensor:
    """The likeliest class of each pixel: (height, width) uint8.

    Several views are averaged as probabilities. All is done at the picture's own size, a strip of rows at a time.

    Args:
        views: of the same picture.
        size: its (height, width).
    """
    height, width = size
    largest = max(height * width, *(view.size[0] * view.size[1] for view in views))
    step = max(1, STRIP * height // (len(views[0].pieces[0][2]) * largest))
    strips = []
    for first in range(0, height, step):
        last = min(first + step, height)
        scores = (resized_rows(view.rows, view.size[0], size, first, last) for view in views)
        total = reduce(torch.add, scores if len(views) == 1 else (one.softmax(0) for one in scores))
        strips.append(total.max(0).indices.to(torch.uint8))  # argmax takes three times as long
    return torch.cat(strips)


def whole_map(views: Sequence[Scores], size: tuple[int, int]) -> Tensor:
    """As `class_map`; of a large image the map of what it is reduced to, enlarged."""
    small = reduced_size(size, large.LARGE)
    found = class_map(views, small)
    if small == size:
        return found
    return torch.from_numpy(np.asarray(EnlargedMask(found.cpu().numpy(), size))).to(found.device)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, classes, ceil(h / s), ceil(w / s)) of pictures (B, 3, h, w) of any size, s the head's stride.

    Pictures smaller than a network can take get zeros, the mean colour, at the right and below; the logits of these are
    cut off. So do images smaller than an exported file of one size takes.
    """
    sides = x.shape[-2:]
    wanted = fixed_size(model) or (LEAST_SIDE, LEAST_SIDE)
    below, right = (max(0, least - side) for least, side in zip(wanted, sides, strict=True))
    padded = F.pad(x, (0, right, 0, below))
    logits: Tensor = model(padded).float()
    kept = [-(-n * side // whole) for n, side, whole in zip(logits.shape[-2:], sides, padded.shape[-2:], strict=True)]
    return logits[..., : kept[0], : kept[1]]


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) of every input of a network that takes one size only, as an exported file may; else None."""
    return getattr(model, "fixed_size", None)


def starts(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that cover `length`: two thirds of a side apart, the last one moved inside."""
    return [*range(0, length - side, max(1, side * 2 // 3)), length - side]


# ---- measuring and using ----------------------------------------------------------------------------------------


class SemanticInference:
    """How a trained network is used.

    Args:
        head: its name.
        classes: names.
        preprocess: of its input; the size is that of the crop in training.
        options: of measuring and predicting.
        short_side: of pictures in pixels; None = the smaller side of the crop in training.
        max_side: longest side of pictures in pixels.
        values: of the classes in saved masks; None = their indices.

    Raises:
        UserError: an option that is not for maps, or a value it cannot have.
    """

    saves = ("masks/{}.png",)

    def __init__(
        self,
        head: str,
        classes: Sequence[str],
        preprocess: Preprocess,
        options: InferenceConfig,
        short_side: int | None,
        max_side: int,
        values: Sequence[int] | None = None,
    ):
        options.check("semantic_segmentation")
        self.classes, self.flip, self.window = list(classes), options.flip, options.window
        self.values = values
        self.views = SemanticViews(preprocess, short_side, max_side, options.scales, MULTIPLES.get(head, 1))

    def batches(self, data: AnnotatedSet, batch_size: int, workers: int, rank: int, world: int) -> EvalLoader:
        """Lists of pictures as `Views`, what is known of them, and their numbers."""
        return EvalLoader(data, self.views, batch_size, workers, rank, world, collate=listed)

    def infer(self, model: nn.Module, inputs: list[Views]) -> list[Tensor]:
        """The map of classes (H, W) uint8 of every picture, at its own size; equal sizes go through together."""
        shapes = {tuple(view.shape for view in views) for views, _ in inputs}
        groups = [inputs] if len(shapes) == 1 else [[one] for one in inputs]
        return [found for group in groups for found in self._together(model, group)]

    def _together(self, model: nn.Module, inputs: list[Views]) -> list[Tensor]:
        seen: list[list[Scores]] = []
        for x in (torch.stack(alike) for alike in zip(*(views for views, _ in inputs), strict=True)):
            seen.append(self._look(model, x))
            if self.flip:
                seen.append(self._look(model, x.flip(-1), mirrored=True))
        return [whole_map(views, size) for views, (_, size) in zip(zip(*seen, strict=True), inputs, strict=True)]

    def _look(self, model: nn.Module, x: Tensor, mirrored: bool = False) -> list[Scores]:
        """Scores of pictures (B, 3, h, w), each as a whole or window by window.

        An exported file of one size looks at larger images through windows of that size: their scale stays that of
        training.

        Raises:
            UserError: a window larger than such a file takes.
        """
        size = x.shape[-2], x.shape[-1]
        most = fixed_size(model) or size
        if fixed_size(model) and self.window is not None and self.window > min(most):
            raise UserError(
                f"--inference.window {self.window} is larger than the {most[0]}x{most[1]} pixels that the exported "
                "file takes."
            )
        window = [min(side, self.window or side) for side in most]
        if all(side >= length for side, length in zip(window, size, strict=True)):
            logits = logits_of(model, x)
            whole = logits.shape[-2], logits.shape[-1]
            return [Scores([(0, 0, one)], whole, whole, mirrored) for one in logits]
        cover = min(size[0], window[0]), min(size[1], window[1])
        places = [(top, left) for top in starts(size[0], cover[0]) for left in starts(size[1], cover[1])]
        parts = [logits_of(model, x[..., t : t + cover[0], u : u + cover[1]]) for t, u in places]
        return [
            Scores([(*place, part[i]) for place, part in zip(places, parts, strict=True)], cover, size, mirrored)
            for i in range(len(x))
        ]

    def metrics(self, data: AnnotatedSet) -> SemanticMetrics:
        """Fresh counts of pixels."""
        return SemanticMetrics(data.classes)

    @torch.no_grad()
    def find(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> list[Maps]:
        """The class of every pixel of pictures of any sizes."""
        model = model.eval()
        return [Maps(self.classes, self._find_one(model, image, device), self.values) for image in images]

    def _find_one(self, model: nn.Module, image: Image.Image, device: torch.device | str) -> np.ndarray:
        return self.infer(model, [moved(self.views(image, {})[0], device)])[0].cpu().numpy()

    def truth(self, target: dict[str, Any]) -> Maps:
        """The class that every pixel truly has."""
        return Maps(self.classes, np.asarray(target["mask"].cpu()).astype(np.uint8), self.values)


class SemanticMetrics:
    """Pixels counted by true and by predicted class, over all pictures at their own sizes.

    Args:
        classes: names.
    """

    def __init__(self, classes: Sequence[str]):
        self.confusion = Confusion(classes)
        self.images = torch.zeros((), dtype=torch.int64)

    def update(self, output: list[Tensor], batch: tuple[Any, list[dict[str, Any]], Any]) -> None:
        """Count maps of classes against `mask` of the targets."""
        for found, target in zip(output, batch[1], strict=True):
            self.confusion.update(found, target["mask"])
            self.images += 1

    def state(self) -> dict[str, Tensor]:
        """The counts."""
        return {"counts": self.confusion.counts, "images": self.images}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the counts by those of all processes together."""
        total = summed(states)
        self.confusion.counts, self.images = total["counts"], total["images"]

    def compute(self) -> dict[str, Any]:
        """The figures of `Confusion.compute`, and the number of pictures."""
        return {**self.confusion.compute(), "images": int(self.images)}

    def report(self, folder: Path) -> None:
        """Write `per_class.csv`."""
        write_classes(folder, self.compute()["per_class"])


# ---- training ---------------------------------------------------------------------------------------------------


class SemanticSegmentation(HeadedTask):
    """The task "semantic_segmentation": a class for every pixel; the mean IoU of all classes decides."""

    name = "semantic_segmentation"
    group = "segmentation"
    best_metric = "mIoU"
    source = "ade20k", "any pictures with masks of classes"
    heads = ("semantic_fpn", "upernet", "segformer")
    usual_size = (512, 512)

    def __init__(self, config: TrainConfig, classes: Sequence[str] | None = None):
        super().__init__(config, classes)
        if classes is None:
            learned, measured = cast(SemanticSet, self.train_set), cast(SemanticSet, self.eval_set)
            if not config.data.measures_training:
                check_disjoint(learned, measured)
            survey_masks(learned, learned=True)
            survey_masks(measured, learned=False)

    def open(self, train: bool) -> SemanticSet:
        """One part of a data set of masks."""
        return open_semantic(self.config.data, train)

    @property
    def mask_values(self) -> list[int] | None:
        """The value of each class in masks: of the recipe or of the weights, otherwise of the data; None = unknown."""
        named = self.config.segmentation.mask_values
        if named is None and "train_set" in vars(self):
            return list(cast(SemanticSet, self.train_set).labels.values)
        if named is not None and not (len(named) == len(set(named)) == len(self.classes)):
            raise UserError(
                f"--segmentation.mask_values must give each of the {len(self.classes)} classes a value of its own, not "
                f"{shortened(named)}."
            )
        if named is not None and not all(0 <= value < IGNORE for value in named):
            raise UserError(f"--segmentation.mask_values must be from 0 to {IGNORE - 1}, not {shortened(named)}.")
        return named

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's group of settings, with the values of the classes, which saved masks hold."""
        return {self.group: {**super().settings[self.group], "mask_values": self.mask_values}}

    def usual_options(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_classes": len(self.classes)}

    def build_inference(self) -> SemanticInference:
        """How the network is used on the held-back part."""
        config = self.config
        sides = config.segmentation.short_side, config.segmentation.max_side
        return SemanticInference(
            self.head, self.classes, self.preprocess, config.inference, *sides, values=self.mask_values
        )

    def transform(self) -> SemanticTraining:
        """The recipe's changes to a picture and its mask."""
        return SemanticTraining(self.config.segmentation, self.preprocess)

    def split(self, batch: tuple[Tensor, Tensor], parts: int) -> list[tuple[Any, Tensor]]:
        """A batch in parts, whose shares are those of the pixels that have a class, over all processes."""
        cut = [part for part, _ in parts_of(batch, parts)]
        labelled = torch.stack([(masks != IGNORE).sum() for _, masks in cut])
        total = over_processes(labelled.sum()).clamp(min=1)
        return list(zip(cut, labelled * process_count() / total, strict=True))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy at the masks' size, with the auxiliary classifier's; share of right pixels times pictures.

        Pixels without a class count in neither.
        """
        images, masks = batch
        output = model(images)
        main, *auxiliary = output if isinstance(output, tuple) else (output,)
        logits = resize(main.float(), masks.shape[-2:])
        loss = pixel_loss(logits, masks)
        for other in auxiliary:
            other = resize(other.float(), masks.shape[-2:])
            loss = loss + self.config.segmentation.auxiliary_weight * pixel_loss(other, masks)
        right = (logits.detach().argmax(1) == masks).sum()  # no class has the number of pixels without one
        return loss, right / (masks != IGNORE).sum().clamp(min=1) * len(images)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that have a class, and 0 where none has.

    Args:
        logits: (B, classes, H, W).
        masks: (B, H, W) indices; 255 = no class.
    """
    total = F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum")
    return total / (masks != IGNORE).sum().clamp(min=1)
