"""Multi-order interactions: closed forms, estimator, protocol, refusals."""

import math
from itertools import combinations

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.interactions import (
    FEW_ORDERS,
    PUBLISHED_ORDERS,
    _kept,
    bias_without_interaction,
    corrected,
    draw_contexts,
    draw_pairs,
    estimate,
    interactions,
    log_odds,
    order_of,
    plot_interactions,
    relative_strength,
    spread_over_classes,
)
from vitrail.errors import UserError

SIDE, PLAYERS = 4, 16
ORDERS = list(range(PLAYERS - 1))  # all of them
PAIRS = list(combinations(range(PLAYERS), 2))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def measured(value, contexts=3, orders=ORDERS, pairs=PAIRS):
    return estimate(value, PLAYERS, pairs, orders, contexts=contexts, generator=seeded())


def strength(found):
    return relative_strength(np.abs(found.mean).mean(0), least=1e-9)


# ---- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [2, 5, 9, 15])
def test_a_threshold_shows_at_two_orders_alone(threshold):
    found = measured(lambda masks: (masks.sum(1) >= threshold).double())
    expected = np.zeros(15)
    expected[threshold - 2], expected[threshold - 1] = 1, -1
    assert (found.mean == expected).all()
    assert strength(found).tolist() == (7.5 * np.abs(expected)).tolist()


# ---- the estimator -------------------------------------------------------------------------------------------------


def test_bias_by_number_of_contexts():
    contexts = np.array([1, 10, 100])
    assert bias_without_interaction(np.ones(3), contexts) == pytest.approx([0.80, 0.25, 0.080], abs=3e-3)
    # v of independent noise: dv has variance 4, and no pair interacts
    generator = seeded(1)
    noise = lambda masks: torch.randn(len(masks), dtype=torch.float64, generator=generator)  # noqa: E731
    found = measured(noise, contexts=10, orders=[3, 7, 11])
    sets = np.array([10, 10, 10])
    bias = bias_without_interaction(found.variance, sets).mean()
    assert bias == pytest.approx(2 * math.sqrt(2 / (math.pi * 10)), rel=0.05)
    assert np.abs(found.mean).mean() == pytest.approx(bias, rel=0.1)
    assert corrected(found.mean, found.variance, sets).mean() < 0.6 * bias


def test_correction_keeps_an_interaction_and_never_goes_below_0():
    assert corrected(np.array([5.0, 0.1]), np.array([4.0, 4.0]), np.array([4, 4])) == pytest.approx([24**0.5, 0])


def test_a_single_context_has_no_variance_but_at_the_ends():
    found = measured(lambda masks: masks.sum(1).double() ** 3, contexts=1, orders=[0, 5, 14], pairs=PAIRS[:3])
    assert np.isnan(found.variance[:, 1]).all()
    assert (found.variance[:, [0, 2]] == 0).all()


def test_members_of_a_difference():
    seen = []

    def value(masks):
        seen.append(masks)
        return masks.sum(1).double()

    steps = []
    estimate(value, PLAYERS, [(2, 7)], [0, 4, 14], contexts=5, generator=seeded(), step=lambda: steps.append(1))
    members = seen[0].unflatten(0, (-1, 4))
    assert members.shape == (1 + 5 + 1, 4, PLAYERS)  # a single context where there is no choice
    assert members[:, :, [2, 7]].tolist() == [[[True, True], [True, False], [False, True], [False, False]]] * 7
    others = [player for player in range(PLAYERS) if player not in (2, 7)]
    assert members[:, :, others].sum(2).tolist() == [[0] * 4] + [[4] * 4] * 5 + [[14] * 4]
    assert (members[:, :, others] == members[:, :1, others]).all()
    assert len(steps) == 1


def test_contexts_are_uniform_and_without_the_pair():
    drawn = draw_contexts(PLAYERS, (1, 5), [4] * 7000, seeded())
    assert drawn.sum(1).eq(4).all()
    share = drawn.double().mean(0)
    assert share[[1, 5]].tolist() == [0, 0]
    assert (share[[p for p in range(PLAYERS) if p not in (1, 5)]] - 4 / 14).abs().max() < 0.03


def test_orders_are_truncated_and_exact():
    expected = [0, 12, 25, 50, 76, 101, 127, 152, 177, 203, 228, 241, 254]
    assert [order_of(share, 256) for share in PUBLISHED_ORDERS] == expected
    assert order_of(0.7, 12) == 7  # 0.7 * 10 in binary is no trap
    assert FEW_ORDERS == (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)


def test_neighbours_lie_at_most_two_patches_apart():
    pairs = draw_pairs(16, 200, "neighbours", seeded())
    assert len(set(pairs)) == 200
    assert all(first < second for first, second in pairs)
    apart = [max(abs(i // 16 - j // 16), abs(i % 16 - j % 16)) for i, j in pairs]
    assert set(apart) == {1, 2}
    far = [max(abs(i // 16 - j // 16), abs(i % 16 - j % 16)) for i, j in draw_pairs(16, 50, "any", seeded())]
    assert max(far) > 5
    near = [p for p in PAIRS if max(abs(p[0] // 4 - p[1] // 4), abs(p[0] % 4 - p[1] % 4)) <= 2]
    assert sorted(draw_pairs(4, len(near), "neighbours", seeded())) == near  # all there are
    for choice, existing in (("neighbours", len(near)), ("any", 120)):
        with pytest.raises(UserError, match=f"has {existing} such pairs"):
            draw_pairs(4, existing + 1, choice, seeded())


def test_log_odds_are_of_the_probability():
    logits = torch.randn(5, 4, generator=seeded())
    p = logits.double().softmax(1)[:, 2]
    assert log_odds(logits, 2).tolist() == pytest.approx((p / (1 - p)).log().tolist(), abs=1e-12)


def test_images_are_spread_over_classes():
    labels = [0, 0, 0, 1, 2, 2]
    assert spread_over_classes([0, 1, 2, 3, 4, 5], labels, 4) == [0, 1, 3, 4]
    assert spread_over_classes([1, 2], labels, 4) == [1, 2]


# ---- networks ------------------------------------------------------------------------------------------------------


class Players(nn.Module):
    """Logits (v, 0) of the patches that are visible in images of ones."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        visible = F.interpolate(x, size=16, mode="nearest-exact").flatten(1)  # the middle pixel of each patch
        v = self.value(visible) + 0.5
        return torch.stack([v, torch.zeros_like(v)], 1)


ONES = torch.ones(3, 1, 40, 40, dtype=torch.float64)  # 40 is no multiple of 16


def test_a_network_of_known_interactions():
    found = interactions(Players(lambda s: s.sum(1) ** 2), ONES, [0, 0, 0], count=2, pairs=3, contexts=4)
    assert found.arrays["interaction"].values == pytest.approx(np.full(7, 2), abs=1e-9)
    assert found.arrays["strength"].values == pytest.approx(np.ones(7), abs=1e-9)
    assert found.arrays["corrected"].values == pytest.approx(np.full(7, 2), abs=1e-9)
    assert found.arrays["strength"].coords["order"] == [0, 25, 76, 127, 177, 228, 254]
    assert found.about["forward_passes"] == 2 * 3 * 4 * (5 * 4 + 2)
    assert (found.about["images"], found.about["image_indices"]) == (2, [0, 1])
    last = interactions(Players(lambda s: s.prod(1)), ONES, [0, 0, 0], pairs=3, contexts=4)
    assert last.arrays["strength"].values == pytest.approx([0] * 6 + [7], abs=1e-9)


def test_an_additive_network_says_that_it_has_no_strength():
    found = interactions(Players(lambda s: s.sum(1) / 256), ONES.float(), [0, 0, 0], pairs=2, contexts=2)
    assert np.isnan(found.arrays["strength"].values).all()
    assert "undefined" in found.about["strength"]
    assert "undefined" in found.summary()
    assert found.to_dict()["strength"]["values"] == [None] * 7
    assert found.plot().size[0] > 300


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("emsnet_xxtiny", num_classes=5)


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 32, 32, generator=seeded(3))


@pytest.fixture(scope="module")
def labels(network, images):
    network.eval()
    with torch.inference_mode():
        found = network(images).argmax(1)
    network.train()
    return found


def test_of_a_network_the_budget_and_errors_are_stated(network, images, labels):
    wrong = labels.clone()
    wrong[0] = (wrong[0] + 1) % 5
    options = {"count": 3, "pairs": 2, "contexts": 3, "orders": (0, 0.5, 1)}
    found = interactions(network, images, wrong, **options)
    assert network.training
    assert 0 not in found.about["image_indices"]
    assert found.about["correct"] == "5 of 6 images"
    assert {name: found.about[name] for name in ("images", "pairs", "contexts", "orders")} == {
        "images": 3,
        "pairs": 2,
        "contexts": 3,
        "orders": 3,
    }
    values = {name: array.values for name, array in found.arrays.items()}
    assert values["pair_interaction"].shape == (3, 2, 3)
    per_image = np.abs(values["pair_interaction"]).mean(1)
    assert values["interaction"] == pytest.approx(per_image.mean(0))
    assert values["interaction_error"] == pytest.approx(per_image.std(0, ddof=1) / math.sqrt(3))
    assert values["strength"].mean() == pytest.approx(1)
    assert values["bias"][[0, 2]].tolist() == [0, 0]
    assert values["bias"][1] > 0
    assert (values["corrected"] <= values["interaction"] + 1e-12).all()
    again = interactions(network, images, wrong, batch_size=4, **options)
    assert again.arrays["strength"].values == pytest.approx(values["strength"], rel=1e-3)
    other = interactions(network, images, wrong, seed=1, **options)
    assert other.arrays["strength"].values != pytest.approx(values["strength"], rel=1e-3)
    for plotted in (found.plot(), plot_interactions([found, other])):
        assert min(plotted.size) > 300
    assert "3 images, 2 pairs, 3 contexts, 3 orders" in found.summary()
    unlike = interactions(network, images, wrong, **options | {"contexts": 2})
    with pytest.raises(UserError, match="contexts 3 and 2 cannot be compared"):
        plot_interactions([found, unlike])


@pytest.mark.parametrize("seed", range(5))
def test_of_batches_no_more_than_the_chosen_images_are_kept(seed):
    rng = np.random.default_rng(seed)
    total, classes, count, size = (int(rng.integers(1, most)) for most in (60, 9, 12, 8))
    logits = torch.randn(total, classes + 1, generator=seeded(seed))
    true = rng.integers(0, classes, total).tolist()
    right = [i for i, found in enumerate(logits.argmax(1).tolist()) if found == true[i]]
    batches = [(logits[i : i + size], true[i : i + size]) for i in range(0, total, size)]
    if not right:
        with pytest.raises(UserError, match=f"none of the {total} images"):
            _kept(nn.Identity(), batches, count)
        return
    kept = _kept(nn.Identity(), batches, count)
    assert list(kept.images) == spread_over_classes(right, true, count)
    assert (kept.labels, kept.correct) == (true, len(right))
    assert all(torch.equal(image, logits[i]) for i, image in kept.images.items())


def test_batches_with_labels_give_what_all_images_give(network, images, labels):
    options = {"count": 3, "pairs": 2, "contexts": 3, "orders": (0, 0.5, 1)}
    whole = interactions(network, images, labels, **options)
    batches = zip(images.split(4), labels.split(4), strict=True)
    streamed = interactions(network, batches, **options)
    assert streamed.about == whole.about
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(streamed.arrays[name].values, array.values, rtol=1e-3, atol=1e-5)


def test_mistakes_are_refused(network, images, labels):
    def refused(match, *args, **options):
        with pytest.raises(UserError, match=match):
            interactions(*args, **options)

    refused("trained weights", network, images, labels, trained=False)
    refused("6 images have 2 labels", network, images, [0, 1])
    refused("Labels must be from 0 to 4", network, images, [7] * 6)
    refused("none of the 6 images", network, images, (labels + 1) % 5)
    refused("a classifier", timm.create_model("emsnet_xxtiny", num_classes=1), images, [0] * 6)
    refused("a classifier", nn.Identity(), images, labels)
    refused("at least one image", network, images[:0], [])
    refused("grid=64", network, images, labels, grid=64)
    refused("grid=1 ", network, images, labels, grid=1)
    refused("orders=", network, images, labels, orders=(0, 2))
    refused("orders=", network, images, labels, orders=())
    refused("pair_choice='far'", network, images, labels, pair_choice="far")
    for option in ("count", "pairs", "contexts", "batch_size"):
        refused(f"{option}=0", network, images, labels, **{option: 0})
