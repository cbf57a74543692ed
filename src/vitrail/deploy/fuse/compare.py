"""Comparison of the outputs of a network's inference form with its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: largest difference of the outputs that is accepted, relative to the largest output
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def refuse_changes(expected: Any, found: Any, changed: str) -> None:
    """Refuse outputs that differ from the network's.

    Args:
        expected: a tensor, or tensors in tuples and lists.
        found: the same of the inference form.
        changed: what changed which outputs, for the message.

    Raises:
        RuntimeError: one differs by more than `TOLERANCE` of its largest value.
    """
    for a, b in zip(_tensors(expected), _tensors(found), strict=True):
        largest, difference = a.abs().max().item(), (a - b).abs().max().item()
        if not difference <= TOLERANCE.get(a.dtype, 1e-4) * largest:
            raise RuntimeError(
                f"{changed} by {difference:.3g} (largest output {largest:.3g}); please report it with the network's "
                "name and options"
            )


def _tensors(output: Tensor | tuple[Any, ...] | list[Any]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [tensor for part in output for tensor in _tensors(part)]
