"""Learning from a teacher: every loss against its definition, what the teacher sees, and which teachers are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

import vitrail  # noqa: F401
from annotated_helpers import write_coco
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import AugmentConfig, DataConfig, Preprocess
from vitrail.config.train import DistillConfig, TrainConfig
from vitrail.data.datasets.index_masks import IGNORE
from vitrail.data.datasets.unlabelled import UNLABELLED, WithUnlabelled
from vitrail.errors import UserError
from vitrail.factory import assemble
from vitrail.tasks import build_task, classification
from vitrail.tasks.classification import Classification
from vitrail.tasks.detection import pyramid_loss, seen_levels
from vitrail.tasks.losses import feature_loss, hard_label_loss, pixel_loss, soft_label_loss
from vitrail.tasks.teacher import Teacher, WithProjection, kept, training_only

TINY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
COLOURS = {"blue": (20, 30, 200), "red": (200, 30, 20), "yellow": (200, 200, 20)}
PLAIN = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images a class, and five without a label."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for split, count in (("train", 4), ("val", 2)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + rng.integers(-20, 20, (32, 40, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    (root / "more" / "deep").mkdir(parents=True)
    for i in range(5):
        pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "more" / ("deep" if i % 2 else ".") / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Writes a teacher of classes: fresh weights, of which the head is scaled so that it is sure of something."""

    def write(classes, model="mat_1", name="teacher", size=(32, 32), **preprocess):
        torch.manual_seed(3)
        network = timm.create_model(model, num_classes=len(classes), **(TINY if model == "mat_1" else {}))
        with torch.no_grad():
            network.get_classifier().weight.mul_(30)
        meta = WeightsMeta(
            model,
            TINY if model == "mat_1" else {},
            classes=list(classes),
            preprocess=Preprocess(size, crop_pct=1.0, **preprocess),
            licence="CC0-1.0",
            training_data="noise",
        )
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_weights(path, network.state_dict(), meta)
        return str(path)

    return write


@pytest.fixture(scope="module")
def teacher(weights):
    return weights(COLOURS)


@pytest.fixture
def recipe(photos, teacher):
    def make(distill=None, **changes) -> TrainConfig:
        values = {
            "model": "test_vit",
            "model_options": {"img_size": 32},
            "mean": Preprocess().mean,  # as the teacher's
            "std": Preprocess().std,
            "data": DataConfig("folder", root=str(photos)),
            "augment": PLAIN,
            "image_size": 32,
            "batch_size": 4,
            "teacher": teacher,
            "distill": DistillConfig(**(distill or {})),
            "device": "cpu",
        }
        return TrainConfig(**{**values, **changes})

    return make


# ---- losses against their definitions ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 4, 3), (1, 2)])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 8.0])
def test_the_soft_loss_is_the_divergence(shape, temperature):
    own, taught = torch.randn(2, *shape, dtype=torch.float64).unbind()
    p, q = (np.exp(x.numpy() / temperature) for x in (taught, own))
    p, q = (x / x.sum(1, keepdims=True) for x in (p, q))
    expected = temperature**2 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(soft_label_loss(own, taught, temperature).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert float(soft_label_loss(own, own + 3, temperature).abs().max()) < 1e-5  # a constant changes no probability


def test_the_soft_loss_of_two_classes_in_closed_form():
    loss = soft_label_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]]), 1.0)
    assert float(loss) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_the_gradient_of_a_hot_soft_loss_is_that_of_the_logits():
    """For a high temperature: (own - taught) / K, both less their means (Hinton et al., Sec. 2.1)."""
    own, taught = torch.randn(2, 1, 6, dtype=torch.float64).unbind()
    own.requires_grad_()
    soft_label_loss(own, taught, 1000.0).sum().backward()
    expected = (own - own.mean() - taught + taught.mean()).detach() / 6
    torch.testing.assert_close(own.grad, expected, rtol=0.02, atol=2e-4)


def test_the_hard_loss_is_the_entropy_of_the_likeliest():
    own, taught = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 9.0, 1.0]])
    assert float(hard_label_loss(own, taught)) == pytest.approx(math.log(math.e + math.e**2 + math.e**3) - 2)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3, 2)])
def test_the_feature_loss_is_one_minus_the_cosine(shape):
    own, taught = torch.randn(2, *shape).unbind()
    a, b = (x.movedim(1, -1).reshape(shape[0], -1, shape[1]).numpy() for x in (own, taught))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(feature_loss(own, taught).numpy(), (1 - cosine).mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(feature_loss(own, 7 * own), torch.zeros(shape[0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(feature_loss(own, -own), torch.full((shape[0],), 2.0))


# ---- the loss of a classifier -----------------------------------------------------------------------------------


def step(config, batch=0):
    """A task, its network, the first batch after mixing, and the loss."""
    task = build_task(config)
    network = task.trained(task.build_model()).eval()
    loader = task.train_batches(0, 1)
    loader.set_epoch(0, batch)
    mixed = task.mix(next(iter(loader)))
    return task, network, mixed, task.loss(network, mixed)


@pytest.mark.parametrize(("loss", "weight"), [("soft", 0.0), ("soft", 0.3), ("hard", 0.6), ("soft", 1.0)])
def test_the_teacher_has_its_share_of_the_loss(recipe, loss, weight):
    features = 0.0 if weight else 1.0
    given = {"loss": loss, "weight": weight, "temperature": 3.0, "features": features}
    task, network, (x, y), (found, correct) = step(recipe(given, smoothing=0.1))
    taught = task.distiller.teacher.network(x)
    output = network(x)
    own = output[0] if features else output
    labels = F.cross_entropy(own, y, label_smoothing=0.1)
    kinds = {"soft": lambda: soft_label_loss(own, taught, 3.0), "hard": lambda: hard_label_loss(own, taught)}
    expected = (1 - weight) * labels + weight * kinds[loss]().mean()
    if features:
        expected = expected + feature_loss(output[1], task.distiller.teacher.network.forward_head(
            task.distiller.teacher.network.forward_features(x), pre_logits=True)).mean()  # fmt: skip
    torch.testing.assert_close(found, expected)
    assert int(correct) == int((own.argmax(1) == y).sum())


def test_a_batch_in_parts_has_the_same_loss(recipe):
    config = recipe({"features": 0.5}, data=DataConfig("folder", root=recipe().data.root))
    task, network, mixed, (whole, _) = step(config)
    parts = sum(task.loss(network, part)[0] * share for part, share in task.split(mixed, 3))
    torch.testing.assert_close(parts, whole)


def test_a_student_begins_with_the_weights_it_has_without_a_teacher(recipe):
    states = []
    for changes in ({}, {"teacher": None}):
        torch.manual_seed(5)
        states.append(build_task(recipe(**changes)).build_model().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_projections_learn_and_are_not_kept(recipe):
    task, network, _, (loss, _) = step(recipe({"features": 1.0}))
    assert isinstance(network, WithProjection)
    loss.backward()
    assert {tuple(p.shape) for p in training_only(network)} == {(1280, 64), (1280,)}
    assert all(p.grad.abs().sum() > 0 for p in training_only(network))
    assert set(kept(network).state_dict()) == set(task.build_model().state_dict())
    # a network without features is trained as it is
    plain = build_task(recipe())
    model = plain.build_model()
    assert plain.trained(model) is model
    assert (kept(model), training_only(model)) == (model, [])


# ---- images without labels --------------------------------------------------------------------------------------


def test_images_without_labels_follow_those_with(photos, recipe):
    task = build_task(recipe(data=DataConfig("folder", root=str(photos), unlabelled=str(photos / "more"))))
    images = task.train_set
    assert isinstance(images, WithUnlabelled)
    assert images.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [UNLABELLED] * 5
    assert [images.key(i) for i in (0, 12, 16)] == ["blue/0.png", "unlabelled/0.png", "unlabelled/deep/3.png"]
    assert np.array_equal(np.asarray(images.image(12)), np.asarray(Image.open(photos / "more" / "0.png")))
    assert images.stored(12) != images.stored(13)
    assert "an epoch has 17" in " ".join(task.notes())
    assert task.training_data == f"folder: {photos.name} and unlabelled images of more; teacher mat_1 (CC0-1.0)"


@pytest.mark.parametrize("mixup", [0.0, 0.7])
def test_an_image_without_a_label_has_the_teachers_loss_alone(photos, recipe, monkeypatch, mixup):
    data = DataConfig("folder", root=str(photos), unlabelled=str(photos / "more"))
    config = recipe(
        {"weight": 0.4}, data=data, batch_size=16, smoothing=0.2, augment=replace(PLAIN, mixup=mixup, cutmix=mixup)
    )
    task = build_task(config)
    network = task.build_model().eval()
    x, y = next(iter(task.train_batches(0, 1)))
    np.random.seed(0)  # noqa: NPY002
    mixed, target = task.mix((x, y))
    loss, correct = task.loss(network, (mixed, target))
    own, taught = network(mixed), task.distiller.teacher.network(mixed)
    of_teacher = soft_label_loss(own, taught, 2.0)
    if mixup:
        unknown = (y == UNLABELLED) | (y.flip(0) == UNLABELLED)
        assert 0 < int(unknown.sum()) < 16
        np.random.seed(0)  # noqa: NPY002
        again, labels = timm.data.Mixup(mixup, mixup, num_classes=3, label_smoothing=0.2)(x.clone(), y.clamp(min=0))
        assert torch.equal(again, mixed)
        torch.testing.assert_close(target[~unknown], labels[~unknown])
        of_label = -(labels * own.log_softmax(1)).sum(1)
    else:
        unknown = y == UNLABELLED
        of_label = F.cross_entropy(own, y.clamp(min=0), label_smoothing=0.2, reduction="none")
    expected = torch.where(unknown, of_teacher, 0.6 * of_label + 0.4 * of_teacher).mean()
    torch.testing.assert_close(loss, expected)
    assert torch.isnan(correct)
    # and a caption of its own in the image of the first batch
    titles = []
    monkeypatch.setattr(classification, "with_title", lambda image, text, size: titles.append(text) or image)
    task.batch_images((mixed, target), 16)
    assert [title == "no label" for title in titles] == unknown.tolist()


# ---- what the teacher sees --------------------------------------------------------------------------------------


def test_the_teacher_sees_its_own_normalisation_and_size(weights):
    path = weights(COLOURS, name="other", size=(48, 64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    student = Preprocess((32, 32), mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
    teacher = Teacher(path, student)
    image = torch.rand(1, 3, 32, 32)
    x = (image - torch.tensor(student.mean).view(3, 1, 1)) / torch.tensor(student.std).view(3, 1, 1)
    own = (image - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(teacher.inputs(x), own)
    resized = F.interpolate(own, (48, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(teacher.inputs(x, (48, 64)), resized, rtol=1e-4, atol=1e-4)
    note = teacher.note((48, 64))
    assert "resized from 32x32 to its 48x64 pixels, normalised by its own mean and std" in note
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_the_same_preprocessing_changes_nothing(teacher):
    x = torch.randn(2, 3, 32, 32)
    same = Teacher(teacher, Preprocess((32, 32)))
    assert same.inputs(x, (32, 32)) is x
    assert "sees" not in same.note((32, 32))


def test_a_grey_student_and_a_teacher_of_colours(teacher):
    student = Preprocess((32, 32), mean=(0.5,), std=(0.5,), in_chans=1)
    found = Teacher(teacher, student)
    grey = torch.rand(1, 1, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (Preprocess().mean, Preprocess().std))
    torch.testing.assert_close(found.inputs((grey - 0.5) / 0.5), (grey.expand(-1, 3, -1, -1) - mean) / std)
    assert "three equal channels" in found.note(None)


def test_another_order_of_classes_is_mapped(recipe, weights):
    order = ["yellow", "blue", "red"]
    task, _, (x, _), _ = step(recipe(teacher=weights(order)))
    taught = task.distiller.teacher.network(x)
    torch.testing.assert_close(task.distiller.outputs(x)["logits"], taught[:, [1, 2, 0]])


def test_a_teacher_that_knows_more_is_asked_for_the_datas_classes(recipe, weights):
    task, _, (x, _), _ = step(recipe(teacher=weights(["green", *COLOURS, "pink"])))
    assert task.distiller.outputs(x)["logits"].shape == (4, 3)
    assert "of the teacher's 5 classes the 3 of the data count" in " ".join(task.notes())


def test_a_teacher_of_other_classes_is_refused_unless_its_features_alone_count(recipe, weights):
    other = weights(["cat", "dog", "red"])
    with pytest.raises(UserError, match=r"the class 'blue', which is none of those --teacher .* was trained on"):
        build_task(recipe(teacher=other))
    *_, (loss, _) = step(recipe({"weight": 0.0, "features": 1.0}, teacher=other))
    assert torch.isfinite(loss)


def test_a_teacher_of_another_task_is_refused(recipe, tmp_path):
    network = assemble("mat_1", "semantic_fpn", TINY, {"num_classes": 3, "channels": 8, "fpn_channels": 8})
    meta = WeightsMeta(
        "mat_1",
        TINY,
        head="semantic_fpn",
        head_options={"num_classes": 3, "channels": 8, "fpn_channels": 8},
        task="semantic_segmentation",
        classes=list(COLOURS),
    )
    path = tmp_path / "pixels.safetensors"
    save_weights(path, network.state_dict(), meta)
    with pytest.raises(UserError, match="is a network for semantic_segmentation, not for classification"):
        build_task(recipe(teacher=str(path)))


# ---- tasks with a head ------------------------------------------------------------------------------------------


def save_head(path, head, classes, options, task):
    torch.manual_seed(7)
    network = assemble("mat_1", head, {"depths": [1, 1, 1, 1]}, options)
    meta = WeightsMeta(
        "mat_1", {"depths": [1, 1, 1, 1]}, head=head, head_options=options, task=task, classes=list(classes)
    )
    save_weights(path, network.state_dict(), meta)
    return str(path)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
            mask = np.kron(rng.integers(0, 3, (4, 4)), np.ones((16, 16))).astype(np.uint8)
            mask[:8] = 255
            Image.fromarray(mask).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.json").write_text('{"classes": ["road", "sky", "tree"], "ignore_index": 255}')
    return root


def pixels_recipe(root, **changes):
    return TrainConfig(
        task="semantic_segmentation",
        model="mat_1",
        model_options={"depths": [1, 1, 1, 1]},
        head="semantic_fpn",
        head_options={"channels": 8, "fpn_channels": 8, "dropout": 0.0},
        data=DataConfig("ade20k", root=str(root)),
        image_size=64,
        batch_size=4,
        device="cpu",
        **changes,
    )


def test_pixels_learn_from_the_teachers_pixels(streets, tmp_path):
    options = {"num_classes": 3, "channels": 8, "fpn_channels": 8, "dropout": 0.0}
    order = ["sky", "tree", "road"]
    path = save_head(tmp_path / "t.safetensors", "semantic_fpn", order, options, "semantic_segmentation")
    task = build_task(pixels_recipe(streets, teacher=path, distill=DistillConfig(weight=0.3, temperature=1.5)))
    assert task.classes == ["road", "sky", "tree"]
    model = task.build_model().eval()
    images, masks = next(iter(task.train_batches(0, 1)))
    loss, _ = task.loss(model, (images, masks))
    own = F.interpolate(model(images), masks.shape[-2:], mode="bilinear", align_corners=False)
    taught = F.interpolate(task.teacher.network(images), masks.shape[-2:], mode="bilinear", align_corners=False)
    p = (taught[:, [2, 0, 1]] / 1.5).softmax(1)
    divergence = (p * (p.log() - (own / 1.5).log_softmax(1))).sum(1) * 1.5**2
    labelled = masks != IGNORE
    torch.testing.assert_close(
        loss, 0.7 * pixel_loss(own, masks) + 0.3 * divergence[labelled].mean(), rtol=1e-4, atol=1e-5
    )
    parts = sum(task.loss(model, part)[0] * share for part, share in task.split((images, masks), 4))
    torch.testing.assert_close(parts, loss, rtol=1e-4, atol=1e-5)
    assert "teacher mat_1" in task.training_data


def test_pixels_of_other_classes_are_refused(streets, tmp_path):
    options = {"num_classes": 3, "channels": 8, "fpn_channels": 8}
    path = save_head(tmp_path / "t.safetensors", "semantic_fpn", "abc", options, "semantic_segmentation")
    with pytest.raises(UserError, match="other classes than the data: it does not know 'road'"):
        build_task(pixels_recipe(streets, teacher=path))


def boxes_recipe(root, **changes):
    return TrainConfig(
        **{
            "task": "detection",
            "model": "mat_1",
            "model_options": {"depths": [1, 1, 1, 1]},
            "head": "retinanet",
            "head_options": {"channels": 16},
            "data": DataConfig("coco", root=str(root)),
            "image_size": 64,
            "batch_size": 4,
            "device": "cpu",
            **changes,
        }
    )


def test_a_pyramid_learns_from_the_teachers_levels(tmp_path):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path / "coco", {"train": 4, "val": 2})
    path = save_head(tmp_path / "t.safetensors", "retinanet", "ab", {"num_classes": 2, "channels": 16}, "detection")
    plain = build_task(boxes_recipe(root))
    task = build_task(boxes_recipe(root, teacher=path, distill=DistillConfig(features=2.0)))
    model = task.build_model().train()
    for module in model.modules():  # its statistics would be those of the parts
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = next(iter(task.train_batches(0, 1)))
    with seen_levels(model, True) as seen:
        boxes, _ = plain.loss(model, batch)
    images, levels = seen[0]
    taught = task.teacher.network.backbone(images)
    cosine = [F.cosine_similarity(levels[name], taught[name], dim=1).mean() for name in levels]
    assert len(cosine) == 5
    torch.testing.assert_close(pyramid_loss(task.teacher, images, levels), 1 - torch.stack(cosine).mean())
    loss, _ = task.loss(model, batch)
    torch.testing.assert_close(loss, boxes + 2 * (1 - torch.stack(cosine).mean()))
    parts = sum(task.loss(model, part)[0] * share for part, share in task.split(batch, 2))
    torch.testing.assert_close(parts, loss, rtol=1e-4, atol=1e-4)
    assert not model.backbone._forward_hooks
    with pytest.raises(UserError, match=r"a pyramid of 16 channels and this network one of 8"):
        build_task(boxes_recipe(root, teacher=path, head_options={"channels": 8}))


# ---- words ------------------------------------------------------------------------------------------------------


def test_mistakes_with_a_teacher(photos, teacher, tmp_path, mistake):
    train = ["train", "--data", "folder", "--data.root", str(photos), "--image_size", "32", "--device", "cpu"]
    train += ["--output", str(tmp_path / "run"), "--model_options.depths", "[1,1,1,1]"]
    assert "it needs --teacher" in mistake(*train, "--distill.weight", "0.3")
    assert "it needs --teacher" in mistake(*train, "--data.unlabelled", str(photos / "more"))
    taught = [*train, "--teacher", teacher]
    assert "--teacher" in mistake(*taught, "--distill.weight", "0")
    assert "--distill.loss soft" in mistake(*taught, "--distill.loss", "hard", "--distill.temperature", "3")
    assert "soft" in mistake(*taught, "--distill.loss", "warm")
    assert "is no folder" in mistake(*taught, "--data.unlabelled", str(tmp_path / "nowhere"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "tensors.pth")
    assert "does not say its network: give a run" in mistake(*train, "--teacher", str(tmp_path / "tensors.pth"))
    assert "no weights file" in mistake(*train, "--teacher", str(tmp_path / "nothing.safetensors"))
    said = mistake(*train, "--task", "keypoints", "--teacher", teacher)
    assert "--teacher" in said
    assert "is for --task" in said
    evaluated = ["evaluate", teacher, "--data", "folder", "--data.root", str(photos)]
    assert "images without labels" in mistake(*evaluated, "--data.unlabelled", str(photos / "more"))
    assert not (tmp_path / "run").exists()


def test_a_validation_image_without_a_label_is_refused(photos, recipe):
    data = DataConfig("folder", root=str(photos), unlabelled=str(photos / "val"))
    with pytest.raises(UserError, match="are images to learn from"):
        Classification(recipe(data=data))
