"""Tracing of a network with `torch.export`, to a graph for one input size or for all."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental import _config as symbolic_config
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...checkpoint.format import meta_of
from ...config.data import Preprocess

#: size for tracing graphs with free sizes: no number of windows or pixels is 1, and no two are equal
FREE_SIZE = (256, 352)


class CannotExport(Exception):
    """A network cannot be exported; the message is the reason, without a full stop."""


@dataclass(frozen=True)
class Shape:
    """The input of a graph.

    Attributes:
        batch: images; None = any number.
        size: (height, width).
        free_size: True if the graph takes other sizes, too.
        channels: of the images.
    """

    batch: int | None
    size: tuple[int, int]
    free_size: bool = False
    channels: int = 3

    @property
    def axes(self) -> list[int | str]:
        """The axes: a number each, or a name where it is free."""
        size: list[int | str] = ["height", "width"] if self.free_size else [*self.size]
        return ["batch" if self.batch is None else self.batch, self.channels, *size]

    @property
    def free(self) -> dict[int, str]:
        """Names of the free axes by number."""
        return {i: axis for i, axis in enumerate(self.axes) if isinstance(axis, str)}

    def example(self) -> Tensor:
        """An example input for tracing; free axes have a representative length."""
        batch = 2 if self.batch is None else self.batch
        return torch.rand(batch, self.channels, *(FREE_SIZE if self.free_size else self.size))


class Graph(nn.Module):
    """A network, or a part of it, with optional preprocessing, for the export.

    Args:
        network: in evaluation mode.
        embed: preprocessing to include in the graph, on pixel values 0..255; None = the input is normalised.
    """

    def __init__(self, network: nn.Module, embed: Preprocess | None = None):
        super().__init__()
        self.network = network
        self.embed = embed is not None
        if embed is not None:
            mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (embed.mean, embed.std))
            self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
            self.register_buffer("offset", (-mean / std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, C, H, W) -> the network's outputs."""
        x = images * cast(Tensor, self.scale) + cast(Tensor, self.offset) if self.embed else images
        return self.network(x)


class OrderedMemory(TorchFunctionMode):
    """Gives tensors the memory format that exporters expect.

    Attention outputs are copied into contiguous memory: the fused kernel returns another layout than the products by
    which exporters replace it, and a view that the tracer records for the first may not exist for the second.

    Args:
        plain: also keep maps in NCHW memory; ExecuTorch's kernels refuse operands of different memory formats.
        explicit: replace attention by `explicit_attention`.
    """

    def __init__(self, plain: bool, explicit: bool):
        super().__init__()
        self.plain, self.explicit = plain, explicit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.plain and kwargs.get("memory_format") == torch.channels_last:
            kwargs = {**kwargs, "memory_format": torch.contiguous_format}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        out = explicit_attention(*args, **kwargs) if self.explicit else NotImplemented
        return func(*args, **kwargs).clone(memory_format=torch.contiguous_format) if out is NotImplemented else out


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` as products and a softmax; NotImplemented of options our networks do not use.

    Exporters replace the fused operator by a softmax with checks for queries that may attend to nothing. Here these get
    the mean of the values where a boolean mask excludes all keys; our networks have them in padding only, if at all.
    """
    if is_causal or enable_gqa or dropout_p:
        return NotImplemented
    logits = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(attn_mask.logical_not(), torch.finfo(logits.dtype).min)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return torch.matmul(logits.softmax(-1), value)


def trace(graph: Graph, shape: Shape, plain: bool = False, explicit: bool = False) -> ExportedProgram:
    """The graph of a network for inputs of a shape; `plain` and `explicit` are those of `OrderedMemory`.

    Raises:
        CannotExport: the network has none, such as a free size where it branches on sizes.
    """
    example = shape.example()
    spec = dict.fromkeys(shape.free, Dim.DYNAMIC) or None
    # otherwise the tracer would record that no map size and no number of windows is 1, and refuse such sizes
    oblivious = symbolic_config.patch(backed_size_oblivious=shape.free_size)  # pyright: ignore
    try:
        with torch.no_grad(), warnings.catch_warnings(), oblivious, OrderedMemory(plain, explicit):
            warnings.simplefilter("ignore")
            program = torch.export.export(graph.eval(), (example,), dynamic_shapes=({**spec},) if spec else None)
    except Exception as error:  # the exporter's errors have no common kind
        raise CannotExport(f"torch.export cannot make the graph: {first_line(error)}") from error
    eliminate_common_subexpressions(program)
    return program


def free_size_refused(network: nn.Module) -> str | None:
    """The reason why a network has no graph for all sizes; None if it may have one."""
    cfg = cast(dict[str, Any], getattr(network, "pretrained_cfg", None) or {})
    return f"{meta_of(network).model} takes one size only" if cfg.get("fixed_input_size") else None


def first_line(error: BaseException) -> str:
    """The first line of an error's original cause, without its full stop; the error's type if it has no message."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


SIZES = (torch.SymInt, torch.SymBool)


def eliminate_common_subexpressions(program: ExportedProgram) -> None:
    """Merge equal computations on sizes and constants in place; computations on images and weights are not merged.

    This nearly halves PSLT's graph, in which every block computes the same masks and indices.
    """
    first: dict[Hashable, Node] = {}
    shared: set[Node] = set()
    written = _written(program)
    for node in list(program.graph.nodes):
        key = None if node in written else _key(node, shared)
        if key is None:
            continue
        if key in first:
            node.replace_all_uses_with(first[key])
            program.graph.erase_node(node)
        else:
            first[key] = node
            shared.add(node)
    program.graph_module.recompile()


def _written(program: ExportedProgram) -> set[Node]:
    """All tensors that an operator with side effects may write to, also through views."""
    found: set[Node] = set()
    for node in reversed(program.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node in found or (schema is not None and schema.is_mutable):
            found.update(n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), SIZES))
    return found


def _key(node: Node, shared: set[Node]) -> Hashable | None:
    """A key of a node's value, equal for equal computations; None if the value depends on images or weights."""
    value = node.meta.get("val")
    if isinstance(value, SIZES):
        return type(value), value.node.expr
    if node.op != "call_function" or node.is_impure() or not shared.issuperset(node.all_input_nodes):
        return None
    return node.target, _hashable(node.args), _hashable(node.kwargs)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, (tuple, list)):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _hashable(v)) for k, v in value.items())
    return type(value), value  # 1, 1.0 and True are equal but not interchangeable
