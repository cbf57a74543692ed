"""timm's contract where only its users call it: parameter groups, what the heads read, what a network must define."""

import copy

import pytest
import torch
from property_helpers import assert_same, network, random_map
from timm.models import checkpoint_seq, group_parameters
from torch import nn

from network_helpers import small
from vitrail.models import FAMILIES
from vitrail.models.pyramid import Pyramid


def grouped(model: nn.Module, layers: list[tuple[str, ...]]) -> list[list[str]]:
    """Parameter names by the layer whose beginnings of names they have, and those of no layer last."""
    names = [name for name, _ in model.named_parameters()]
    groups = [sorted(name for name in names if name.startswith(layer)) for layer in layers]
    return [*groups, sorted(set(names).difference(*groups))]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_groups_follow_the_order_of_the_layers(family):
    model = network(family, out_norms=True)
    fine: list[tuple[str, ...]] = [("stem.",)]
    for i, stage in enumerate(model.stages):
        blocks = [(f"stages.{i}.blocks.{j}.",) for j in range(len(stage.blocks))]
        fine += [(f"stages.{i}.downsample.", *(blocks[0] if blocks else ())), *blocks[1:]]
        if any(True for _ in stage.norm.parameters()):
            fine.append((f"stages.{i}.norm.",))
    fine[-1] += ("norm.", "out_norms.")
    coarse = [("stem.",), *((f"stages.{i}.",) for i in range(4))]
    for layers, is_coarse in ((fine, False), (coarse, True)):
        groups = group_parameters(model, model.group_matcher(coarse=is_coarse))
        assert [sorted(groups[i]) for i in sorted(groups)] == grouped(model, layers)


@pytest.mark.parametrize("family", ["pslt", "emsnet"])
def test_the_classifier_is_the_layer_behind_the_pooled_map(family):
    model, x = network(family), random_map(0, 65, 47, dim=3)
    pooled = model.norm(model.stages(model.stem(x))).mean((2, 3))
    assert_same(model.forward_head(model.forward_features(x), pre_logits=True), pooled)
    assert_same(model(x), model.get_classifier()(pooled))


@pytest.mark.parametrize("family", ["lvt", "volo"])
def test_class_token_or_pooled_map_is_what_the_class_head_reads(family):
    x = random_map(0, 64, 80, dim=3)
    for class_attention in (True, False):
        model = network(family, class_attention=class_attention)
        features = model.stages(model.stem(x))
        if class_attention:
            read, tokens = model.post(features)
        else:
            features = model.norm(features)
            read, tokens = features.mean((2, 3)), features.flatten(2).transpose(1, 2)
        assert_same(model.forward_head(model.forward_features(x), pre_logits=True), read)
        assert_same(model(x), model.head(read) + 0.5 * model.aux_head(tokens).max(1).values)


def test_a_network_must_say_how_it_is_initialised():
    class Silent(Pyramid):
        def __init__(self):
            super().__init__((8, 8, 8, 8), 5, 3, "avg", 0.0)
            self.stem, self.stages = nn.Identity(), nn.Sequential()
            self.finish(None, "avg")

    with pytest.raises(TypeError, match=r"abstract .*Silent.*init_module"):
        Silent()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_new_classifier_leaves_what_it_reads(family):
    model, x = copy.deepcopy(network(family)), random_map(0, 33, 47, dim=3)
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert_same(model.forward_head(model.forward_features(x), pre_logits=True), before)


# ---- what a network says of itself holds for the maps alone ---------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_features_only_spares_and_groups_what_the_network_does(family):
    inside, wrapped = small(family, num_classes=0, out_norms=True), small(family, features_only=True, out_norms=True)
    names = {name for name, _ in wrapped.named_parameters()}
    assert wrapped.no_weight_decay() == {f"model.{name}" for name in inside.no_weight_decay()} & names
    for coarse in (False, True):
        own = group_parameters(inside, inside.group_matcher(coarse=coarse), reverse=True)
        found = group_parameters(wrapped, wrapped.group_matcher(coarse=coarse), reverse=True)
        assert found.keys() == names
        last = max(own.values())  # classifiers and what else no pattern names
        shared = {name for name in found if own[name.removeprefix("model.")] < last}
        assert shared
        assert all(found[name] == own[name.removeprefix("model.")] for name in shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_only_recomputes_blocks_in_backward(family, monkeypatch):
    model = small(family, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)

    def gradients():
        model.zero_grad()
        sum(fmap.square().mean() for fmap in model(x)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, calls = gradients(), []
    for module in ("pyramid", "partialformer"):
        monkeypatch.setattr(
            f"vitrail.models.{module}.checkpoint_seq", lambda blocks, x: calls.append(1) or checkpoint_seq(blocks, x)
        )
    model.set_grad_checkpointing(True)
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(calls) == len(model.model.stages)
    model.set_grad_checkpointing(False)
    gradients()
    assert len(calls) == len(model.model.stages)
