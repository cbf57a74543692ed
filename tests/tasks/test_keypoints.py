"""Keypoints of persons: metrics, and a run from training to use."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from keypoint_helpers import NAMES, PERSON, Bright, Fixed, four_persons, person, write_keypoints
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.load import load_network
from vitrail.cli import main
from vitrail.config.data import DataConfig
from vitrail.config.tasks import InferenceConfig, KeypointsConfig
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.coco_keypoints import CocoKeypoints, open_keypoints
from vitrail.data.transforms.keypoints import crop_matrix, inverse_matrix, transform_points
from vitrail.engine.option_rules import check
from vitrail.errors import UserError
from vitrail.metrics.coco import average_precision, packed, tolerances
from vitrail.metrics.keypoints import KeypointsMetrics, suppress_duplicates, to_image
from vitrail.tasks import build_task, task_of
from vitrail.tasks.keypoints import decode_heatmaps
from vitrail.utils.plain import from_dict

pytest.importorskip("faster_coco_eval")
SHORT = {"depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("persons")
    for part in ("train", "val"):
        write_keypoints(folder, four_persons(), part)
    return folder


def config(root: Path, **options) -> TrainConfig:
    data = DataConfig(name="coco", root=str(root))
    given = {"task": "keypoints", "model": "mat_1", "model_options": SHORT, "head_options": {"deconv_channels": 8}}
    return TrainConfig(**{**given, "data": data, "image_size": (64, 32), "batch_size": 3, **options})


# ---- metrics ----------------------------------------------------------------------------------------------------


def test_stored_poses_have_their_metrics(test_data):
    root = test_data / "coco_kpt_mini"
    counts = KeypointsMetrics(open_keypoints(DataConfig(name="coco", root=str(root), val_split="all"), train=False))
    results = json.loads((root / "results/all_keypoints.json").read_text())
    counts.load([packed([{**record, "area": 1.0} for record in part]) for part in (results[:30], results[30:])])
    metrics = counts.compute()
    expected = json.loads((root / "results/all_expected.json").read_text())["keypoints"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["boxes"] == 86


def fed(counts, batches, shift: float = 0.0):
    """Counts that took in the true keypoints, moved to the right by so many pixels of the image."""
    for crops, targets, numbers in batches:
        places = []
        for target in targets:
            keypoints = target["keypoints"].astype(float)
            there = transform_points(keypoints[:, :2] + 0.5 + [shift, 0], inverse_matrix(target["back"]))
            places.append(np.column_stack([there, np.full(17, 0.3 + target["box"][0] / 200)]))
        counts.update(torch.tensor(np.stack(places)), (crops, targets, numbers))
    return counts


def test_the_truth_has_full_precision(root):
    task = build_task(config(root))
    metrics = fed(task.metrics(), task.eval_batches()).compute()
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["boxes"] == 4
    # so far off that only the looser thresholds are met
    assert 0 < fed(task.metrics(), task.eval_batches(), 1.5).compute()["AP"] < 1


def test_a_limit_measures_these_persons_alone(root):
    task = build_task(config(root, data=DataConfig(name="coco", root=str(root), limit=3, val_split="train")))
    assert fed(task.metrics(), task.eval_batches()).compute()["AP"] == pytest.approx(1.0)
    assert len(task.eval_set) == len(task.train_set) == 3


def test_results_are_a_file_that_evaluate_reads(root, tmp_path, capsys):
    task = build_task(config(root))
    counts = fed(task.metrics(), task.eval_batches(), 1.5)
    counts.report(tmp_path)
    argv = ["evaluate", "--task", "keypoints", "--predictions", str(tmp_path / "results.json"), "--json"]
    assert main([*argv, "--data", "coco", "--data.root", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["AP"] == counts.compute()["AP"]


def test_two_processes_measure_what_one_does(root):
    task = build_task(config(root, batch_size=2))
    parts = [fed(task.metrics(), task.eval_batches(rank, 2), 1.0) for rank in (0, 1)]
    joined = task.metrics()
    joined.load([part.state() for part in parts])
    assert joined.compute() == fed(task.metrics(), task.eval_batches(), 1.0).compute()


def test_a_detectors_boxes_are_measured_with_their_scores(root, tmp_path):
    boxes = [{"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5} for a in four_persons()]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    task = build_task(config(root, inference=InferenceConfig(boxes=str(path), flip=True)))
    assert (len(task.eval_set), len(task.train_set)) == (4, 4)
    counts = task.metrics()
    for crops, targets, numbers in task.eval_batches():
        counts.update(task.infer(Bright(), crops), (crops, targets, numbers))
    plain = build_task(config(root, inference=InferenceConfig(flip=True)))
    own = plain.metrics()
    for crops, targets, numbers in plain.eval_batches():
        own.update(plain.infer(Bright(), crops), (crops, targets, numbers))
    half = sorted((r["image_id"], r["keypoints"], 2 * r["score"]) for r in counts.results)
    assert half == sorted((r["image_id"], r["keypoints"], r["score"]) for r in own.results)
    assert isinstance(counts.compute()["AP"], float)
    rows = task.examples(Fixed(torch.rand(1, 17, 16, 8)), torch.device("cpu"), 2)
    assert [row["truth"] for row in rows] == ["2 persons with 15 and 15 of 17 keypoints"] * 2
    assert all(row["prediction"].startswith("2 persons with ") for row in rows)


#: COCO's, as its description of the metric lists them: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


def pose(score: float, shift: float = 0.0, image: int = 1, area: float = 900.0) -> dict:
    x, y = np.arange(34).reshape(17, 2).T
    flat = np.column_stack([x + shift, y, np.ones(17)]).ravel().tolist()
    return {"image_id": image, "category_id": 1, "keypoints": flat, "score": score, "area": area}


def test_of_two_alike_poses_the_surer_stays():
    def alike(shift: float, area: float) -> float:
        return float(np.exp(-(shift**2) / (2 * area * (2 * SIGMAS) ** 2)).mean())

    near = next(d for d in np.arange(0, 9, 0.01) if alike(d, 1350) < 0.9)
    records = [pose(0.5), pose(0.9, near - 0.01, area=1800), pose(0.8, image=2)]
    assert sorted(r["score"] for r in suppress_duplicates(records, SIGMAS)) == [0.8, 0.9]
    records[1] = pose(0.9, near, area=1800)
    assert sorted(r["score"] for r in suppress_duplicates(records, SIGMAS)) == [0.5, 0.8, 0.9]
    assert suppress_duplicates([], SIGMAS) == []


def test_who_is_dropped_drops_nobody():
    """b is dropped for a; c, alike to b but not to a, stays."""
    near = next(d for d in np.arange(0, 9, 0.01) if np.exp(-(d**2) / (7200 * SIGMAS**2)).mean() < 0.9)
    records = [pose(0.9), pose(0.8, 0.7 * near), pose(0.7, 1.4 * near)]
    assert [r["score"] for r in suppress_duplicates(records, SIGMAS)] == [0.9, 0.7]


def test_places_are_pixel_numbers():
    back = inverse_matrix(crop_matrix((0, 0, 96, 64), (64, 96), 1.0))
    assert to_image(np.array([[10.5, 20.5, 0.3]]), back)[0].tolist() == pytest.approx([10, 20, 0.3])


# ---- training ---------------------------------------------------------------------------------------------------


def test_a_step_has_a_finite_loss_and_a_gradient_everywhere(root):
    task = build_task(config(root))
    model = task.build_model().train()
    batches = task.train_batches()
    batches.set_epoch(0)
    loss, right = task.loss(model, next(iter(batches)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isnan(right)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if task.is_head(name, model) and not p.grad.any()] == []


def batch_of(seed: int = 0) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.rand(4, 3, 64, 32, generator=rng),
        torch.rand(4, 17, 16, 8, generator=rng),
        (torch.rand(4, 17, generator=rng) < 0.7).float(),
    )


def test_the_loss_is_that_of_visible_keypoints(root):
    task, batch = build_task(config(root)), batch_of()
    maps = torch.rand(1, 17, 16, 8)
    model = Fixed(maps)
    expected = 0.0
    for keypoint in range(17):  # as the original writes it, without its half
        weight = batch[2][:, keypoint, None, None]
        expected += F.mse_loss(weight * maps[:, keypoint], weight * batch[1][:, keypoint]) / 17
    assert task.loss(model, batch)[0] == pytest.approx(float(expected), rel=1e-5)
    nothing = (batch[0], batch[1], torch.zeros(4, 17))
    assert task.loss(model, nothing)[0] == 0.0


def test_parts_of_a_batch_add_up(root):
    task, batch = build_task(config(root)), batch_of()
    model = Fixed(torch.rand(1, 17, 16, 8))
    parts = task.split(batch, 3)
    assert [len(part[0]) for part, _ in parts] == [2, 2]
    total = sum(share * task.loss(model, part)[0] for part, share in parts)
    assert total == pytest.approx(float(task.loss(model, batch)[0]), rel=1e-5)


def test_a_head_learns_one_person_by_heart(root):
    still = KeypointsConfig(scale=0.0, rotation=0.0, hflip=0.0)
    data = DataConfig(name="coco", root=str(root), limit=1)
    head = {"deconv_channels": 32}
    task = build_task(config(root, keypoints=still, data=data, head_options=head, image_size=(96, 64)))
    torch.manual_seed(0)
    model = task.build_model().train()
    batch = next(iter(task.train_batches()))
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(50):
        optimizer.zero_grad()
        loss, _ = task.loss(model, batch)
        loss.backward()
        optimizer.step()
    known = batch[2][0] > 0
    found, target = (decode_heatmaps(maps)[0, known, :2] for maps in (model(batch[0]).detach(), batch[1]))
    assert known.sum() == 15
    assert (found - target).norm(dim=1).mean() < 5  # of crops of 96x64 pixels


def test_a_run_can_be_measured_and_used(root, tmp_path, capsys):
    out, image = tmp_path / "run", tmp_path / "odd.png"
    argv = ["train", "--task", "keypoints", "--model", "mat_1", "--model_options", json.dumps(SHORT)]
    argv += ["--head_options", '{"deconv_channels": 8}', "--data", "coco", "--data.root", str(root)]
    argv += ["--image_size", "64", "32", "--batch_size", "2", "--epochs", "1", "--max_steps", "1", "--device", "cpu"]
    argv += ["--keypoints.padding", "1.5"]
    assert main([*argv, "--output", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["metrics"]["boxes"] == 4
    assert len(list((out / "examples").glob("*.jpg"))) == 2
    assert (out / "results.json").is_file()
    assert main(["evaluate", str(out), "--json", "--device", "cpu", "--output", str(tmp_path / "measured")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("crops_per_second") > 0
    assert again == summary["metrics"]
    argv = ["evaluate", "--task", "keypoints", "--predictions", str(out / "results.json"), "--data", "coco"]
    assert main([*argv, "--data.root", str(root), "--json"]) == 0
    assert {**json.loads(capsys.readouterr().out), "boxes": 4} == summary["metrics"]
    stored = [json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "measured")]
    for one, other in zip(*stored, strict=True):
        assert one["keypoints"] == pytest.approx(other["keypoints"], abs=1e-3)
    Image.new("RGB", (37, 101), (90, 120, 30)).save(image)
    assert main(["predict", str(out), str(image), "--save", str(tmp_path / "drawn"), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["names"] == NAMES
    assert np.shape(found["keypoints"]) == (1, 17, 3)
    assert Image.open(found["saved"]).size == (37, 101)
    network = load_network(out)
    assert (network.meta.head, network.meta.classes) == ("simple_baseline", NAMES)
    assert network.meta.settings["keypoints"]["padding"] == 1.5


CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_recipe_of_the_paper_is_that_of_its_head():
    recipe = from_dict(TrainConfig, yaml.safe_load((CONFIGS / "partialformer/keypoints.yaml").read_text()))
    check(recipe)
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (210, 512, 5e-4)
    assert recipe.optim.warmup_iterations == 500
    assert recipe.keypoints == KeypointsConfig()


def test_the_small_recipe_is_of_eight_persons(test_data):
    recipe = from_dict(TrainConfig, yaml.safe_load((CONFIGS / "mini/keypoints.yaml").read_text()))
    recipe.data.root = str(test_data / "coco_kpt_mini")
    check(recipe)
    task = build_task(recipe)
    assert len(task.train_set) == len(task.eval_set) == 8
    inputs, maps, weights = next(iter(task.train_batches()))
    assert (inputs.shape, maps.shape) == ((8, 3, 256, 192), (8, 17, 64, 48))
    # keypoints at their pixels' middles, which is as near as the maps can say, are near enough
    counts = task.metrics()
    order = task.train_batches().order(0).argsort()
    for crops, targets, numbers in task.eval_batches():
        counts.update(decode_heatmaps(maps[order]), (crops, targets, numbers))
    labelled = sum(int((person.keypoints[:, 2] > 0).sum()) for person in task.eval_set.persons)
    assert (labelled, weights.sum()) == (105, 103)  # two lie outside their crops
    assert counts.compute()["AP"] == pytest.approx(0.943, abs=0.001)


def test_a_trained_network_needs_no_data(root):
    task = build_task(config(root, keypoints=KeypointsConfig(padding=1.5)))
    model = task.build_model()
    meta = WeightsMeta(
        "mat_1", SHORT, head=task.head, head_options=task.head_options, task=task.name, classes=task.classes,
        preprocess=task.preprocess, settings=task.settings,
    )  # fmt: skip
    again = task_of(meta)
    assert again.head_options == task.head_options == {"num_keypoints": 17, "deconv_channels": 8}
    image = Image.new("RGB", (50, 40), (200, 30, 40))
    mine, theirs = (t.inference.predict(model, [image], "cpu")[0].poses for t in (task, again))
    assert np.array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "retinanet"}, "head of keypoints"),
        ({"image_size": (60, 32)}, "multiples of 32"),
        ({"data": DataConfig(name="digits")}, r"--data coco \(.*\), not digits"),
        ({"inference": InferenceConfig(window=3)}, "window 3 is not for keypoints"),
        ({"keypoints": KeypointsConfig(sigma=-1.0)}, "sigma=-1.0"),
        ({"keypoints": KeypointsConfig(padding=-1.0)}, "padding=-1.0"),
    ],
)
def test_a_wrong_recipe_is_named(root, options, says):
    recipe = config(root, **options)

    def begin():
        build_task(recipe).train_batches()

    with pytest.raises(UserError, match=says):
        begin()


def test_tolerances_are_those_of_the_keypoints_names():
    order = np.random.default_rng(0).permutation(17)
    for style in (str, str.upper, lambda name: name.replace("_", " "), lambda name: name.replace("left_", "L-")):
        sigmas, others = tolerances([style(NAMES[i]) for i in order])
        assert sigmas == pytest.approx(SIGMAS[order])
        assert others == []
    sigmas, others = tolerances(["tail", "right_eye"])
    assert sigmas.tolist() == pytest.approx([SIGMAS.mean(), 0.025])
    assert others == ["tail"]


@pytest.mark.parametrize("seed", range(3))
def test_keypoints_in_another_order_have_the_same_precision(tmp_path, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(17)
    found = []
    for truth in four_persons():
        keypoints = np.reshape(truth["keypoints"], (17, 3)) + np.array([*rng.normal(0, 1.5, 2), 0])
        found.append({"image_id": truth["image_id"], "category_id": 1, "score": rng.random(), "keypoints": keypoints})
    metrics = []
    for own in (np.arange(17), order):
        persons = [
            {**p, "keypoints": np.reshape(p["keypoints"], (17, 3))[own].ravel().tolist()} for p in four_persons()
        ]
        root = tmp_path / str(len(metrics))
        file = write_keypoints(root, persons, categories=[{**PERSON, "keypoints": [NAMES[i] for i in own]}])
        truth = CocoKeypoints(file, root / "images" / "train").content
        results = [{**r, "keypoints": r["keypoints"][own].ravel().tolist()} for r in found]
        metrics.append(average_precision(truth, results, "keypoints"))
    assert metrics[0] == metrics[1]
    assert 0 < metrics[0]["AP"] < 1


def test_other_keypoints_than_cocos_are_learned_and_said(tmp_path):
    three = {**PERSON, "keypoints": ["left_paw", "right_paw", "tail"]}
    for part in ("train", "val"):
        write_keypoints(tmp_path, [person(1, 1, [5, 5, 20, 20], keypoints=[7, 7, 2] * 3)], part, categories=[three])
    task = build_task(config(tmp_path))
    assert any("tail" in note and "tolerances" in note for note in task.notes())
    assert task.transform().mirrored == [1, 0, 2]
    assert task.metrics().compute()["AP"] == 0.0


def test_unknown_sides_are_not_mirrored_and_said(tmp_path):
    names = [f"k{i}" for i in range(17)]
    for part in ("train", "val"):
        write_keypoints(tmp_path, four_persons(), part, categories=[{**PERSON, "keypoints": names}])
    task = build_task(config(tmp_path))
    assert any("not mirrored" in note and "--keypoints.flip_pairs" in note for note in task.notes())
    assert task.transform().mirrored is None
    with pytest.raises(UserError, match="flip_pairs"):
        build_task(config(tmp_path, inference=InferenceConfig(flip=True)))
    given = KeypointsConfig(flip_pairs=[("k1", "k2"), (3, 4)])
    task = build_task(config(tmp_path, keypoints=given, inference=InferenceConfig(flip=True)))
    assert not any("not mirrored" in note for note in task.notes())
    assert task.inference.mirrored == task.transform().mirrored == [0, 2, 1, 4, 3, *range(5, 17)]
    # the trained network knows its pairs
    meta = WeightsMeta(
        "mat_1", SHORT, head=task.head, head_options=task.head_options, task=task.name, classes=task.classes,
        preprocess=task.preprocess, settings=json.loads(json.dumps(task.settings)),
    )  # fmt: skip
    assert task_of(meta, inference=InferenceConfig(flip=True)).inference.mirrored == task.inference.mirrored
    with pytest.raises(UserError, match="flip_pairs='k99' is not allowed"):
        build_task(config(tmp_path, keypoints=KeypointsConfig(flip_pairs=[("k99", "k1")])))


def test_a_missing_extra_is_said_before_anything_is_learned(root, monkeypatch):
    build_task(config(root))
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install -e \"\.\[detection\]\""):
        build_task(config(root))
