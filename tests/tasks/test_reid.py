"""Re-identification: its loss, its metrics, its rankings and a step of training."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from torch import nn

from vitrail.config.data import DataConfig, Preprocess
from vitrail.config.tasks import InferenceConfig, ReidConfig
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.market1501 import ReidSet
from vitrail.errors import UserError
from vitrail.metrics.retrieval import ReidMetrics
from vitrail.tasks.base import measure
from vitrail.tasks.losses import triplet_loss
from vitrail.tasks.reid import Reid, ReidInference

INPUT = Preprocess((16, 8), (0.0,) * 3, (1.0,) * 3)
#: colours of persons; of the last, junk and distractors
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 210), (230, 210, 30), (150, 150, 150)]


def crop(folder: Path, name: str, colour: tuple[int, int, int], dimmed: int = 0) -> None:
    """An image of one colour."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 16), tuple(max(0, v - dimmed) for v in colour)).save(folder / f"{name}.jpg", quality=100)


@pytest.fixture
def root(tmp_path) -> Path:
    """Persons of one colour each, darker in the second camera; four to learn, two others to measure on."""
    for person, colour in enumerate(COLOURS[:4]):
        for view in range(4):
            name = f"{10 + 3 * person:04d}_c{1 + view % 2}s1_{view:06d}_01"
            crop(tmp_path / "bounding_box_train", name, colour, 20 * view)
    for pid, colour in ((1, COLOURS[0]), (2, COLOURS[1])):
        crop(tmp_path / "query", f"{pid:04d}_c1s1_000001_00", colour)
        crop(tmp_path / "bounding_box_test", f"{pid:04d}_c1s1_000002_01", colour, 2)  # its own camera: left out
        crop(tmp_path / "bounding_box_test", f"{pid:04d}_c2s1_000003_01", colour, 30)
    crop(tmp_path / "bounding_box_test", "-1_c2s1_000004_01", COLOURS[0])  # junk, the most like the first query
    crop(tmp_path / "bounding_box_test", "0000_c3s1_000005_01", COLOURS[4])
    return tmp_path


def config(root: Path, **changes) -> TrainConfig:
    small = {"task": "reid", "model": "mat_1", "model_options": {"depths": [1, 1, 1, 1]}, "image_size": (32, 32)}
    return TrainConfig(**small | {"data": DataConfig("market1501", root=str(root)), "batch_size": 8} | changes)


class Colour(nn.Module):
    """Embeds an image as its mean colour, less grey: no network could know these persons better."""

    def forward(self, x):
        colour = x.mean((2, 3))
        return colour - colour.mean(1, keepdim=True)


# ---- loss -------------------------------------------------------------------------------------------------------


def slow_triplets(features: torch.Tensor, identities: torch.Tensor, margin: float) -> torch.Tensor:
    """Anchor by anchor, over all pairs."""
    total = 0 * features.sum()
    for a, own in enumerate(identities.tolist()):
        gaps = [(features[a] - other).pow(2).sum().sqrt() for other in features]
        positives = [gap for b, gap in enumerate(gaps) if identities[b] == own and b != a]
        negatives = [gap for b, gap in enumerate(gaps) if identities[b] != own]
        total = total + max(margin + max(positives) - min(negatives), 0 * total)
    return total / len(features)


@settings(deadline=None, max_examples=40)
@given(
    persons=st.integers(2, 5),
    each=st.integers(2, 4),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    margin=st.sampled_from([0.0, 0.3, 2.0]),
    seed=st.integers(0, 999),
)
def test_triplets_against_all_pairs(persons, each, scale, margin, seed):
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(persons * each, 6, generator=generator, dtype=torch.float64)
    identities = torch.arange(persons).repeat_interleave(each)[torch.randperm(persons * each, generator=generator)]
    found, expected = (features.clone().requires_grad_() for _ in range(2))
    one, other = triplet_loss(found, identities, margin), slow_triplets(expected, identities, margin)
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_triplets_by_hand():
    # on a line: identity 0 at 0 and 3, identity 1 at 4 and 10
    features = torch.tensor([[0.0], [3.0], [4.0], [10.0]])
    # farthest own: 3, 3, 6, 6; nearest other: 4, 1, 1, 7
    loss = triplet_loss(features, torch.tensor([0, 0, 1, 1]), 0.5)
    assert loss == pytest.approx((0 + 2.5 + 5.5 + 0) / 4)


def test_triplets_of_equal_features_have_a_finite_gradient():
    features = torch.ones(6, 3, requires_grad=True)
    loss = triplet_loss(features, torch.tensor([0, 0, 0, 1, 1, 1]), 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert features.grad.isfinite().all()


def test_near_images_far_from_the_origin_keep_their_distance():
    features = 1000 + torch.arange(64.0)[:, None] * torch.tensor([1e-2, 0.0])
    identities = torch.arange(64) // 2
    # own: 0.01; nearest other: 0.01 within the row of persons, 0.02 at its ends
    assert triplet_loss(features, identities, 1.0) == pytest.approx(1 - 0.02 / 64, abs=1e-3)
    assert triplet_loss(features, identities, 1.0) == pytest.approx(
        float(slow_triplets(features.double(), identities, 1.0)), abs=1e-5
    )


@pytest.mark.parametrize(("weight", "smoothing"), [(1.0, 0.0), (0.5, 0.1), (0.0, 0.0)])
def test_the_loss_is_that_of_classes_and_of_triplets(root, weight, smoothing):
    task = Reid(config(root, smoothing=smoothing, reid=ReidConfig(margin=0.7, triplet_weight=weight)))
    feature, logits, y = torch.randn(8, 5), torch.randn(8, 4), torch.arange(4).repeat_interleave(2)
    loss, right = task.loss(lambda _: (feature, logits), (torch.zeros(8, 3, 4, 4), y))
    wanted = F.one_hot(y, 4) * (1 - smoothing) + smoothing / 4
    classes = -(wanted * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, classes + weight * slow_triplets(feature, y, 0.7))
    assert right == sum(int(row.argmax() == truth) for row, truth in zip(logits, y, strict=True))


# ---- metrics ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case(test_data) -> tuple[dict, dict]:
    """Stored embeddings, queries before the gallery, and their metrics."""
    with np.load(test_data / "reid_sim" / "metric_case.npz") as stored:
        fields = {
            name: np.concatenate([stored[f"query_{name}"], stored[f"gallery_{name}"]])
            for name in ("feat", "pid", "cam")
        }
        queries = len(stored["query_pid"])
    expected = json.loads((test_data / "reid_sim" / "metric_expected.json").read_text())
    query = np.arange(len(fields["pid"])) < queries
    return {name: torch.from_numpy(values) for name, values in {**fields, "query": query}.items()}, expected


def counted(case: dict, numbers: torch.Tensor, size: int = 37) -> ReidMetrics:
    """What one process takes in of the images of those numbers."""
    metrics = ReidMetrics(None)
    labels = torch.stack([case[name].long() for name in ("pid", "cam", "query")], 1)
    for part in numbers.split(size):
        metrics.update(case["feat"][part], (torch.zeros(len(part), 3, 2, 2), labels[part], part))
    return metrics


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_stored_embeddings_get_their_metrics(case, processes):
    values, expected = case
    numbers = torch.arange(len(values["pid"]))
    if processes == 1:
        metrics = counted(values, numbers)
    else:
        metrics = ReidMetrics(None)
        # the last process has no image at all
        shares = [numbers[rank :: processes - 1] for rank in range(processes - 1)] + [numbers[:0]]
        metrics.load([counted(values, share).state() for share in shares])
    computed = metrics.compute()
    assert {name: computed[name] for name in expected["expected"]} == pytest.approx(expected["expected"], abs=1e-7)
    assert computed["queries"] + computed["skipped"] == expected["num_query"]
    assert computed["images"] == expected["num_query"] + expected["num_gallery"]
    assert set(computed) == {"mAP", "rank1", "rank5", "rank10", "queries", "skipped", "images"}


def test_state_is_in_order_and_survives_a_file(case):
    values, _ = case
    numbers = torch.arange(len(values["pid"]))
    two = ReidMetrics(None)
    two.load([counted(values, numbers[rank::2]).state() for rank in range(2)])
    state = load(save(two.state()))
    torch.testing.assert_close(state["features"], values["feat"].float(), atol=0, rtol=0)
    assert torch.equal(state["numbers"], numbers)
    assert torch.equal(state["queries"] == 1, values["query"])
    again = ReidMetrics(None)
    again.load([state])
    assert again.compute() == two.compute()


def test_nothing_to_measure_on():
    metrics = ReidMetrics(None)
    metrics.load([ReidMetrics(None).state()])
    with pytest.raises(UserError, match="no validation images"):
        metrics.compute()


class Pixels(nn.Module):
    """Pixels, less the image's own mean colour; the cosine sets the length to 1."""

    def forward(self, x):
        return (x - x.mean((2, 3), keepdim=True)).flatten(1)


def test_pixels_find_as_many_persons_as_is_known_of_them(test_data, tmp_path):
    """Data, batches, rules of junk and cameras, and metrics together, against a floor that the set's README states."""
    with tarfile.open(test_data / "reid_sim" / "reid_sim.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    data = ReidSet(tmp_path, train=False)
    inference = ReidInference(Preprocess((128, 64), (0.0,) * 3, (1.0,) * 3), InferenceConfig())
    batches = inference.batches(data, 64, 0, 0, 1)
    computed = measure(Pixels(), batches, inference.metrics(data), infer=inference.infer).compute()
    assert computed["mAP"] == pytest.approx(0.079, abs=6e-4)  # stated with three digits
    assert computed["rank1"] == pytest.approx(0.099, abs=6e-4)
    assert computed["images"] == 1090


# ---- use --------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Mean brightness of the left and the right half."""

    def forward(self, x):
        return torch.stack([half.mean((1, 2, 3)) for half in x.chunk(2, 3)], 1)


def test_the_mirrored_image_counts_as_much():
    x = torch.rand(3, 3, 6, 8)
    once, twice = (ReidInference(INPUT, InferenceConfig(flip=flip)).infer(Halves(), x) for flip in (False, True))
    halves = [x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))]
    torch.testing.assert_close(once, torch.stack(halves, 1))
    torch.testing.assert_close(twice, ((halves[0] + halves[1]) / 2)[:, None].expand(-1, 2))


def test_embeddings_are_of_full_precision():
    assert ReidInference(INPUT, InferenceConfig()).infer(lambda x: x[:, 0].bfloat16(), torch.rand(1, 2, 3)).dtype == (
        torch.float32
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scales", [1.0, 2.0]),
        ("window", 64),
        ("score_thresh", 0.1),
        ("nms_thresh", 0.5),
        ("max_detections", 5),
        ("boxes", "boxes.json"),
    ],
)
def test_options_of_other_tasks_are_refused(name, value):
    with pytest.raises(UserError, match=rf"--inference\.{name} .* is not for reid, which .* flip\."):
        ReidInference(INPUT, InferenceConfig(**{name: value}))


def test_what_is_found_in_images_of_any_size(tmp_path):
    images = [Image.new("RGB", size, colour) for size, colour in (((5, 90), (255, 0, 0)), ((300, 7), (0, 255, 0)))]
    found = ReidInference(INPUT, InferenceConfig()).predict(Colour().train(), images, "cpu")
    expected = np.array([[2, -1, -1], [-1, 2, -1]]) / 3
    for one, values in zip(found, expected, strict=True):
        record = one.to_dict()
        assert list(record) == ["embedding"]
        assert record["embedding"] == pytest.approx(values, abs=1e-6)
        assert json.loads(json.dumps(record)) == record
    assert found[0].summary() == "embedding of 3 numbers, norm 0.8165"
    found[1].save(tmp_path, "b")
    assert np.load(tmp_path / "b.npy") == pytest.approx(expected[1], abs=1e-6)
    drawn = found[0].draw(images[0])
    assert drawn.tobytes() == images[0].tobytes()
    assert drawn is not images[0]


def test_what_is_true_of_an_image(tmp_path):
    truth = ReidInference(INPUT, InferenceConfig()).ground_truth(
        {"pid": 12, "camera": 3, "query": True, "identity": -1}
    )
    assert truth.to_dict() == {"identity": 12, "camera": 3}
    assert truth.summary() == "identity 12, camera 3"
    truth.save(tmp_path, "a")
    assert not list(tmp_path.iterdir())


FRAMES = {"query": (138, 143, 148), "right": (42, 157, 74), "wrong": (209, 52, 47)}


def test_rankings_leave_out_junk_and_the_own_camera(root, tmp_path):
    data = ReidSet(root, train=False)
    inference = ReidInference(INPUT, InferenceConfig())
    metrics = measure(Colour(), inference.batches(data, 4, 0, 0, 1), inference.metrics(data), infer=inference.infer)
    computed = metrics.compute()
    assert (computed["mAP"], computed["rank1"], computed["queries"], computed["images"]) == (1.0, 1.0, 2, 8)
    folder = tmp_path / "report"
    folder.mkdir()
    metrics.report(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["ranking_1.jpg", "ranking_2.jpg"]
    for number, colour in ((1, COLOURS[0]), (2, COLOURS[1])):
        with Image.open(folder / f"ranking_{number}.jpg") as row:
            pixels = np.asarray(row.convert("RGB")).astype(int)
        cell = 8 + 2 * 6
        # the query; of six images of the gallery all but its own camera's and the junk
        assert pixels.shape[1] == cell * (1 + 4)
        frames = [pixels[8, i * cell + 4] for i in range(5)]
        for frame, name in zip(frames, ["query", "right", "wrong", "wrong", "wrong"], strict=True):
            near = min(FRAMES, key=lambda kind: np.abs(np.array(FRAMES[kind]) - frame).sum())
            assert near == name
        assert np.abs(pixels[14, 10] - colour).max() < 40  # the query itself
        assert np.abs(pixels[14, cell + 10] - [max(0, v - 30) for v in colour]).max() < 40  # in the other camera


# ---- the task ---------------------------------------------------------------------------------------------------


def test_the_task_learns_the_identities_of_its_own_part(root):
    task = Reid(config(root))
    assert task.classes == task.train_set.classes == task.eval_set.classes == ["0010", "0013", "0016", "0019"]
    assert task.settings["reid"]["images_per_identity"] == 4
    assert task.preprocess.image_size == (32, 32)
    assert Reid(config(root, image_size=None)).preprocess.image_size == (256, 128)
    assert (task.head, task.head_options) == ("bnneck", {"num_ids": 4})
    batches = list(task.train_batches())
    assert len(batches) == 2
    x, y = batches[0]
    assert x.shape == (8, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.view(2, 4).tolist() == [[i] * 4 for i in y[::4].tolist()]
    assert task.examples(nn.Identity(), torch.device("cpu"), 3) == []


def test_a_trained_network_is_measured_without_the_part_to_learn_from(root):
    (root / "bounding_box_train").rename(root / "elsewhere")
    task = Reid(config(root), ["0002", "0005", "0009"])
    assert task.eval_set.classes == task.classes == ["0002", "0005", "0009"]
    assert task.head_options == {"num_ids": 3}
    computed = measure(Colour(), task.eval_batches(), task.metrics(), infer=task.infer).compute()
    assert (computed["mAP"], computed["images"]) == (1.0, 8)


@pytest.mark.parametrize(("accumulate", "weight"), [(1, 1.0), (2, 0.0)])
def test_a_step_of_training_reaches_every_parameter(root, accumulate, weight):
    task = Reid(
        config(root, batch_size=16, accumulate=accumulate, head_options={}, reid=ReidConfig(triplet_weight=weight))
    )
    model = task.build_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts = task.split(task.mix(next(iter(task.train_batches()))), accumulate)
    assert [len(part[0]) for part, _ in parts] == [16 // accumulate] * accumulate
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for part, share in parts:
        assert len(set(part[1].tolist())) == 4 // accumulate
        loss, right = task.loss(model, part)
        assert loss.isfinite()
        assert 0 <= right <= len(part[0])
        (loss * share).backward()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(before) - set(learned) == {"head.bn.bias"}
    for p in learned.values():
        assert p.grad is not None
        assert p.grad.isfinite().all()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed >= {"head.classifier.weight", "head.bn.weight"}
    computed = measure(model, task.eval_batches(), task.metrics(), infer=task.infer).compute()
    assert 0 < computed["mAP"] <= 1
    assert computed["images"] == 8


def test_a_task_over_two_processes_measures_the_same(root):
    task = Reid(config(root))
    model = task.build_model().eval()
    alone = measure(model, task.eval_batches(), task.metrics(), infer=task.infer)
    states = [measure(model, task.eval_batches(rank, 2), task.metrics(), infer=task.infer).state() for rank in range(2)]
    both = task.metrics()
    both.load(states)
    assert both.compute() == alone.compute()
    assert torch.equal(both.state()["numbers"], alone.state()["numbers"])
    torch.testing.assert_close(both.state()["features"], alone.state()["features"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": DataConfig("digits")}, r"reid learns from --data market1501 \(.*\), not digits"),
        ({"head": "retinanet"}, "Unknown head of reid 'retinanet'"),
        ({"inference": InferenceConfig(window=3)}, r"--inference\.window 3 is not for reid"),
    ],
)
def test_a_mistake_of_a_recipe(root, changes, says):
    with pytest.raises(UserError, match=says):
        Reid(config(root, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 4}, "batch_size=4 shows one identity at a time"),
        ({"accumulate": 2}, "--accumulate 2: the triplet loss compares all images of a batch"),
        ({"accumulate": 2, "reid": ReidConfig(triplet_weight=0)}, "batch_size=8 shows one identity at a time"),
        ({"reid": ReidConfig(images_per_identity=1)}, "images_per_identity=1 is not allowed"),
        ({"reid": ReidConfig(padding=-2)}, r"reid\.padding=-2 is not allowed"),
    ],
)
def test_batches_that_teach_nothing(root, changes, says):
    with pytest.raises(UserError, match=says):
        Reid(config(root, **changes)).train_batches()


def test_persons_who_are_learned_and_measured_are_named(root):
    assert not [note for note in Reid(config(root)).notes() if "learned, too" in note]
    for view in (1, 2):
        crop(root / "bounding_box_train", f"0001_c{view}s1_000009_01", COLOURS[0])
    notes = Reid(config(root)).notes()
    assert any(note.startswith("validation: 1 of the 2 persons of the queries are learned, too") for note in notes)
    (root / "bounding_box_test" / "0010_c2s1_000099_01.jpg").symlink_to(
        root / "bounding_box_train" / "0010_c2s1_000001_01.jpg"
    )
    with pytest.raises(UserError, match="1 of the 9 images to measure on are images to learn from"):
        Reid(config(root))


def test_one_camera_is_refused_before_anything_is_learned(root):
    for part in ("query", "bounding_box_test"):
        for path in sorted((root / part).iterdir()):
            path.rename(path.with_name(path.name.replace("_c2", "_c1").replace("_c3", "_c1")))
    with pytest.raises(UserError, match=r"No query of .* has a match from another camera"):
        Reid(config(root))
