"""The protocol, with timed forms that take as long as they are told, on a clock that only they move."""

import itertools

import numpy as np
import pytest
import torch

from vitrail.benchmark import roofline as roofline_module
from vitrail.benchmark.roofline import PeakRate, matching, rates, roofline, unsteady
from vitrail.benchmark.speed import PATIENCE, TimedForm, default_rounds, difference, measure


class Track:
    """A clock, and timed forms whose calls move it by the next of their seconds, the last one again and again."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def clock(self) -> float:
        return self.now

    def timed_form(self, name: str, *seconds: float, output=None, **options) -> TimedForm:
        left = list(seconds)

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return output

        return TimedForm(name, call, **options)


def test_medians_quartiles_and_ratios_of_rounds():
    track = Track()
    warm = (9.0, 9.0, 9.0)  # of the three calls before the first round
    a = track.timed_form("a", *warm, 4.0, 2.0, 6.0, 8.0, 100.0)
    b = track.timed_form("b", *warm, 1.0, 4.0, 2.0, 4.0, 10.0)
    first, second = measure([a, b], 5, track.clock)
    assert first.seconds == [4.0, 2.0, 6.0, 8.0, 100.0]
    assert (first.median, first.quantile(0.25), first.quantile(0.75), min(first.seconds)) == (6.0, 4.0, 8.0, 2.0)
    assert first.speedup == 1.0
    assert second.median == 4.0
    # the median of the rounds' ratios 4, 0.5, 3, 2 and 10, not the ratio of the medians, 6 / 4
    assert second.speedup == 3.0


def test_every_round_begins_with_another_timed_form():
    track = Track()
    measure([track.timed_form(name, 1.0) for name in "abc"], 4, track.clock)
    assert "".join(track.calls) == "aaabbbccc" + "abc" + "bca" + "cab" + "abc"


def test_a_compiled_form_is_called_until_it_settles():
    track = Track()
    compiled = track.timed_form("c", 60.0, 9.0, 5.0, 3.0, 2.0, 1.9, 1.0, settle=True)
    timing = measure([compiled], 2, track.clock)[0]
    assert timing.settled
    assert timing.seconds == [1.0, 1.0]  # the calls of 2.0 and 1.9 seconds are the first that agree
    assert len(track.calls) == 6 + 2


def test_one_that_never_settles_is_timed_and_marked():
    track = Track()
    seconds = [1.0, 2.0] * PATIENCE
    timing = measure([track.timed_form("c", *seconds, settle=True)], 1, track.clock)[0]
    assert not timing.settled
    assert len(track.calls) == PATIENCE + 1


def test_what_claims_to_be_equal_and_is_not_gets_no_time():
    track = Track()
    wanted = torch.tensor([1.0, -4.0])
    right = track.timed_form("right", 2.0, output=wanted + 3e-5, reference=wanted, tolerance=1e-5)
    wrong = track.timed_form("wrong", 1.0, output=wanted + 8e-5, reference=wanted, tolerance=1e-5)
    first, second = measure([right, wrong], 3, track.clock)
    assert first.refused is None
    assert first.difference == pytest.approx(3e-5 / 4, rel=0.05)
    assert second.difference == pytest.approx(8e-5 / 4, rel=0.05)
    assert second.seconds == []
    assert second.speedup is None
    assert second.refused == "differs by 2.0e-05 of the largest logit, 1e-05 allowed"
    assert track.calls.count("wrong") == 1  # the comparison


def test_without_a_claim_the_difference_is_only_told():
    track = Track()
    wanted = torch.tensor([1.0, -4.0])
    bf16 = track.timed_form("bf16", 1.0, output=wanted.bfloat16() * 1.25, reference=wanted)
    broken = track.timed_form("broken", 1.0, output=wanted * float("nan"), reference=wanted)
    first, second = measure([bf16, broken], 3, track.clock)
    assert (first.difference, len(first.seconds)) == (0.25, 3)
    assert second.seconds == []
    assert "finite" in second.refused


def test_ratios_need_the_first_timed_form():
    track = Track()
    wrong = track.timed_form("wrong", 1.0, output=torch.ones(2), reference=torch.zeros(2), tolerance=1e-5)
    timings = measure([wrong, track.timed_form("b", 1.0)], 2, track.clock)
    assert timings[1].speedup is None
    assert timings[1].seconds == [1.0, 1.0]


def test_differences_are_shares_of_the_largest_value():
    assert difference(torch.tensor([2.0, -8.0]), np.array([2.0, -7.0])) == 0.125
    assert difference(torch.zeros(2), torch.tensor([0.0, 0.5])) == 0.5
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")


def test_batches_need_fewer_rounds():
    assert (default_rounds(1), default_rounds(15), default_rounds(16)) == (15, 15, 7)


# ---- roofline ---------------------------------------------------------------------------------------------------


def test_a_peak_rate_that_changed_by_more_than_a_tenth_is_named():
    found = roofline({"fp32 linear": 50.0, "copy": 40.0}, {"fp32 linear": 54.0, "copy": 30.0})
    assert unsteady(found) == ["copy went from 40.0 to 30.0 GB/s during the run, by 25 %"]
    assert [c.best for c in found] == [54.0, 40.0]


def test_networks_are_compared_with_the_peak_rate_of_their_precision():
    found = [
        PeakRate("fp32 linear", "GMAC/s", 50, 51),
        PeakRate("fp32 pointwise", "GMAC/s", 100, 90),
        PeakRate("bf16", "GMAC/s", 200, 200),
        PeakRate("copy", "GB/s", 400, 400),
    ]
    assert matching(found, "fp32").name == "fp32 pointwise"
    assert matching(found, "bf16").name == "bf16"
    assert matching([], "fp32") is None


def test_rates_count_the_work_by_the_clock():
    ticks = iter(range(10_000))
    found = rates(torch.device("cpu"), lambda: next(ticks))  # every call takes one second
    assert set(found) == {"fp32 linear", "fp32 pointwise", "bf16", "copy"}
    assert found["fp32 linear"] == found["fp32 pointwise"] == found["bf16"] == pytest.approx(768**3 / 1e9)
    assert found["copy"] == pytest.approx(2 * 256 * 2**20 / 1e9)


def test_a_peak_rate_is_that_of_the_fastest_call():
    """A processor that is slow for a while has the same peak rate."""
    lasting = itertools.chain([5.0, 4.0, 1.0], itertools.repeat(2.0))
    ticks = itertools.accumulate(itertools.chain([0.0], (step for seconds in lasting for step in (0.0, seconds))))
    device = torch.device("cpu")
    assert roofline_module._seconds(lambda: None, device, lambda: next(ticks)) == 1.0
