"""Networks with options and under heads, as `vitrail benchmark` builds and times them."""

import json

import numpy as np
import pytest
import torch

from dense_helpers import CASES, SHORT, weights_with
from head_helpers import SMALL as SMALL_HEADS
from head_helpers import small_head, task_of
from vitrail.benchmark import benchmark as bench
from vitrail.benchmark import dense
from vitrail.benchmark.forms import Candidate, call_of, with_file
from vitrail.benchmark.networks import Build, Entry, network_of, sources, with_size
from vitrail.benchmark.settings import Settings
from vitrail.checkpoint.format import meta_of
from vitrail.cli import main
from vitrail.errors import UserError

SMALL = ["--image_size", "64", "--rounds", "1", "--roofline", "false", "--device", "cpu", "--json"]


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch):
    monkeypatch.setattr(bench, "peaks", lambda candidates, advance: iter([None] * len(candidates)))


def rows_of(capsys, *argv: str) -> list[dict]:
    assert main(["benchmark", *argv, *SMALL]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


# ---- options ------------------------------------------------------------------------------------------------------


def test_model_options_change_the_network_and_its_name(capsys):
    plain, timm_s = rows_of(capsys, "emsnet_xxtiny", "--against", "resnet10t")
    other, timm_again = rows_of(
        capsys, "emsnet_xxtiny", "--model_options.branch_fusion", "false", "--against", "resnet10t"
    )
    assert (plain["name"], other["name"]) == ("emsnet_xxtiny", 'emsnet_xxtiny {"branch_fusion": false}')
    assert (plain["params"], other["params"]) == (2_569_370, 2_494_618)  # of the thesis' Table 3.9
    assert timm_s["params"] == timm_again["params"]  # networks of --against stay as they are


def test_variants_are_timed_side_by_side_with_their_labels(capsys):
    variants = {"all": {}, "no fusion": {"branch_fusion": False}}
    rows = rows_of(capsys, "emsnet_xxtiny", "--variants", json.dumps(variants))
    assert [row["name"] for row in rows] == ["emsnet_xxtiny all", "emsnet_xxtiny no fusion"]
    assert [row["build"]["model_options"] for row in rows] == list(variants.values())
    assert [row["params"] for row in rows] == [2_569_370, 2_494_618]


def test_variants_stand_on_top_of_model_options():
    settings = Settings(["mat_1"], model_options={"a": 1, "b": 1}, variants={"x": {"b": 2}})
    assert [entry.build.model_options for entry in settings.entries()] == [{"a": 1, "b": 2}]


def test_options_of_weights_are_refused(tmp_path):
    weights = weights_with("bnneck", *CASES["bnneck"][:2], tmp_path)
    for options in ({"model_options": {"a": 1}}, {"head": "bnneck"}, {"task": "reid"}, {"variants": {"x": {}}}):
        with pytest.raises(UserError, match=r"is for networks by name: .*bnneck.safetensors says itself"):
            Settings([weights], **options).check()


def test_images_have_the_channels_of_the_network(capsys):
    (row,) = rows_of(capsys, "mat_1", "--model_options", json.dumps({**SHORT, "in_chans": 1}))
    assert row["refused"] is None


def test_networks_with_other_options_have_other_exported_files(monkeypatch, tmp_path):
    from vitrail.benchmark import runtimes

    monkeypatch.setattr(
        runtimes, "export", lambda network, meta, *, folder, **rest: (folder / "network.xml").write_text("")
    )
    builds = [Build(), Build({"depths": [1, 1, 1, 1]}), Build({"depths": [2, 2, 2, 2]})]
    network = network_of("mat_1", (32, 32))
    files = {with_file(Candidate("mat_1", runtime="openvino", build=b), network, tmp_path).file for b in builds}
    assert len(files) == 3


# ---- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", SMALL_HEADS)
def test_every_head_is_timed_with_its_decoding(head):
    """The network sees images of exactly this size, and what is timed is what the task makes of them."""
    options = {name: value for name, value in small_head(head).items() if name not in ("min_size", "max_size")}
    options.pop("image_size", None)
    build = Build(SHORT, task_of(head), head, options)
    network = network_of("mat_1", (64, 96), build)
    seen = []

    def note(module: torch.nn.Module, args: tuple, output: torch.Tensor | list) -> None:
        seen.append(tuple(args[0].shape))

    with torch.inference_mode():
        backbone = next(m for m in network.modules() if type(m).__name__ == "Backbone")
        backbone.register_forward_hook(note)
        inference, inputs = dense.prepared(network, 2, (64, 96), torch.device("cpu"))
        expected = inference.infer(network, inputs)
        found = call_of(Candidate("x", batch=2, image_size=(64, 96), decoding=True, build=build), network)()
    assert set(seen) == {(2, 3, 64, 96)}
    assert len(found) == len(expected) == 2
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    elif task_of(head) == "semantic_segmentation":
        assert [tuple(one.shape) for one in found] == [(64, 96)] * 2
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    elif task_of(head) == "panoptic_segmentation":
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(found, expected, strict=True))
        assert dense.found_in(found) == sum(len(one.segments) for one in expected)
    else:
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(found, expected, strict=True))
        assert dense.found_in(found) == sum(len(one["boxes"]) for one in expected)


def test_a_head_alone_names_its_task_and_a_task_alone_its_head():
    assert dense.check_head(None, "upernet") == ("semantic_segmentation", "upernet")
    assert dense.check_head("keypoints", None) == ("keypoints", "simple_baseline")
    assert dense.check_head(None, "mask_rcnn") == ("instance_segmentation", "mask_rcnn")


def test_classes_and_sizes_are_those_of_the_papers_data_unless_given():
    build = Build(SHORT, "semantic_segmentation", "segformer", {"channels": 8})
    assert meta_of(network_of("mat_1", (64, 64), build)).head_options == {"channels": 8, "num_classes": 150}
    assert dense.class_counts("panoptic_fpn", {"num_stuff": 2}) == {"num_things": 80, "num_stuff": 2}
    assert with_size(Entry("mat_1", "", Build(task="keypoints", head="simple_baseline"))).image_size == (256, 192)
    assert with_size(Entry("mat_1", "")).image_size == (224, 224)


def test_against_gets_the_same_head(capsys):
    options = json.dumps({"channels": 8, "num_classes": 3})
    rows = rows_of(capsys, "mat_1", "--against", "resnet10t", "--head", "segformer", "--head_options", options)
    assert [row["name"] for row in rows] == ["mat_1 + segformer"] * 2 + ["timm:resnet10t + segformer"] * 2
    assert [row["label"] for row in rows] == ["eager", "eager + decoding"] * 2
    assert all(row["build"]["task"] == "semantic_segmentation" for row in rows)
    assert rows[1]["gmac_per_second"] is None  # it is not the network alone


def test_decoding_follows_a_network_in_another_precision(capsys):
    argv = ["mat_1", "--model_options", json.dumps(SHORT), "--task", "keypoints", "--precision", "bf16"]
    rows = rows_of(capsys, *argv)
    assert [row["refused"] for row in rows] == [None, None]


def test_a_size_that_a_detector_would_change_is_seen_as_it_is():
    build = Build(SHORT, "detection", "retinanet", {"channels": 8, "num_classes": 3})
    network = network_of("mat_1", (96, 1600), build)  # longer than 1333
    (batch, _) = network.transform([torch.zeros(3, 96, 1600)])
    assert tuple(batch.tensors.shape) == (1, 3, 96, 1600)


def test_a_name_of_timm_s_registry_is_a_network_with_or_without_timm_before_it():
    assert sources(["lab_plain", "timm:resnet18", "resnet18"], []) == ["timm:lab_plain", "timm:resnet18"]
