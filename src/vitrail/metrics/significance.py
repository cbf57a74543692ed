"""Whether measured differences are larger than chance: intervals over seeds and paired tests, in closed form.

Two questions are asked of a difference between two candidates, and they are not the same. *Would other seeds give it,
too?* is asked of the seeds: Student's t of the paired differences. *Would other images give it, too?* is asked of the
validation images: the signs of their differences are flipped in every way, which with one seed is McNemar's exact test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: share of repeated experiments whose interval holds the true mean
LEVEL = 0.95
#: probabilities of a single sum below this are left out of a distribution of sums; the least p
NEGLIGIBLE = 1e-40


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval; None for a single value.
        high: upper end.
        deviation: standard deviation of the values (n - 1); None for a single value.
        count: of the values.
    """

    mean: float
    low: float | None
    high: float | None
    deviation: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half the length of the interval."""
        return None if self.high is None else self.high - self.mean


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean and confidence interval of independent values by Student's t.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("an interval needs a value")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Interval(mean, low=None, high=None, deviation=None, count=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(level, count - 1) * deviation / math.sqrt(count)
    return Interval(mean, low=mean - half, high=mean + half, deviation=deviation, count=count)


def t_within(t: float, freedom: int) -> float:
    """Probability that Student's t lies between -|t| and |t| (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        t: the bound.
        freedom: degrees of freedom, a whole number from 1.
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    square, term, total = math.cos(angle) ** 2, 1.0, 0.0
    first = freedom % 2
    for k in range(first, freedom - 1, 2):  # the factors are 2/3, 4/5, ... for odd and 1/2, 3/4, ... for even
        total += term
        term *= square * (k + 1) / (k + 2)
    if first:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total


def t_quantile(level: float, freedom: int) -> float:
    """The t > 0 between whose negative and itself Student's t lies with probability `level`."""
    low, high = 0.0, 1.0
    while t_within(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, freedom) < level else (low, middle)
    return high


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's t test of paired differences against a mean of zero.

    None where it is not defined: fewer than two pairs, or differences that are all the same and not zero.
    """
    if len(differences) < 2:
        return None
    found = interval(differences)
    assert found.deviation is not None
    # of equal numbers rounding may leave a deviation of 1e-16
    if found.deviation <= 1e-12 * max(1.0, abs(found.mean)):
        return 1.0 if abs(found.mean) <= 1e-12 else None
    t = found.mean / (found.deviation / math.sqrt(found.count))
    return 1 - t_within(t, found.count - 1)


def sign_flips(differences: Sequence[int] | np.ndarray) -> float:
    """Two-sided p of the exact sign-flip test of paired whole differences: how often random signs sum as far from zero.

    With differences of -1, 0 and 1 it is McNemar's exact test. No p is below `NEGLIGIBLE`: smaller ones are not told
    apart, and none is 0.
    """
    values = np.asarray(differences, dtype=np.int64)
    reached = abs(int(values.sum()))
    total, first = np.ones(1), 0  # probabilities of the sums from `first` on
    for size, count in zip(*np.unique(np.abs(values[values != 0]), return_counts=True), strict=True):
        part, begin = _signed_sums(int(size), int(count))
        total, first = np.convolve(total, part), first + begin
    sums = first + np.arange(len(total))
    return float(np.clip(total[np.abs(sums) >= reached].sum(), NEGLIGIBLE, 1.0))


def _signed_sums(size: int, count: int) -> tuple[np.ndarray, int]:
    """Probabilities of all sums of `count` numbers `size` with random signs, and the smallest of these sums."""
    ups = np.arange(count + 1)
    logs = np.array([math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in ups])
    probabilities = np.exp(logs - count * math.log(2))
    kept = np.flatnonzero(probabilities > NEGLIGIBLE)
    ups, probabilities = ups[kept], probabilities[kept]
    spread = np.zeros(2 * size * (len(ups) - 1) + 1)
    spread[:: 2 * size] = probabilities  # one more plus sign adds twice the size
    return spread, size * (2 * int(ups[0]) - count)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p of several tests by Holm's method: the chance of any false finding among them stays below the level.

    Args:
        values: p of each test; None = not tested, and stays so.
    """
    tested = sorted((value, i) for i, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        adjusted[i] = largest
    return adjusted
