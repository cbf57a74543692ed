"""What the README promises of Python: a detector built and used, a metric computed, a network fused and exported."""

import importlib
import inspect

import numpy as np
import pytest
import torch

import vitrail


@pytest.mark.parametrize("name", ["heads", "metrics", "tasks"])
def test_rooms_export_their_public_names(name):
    room = importlib.import_module(f"vitrail.{name}")
    assert len(set(room.__all__)) == len(room.__all__)
    for public in room.__all__:
        made = getattr(room, public)
        assert inspect.getdoc(made), public


def test_every_head_is_exported():
    from vitrail.factory import HEADS

    assert {head.make for head in HEADS.values()} == {getattr(vitrail.heads, name) for name in vitrail.heads.__all__}


def test_a_detector_is_built_and_used_in_five_lines():
    detector = vitrail.assemble("emsnet_xxtiny", "retinanet", head_options={"num_classes": 3, "channels": 8}).eval()
    with torch.no_grad():
        [found] = detector([torch.rand(3, 64, 96)])
    assert set(found) == {"boxes", "scores", "labels"}


def test_a_metric_is_computed():
    metric = vitrail.metrics.Confusion(["sky", "sea"])
    metric.update(torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [1, 1]]))
    assert metric.compute()["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    gallery = vitrail.metrics.Gallery(np.eye(2, dtype=np.float32), np.array([1, 2]), np.array([2, 2]))
    queries = vitrail.metrics.Gallery(np.eye(2, dtype=np.float32), np.array([1, 2]), np.array([1, 1]))
    assert vitrail.metrics.retrieval(queries, gallery)["mAP"] == 1


def test_a_network_is_fused():
    network = vitrail.create_model("emsnet_xxtiny", num_classes=5).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(vitrail.fuse(network)(x), network(x), rtol=1e-4, atol=1e-4)
