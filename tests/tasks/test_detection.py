"""Detectors and panoptic networks: what they learn from, what is measured of them, and how they are used."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from annotated_helpers import sample_image, write_coco
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.checkpoint.load import load_network
from vitrail.cli import main
from vitrail.config.data import DataConfig
from vitrail.config.tasks import DetectionConfig, InferenceConfig
from vitrail.config.train import TrainConfig
from vitrail.errors import UserError
from vitrail.metrics.coco import packed, unpacked
from vitrail.tasks import build_task, task_of
from vitrail.tasks.with_head import backbone_of

pytest.importorskip("faster_coco_eval")
SHORT = {"depths": [1, 1, 1, 1]}
SMALL = {"channels": 16}
HEADS = {
    "retinanet": ("detection", SMALL),
    "ssdlite": ("detection", {"extra_channels": [8, 8, 8, 8]}),
    "sparse_rcnn": ("detection", {**SMALL, "num_proposals": 5, "num_stages": 2}),
    "mask_rcnn": ("instance_segmentation", {**SMALL, "fc_channels": 16}),
    "panoptic_fpn": ("panoptic_segmentation", {**SMALL, "fc_channels": 16, "semantic_channels": 12}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), {"train": 4, "val": 2})


def config(root: Path, head: str, **options) -> TrainConfig:
    task, head_options = HEADS[head]
    data = DataConfig(name="coco", root=str(root))
    given = {"task": task, "head": head, "head_options": head_options, "data": data, "image_size": 64, "batch_size": 2}
    return TrainConfig(**{"model": "mat_1", "model_options": SHORT, **given, **options})


@pytest.mark.parametrize("head", HEADS)
def test_a_step_has_a_finite_loss_and_a_gradient_everywhere(root, head):
    task = build_task(config(root, head))
    model = task.build_model().train()
    batches = task.train_batches(0, 1)
    batches.set_epoch(0)
    loss, right = task.loss(model, next(iter(batches)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isnan(right)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_a_missing_extra_is_said_before_anything_is_learned(root, head, monkeypatch):
    build_task(config(root, head))
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install -e \"\.\[detection\]\""):
        build_task(config(root, head))


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_the_truth_has_full_precision(root, head):
    task = build_task(config(root, head))
    counts = task.metrics()
    for images, targets, numbers in task.eval_batches(0, 1):
        found = [{**t, "scores": torch.ones(len(t["labels"]))} for t in targets]
        found = [{**f, "masks": f["masks"].bool()} if "masks" in f else f for f in found]
        counts.update(found, (images, targets, numbers))
    metrics = counts.compute()
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["images"] == 2
    if head == "mask_rcnn":
        assert metrics["box_AP"] == pytest.approx(1.0)


def test_two_processes_measure_what_one_does(root):
    task = build_task(config(root, "retinanet"))
    whole, parts = task.metrics(), [task.metrics(), task.metrics()]
    for rank, world, counts in ((0, 1, whole), (0, 2, parts[0]), (1, 2, parts[1])):
        for images, targets, numbers in task.eval_batches(rank, world):
            found = [{**t, "boxes": t["boxes"] + 3, "scores": torch.full((2,), 0.5)} for t in targets]
            counts.update(found, (images, targets, numbers))
    joined = task.metrics()
    joined.load([part.state() for part in parts])
    assert joined.compute() == whole.compute()
    assert unpacked(packed(whole.results)) == whole.results


def test_nothing_found_is_no_precision(root):
    task = build_task(config(root, "retinanet"))
    assert task.metrics().compute()["AP"] == 0.0


def test_the_true_segments_have_full_quality(root):
    task = build_task(config(root, "panoptic_fpn"))
    counts = task.metrics()
    for images, targets, numbers in task.eval_batches(0, 1):
        counts.update([task.inference.ground_truth(target) for target in targets], (images, targets, numbers))
    metrics = counts.compute()
    assert (metrics["PQ"], metrics["SQ"], metrics["RQ"]) == (1.0, 1.0, 1.0)
    other = task.metrics()
    other.load([counts.state(), counts.state()])
    assert other.compute()["PQ"] == 1.0
    assert other.quality.tallies[3].matched == 2 * counts.quality.tallies[3].matched


def test_results_are_files_that_evaluate_reads(root, tmp_path, capsys):
    task = build_task(config(root, "panoptic_fpn"))
    counts = task.metrics()
    for images, targets, numbers in task.eval_batches(0, 1):
        counts.update([task.inference.ground_truth(target) for target in targets], (images, targets, numbers))
    counts.report(tmp_path)
    argv = ["evaluate", "--task", "panoptic_segmentation", "--predictions", str(tmp_path / "panoptic.json")]
    assert main([*argv, "--data", "coco", "--data.root", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["PQ"] == 1.0


@pytest.mark.parametrize("head", ["ssdlite", "mask_rcnn", "panoptic_fpn"])
def test_a_run_can_be_measured_and_used(root, head, tmp_path, capsys):
    task, options = HEADS[head]
    out, image = tmp_path / "run", tmp_path / "odd.png"
    argv = ["train", "--task", task, "--head", head, "--head_options", json.dumps(options), "--model", "mat_1"]
    argv += ["--model_options", json.dumps(SHORT), "--data", "coco", "--data.root", str(root), "--image_size", "64"]
    argv += ["--batch_size", "2", "--epochs", "1", "--max_steps", "1"]
    argv += ["--device", "cpu", "--output", str(out), "--json"]
    assert main(argv) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["metrics"]["images"] == 2
    assert len(list((out / "examples").glob("*.jpg"))) == 2
    assert main(["evaluate", str(out), "--json", "--device", "cpu", "--output", str(tmp_path / "measured")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("images_per_second") > 0
    assert again == summary["metrics"]
    stored = out / ("panoptic.json" if head == "panoptic_fpn" else "results.json")
    argv = ["evaluate", "--task", task, "--predictions", str(stored), "--data", "coco", "--data.root", str(root)]
    assert main([*argv, "--json"]) == 0
    kept = {k: v for k, v in again.items() if k != "images" and not k.startswith("box_")}
    assert json.loads(capsys.readouterr().out) == kept
    Image.fromarray(sample_image(9, (37, 101))[0]).save(image)
    argv = ["predict", str(out), str(image), "--save", str(tmp_path / "drawn"), "--json", "--device", "cpu"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert ("segments" if head == "panoptic_fpn" else "boxes") in found
    assert Image.open(found["saved"]).width == 37
    assert load_network(out).meta.head == head


def test_thresholds_reach_the_detector(root):
    task = build_task(config(root, "mask_rcnn", inference=InferenceConfig(score_thresh=0.0, max_detections=3)))
    model = task.build_model().eval()
    found = task.inference.predict(model, [Image.fromarray(sample_image(1, (64, 48))[0])], "cpu")[0]
    assert len(found.boxes) <= 3
    assert model.roi_heads.score_thresh == 0.0
    assert found.masks.shape == (len(found.boxes), 48, 64)


def test_measuring_is_at_the_last_size_and_training_draws_from_all(root):
    task = build_task(config(root, "retinanet", detection=DetectionConfig(short_sides=[32, 64, 48], max_side=200)))
    model = task.build_model()
    assert model.transform.min_size == [32, 48, 64]
    assert model.transform.max_size == 200
    assert list(model.transform.image_mean) == pytest.approx(list(task.preprocess.mean))


def test_a_range_of_sides_is_drawn_in_training_alone(root):
    task = build_task(config(root, "retinanet", detection=DetectionConfig(short_side_range=(48, 80), max_side=200)))
    transform = task.build_model().transform.train()
    torch.manual_seed(0)
    seen = [min(transform([torch.rand(3, 60, 70)])[0].image_sizes[0]) for _ in range(400)]
    assert set(seen) == set(range(48, 81))
    assert min(transform.eval()([torch.rand(3, 60, 70)])[0].image_sizes[0]) == 64
    assert task.head_options["min_size"] == [64]  # what is kept with the weights


def test_a_trained_network_needs_no_data(root):
    task = build_task(config(root, "sparse_rcnn"))
    model = task.build_model()
    from vitrail.checkpoint.description import WeightsMeta

    meta = WeightsMeta(
        "mat_1", SHORT, head=task.head, head_options=task.head_options, task=task.name, classes=task.classes,
        preprocess=task.preprocess, settings=task.settings,
    )  # fmt: skip
    again = task_of(meta)
    assert again.head_options == task.head_options
    found = again.inference.predict(model, [Image.new("RGB", (40, 30))], "cpu")[0]
    assert found.summary() == "nothing" or found.scores.max() >= 0.5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "semantic_fpn"}, ["head of detection", "semantic_fpn", "retinanet"]),
        ({"image_size": (64, 32)}, ["--image_size 64 32", "one side"]),
        ({"data": DataConfig(name="digits")}, ["--data coco", "digits"]),
        ({"inference": InferenceConfig(flip=True)}, ["flip"]),
        ({"inference": InferenceConfig(score_thresh=2.0)}, ["score_thresh 2.0"]),
        ({"head": "sparse_rcnn", "inference": InferenceConfig(nms_thresh=0.5)}, ["nms_thresh 0.5", "max_detections"]),
        ({"detection": DetectionConfig(hflip=3.0)}, ["hflip=3.0"]),
        ({"head_options": {"chanels": 3}}, ["chanels"]),
    ],
)
def test_a_wrong_recipe_is_named(root, options, says):
    recipe = replace(config(root, "retinanet"), **options)

    def begin():
        task = build_task(recipe)
        task.train_batches(0, 1)
        task.build_model()

    with pytest.raises((UserError, ValueError)) as caught:
        begin()
    for word in says:
        assert word in str(caught.value)


@pytest.mark.parametrize("head", HEADS)
def test_weights_of_the_same_head_keep_their_classes_by_name(root, tmp_path, head):
    """As many classes of other names, or in another order, begin anew; everything else is taken over."""
    task = build_task(config(root, head))
    source = task.build_model()
    for classes in (task.classes, task.classes[::-1], ["cow", *task.classes[1:]]):
        described = WeightsMeta("mat_1", SHORT, head, {**task.head_options}, task.name, classes)
        save_weights(tmp_path / "w.safetensors", source.state_dict(), described)
        model = task.build_model()
        fresh = {name: value.clone() for name, value in model.state_dict().items()}
        report = task.init(model, str(tmp_path / "w.safetensors"))
        new = {
            name
            for name, value in model.state_dict().items()
            if not torch.equal(value, source.state_dict()[name]) and torch.equal(value, fresh[name])
        }
        assert new <= set(report.reinitialised)
        assert bool(new) == bool(report.reinitialised) == (classes != task.classes)
        assert all(task.is_head(name, model) for name in report.reinitialised)
        assert all(len(name.split(".")) > 2 and ".body." not in name for name in report.reinitialised)
        if classes != task.classes:
            assert "the classes of the weights are others" in report.summary()


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_classes_of_other_ids_are_measured_by_name(root, tmp_path, head):
    """The file to measure on gives the classes the ids of each other; perfect results of the network measure 1."""
    write_coco(tmp_path, {"train": 2, "val": 2})
    file = tmp_path / "annotations" / "instances_val.json"
    made = json.loads(file.read_text())
    ids = [category["id"] for category in made["categories"]]
    other = dict(zip(ids, ids[::-1], strict=True))
    for record in made["categories"]:
        record["id"] = other[record["id"]]
    for record in made["annotations"]:
        record["category_id"] = other[record["category_id"]]
    file.write_text(json.dumps(made))
    task, straight = build_task(config(tmp_path, head)), build_task(config(root, head))
    assert task.eval_set.classes == task.classes == straight.classes
    metrics = task.metrics()
    for index in range(len(task.eval_set)):
        target = task.eval_set[index][1]
        assert target["labels"].tolist() == straight.eval_set[index][1]["labels"].tolist()
        found = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["labels"]))}
        found |= {"masks": target["masks"].bool()} if "masks" in target else {}
        metrics.update([found], (None, [target], None))
    assert metrics.compute()["AP"] == 1
    names = {row["class"]: row["AP"] for row in metrics.compute()["per_class"]}
    assert names == {"blue": 1, "red": 1}


def test_other_classes_are_not_measured(tmp_path):
    write_coco(tmp_path, {"train": 2, "val": 2})
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace('"red"', '"rot"'))
    with pytest.raises(UserError, match="other classes: 'rot' in the place of 'red'"):
        build_task(config(tmp_path, "retinanet"))


def test_weights_of_a_classifier_start_the_backbone(root, tmp_path):
    argv = ["train", "--model", "mat_1", "--model_options", json.dumps(SHORT), "--epochs", "1", "--max_steps", "1"]
    assert main([*argv, "--device", "cpu", "--output", str(tmp_path / "digits")]) == 0
    task = build_task(config(root, "retinanet"))
    model = task.build_model()
    report = task.init(model, str(tmp_path / "digits"))
    source = load_network(tmp_path / "digits").state_dict()
    own = model.state_dict()
    names = [name for name in own if name.startswith("backbone.body.network.")]
    assert names
    for name in names:
        assert torch.equal(own[name], source[name.removeprefix("backbone.body.network.")])
    assert "tensors taken over" in report.summary()
    assert not task.is_head(names[0], model)
    assert task.is_head("head.classification_head.cls_logits.bias", model)


def test_objects_are_drawn_where_they_are():
    from vitrail.structures import Detections

    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 25:35, 40:55] = True
    boxes = np.array([[40.0, 25, 55, 35], [1, 1, 5, 5]])
    found = Detections(["cat", "dog"], boxes, np.array([1, 0]), np.array([0.9, 0.3]), masks)
    grey = Image.new("RGB", (60, 40), (100, 100, 100))
    drawn = np.asarray(found.draw(grey))
    assert (drawn[30, 47] != 100).any()
    assert (drawn[2, 2] == 100).all()  # too unsure to be shown
    assert found.summary() == "1 dog"
    assert found.to_dict()["classes"] == ["dog", "cat"]


@pytest.mark.parametrize("norms_in_the_file", [False, True])
def test_norms_of_the_maps_begin_fresh_where_the_weights_have_none(root, tmp_path, norms_in_the_file):
    """As Pale's recipes of dense tasks need it, whose backbone has norms that no classifier learned."""
    options = {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2]}
    torch.manual_seed(1)
    trained = vitrail.create_model("pale_tiny", **options, out_norms=norms_in_the_file)
    for p in trained.parameters():
        p.data = torch.rand_like(p)
    path = tmp_path / "classifier.safetensors"
    save_weights(path, trained.state_dict(), WeightsMeta("pale_tiny", options, classes=[str(i) for i in range(1000)]))
    task = build_task(config(root, "retinanet", model="pale_tiny", model_options={**options, "out_norms": True}))
    model = task.build_model()
    report = task.init(model, str(path))
    network, state = backbone_of(model).state_dict(), trained.state_dict()
    new = [name for name in network if name.startswith("out_norms.")]
    assert len(new) == 6  # of the three maps that this head reads
    for name, value in network.items():
        if name in new and not norms_in_the_file:
            assert torch.equal(value, torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value))
        else:
            assert torch.equal(value, state[name]), name
    assert report.reinitialised == ([] if norms_in_the_file else new)
    assert norms_in_the_file or "out_norms.1.weight" in report.summary()
