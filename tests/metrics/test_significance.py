import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vitrail.metrics.significance import NEGLIGIBLE, holm, interval, paired_t, sign_flips, t_quantile, t_within


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 101])
def test_students_t(freedom):
    for t in (0.0, 0.1, 1.0, 2.5, 12.706, 40.0):
        assert t_within(t, freedom) == pytest.approx(1 - 2 * stats.t.sf(t, freedom), abs=1e-13)
        assert t_within(-t, freedom) == t_within(t, freedom)
    for level in (0.5, 0.95, 0.999):
        assert t_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def test_students_t_in_closed_form():
    assert t_within(1.0, 1) == pytest.approx(0.5)  # Cauchy
    assert t_within(math.sqrt(2), 2) == pytest.approx(1 / math.sqrt(2))  # t / sqrt(2 + t^2)
    assert t_quantile(0.95, 2) == pytest.approx(4.3027, abs=1e-4)  # the printed table


def test_intervals_over_seeds():
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.deviation, found.count) == (2.0, 1.0, 3)
    assert found.half == pytest.approx(4.302652729696 / math.sqrt(3))
    assert found.low == pytest.approx(2.0 - found.half)
    single = interval([7.0])
    assert (single.mean, single.low, single.high, single.deviation, single.half) == (7.0, None, None, None, None)
    with pytest.raises(ValueError, match="needs a value"):
        interval([])


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = interval(rng.normal(5, 3, 3).tolist())
        hits += found.low <= 5 <= found.high
    assert 0.935 < hits / 2000 < 0.965  # 0.95, standard error 0.005


def test_paired_t_test():
    rng = np.random.default_rng(1)
    for count in (2, 3, 5, 12):
        a, b = rng.normal(0, 1, count), rng.normal(0.5, 1, count)
        assert paired_t((a - b).tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-12)
    assert paired_t([0.3]) is None
    assert paired_t([0.0, 0.0, 0.0]) == 1.0
    assert paired_t([0.1 + 0.2 - 0.3 + 0.5, 0.5, 0.5]) is None  # no spread to judge by


def test_sign_flips_are_mcnemars_test_with_one_seed():
    for wins, losses in ((0, 0), (3, 0), (10, 4), (57, 80), (400, 500)):
        differences = [1] * wins + [-1] * losses + [0] * 50
        wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert sign_flips(differences) == pytest.approx(wanted, rel=1e-9)


def test_no_p_is_zero():
    few, many = [1] * 130 + [-1] * 4, [1] * 216 + [-1] * 6
    assert sign_flips(few) == pytest.approx(stats.binomtest(4, 134).pvalue, rel=1e-4)  # 3e-33
    assert sign_flips(many) == NEGLIGIBLE > stats.binomtest(6, 222).pvalue > 0


def test_sign_flips_equal_all_flips_counted():
    rng = np.random.default_rng(2)
    for _ in range(20):
        values = rng.integers(-3, 4, 10)
        sums = [
            abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in itertools.product((-1, 1), repeat=10)
        ]
        assert sign_flips(values) == pytest.approx(np.mean(np.array(sums) >= abs(values.sum())), rel=1e-12)


def test_sign_flips_of_many_images_meet_the_normal_distribution():
    values = np.array([3, 2, 1, -1, -2, -3] * 8000 + [1] * 700)
    p = sign_flips(values)
    assert p == pytest.approx(2 * stats.norm.sf(700 / math.sqrt((values**2).sum())), rel=0.02)


def test_false_findings_are_as_rare_as_the_level():
    rng = np.random.default_rng(3)
    found = [sign_flips(rng.integers(0, 4, 60) - rng.integers(0, 4, 60)) for _ in range(1500)]
    assert 0.03 < np.mean(np.array(found) < 0.05) < 0.06


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # the textbook's example
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []
