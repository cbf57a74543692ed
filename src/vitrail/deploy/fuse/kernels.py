"""Choice of the fastest of several equivalent kernels, measured once per process.

Which library is fastest depends on the processor (benchmarks/NOTES.md), so there is no fixed rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

from torch import Tensor

Kernel = Callable[[Tensor], Tensor]

SECONDS = 0.02  # spent on one kernel at most, in addition to two calls
ROUNDS = 7
GAIN = 0.95  # another kernel is chosen if it takes less than this share of the first kernel's time

_chosen: dict[Hashable, str] = {}


def fastest(case: Hashable, makers: Mapping[str, Callable[[], Kernel]], x: Tensor) -> Kernel:
    """The fastest kernel for a case; its kernels are timed on `x` the first time the case occurs.

    Args:
        case: key of the measurement: shapes, dtype, threads.
        makers: functions by name that build equivalent kernels; the first is chosen unless another is clearly faster.
    """
    if case not in _chosen:
        _chosen[case] = _measured({name: make() for name, make in makers.items()}, x)
    return makers[_chosen[case]]()


def chosen_kernels() -> dict[str, str]:
    """The kernels chosen so far in this process, by case, for reports."""
    return {str(case): kernel for case, kernel in _chosen.items()}


def forget_kernels() -> None:
    """Forget all choices, for example after a change of the machine's settings."""
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
