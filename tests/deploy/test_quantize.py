"""Which layers of an ONNX graph become int8."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitrail.deploy.quantize import onnx_kept_float


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
    assert set(onnx_kept_float(graph(*layers))) == kept
