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
    def infer(self, model: nn.Module, inputs: Any) -> Any:
        """What the metrics take in."""

    @abstractmethod
    def metrics(self, data: AnnotatedSet) -> Metrics:
        """a fresh accumulator for that data."""

    @abstractmethod
    def find(self, model: nn.Module, images: Sequence[Image.Image], device: torch.device | str) -> Sequence[Prediction]:
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
        percent: whether that metric is one of 100; else it lies in [0, 1].
        classes: names, in the order of the outputs.
        preprocess: how an image becomes the network's input.
        model_options: constructor options of the network, as resolved.
        head: what stands on the network's maps; None = its own classifier.
        head_options: constructor options of the head, as resolved.
        settings: what else of the recipe the network is used with, as plain values.
        eval_set: what is measured on.
        measures_training: whether that is what is learned from, so that no metric is of other images.
    """

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
        """What the network learns from, in words."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The network with fresh weights."""

    @abstractmethod
    def init(self, model: nn.Module, path: str) -> InitReport:
        """Start from trained weights, in place."""

    @abstractmethod
    def is_head(self, name: str, model: nn.Module) -> bool:
        """Whether the parameter of that name belongs to the head, which `freeze` leaves free."""

    @abstractmethod
    def train_batches(self, rank: int, world: int) -> Batches:
        """This process's share of the training batches; one batch of all processes is one optimiser step."""

    @abstractmethod
    def eval_batches(self, rank: int, world: int) -> Iterable[Any]:
        """This process's share of the validation data, each sample in exactly one process."""

    @abstractmethod
    def notes(self) -> list[str]:
        """What the user should know of the data before training begins, a sentence each."""

    @abstractmethod
    def mix(self, batch: Any) -> Any:
        """What is done to a whole batch on the device, such as Mixup."""

    @abstractmethod
    def split(self, batch: Any, parts: int) -> list[tuple[Any, float | Tensor]]:
        """A batch in at most `parts` parts, each with its share of the batch's loss.

        The sum of shares times losses, in the mean over all processes, is the loss of the whole batch of all processes:
        over all its pixels with a class, positive anchors or objects, however these are spread.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Mean loss of a part of a `mix`ed batch, and how many of its samples are right, for the progress line.

        Where nothing is right or wrong before whole images are searched, that number is nan.
        """

    @abstractmethod
    def infer(self, model: nn.Module, inputs: Any) -> Any:
        """The network's output for a batch of the validation data, as the metrics take it in."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """A fresh accumulator."""

    @abstractmethod
    def examples(
        self, model: nn.Module, device: torch.device, count: int, folder: Path | None = None
    ) -> list[dict[str, Any]]:
        """What the network says of a few validation samples, beside the truth; drawn into `folder` where that helps."""


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
    """Count a network's outputs over a data set.

    Args:
        model: put into evaluation mode; stays there.
        batches: tuples whose first entry is the network's input.
        metrics: a fresh accumulator, filled here and returned.
        device: where the network is.
        autocast: makes the context of the forward pass.
        gather: what one process counted -> what every process counted, in their order.
        each: called after each batch, for progress and interruption.
        infer: from the network and the first entry of a batch to what the metrics take in.
    """
    model.eval()
    for batch in batches:
        batch = moved(batch, device)
        with autocast():
            output = infer(model, batch[0])
        metrics.update(output, batch)
        if each is not None:
            each()
    if gather is not None:
        metrics.load(gather(metrics.state()))
    return metrics


def moved(batch: Any, device: torch.device | str) -> Any:
    """Tuples, lists and dictionaries with their tensors on a device; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: moved(item, device) for name, item in batch.items()}
    return type(batch)(moved(item, device) for item in batch) if isinstance(batch, (list, tuple)) else batch


def parts_of(batch: Sequence[Any], parts: int) -> list[tuple[tuple[Any, ...], float]]:
    """A batch of tensors and lists, an entry an image, in at most `parts` parts, each with its share of them."""
    total = len(batch[0])
    size = -(-total // parts)
    cuts = [slice(first, first + size) for first in range(0, total, size)]
    return [(tuple(item[cut] for item in batch), len(batch[0][cut]) / total) for cut in cuts]


def few_images(count: int, batch_size: int) -> list[str]:
    """What is said of fewer images to learn from than a batch should have."""
    if count >= batch_size:
        return []
    return [f"batches have {count:,} images, all there are to learn from, and not the {batch_size:,} of --batch_size"]


def process_count() -> int:
    """How many processes learn together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def over_processes(counts: Tensor, largest: bool = False) -> Tensor:
    """The sum of every process's counts, or the largest of them."""
    if process_count() == 1:
        return counts
    total, ops = counts.clone(), torch.distributed.ReduceOp
    torch.distributed.all_reduce(total, ops.MAX if largest else ops.SUM)
    return total


def joined_features(own: Tensor) -> Tensor:
    """(B, ...) of every process as (processes * B, ...), in their order; gradients reach one's own alone."""
    if process_count() == 1:
        return own
    found = [torch.empty_like(own) for _ in range(process_count())]
    torch.distributed.all_gather(found, own.detach().contiguous())
    found[torch.distributed.get_rank()] = own
    return torch.cat(found)
