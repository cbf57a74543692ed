import numpy as np
import pytest

from vitrail.lab.measures import Measures, packed
from vitrail.lab.results import compare
from vitrail.metrics.significance import sign_flips


def run(seed: int, hits: list[int]) -> Measures:
    return Measures(seed=seed, top1=100 * float(np.mean(hits)), correct=packed(np.array(hits)), images=len(hits))


def test_pairs_are_of_one_seed():
    a = [run(0, [1, 1, 1, 0]), run(1, [1, 1, 0, 0]), run(2, [1, 1, 1, 1])]
    b = [run(2, [1, 0, 0, 0]), run(0, [1, 1, 0, 1]), Measures(seed=1, failed="diverged")]
    found = compare(("a", a), ("b", b))
    assert found is not None
    # seed 0: 75 - 75, seed 2: 100 - 25; images over both: 0, 1, 2, 0
    assert found.difference.mean == pytest.approx(37.5)
    assert (found.images_won, found.images_lost) == (2, 0)
    assert found.p_images == sign_flips([0, 1, 2, 0])
    assert found.p_seeds == pytest.approx(0.5)  # t = 1 with one degree of freedom


def test_a_single_seed_has_mcnemars_test_alone():
    found = compare(("a", [run(0, [1] * 9 + [0])]), ("b", [run(0, [0] * 8 + [1, 1])]))
    assert found is not None
    assert found.p_seeds is None
    assert found.difference.low is None
    assert found.p_images == pytest.approx(2 * (1 + 9) / 2**9)  # 8 : 1


def test_without_a_common_seed_nothing_is_compared():
    assert compare(("a", [run(0, [1])]), ("b", [run(1, [1])])) is None
