"""The reference forms speed is measured against are the same functions, with the same state dict."""

import pytest
import timm
import torch
from property_helpers import NARROW

from network_helpers import SMALLEST, randomise, small
from reference import MODULES, reference_form
from reference.pslt import painted
from vitrail.benchmark.speed import EAGER, difference
from vitrail.models import FAMILIES

OURS = [family for family in FAMILIES if family != "volo"]
WIDE = {"depths": (1, 1, 1, 1)}


def outputs(network, height, width):
    x = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        return network(x), reference_form(network)(x)


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("size", [(64, 96), (97, 70), (32, 32)], ids=str)
def test_reference_networks_give_the_same_logits(family, size):
    options = {**NARROW[family], "num_classes": 10}
    network = randomise(small(family, **options)).float().eval()
    ours, theirs = outputs(network, *size)
    assert difference(ours, theirs) <= EAGER


@pytest.mark.parametrize("family", OURS)
def test_registered_widths_give_the_same_logits(family):
    network = small(family) if family == "lvt" else small(family, **WIDE)
    ours, theirs = outputs(randomise(network).float().eval(), 96, 96)
    assert difference(ours, theirs) <= EAGER


@pytest.mark.parametrize("family", OURS)
def test_the_state_dict_is_the_same_and_the_network_stays_what_it_is(family):
    network = timm.create_model(SMALLEST[family], device="meta")
    kinds = [type(module) for module in network.modules()]
    twin = reference_form(network)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in twin.state_dict().items()} == shapes
    assert [type(module) for module in network.modules()] == kinds
    found = {kind.__name__ for kind in map(type, twin.modules()) if kind.__name__.startswith("Reference")}
    assert f"Reference{type(network).__name__}" in found
    assert not [module for module in twin.modules() if type(module) in MODULES]


def test_maps_stay_in_the_memory_they_come_in():
    network = reference_form(small("emsnet").eval())
    maps = []
    network.stages[0].register_forward_hook(lambda module, inputs, out: maps.append(out))
    network(torch.randn(1, 3, 64, 64))
    assert maps[0].is_contiguous()
    assert not maps[0].is_contiguous(memory_format=torch.channels_last)


def test_labels_of_a_rolled_map():
    # windows of 4 on a map of 6 x 4, rolled by 1: rows 1-4, then 5, padding, padding, and row 0 that came round
    rows = painted(6, 4, 4, 1)[0, :, 0, 0].tolist()
    assert rows[:5] == [0, 0, 0, 0, 0]
    assert rows[5] == rows[6] == 1
    assert rows[7] not in rows[:7]
    back = painted(8, 8, 4, -1)[0, :, 3, 0].tolist()
    assert back[0] not in back[1:]
    assert len(set(back[1:])) == 1
