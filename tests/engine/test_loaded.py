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
    loaded = vitrail.load(weights_with(head, task, options, tmp_path))
    assert (loaded.meta.task, loaded.meta.head) == (task, head)
    assert head in repr(loaded)
    result = loaded.predict(photos / "a.png")
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
