"""From a network to a graph for one size or for all: `torch.export`, with the inputs and outputs that files have."""

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

#: at which a graph for free sizes is made: no count of windows or of pixels is 1 there, and none equals another
FREE_SIZE = (256, 352)


class CannotExport(Exception):
    """Why this network has no such graph; the sentence ends without a full stop."""


@dataclass(frozen=True)
class Shape:
    """The input of a graph.

    Attributes:
        batch: images; None = any number.
        size: (height, width).
        free_size: whether the graph serves other sizes too.
        channels: of the images.
    """

    batch: int | None
    size: tuple[int, int]
    free_size: bool = False
    channels: int = 3

    @property
    def axes(self) -> list[int | str]:
        """Every axis as a number, or as its name where it is free."""
        sides: list[int | str] = ["height", "width"] if self.free_size else [*self.size]
        return ["batch" if self.batch is None else self.batch, self.channels, *sides]

    @property
    def free(self) -> dict[int, str]:
        """Names of the free axes by number."""
        return {i: axis for i, axis in enumerate(self.axes) if isinstance(axis, str)}

    def example(self) -> Tensor:
        """An input to trace with: axes that are free have a length that stands for all."""
        batch = 2 if self.batch is None else self.batch
        return torch.rand(batch, self.channels, *(FREE_SIZE if self.free_size else self.size))


class Graph(nn.Module):
    """A network, or a part of one, as it is exported.

    Args:
        network: in evaluation mode.
        embed: preprocessing to do inside, on pixel values 0..255; None = the input is normalised already.
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
        """(B, C, H, W) -> what the network gives."""
        x = images * cast(Tensor, self.scale) + cast(Tensor, self.offset) if self.embed else images
        return self.network(x)


class OrderedMemory(TorchFunctionMode):
    """Gives tensors the order of memory that exporters count on.

    Results of attention are copied into the usual order: the fused kernel gives another one than the products that
    exporters write in its place, and where the tracer notes a view of the first there is none of the second.

    Args:
        plain: maps stay in NCHW memory, too; ExecuTorch's kernels refuse operands of different orders.
    """

    def __init__(self, plain: bool):
        super().__init__()
        self.plain = plain

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.plain and kwargs.get("memory_format") == torch.channels_last:
            kwargs = {**kwargs, "memory_format": torch.contiguous_format}
        out = func(*args, **kwargs)
        return out.clone(memory_format=torch.contiguous_format) if func is F.scaled_dot_product_attention else out


def trace(graph: Graph, shape: Shape, plain: bool = False) -> ExportedProgram:
    """The graph of a network for inputs of a shape; with `plain` all of it in NCHW memory.

    Raises:
        CannotExport: the network has none, such as a free size where it branches on sizes.
    """
    example = shape.example()
    spec = dict.fromkeys(shape.free, Dim.DYNAMIC) or None
    # without it every window count and every map side would be noted as "not 1", and sizes that have one be refused
    oblivious = symbolic_config.patch(backed_size_oblivious=shape.free_size)  # pyright: ignore
    try:
        with torch.no_grad(), warnings.catch_warnings(), oblivious, OrderedMemory(plain):
            warnings.simplefilter("ignore")
            program = torch.export.export(graph.eval(), (example,), dynamic_shapes=({**spec},) if spec else None)
    except Exception as error:  # the exporter's errors have no common kind
        raise CannotExport(f"torch.export cannot make the graph: {first_line(error)}") from error
    share_geometry(program)
    return program


def free_size_refused(network: nn.Module) -> str | None:
    """Why a network has no graph for every size; None if it may have one."""
    cfg = cast(dict[str, Any], getattr(network, "pretrained_cfg", None) or {})
    return f"{meta_of(network).model} takes one size only" if cfg.get("fixed_input_size") else None


def first_line(error: BaseException) -> str:
    """The first line of what began an error, without its full stop; its kind where it says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


SIZES = (torch.SymInt, torch.SymBool)


def share_geometry(program: ExportedProgram) -> None:
    """Let equal computations on sizes and constants use one result, in place; images and weights are not looked at.

    It nearly halves PSLT's graph, where every block makes the same few masks and indices.
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
    """Every tensor that an operator which writes into its arguments may reach, be it through views."""
    found: set[Node] = set()
    for node in reversed(program.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node in found or (schema is not None and schema.is_mutable):
            found.update(n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), SIZES))
    return found


def _key(node: Node, shared: set[Node]) -> Hashable | None:
    """What determines the value of a node; None where more than sizes and constants does."""
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
    return type(value), value  # 1, 1.0 and True are equal and not the same
