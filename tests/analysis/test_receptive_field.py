"""Receptive fields: closed forms, exact supports, regions of attention."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import vitrail  # noqa: F401  (registers our networks)
from vitrail.analysis.receptive_field import attended_region, receptive_field, square_side, support_box
from vitrail.errors import UserError
from vitrail.models.pale import PaleAttention


def stack(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of ones: (kernel, stride, padding) each."""
    made = nn.Sequential(*(nn.Conv2d(1, 1, k, s, p, bias=False) for k, s, p in layers)).double()
    for module in made:
        module.weight.data.fill_(1)
    return made


def test_stacked_convolutions_of_ones_give_trinomial_coefficients():
    network = stack(*[(3, 1, 1)] * 3)
    found = receptive_field(network, torch.randn(2, 1, 15, 15, dtype=torch.float64), layer="2")
    field = found.arrays["field"].values
    row = np.array([1, 3, 6, 7, 6, 3, 1])
    np.testing.assert_array_equal(field[4:11, 4:11], np.outer(row, row))
    assert field[7, 4:11].tolist() == [7, 21, 42, 49, 42, 21, 7]
    assert field.sum() == 27**2
    assert found.about["support"] == [4, 4, 11, 11]
    assert found.about["reached"] == 49
    # the centre, then the middle 3 x 3 with (6 + 7 + 6)^2 of 729, then 5 x 5 with 25^2 of 729
    assert found.about["squares"] == [5 if 19**2 < 0.5 * 729 else 3, 7, 7]
    np.testing.assert_array_equal(found.arrays["error"].values, 0)


@pytest.mark.parametrize("layers", [[(3, 2, 1)] * 3, [(7, 4, 3), (3, 2, 1)], [(2, 2, 0), (5, 1, 2), (3, 3, 1)]])
@pytest.mark.parametrize("at", [None, (20, 33), (0, 0)])
def test_the_support_of_known_strides(layers, at):
    network, name = stack(*layers), str(len(layers) - 1)
    images = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    found = receptive_field(network, images, layer=name, at=at)
    box = []
    for position in found.about["position"]:
        first = last = position
        for kernel, stride, padding in reversed(layers):
            first, last = first * stride - padding, last * stride - padding + kernel - 1
        box.append((max(0, first), min(48, last + 1)))
    (left, right), (top, bottom) = box
    assert found.about["support"] == [left, top, right, bottom]
    assert found.about["reached"] == (right - left) * (bottom - top)


def test_squares_and_boxes():
    field = np.zeros((9, 9))
    field[4, 4], field[4, 7] = 96, 4
    assert [square_side(field, (4, 4), share) for share in (0.5, 0.95, 0.99)] == [1, 1, 7]
    assert support_box(field > 0) == (4, 4, 8, 5)


@pytest.mark.parametrize("name", ["mat_1", "emsnet_xxtiny", "resnet34", "pvt_v2_b1"])
def test_fields_of_networks(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3).eval()
    images = torch.randn(3, 3, 64, 64)
    found = receptive_field(network, images, batch_size=2)
    again = receptive_field(network, images)
    np.testing.assert_allclose(found.arrays["field"].values, again.arrays["field"].values, rtol=1e-3, atol=1e-9)
    assert found.arrays["field"].values.shape == (64, 64)
    half, most, nearly_all = found.about["squares"]
    assert half <= most <= nearly_all
    each = np.stack([receptive_field(network, one[None]).arrays["field"].values for one in images])
    np.testing.assert_allclose(each.mean(0), found.arrays["field"].values, rtol=1e-3, atol=1e-9)
    wanted = each.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.arrays["error"].values, wanted, rtol=1e-2, atol=1e-6 * wanted.max())


def test_columns_of_tokens():
    network = timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    found = receptive_field(network, torch.randn(1, 3, 64, 64), layer="patch_embed", at=(20, 40))
    assert found.about["support"] == [16, 32, 32, 48]
    assert attended_region(network, torch.randn(1, 3, 64, 64)).about["seen"] == 16


#: mixer -> tokens of a 12 x 12 map that one token sees with s = 3
PALES = {"vanilla": 63, "parallel": 63, "sequential": 36, "axial": 23, "cross_shaped": 63}


@pytest.mark.parametrize("mixer", PALES)
def test_the_pale_of_a_token(mixer):
    torch.manual_seed(0)
    attention = nn.Sequential(PaleAttention(16, 2, mixer, pale_size=(3, 3), qkv_kernel=1).eval())
    features = torch.randn(1, 16, 12, 12)
    found = attended_region(attention, features, layer="0", at=(5, 9))
    assert found.about["seen"] == PALES[mixer]
    if mixer in ("vanilla", "parallel"):  # every fourth row and column: one pale has row 9 and column 5
        lines = np.arange(12) % 4 == 1
        np.testing.assert_array_equal(found.arrays["region"].values, lines[:, None] | lines[None])
    # whole pales: row 7 is in one, column 5 in another, and what lies on both crossings counts once
    other = attended_region(attention, features, layer="0", at=(5, 7)).about["seen"]
    assert other == (2 * 63 - 2 * 9 if mixer == "vanilla" else PALES[mixer])


def test_a_sum_that_is_constant_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), timm.layers.LayerNorm2d(8))
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(UserError, match="a normalisation over channels"):
        receptive_field(network, images, layer="1")
    assert receptive_field(network, images, layer="0").about["reached"] == 9


def test_plots():
    network, images = timm.create_model("mat_1", num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    for found in (receptive_field(network, images), attended_region(network, images)):
        assert len(found.plot().getcolors(2**20)) > 10
        assert found.summary().startswith("mat_1: ")


def test_mistakes():
    network, images = timm.create_model("mat_1", num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    for method in (receptive_field, attended_region):
        for options, sentence in (
            ({"layer": "stage.3"}, r"did you mean stages\.3"),
            ({"layer": "head"}, "gives no map"),
            ({"at": (64, 0)}, "64 x 64"),
            ({"at": (-1, 0)}, "64 x 64"),
        ):
            with pytest.raises(UserError, match=sentence):
                method(network, images, **options)
    with pytest.raises(UserError, match="batch_size"):
        receptive_field(network, images, batch_size=0)
