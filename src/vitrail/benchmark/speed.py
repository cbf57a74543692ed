"""Timing of several forms in one process: compared outputs, interleaved rounds, medians of ratios.

Single times on a shared machine mean little; ratios of successive calls mean more. So every round calls each timed form
once, in an order that rotates, and forms are compared by the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WARM_UP = 3
SETTLED = 0.10  # largest relative difference of two successive calls of a compiled network that has settled
PATIENCE = 30  # calls after which a compiled network is timed even if it has not settled

#: largest difference, relative to the largest logit, of forms that should compute the same in fp32
EAGER, REWRITTEN = 1e-5, 1e-4


@dataclass
class TimedForm:
    """A function to be timed.

    Attributes:
        name: name of the result.
        call: computes once and returns the output; waits for asynchronous devices.
        batch: images in one call.
        reference: expected output of `call`; None = not compared.
        tolerance: largest difference from `reference` at which it is timed; None = any.
        refused: reason why it is not timed, if that is known already.
        settle: warm up until two successive calls take about the same time, for compiled networks.
    """

    name: str
    call: Callable[[], Any]
    batch: int = 1
    reference: Any = None
    tolerance: float | None = None
    refused: str | None = None
    settle: bool = False


@dataclass
class Timing:
    """Result of `measure` for one timed form.

    Attributes:
        difference: from the reference, relative to its largest value; None without a reference.
        refused: reason why there are no times.
        seconds: of every round.
        speedup: over the first timed form, see `ratio`.
        settled: False if a timed form with `settle` did not settle.
    """

    name: str
    batch: int
    difference: float | None = None
    refused: str | None = None
    seconds: list[float] = field(default_factory=list)
    speedup: float | None = None
    settled: bool = True

    def quantile(self, share: float) -> float:
        """A quantile of the calls' seconds, interpolated."""
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        """Median of the calls' seconds."""
        return self.quantile(0.5)


def ratio(against: Timing, own: Timing) -> float | None:
    """Speed-up of `own` over `against`: the median of the rounds' ratios; None unless both have times."""
    pairs = zip(against.seconds, own.seconds, strict=False)
    return statistics.median([a / b for a, b in pairs]) if against.seconds and own.seconds else None


def default_rounds(batch: int) -> int:
    """Default number of rounds: fewer for batches, whose calls are longer and vary less."""
    return 15 if batch < 16 else 7


def difference(reference: Any, output: Any) -> float:
    """Largest difference of two outputs relative to the reference's largest value; infinite if not comparable."""
    wanted, found = _array(reference), _array(output)
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(wanted).max())
    return float(np.abs(wanted - found).max()) / (scale or 1.0)


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def measure(
    timed_forms: Sequence[TimedForm],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Compare the outputs, warm up, and time all timed forms in interleaved rounds.

    Args:
        timed_forms: of one batch size; speed-ups are relative to the first.
        rounds: calls of each timed form.
        clock: seconds.
        advance: called after every round.

    Returns:
        The timings, in the order of `timed_forms`; a form that differs too much has a `refused` and no times.
    """
    timings = [_compared(timed_form) for timed_form in timed_forms]
    accepted = [pair for pair in zip(timed_forms, timings, strict=True) if pair[1].refused is None]
    collecting = gc.isenabled()
    gc.disable()  # a collection would count as time of the form that runs
    try:
        for timed_form, timing in accepted:
            timing.settled = _warm_up(timed_form, clock)
        for number in range(rounds):
            turn = number % len(accepted) if accepted else 0
            for timed_form, timing in accepted[turn:] + accepted[:turn]:
                timing.seconds.append(_seconds(timed_form.call, clock))
            advance()
    finally:
        if collecting:
            gc.enable()
    for timing in timings:
        timing.speedup = ratio(timings[0], timing)
    return timings


def _compared(timed_form: TimedForm) -> Timing:
    timing = Timing(timed_form.name, timed_form.batch, refused=timed_form.refused)
    if timed_form.refused is not None or timed_form.reference is None:
        return timing
    timing.difference = found = difference(timed_form.reference, timed_form.call())
    if timed_form.tolerance is not None and not found <= timed_form.tolerance:
        timing.refused = f"differs by {found:.1e} of the largest logit, {timed_form.tolerance:.0e} allowed"
    elif found == float("inf"):
        timing.refused = "gives another shape or numbers that are not finite"
    return timing


def _warm_up(timed_form: TimedForm, clock: Callable[[], float]) -> bool:
    """Warm up; True unless the form should settle and did not."""
    seconds = [_seconds(timed_form.call, clock) for _ in range(WARM_UP)]
    while timed_form.settle and not _agree(*seconds[-2:]):
        if len(seconds) >= PATIENCE:
            return False
        seconds.append(_seconds(timed_form.call, clock))
    return True


def _agree(a: float, b: float) -> bool:
    return abs(a - b) <= SETTLED * max(a, b)


def _seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started
