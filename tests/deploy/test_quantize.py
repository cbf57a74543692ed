"""Which layers of an ONNX graph become int8, and what is said where a library cannot take a graph."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from export_helpers import INT8, weights_of
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from annotated_helpers import write_coco
from dense_helpers import CASES, SHORT
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.checkpoint.load import open_network
from vitrail.cli import main
from vitrail.config.data import Preprocess
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.backends import onnx as onnx_backend
from vitrail.deploy.export.backends.onnx import kept_float
from vitrail.deploy.export.metadata import Metadata
from vitrail.deploy.export.quantize import agreement
from vitrail.deploy.export.runtime import read_metadata
from vitrail.deploy.export.trace import Graph, Shape
from vitrail.factory import assemble


def graph(*layers: tuple[str, tuple[int, ...] | None]):
    """A model of layers by operator and shape of their weights; None = a product of two activations."""
    shapes = {f"w{i}": shape for i, (_, shape) in enumerate(layers) if shape is not None}
    nodes = [
        helper.make_node(op, [f"x{i}", f"w{i}" if shape else f"x{i}"], [f"x{i + 1}"], name=f"{op}{i}")
        for i, (op, shape) in enumerate(layers)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x0", f"x{len(layers)}")]
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    return helper.make_model(helper.make_graph(nodes, "test", ends[:1], ends[1:], weights))


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ([("Conv", (8, 3, 3, 3)), ("Conv", (8, 8, 1, 1)), ("Gemm", (10, 8))], {"Conv0", "Gemm2"}),
        (
            [("Conv", (8, 3, 3, 3)), ("MatMul", None), ("MatMul", (8, 8)), ("Gemm", (10, 8))],
            {"Conv0", "MatMul1", "Gemm3"},
        ),
        # the nine matrices of LVT's values, one a tap: the runtime has no kernel with a scale a channel for them
        (
            [("Conv", (8, 3, 3, 3)), ("MatMul", (9, 8, 8)), ("Conv", (8, 8, 1, 1)), ("Gemm", (10, 8))],
            {"Conv0", "MatMul1", "Gemm3"},
        ),
    ],
)
def test_what_stays_in_float(layers, kept):
    assert set(kept_float(graph(*layers))) == kept


@pytest.mark.parametrize(
    ("machine", "instructions", "overflows"),
    [
        ("x86_64", ["avx2", "avx512_vnni"], False),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("x86_64", ["avx2", "avx512f"], True),
        ("AMD64", [], True),  # Windows does not say
        ("arm64", [], False),
        ("aarch64", ["asimd"], False),
    ],
)
def test_int8_sums_overflow_on_x86_without_vnni(monkeypatch, machine, instructions, overflows):
    monkeypatch.setattr(onnx_backend.platform, "machine", lambda: machine)
    monkeypatch.setattr(onnx_backend, "vector_instructions", lambda: instructions)
    assert onnx_backend.int8_overflows() == overflows


@pytest.mark.parametrize("overflows", [False, True])
def test_activations_are_unsigned_and_weights_have_seven_bits_where_sums_overflow(tmp_path, monkeypatch, overflows):
    rng, before = np.random.default_rng(0), tmp_path / "before.onnx"
    weights = {
        f"w{i}": rng.standard_normal(shape) for i, shape in enumerate([(4, 3, 3, 3), (4, 4, 1, 1), (2, 4, 8, 8)])
    }
    nodes = [helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"conv{i}") for i in range(3)]
    nodes[0].input[0] = "images"
    ends = [("images", (1, 3, 10, 10)), ("x3", (1, 2, 1, 1))]
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends)
    arrays = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    opset = [helper.make_opsetid("", 20)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [first], [last], arrays), opset_imports=opset, ir_version=10),
        before,
    )
    monkeypatch.setattr(onnx_backend, "int8_overflows", lambda: overflows)
    images = [torch.rand(1, 3, 10, 10) for _ in range(4)]
    about, backend = SimpleNamespace(text=lambda: "{}"), BACKENDS["onnx"]
    without = backend.quantize_file(before, tmp_path / "after.onnx", about, images)
    assert bool(without) == overflows
    kinds = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "after.onnx").graph.initializer
    }
    (weight,) = [array for name, array in kinds.items() if name.startswith("w1") and array.ndim == 4]
    assert weight.dtype == np.int8
    assert np.abs(weight.astype(int)).max() in ((63, 64) if overflows else (127, 128))
    assert {a.dtype.name for name, a in kinds.items() if "zero_point" in name and name.startswith("x")} == {"uint8"}
    expected, found = (backend.open(tmp_path / f"{name}.onnx")(images[0].numpy())[0] for name in ("before", "after"))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_all_last_layers_of_a_detector_stay_in_float():
    """Two outputs, each of two maps that are biased and joined, and a third one that is a sum of two computed maps."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)  # noqa: E731
    nodes = [helper.make_node("Conv", ["images", "w"], ["x"], name="first")]
    for output in ("scores", "boxes"):
        for level in "01":
            own = f"{output}{level}"
            nodes.append(helper.make_node("Conv", ["x", "w"], [f"{own}m"], name=f"{own} middle"))
            nodes.append(helper.make_node("Conv", [f"{own}m", "w"], [f"{own}c"], name=f"{own} last"))
            nodes.append(helper.make_node("Add", [f"{own}c", "b"], [own]))
        nodes.append(helper.make_node("Concat", [f"{output}0", f"{output}1"], [output], axis=1))
    nodes.append(helper.make_node("Add", ["x", "boxes"], ["sum"]))
    outputs = [value(name) for name in ("scores", "boxes", "sum")]
    weights = [numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), name) for name in "wb"]
    model = helper.make_model(helper.make_graph(nodes, "test", [value("images")], outputs, weights))
    last = {f"{output}{level} last" for output in ("scores", "boxes") for level in "01"}
    assert set(kept_float(model)) == {"first", *last}


def test_agreement_of_each_kind_of_outputs():
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    assert agreement((logits,), (logits * 2,), "logits") == 1
    assert agreement((logits,), (logits.flip(1),), "logits") == 1
    assert agreement((logits,), (-logits,), "logits") == 0
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 1, 0, 0] = 1
    assert agreement((maps,), (torch.zeros_like(maps),), "class_maps") == 3 / 4
    moved = torch.zeros_like(maps)
    moved[0, 1, 0, 1] = 1
    assert agreement((maps,), (moved,), "heat_maps") == 1 / 2  # the first keypoint's maximum did not move
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert agreement((a,), (b,), "embedding") == pytest.approx(0.5**0.5)
    scores = torch.arange(400.0).reshape(1, 200, 2)
    shifted = scores.clone()
    shifted[0, 175:] = -1  # half of the 100 highest
    assert agreement((scores, a), (shifted, b), "raw_boxes") == 1 / 2


@pytest.mark.slow
def test_openvino_s_int8_of_partialformer(tmp_path):
    """NNCF takes the bias of its background MLP for another layer's: without bias correction the file is written."""
    pytest.importorskip("nncf")
    network = open_network(weights_of("partialformer_b0", tmp_path))
    backend, shape = BACKENDS["openvino"], Shape(1, (64, 64))
    about = Metadata(network.meta, backend.name, shape.axes, ["logits"])
    before, after = tmp_path / "before.xml", tmp_path / "after.xml"
    backend.write(backend.trace(Graph(backend.in_form(network)), shape), before, about, shape)
    images = [torch.randn(1, 3, 64, 64) for _ in range(4)]
    backend.quantize_file(before, after, about, images)
    expected, found = (backend.open(file)(images[0].numpy())[0] for file in (before, after))
    assert np.abs(found - expected).max() < 0.5 * np.abs(expected).max()
    assert after.with_suffix(".bin").stat().st_size < 0.6 * before.with_suffix(".bin").stat().st_size


def masks_of_two_classes(root: Path) -> Path:
    """Two images to learn from and two to measure on, with masks."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind, shape in (("images", (64, 64, 3)), ("annotations", (64, 64))):
            (root / kind / part).mkdir(parents=True)
            for i in range(2):
                values = rng.integers(0, 256 if kind == "images" else 2, shape, dtype=np.uint8)
                Image.fromarray(values).save(root / kind / part / f"{i}.png")
    (root / "classes.json").write_text(json.dumps({"classes": ["blue", "red"]}))
    return root


@pytest.mark.parametrize("head", ["semantic_fpn", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_int8_of_a_head_is_compared_with_float(head, tmp_path, capsys, mistake):
    task, options, _ = CASES[head]
    boxes, options = head == "retinanet", {**options, "num_classes": 2}
    root = write_coco(tmp_path / "data", {"train": 2, "val": 2}) if boxes else masks_of_two_classes(tmp_path / "data")
    torch.manual_seed(0)
    network, weights = assemble("mat_1", head, SHORT, options), tmp_path / "a.safetensors"
    meta = WeightsMeta("mat_1", SHORT, head=head, head_options=options, task=task, classes=["blue", "red"])
    meta.preprocess = Preprocess((64, 64))
    save_weights(weights, network.state_dict(), meta)
    argv = ["export", str(weights), "--format", "onnx", "--output", str(tmp_path / "a.onnx"), "--dynamic", "none"]
    argv += [*INT8, "coco" if boxes else "ade20k", "--data.root", str(root)]
    if boxes:
        assert "raw_boxes are not decoded" in mistake(*argv, "--max_drop", "3")
    assert main([*argv, *([] if boxes else ["--max_drop", "50"]), "--max_slowdown", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quantization"]
    assert found["metric"] == (None if boxes else "mIoU")
    assert boxes or abs(found["metric_float"] - found["metric_int8"]) < 20
    assert found["images"] == found["calibration_images"] == 2
    assert 60 < found["agreement"] <= 100
    assert found["size_ratio"] < 0.7


def test_a_graph_that_the_library_cannot_take_ends_in_one_sentence(mistake, run, tmp_path, monkeypatch):
    """NNCF's and ONNX Runtime's own errors are of any kind."""

    def fails(*_):
        raise ValueError("cannot reshape array of size 12 into shape (3,)")

    monkeypatch.setattr(BACKENDS["onnx"], "quantize_file", fails)
    argv = ["export", str(run), "--format", "onnx", "--output", str(tmp_path / "a.onnx"), *INT8, "digits"]
    sentence = mistake(*argv)
    assert "onnx has no int8 form of this graph (ValueError: cannot reshape array" in sentence
    assert "--format openvino" in sentence
    assert not list(tmp_path.iterdir())


def test_corrections_that_fail_are_left_out_and_said(run, files, tmp_path, monkeypatch):
    nncf = pytest.importorskip("nncf")
    asked, real = [], nncf.quantize

    def picky(*arguments, advanced_parameters, **options):
        asked.append(advanced_parameters.disable_bias_correction)
        if not advanced_parameters.disable_bias_correction:
            raise ValueError("cannot reshape array of size 12 into shape (3,)")
        return real(*arguments, advanced_parameters=advanced_parameters, **options)

    monkeypatch.setattr(nncf, "quantize", picky)
    metadata = read_metadata(files["openvino"], BACKENDS["openvino"])
    calibration = [torch.rand(1, 3, *metadata.meta.preprocess.image_size)] * 2
    assert (
        BACKENDS["openvino"].quantize_file(files["openvino"], tmp_path / "a.xml", metadata, calibration)
        == "bias correction, which NNCF cannot do for this graph"
    )
    assert asked == [False, True]
    assert (tmp_path / "a.xml").is_file()
