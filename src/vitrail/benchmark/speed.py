"""How a time is taken: timed forms in one process, outputs compared first, interleaved rounds, medians of ratios.

Single times on a shared machine mean little; ratios of calls that follow each other mean more. So every round calls
each timed form once, in an order that rotates, and what is compared is the median of the rounds' ratios.
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
SETTLED = 0.10  # two successive calls of a compiled network may differ by this share
PATIENCE = 30  # calls after which a compiled network is timed as it is

#: largest difference, as a share of the largest logit, of forms that claim to compute the same in fp32
EAGER, REWRITTEN = 1e-5, 1e-4


@dataclass
class TimedForm:
    """Something to be timed.

    Attributes:
        name: what the result is called.
        call: does the work once and returns its output; waits for devices that work on their own.
        batch: images in one call.
        reference: what `call` should return; None = nothing to compare with.
        tolerance: largest difference from `reference` with which it is timed; None = it claims no equality.
        refused: why it is not timed, if that is known already.
        settle: warm up until two successive calls take about the same time, as compiled networks do after a while.
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
    """What `measure` found about one timed form.

    Attributes:
        difference: from the reference, as a share of its largest value; None without a reference.
        refused: why there are no times.
        seconds: of every round.
        speedup: how many times as fast as the first timed form, see `ratio`.
        settled: False if a timed form with `settle` never did.
    """

    name: str
    batch: int
    difference: float | None = None
    refused: str | None = None
    seconds: list[float] = field(default_factory=list)
    speedup: float | None = None
    settled: bool = True

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the calls ended, interpolated."""
        return float(np.quantile(self.seconds, share))

    @property
    def median(self) -> float:
        """Seconds of the middle call."""
        return self.quantile(0.5)


def ratio(against: Timing, own: Timing) -> float | None:
    """How many times as fast `own` is: the median of the rounds' ratios; None unless both have times."""
    pairs = zip(against.seconds, own.seconds, strict=False)
    return statistics.median([a / b for a, b in pairs]) if against.seconds and own.seconds else None


def default_rounds(batch: int) -> int:
    """Rounds enough for a median: fewer for batches, whose calls are longer and vary less."""
    return 15 if batch < 16 else 7


def difference(reference: Any, output: Any) -> float:
    """Largest difference of two outputs as a share of the reference's largest value; infinite if not comparable."""
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
        timed_forms: the first is what the others' speed is given against; same batch, so that ratios mean something.
        rounds: calls of each timed form.
        clock: seconds.
        advance: called after every round.

    Returns:
        One timing a timed form, in their order; those that claim to be equal and are not have a `refused` and no times.
    """
    timings = [_compared(timed_form) for timed_form in timed_forms]
    accepted = [pair for pair in zip(timed_forms, timings, strict=True) if pair[1].refused is None]
    collecting = gc.isenabled()
    gc.disable()  # a collection would be counted for whoever is at work
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
    """Call until the times mean something; whether they settled."""
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
