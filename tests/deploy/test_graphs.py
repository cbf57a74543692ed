"""What happens to a graph between the tracer and the file: shared geometry, fewer operators, no trace of its maker."""

import collections
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import timm
import torch
from export_helpers import FAMILIES, FAST, SUFFIX, weights_of
from onnxscript.rewriter.rules import common
from torch import nn

import vitrail
from vitrail.checkpoint.load import open_network
from vitrail.config.export import ExportOptions
from vitrail.deploy import export_network
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.backends.onnx import RULES, simplify
from vitrail.deploy.export.backends.openvino import openvino_model
from vitrail.deploy.export.trace import CannotExport, Graph, Shape, eliminate_common_subexpressions, trace


class Masked(nn.Module):
    """Two equal masks of the sizes, one that differs, one that is written into, two equal functions of the image."""

    def forward(self, images):
        height, width = images.shape[2:]
        first = (torch.arange(height) + 1)[:, None] * torch.arange(width)
        second = (torch.arange(height) + 1)[:, None] * torch.arange(width)
        other = (torch.arange(height) + 1.0)[:, None] * torch.arange(width)  # 1.0 is not 1
        written = torch.arange(width)
        written[1:].add_(5)
        return images.exp() * first + images.exp() * second + other * written + torch.arange(width)


def ops(program) -> collections.Counter:
    return collections.Counter(str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("free", [False, True])
def test_what_depends_on_sizes_alone_is_computed_once(free):
    shape = Shape(1, (6, 5), free_size=free)
    program = trace(Masked(), shape)
    count = ops(program)
    # one for the rows, one for the columns, one that is written into
    assert count["aten.arange.default"] == 3
    assert count["aten.exp.default"] == 2  # of the image: left alone
    assert count["aten.mul.Tensor"] == 5  # of six in the code
    for size in [(6, 5), (9, 12)] if free else [(6, 5)]:
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(program.module(check_guards=False)(x), Masked()(x))


def test_shared_geometry_halves_a_graph_of_pslt(tmp_path):
    network = open_network(weights_of("pslt_tiny", tmp_path)).eval()
    program = trace(Graph(network), Shape(1, (224, 224), free_size=True))
    # two stages of windows, rows and columns: places of the padded and of the plain map, whatever the displacement
    assert ops(program)["aten.arange.default"] == 2 * 2 * 2
    before = len(program.graph.nodes)
    eliminate_common_subexpressions(program)
    assert len(program.graph.nodes) == before  # nothing is left to share
    x = torch.randn(1, 3, 203, 177)
    with torch.no_grad():
        torch.testing.assert_close(program.module(check_guards=False)(x), network(x), rtol=1e-4, atol=1e-5)


def test_every_rule_looks_at_one_operator_at_a_time():
    # a rule with several outputs is matched in quadratic time: what this module is there to avoid
    for name in RULES:
        assert getattr(common, name)._target_pattern.has_single_output_node, name
    assert "slice_split_rule" not in RULES


def test_a_simplified_graph_computes_the_same(tmp_path):
    network = open_network(weights_of("emsnet_xxtiny", tmp_path)).eval()
    shape = Shape(None, (64, 64))
    program = trace(Graph(network), shape)
    written = torch.onnx.export(program, (shape.example(),), dynamo=True, verbose=False, optimize=False)
    before = len(written.model.graph)
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    simplify(written.model)
    assert len(written.model.graph) < before / 2
    fewer = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    x = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    np.testing.assert_allclose(*(s.run(None, {s.get_inputs()[0].name: x})[0] for s in (fewer, session)), atol=1e-6)


@pytest.mark.parametrize("format", FAST)
def test_a_file_does_not_say_where_it_was_made(format, tmp_path):
    path = tmp_path / f"mat_1{SUFFIX[format]}"
    export_network(weights_of("mat_1", tmp_path), ExportOptions(format, str(path), dynamic="none"))
    home = str(Path(vitrail.__file__).parent).encode()
    for file in tmp_path.glob(f"mat_1{SUFFIX[format]}*"):
        assert home not in file.read_bytes(), file


class TwoBiases(nn.Module):
    """Two layers whose biases are equal and not zero, and one whose bias is zero."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 1) for i in range(3)))
        for layer, value in zip(self.layers, (0.5, 0.5, 0.0), strict=True):
            nn.init.constant_(layer.bias, value)

    def forward(self, images):
        return self.layers(images)


def test_equal_biases_stay_apart():
    # ONNX Runtime's quantiser would tear a shared one apart and call the copies by names that exist
    shape = Shape(1, (8, 8))
    written = torch.onnx.export(
        trace(TwoBiases(), shape), (shape.example(),), dynamo=True, verbose=False, optimize=False
    )
    simplify(written.model)
    biases = [node.inputs[2:] for node in written.model.graph if node.op_type == "Conv"]
    assert [len(bias) for bias in biases] == [1, 1, 0]
    assert biases[0][0] is not biases[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "emsnet_xxtiny"])
def test_a_graph_of_all_sizes_for_openvino(name, tmp_path):
    # the converter knows no minimum and no maximum of sizes; EMSNet's pooling windows exceed small maps,
    # which OpenVINO refuses
    options = ExportOptions("openvino", str(tmp_path / "a.xml"), dynamic="batch,size")
    made = export_network(weights_of(name, tmp_path), options)
    assert made.shape == ["batch", 3, "height", "width"], made.notes


def test_what_openvino_lacks_is_said_without_the_place_in_its_code(monkeypatch):
    def refuse(program):
        raise RuntimeError("Check failed at a/b.cpp:1:\nSummary:\n-- No conversion rule found for operations: x\n")

    monkeypatch.setattr(openvino, "convert_model", refuse)
    with pytest.raises(CannotExport, match=r"^No conversion rule found for operations: x$"):
        openvino_model(trace(Masked(), Shape(1, (6, 5))), None, Shape(1, (6, 5)))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "repvit_m0_9"])
def test_branches_that_timm_can_merge_are_merged(name):
    """The file's network computes the same with fewer layers; the user's network stays as it is."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5).eval()
    for module in network.modules():  # statistics as after a training, so that a wrong fusion shows
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    form = BACKENDS["onnx"].in_form(network)
    before, after = (sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (network, form))
    assert after < 0.9 * before
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = network(images), form(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(parameter.requires_grad for parameter in network.parameters())


class Pair(nn.Module):
    """A user's module, whose method has the name of one of timm's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def fuse(self, first, second):
        return first + second

    def forward(self, images):
        return self.fuse(images, self.layer(images))


def test_methods_of_others_are_not_taken_for_timms():
    network = nn.Sequential(Pair(), timm.create_model("repvgg_a0", num_classes=5)).eval()
    form = BACKENDS["onnx"].in_form(network)
    assert type(form[0]) is Pair
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(form(images), network(images))
