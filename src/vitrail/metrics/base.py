"""Base class of metrics, and functions that they share."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from torch import Tensor


class Metrics(ABC):
    """Accumulator of a network's outputs over a data set, and the metrics of them."""

    @abstractmethod
    def update(self, output: Any, batch: Any) -> None:
        """Add the network's output for one batch."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The accumulated values as tensors: to be saved, and joined with those of other processes."""

    @abstractmethod
    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace the accumulated values by those of all processes, in their order."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The metrics by name: plain numbers, and lists of them."""

    @abstractmethod
    def report(self, folder: Path) -> None:
        """Write the task's tables and images into a folder."""


def write_classes(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `per_class.csv`: a row a class."""
    with open(folder / "per_class.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def sum_states(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of the counts of several processes, on the CPU."""
    return {name: torch.stack([state[name].cpu() for state in states]).sum(0) for name in states[0]}


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
