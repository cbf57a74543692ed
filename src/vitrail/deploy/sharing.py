"""What a graph computes from sizes alone, computed once: blocks of one map size share masks and indices in a file."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

SIZES = (torch.SymInt, torch.SymBool)


def share_geometry(program: ExportedProgram) -> None:
    """Let equal computations on sizes and constants use one result, in place; pictures and weights are not looked at.

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
