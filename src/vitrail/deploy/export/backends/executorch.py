"""ExecuTorch programs, run by XNNPACK on phones and small processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..metadata import Metadata
from ..trace import Shape, explicit_attention
from .base import Backend, require

aten = torch.ops.aten


#: XNNPACK recognises a linear layer by its transposed weight, which must not become a constant
TRANSPOSED: Any = {aten.permute.default, aten.t.default, aten.transpose.int}


class ExecuTorch(Backend):
    """One .pte file, for one size and batch; its runtime chooses the number of threads."""

    name = "executorch"
    suffix = ".pte"
    runtime = "executorch"
    extra = "executorch"
    modules = ("executorch",)
    free_axes = ()
    nchw = True

    def write_graph(self, program: ExportedProgram, path: Path, metadata: Metadata, shape: Shape) -> None:
        """See `Backend`."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(rewritten(program), partitioner=[XnnpackPartitioner()])
        with open(path, "wb") as file:
            lowered.to_executorch().write_to_file(file)

    def open_file(self, path: Path, threads: int) -> ExecuTorchFile:
        """See `Backend`."""
        return ExecuTorchFile(path)


class ExecuTorchFile:
    """A loaded ExecuTorch program; its runtime chooses the number of threads."""

    def __init__(self, path: Path):
        runtime = require("executorch.runtime", "executorch").Runtime.get()
        self.program = runtime.load_program(path)  # the method uses its memory
        self.method = self.program.load_method("forward")

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one input."""
        return [output.numpy().copy() for output in self.method.execute([torch.from_numpy(images)])]


# ---- operators that XNNPACK runs ----------------------------------------------------------------------------------


def rewritten(program: ExportedProgram) -> ExportedProgram:
    """The same graph without operators that ExecuTorch computes wrongly or not at all, or that XNNPACK lacks.

    Every operator that XNNPACK lacks splits the graph: each further piece needs copies at run time, and the time of the
    export grows with the square of the number of pieces. Masks and indices become constants, as the size is fixed.
    """
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    moved = program.run_decompositions({**torch.export.default_decompositions(), **REWRITES})
    learned = [weight for weight in moved.state_dict.values() if weight.requires_grad]
    for weight in learned:
        weight.requires_grad_(
            False
        )  # else constants derived from weights would require gradients and could not be copied
    try:
        return constant_prop_pass(moved, TRANSPOSED)
    finally:
        for weight in learned:  # they belong to the network
            weight.requires_grad_(True)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Softmax over the last of four axes, as a matrix: between convolutions XNNPACK keeps maps in channels_last memory
    and takes every softmax over the channels."""
    if x.ndim != 4 or dim % 4 != 3:
        return NotImplemented
    return aten._softmax.default(x.flatten(0, 2), 1, half_to_float).reshape(x.shape)


def _pad(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """Padding in which negative amounts become slices: ExecuTorch's kernel refuses them."""
    if min(pad) >= 0:
        return NotImplemented
    for i in range(0, len(pad), 2):
        axis = x.ndim - 1 - i // 2
        before, after = max(-pad[i], 0), max(-pad[i + 1], 0)
        if before or after:
            x = x.narrow(axis, before, x.shape[axis] - before - after)
    rest = [max(p, 0) for p in pad]
    return aten.constant_pad_nd.default(x, rest, value) if any(rest) else x.clone()


def _attention(
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
    """Attention without PyTorch's check for fully masked rows, which XNNPACK lacks and our masks do not need."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        return NotImplemented
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    return explicit_attention(query, key, value, attn_mask, **options)


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product without PyTorch's expansions of batch axes to the size they have already."""
    if x.ndim == 1:
        return _matmul(x[None], y).squeeze(-2)
    if y.ndim == 1:
        return _matmul(x, y[:, None]).squeeze(-1)
    if y.ndim == 2:
        return torch.mm(x.flatten(0, -2), y).reshape(*x.shape[:-1], y.shape[-1])
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
    return torch.bmm(x.flatten(0, -3), y.flatten(0, -3)).reshape(*batch, x.shape[-2], y.shape[-1])


def _select(x: Tensor, dim: int, index: int) -> Tensor:
    """One entry of an axis, by a slice and a reshape."""
    shape = [length for axis, length in enumerate(x.shape) if axis != dim % x.ndim]
    return x.narrow(dim, index % x.shape[dim], 1).view(shape)


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    """All entries of an axis."""
    return [_select(x, dim, index) for index in range(x.shape[dim])]


def _expand(x: Tensor, size: Sequence[int], *, implicit: bool = False) -> Tensor:
    """The input itself if it has the size already."""
    known = [own if length == -1 else length for own, length in zip(x.shape, size[-x.ndim :], strict=True)]
    return x.view(known) if len(size) == x.ndim and known == list(x.shape) else NotImplemented


REWRITES: dict[Any, Callable[..., Any]] = {
    aten._softmax.default: _softmax,
    aten.constant_pad_nd.default: _pad,
    aten.scaled_dot_product_attention.default: _attention,
    aten.matmul.default: _matmul,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    aten.expand.default: _expand,
}
