"""The machine's roofline: peak rates of multiply-adds and copying, with which measured networks are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

UNSTEADY = 0.10  # times are unreliable if a peak rate changed by more during the run
WINDOW = 0.5  # seconds for which each operation is repeated
REPEATS = 9  # calls of each operation at least
SIDE = 768  # rows and columns of the square matrices
PIXELS = (24, 32)  # (height, width) of the map, which has as many pixels as the matrix has rows
COPY_BYTES = 256 * 2**20
LARGE_BLOCK = 28 * 2**20  # bytes; glibc learns from freed blocks of up to 32 MB


@dataclass
class PeakRate:
    """A peak rate, measured before and after the networks.

    Attributes:
        name: "fp32 linear" (as PyTorch calls it), "fp32 pointwise" (the same products through oneDNN), "bf16", "copy".
        unit: "GMAC/s", or "GB/s" read and written together.
    """

    name: str
    unit: str
    start: float
    end: float

    @property
    def best(self) -> float:
        """The higher of the two rates."""
        return max(self.start, self.end)

    @property
    def change(self) -> float:
        """Change of the rate during the run, as a share of the first measurement."""
        return abs(self.end - self.start) / self.start


def rates(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Rates now: multiply-adds or bytes a second, in billions, by name.

    The fastest call counts: a processor that wakes up or is shared for a moment has the same peak rate.
    """
    # glibc returns large blocks to the system and pays for new pages with every call until one as large was freed
    torch.empty(LARGE_BLOCK, dtype=torch.uint8)
    x = torch.randn(SIDE, SIDE, device=device)
    half = x.bfloat16()
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    operations: dict[str, tuple[Callable[[], object], int]] = {
        "fp32 linear": (lambda: F.linear(x, x), SIDE**3),
        "bf16": (lambda: F.linear(half, half), SIDE**3),
        "copy": (lambda: target.copy_(source), 2 * COPY_BYTES),
    }
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        image = torch.randn(1, SIDE, *PIXELS).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(SIDE, SIDE, 1, 1)
        product = torch.mkldnn_convolution  # pyright: ignore[reportAttributeAccessIssue]
        operations["fp32 pointwise"] = (lambda: product(image, kernel, None, (0, 0), (1, 1), (1, 1), 1), SIDE**3)
    with torch.inference_mode():
        return {
            name: amount / _seconds(operation, device, clock) / 1e9 for name, (operation, amount) in operations.items()
        }


def _seconds(operation: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    best, calls, began = float("inf"), 0, clock()
    while calls < REPEATS or clock() - began < WINDOW:
        started = clock()
        operation()
        synchronise(device)
        best, calls = min(best, clock() - started), calls + 1
    return best


def synchronise(device: torch.device) -> None:
    """Wait until an asynchronous device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def roofline(start: dict[str, float], end: dict[str, float]) -> list[PeakRate]:
    """Two results of `rates`, before and after the networks, joined by name."""
    return [PeakRate(name, "GB/s" if name == "copy" else "GMAC/s", start[name], end[name]) for name in start]


def matching(found: list[PeakRate], precision: str) -> PeakRate | None:
    """The peak rate of a network's products in a precision: in fp32 the higher one, as PyTorch chooses the kernels."""
    own = [c for c in found if c.name != "copy" and c.name.startswith(precision)]
    return max(own, key=lambda c: c.best, default=None)


def unsteady(found: list[PeakRate]) -> list[str]:
    """A sentence for every peak rate that changed by more than `UNSTEADY`."""
    return [
        f"{c.name} went from {c.start:.1f} to {c.end:.1f} {c.unit} during the run, by {100 * c.change:.0f} %"
        for c in found
        if c.change > UNSTEADY
    ]
