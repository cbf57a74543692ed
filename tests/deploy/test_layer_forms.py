"""Export forms of shared layers: norms on tokens, attention as products and a softmax."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame, LayerNorm2d
from torch import nn
from torch.nn import functional as F

from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.forms.layers import HalvingConv, TokenLayerNorm, halving_conv, token_layer_norm
from vitrail.deploy.export.trace import Graph, Shape, explicit_attention

SMALL = st.integers(1, 6)


@settings(max_examples=20, deadline=None)
@given(SMALL, SMALL, st.integers(1, 9), st.integers(1, 9))
def test_a_norm_on_tokens_is_the_norm_of_the_map(batch, channels, height, width):
    norm = LayerNorm2d(channels, eps=1e-3).requires_grad_(False)
    norm.weight.copy_(torch.randn(channels))
    norm.bias.copy_(torch.randn(channels))
    x = torch.randn(batch, channels, height, width)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (channels,), norm.weight, norm.bias, 1e-3).permute(0, 3, 1, 2)
    torch.testing.assert_close(token_layer_norm(norm)(x), expected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([3, 5, 7]), st.sampled_from([3, 5]), st.integers(1, 12), st.integers(1, 12))
def test_a_halving_convolution_pads_as_timm_does(high, wide, height, width):
    conv = Conv2dSame(4, 6, (high, wide), stride=2, groups=2)
    form, x = halving_conv(conv), torch.randn(2, 4, height, width)
    assert type(form) is HalvingConv
    assert torch.equal(form(x), conv(x))


@pytest.mark.parametrize("options", [{"kernel_size": 2, "stride": 2}, {"stride": 3}, {"stride": 2, "dilation": 2}, {}])
def test_other_convolutions_stay_as_they_are(options):
    conv = Conv2dSame(1, 1, **{"kernel_size": 3, **options})
    assert halving_conv(conv) is conv


@settings(max_examples=40, deadline=None)
@given(SMALL, SMALL, SMALL, st.sampled_from(["none", "added", "excluded"]), st.sampled_from([None, 0.3]))
def test_explicit_attention_is_the_fused_operator(heads, queries, keys, masked, scale):
    q, k, v = torch.randn(2, heads, queries, 4), torch.randn(2, heads, keys, 4), torch.randn(2, heads, keys, 5)
    mask = None
    if masked == "added":
        mask = torch.randn(heads, queries, keys).masked_fill(torch.rand(heads, queries, keys) < 0.3, -torch.inf)
        mask[..., 0] = 0  # every query attends to a key
    elif masked == "excluded":
        mask = torch.rand(2, 1, queries, keys) < 0.5
        mask[..., 0] = True
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), _double(mask), scale=scale)
    found = explicit_attention(q, k, v, mask, scale=scale)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def _double(mask):
    return mask.double() if mask is not None and mask.dtype == torch.float32 else mask


def test_a_query_without_keys_gets_finite_numbers():
    q, k, v = torch.randn(3, 1, 2, 4).unbind()
    assert explicit_attention(q, k, v, torch.zeros(2, 2, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"dropout_p": 0.1}, {"enable_gqa": True}])
def test_other_attention_stays_with_the_exporter(options):
    q = torch.randn(1, 2, 3, 4)
    assert explicit_attention(q, q, q, **options) is NotImplemented


class Attends(nn.Module):
    """A norm and attention over the columns of a map."""

    def __init__(self):
        super().__init__()
        self.norm = LayerNorm2d(3)

    def forward(self, images):
        x = self.norm(images)
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(("format", "explicit"), [("openvino", True), ("onnx", False), ("torch_export", False)])
def test_only_openvino_gets_norms_on_tokens_and_explicit_attention(format, explicit):
    backend, network = BACKENDS[format], Attends().eval()
    form = backend.in_form(network)
    assert (type(form.norm) is TokenLayerNorm) == explicit
    assert type(network.norm) is LayerNorm2d
    program = backend.trace(Graph(form), Shape(None, (6, 8), free_size=True))
    names = {str(node.target) for node in program.graph.nodes}
    assert ("aten.scaled_dot_product_attention.default" in names) != explicit
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(program.module(check_guards=False)(x), network(x), rtol=1e-5, atol=1e-6)
