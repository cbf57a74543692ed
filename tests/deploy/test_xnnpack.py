"""Rewriting a graph for XNNPACK: the same numbers, and none of the operators that would cut it into pieces."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("executorch")

from vitrail.deploy.export.backends.executorch import rewritten

aten = torch.ops.aten


class Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


QKV = tuple(drawn(2, 3, side, 4) for side in (5, 7, 7))
CASES = {
    "attention": (F.scaled_dot_product_attention, QKV),
    "attention with its own scale": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), QKV),
    "attention with a bias": (F.scaled_dot_product_attention, (*QKV, drawn(2, 1, 5, 7))),
    "products of equal batches": (torch.matmul, (drawn(2, 3, 4, 5), drawn(2, 3, 5, 6))),
    "products with a matrix": (torch.matmul, (drawn(2, 3, 4, 5).transpose(1, 2), drawn(5, 6))),
    "products of unequal batches": (torch.matmul, (drawn(2, 1, 4, 5), drawn(3, 5, 6))),
    "products with a vector": (torch.matmul, (drawn(2, 3, 4, 5), drawn(5))),
    "products of matrices": (torch.matmul, (drawn(4, 5), drawn(5, 6))),
    "entries of an axis": (lambda x: torch.cat(x.unbind(1)) + x.unbind(1)[0].sum(), (drawn(2, 3, 4),)),
    "an entry from behind": (lambda x: x[:, -2] * 2, (drawn(2, 3, 4),)),
    "an expansion to the own size": (lambda x: x.expand(-1, 3, 4) * 2, (drawn(2, 3, 4),)),
    "a true expansion": (lambda x: x.expand(2, 3, 4) * 2, (drawn(2, 1, 4),)),
    "padding and cropping": (lambda x: F.pad(x, (-1, 2, 0, -1)), (drawn(1, 2, 4, 5),)),
    "cropping": (lambda x: F.pad(x, (-1, -1)), (drawn(1, 2, 4, 5),)),
    "softmax over the last of four axes": (lambda x: x.softmax(-1), (drawn(1, 2, 4, 5),)),
    "softmax over another axis": (lambda x: x.softmax(1), (drawn(1, 2, 4, 5),)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_stay(name):
    function, inputs = CASES[name]
    made = rewritten(torch.export.export(Calls(function), inputs)).module()
    torch.testing.assert_close(made(*inputs), function(*inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("attention", {aten.where.self, aten.any.dim, aten.expand.default}),
        ("products of equal batches", {aten.expand.default, aten.matmul.default}),
        ("products with a matrix", {aten.expand.default, aten.matmul.default, aten.bmm.default}),
        ("products of unequal batches", {aten.matmul.default}),
        ("entries of an axis", {aten.select.int, aten.squeeze.dims, aten.unbind.int}),
        ("an entry from behind", {aten.select.int, aten.squeeze.dims}),
        ("an expansion to the own size", {aten.expand.default}),
        ("cropping", {aten.constant_pad_nd.default}),
    ],
)
def test_operators_that_cut_the_graph_go(name, gone):
    function, inputs = CASES[name]
    graph = rewritten(torch.export.export(Calls(function), inputs)).graph
    assert gone.isdisjoint(node.target for node in graph.nodes)


def test_what_depends_on_sizes_alone_becomes_a_constant_and_weights_of_layers_do_not():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            index = torch.arange(4)
            return self.layer(x) + torch.where(index % 2 == 0, -1.0, 0.5) * (index // 2)

    model, x = Masked(), drawn(3, 4)
    program = rewritten(torch.export.export(model, (x,)))
    assert {node.target for node in program.graph.nodes if node.op == "call_function"} == {
        aten.permute.default,  # of the weight, which the partitioner looks for
        aten.addmm.default,
        aten.add.Tensor,
    }
    torch.testing.assert_close(program.module()(x), model(x))
    assert model.layer.weight.requires_grad
