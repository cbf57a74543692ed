"""Calls of a network's modules in order, with the readers of each output, traced by torch.fx.

The network itself is not changed. Modules that are not traced as a whole (those registered with timm's
`register_notrace_module`) are traced child by child.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from timm.layers import DropPath, LayerScale, LayerScale2d
from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from .layers import activation_name

#: modules that return their input once training is over
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, DropPath)


@dataclass(eq=False)
class Call:
    """One call of a module with one input.

    Attributes:
        name: dotted name of the module in the network.
        source: the call whose output is its only input, None if that is anything else.
        readers: number of operations that read its output.
        read_by: those of them that are calls of modules.
    """

    name: str
    source: Call | None = None
    readers: int = 0
    read_by: list[Call] = field(default_factory=list, repr=False)

    @property
    def sole_reader(self) -> Call | None:
        """The only reader of its output, if that is a call of a module."""
        return self.read_by[0] if self.readers == 1 and len(self.read_by) == 1 else None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (nn.BatchNorm2d, nn.Conv2d, nn.Linear, LayerScale, LayerScale2d, *PASSING)
        return (
            isinstance(m, (*leaves, *get_notrace_modules()))
            or activation_name(m) is not None
            or super().is_leaf_module(m, module_qualified_name)
        )


def calls(model: nn.Module) -> list[Call]:
    """The calls of modules that are called exactly once in a forward pass, as far as fx can trace them."""
    found = [call for prefix, graph in _graphs(model, "") for call in _calls_of(graph, prefix)]
    times = Counter(call.name for call in found)
    owners = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    shared = {name for name, module in model.named_modules(remove_duplicate=False) if owners[id(module)] > 1}
    once = [call for call in found if times[call.name] == 1 and call.name not in shared]
    for call in once:  # modules that are called several times are not neighbours of others
        call.source = call.source if call.source in once else None
        call.read_by = [reader for reader in call.read_by if reader in once]
    return once


def _graphs(module: nn.Module, prefix: str) -> Iterator[tuple[str, fx.Graph]]:
    """The graph of a module, or of its children where it cannot be traced, each with the prefix of its names."""
    if isinstance(module, tuple(get_notrace_modules())):
        yield from _graphs_of_children(module, prefix)
        return
    try:
        graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(module)
    except Exception:  # control flow on sizes, missing arguments, ...: fx raises errors of any type
        yield from _graphs_of_children(module, prefix)
        return
    yield prefix, graph
    for name in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"):
        yield from _graphs_of_children(module.get_submodule(name), f"{prefix}{name}.")


def _graphs_of_children(module: nn.Module, prefix: str) -> Iterator[tuple[str, fx.Graph]]:
    if activation_name(module) is None and not isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
        for name, child in module.named_children():
            yield from _graphs(child, f"{prefix}{name}.")


def _calls_of(graph: fx.Graph, prefix: str) -> Iterator[Call]:
    made: dict[fx.Node, Call] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        call = made[node] = Call(f"{prefix}{node.target}", readers=len(node.users))
        source = made.get(cast(fx.Node, node.args[0])) if len(node.args) == 1 and not node.kwargs else None
        if source is not None:
            call.source = source
            source.read_by.append(call)
        yield call
