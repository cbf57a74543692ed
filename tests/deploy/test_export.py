"""What `vitrail export` leaves, that predict and evaluate use it like any weights, and what a mistake gets."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_helpers import SUFFIX, weights_of
from PIL import Image

import vitrail
from vitrail.cli import main
from vitrail.data import eval_transform
from vitrail.deploy import export as exports
from vitrail.deploy import exporting
from vitrail.deploy.formats import FORMATS
from vitrail.deploy.runtimes import open_deployed
from vitrail.deploy.tracing import Graph
from vitrail.deploy.verify import difference

EXAMPLES = Path(__file__).parents[2] / "docs" / "deploy"
INT8 = ["--quantize", "int8", "--data"]
TINY = ["--model", "mat_1", "--model_options", '{"depths": [1, 1, 1, 1]}', "--device", "cpu"]


#: lowering to ExecuTorch takes longest
EACH = ["onnx", "openvino", "torch_export", pytest.param("executorch", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run on the digits."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert main(["train", *TINY, "--epochs", "1", "--max_steps", "20", "--output", str(folder)]) == 0
    return folder


class Files(dict):
    """The run in every format, each exported when a test first asks for it: several processes share the tests."""

    def __init__(self, run: Path, folder: Path):
        super().__init__()
        self.run, self.folder = run, folder

    def __missing__(self, name: str) -> Path:
        self[name] = path = self.folder / name / f"digits{SUFFIX[name]}"
        axes = "none" if name == "executorch" else "batch"
        argv = ["export", str(self.run), "--format", name, "--output", str(path), "--dynamic", axes]
        assert main(argv) == 0
        return path


@pytest.fixture(scope="module")
def files(run, tmp_path_factory) -> Files:
    """The run in every format."""
    return Files(run, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def embedded(run, tmp_path_factory) -> Path:
    """The run in ONNX with its preprocessing inside, for a fixed batch of 2."""
    path = tmp_path_factory.mktemp("embedded") / "digits.onnx"
    argv = ["export", str(run), "--format", "onnx", "--output", str(path), "--embed_preprocessing"]
    assert main([*argv, "--dynamic", "none", "--batch_size", "2"]) == 0
    return path


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


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


def test_preprocessing_in_the_graph_is_that_outside(run, embedded, pictures):
    network = vitrail.load(run)
    inside = open_deployed(embedded, FORMATS["onnx"])
    pixels = [np.asarray(Image.open(path)) for path in sorted(pictures.iterdir())]
    raw = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    normalised = torch.stack([eval_transform(network.meta.preprocess)(Image.fromarray(p)) for p in pixels])
    with torch.no_grad():
        expected = network(normalised)
        torch.testing.assert_close(inside(raw), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "format", ["torch_export", *(pytest.param(f, marks=pytest.mark.slow) for f in ("onnx", "openvino", "executorch"))]
)
def test_the_features_are_the_maps_of_the_pyramid(format, tmp_path):
    weights = weights_of("lvt", tmp_path)
    path = tmp_path / f"maps{SUFFIX[format]}"
    axes = "none" if format == "executorch" else "batch"
    argv = ["export", weights, "--format", format, "--output", str(path), "--features", "--dynamic", axes]
    assert main(argv) == 0
    network, maps = vitrail.load(weights), open_deployed(path, FORMATS[format])
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(x, intermediates_only=True)
    assert maps.sidecar.outputs == ["stage0", "stage1", "stage2", "stage3"]
    for ours, theirs in zip(maps(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# ---- at work ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EACH)
def test_predict_says_the_same_of_a_file(capsys, run, files, format, pictures):
    results = []
    for weights in (run, files[format]):
        capsys.readouterr()
        assert main(["predict", str(weights), str(pictures), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [r["classes"] for r in results[0]] == [r["classes"] for r in results[1]]
    for a, b in zip(*results, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-4)


def test_a_fixed_batch_takes_any_number_of_pictures(capsys, run, embedded, pictures):
    results = []
    for weights in (run, embedded):
        capsys.readouterr()
        assert main(["predict", str(weights), str(pictures), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert len(results[1]) == 3
    for a, b in zip(*results, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-4)


def test_evaluate_measures_a_file(capsys, run, files):
    figures = []
    for argv in (["evaluate", str(run)], ["evaluate", str(files["onnx"]), "--data", "digits"]):
        capsys.readouterr()
        assert main([*argv, "--runtime", "torch" if len(argv) == 2 else "onnxruntime", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["top1"] == figures[1]["top1"]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], abs=1e-4)


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_is_smaller_and_agrees(capsys, run, files, format, tmp_path):
    path = tmp_path / f"int8{SUFFIX[format]}"
    argv = ["export", str(run), "--format", format, "--output", str(path), "--dynamic", "batch", "--quantize", "int8"]
    assert main([*argv, "--calibration_images", "32", "--max_drop", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quantization"]
    assert found["images"] == 359
    assert found["size_ratio"] < 0.6
    assert found["agreement"] > 80
    assert found["top1_float"] > 15
    capsys.readouterr()
    assert main(["evaluate", str(path), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(found["top1_int8"], abs=0.6)


def test_int8_that_loses_accuracy_is_not_kept(mistake, run, files, tmp_path, monkeypatch):
    path, float_file = tmp_path / "int8.onnx", files["onnx"]
    monkeypatch.setitem(exporting.WRITERS, "onnx", lambda program, path, *_: shutil.copy(float_file, path))
    argv = ["export", str(run), "--format", "onnx", "--output", str(path), "--dynamic", "batch", "--quantize", "int8"]
    assert "--max_drop -100" in mistake(*argv, "--calibration_images", "4", "--max_drop", "-100")
    assert list(tmp_path.iterdir()) == []


# ---- the examples of the documentation --------------------------------------------------------------------------


@pytest.mark.parametrize("format", [format for format in EACH if format != "torch_export"])
def test_the_example_says_what_predict_says(capsys, run, files, embedded, format, pictures):
    picture = str(pictures / "0.png")
    capsys.readouterr()
    assert main(["predict", str(run), picture, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)[0]
    script = {"onnx": "onnxruntime"}.get(format, format) + "_example.py"
    torch_raises = "" if format == "executorch" else "sys.modules['torch'] = None; "  # ExecuTorch takes torch tensors
    code = f"import sys, runpy; {torch_raises}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    for file in [files[format], *([embedded] if format == "onnx" else [])]:
        argv = [sys.executable, "-c", code, str(EXAMPLES / script), str(file), picture]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        name, percent = out[0].rsplit(maxsplit=2)[:2]
        assert name == expected["classes"][0]
        assert float(percent) == pytest.approx(100 * expected["probabilities"][0], abs=0.06)


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--format", "onxx", "--output", "a.onnx"], ["onxx", "onnx"]),
        (["--format", "onnx", "--output", "a.xml"], ["a.xml", ".onnx"]),
        (["--format", "onnx", "--output", "there.onnx"], ["there.onnx", "--overwrite"]),
        (["--format", "onnx", "--output", "there.onnx/a.onnx"], ["there.onnx"]),
        (["--format", "onnx", "--output", "a.onnx", "--dynamic", "size"], ["--dynamic", "size", "batch,size"]),
        (["--format", "onnx", "--output", "a.onnx", "--dynamic", "batch", "--batch_size", "2"], ["--batch_size"]),
        (["--format", "executorch", "--output", "a.pte", "--dynamic", "batch"], ["executorch", "fixed"]),
        (["--format", "onnx", "--output", "a.onnx", "--quantize", "int4"], ["int4", "int8"]),
        (["--format", "onnx", "--output", "a.onnx", "--quantize", "int8"], ["--data"]),
        (
            ["--format", "onnx", "--output", "a.onnx", "--features", *INT8, "digits"],
            ["--features"],
        ),
        (["--format", "torch_export", "--output", "a.pt2", *INT8, "digits"], ["torch_export"]),
        (["--format", "executorch", "--output", "a.pte", *INT8, "digits"], ["executorch"]),
        (["--format", "onnx", "--output", "a.onnx", "--image_size", "0"], ["--image_size"]),
        (["--format", "onnx", "--output", "a.onnx", "--images", "none.jpg"], ["none.jpg"]),
        (["--format", "onnx", "--output", "a.onnx", "--tolerance", "0"], ["--tolerance"]),
        (
            [
                "--format",
                "onnx",
                "--output",
                "a.onnx",
                *INT8,
                "folder",
                "--data.root",
                "empty",
            ],
            ["empty"],
        ),
    ],
    ids=lambda value: "_".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_mistake_ends_with_one_sentence_and_leaves_nothing(mistake, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("precious")
    (tmp_path / "empty").mkdir()
    weights = weights_of("mat_1", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    sentence = mistake("export", weights, *argv)
    for word in says:
        assert word in sentence
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.onnx").read_text() == "precious"


def test_a_runtime_that_disagrees_leaves_nothing(mistake, tmp_path, monkeypatch):
    weights = weights_of("mat_1", tmp_path)
    out = tmp_path / "out"
    out.mkdir()

    def other(program, path, sidecar, shape):
        torch.export.save(torch.export.export(Graph(Wrong()), (shape.example(),)), path)

    monkeypatch.setitem(exporting.WRITERS, "torch_export", other)
    argv = ["export", weights, "--format", "torch_export", "--output", str(out / "a.pt2"), "--dynamic", "none"]
    sentence = mistake(*argv)
    assert "differ from PyTorch's" in sentence
    assert "--tolerance 0.0001" in sentence
    assert list(out.iterdir()) == []


class Wrong(torch.nn.Module):
    """Ten numbers that no network said."""

    def forward(self, x):
        return x.mean((2, 3))[:, :1].expand(-1, 10).clone()


def test_free_axes_that_fail_give_way_only_when_nobody_asked_for_them(capsys, mistake, tmp_path, monkeypatch):
    weights = weights_of("mat_1", tmp_path)
    real = exports.trace

    def fixed_only(graph, shape, plain):
        if shape.free:
            raise exports.CannotExport("this graph branches on sizes")
        return real(graph, shape, plain)

    monkeypatch.setattr(exports, "trace", fixed_only)
    argv = ["export", weights, "--format", "torch_export", "--output", str(tmp_path / "a.pt2")]
    assert "branches on sizes" in mistake(*argv, "--dynamic", "batch")
    assert main([*argv, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["shape"] == [1, 3, 64, 64]
    assert len(made["notes"]) == 2


def test_a_missing_package_is_named_with_its_extra(mistake, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    argv = ["export", "random:mat_1", "--format", "onnx", "--output", str(tmp_path / "a.onnx")]
    assert 'pip install "vitrail[export]"' in mistake(*argv)


def test_an_older_file_is_replaced_on_demand(files, run, tmp_path):
    path = tmp_path / "a.pt2"
    path.write_text("old")
    argv = ["export", str(run), "--format", "torch_export", "--output", str(path), "--dynamic", "none", "--overwrite"]
    assert main(argv) == 0
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("format", EACH)
def test_a_damaged_file_is_named(mistake, files, format, tmp_path, pictures):
    path = tmp_path / files[format].name
    for file in FORMATS[format].files(files[format]):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path.write_bytes(files[format].read_bytes()[:200])
    sentence = mistake("predict", str(path), str(pictures))
    assert path.name in sentence
    assert "damaged" in sentence


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def with_entry(source: Path, target: Path, name: str, content: bytes) -> None:
    """A copy of a zip archive with one entry replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for entry in old.namelist():
            if entry != f"{root}/{name}":
                new.writestr(entry, old.read(entry))
        new.writestr(f"{root}/{name}", content)
    shutil.copy(f"{source}.json", f"{target}.json")


def test_a_graph_with_a_pickle_of_code_is_refused(capsys, mistake, files, tmp_path, pictures):
    torch.save(Evil(), tmp_path / "inputs.pt")
    with zipfile.ZipFile(files["torch_export"]) as archive:
        inputs = next(name for name in archive.namelist() if "sample_inputs" in name).split("/", 1)[1]
    pickled = {"config": {"w": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
    entries = {
        inputs: (tmp_path / "inputs.pt").read_bytes(),
        "data/constants/model_constants_config.json": json.dumps(pickled).encode(),
        "data/constants/opaque_obj_0": pickle.dumps(Evil()),
    }
    for i, (name, content) in enumerate(entries.items()):
        path = tmp_path / f"evil{i}.pt2"
        with_entry(files["torch_export"], path, name, content)
        sentence = mistake("predict", str(path), str(pictures))
        assert "refused" in sentence
        assert "must never" not in capsys.readouterr().out


def test_a_lost_description_is_read_from_inside_an_onnx_file(mistake, files, tmp_path, pictures):
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(files["onnx"].read_bytes())
    assert main(["predict", str(alone), str(pictures)]) == 0
    alone = tmp_path / "alone.pt2"
    alone.write_bytes(files["torch_export"].read_bytes())
    assert "alone.pt2.json" in mistake("predict", str(alone), str(pictures))
    (tmp_path / "alone.pt2.json").write_text("{}")
    assert "alone.pt2.json is damaged" in mistake("predict", str(alone), str(pictures))


def test_a_runtime_that_does_not_run_the_file_is_refused(mistake, files, run, pictures):
    onnx_file = str(files["onnx"])
    assert ".xml" in mistake("predict", onnx_file, str(pictures), "--runtime", "openvino")
    assert "--format onnx" in mistake("evaluate", str(run), "--runtime", "onnxruntime")
    assert "tensorrt" in mistake("predict", onnx_file, str(pictures), "--runtime", "tensorrt")
    assert "nowhere.onnx" in mistake("predict", "nowhere.onnx", str(pictures))
    assert "--model" in mistake("predict", onnx_file, str(pictures), "--model", "mat_1")


def test_an_input_that_does_not_fit_is_named(files):
    with pytest.raises(ValueError, match=r"\(1, 3, 40, 40\) does not fit .*digits.onnx, which takes 3 x 32 x 32"):
        open_deployed(files["onnx"], FORMATS["onnx"])(torch.zeros(1, 3, 40, 40))


def test_the_difference_is_taken_output_by_output():
    found = [np.array([1.0, 2.0]), np.array([10.0])]
    assert difference(found, [np.array([1.0, 2.5]), np.array([9.0])]) == (1.0, pytest.approx(0.2))
    assert difference([np.array([np.nan])], [np.array([1.0])])[1] == float("inf")
