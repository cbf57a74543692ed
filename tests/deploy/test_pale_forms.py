"""The export form of Pale's attention computes what the attention computes."""

import pytest
import torch

from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.forms.pale import (
    GroupedPaleAttention,
    TokenPaleBlock,
    grouped_pale_attention,
    token_pale_block,
)
from vitrail.deploy.export.trace import Graph, Shape, trace
from vitrail.factory import build_model
from vitrail.models.pale import MIXERS, PaleAttention, PaleBlock

FORMED = tuple(mixer for mixer in MIXERS if mixer != "vanilla")


def attention_of(mixer, **options):
    torch.manual_seed(0)
    attn = PaleAttention(16, 4, mixer, (7, 5), **options).eval()
    with torch.no_grad():
        for tensor in (*attn.parameters(), *attn.buffers()):
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand_like(tensor))
    return attn


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("mixer", FORMED)
@pytest.mark.parametrize(
    "options", [{}, {"pad_mode": "paper"}, {"mask_padding": False}], ids=["tight", "paper", "unmasked"]
)
def test_the_form_gives_the_same_map(mixer, block, options):
    attn = attention_of(mixer, block=block, **options).double()
    form = grouped_pale_attention(attn)
    assert type(form) is GroupedPaleAttention
    assert [t.data_ptr() for t in form.parameters()] == [t.data_ptr() for t in attn.parameters()]
    for size in ((14, 10), (7, 5), (3, 4), (16, 19)):  # whole groups, one group, less than one, unequal groups
        x = torch.randn(2, 16, *size, dtype=torch.float64)
        assert relative(form(x), attn(x)) < 1e-13


@torch.no_grad()
@pytest.mark.parametrize("mixer", FORMED)
def test_one_graph_for_every_size(mixer):
    attn = attention_of(mixer)
    program = trace(Graph(grouped_pale_attention(attn)), Shape(None, (28, 20), free_size=True, channels=16))
    graph = program.module(check_guards=False)  # the guards are left out of files
    for size in ((28, 20), (16, 19), (7, 5), (3, 1)):
        x = torch.randn(3, 16, *size)
        assert relative(graph(x), attn(x)) < 2e-6


@torch.no_grad()
def test_every_map_is_copied_once():
    """q, k and v channels last, two halves of each into groups, two results back, channels first again."""
    network = build_model("pale_tiny", {"embed_dims": [16] * 4, "depths": [1] * 4, "num_heads": [2] * 4}, 5).eval()
    form = BACKENDS["onnx"].in_form(network).stages[0].blocks[0].attn
    assert type(form) is GroupedPaleAttention
    program = trace(Graph(form), Shape(1, (14, 14), channels=16))
    permutations = [node for node in program.graph.nodes if "permute" in str(node.target)]
    assert len(permutations) == 12


def test_whole_pales_stay():
    attn = attention_of("vanilla")
    assert grouped_pale_attention(attn) is attn


@torch.no_grad()
@pytest.mark.parametrize("cpe_kernel", [3, 5])
def test_a_block_with_shortcuts_of_tokens_gives_the_same_map(cpe_kernel):
    torch.manual_seed(0)
    block = PaleBlock(16, 4, 2.0, cpe_kernel, 0.1, {"mixer": "parallel", "pale_size": (7, 5)}).eval()
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.3 * torch.rand_like(tensor))
    block = block.double()
    form = token_pale_block(block)
    for size in ((14, 10), (3, 4), (16, 19)):
        x = torch.randn(2, 16, *size, dtype=torch.float64)
        assert relative(form(x), block(x)) < 1e-13


def test_only_openvino_has_shortcuts_of_tokens():
    network = build_model("pale_tiny", {"embed_dims": [16] * 4, "depths": [1] * 4, "num_heads": [2] * 4}, 5).eval()
    for format, kind in (("openvino", TokenPaleBlock), ("onnx", PaleBlock)):
        assert {type(block) for stage in BACKENDS[format].in_form(network).stages for block in stage.blocks} == {kind}
