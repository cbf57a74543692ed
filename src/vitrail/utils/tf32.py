"""TF32 in products and convolutions of a GPU, switched for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: compute capability from which GPUs have TF32 (Ampere)
CAPABILITY = (8, 0)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let fp32 products and convolutions of GPUs round their inputs to TF32, or forbid it; restored afterwards.

    PyTorch's own default differs between the two: convolutions round, products do not.
    """
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
