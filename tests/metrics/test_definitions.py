"""Metrics beside other ways to the same number, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, jaccard_score, recall_score

from vitrail.data.datasets.coco_rle import ids_of, pixels_of, run_lengths
from vitrail.data.datasets.market1501 import JUNK
from vitrail.errors import UserError
from vitrail.metrics.panoptic import PanopticQuality, Segment
from vitrail.metrics.retrieval import Gallery, ranking, retrieval
from vitrail.metrics.segmentation import Confusion

# ---- semantic segmentation --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 3))
def test_confusion_is_that_of_another_implementation(seed, classes, images):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (images, 9, 7))
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, classes, truth.shape))
    confusion = Confusion([str(i) for i in range(classes)])
    for one, other in zip(predicted, truth, strict=True):
        confusion.update(torch.from_numpy(one), torch.from_numpy(other))
    metrics = confusion.compute()
    names = sorted({*truth.ravel(), *predicted.ravel()})
    flat = truth.ravel(), predicted.ravel()
    assert metrics["mIoU"] == pytest.approx(jaccard_score(*flat, labels=names, average="macro", zero_division=0))
    seen = sorted(set(truth.ravel()))
    assert metrics["mAcc"] == pytest.approx(recall_score(*flat, labels=seen, average="macro", zero_division=0))
    assert metrics["aAcc"] == pytest.approx((truth == predicted).mean())
    assert metrics["mIoU_all"] == pytest.approx(metrics["mIoU"] * len(names) / classes)


def test_pixels_without_a_class():
    confusion = Confusion(["a", "b"])
    # truth: a a b ignored; predicted: a, no class, b, b
    confusion.update(torch.tensor([0, 255, 1, 1]), torch.tensor([0, 0, 1, 255]))
    metrics = confusion.compute()
    assert metrics["per_class"][0] == {"class": "a", "IoU": 0.5, "accuracy": 0.5, "pixels": 2}
    assert metrics["per_class"][1] == {"class": "b", "IoU": 1.0, "accuracy": 1.0, "pixels": 1}
    assert (metrics["mIoU"], metrics["aAcc"], metrics["pixels"]) == (0.75, pytest.approx(2 / 3), 3)


def test_nothing_to_measure():
    with pytest.raises(UserError, match="nothing to measure"):
        Confusion(["a"]).compute()
    with pytest.raises(ValueError, match="shape"):
        Confusion(["a"]).update(torch.zeros(2, 2), torch.zeros(2, 3))


# ---- panoptic ---------------------------------------------------------------------------------------------------


def quality_of(predicted, found, truth, true) -> dict:
    quality = PanopticQuality({1: True, 2: False})
    maps = [np.array(rows) for rows in (predicted, truth)]
    quality.update(maps[0], found, maps[1], true, "an image")
    return quality.compute()


THING, STUFF, CROWD = Segment(1, 1), Segment(2, 2), Segment(3, 1, crowd=True)


def test_a_perfect_prediction():
    rows = [[1, 1, 2, 2], [0, 1, 2, 2]]
    metrics = quality_of(rows, [THING, STUFF], rows, [THING, STUFF])
    assert [metrics[k] for k in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff")] == [1.0] * 5


def test_a_half_is_no_match():
    """IoU must exceed 1/2: the segment is then both missed and wrong."""
    metrics = quality_of([[1, 1, 0, 0]], [THING], [[1, 1, 1, 1]], [THING])
    assert (metrics["PQ"], metrics["per_class"][0]["RQ"]) == (0.0, 0.0)
    metrics = quality_of([[1, 1, 1, 0]], [THING], [[1, 1, 1, 1]], [THING])
    assert (metrics["SQ"], metrics["RQ"]) == (0.75, 1.0)


def test_what_lies_where_nothing_is_known_is_no_mistake():
    # five of eight pixels of the prediction lie where nothing is known
    truth = [[0, 0, 0, 0, 0, 2, 2, 2]]
    metrics = quality_of([[1] * 8], [THING], truth, [STUFF])
    assert [row["class"] for row in metrics["per_class"]] == ["2"]
    # with four of eight it is one, and halves the recognition
    metrics = quality_of([[1] * 4 + [1] * 4], [THING], [[0] * 4 + [2] * 4], [STUFF])
    assert {row["class"]: row["RQ"] for row in metrics["per_class"]} == {"1": 0.0, "2": 0.0}


def test_a_crowd_is_not_matched_and_forgives():
    truth = [[3, 3, 3, 3, 2, 2]]
    metrics = quality_of([[1, 1, 1, 2, 2, 2]], [THING, STUFF], truth, [CROWD, STUFF])
    assert [row["class"] for row in metrics["per_class"]] == ["2"]  # neither the crowd nor the thing on it counts
    assert metrics["PQ"] == pytest.approx(2 / 3)


def slow_quality(predicted, found, truth, true) -> dict[int, list[float]]:
    """PQ by category from masks, pair by pair."""
    sums = {category: [0.0, 0, 0, 0] for category in (1, 2)}
    matched_true, matched_found = set(), set()
    for t in true:
        for f in found:
            if t.category != f.category:
                continue
            a, b = truth == t.id, (predicted == f.id) & (truth != 0)
            iou = (a & b).sum() / max((a | b).sum(), 1)
            if iou > 0.5:
                sums[t.category][0] += iou
                sums[t.category][1] += 1
                matched_true.add(t.id)
                matched_found.add(f.id)
    for t in true:
        sums[t.category][2] += t.id not in matched_true
    for f in found:
        mask = predicted == f.id
        sums[f.category][3] += f.id not in matched_found and (mask & (truth == 0)).sum() / mask.sum() <= 0.5
    return {c: iou / (n + (m + w) / 2) for c, (iou, n, m, w) in sums.items() if n + m + w}


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(0, 6))
def test_panoptic_quality_is_that_of_its_definition(seed, segments, moved):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.repeat(rng.integers(0, segments + 1, (5, 4)), 3, 0), 2, 1)
    predicted = np.roll(truth, rng.integers(0, moved + 1), axis=1)
    category = {i: int(rng.integers(1, 3)) for i in range(1, segments + 1)}
    true, found = ([Segment(int(i), category[int(i)]) for i in np.unique(m) if i] for m in (truth, predicted))
    if not true:
        return
    quality = PanopticQuality({1: True, 2: False})
    quality.update(predicted, found, truth, true, "an image")
    rows = {row["category"]: row["PQ"] for row in quality.compute()["per_class"]}
    assert rows == pytest.approx(slow_quality(predicted, found, truth, true))


@pytest.mark.parametrize(
    ("predicted", "found", "says"),
    [
        ([[1, 1]], [THING, STUFF], "segment 2 is in the list but not in the map"),
        ([[1, 2]], [THING], "segment 2 is in the map but not in the list"),
        ([[1, 1]], [Segment(1, 7)], "unknown category 7"),
        ([[1, 1]], [THING, THING], "must differ"),
        ([[1, 1, 1]], [THING], "is 3x1 pixels, the true one 2x1"),
    ],
)
def test_wrong_segments_are_named(predicted, found, says):
    with pytest.raises(UserError, match=says):
        quality_of(predicted, found, [[1, 1]], [THING])


@given(st.integers(0, 2**24 - 1))
def test_ids_as_colours(value):
    assert ids_of(pixels_of(np.array([[value]]))) == value


# ---- retrieval --------------------------------------------------------------------------------------------------


def embedded(rng, count, persons, cameras) -> Gallery:
    return Gallery(rng.normal(size=(count, 5)), rng.integers(-1, persons, count), rng.integers(0, cameras, count))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 3))
def test_average_precision_is_that_of_another_implementation(seed, persons, cameras):
    rng = np.random.default_rng(seed)
    queries, gallery = embedded(rng, 8, persons, cameras), embedded(rng, 30, persons, cameras)
    expected, first = [], []
    for i in range(len(queries)):
        kept = (gallery.ids != JUNK) & ~((gallery.ids == queries.ids[i]) & (gallery.cameras == queries.cameras[i]))
        truth = gallery.ids[kept] == queries.ids[i]
        if not truth.any():
            continue
        a, b = queries.features[i], gallery.features[kept]
        cosine = b @ a / np.linalg.norm(b, axis=1) / np.linalg.norm(a)
        expected.append(average_precision_score(truth, cosine))
        first.append(truth[cosine.argmax()])
    if not expected:
        with pytest.raises(UserError, match="nothing to measure"):
            retrieval(queries, gallery)
        return
    metrics = retrieval(queries, gallery)
    assert metrics["mAP"] == pytest.approx(np.mean(expected))
    assert metrics["rank1"] == pytest.approx(np.mean(first))
    assert metrics["queries"] == len(expected) == 8 - metrics["skipped"]


def test_the_own_camera_and_junk_are_no_answers():
    queries = Gallery(np.array([[1.0, 0.0]]), np.array([4]), np.array([1]))
    features = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    gallery = Gallery(features, np.array([4, JUNK, 9, 4]), np.array([1, 2, 1, 2]))
    assert ranking(queries, gallery, 0, np.array([1.0, 0.9, 0.8, 0.0])).tolist() == [2, 3]
    assert retrieval(queries, gallery)["mAP"] == 0.5


def test_features_that_do_not_fit():
    one = Gallery(np.ones((1, 2)), np.array([1]), np.array([1]))
    with pytest.raises(UserError, match="have 2 numbers, those of the gallery 3"):
        retrieval(one, Gallery(np.ones((1, 3)), np.array([1]), np.array([2])))
    with pytest.raises(UserError, match="identities and cameras"):
        Gallery(np.ones((2, 2)), np.array([1]), np.array([1]))


# ---- masks of COCO ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300), st.floats(0, 1))
def test_encoded_masks_are_read(seed, height, width, share):
    mask_tools = pytest.importorskip("faster_coco_eval.core.mask")
    rng = np.random.default_rng(seed)
    cells = (rng.random((-(-height // 7), -(-width // 7))) < share).astype(np.uint8)
    mask = np.asfortranarray(np.kron(cells, np.ones((7, 7), np.uint8))[:height, :width])
    runs = run_lengths(mask_tools.encode(mask)["counts"])
    filled = np.repeat(np.arange(len(runs)) % 2, runs)
    assert (filled == mask.flatten(order="F")).all()
