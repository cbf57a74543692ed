"""`vitrail.load` with weights in another runtime than PyTorch."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from dense_helpers import CASES, weights_with
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.config.data import Preprocess
from vitrail.deploy.export.backends import BACKENDS
from vitrail.errors import UserError

RUNTIMES = ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """One block a stage, three classes, images of 32 x 40 pixels."""
    torch.manual_seed(0)
    options = {"depths": [1, 1, 1, 1]}
    network = vitrail.create_model("mat_1", num_classes=3, **options)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    meta = WeightsMeta("mat_1", options, classes=["a", "b", "c"], preprocess=Preprocess((32, 40)))
    save_weights(path, network.state_dict(), meta)
    return str(path)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_logits_and_predictions_are_those_of_pytorch_and_no_file_is_left(weights, runtime, temporary):
    expected, found = vitrail.load(weights), vitrail.load(weights, runtime=runtime, threads=1)
    assert list(temporary.iterdir()) == []
    assert found.meta.classes == ["a", "b", "c"]
    assert next(found.network.parameters(), None) is None
    for batch in (1, 2, 5, 2):
        x = torch.randn(batch, 3, 32, 40)
        with torch.no_grad():
            logits = expected(x)
        # logits of fresh weights are small sums of larger terms: the bound of all exported files
        assert (found(x) - logits).abs().max() <= 1e-5 * logits.abs().max()
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    a, b = (one.predict(image).prediction for one in (expected, found))
    assert a.classes == b.classes
    assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
    with pytest.raises(UserError, match=r"does not fit .*small.safetensors in \w+, which takes 3 x 32 x 40"):
        found(torch.zeros(1, 3, 40, 40))
    with pytest.raises(UserError, match="exported files run on the processor"):
        found.predict(image, device="cuda")


def test_a_runtime_that_disagrees_is_not_handed_out(weights, monkeypatch, temporary):
    class Wrong:
        def __call__(self, images):
            return [np.zeros((len(images), 3), np.float32)]

    monkeypatch.setattr(BACKENDS["onnx"], "trace", lambda *_: None)
    monkeypatch.setattr(BACKENDS["onnx"], "write", lambda *_: None)
    monkeypatch.setattr(BACKENDS["onnx"], "open", lambda *_: Wrong())
    with pytest.raises(UserError, match=r"small.safetensors was not exported to onnx: its outputs differ from PyTorch"):
        vitrail.load(weights, runtime="onnxruntime")
    assert list(temporary.iterdir()) == []


def test_a_missing_package_is_one_sentence(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"\[openvino\]"):
        vitrail.load(weights, runtime="openvino")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"runtime": "tensorrt"}, "tensorrt"),
        ({"runtime": "executorch"}, "runs .pte files"),
        ({"threads": 2}, "threads=2 has an effect in onnxruntime and openvino only"),
        ({"runtime": "torch", "threads": 2}, "threads=2 has an effect in"),
        ({"runtime": "openvino", "threads": 0}, "threads=0 must be at least 1"),
        ({"runtime": "openvino", "model": "mat_1"}, "leave --model mat_1 out"),
    ],
)
def test_mistakes(weights, options, sentence):
    with pytest.raises(UserError, match=sentence):
        vitrail.load(weights, **options)


def test_detectors_stay_in_pytorch(tmp_path):
    task, options, _ = CASES["retinanet"]
    with pytest.raises(UserError, match=r"retinanet.safetensors decodes its boxes in PyTorch"):
        vitrail.load(weights_with("retinanet", task, options, tmp_path), runtime="onnxruntime")
