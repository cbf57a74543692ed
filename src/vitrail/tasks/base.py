"""Base classes of tasks and their inference, and `measure`, which evaluates a network on a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.initialize import InitReport
from ..config.data import Preprocess
from ..config.train import TrainConfig
from ..data.datasets.base import AnnotatedSet
from ..metrics.base import Metrics
from ..structures import Prediction


class Batches(Protocol):
    """Training batches, in an order that depends on the seed and the epoch only.

    Attributes:
        dataset: what they are made of.
        batch_size: images of a batch, over all processes.
    """

    dataset: Any
    batch_size: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch of it to begin at."""
        ...


class Inference(ABC):
    """Inference with a trained network of one task; made from what its weights file says of itself.

    Attributes:
        saves: names of the files that `Prediction.save` writes, with "{}" for the stem.
    """

    saves: tuple[str, ...]

    @abstractmethod
    def batches(self, data: AnnotatedSet, batch_size: int, workers: int, rank: int, world: int) -> Iterable[Any]:
        """Tuples of inputs, targets and the images' numbers; each image in exactly one process."""

    @abstractmethod
    def inputs(self, images: Sequence[Image.Image], device: torch.device | str) -> Any:
        """The batch that `infer` takes of images of any sizes, on a device."""

    @abstractmethod
    def infer(self, model: nn.Module, inputs: Any) -> Any:
        """Output for a batch of inputs, as `Metrics.update` takes it."""

    @abstractmethod
    def metrics(self, data: AnnotatedSet) -> Metrics:
        """A fresh accumulator for that data."""

    @abstractmethod
    def predict(
        self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str
    ) -> Sequence[Prediction]:
        """The predictions for images of any sizes."""

    @abstractmethod
    def ground_truth(self, target: dict[str, Any]) -> Prediction:
        """The annotations of an image."""


class Task(ABC):
    """A task: network, data, loss and metric. The loop knows nothing else of it.

    Attributes:
        name: as in recipes.
        group: the recipe's group of options that the task has for itself, such as "detection" of --detection.hflip.
        best_metric: the metric of `Metrics.compute` by which the best epoch is chosen; larger is better.
        percent: whether that metric is in %; else it lies in [0, 1].
        classes: names, in the order of the outputs.
        preprocess: how an image becomes the network's input.
        model_options: constructor options of the network, as resolved.
        head: name of the head on the backbone; None = its own classifier.
        head_options: constructor options of the head, as resolved.
        settings: other options of the recipe that inference needs, as plain values.
        eval_set: the validation split.
        measures_training: whether these are the training images, so that no metric is of other images.
        teacher_digest: of the weights or the outputs of the teacher; None without a teacher.
    """

    teacher_digest: str | None = None
    eval_set: Any
    measures_training: bool
    name: str
    group: str
    best_metric: str
    percent: bool
    classes: list[str]
    preprocess: Preprocess
    model_options: dict[str, Any]
    head: str | None
    head_options: dict[str, Any]
    settings: dict[str, Any]

    @property
    @abstractmethod
    def training_data(self) -> str:
        """Name of the training data."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The network with fresh weights."""

    def trained(self, network: nn.Module) -> nn.Module:
        """What is trained: the network, perhaps with layers that are not kept (see `kept`)."""
        return network

    @abstractmethod
    def init(self, model: nn.Module, path: str) -> InitReport:
        """Start from trained weights, in place."""

    @abstractmethod
    def is_head(self, name: str, model: nn.Module) -> bool:
        """True if the parameter of that name belongs to the head, which `freeze` does not freeze."""

    @abstractmethod
    def train_batches(self, rank: int, world: int) -> Batches:
        """This process's share of the training batches; one batch of all processes is one optimiser step."""

    @abstractmethod
    def eval_batches(self, rank: int, world: int) -> Iterable[Any]:
        """This process's share of the validation data, each sample in exactly one process."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Notes for the user before training begins, a sentence each."""

    @abstractmethod
    def mix(self, batch: Any) -> Any:
        """Augmentation of a batch on the device, such as Mixup."""

    def batch_images(self, batch: Any, count: int) -> list[Image.Image]:
        """The first images of a training batch after `mix`, as the network sees them, with what it is to learn of each.

        Args:
            batch: on the CPU.
            count: of images, at most all.
        """
        shown = as_images(batch[0][:count], self.preprocess)
        return [self.draw_target(image, batch, number) for number, image in enumerate(shown)]

    @abstractmethod
    def draw_target(self, image: Image.Image, batch: Any, number: int) -> Image.Image:
        """An image of a training batch with its target.

        Args:
            image: as the network sees it.
            batch: on the CPU.
            number: of the image in the batch.
        """

    @abstractmethod
    def split(self, batch: Any, parts: int) -> list[tuple[Any, float | Tensor]]:
        """A batch in at most `parts` micro-batches, each with its share of the batch's loss.

        The sum of shares times losses, in the mean over all processes, is the loss of the whole batch of all processes:
        over all its pixels with a class, positive anchors or objects, however these are spread.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Mean loss of a micro-batch after `mix`, and the number of correct samples for the progress line.

        That number is nan where samples are not right or wrong, as in detection.
        """

    @abstractmethod
    def infer(self, model: nn.Module, inputs: Any) -> Any:
        """The network's output for a batch of the validation data, as `Metrics.update` takes it."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """A fresh accumulator."""

    @abstractmethod
    def examples(
        self, model: nn.Module, device: torch.device, count: int, folder: Path | None = None
    ) -> list[dict[str, Any]]:
        """Predictions and ground truth of a few validation samples; drawn into `folder` where they can be drawn."""


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    metrics: Metrics,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    gather: Callable[[dict[str, Tensor]], Sequence[dict[str, Tensor]]] | None = None,
    each: Callable[[], None] | None = None,
    infer: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs),
) -> Metrics:
    """Evaluate a network on a data set.

    Args:
        model: put into evaluation mode; stays there.
        batches: tuples whose first entry is the network's input.
        metrics: a fresh accumulator, filled here and returned.
        device: where the network is.
        autocast: makes the context of the forward pass.
        gather: gives the states of the metrics of all processes, in their order, from this process's.
        each: called after each batch, for progress and interruption.
        infer: from the network and the first entry of a batch to what the metrics take in.
    """
    model.eval()
    for batch in batches:
        batch = to_device(batch, device)
        with autocast():
            output = infer(model, batch[0])
        metrics.update(output, batch)
        if each is not None:
            each()
    if gather is not None:
        metrics.load(gather(metrics.state()))
    return metrics


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Tuples, lists and dictionaries with their tensors on a device; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(item, device) for name, item in batch.items()}
    return type(batch)(to_device(item, device) for item in batch) if isinstance(batch, (list, tuple)) else batch


def as_images(inputs: Tensor | Sequence[Tensor], preprocess: Preprocess) -> list[Image.Image]:
    """Inputs of a network as RGB images.

    Args:
        inputs: normalised (B, C, H, W), or as detectors take them, a list of (C, H, W) in [0, 1].
        preprocess: with the mean and standard deviation of normalised ones.
    """
    if isinstance(inputs, Tensor):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        inputs = list(inputs * std + mean)
    arrays = [(255 * one.float().clamp(0, 1)).round().byte().permute(1, 2, 0).numpy() for one in inputs]
    return [Image.fromarray(array.repeat(3 // array.shape[2], 2)) for array in arrays]


def pins_memory(config: TrainConfig) -> bool:
    """True if training batches are put into pinned memory, from which a GPU fetches them while it computes."""
    if config.pin_memory is not None:
        return config.pin_memory
    return torch.cuda.is_available() and config.device not in ("cpu", "mps")


def split_batch(batch: Sequence[Any], parts: int) -> list[tuple[tuple[Any, ...], float]]:
    """A batch of tensors and lists in at most `parts` micro-batches, each with its share of the images."""
    total = len(batch[0])
    size = -(-total // parts)
    cuts = [slice(first, first + size) for first in range(0, total, size)]
    return [(tuple(item[cut] for item in batch), len(batch[0][cut]) / total) for cut in cuts]


def small_data_notes(count: int, batch_size: int) -> list[str]:
    """The note on a training split with fewer images than a batch."""
    if count >= batch_size:
        return []
    return [f"batches have {count:,} images, all there are to learn from, and not the {batch_size:,} of --batch_size"]


def process_count() -> int:
    """Number of training processes."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def all_reduced(counts: Tensor, largest: bool = False) -> Tensor:
    """Counts summed over all processes, or their maximum."""
    if process_count() == 1:
        return counts
    total, ops = counts.clone(), torch.distributed.ReduceOp
    torch.distributed.all_reduce(total, ops.MAX if largest else ops.SUM)
    return total


def all_gathered(own: Tensor) -> Tensor:
    """(B, ...) of every process as (processes * B, ...), in their order; gradients reach this process's own alone."""
    if process_count() == 1:
        return own
    found = [torch.empty_like(own) for _ in range(process_count())]
    torch.distributed.all_gather(found, own.detach().contiguous())
    found[torch.distributed.get_rank()] = own
    return torch.cat(found)
