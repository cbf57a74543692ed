"""Types of transforms and collate functions, and `PairTransform`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

Transform = Callable[[Image.Image], torch.Tensor]


TrainBatch = tuple[Any, Any]


Samples = Sequence[tuple[torch.Tensor, Any]]


Collate = Callable[[Samples], TrainBatch]


def collate_stacked(samples: Samples) -> TrainBatch:
    """Samples of one size: x (b, C, H, W) in channels-last memory, and their targets, tensors of one shape, stacked."""
    inputs, targets = zip(*samples, strict=True)
    return torch.stack(inputs).contiguous(memory_format=torch.channels_last), torch.stack(targets)


def collate_lists(samples: Samples) -> TrainBatch:
    """Samples of any sizes: a list of images (C, H, W), and a list of their targets."""
    return [x for x, _ in samples], [target for _, target in samples]


class PairTransform(ABC):
    """A transform of an image and its target together: the network's input, and the target of the loss."""

    @abstractmethod
    def __call__(self, image: Image.Image, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(C, H, W) and what the loss takes of one image."""
