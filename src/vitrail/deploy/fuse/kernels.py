"""Which of several kernels of the same result runs: measured, once per process.

Libraries differ by factors between processors (speed notes: benchmarks/NOTES.md), so no rule is right everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

from torch import Tensor

Kernel = Callable[[Tensor], Tensor]

SECONDS = 0.02  # spent on one kernel, at most, beside two calls it gets anyway
ROUNDS = 7
GAIN = 0.95  # of the first kernel's time: what another has to stay below to be taken

_chosen: dict[Hashable, str] = {}


def fastest(case: Hashable, makers: Mapping[str, Callable[[], Kernel]], x: Tensor) -> Kernel:
    """The kernel to use for a case; the first time a case is met its kernels are timed on `x`.

    Args:
        case: what the answer depends on: shapes, dtype, threads.
        makers: build, by name, kernels that give the same result; the first is taken unless another is clearly faster.
    """
    if case not in _chosen:
        _chosen[case] = _measured({name: make() for name, make in makers.items()}, x)
    return makers[_chosen[case]]()


def chosen_kernels() -> dict[str, str]:
    """What was measured so far in this process: case -> kernel, for reports."""
    return {str(case): kernel for case, kernel in _chosen.items()}


def forget_kernels() -> None:
    """Measure anew from here on, as after a change of the machine's settings."""
    _chosen.clear()


def _measured(kernels: Mapping[str, Kernel], x: Tensor) -> str:
    first = next(iter(kernels))
    if len(kernels) == 1:
        return first
    times = {
        name: [_seconds(kernel, x), _seconds(kernel, x)][1:] for name, kernel in kernels.items()
    }  # after a warm-up
    rounds = min(ROUNDS, int(SECONDS / max(min(map(min, times.values())), 1e-6)))
    for _ in range(rounds):
        for name, kernel in kernels.items():
            times[name].append(_seconds(kernel, x))
    least = {name: min(spent) for name, spent in times.items()}
    best = min(least, key=lambda name: least[name])
    return best if least[best] < GAIN * least[first] else first


def _seconds(kernel: Kernel, x: Tensor) -> float:
    started = time.perf_counter()
    kernel(x)
    return time.perf_counter() - started
