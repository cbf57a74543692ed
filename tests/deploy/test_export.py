"""What `vitrail export` leaves, and that predict and evaluate use it like any weights."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from export_helpers import EACH, SUFFIX, axes_of, weights_of
from PIL import Image

import vitrail
from vitrail.cli import main
from vitrail.config.export import Format, RuntimeName
from vitrail.data import eval_transform
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.runtime import open_deployed
from vitrail.deploy.export.verify import difference

EXAMPLES = Path(__file__).parents[2] / "docs" / "deploy"


def test_the_choices_of_format_and_runtime_are_the_backends():
    assert get_args(Format) == tuple(BACKENDS)
    assert set(get_args(RuntimeName)) == {"auto", *(backend.runtime for backend in BACKENDS.values())}


# ---- what is left -----------------------------------------------------------------------------------------------


def test_the_description_says_what_the_file_takes_and_gives(run, files):
    meta = vitrail.load(run).meta
    path = files["onnx"]
    text = path.with_name(path.name + ".json").read_text()
    found = json.loads(text)
    assert found["classes"] == meta.classes
    assert found["model_options"] == {"depths": [1, 1, 1, 1]}
    assert found["preprocess"]["mean"] == list(meta.preprocess.mean)
    assert found["preprocess"]["image_size"] == [32, 32]
    assert found["training_data"] == "digits"
    assert found["input"]["shape"] == ["batch", 3, 32, 32]
    assert found["dynamic"] == ["batch"]
    assert found["outputs"] == ["logits"]
    assert found["versions"]["onnx"] == onnx.__version__
    inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert inside["vitrail"] == text


def test_nothing_but_the_files_is_left(files):
    assert {path.name for path in files["onnx"].parent.iterdir()} == {"digits.onnx", "digits.onnx.json"}
    left = {path.name for path in files["openvino"].parent.iterdir()}
    assert left == {"digits.xml", "digits.bin", "digits.xml.json"}


def test_an_onnx_file_calls_its_axes_by_name(files):
    graph = onnx.load(files["onnx"]).graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert graph.output[0].name == "logits"


def test_preprocessing_in_the_graph_is_that_outside(run, embedded, images):
    network = vitrail.load(run)
    inside = open_deployed(embedded)
    pixels = [np.asarray(Image.open(path)) for path in sorted(images.iterdir())]
    raw = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    normalised = torch.stack([eval_transform(network.meta.preprocess)(Image.fromarray(p)) for p in pixels])
    with torch.no_grad():
        expected = network(normalised)
        torch.testing.assert_close(inside(raw), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "format", [pytest.param(f, marks=[] if f == "torch_export" else pytest.mark.slow) for f in BACKENDS]
)
def test_the_features_are_the_maps_of_the_pyramid(format, tmp_path):
    weights = weights_of("lvt", tmp_path)
    path = tmp_path / f"maps{SUFFIX[format]}"
    argv = ["export", weights, "--format", format, "--output", str(path), "--features", "--dynamic", axes_of(format)]
    assert main(argv) == 0
    network, maps = vitrail.load(weights), open_deployed(path)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = network.network.forward_intermediates(x, intermediates_only=True)
    assert maps.metadata.outputs == ["stage0", "stage1", "stage2", "stage3"]
    for ours, theirs in zip(maps(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# ---- at work ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EACH)
def test_predict_says_the_same_of_a_file(capsys, run, files, format, images):
    results = []
    for weights in (run, files[format]):
        capsys.readouterr()
        assert main(["predict", str(weights), str(images), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [r["classes"] for r in results[0]] == [r["classes"] for r in results[1]]
    for a, b in zip(*results, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-4)


def test_a_fixed_batch_takes_any_number_of_images(capsys, run, embedded, images):
    results = []
    for weights in (run, embedded):
        capsys.readouterr()
        assert main(["predict", str(weights), str(images), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert len(results[1]) == 3
    for a, b in zip(*results, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-4)


def test_evaluate_measures_a_file(capsys, run, files):
    metrics = []
    for argv in (["evaluate", str(run)], ["evaluate", str(files["onnx"]), "--data", "digits"]):
        capsys.readouterr()
        assert main([*argv, "--runtime", "torch" if len(argv) == 2 else "onnxruntime", "--json"]) == 0
        metrics.append(json.loads(capsys.readouterr().out))
    assert metrics[0]["top1"] == metrics[1]["top1"]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], abs=1e-4)


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_is_smaller_and_agrees(capsys, run, files, format, tmp_path):
    path = tmp_path / f"int8{SUFFIX[format]}"
    argv = ["export", str(run), "--format", format, "--output", str(path), "--dynamic", "batch", "--quantize", "int8"]
    assert main([*argv, "--calibration_images", "32", "--max_drop", "10", "--max_slowdown", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quantization"]
    assert found["images"] == 359
    assert found["size_ratio"] < 0.6
    assert found["agreement"] > 80
    assert found["metric_float"] > 15
    capsys.readouterr()
    assert main(["evaluate", str(path), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(found["metric_int8"], abs=0.6)


def test_int8_that_is_slower_leaves_the_float_file(capsys, run, files, tmp_path, monkeypatch):
    path, float_file = tmp_path / "int8.onnx", files["onnx"]
    monkeypatch.setattr(BACKENDS["onnx"], "write_graph", lambda program, path, *_: shutil.copy(float_file, path))
    argv = ["export", str(run), "--format", "onnx", "--output", str(path), "--dynamic", "batch", "--quantize", "int8"]
    few = ["--calibration_images", "4", "--max_drop", "100"]
    assert main([*argv, *few, "--max_slowdown", "1e-6"]) == 0  # no int8 file is a million times as fast
    told = capsys.readouterr()
    assert re.search(r"int8 takes \d+\.\d\d times as long as float .* the file is the float one", told.err)
    assert "; float is kept" in told.out
    assert path.read_bytes() == float_file.read_bytes()
    assert json.loads((tmp_path / "int8.onnx.json").read_text())["quantized"] is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["int8.onnx", "int8.onnx.json"]


def test_int8_that_loses_accuracy_is_not_kept(mistake, run, files, tmp_path, monkeypatch):
    path, float_file = tmp_path / "int8.onnx", files["onnx"]
    monkeypatch.setattr(BACKENDS["onnx"], "write_graph", lambda program, path, *_: shutil.copy(float_file, path))
    argv = ["export", str(run), "--format", "onnx", "--output", str(path), "--dynamic", "batch", "--quantize", "int8"]
    assert "--max_drop -100" in mistake(*argv, "--calibration_images", "4", "--max_drop", "-100")
    assert list(tmp_path.iterdir()) == []


# ---- the examples of the documentation --------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["onnx", "openvino", pytest.param("executorch", marks=pytest.mark.slow)])
def test_the_example_says_what_predict_says(capsys, run, files, embedded, format, images):
    image = str(images / "0.png")
    capsys.readouterr()
    assert main(["predict", str(run), image, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)[0]
    script = {"onnx": "onnxruntime"}.get(format, format) + "_example.py"
    torch_raises = "" if format == "executorch" else "sys.modules['torch'] = None; "  # ExecuTorch takes torch tensors
    code = f"import sys, runpy; {torch_raises}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    for file in [files[format], *([embedded] if format == "onnx" else [])]:
        argv = [sys.executable, "-c", code, str(EXAMPLES / script), str(file), image]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        name, percent = out[0].rsplit(maxsplit=2)[:2]
        assert name == expected["classes"][0]
        assert float(percent) == pytest.approx(100 * expected["probabilities"][0], abs=0.06)


def test_the_difference_is_taken_output_by_output():
    found = [np.array([1.0, 2.0]), np.array([10.0])]
    assert difference(found, [np.array([1.0, 2.5]), np.array([9.0])]) == (1.0, pytest.approx(0.2))
    assert difference([np.array([np.nan])], [np.array([1.0])])[1] == float("inf")
