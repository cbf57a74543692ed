"""Export forms of MAT: the same values as the module's own, whatever its options and the size of the map."""

from itertools import product

import pytest
import torch
from export_helpers import SUFFIX, weights_of
from torch import nn

from vitrail.checkpoint.load import open_network
from vitrail.config.export import ExportOptions
from vitrail.deploy import export_network
from vitrail.deploy.export.forms.mat import affine, composed, window_order
from vitrail.deploy.export.trace import Graph, Shape, trace
from vitrail.models.mat import MatAttention

MERGES = ("query", "qkv", "project")


def random_attention(**options) -> MatAttention:
    """An attention of two heads of width 4 in windows of 3, all weights and biases random, in float64."""
    attn = MatAttention(8, 2, window_size=3, dtype=torch.float64, **options).eval()
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attn


@pytest.mark.parametrize(("merge", "pad", "masked"), [*product(MERGES, ("tight", "paper"), (True, False))])
def test_window_order_changes_no_value(merge, pad, masked):
    attn = random_attention(token_merge=merge, pad_mode=pad, mask_padding=masked)
    form = window_order(attn)
    for size in ((6, 9), (7, 5), (3, 3), (2, 3), (1, 1), (3, 4)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        torch.testing.assert_close(form(x), attn(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pad", ["tight", "paper"])
def test_window_order_with_a_free_size(pad):
    network = nn.Sequential(nn.Conv2d(3, 8, 1), random_attention(pad_mode=pad).float())
    form = nn.Sequential(network[0], window_order(network[1]))
    program = trace(Graph(form), Shape(None, (9, 9), free_size=True))
    for size in ((6, 9), (7, 5), (2, 3)):
        x = torch.randn(3, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(program.module(check_guards=False)(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("format", "dynamic", "side"), [("onnx", "batch", 64), ("openvino", "none", 224)])
def test_a_network_in_its_forms_agrees_with_pytorch(format, dynamic, side, tmp_path):
    options = ExportOptions(format, str(tmp_path / f"a{SUFFIX[format]}"), dynamic=dynamic, image_size=side)
    made = export_network(weights_of("mat_1", tmp_path), options)
    assert max(check.relative for check in made.checks) < 2e-6
    weights = sum(parameter.numel() for parameter in open_network(str(tmp_path / "mat_1.safetensors")).parameters())
    assert made.megabytes < 4.1e-6 * weights + 0.5  # none is there twice


def test_layers_in_a_row_are_one():
    layers = [nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 6)]
    one = composed(*(affine(layer) for layer in layers))
    x = torch.randn(4, 5)
    with torch.no_grad():
        torch.testing.assert_close(one(x), nn.Sequential(*layers)(x), rtol=1e-5, atol=1e-6)
