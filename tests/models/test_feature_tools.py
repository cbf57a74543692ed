"""timm's `AttentionExtract` and torchvision's feature extraction on every family."""

import pytest
import torch
from timm.models._features_fx import get_graph_node_names, get_notrace_functions, get_notrace_modules
from timm.utils import AttentionExtract
from torchvision.models import feature_extraction

from network_helpers import NARROW, randomised, small

#: modules of a family's token mixers
MIXERS = {"pslt": "*.attn", "pale": "*.attn", "partialformer": "*.attn"}


@pytest.fixture(params=NARROW)
def family(request):
    return request.param


def network(family):
    torch.manual_seed(0)
    return randomised(small(family, **NARROW[family])).eval()


@pytest.mark.parametrize("method", ["fx", "hook"])
@torch.no_grad()
def test_attention_extract_gives_what_every_mixer_gives(family, method):
    model, images = network(family), torch.randn(1, 3, 64, 96)
    pattern = MIXERS.get(family, "*.mixer")
    seen = {}
    names = {name for name, _ in model.named_modules() if name.endswith(pattern[1:])}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in names
    ]
    scores = model(images)
    for handle in handles:
        handle.remove()
    assert len(seen) >= 2
    extract = AttentionExtract(model, names=[f"stages{pattern}"], method=method)
    found = extract(images)
    assert set(found) == {name for name in seen if name.startswith("stages")}
    assert all(torch.equal(found[name], seen[name]) for name in found)
    assert torch.equal(model(images), scores)  # left as it was


@torch.no_grad()
def test_torchvision_extracts_any_node_with_timms_leaves(family):
    model, images = network(family), torch.randn(1, 3, 96, 64)
    leaves = {"leaf_modules": [*get_notrace_modules()], "autowrap_functions": [*get_notrace_functions()]}
    _, nodes = feature_extraction.get_graph_node_names(model, tracer_kwargs=leaves)
    assert nodes == get_graph_node_names(model)[1]  # timm's own function passes them by itself
    last = max(node for node in nodes if node.startswith("stages.3.blocks.") and node.count(".") <= 4)
    extractor = feature_extraction.create_feature_extractor(
        model.train(), return_nodes={"stages.3": "last", last: "inner"}, tracer_kwargs=leaves
    ).eval()
    found = extractor(images)
    expected = model.eval().forward_intermediates(images, indices=[3], intermediates_only=True, norm=False)[0]
    torch.testing.assert_close(found["last"], expected)


def test_size_dependent_mixers_are_leaves_of_a_graph(family):
    """Without timm's list of leaves torch.fx meets branches on sizes; with it no node lies inside a mixer."""
    model = network(family)
    _, nodes = get_graph_node_names(model)
    marked = tuple(get_notrace_modules())
    leaves = [name for name, module in model.named_modules() if isinstance(module, marked)]
    outer = [name for name in leaves if not any(name.startswith(f"{other}.") for other in leaves)]
    assert outer
    assert not [node for node in nodes if any(node.startswith(f"{name}.") for name in outer)]
