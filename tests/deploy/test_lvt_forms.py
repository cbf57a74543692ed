"""The export form of LVT's and VOLO's first stage computes what their blocks compute."""

import pytest
import torch

from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.forms.lvt import PlaneBlocks, real_pixels
from vitrail.deploy.export.trace import Graph, Shape, trace
from vitrail.factory import build_model
from vitrail.models.lvt import CSA, Block

SMALL = {"embed_dims": [16, 16, 16, 16], "depths": [2, 1, 1, 1], "num_heads": [2, 2, 2, 2]}
OUTLOOK = {"mixers": ["outlook", "sa", "sa", "sa"], "qkv_bias": True}


def random_vectors(module):
    """Random biases and scales, so that leaving one out would show."""
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return module.eval()


def small(name="lvt", **options):
    torch.manual_seed(0)
    return random_vectors(build_model(name, {**SMALL, **options}, 5).double())


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [("lvt", {}), ("lvt", OUTLOOK), ("lvt", {"depths": [1, 1, 1, 1], "out_norms": True}), ("volo_d0", {})],
    ids=["csa", "outlook", "one block", "volo"],
)
def test_the_form_gives_the_networks_logits(name, options):
    network = small(name, **options)
    form = BACKENDS["openvino"].in_form(network)
    assert isinstance(form.stages[0].blocks, PlaneBlocks)
    assert not any(isinstance(module, CSA) for module in form.modules())
    assert isinstance(network.stages[0].blocks[0], Block)  # the network itself is as it was
    for size in ((64, 64), (75, 98), (97, 33)):  # maps of 16 x 16, 19 x 25 and 25 x 9
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        assert relative(form(x), network(x)) < 1e-13


@pytest.mark.parametrize(
    "options",
    [{"mlp_dwconv": [True, True, True, True]}, {"mixers": ["sa", "rasa", "rasa", "rasa"], "sr_ratios": [2, 4, 2, 1]}],
    ids=["convolution in the MLP", "other attention"],
)
def test_other_blocks_stay(options):
    form = BACKENDS["openvino"].in_form(small(**options))
    assert isinstance(form.stages[0].blocks, torch.nn.Sequential)


def test_the_form_shares_the_weights():
    network = small()
    own = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}
    blocks = BACKENDS["openvino"].in_form(network).stages[0].blocks
    new = [name for name, tensor in blocks.named_parameters() if tensor.untyped_storage().data_ptr() not in own]
    assert new == [f"blocks.{i}.mixer.logits.{name}" for i in range(2) for name in ("weight", "bias")]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, OUTLOOK], ids=["csa", "outlook"])
def test_one_graph_for_every_size(options):
    network = small(**options, depths=[1, 1, 1, 1]).float()
    blocks = network.stages[0].blocks
    form = BACKENDS["openvino"].in_form(network).stages[0].blocks
    program = trace(Graph(form), Shape(None, (12, 16), free_size=True, channels=16))
    graph = program.module(check_guards=False)  # the guards are left out of files
    for size in ((1, 1), (8, 10), (5, 8), (6, 7), (9, 9)):
        x = torch.randn(3, 16, *size)
        assert relative(graph(x), blocks(x)) < 2e-6


def test_pixels_beyond_an_odd_border_are_none():
    found = real_pixels(torch.zeros(1, 1, 3, 4), 2, 2).reshape(2, 2, 2, 2)  # odd row, odd column, row, column
    assert found[0].eq(1).all()
    assert found[1].eq(torch.tensor([[1, 1], [0, 0]])).all()
    found = real_pixels(torch.zeros(1, 1, 4, 3), 2, 2).reshape(2, 2, 2, 2)
    assert found[:, 0].eq(1).all()
    assert found[:, 1].eq(torch.tensor([[1, 0], [1, 0]])).all()
