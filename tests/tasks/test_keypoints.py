"""Joints of people: heat maps and back, flip test, scores, figures, and a run from training to use."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from people_helpers import NAMES, PERSON, four_people, person, write_people
from vitrail.cli import main
from vitrail.config import InferenceConfig, TrainConfig, check, from_dict
from vitrail.data.config import DataConfig, Preprocess
from vitrail.data.people import mirrored, open_people
from vitrail.data.people_transforms import crop_matrix, heatmaps, inverse, moved
from vitrail.data.task_config import KeypointsConfig
from vitrail.errors import UserError
from vitrail.networks import load
from vitrail.tasks import build_task, task_of
from vitrail.tasks.detection import packed
from vitrail.tasks.keypoints import (
    KeypointsInference,
    KeypointsMetrics,
    People,
    decoded,
    distinct,
    in_picture,
    oks_sigmas,
    pose_score,
)
from vitrail.weights import WeightsMeta

pytest.importorskip("faster_coco_eval")
SHORT = {"depths": [1, 1, 1, 1]}
PLAIN = Preprocess((64, 96), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    for part in ("train", "val"):
        write_people(folder, four_people(), part)
    return folder


def config(root: Path, **options) -> TrainConfig:
    data = DataConfig(name="coco", root=str(root))
    given = {"task": "keypoints", "model": "mat_1", "model_options": SHORT, "head_options": {"deconv_channels": 8}}
    return TrainConfig(**{**given, "data": data, "image_size": (64, 32), "batch_size": 3, **options})


def use(**options) -> KeypointsInference:
    return KeypointsInference(NAMES, PLAIN, 1.25, InferenceConfig(**options))


# ---- heat maps and back -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 95.9), st.floats(0, 63.9)), min_size=1, max_size=5), st.floats(0.8, 3))
def test_a_target_gives_its_joint_back(places, sigma):
    joints = np.array([[*place, 2] for place in places])
    maps, _ = heatmaps(joints, (64, 96), sigma)
    found = decoded(maps[None])[0].numpy()
    # the joint lies in the pixel of 4x4 whose middle is found
    assert np.abs(found[:, :2] - joints[:, :2]).max() <= 2 + 1e-4
    assert found[:, 2] == pytest.approx(np.ones(len(joints)))


def peak_at(row: int, col: int, **neighbours: float) -> torch.Tensor:
    """A map of 5x6 pixels with a peak and the values beside it."""
    steps = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}
    maps = torch.zeros(1, 1, 5, 6)
    maps[0, 0, row, col] = 0.9
    for side, value in neighbours.items():
        maps[0, 0, row + steps[side][0], col + steps[side][1]] = value
    return maps


@pytest.mark.parametrize(
    ("maps", "place"),
    [
        (peak_at(2, 3), (3.5, 2.5)),
        (peak_at(2, 3, right=0.2), (3.75, 2.5)),
        (peak_at(2, 3, right=0.2, left=0.3), (3.25, 2.5)),
        (peak_at(2, 3, above=-0.2), (3.5, 2.75)),
        (peak_at(2, 3, above=0.5, right=0.1), (3.75, 2.25)),
        (peak_at(2, 5, left=0.5, below=0.1), (5.5, 2.75)),
        (peak_at(2, 0, right=0.5, above=0.1), (0.5, 2.25)),
        (peak_at(0, 3, below=0.5, left=0.1), (3.25, 0.5)),
        (peak_at(4, 3, above=0.5, left=0.1), (3.25, 4.5)),
    ],
)
def test_a_quarter_pixel_towards_the_higher_neighbour(maps, place):
    assert decoded(maps)[0, 0].tolist() == pytest.approx([4 * place[0], 4 * place[1], 0.9])


@given(st.integers(0, 2**31))
def test_maps_are_read_one_by_one(seed):
    maps = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(seed))
    whole = decoded(maps)
    for b in range(2):
        for k in range(3):
            row, col = np.unravel_index(int(maps[b, k].argmax()), (4, 7))
            x, y, score = whole[b, k].tolist()
            assert score == maps[b, k].max().item()
            assert (abs(x / 4 - col - 0.5), abs(y / 4 - row - 0.5)) in {(0, 0), (0, 0.25), (0.25, 0), (0.25, 0.25)}


# ---- flip test --------------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    """A network that knows left from right: it sees left joints best on the left, right ones on the right."""

    def forward(self, x):
        seen = F.avg_pool2d(x.mean(1, keepdim=True), 4)
        ramp = torch.linspace(0.2, 1, seen.shape[-1])
        sides = {"left": ramp.flip(0), "right": ramp}
        weights = torch.stack([sides.get(name.split("_")[0], torch.ones_like(ramp)) for name in NAMES])
        return seen * weights[:, None]


class Fixed(nn.Module):
    """A network that answers the same maps to anything."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return self.maps.expand(len(x), -1, -1, -1)


def test_the_flip_test_changes_nothing_for_a_symmetric_network():
    crops = torch.rand(2, 3, 64, 96)
    plain = Symmetric()(crops)
    assert not torch.allclose(plain.flip(-1), Symmetric()(crops.flip(-1)))  # left and right matter to it
    assert torch.allclose(use(flip=True).infer(Symmetric(), crops), use().infer(Symmetric(), crops), atol=1e-6)


def test_the_flip_test_averages_maps():
    maps = torch.randn(1, 17, 16, 24)
    other = maps.flip(-1)[:, mirrored(NAMES)]
    found = use(flip=True).infer(Fixed(maps), torch.zeros(2, 3, 64, 96))
    assert torch.allclose(found, decoded((maps + other) / 2).expand(2, -1, -1))
    assert torch.equal(use().infer(Fixed(maps), torch.zeros(1, 3, 64, 96)), decoded(maps))


@given(st.floats(0, 95.9).filter(lambda v: 0.01 < v % 4 < 3.99), st.floats(0, 63.9))
def test_mirrored_maps_need_no_shift(x, y):
    """The target of a mirrored joint, mirrored back, is the joint's own: at stride 4, too."""
    both = [heatmaps(np.array([[place, y, 2]]), (64, 96), 2.0)[0] for place in (x, 96 - x)]
    assert torch.equal(both[1].flip(-1), both[0])


# ---- use --------------------------------------------------------------------------------------------------------


class Bright(nn.Module):
    """A network that takes brightness for every joint."""

    def forward(self, x):
        return F.avg_pool2d(x.mean(1, keepdim=True), 4).expand(-1, 17, -1, -1)


@settings(deadline=None, max_examples=30)
@given(st.integers(80, 300), st.integers(80, 300), st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_a_joint_is_found_where_it_is(width, height, across, down):
    """In pictures of any shape, which one person fills: to half a pixel of the map and the quarter towards it."""
    x, y = round(across * width), round(down * height)
    rows, cols = np.mgrid[:height, :width]
    spread = 2.5 * max(width / 96, height / 64)  # of the dot: two pixels of the crop
    pixels = 250 * np.exp(-((cols - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
    image = Image.fromarray(np.repeat(pixels.round().astype(np.uint8)[..., None], 3, 2))
    found = use(flip=True).find(Bright(), [image], "cpu")[0]
    scale = np.linalg.det(crop_matrix((0, 0, width, height), (64, 96), 1.25)[:, :2]) ** 0.5
    assert found.poses.shape == (1, 17, 3)
    assert np.abs(found.poses[0, :, :2] - (x, y)).max() <= 3.1 / scale + 0.6
    assert found.scores[0] == pytest.approx(found.poses[0, 0, 2])


def test_people_are_looked_for_in_their_boxes():
    image = Image.new("RGB", (200, 100))
    for x, y in ((40, 50), (150, 30)):
        image.paste((255, 255, 255), (x - 3, y - 3, x + 4, y + 4))
    found = use().look(Bright(), image, [(20, 20, 60, 90), (120, 0, 180, 60)], [0.5, 1.0], "cpu")
    assert np.abs(found.poses[0, :, :2] - (40, 50)).max() < 4
    assert np.abs(found.poses[1, :, :2] - (150, 30)).max() < 4
    assert found.scores[0] == pytest.approx(0.5 * found.poses[0, 0, 2])


def test_a_poses_score_is_that_of_its_sure_joints():
    scores = np.array([0.9, 0.5, 0.2, 0.1, -0.3])
    pose = np.column_stack([np.zeros((5, 2)), scores])
    assert pose_score(0.5, pose) == pytest.approx(0.5 * 0.7)
    assert pose_score(0.5, pose[2:]) == 0.0


def test_people_are_told_drawn_and_saved(tmp_path):
    poses = np.zeros((2, 17, 3))
    poses[0, :, :2], poses[0, :3, 2] = (20, 10), 0.8
    poses[1, :, :2], poses[1, :, 2] = (50.126, 30), 0.19
    people = People(NAMES, poses, np.array([0.8, 0.0]))
    assert people.sentence() == "2 people with 3 and 0 of 17 joints"
    assert People(NAMES, poses[:1]).sentence() == "1 person with 3 of 17 joints"
    assert People(NAMES, poses[:0]).sentence() == "nobody"
    record = people.record()
    assert record["joints"] == NAMES
    assert record["keypoints"][1][0] == [50.13, 30.0, 0.19]
    assert record["scores"] == [0.8, 0.0]
    drawn = np.asarray(people.draw(Image.new("RGB", (60, 40))))
    assert drawn[10, 20].any()
    assert not drawn[25:36, 45:56].any()  # too unsure
    people.save(tmp_path, "two")
    assert json.loads((tmp_path / "two.json").read_text()) == record


def test_truth_is_what_is_labelled():
    joints = np.array(person(1, 1, [5, 5, 30, 30])["keypoints"]).reshape(17, 3)
    truth = use().truth({"joints": joints})
    assert truth.sentence() == "1 person with 15 of 17 joints"
    assert truth.poses[0, :, :2].tolist() == joints[:, :2].tolist()
    assert truth.record()["scores"] is None
    assert use().truth({"box": (1, 2, 3, 4)}).sentence() == "nobody"


@pytest.mark.parametrize(
    "options",
    [
        {"scales": [0.5, 1.0]},
        {"window": 64},
        {"score_thresh": 0.1},
        {"nms_thresh": 0.5},
        {"max_detections": 5},
    ],
)
def test_options_of_other_tasks_are_refused(options):
    with pytest.raises(UserError, match=rf"--inference.{next(iter(options))} .* is not for keypoints"):
        use(**options)


def test_boxes_of_a_data_set_are_not_for_predicting():
    with pytest.raises(UserError, match=r"--inference\.boxes is for measuring"):
        use(boxes="boxes.json").find(Bright(), [Image.new("RGB", (9, 9))], "cpu")


# ---- figures ----------------------------------------------------------------------------------------------------


def test_stored_poses_have_their_figures(test_data):
    root = test_data / "coco_kpt_mini"
    counts = KeypointsMetrics(open_people(DataConfig(name="coco", root=str(root)), train=False))
    results = json.loads((root / "results/all_keypoints.json").read_text())
    counts.load([packed([{**record, "area": 1.0} for record in part]) for part in (results[:30], results[30:])])
    figures = counts.compute()
    expected = json.loads((root / "results/all_expected.json").read_text())["keypoints"]
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert figures["boxes"] == 86


def fed(counts, batches, shift: float = 0.0):
    """Counts that took in the true joints, moved to the right by so many pixels of the picture."""
    for crops, targets, numbers in batches:
        places = []
        for target in targets:
            joints = target["joints"].astype(float)
            there = moved(joints[:, :2] + 0.5 + [shift, 0], inverse(target["back"]))
            places.append(np.column_stack([there, np.full(17, 0.3 + target["box"][0] / 200)]))
        counts.update(torch.tensor(np.stack(places)), (crops, targets, numbers))
    return counts


def test_the_truth_has_full_precision(root):
    task = build_task(config(root))
    figures = fed(task.metrics(), task.eval_batches()).compute()
    assert figures["AP"] == pytest.approx(1.0)
    assert figures["boxes"] == 4
    # so far off that only the looser thresholds are met
    assert 0 < fed(task.metrics(), task.eval_batches(), 1.5).compute()["AP"] < 1


def test_a_limit_measures_these_people_alone(root):
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
    boxes = [{"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5} for a in four_people()]
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
    assert [row["truth"] for row in rows] == ["2 people with 15 and 15 of 17 joints"] * 2
    assert all(row["prediction"].startswith("2 people with ") for row in rows)


def pose(score: float, shift: float = 0.0, image: int = 1, area: float = 900.0) -> dict:
    x, y = np.arange(34).reshape(17, 2).T
    flat = np.column_stack([x + shift, y, np.ones(17)]).ravel().tolist()
    return {"image_id": image, "category_id": 1, "keypoints": flat, "score": score, "area": area}


def test_of_two_alike_poses_the_surer_stays():
    def alike(shift: float, area: float) -> float:
        return float(np.exp(-(shift**2) / (2 * area * (2 * oks_sigmas()) ** 2)).mean())

    near = next(d for d in np.arange(0, 9, 0.01) if alike(d, 1350) < 0.9)
    records = [pose(0.5), pose(0.9, near - 0.01, area=1800), pose(0.8, image=2)]
    assert sorted(r["score"] for r in distinct(records)) == [0.8, 0.9]
    records[1] = pose(0.9, near, area=1800)
    assert sorted(r["score"] for r in distinct(records)) == [0.5, 0.8, 0.9]
    assert distinct([]) == []


def test_who_is_dropped_drops_nobody():
    """b is dropped for a; c, alike to b but not to a, stays."""
    near = next(d for d in np.arange(0, 9, 0.01) if np.exp(-(d**2) / (7200 * oks_sigmas() ** 2)).mean() < 0.9)
    records = [pose(0.9), pose(0.8, 0.7 * near), pose(0.7, 1.4 * near)]
    assert [r["score"] for r in distinct(records)] == [0.9, 0.7]


def test_places_are_pixel_numbers():
    back = inverse(crop_matrix((0, 0, 96, 64), (64, 96), 1.0))
    assert in_picture(np.array([[10.5, 20.5, 0.3]]), back)[0].tolist() == pytest.approx([10, 20, 0.3])


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


def test_the_loss_is_that_of_visible_joints(root):
    task, batch = build_task(config(root)), batch_of()
    maps = torch.rand(1, 17, 16, 8)
    model = Fixed(maps)
    expected = 0.0
    for joint in range(17):  # as the original writes it, without its half
        weight = batch[2][:, joint, None, None]
        expected += F.mse_loss(weight * maps[:, joint], weight * batch[1][:, joint]) / 17
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
    found, target = (decoded(maps)[0, known, :2] for maps in (model(batch[0]).detach(), batch[1]))
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
    assert json.loads(capsys.readouterr().out) == summary["metrics"]
    stored = [json.loads((folder / "results.json").read_text()) for folder in (out, tmp_path / "measured")]
    for one, other in zip(*stored, strict=True):
        assert one["keypoints"] == pytest.approx(other["keypoints"], abs=1e-3)
    Image.new("RGB", (37, 101), (90, 120, 30)).save(image)
    assert main(["predict", str(out), str(image), "--save", str(tmp_path / "drawn"), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["joints"] == NAMES
    assert np.shape(found["keypoints"]) == (1, 17, 3)
    assert Image.open(found["saved"]).size == (37, 101)
    network = load(out)
    assert (network.meta.head, network.meta.classes) == ("simple_baseline", NAMES)
    assert network.meta.settings["keypoints"]["padding"] == 1.5


CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_recipe_of_the_paper_is_that_of_its_head():
    recipe = from_dict(TrainConfig, yaml.safe_load((CONFIGS / "partialformer/keypoints.yaml").read_text()))
    check(recipe)
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (210, 512, 5e-4)
    assert recipe.optim.warmup_epochs * 149_813 / 512 == pytest.approx(500, abs=0.5)
    assert recipe.keypoints == KeypointsConfig()


def test_the_small_recipe_is_of_eight_people(test_data):
    recipe = from_dict(TrainConfig, yaml.safe_load((CONFIGS / "mini/keypoints.yaml").read_text()))
    recipe.data.root = str(test_data / "coco_kpt_mini")
    check(recipe)
    task = build_task(recipe)
    assert len(task.train_set) == len(task.eval_set) == 8
    inputs, maps, weights = next(iter(task.train_batches()))
    assert (inputs.shape, maps.shape) == ((8, 3, 256, 192), (8, 17, 64, 48))
    # joints at their pixels' middles, which is as near as the maps can say, are near enough
    counts = task.metrics()
    order = task.train_batches().order(0).argsort()
    for crops, targets, numbers in task.eval_batches():
        counts.update(decoded(maps[order]), (crops, targets, numbers))
    labelled = sum(int((person.joints[:, 2] > 0).sum()) for person in task.eval_set.people)
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
    assert again.head_options == task.head_options == {"num_joints": 17, "deconv_channels": 8}
    picture = Image.new("RGB", (50, 40), (200, 30, 40))
    mine, theirs = (t.inference.find(model, [picture], "cpu")[0].poses for t in (task, again))
    assert np.array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "retinanet"}, "head of keypoints"),
        ({"image_size": (60, 32)}, "multiples of 32"),
        ({"data": DataConfig(name="digits")}, "--data coco, not digits"),
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


def test_joints_that_cannot_be_measured_are_refused(tmp_path):
    three = {**PERSON, "keypoints": NAMES[:3]}
    write_people(tmp_path, [person(1, 1, [5, 5, 20, 20], keypoints=[7, 7, 2] * 3)], categories=[three])
    with pytest.raises(UserError, match="names 3 joints; COCO's figures are those of 17"):
        build_task(config(tmp_path))
