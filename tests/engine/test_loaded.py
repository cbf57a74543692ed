"""`vitrail.load`: typed results for one image, arrays, lists and folders, of classifiers and of networks with heads."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from dense_helpers import CASES, weights_with
from vitrail.data.transforms.classification import eval_transform
from vitrail.engine import loaded
from vitrail.errors import UserError
from vitrail.structures import ClassProbabilities, Detections, Embedding, Poses, SegmentationMap

KINDS = {
    "semantic_fpn": SegmentationMap,
    "simple_baseline": Poses,
    "bnneck": Embedding,
    "retinanet": Detections,
    "ssdlite": Detections,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return vitrail.load("random:emsnet_xxtiny")


def test_a_classifier_gives_its_probabilities(classifier, photos, tmp_path):
    result = classifier.predict(photos / "a.png", top_k=3)
    assert isinstance(result.prediction, ClassProbabilities)
    x = eval_transform(classifier.meta.preprocess)(Image.open(photos / "a.png"))[None]
    with torch.inference_mode():
        expected = classifier(x).softmax(1)[0].topk(3)
    assert result.prediction.classes == [classifier.meta.classes[i] for i in expected.indices]
    assert result.prediction.probabilities == pytest.approx(expected.values.tolist(), abs=1e-6)
    assert result.summary() == f"{result.prediction.classes[0]} {100 * result.prediction.probabilities[0]:.1f} %"
    assert json.loads(json.dumps(result.to_dict()))["path"] == str(photos / "a.png")
    assert result.plot().height > 70
    assert Image.open(result.save(tmp_path / "new" / "a.jpg")).height > 70


def test_one_gives_one_and_many_give_a_list(classifier, photos):
    image = Image.open(photos / "a.png")
    expected = classifier.predict(photos / "a.png").to_dict()
    for one in (image, np.asarray(image), str(photos / "a.png")):
        found = classifier.predict(one).to_dict()
        assert {**found, "path": None} == {**expected, "path": None}
    mixed = (one for one in (image, photos, np.asarray(image)))
    assert [r.path for r in classifier.predict(mixed)] == [None, str(photos / "a.png"), str(photos / "b.png"), None]
    for several in (photos, str(photos / "*.png"), [photos / "a.png", photos / "b.png"]):
        assert [r.path for r in classifier.predict(several)] == [str(photos / "a.png"), str(photos / "b.png")]
    assert classifier.predict([]) == []


@pytest.mark.parametrize("head", CASES)
def test_a_head_gives_its_kind(head, photos, tmp_path):
    task, options, _ = CASES[head]
    network = vitrail.load(weights_with(head, task, options, tmp_path))
    assert (network.meta.task, network.meta.head) == (task, head)
    assert head in repr(network)
    result = network.predict(photos / "a.png")
    with pytest.raises(UserError, match="batch_size=2 is for classification"):
        network.predict(photos, batch_size=2)
    assert isinstance(result.prediction, KINDS[head])
    assert result.summary()
    assert "path" in json.loads(json.dumps(result.to_dict()))
    assert result.plot().width >= 90


def test_mistakes_are_one_sentence(classifier, photos, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for wrong in (tmp_path / "none.png", tmp_path / "broken.png", np.zeros((4, 4)), [3]):
        with pytest.raises(UserError):
            classifier.predict(wrong)
    with pytest.raises(UserError, match="top_k=0"):
        classifier.predict(photos, top_k=0)
    with pytest.raises(UserError, match="white"):
        classifier.predict(photos, white=4095)


def test_other_attributes_are_the_networks():
    network = vitrail.load("random:mat_1")
    assert network.num_classes == network.network.num_classes
    network.threshold = 0.25
    assert network.network.threshold == 0.25
    assert copy.deepcopy(network).meta == network.meta
    with pytest.raises(AttributeError, match="no_such"):
        _ = network.no_such


def test_a_stream_takes_what_it_needs_and_no_more(classifier):
    """A generator without an end; in batches as many as these hold."""
    rng, taken = np.random.default_rng(0), []

    def camera():
        while True:
            taken.append(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
            yield taken[-1]

    results = classifier.predict(camera(), stream=True)
    assert not taken
    first = next(results)
    assert len(taken) == 1
    assert np.array_equal(np.asarray(first.image), taken[0])
    assert next(results).to_dict() == classifier.predict(taken[1]).to_dict()
    next(classifier.predict(camera(), stream=True, batch_size=3))
    assert len(taken) == 2 + 3


def test_a_folder_is_searched_while_it_is_predicted(classifier, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((40, 50, 3), ord(name), dtype=np.uint8)).save(tmp_path / name / "x.png")
    whole = classifier.predict(tmp_path)
    monkeypatch.setattr(loaded, "LEVEL_SAMPLES", 1)  # so that the levels need the first folder only
    results = classifier.predict(tmp_path, stream=True, batch_size=1)
    found = [next(results)]
    (tmp_path / "c" / "x.png").unlink()
    found += results
    assert [r.path for r in found] == [r.path for r in whole[:2]]
    for one, other in zip(found, whole, strict=False):
        assert one.prediction.classes == other.prediction.classes
        assert one.prediction.probabilities == pytest.approx(other.prediction.probabilities, abs=1e-6)


def test_a_result_of_a_file_reads_its_image_where_it_is_needed(classifier, photos, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes((photos / "a.png").read_bytes())
    result = classifier.predict(file)
    assert result.given is None
    assert np.array_equal(np.asarray(result.image), np.asarray(Image.open(photos / "a.png")))
    before = file.read_bytes()
    with pytest.raises(UserError, match="is the image itself"):
        result.save(file)
    with pytest.raises(UserError, match="no image format"):
        result.save(tmp_path / "a.txt")
    assert file.read_bytes() == before


def test_broken_images_may_be_left_out(classifier, photos, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    several = [photos / "a.png", tmp_path / "broken.png", photos / "b.png"]
    with pytest.warns(UserWarning, match="left out: .*broken.png"):
        found = classifier.predict(several, on_error="warn")
    assert [r.path for r in found] == [str(several[0]), str(several[2])]
    with pytest.warns(UserWarning, match="left out"):
        assert classifier.predict(several[1], on_error="warn") is None
    with pytest.raises(UserError, match="on_error"):
        classifier.predict(several, on_error="skip")
    with pytest.raises(UserError, match="batch_size=0"):
        classifier.predict(several, batch_size=0)
