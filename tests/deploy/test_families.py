"""Every family in every format: outputs at two batches, and two sizes where a graph serves them, are PyTorch's."""

import json

import onnx
import pytest
from export_helpers import FAMILIES, SUFFIX, weights_of

from vitrail.deploy.export import export
from vitrail.deploy.options import ExportOptions
from vitrail.errors import UserError

FREE_SIZE = [name for name in FAMILIES if name != "pslt_tiny"]


def exported(name, tmp_path, format, **options):
    path = tmp_path / f"{name}{SUFFIX[format]}"
    return export(weights_of(name, tmp_path), ExportOptions(format, str(path), **options)), path


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_with_a_free_batch(name, tmp_path):
    made, path = exported(name, tmp_path, "onnx", dynamic="batch")
    assert [(check.batch, check.size) for check in made.checks] == [(1, (64, 64)), (3, (64, 64))]
    assert max(check.relative for check in made.checks) < 1e-5
    assert made.shape == ["batch", 3, 64, 64]
    assert not [node for node in onnx.load(path).graph.node if node.op_type == "Col2Im"]
    assert json.loads(path.with_name(path.name + ".json").read_text())["model"] == name


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "executorch", "torch_export"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_other_formats(name, format, tmp_path):
    made, _ = exported(name, tmp_path, format, dynamic="none" if format == "executorch" else "batch")
    assert max(check.relative for check in made.checks) < 1e-5
    assert len(made.checks) == (1 if format == "executorch" else 2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("format", ["onnx", "openvino", "torch_export"])
@pytest.mark.parametrize("name", FREE_SIZE)
def test_every_size_in_one_file(name, format, tmp_path):
    made, _ = exported(name, tmp_path, format)
    assert max(check.relative for check in made.checks) < 1e-5
    if "height" not in made.shape:  # allowed where the notes say why
        assert made.notes
    else:
        assert len({check.size for check in made.checks}) == 3


def test_a_family_that_serves_one_size_says_why(tmp_path):
    with pytest.raises(UserError, match=r"--dynamic batch,size is not possible: PSLT .* use --dynamic batch"):
        exported("pslt_tiny", tmp_path, "onnx", dynamic="batch,size")
