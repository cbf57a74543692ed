"""The export form of EMSNet's spreading of tokens computes what the layer computes."""

import pytest
import torch

from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.forms.emsnet import ShuffledPropagate, shuffled_propagate
from vitrail.deploy.export.trace import Graph, Shape, trace
from vitrail.models.emsnet import Propagate, StaticTokens


def spreading(dim, out_dim, patch_size):
    layer = Propagate(dim, out_dim, patch_size).double()
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_()
    return layer


@torch.no_grad()
@pytest.mark.parametrize(("dim", "out_dim", "patch_size"), [(6, 3, 2), (4, 4, 6), (12, 3, 4), (2, 1, 1)])
def test_the_form_gives_the_same_map(dim, out_dim, patch_size):
    torch.manual_seed(dim)
    layer = spreading(dim, out_dim, patch_size)
    form = shuffled_propagate(layer)
    assert [t.data_ptr() for t in form.parameters()] == [t.data_ptr() for t in layer.parameters()]
    x = torch.randn(2, dim, 3, 5, dtype=torch.float64)
    for height, width in ((3 * patch_size, 5 * patch_size), (2 * patch_size + 1, 4 * patch_size + 1)):
        found = form(x, height, width)
        assert found.shape == (2, out_dim, height, width)
        torch.testing.assert_close(found, layer(x, height, width), rtol=1e-13, atol=1e-13)


@torch.no_grad()
def test_one_graph_for_every_size():
    torch.manual_seed(0)
    tokens = StaticTokens(4, patch_size=4, expand=2, kernel=3).eval()
    form = BACKENDS["openvino"].in_form(tokens)
    assert type(form.prop) is ShuffledPropagate
    graph = trace(Graph(form), Shape(None, (12, 16), free_size=True, channels=4)).module(check_guards=False)
    for size in ((16, 12), (5, 9), (3, 2)):
        x = torch.randn(3, 4, *size)
        torch.testing.assert_close(graph(x), tokens(x), rtol=1e-5, atol=1e-6)
