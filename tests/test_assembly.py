"""Any backbone under any head: the papers' parameters, a step of training, odd pictures, and what a mistake gets."""

import json

import pytest
import torch
from torch import nn

from vitrail.assembly import HEADS, Backbone, assemble
from vitrail.bench.parameters import count_parameters
from vitrail.bench.reproduce import PAPERS, read_rows
from vitrail.errors import UserError
from vitrail.weights import build_model

ROWS = [
    pytest.param(row, id="-".join((row["family"], row["table"], row["row"], row["head"])).replace(" ", "_"))
    for family in PAPERS
    for row in read_rows(family)
    if row["head"] in HEADS and row["expected_params_m"]
]
FAMILIES = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xxtiny", "mat_1", "partialformer_b0")
PEERS = ("resnet18", "mobilenetv4_conv_small")
SHORT = {"depths": [1, 1, 1, 1]}
DETECTOR = {"min_size": 64, "max_size": 96}
SMALL = {
    "retinanet": {"num_classes": 3, "channels": 16, **DETECTOR},
    "mask_rcnn": {"num_classes": 3, "channels": 16, "fc_channels": 16, **DETECTOR},
    "sparse_rcnn": {"num_classes": 3, "num_proposals": 5, "num_stages": 2, "channels": 16, **DETECTOR},
    "ssdlite": {"num_classes": 3, "extra_channels": [12, 8, 8, 8], "image_size": [96, 64]},
    "panoptic_fpn": {"num_things": 3, "num_stuff": 2, "channels": 16, "semantic_channels": 12, **DETECTOR},
    "semantic_fpn": {"num_classes": 3, "channels": 8, "fpn_channels": 8},
    "upernet": {"num_classes": 3, "channels": 8, "aux_channels": 8},
    "segformer": {"num_classes": 3, "channels": 8},
    "simple_baseline": {"num_joints": 3, "deconv_channels": 8},
    "bnneck": {"num_ids": 3},
}


@pytest.mark.parametrize("row", ROWS)
def test_a_printed_row_has_its_parameters(row):
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
    """The loss of a batch of two odd pictures."""
    if not HEADS[head].whole:
        return sum(leaf.square().mean() for leaf in leaves(model.train()(torch.rand(2, 3, 71, 90))))
    sizes = [(71, 90), (83, 64)]
    return sum(model.train()([torch.rand(3, *size) for size in sizes], [targets(size) for size in sizes]).values())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model", [*FAMILIES, *PEERS])
def test_every_network_learns_under_every_head(model, head):
    torch.manual_seed(0)
    network = assemble(model, head, SHORT if model in FAMILIES else {}, SMALL[head])
    loss = step(network, head)
    assert loss.isfinite()
    loss.backward()
    frozen = ["head.bn.bias"] if head == "bnneck" else []
    assert [name for name, p in network.named_parameters() if p.grad is None] == frozen
    with torch.no_grad():
        found = network.eval()([torch.rand(3, 45, 130)] if HEADS[head].whole else torch.rand(1, 3, 45, 130))
    assert all(leaf.isfinite().all() for leaf in leaves(found))


def test_norms_of_maps_that_no_one_reads_are_dropped():
    network = assemble("pale_tiny", "retinanet", {**SHORT, "out_norms": True}, SMALL["retinanet"])
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
    model = assemble("swin_tiny_patch4_window7_224", head, {"depths": [1, 1, 1, 1]}, SMALL[head])
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
