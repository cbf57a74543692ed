"""Any backbone under any head: the papers' parameters, a step of training, odd images, and what a mistake gets."""

import json

import pytest
import torch
from torch import nn

from head_helpers import small_head
from vitrail.errors import UserError
from vitrail.factory import HEADS, Backbone, assemble, build_model
from vitrail.flops.parameters import count_parameters
from vitrail.flops.reported import PAPERS, read_rows
from vitrail.heads.resizing import padding_mask
from vitrail.models.partialformer import PartialAttention, foreground_count

ROWS = [
    pytest.param(row, id="-".join((row["family"], row["table"], row["row"], row["head"])).replace(" ", "_"))
    for family in PAPERS
    for row in read_rows(family)
    if row["head"] in HEADS and row["expected_params_m"]
]
FAMILIES = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0")
BASELINES = ("resnet18", "mobilenetv4_conv_small")
SHORT = {"depths": [1, 1, 1, 1]}


@pytest.mark.parametrize("row", ROWS)
def test_a_reported_row_has_its_parameters(row):
    with torch.device("meta"):
        model = assemble(
            row["model"], row["head"], json.loads(row["options"] or "{}"), json.loads(row["head_options"] or "{}")
        )
    rule = row["params_rule"] if row["params_rule"] == "no_tables" else "all"
    assert count_parameters(model, rule) / 1e6 == pytest.approx(float(row["expected_params_m"]), abs=1.01e-6)


def targets(size: tuple[int, int]) -> dict:
    masks = torch.zeros(2, *size, dtype=torch.uint8)
    masks[0, 4:40, 5:30] = masks[1, 10:60, 20:50] = 1
    boxes = torch.tensor([[5.0, 4.0, 30.0, 40.0], [20.0, 10.0, 50.0, 60.0]])
    semantic = torch.randint(0, 3, size)
    return {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "semantic": semantic}


def leaves(found) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    return [leaf for part in (found.values() if isinstance(found, dict) else found) for leaf in leaves(part)]


def step(model: nn.Module, head: str) -> torch.Tensor:
    """The loss of a batch of two odd images."""
    if not HEADS[head].detector:
        return sum(leaf.square().mean() for leaf in leaves(model.train()(torch.rand(2, 3, 71, 90))))
    sizes = [(71, 90), (83, 64)]
    return sum(model.train()([torch.rand(3, *size) for size in sizes], [targets(size) for size in sizes]).values())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", [*FAMILIES, *BASELINES])
def test_every_network_learns_under_every_head(model, head):
    torch.manual_seed(0)
    network = assemble(model, head, SHORT if model in FAMILIES else {}, small_head(head))
    loss = step(network, head)
    assert loss.isfinite()
    loss.backward()
    frozen = ["head.bn.bias"] if head == "bnneck" else []
    assert [name for name, p in network.named_parameters() if p.grad is None] == frozen
    with torch.no_grad():
        found = network.eval()([torch.rand(3, 45, 130)] if HEADS[head].detector else torch.rand(1, 3, 45, 130))
    assert all(leaf.isfinite().all() for leaf in leaves(found))


def test_norms_of_maps_that_no_one_reads_are_dropped():
    network = assemble("pale_tiny", "retinanet", {**SHORT, "out_norms": True}, small_head("retinanet"))
    norms = network.backbone.body.network.out_norms
    assert [isinstance(norm, nn.Identity) for norm in norms] == [True, False, False, False]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mat_1", "retina"), "retinanet"),
        (("mat_l", "retinanet"), "did you mean mat_"),
        (("volo_d0", "upernet"), r"strides \[8, 16, 16, 16\]"),
        (("mat_1", "segformer", {}, {"width": 3}), "no option 'width'; it has num_classes, channels"),
        (("mat_1", "retinanet", {}, {"p6": "none"}), "p6='none'"),
        (("mat_1", "sparse_rcnn", {}, {"channels": 12}), "num_heads=8 must divide channels=12"),
    ],
)
def test_a_mistake_is_named(arguments, says):
    with pytest.raises(UserError, match=says), torch.device("meta"):
        assemble(*arguments)


def test_a_network_without_maps_is_named():
    with pytest.raises(UserError, match="Linear gives no maps at several scales"):
        Backbone(nn.Linear(1, 1))


def test_maps_are_those_of_the_network():
    torch.manual_seed(0)
    network = build_model("resnet18", {}, 0).eval()
    x = torch.rand(1, 3, 70, 95)
    with torch.no_grad():
        expected = network.forward_intermediates(x, intermediates_only=True)[1:]
        backbone = Backbone(network).eval()
        for own, other in zip(backbone(x), expected, strict=True):
            torch.testing.assert_close(own, other)
    assert backbone.widths == [64, 128, 256, 512]
    assert [tuple(m.shape[2:]) for m in backbone(x)] == [(-(-70 // s), -(-95 // s)) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("head", ["semantic_fpn", "retinanet", "segformer"])
def test_a_network_of_one_size_sees_images_of_any(head):
    torch.manual_seed(0)
    model = assemble("swin_tiny_patch4_window7_224", head, {"depths": [1, 1, 1, 1]}, small_head(head))
    assert model.training
    step(model, head).backward()
    backbone = next(m for m in model.modules() if isinstance(m, Backbone)).eval()
    for size in ((64, 96), (33, 250), (224, 224)):
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            maps = backbone(x)
        assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-n // s) for n in size) for s in (4, 8, 16, 32)]
    with torch.no_grad():  # at its own size nothing changes
        own = backbone.network.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, own, strict=True))


@pytest.mark.parametrize("name", ["hiera_tiny_224", "coatnet_pico_rw_224", "mvitv2_tiny"])
def test_a_network_that_takes_one_size_only_is_named(name):
    with pytest.raises(UserError, match="takes images of one size only, and under a head sizes vary"):
        assemble(name, "semantic_fpn")


def test_a_wrong_option_of_a_network_of_one_size_is_named():
    with pytest.raises(UserError, match="depht"):
        assemble("swin_tiny_patch4_window7_224", "semantic_fpn", {"depht": 1})


# ---- padding of a detector's batch ---------------------------------------------------------------------------------

PADDED = ("retinanet", "mask_rcnn", "sparse_rcnn", "panoptic_fpn")
NARROW = {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4]}


def attention_of(model: nn.Module, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """What every block's partial attention chose in a forward pass of a detector that only measures."""
    found: list[dict[str, torch.Tensor]] = []
    handles = [
        module.register_forward_hook(lambda attn, inputs, _: found.append(attn.attention_maps(*inputs)))
        for module in model.modules()
        if isinstance(module, PartialAttention)
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("head", PADDED)
def test_padding_of_a_batch_is_never_foreground(head):
    torch.manual_seed(0)
    options = {**NARROW, "foreground_ratios": [[1, 2]] * 4}
    model = assemble("partialformer_b0", head, options, small_head(head))
    images = [torch.rand(3, 60, 90), torch.rand(3, 90, 60), torch.rand(3, 64, 64), torch.rand(3, 4, 200)]
    sizes = model.transform(images)[0].image_sizes
    found = attention_of(model, images)
    strides = (4, 8, 16, 16, 32)
    if head == "retinanet":
        assert len(found) == len(strides)
    for maps, stride in zip(found, strides, strict=True):
        width = -(-96 // stride)
        for index, surplus, (h, w) in zip(maps["index"], maps["surplus"], sizes, strict=True):
            chosen = index[~surplus]
            inside = (chosen // width < -(-h // stride)) & (chosen % width < -(-w // stride))
            assert inside.all()
            tokens = -(-h // stride) * -(-w // stride)
            assert len(chosen) == foreground_count(tokens, 1, 2)  # as many as of the image alone


@pytest.mark.parametrize("head", PADDED)
def test_training_with_padding_is_finite(head):
    torch.manual_seed(0)
    model = assemble("partialformer_b0", head, {**NARROW, "foreground_ratios": [[1, 1]] * 4}, small_head(head)).train()
    sizes = [(20, 300), (83, 64)]  # one image is a narrow band
    losses = model([torch.rand(3, *size) for size in sizes], [within(targets((64, 64)), size) for size in sizes])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def within(target: dict, size: tuple[int, int]) -> dict:
    """A target for an image of another size, with one box."""
    masks = torch.zeros(1, *size, dtype=torch.uint8)
    masks[0, 4:18, 5:30] = 1
    boxes = torch.tensor([[5.0, 4.0, 30.0, 18.0]])
    return {**target, "boxes": boxes, "labels": torch.tensor([1]), "masks": masks, "semantic": torch.zeros(size).long()}


def test_the_mask_follows_the_sizes_of_the_images():
    model = assemble("partialformer_b0", "retinanet", NARROW, small_head("retinanet"))
    model.transform.eval()
    one, batch = (
        model.transform([torch.rand(3, *size) for size in sizes])[0] for sizes in ([(64, 96)], [(64, 96), (64, 65)])
    )
    assert padding_mask(one.tensors) is None  # of 64 x 96 pixels, nothing is padding
    mask = padding_mask(batch.tensors)
    assert mask.shape == (2, 64, 96)
    expected = torch.zeros(2, 64, 96, dtype=torch.bool)
    expected[1, :, 65:] = True
    assert torch.equal(mask, expected)
    assert padding_mask(torch.rand(2, 3, 64, 96)) is None


def test_a_batch_in_parts_has_the_padding_of_the_whole():
    model = assemble("partialformer_b0", "retinanet", NARROW, small_head("retinanet")).train()
    target = {"boxes": torch.tensor([[5.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1])}
    images = model.transform([torch.rand(3, 64, 64)], [{**target, "short_side": 64, "padded": (96, 128)}])[0]
    mask = padding_mask(images.tensors)
    assert mask.shape == (1, 96, 128)
    assert not mask[0, :64, :64].any()
    assert int(mask.sum()) == 96 * 128 - 64 * 64


def test_only_networks_that_know_padding_are_told():
    told = {
        name: assemble(name, "retinanet", {}, small_head("retinanet")).backbone.body.takes_padding
        for name in (*FAMILIES, *BASELINES)
    }
    assert [name for name, takes in told.items() if takes] == ["partialformer_b0"]


def test_without_sizes_the_maps_are_those_of_the_network_alone():
    torch.manual_seed(0)
    network = build_model("partialformer_b0", NARROW, 0).eval()
    x = torch.rand(2, 3, 70, 96)
    with torch.no_grad():
        expected = network.forward_intermediates(x, intermediates_only=True)
        found = Backbone(network).eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
