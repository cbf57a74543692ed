"""What the machine can do at best: the rates that measured networks are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

UNSTEADY = 0.10  # a ceiling that moved by more during a run spoils its times
WINDOW = 0.5  # seconds that each work is repeated for
REPEATS = 9  # and how often at least
SIDE = 768  # of the square matrices
PIXELS = (24, 32)  # of the map with as many pixels as the matrix has rows
COPY_BYTES = 256 * 2**20


@dataclass
class Ceiling:
    """One rate, measured before and after the networks.

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
    def moved(self) -> float:
        """By what share the rate changed."""
        return abs(self.end - self.start) / self.start


def rates(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Rates now: multiply-adds or bytes a second, in billions, by name.

    The best call of a window counts: a processor that wakes up or is borrowed for a moment has no lower ceiling.
    """
    x = torch.randn(SIDE, SIDE, device=device)
    half = x.bfloat16()
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    works: dict[str, tuple[Callable[[], object], int]] = {
        "fp32 linear": (lambda: F.linear(x, x), SIDE**3),
        "bf16": (lambda: F.linear(half, half), SIDE**3),
        "copy": (lambda: target.copy_(source), 2 * COPY_BYTES),
    }
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        image = torch.randn(1, SIDE, *PIXELS).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(SIDE, SIDE, 1, 1)
        product = torch.mkldnn_convolution  # pyright: ignore[reportAttributeAccessIssue]
        works["fp32 pointwise"] = (lambda: product(image, kernel, None, (0, 0), (1, 1), (1, 1), 1), SIDE**3)
    with torch.inference_mode():
        return {name: amount / _seconds(work, device, clock) / 1e9 for name, (work, amount) in works.items()}


def _seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    best, calls, began = float("inf"), 0, clock()
    while calls < REPEATS or clock() - began < WINDOW:
        started = clock()
        work()
        synchronise(device)
        best, calls = min(best, clock() - started), calls + 1
    return best


def synchronise(device: torch.device) -> None:
    """Wait until a device that works on its own has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(start: dict[str, float], end: dict[str, float]) -> list[Ceiling]:
    """Two measurements as ceilings."""
    return [Ceiling(name, "GB/s" if name == "copy" else "GMAC/s", start[name], end[name]) for name in start]


def matching(found: list[Ceiling], precision: str) -> Ceiling | None:
    """The ceiling of a network's products: the higher one in fp32, whichever kernels PyTorch chooses."""
    own = [c for c in found if c.name != "copy" and c.name.startswith(precision)]
    return max(own, key=lambda c: c.best, default=None)


def unsteady(found: list[Ceiling]) -> list[str]:
    """A sentence for every ceiling that moved too far."""
    return [
        f"{c.name} went from {c.start:.1f} to {c.end:.1f} {c.unit} during the run, by {100 * c.moved:.0f} %"
        for c in found
        if c.moved > UNSTEADY
    ]
