"""Classes of pixels: the loss, the metrics, and a step under every head."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from semantic_helpers import CLASSES, bilinear, inference, sample_image
from vitrail.config.data import DataConfig, Preprocess
from vitrail.config.tasks import InferenceConfig, SegmentationConfig
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.index_masks import IGNORE, labels_of, read_mask
from vitrail.data.datasets.segmentation import open_semantic
from vitrail.errors import BadOption, UserError
from vitrail.factory import assemble
from vitrail.metrics.segmentation import SemanticMetrics
from vitrail.tasks import measure
from vitrail.tasks.losses import pixel_loss
from vitrail.tasks.semantic_segmentation import SemanticInference, SemanticSegmentation

TINY = {"depths": [1, 1, 1, 1]}
HEADS = {
    "semantic_fpn": {"channels": 8, "fpn_channels": 8},
    "upernet": {"channels": 8, "aux_channels": 8},
    "segformer": {"channels": 8},
}


# ---- loss -------------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Gives the same outputs for anything."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


def entropy(logits: np.ndarray, masks: np.ndarray) -> float:
    """Mean of -log p of the true class over the pixels that have one."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    picked = [-logs[b, masks[b, i, j], i, j] for b, i, j in np.argwhere(masks != IGNORE)]
    return float(np.mean(picked))


def random_masks(*shape: int) -> torch.Tensor:
    masks = torch.randint(0, len(CLASSES), shape)
    masks[torch.rand(shape) < 0.3] = IGNORE
    return masks


def test_the_loss_is_its_definition():
    masks, logits = random_masks(2, 6, 8), torch.randn(2, len(CLASSES), 6, 8)
    assert float(pixel_loss(logits, masks)) == pytest.approx(entropy(logits.numpy(), masks.numpy()), abs=1e-5)


def test_pixels_without_a_class_teach_nothing():
    logits = torch.randn(2, len(CLASSES), 3, 3, requires_grad=True)
    loss = pixel_loss(logits, torch.full((2, 3, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
    masks = random_masks(2, 3, 3)
    logits.grad = None
    pixel_loss(logits, masks).backward()
    assert (logits.grad.abs().sum(1) > 0).equal(masks != IGNORE)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Six images to learn from and three to measure on, whose classes are their colours."""
    folder = tmp_path_factory.mktemp("semantic")
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [220, 220, 220]])
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for i in range(count):
            classes = np.kron(rng.integers(0, 4, (5, 6)), np.ones((13, 15), dtype=np.int64))[: 60 + i]
            noise = rng.integers(-30, 30, (*classes.shape, 3))
            pixels = (colours[classes] + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / part / f"{i}.png")
            classes[:3] = IGNORE
            Image.fromarray(classes.astype(np.uint8)).save(folder / "annotations" / part / f"{i}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


@pytest.fixture
def task_of(root):
    def make(head="semantic_fpn", **changes) -> SemanticSegmentation:
        values = {
            "task": "semantic_segmentation",
            "model": "mat_1",
            "model_options": TINY,
            "head": head,
            "head_options": HEADS[head],
            "data": DataConfig("ade20k", root=str(root)),
            "segmentation": SegmentationConfig(short_side=60),
            "image_size": 64,
            "batch_size": 2,
            "device": "cpu",
        }
        return SemanticSegmentation(TrainConfig(**{**values, **changes}))

    return make


def test_both_classifiers_learn(task_of):
    task = task_of("upernet", segmentation=SegmentationConfig(auxiliary_weight=0.25))
    masks, coarse = random_masks(3, 12, 16), [torch.randn(3, len(CLASSES), 12 // s, 16 // s) for s in (2, 4)]
    finer = [bilinear(x, (12, 16)).numpy() for x in coarse]
    loss, right = task.loss(Answers(*coarse), (torch.zeros(3, 3, 12, 16), masks))
    main, auxiliary = (entropy(x, masks.numpy()) for x in finer)
    assert float(loss) == pytest.approx(main + 0.25 * auxiliary, abs=1e-5)
    labelled = masks.numpy() != IGNORE
    assert float(right) == pytest.approx(3 * (finer[0].argmax(1) == masks.numpy())[labelled].mean(), abs=1e-5)
    alone, _ = task.loss(Answers(coarse[0]), (torch.zeros(3, 3, 12, 16), masks))
    assert float(alone) == pytest.approx(main, abs=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_step_under_every_head(task_of, head):
    task = task_of(head)
    model = task.build_model().train()
    for parameter in model.parameters():
        if not parameter.any():  # such as MAT's offsets, behind which nothing learns in the first step
            nn.init.normal_(parameter, std=0.02)
    batch = next(iter(task.train_batches()))
    assert (batch[0].shape, batch[1].shape) == ((2, 3, 64, 64), (2, 64, 64))
    loss, right = task.loss(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert 0 <= float(right) <= 2
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("head", HEADS)
def test_images_of_any_size(task_of, head):
    task = task_of(head)
    model = task.build_model()
    sizes = [(1, 1), (1, 40), (33, 1), (3, 400), (45, 130), (64, 64)]
    found = task.inference.predict(model, [sample_image(*size) for size in sizes], "cpu")
    assert [one.indices.shape for one in found] == sizes
    windowed = inference(head, window=40, short_side=60, max_side=200).predict(model, [sample_image(50, 90)], "cpu")
    assert windowed[0].indices.shape == (50, 90)


@pytest.mark.slow
def test_a_large_image_needs_little_memory():
    """150 classes of 4000x4000 pixels would be 9.6 GB of scores."""
    image = sample_image(4000, 4000)
    names = [str(i) for i in range(150)]
    use = SemanticInference("semantic_fpn", names, Preprocess((512, 512)), InferenceConfig(), None, 2048)
    model = assemble("mat_1", "semantic_fpn", TINY, {"num_classes": 150})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [found] = use.predict(model, [image], "cpu")
    assert found.indices.shape == (4000, 4000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20  # in KiB


def test_normalisation_needs_two_values(task_of):
    with pytest.raises(UserError, match=r"--batch_size 2 in 2 process\(es\) with --accumulate 1 .* head upernet"):
        task_of("upernet", batch_norm="own").train_batches(0, 2)
    with pytest.raises(UserError, match="--accumulate 2 makes micro-batches of one image"):
        task_of("upernet", batch_size=3, accumulate=2).train_batches()
    with pytest.raises(UserError, match="head semantic_fpn cannot learn at 32x32 pixels"):
        task_of(image_size=32, batch_size=1).train_batches()
    for task in (task_of("upernet", batch_size=4, accumulate=2), task_of(image_size=(32, 33), batch_size=1)):
        model, batch = task.build_model().train(), next(iter(task.train_batches()))
        part, share = task.split(batch, task.config.accumulate)[-1]
        labelled = [(masks != IGNORE).sum() for masks in (part[1], batch[1])]
        torch.testing.assert_close(share, labelled[0] / labelled[1])
        assert task.loss(model, part)[0].isfinite()


# ---- metrics ----------------------------------------------------------------------------------------------------


def test_metrics_of_a_real_set(test_data, tmp_path):
    data = DataConfig("ade20k", root=str(test_data / "ade_mini"), val_split="all")
    images, labels = open_semantic(data, False), labels_of(data)
    expected = json.loads((test_data / "ade_mini/results/expected.json").read_text())
    halves = [SemanticMetrics(images.classes) for _ in range(2)]
    for i in range(len(images)):
        _, target = images[i]
        values = read_mask(test_data / f"ade_mini/results/pred/{target['name']}.png")
        found = torch.from_numpy(labels.indices(values, "found")).to(torch.uint8)
        halves[i % 2].update([found], ([], [target], torch.tensor([i])))
    joined = SemanticMetrics(images.classes)
    joined.load([half.state() for half in halves])
    metrics = joined.compute()
    names = {
        "aAcc": "aAcc",
        "mIoU": "mIoU_over_classes_with_union",
        "mIoU_all": "mIoU_over_all_classes_absent_as_zero",
        "mAcc": "mAcc_over_classes_in_gt",
    }
    assert [metrics[name] for name in names] == pytest.approx([expected[name] for name in names.values()], abs=1e-7)
    assert metrics["images"] == 4
    joined.report(tmp_path)
    rows = (tmp_path / "per_class.csv").read_text().splitlines()
    assert rows[0] == "class,IoU,accuracy,pixels"
    assert len(rows) == 151


def test_what_is_measured_is_the_class_of_every_pixel(task_of):
    """Against maps found one by one, counted with NumPy at the images' own sizes."""
    task = task_of()
    model = task.build_model()
    metrics = measure(model, task.eval_batches(), task.metrics(), infer=task.infer).compute()
    counts = np.zeros((4, 4), dtype=np.int64)
    for i in range(3):
        image, target = task.eval_set[i]
        [found] = task.inference.predict(model, [image], "cpu")
        truth = task.inference.ground_truth(target).indices
        assert truth.shape == (60 + i, 90)
        known = truth != IGNORE
        np.add.at(counts, (truth[known], found.indices[known]), 1)
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert metrics["mIoU"] == pytest.approx((hits[union > 0] / union[union > 0]).mean())
    assert metrics["aAcc"] == pytest.approx(hits.sum() / counts.sum())
    assert (metrics["images"], metrics["pixels"]) == (3, counts.sum())


def test_a_run_learns_and_shows_it(root, tmp_path):
    pytest.importorskip("accelerate")
    from vitrail.engine.evaluate import evaluate
    from vitrail.engine.trainer import fit

    config = TrainConfig(
        task="semantic_segmentation",
        model="mat_1",
        model_options=TINY,
        head_options=HEADS["semantic_fpn"],
        data=DataConfig("ade20k", root=str(root)),
        segmentation=SegmentationConfig(short_side=60, scale=(1.0, 1.0), photometric=False),
        image_size=64,
        batch_size=2,
        epochs=12,
        eval_every=12,
        lr=1e-2,
        device="cpu",
        output=str(tmp_path / "run"),
    )
    losses = []
    summary = fit(config, lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert summary["metrics"]["mIoU"] > 0.4  # a class everywhere has less than 0.1
    assert summary["metrics"]["images"] == 3
    assert (tmp_path / "run" / "per_class.csv").read_text().count("\n") == 5
    assert "%" in summary["examples"][0]["prediction"]
    assert [Path(row["name"]).name for row in summary["examples"]] == ["0.png", "1.png", "2.png"]
    again = evaluate(config.output, batch_size=2, device="cpu")  # the size of images is stored with the weights
    assert again["mIoU"] == pytest.approx(summary["metrics"]["mIoU"])
    mirrored = evaluate(config.output, device="cpu", inference=InferenceConfig(flip=True, window=48))
    assert mirrored["mIoU"] != again["mIoU"]
    assert mirrored["mIoU"] > 0.4


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"score_thresh": 0.5},
            r"--inference\.score_thresh 0\.5 is not for semantic_segmentation, .* window",
        ),
        ({"nms_thresh": 0.5}, r"--inference\.nms_thresh"),
        ({"max_detections": 5}, r"--inference\.max_detections"),
        ({"boxes": "x.json"}, r"--inference\.boxes"),
        ({"window": 0}, r"--inference\.window 0"),
        ({"scales": []}, r"--inference\.scales \[\]"),
    ],
)
def test_options_that_are_not_for_maps(options, says):
    with pytest.raises(UserError, match=says):
        inference(**options)


def test_a_recipe_that_cannot_work(task_of):
    with pytest.raises(UserError, match=r"learns from --data ade20k \(any images with masks"):
        task_of(data=DataConfig("coco"))
    with pytest.raises(UserError, match="Unknown head of semantic_segmentation 'retinanet'"):
        SemanticSegmentation(TrainConfig(head="retinanet", data=DataConfig("ade20k")))
    with pytest.raises(BadOption, match=r"segmentation\.short_side=0"):
        task_of(segmentation=SegmentationConfig(short_side=0))
    with pytest.raises(BadOption, match=r"segmentation\.hflip=3"):
        task_of(segmentation=SegmentationConfig(hflip=3)).train_batches()
