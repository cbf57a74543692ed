"""The compiled network of the training steps, and the compiler's errors as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from ..errors import UserError, printable

#: packages whose exceptions are the compiler's
COMPILER = ("torch._dynamo", "torch._inductor")


def compiled(model: nn.Module) -> nn.Module:
    """`torch.compile` for the sizes of training batches, each compiled on its own.

    The result shares parameters, buffers and mode with the model, which stays what is saved, averaged and validated.
    """
    return cast(nn.Module, torch.compile(model, dynamic=False))


@contextmanager
def compiler_errors_explained() -> Iterator[None]:
    """Turn an error of the compiler, such as a missing C++ compiler, into a `UserError`."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(COMPILER):
            raise
        lines = [line.strip() for line in printable(str(error)).splitlines() if line.strip()]
        raise UserError(
            f"--compile: PyTorch cannot compile this network here ({type(error).__name__}: {' '.join(lines)[:200]}): "
            "train without it; on a CPU it needs a C++ compiler."
        ) from error
