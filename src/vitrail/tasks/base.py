"""What a task is to the training loop, and the one way to measure a network on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data.config import Preprocess


class Batches(Protocol):
    """Training batches, in an order that depends on the seed and the epoch only."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch of it to begin at."""
        ...


class Metrics(Protocol):
    """Counts over a data set, summed over processes, and the figures that follow from them."""

    def update(self, output: Any, batch: Any) -> None:
        """Count the network's output for one batch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The counts: tensors whose sum over the processes are the counts of all."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Replace the counts."""
        ...

    def compute(self) -> dict[str, Any]:
        """The figures by name: plain numbers, and lists of them."""
        ...

    def report(self, folder: Path) -> None:
        """Write the task's own tables and pictures."""
        ...


class Task(Protocol):
    """What is learned: network, data, loss and metric. The loop knows nothing else of it.

    Attributes:
        name: as in recipes.
        best_metric: the figure of `Metrics.compute` by which the best epoch is chosen; larger is better.
        classes: names, in the order of the outputs.
        preprocess: how an image becomes the network's input.
    """

    name: str
    best_metric: str
    classes: list[str]
    preprocess: Preprocess

    @property
    def training_data(self) -> str:
        """What the network learns from, in words."""
        ...

    def build_model(self) -> nn.Module:
        """The network with fresh weights."""
        ...

    def is_head(self, name: str, model: nn.Module) -> bool:
        """Whether the parameter of that name belongs to the head, which `freeze` leaves free."""
        ...

    def train_batches(self, rank: int, world: int) -> Batches:
        """This process's share of the training batches; one batch of all processes is one optimiser step."""
        ...

    def eval_batches(self, rank: int, world: int) -> Iterable[Any]:
        """This process's share of the held-back data, each sample in exactly one process."""
        ...

    def mix(self, batch: Any) -> Any:
        """What is done to a whole batch on the device, such as Mixup."""
        ...

    def split(self, batch: Any, parts: int) -> list[tuple[Any, float]]:
        """A batch in at most `parts` parts, each with its share of the batch's loss (the shares sum to 1)."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Mean loss of a part of a `mix`ed batch, and how many of its samples are right (for the progress line)."""
        ...

    def metrics(self) -> Metrics:
        """Fresh counts."""
        ...

    def examples(self, model: nn.Module, device: torch.device, count: int) -> list[dict[str, Any]]:
        """What the network says of a few held-back samples, beside the truth."""
        ...


@torch.no_grad()
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    metrics: Metrics,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    sum_over_processes: Callable[[Tensor], Tensor] | None = None,
    each: Callable[[], None] | None = None,
) -> Metrics:
    """Count a network's outputs over a data set.

    Args:
        model: put into evaluation mode; stays there.
        batches: tuples whose first entry is the network's input.
        metrics: fresh counts, filled here and returned.
        device: where the network is.
        autocast: makes the context of the forward pass.
        sum_over_processes: sums one tensor over all processes.
        each: called after each batch, for progress and interruption.
    """
    model.eval()
    for batch in batches:
        batch = tuple(item.to(device, non_blocking=True) for item in batch)
        with autocast():
            output = model(batch[0])
        metrics.update(output, batch)
        if each is not None:
            each()
    if sum_over_processes is not None:
        metrics.load({name: sum_over_processes(tensor.to(device)) for name, tensor in metrics.state().items()})
    return metrics
