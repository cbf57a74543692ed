"""Base class of the tasks whose network is a backbone under a head."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.dense_files import dense_file, init_dense
from ..checkpoint.initialize import InitReport, init_from, init_same
from ..checkpoint.sources import head_of
from ..config.data import Preprocess
from ..config.train import TrainConfig
from ..data.datasets.base import AnnotatedSet, set_levels
from ..data.loader import TrainLoader
from ..data.transforms.base import Collate, PairTransform
from ..errors import UserError, unknown
from ..factory import Backbone, assemble, build_model
from ..metrics.base import Metrics, evenly_spaced
from ..structures import Prediction
from ..utils.draw import side_by_side, with_title
from ..utils.plain import to_dict
from .base import Inference, Task, pins_memory, small_data_notes, split_batch
from .micro_batches import check_micro_batches
from .preprocess import preprocess_of
from .teacher import Teacher, teacher_of


class Example(NamedTuple):
    """A validation image with its ground truth and the network's prediction."""

    name: str
    image: Image.Image
    ground_truth: Prediction
    prediction: Prediction


class DenseTask(Task):
    """A task whose network is any backbone under one of the task's heads.

    Args:
        config: the recipe.
        classes: those of a network that is trained already. None = those of the data, which is then opened here.

    Raises:
        UserError: unknown network or head, or data that cannot be used.
    """

    name: str
    head: str
    best_metric: str
    percent = False
    #: name of `--data` and description of the data it reads
    source: tuple[str, str]
    #: heads of this task, its default first
    heads: tuple[str, ...]
    #: (height, width) of the input where the recipe names none
    default_size: tuple[int, int]
    #: whether all images have one size in evaluation, so that batches need no padding
    one_size = False
    #: makes a batch of samples
    collate: Collate | None = None
    #: network that is learned from, in training only
    teacher: Teacher | None = None

    def __init__(self, config: TrainConfig, classes: Sequence[str] | None = None):
        self.config = config
        self.head = config.head or self.heads[0]
        if self.head not in self.heads:
            raise UserError(unknown(f"head of {self.name}", self.head, self.heads))
        self.preprocess: Preprocess = preprocess_of(config, self.default_size)
        self.classes = list(self.train_set.classes if classes is None else classes)
        self.model_options = dict(config.model_options)
        self.head_options = {**self.default_head_options(), **config.head_options}
        self.inference = self.build_inference()
        if classes is None:
            self.metrics()  # wrong validation data or a missing extra is reported before training
            self.teacher = teacher_of(config, self.preprocess, self.classes)
            self.teacher_digest = self.teacher.digest if self.teacher else None

    @cached_property
    def train_set(self) -> AnnotatedSet:
        """The training split."""
        return self._open_split(train=True)

    @cached_property
    def eval_set(self) -> AnnotatedSet:
        """The validation split.

        Raises:
            UserError: it cannot be used, or has other classes.
        """
        data = self._open_split(train=False)
        data.reorder_classes(self.classes)
        if list(data.classes) != self.classes:
            pairs = zip_longest(self.classes, data.classes, fillvalue="nothing")
            known, found = next(pair for pair in pairs if pair[0] != pair[1])
            raise UserError(f"The data to measure on has other classes: {found!r} in the place of {known!r}.")
        return data

    @cached_property
    def measures_training(self) -> bool:
        """True if the validation images are the training images, as named or by their files."""
        return self.config.data.measures_training or self._repeated == len(self.eval_set)

    @cached_property
    def _repeated(self) -> int:
        return repeated_files(self.train_set, self.eval_set)

    def _open_split(self, train: bool) -> AnnotatedSet:
        data, (name, words) = self.config.data, self.source
        if data.name != name:
            raise UserError(f"{self.name} learns from --data {name} ({words}), not {data.name}.")
        data.check()
        split = self.open(train)
        self.preprocess.levels = set_levels(split, data.white, self.preprocess.levels)
        return split

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's options of this task, as plain values."""
        return {self.group: to_dict(getattr(self.config, self.group))}

    # ---- defined by each task ------------------------------------------------------------------------------------

    @abstractmethod
    def open(self, train: bool) -> AnnotatedSet:
        """One split of the data."""

    @abstractmethod
    def default_head_options(self) -> dict[str, Any]:
        """Options of the head that follow from data and recipe."""

    @abstractmethod
    def build_inference(self) -> Inference:
        """The inference of the validation split."""

    @abstractmethod
    def transform(self) -> PairTransform:
        """From a training image and its target to the network's input and target."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """See `Task.loss`."""

    # ---- called by the training loop -----------------------------------------------------------------------------

    @property
    def training_data(self) -> str:
        """Name of the training data, and of the teacher."""
        return self.config.data.title + (f"; teacher {self.teacher}" if self.teacher else "")

    def build_model(self) -> nn.Module:
        """The network with fresh weights."""
        return assemble(self.config.model, self.head, self.model_options, self.head_options)

    def init(self, model: nn.Module, path: str) -> InitReport:
        """Start from trained weights: of a classifier its backbone, of the same head everything of the same shape."""
        if head_of(path) == self.head:
            return init_same(model, path, name=self.config.model, classes=self.classes, of_classes=self._class_tensors)
        authors = dense_file(path)
        if authors is not None and authors.layout.head == self.head:
            return init_dense(
                model,
                authors,
                name=self.config.model,
                classes=self.classes,
                head_options=self.head_options,
                of_classes=self._class_tensors,
            )
        network = backbone_of(model)
        # of the same classes as the network was trained for or not: its classifier goes either way
        classifier = build_model(self.config.model, self.model_options, 1000)
        # a classifier has no norms on its maps: they begin fresh, as the head does
        report = init_from(classifier, path, self.config.model, fresh=("out_norms",))
        state, own = classifier.state_dict(), network.state_dict()
        network.load_state_dict({key: state[key] for key in own})
        report.left += [key for key in report.loaded if key not in own]
        report.loaded = [key for key in report.loaded if key in own]
        report.reinitialised = [name for name in report.reinitialised if name.startswith("out_norms.") and name in own]
        report.reason = "the weights have none of them"
        return report

    def _class_tensors(self) -> set[str]:
        """Names of the tensors whose shape follows from the number of classes."""
        sizes = []
        for more in (0, 1):
            options = {**self.head_options}
            options |= {
                key: value + more for key, value in self.default_head_options().items() if key.startswith("num_")
            }
            network = self._meta_network(options)
            sizes.append({key: value.shape for key, value in network.state_dict().items()})
        return {key for key, shape in sizes[0].items() if shape != sizes[1].get(key)}

    def _meta_network(self, options: dict[str, Any]) -> nn.Module:
        """The network with other options of the head, without memory for its tensors where that is possible."""
        arguments = self.config.model, self.head, self.model_options, options
        try:
            with torch.device("meta"):
                return assemble(*arguments)
        except UserError:  # some of timm's compute while they are built
            with torch.random.fork_rng(devices=[]):
                return assemble(*arguments)

    def is_head(self, name: str, model: nn.Module) -> bool:
        """True if the parameter of that name lies outside the backbone."""
        return not name.startswith(backbone_prefix(model))

    def train_batches(self, rank: int = 0, world: int = 1) -> TrainLoader:
        """This process's share of the training batches.

        Raises:
            UserError: micro-batches of one image, of which the network's norms cannot learn.
        """
        config = self.config
        batches = TrainLoader(
            self.train_set,
            self.transform(),
            config.batch_size,
            config.seed,
            workers=config.data.workers,
            rank=rank,
            world=world,
            pin_memory=pins_memory(config),
            prefetch=config.prefetch,
            collate=self.collate,
        )
        check_micro_batches(self, batches, world, self.smallest_input())
        return batches

    def smallest_input(self) -> tuple[int, int]:
        """(height, width) of the smallest image that the network learns from."""
        height, width = self.preprocess.image_size
        return height, width

    def eval_batches(self, rank: int = 0, world: int = 1) -> Iterable[Any]:
        """This process's share of the validation images."""
        config = self.config
        batch_size = config.batch_size if self.one_size else 1
        return self.inference.batches(self.eval_set, batch_size, workers=config.data.workers, rank=rank, world=world)

    def notes(self) -> list[str]:
        """Notes on both splits, such as what is left out."""
        both = (("training", self.train_set), ("validation", self.eval_set))
        notes = [f"{split}: {note}" for split, data in both for note in data.notes()]
        if self._repeated and not self.config.data.measures_training:
            notes.append(f"validation: {self._repeated} of its {len(self.eval_set)} images are training images, too")
        notes += [self.teacher.note(None)] if self.teacher else []
        return notes + small_data_notes(len(self.train_set), self.config.batch_size)

    def mix(self, batch: Any) -> Any:
        """No augmentation of batches."""
        return batch

    def split(self, batch: Any, parts: int) -> list[tuple[Any, float]]:
        """Micro-batches, whose losses are means over images; batch norms see each on its own."""
        return split_batch(batch, parts)

    def infer(self, model: nn.Module, inputs: Any) -> Any:
        """The network's output for a batch of the validation data."""
        return self.inference.infer(model, inputs)

    def metrics(self) -> Metrics:
        """A fresh accumulator."""
        return self.inference.metrics(self.eval_set)

    @torch.no_grad()
    def examples(
        self, model: nn.Module, device: torch.device, count: int, folder: Path | None = None
    ) -> list[dict[str, Any]]:
        """Predictions and ground truth of `count` validation images; drawn side by side into `folder`."""
        rows: list[dict[str, Any]] = []
        for name, image, truth, prediction in self.iter_examples(model.eval(), device, count):
            rows.append({"name": name, "truth": truth.summary(), "prediction": prediction.summary()})
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                # images of one name in two folders have a file each
                twice = Path(name).stem in {Path(row["name"]).stem for row in rows[:-1]}
                stem = f"{len(rows):03d}_{Path(name).stem}" if twice else Path(name).stem
                halves = [("annotated", truth.draw(image)), ("predicted", prediction.draw(image))]
                sheet = side_by_side([with_title(drawn, title) for title, drawn in halves])
                sheet.save(folder / f"{stem}.jpg", quality=90)
        return rows

    def iter_examples(self, model: nn.Module, device: torch.device, count: int) -> Iterator[Example]:
        """Ground truth and prediction of `count` validation images, evenly spread."""
        images = self.samples_by_image(self.eval_set)
        for index in evenly_spaced(len(images), count):
            yield self.example(model, device, self.eval_set, images[index])

    def samples_by_image(self, data: AnnotatedSet) -> list[list[int]]:
        """Numbers of the samples of each image that can be shown with its ground truth."""
        return [[number] for number in range(len(data))]

    def example(self, model: nn.Module, device: torch.device, data: AnnotatedSet, samples: Sequence[int]) -> Example:
        """Ground truth and prediction of one image.

        Args:
            model: the network.
            device: where it is.
            data: holds the image.
            samples: numbers of the image's samples in it.
        """
        image, target = data[samples[0]]
        prediction = self.inference.predict(model, [image], device)[0]
        return Example(data.name(samples[0]), image, self.inference.ground_truth(target), prediction)


def repeated_files(one: AnnotatedSet, other: AnnotatedSet) -> int:
    """Number of items of `other` that lie in files of `one`."""
    files = {os.path.realpath(one.path(index)) for index in range(len(one))}
    return sum(os.path.realpath(other.path(index)) in files for index in range(len(other)))


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a network with a head."""
    return next(m for m in model.modules() if isinstance(m, Backbone)).network


def backbone_prefix(model: nn.Module) -> str:
    """Prefix of the names of the backbone's parameters."""
    return next(name for name, m in model.named_modules() if isinstance(m, Backbone)) + "."
