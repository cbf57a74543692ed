"""Parts of one image: refused exactly where a norm sees one value of a channel, in every task and head."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitrail.config.train import TrainConfig
from vitrail.errors import UserError
from vitrail.factory import assemble, build_model
from vitrail.tasks.micro_batches import check_micro_batches, learns_from_one

SHORT = {"depths": [1, 1, 1, 1]}
OPTIONS = {
    "upernet": {"channels": 8, "aux_channels": 8},
    "ssdlite": {"extra_channels": [8, 8, 8, 8], "image_size": [320, 320]},
    "retinanet": {"channels": 8},
    "mask_rcnn": {"channels": 8},
}


def task_of(model: str, head: str | None, **config) -> SimpleNamespace:
    def build() -> nn.Module:
        if head is None:
            return build_model(model, SHORT, 3)
        return assemble(model, head, SHORT, OPTIONS.get(head, {}))

    def is_head(name: str, model: nn.Module) -> bool:
        return name.startswith("head") if head is None else "network" not in name

    made = TrainConfig(model=model, **{"batch_size": 1, "device": "cpu", **config})
    return SimpleNamespace(
        config=made, head=head, build_model=build, is_head=is_head, preprocess=SimpleNamespace(in_chans=3)
    )


@pytest.mark.parametrize(
    ("model", "head", "size", "can"),
    [
        ("mat_1", None, 32, False),
        ("pale_tiny", None, 32, False),
        ("emsnet_xxtiny", None, 32, False),
        ("mat_1", None, 33, True),
        ("mat_1", "semantic_fpn", 32, False),
        ("mat_1", "semantic_fpn", 64, True),
        ("mat_1", "segformer", 64, True),
        ("mat_1", "upernet", 224, False),
        ("mat_1", "simple_baseline", 64, True),
        ("mat_1", "bnneck", 64, False),
        ("mat_1", "retinanet", 32, False),
        ("mat_1", "retinanet", 64, True),
        ("mat_1", "mask_rcnn", 64, True),
        ("mat_1", "ssdlite", 320, False),  # the coarsest of its six levels has one place
    ],
)
def test_what_can_learn_from_one_image(model, head, size, can):
    task = task_of(model, head)
    before = torch.get_rng_state()
    assert learns_from_one(task, (size, size)) == can
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_frozen_needs_no_second_image():
    for options in ({"batch_norm": "frozen"}, {"freeze": "backbone"}):
        assert learns_from_one(task_of("mat_1", "retinanet", **options), (32, 32))


@pytest.mark.parametrize(
    ("images", "world", "accumulate", "refused"),
    [(1, 1, 1, True), (4, 1, 4, True), (4, 2, 2, True), (3, 1, 2, True), (4, 1, 2, False), (2, 2, 1, True)],
)
def test_the_smallest_part_decides(images, world, accumulate, refused):
    task = task_of("mat_1", None, batch_size=images, accumulate=accumulate, batch_norm="own")
    batches = SimpleNamespace(batch_size=images)
    if refused:
        with pytest.raises(UserError, match=rf"--batch_size {images} in {world} .* --accumulate {accumulate} makes"):
            check_micro_batches(task, batches, world, (32, 32))
    else:
        check_micro_batches(task, batches, world, (32, 32))
    check_micro_batches(task, batches, world, (64, 64))
    task.config.batch_norm = "auto"  # the norms of several processes see all of their images
    if world > 1:
        check_micro_batches(task, batches, world, (32, 32))
