"""Every head under autocast: boxes, proposals and losses are float32 and near those without, at any coordinate."""

from functools import partial

import pytest
import torch
from detector_helpers import SMALL, Body, small
from torch.nn import functional as F

from vitrail.heads.bnneck import BNNeck
from vitrail.heads.common import Anchors, DefaultBoxes
from vitrail.heads.segformer import SegFormerHead
from vitrail.heads.semantic_fpn import SemanticFPN
from vitrail.heads.simple_baseline import SimpleBaseline
from vitrail.heads.ssdlite import SSDLite
from vitrail.heads.upernet import UperNet

HALF = [torch.bfloat16, torch.float16]
SIDE = 640  # bfloat16 rounds coordinates from 512 on to 4 pixels, float16 to a half


def large(kind) -> torch.nn.Module:
    size = {"image_size": (SIDE, SIDE)} if kind is SSDLite else {"min_size": SIDE, "max_size": SIDE}
    model = small(kind, **size)
    for name, p in model.named_parameters():
        if name == "proposal_boxes.weight":  # not all the whole image
            torch.nn.init.uniform_(p, 0.3, 0.7)
        if "body" in name:
            torch.nn.init.normal_(p, std=0.3)
    return model


def objects() -> tuple[list, list]:
    """An image with objects far from the corner, narrow ones among them."""
    boxes = torch.tensor([[601.0, 303, 603, 601], [213, 214, 618, 621], [603, 601, 622, 604]])
    targets = []
    for labels in ([1, 2, 1],):
        masks = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        semantic = torch.randint(0, 3, (SIDE, SIDE))
        targets.append({"boxes": boxes, "labels": torch.tensor(labels), "masks": masks, "semantic": semantic})
    return [torch.rand(3, SIDE, SIDE) for _ in targets], targets


def losses_of(model, half: torch.dtype | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images, targets = objects()
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        return model.train()(images, targets)


@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("kind", SMALL)
def test_a_detector_learns_what_it_learns_in_float32(kind, half):
    model = large(kind)
    expected, found = losses_of(model, None), losses_of(model, half)
    assert found.keys() == expected.keys()
    for name, loss in found.items():
        assert loss.dtype == torch.float32, name
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.01), name
    sum(found.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("half", HALF[:1], ids=str)
@pytest.mark.parametrize("kind", SMALL)
def test_boxes_are_float32_and_not_rounded(kind, half):
    model = large(kind).eval()
    thresholds = getattr(model, "roi_heads", model)
    thresholds.score_thresh = 0.0
    images = objects()[0]
    with torch.no_grad(), torch.autocast("cpu", half):
        found = model(images)[0]
    boxes, scores = found["boxes"], found["scores"]
    assert boxes.dtype == scores.dtype == torch.float32
    if "semantic" in found:
        assert found["semantic"].dtype == torch.float32
    inside = boxes[(boxes > 256) & (boxes < SIDE)]  # what was clipped is whole
    assert len(inside)
    assert not torch.equal(inside.to(half).float(), inside)


@pytest.mark.parametrize("half", HALF, ids=str)
def test_anchors_of_half_precision_maps_are_those_of_float32(half):
    class Images:
        tensors = torch.zeros(2, 3, 1024, 800)
        image_sizes = ((1024, 800), (900, 777))

    maps = [torch.zeros(2, 4, 1024 // s, 800 // s) for s in (8, 16, 32)]
    sizes = tuple(tuple(4.0 * s * 2 ** (k / 3) for k in range(3)) for s in (8, 16, 32))
    for make in (
        lambda: Anchors(sizes, ((0.5, 1.0, 2.0),) * 3),
        lambda: DefaultBoxes([[2, 3]] * 3, min_ratio=0.2, max_ratio=0.95),
    ):
        boxes = make()
        found = boxes(Images, [x.to(half) for x in maps])
        expected = super(type(boxes), boxes).forward(Images, maps)
        assert all(one.dtype == torch.float32 for one in found)
        assert all(map(torch.equal, found, expected))
        assert half == torch.float16 or not torch.equal(expected[0].to(half).float(), expected[0])


@pytest.mark.parametrize("half", HALF[:1], ids=str)
@pytest.mark.parametrize(
    "head",
    [
        partial(SemanticFPN, channels=16, fpn_channels=16),
        partial(UperNet, channels=16, aux_channels=16),
        partial(SegFormerHead, channels=16),
        partial(SimpleBaseline, deconv_channels=16),
        partial(BNNeck, num_ids=9),
    ],
    ids=lambda head: head.func.__name__,
)
def test_a_dense_head_is_near_float32_and_has_finite_gradients(head, half):
    torch.manual_seed(0)
    widths = [8, 12, 16, 20]
    model = torch.nn.Sequential(Body(widths), head(widths)).train()
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d)):
            module.p = 0.0
    x = torch.rand(2, 3, 128, 96)

    def loss(enabled: bool) -> torch.Tensor:
        with torch.autocast("cpu", half, enabled=enabled):
            found = model(x)
        found = found if isinstance(found, tuple) else (found,)
        return sum(F.cross_entropy(one.float(), one.float().detach().softmax(1).flip(1)) for one in found)

    expected, found = loss(False), loss(True)
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", half):
        assert head.func is not BNNeck or model(x)[0].dtype == torch.float32


def test_sparse_rcnn_matches_alike_under_autocast():
    from vitrail.heads.set_criterion import match

    boxes = torch.rand(300, 4) * 400
    boxes[:, 2:] += boxes[:, :2]
    target = {"boxes": boxes[::10] + torch.rand(30, 4), "labels": torch.zeros(30, dtype=torch.long)}
    scale = torch.full((4,), 800.0)
    expected = match(torch.zeros(300, 2), boxes, target, scale)
    with torch.autocast("cpu", torch.bfloat16):
        found = match(torch.zeros(300, 2), boxes, target, scale)
    assert all(map(torch.equal, found, expected))
