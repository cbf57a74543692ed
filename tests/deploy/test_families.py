"""Every family in every format: outputs at two batches, and two sizes where a graph serves them, are PyTorch's."""

import json

import onnx
import pytest
import timm
import torch
from export_helpers import FAMILIES, SUFFIX, axes_of, weights_of
from torch.nn import functional as F

from vitrail.checkpoint.load import described, open_network
from vitrail.config.export import ExportOptions
from vitrail.deploy import export_network
from vitrail.deploy.export.backends import BACKENDS
from vitrail.deploy.export.backends.onnx import TransposedPropagate
from vitrail.deploy.export.trace import Graph, Shape, free_size_refused, trace
from vitrail.errors import UserError
from vitrail.models.emsnet import Propagate


def exported(name, tmp_path, format, **options):
    path = tmp_path / f"{name}{SUFFIX[format]}"
    return export_network(weights_of(name, tmp_path), ExportOptions(format, str(path), **options)), path


@pytest.mark.parametrize(
    "name", ["pslt_tiny", "lvt", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[2:])]
)
def test_onnx_with_a_free_batch(name, tmp_path):
    made, path = exported(name, tmp_path, "onnx", dynamic="batch")
    assert [(check.batch, check.size) for check in made.checks] == [(1, (64, 64)), (3, (64, 64))]
    assert max(check.relative for check in made.checks) < 1e-5
    assert made.shape == ["batch", 3, 64, 64]
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "Col2Im"]
    assert json.loads(path.with_name(path.name + ".json").read_text())["model"] == name


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("format", [format for format in BACKENDS if format != "onnx"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_formats(name, format, tmp_path):
    made, _ = exported(name, tmp_path, format, dynamic=axes_of(format))
    assert max(check.relative for check in made.checks) < 1e-5
    assert len(made.checks) == (2 if axes_of(format) == "batch" else 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("format", [name for name, backend in BACKENDS.items() if "size" in backend.free_axes])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_in_one_file(name, format, tmp_path):
    if name == "emsnet_xxtiny" and format != "onnx":  # see docs/deploy: pooling windows, smallest sizes
        with pytest.raises(UserError, match=f"was not exported to {format}"):
            exported(name, tmp_path, format, dynamic="batch,size")
        return
    made, _ = exported(name, tmp_path, format, dynamic="batch,size")
    assert max(check.relative for check in made.checks) < 1e-5
    assert "height" in made.shape
    assert len({check.size for check in made.checks}) == 3


def test_emsnet_spreads_tokens_as_the_runtime_likes_it(tmp_path):
    network = open_network(weights_of("emsnet_xxtiny", tmp_path)).eval()
    graph = Graph(BACKENDS["onnx"].in_form(network))
    kinds = {type(module) for module in graph.modules() if isinstance(module, Propagate)}
    assert kinds == {TransposedPropagate}
    assert TransposedPropagate not in {type(module) for module in BACKENDS["openvino"].in_form(network).modules()}
    assert TransposedPropagate not in {type(module) for module in network.modules()}  # left as it was
    assert [p.data_ptr() for p in graph.parameters()] == [p.data_ptr() for p in network.parameters()]
    x = torch.randn(2, 3, 75, 98)  # no multiple of any patch
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x), rtol=1e-4, atol=1e-5)


class Crossed(torch.nn.Module):
    """What ExecuTorch gets wrong or refuses as it stands: a softmax between convolutions, and negative padding."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 3, 1)

    def forward(self, images):
        return self.last(F.pad(self.first(images).softmax(-1), (0, -2, 1, -1)))


def test_executorch_gets_a_graph_that_it_computes_right(tmp_path):
    model, shape, path = Crossed().eval(), Shape(1, (8, 9)), tmp_path / "a.pte"
    BACKENDS["executorch"].write(trace(model, shape, plain=True), path, None, shape)
    x = torch.randn(1, 3, 8, 9)
    found = BACKENDS["executorch"].open(path.rename(tmp_path / "b.pte"))(x.numpy())[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-5, atol=1e-6)


def test_a_network_that_serves_one_size_says_so():
    network = described(timm.create_model("deit_tiny_patch16_224", depth=1), "deit_tiny_patch16_224")
    assert free_size_refused(network) == "deit_tiny_patch16_224 takes one size only"


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "torch_export"])
def test_shifted_windows_of_every_size_in_one_file(format, tmp_path):
    # PSLT shifts its windows only on maps larger than one; a graph for all sizes decides that anew each time
    made, _ = exported("pslt_tiny", tmp_path, format, image_size=160, dynamic="batch,size")
    assert "height" in made.shape
    assert {check.size for check in made.checks} == {(160, 160), (203, 245), (81, 89)}
    assert max(check.relative for check in made.checks) < 1e-5
