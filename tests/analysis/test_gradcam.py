"""Class activation maps against an independent computation."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import vitrail  # noqa: F401  (registers our networks)
from dense_helpers import CASES, MASKS
from vitrail.analysis.gradcam import ONE_PLACE, _enlarged, _Padding, default_layer, gradcam
from vitrail.analysis.scores import box_score
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import set_meta
from vitrail.errors import UserError
from vitrail.factory import assemble

PIXELS = ("semantic_fpn", *CASES["semantic_fpn"][:2])
HEAT = ("simple_baseline", *CASES["simple_baseline"][:2])

LAYERS = {
    "emsnet_xxtiny": "stages.3",
    "lvt": "stages.3",
    "pslt_tiny": "stages.3",
    "mat_1": "stages.3",
    "resnet34": "layer4",
    "pvt_v2_b1": "stages.3",
    "poolformer_s12": "stages.3",
    "mobilenetv2_050": "blocks.6.0",
}


def made(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5, **options).eval()
    for module in network.modules():  # statistics of a trained network are not those of a fresh one
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    return network


def independent(network, images, name, classes, score=lambda output, i, c: output[i, c]):
    """Grad-CAM with the layer's output as a leaf: the rest of the network is run on it again."""
    kept = {}
    module = network.get_submodule(name)
    handle = module.register_forward_hook(lambda m, i, o: kept.update(output=o.detach().clone()))
    network(images)
    handle.remove()
    leaf = kept["output"].requires_grad_()
    handle = module.register_forward_hook(lambda m, i, o: leaf * 1)
    logits = network(images)
    handle.remove()
    maps = []
    for i, c in enumerate(classes):
        slope = torch.autograd.grad(score(logits, i, c), leaf, retain_graph=True)[0][i]
        maps.append(sum(slope[k].mean() * leaf[i, k] for k in range(len(slope))).clamp(min=0))
    return torch.stack(maps).detach()


@pytest.mark.parametrize("name", LAYERS)
def test_equals_an_independent_computation(name):
    network, images = made(name), torch.randn(2, 3, 64, 64)
    assert default_layer(network) == LAYERS[name]
    found = gradcam(network, images, target=[3, 1])
    wanted = independent(network, images, LAYERS[name], [3, 1])
    assert found.arrays["map"].values.shape == (2, 2, 2)
    np.testing.assert_allclose(found.arrays["map"].values, wanted, atol=1e-5 * wanted.abs().max() + 1e-12)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_likeliest_class_is_the_default_and_logits_count():
    network, images = made("mat_1"), torch.randn(3, 3, 64, 64)
    logits = network(images)
    found = gradcam(network, images)
    assert found.about["classes"] == logits.argmax(1).tolist()
    np.testing.assert_allclose(found.arrays["logit"].values, logits.amax(1).detach(), rtol=1e-5)
    np.testing.assert_allclose(found.arrays["probability"].values, logits.softmax(1).amax(1).detach(), rtol=1e-5)
    assert found.enlarged.shape == (3, 64, 64)
    peaks = found.enlarged.max((1, 2))
    assert all(peak == pytest.approx(1) or peak == 0 for peak in peaks)


def test_any_layer_of_a_column_of_tokens():
    network, images = made("deit_tiny_patch16_224", img_size=64), torch.randn(1, 3, 64, 64)
    assert default_layer(network) == "blocks.10"
    assert gradcam(network, images).arrays["map"].values.shape == (1, 4, 4)
    # the last block's patches reach no logit
    assert not gradcam(network, images, layer="blocks.11").arrays["map"].values.any()
    found = gradcam(network, images, layer="blocks.11")
    assert "nothing does in the maps of 0" in found.summary()
    assert gradcam(network, images, layer="blocks.3.norm1").arrays["map"].values.any()


def test_maps_of_layers_whose_output_is_overwritten():
    """A normalisation before an activation in place: its own output counts, not what the activation leaves of it."""
    network, images = made("resnet34"), torch.randn(1, 3, 64, 64)
    wanted = {}
    for inplace in (True, False):
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        wanted[inplace] = gradcam(network, images, layer="layer2.0.bn1", target=0).arrays["map"].values
    np.testing.assert_allclose(wanted[True], wanted[False])


def test_a_frozen_network_and_one_in_training_mode():
    network, images = made("mat_1").requires_grad_(False), torch.randn(1, 3, 64, 64)
    wanted = gradcam(network, images).arrays["map"].values
    with torch.no_grad():
        found = gradcam(network.train(), images).arrays["map"].values
    np.testing.assert_allclose(found, wanted)
    assert network.training


def test_plot_and_plain_values():
    import json

    found = gradcam(made("mat_1"), torch.randn(2, 3, 64, 64))
    assert len(found.plot().getcolors(2**20)) > 100
    told = json.loads(json.dumps(found.to_dict()))
    assert told["about"]["model"] == "mat_1"
    assert told["map"]["axes"] == ["image", "y", "x"]


def test_mistakes():
    network, images = made("mat_1"), torch.randn(2, 3, 64, 64)
    for options, sentence in (
        ({"layer": "stages.33"}, r"stages\.3"),
        ({"layer": "head"}, "gives no map"),
        ({"target": 5}, "0 to 4"),
        ({"target": [1]}, "one for each"),
    ):
        with pytest.raises(UserError, match=sentence):
            gradcam(network, images, **options)
    with pytest.raises(UserError, match="no logits"):
        gradcam(timm.create_model("mat_1", num_classes=0, global_pool="").eval(), images)


def test_a_map_of_a_single_place_is_said():
    network = timm.create_model("emsnet_xxtiny", num_classes=3).eval()
    images = torch.randn(1, 3, 32, 32)
    assert ONE_PLACE in gradcam(network, images).summary()
    assert ONE_PLACE not in gradcam(network, images, layer="stages.2").summary()


# ---- networks with a head ------------------------------------------------------------------------------------------


def with_head(head: str, task: str, options: dict) -> nn.Module:
    torch.manual_seed(0)
    network = assemble("mat_1", head, {"depths": [1, 1, 1, 1]}, options).eval()
    meta = WeightsMeta("mat_1", {"depths": [1, 1, 1, 1]}, head=head, head_options=options, task=task)
    meta.classes = ["a", "b", "c"]
    return set_meta(network, meta)


INNER = "backbone.network.stages.2"


def test_pixels_of_a_class_speak_by_the_sum_of_their_logits():
    network, images = with_head(*PIXELS), torch.randn(2, 3, 64, 96)
    found = network(images).argmax(1)
    most = [int(one.flatten().bincount(minlength=3).argmax()) for one in found]

    def score(output, i, c):
        inside = output[i].argmax(0) == c
        return (output[i, c] * inside).sum() if inside.any() else output[i, c].sum()

    told = gradcam(network, images, layer="stages.2")
    assert told.about["classes"] == most
    assert told.about["layer"] == "stages.2"
    assert "of the pixels" in told.summary()
    shares = [(one == c).float().mean().item() for one, c in zip(found, most, strict=True)]
    assert told.arrays["probability"].values.tolist() == pytest.approx(shares)
    for target in (0, 1, 2):
        told = gradcam(network, images, layer="stages.2", target=target)
        wanted = independent(network, images, INNER, [target] * 2, score)
        np.testing.assert_allclose(told.arrays["map"].values, wanted, atol=1e-5 * wanted.abs().max() + 1e-12)
        assert told.enlarged.shape == (2, 64, 96)
    whole = gradcam(network, images, layer=INNER, target=2)  # the name in the whole network
    np.testing.assert_array_equal(whole.arrays["map"].values, told.arrays["map"].values)
    assert gradcam(network, images).about["layer"] == "stages.3"
    with pytest.raises(UserError, match=r"did you mean stages\.2"):
        gradcam(network, images, layer="stage.2")


def test_a_keypoint_speaks_by_its_highest_heat():
    network, images = with_head(*HEAT), torch.randn(2, 3, 64, 64)
    told = gradcam(network, images, layer="stages.2", target=1)
    wanted = independent(network, images, INNER, [1, 1], lambda output, i, c: output[i, c].max())
    np.testing.assert_allclose(told.arrays["map"].values, wanted, atol=1e-5 * wanted.abs().max() + 1e-12)


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "ssdlite"])
def test_a_class_of_boxes_speaks_by_its_surest_box(head):
    task, options = MASKS[1:] if head == "mask_rcnn" else CASES[head][:2]
    network, images = with_head(head, task, options), torch.rand(2, 3, 60, 90)
    before = {key: vars(module).get("score_thresh") for key, module in network.named_modules()}
    told = gradcam(network, images, layer="stages.2")
    assert before == {key: vars(module).get("score_thresh") for key, module in network.named_modules()}
    assert told.enlarged.shape == (2, 60, 90)
    assert told.arrays["map"].values.any()
    assert told.arrays["probability"].values == pytest.approx(torch.sigmoid(torch.tensor(told.arrays["logit"].values)))
    target = told.about["classes"]
    again = gradcam(network, images, layer="stages.2", target=target)
    np.testing.assert_allclose(again.arrays["map"].values, told.arrays["map"].values)


def test_the_surest_box_and_its_class():
    found = [{"labels": torch.tensor([1, 2, 2]), "scores": torch.tensor([0.6, 0.7, 0.9])}]
    one = box_score(found, None, 1, labels=(1, 3))
    assert (one.classes.tolist(), one.shares.tolist()) == ([1], pytest.approx([0.9]))
    assert one.values.tolist() == pytest.approx([np.log(9)], abs=1e-5)
    assert box_score(found, 0, 1, labels=(1, 3)).shares.tolist() == pytest.approx([0.6])
    with pytest.raises(UserError, match="no box of class 2"):
        box_score(found, 2, 1, labels=(1, 3))
    with pytest.raises(UserError, match="0 to 2"):
        box_score(found, 3, 1, labels=(1, 3))


def test_what_a_detector_pads_is_cut_off():
    """A map over the padded input, of which the image is the upper left part."""
    network = with_head("retinanet", "detection", {**CASES["retinanet"][1], "min_size": [64], "max_size": 96})
    padding = _Padding((32, 40))
    with padding.seen(network), torch.inference_mode():
        network([torch.rand(3, 32, 40)])
    assert (padding.resized, padding.padded) == ((64, 80), (64, 96))
    maps = torch.zeros(1, 64, 96)
    maps[:, :, :80] = torch.arange(80.0)
    large = _enlarged(maps, padding)
    assert large.shape == (1, 32, 40)
    assert torch.allclose(large[0, 5] * large.max() * 78.5, 2 * torch.arange(40.0) + 0.5, atol=0.5)


def test_an_embedding_has_no_class():
    network = with_head("bnneck", *CASES["bnneck"][:2])
    with pytest.raises(UserError, match="network for reid"):
        gradcam(network, torch.randn(1, 3, 64, 64))
