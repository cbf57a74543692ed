"""Multiply-adds by category, and the papers' rules for adding them up.

The operators of one forward pass over one image are counted in PyTorch's dispatcher, so that modules and functions,
explicit and fused attention count alike. On the meta device nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import UserError, unknown
from .corrections import correction_of

aten = torch.ops.aten


@dataclass
class Counts:
    """Operations of one pass over one image, by category.

    Attributes:
        conv: multiply-adds of convolutions; of transposed ones on their input positions.
        linear: multiply-adds of matrix products with a learned matrix.
        matmul: multiply-adds of products of two activations: attention.
        batch_norm, layer_norm, group_norm: elements normalised.
        grid_sample: elements sampled.
        pooling: elements that enter an `nn.AdaptiveAvgPool2d`.
        bias: elements that a learned bias is added to.
        token_bias: those of them in linear layers of blocks, without padding; from `corrections`.
    """

    conv: int = 0
    linear: int = 0
    matmul: int = 0
    batch_norm: int = 0
    layer_norm: int = 0
    group_norm: int = 0
    grid_sample: int = 0
    pooling: int = 0
    bias: int = 0
    token_bias: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def weighted(self, weights: dict[str, int]) -> int:
        """The sum of the categories named, each times its weight."""
        return sum(weight * getattr(self, category) for category, weight in weights.items())


_PRODUCTS = {"conv": 1, "linear": 1}
_FVCORE = {
    **_PRODUCTS,
    "matmul": 1,
    "batch_norm": 2,
    "layer_norm": 5,
    "group_norm": 5,
    "grid_sample": 4,
    "pooling": 1,
}


@dataclass(frozen=True)
class Rule:
    """Counting rule of a paper.

    Attributes:
        backbone, head: weight of each category that counts, in the backbone and in a detection or segmentation head.
        as_written: count the papers' formulation of each mixer; False = the operations that our implementation runs.
    """

    backbone: dict[str, int]
    head: dict[str, int]
    as_written: bool = True


#: by name; "executed" counts the multiply-adds that our networks execute
RULES = {
    "executed": Rule({**_PRODUCTS, "matmul": 1}, {**_PRODUCTS, "matmul": 1}, as_written=False),
    "conv_linear": Rule(_PRODUCTS, _PRODUCTS),
    "conv_linear+bn2": Rule({**_PRODUCTS, "batch_norm": 2}, _PRODUCTS),
    "conv_linear+norms+headbias": Rule(
        {**_PRODUCTS, "batch_norm": 2, "layer_norm": 5}, {**_PRODUCTS, "batch_norm": 2, "bias": 1}
    ),
    "conv_linear+matmul": Rule({**_PRODUCTS, "matmul": 1}, {**_PRODUCTS, "matmul": 1}),
    "fvcore_default": Rule(_FVCORE, _FVCORE),
    "fvcore_backbone": Rule(_FVCORE, _PRODUCTS),
    "fvcore_backbone+bias": Rule({**_FVCORE, "token_bias": 1}, _PRODUCTS),
}


def rule_of(name: str) -> Rule:
    """The counting rule with a name.

    Raises:
        UserError: no such rule.
    """
    if name not in RULES:
        raise UserError(unknown("rule", name, list(RULES)))
    return RULES[name]


_NORMS: dict[Any, str] = {
    aten.native_batch_norm: "batch_norm",
    aten._native_batch_norm_legit_no_training: "batch_norm",
    aten.native_layer_norm: "layer_norm",
    aten.native_group_norm: "group_norm",
}


class _Operators(TorchDispatchMode):
    """Adds every operator to the counts of the module that calls it."""

    def __init__(self, learned: Iterable[Tensor], by_module: dict[str, Counts]):
        super().__init__()
        self.learned = {tensor.untyped_storage()._cdata for tensor in learned}
        self.by_module = by_module
        self.path = [""]  # names of the modules that are running, the innermost last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for category, amount in self.categories(func._overloadpacket, args, kwargs or {}, out):
            counts = self.by_module[self.path[-1]]
            setattr(counts, category, getattr(counts, category) + amount)
        return out

    def categories(self, op: Any, args: Any, kwargs: Any, out: Any) -> Iterator[tuple[str, int]]:
        """The categories an operator belongs to, each with its amount."""
        if op in flop_registry:
            macs = flop_registry[op](*args, **kwargs, out_val=out) // 2  # torch counts a multiply-add as two
            if op is aten.convolution:
                yield "conv", macs
            else:
                yield "linear" if any(map(self.is_learned, args)) else "matmul", macs
            if op is aten.addmm or (op is aten.convolution and args[2] is not None):
                yield "bias", out.numel()
        elif op in _NORMS:
            yield _NORMS[op], out[0].numel()
        elif op is aten.grid_sampler_2d:
            yield "grid_sample", out.numel()
        elif op in (aten.add, aten.add_) and any(self.is_learned(x) and x.ndim == 1 for x in args):
            yield "bias", out.numel()

    def is_learned(self, x: Any) -> bool:
        """True if `x` is a parameter or a view of one."""
        return isinstance(x, Tensor) and x.untyped_storage()._cdata in self.learned


def count(model: nn.Module, input_size: tuple[int, ...], as_written: bool = True) -> dict[str, Counts]:
    """The counts of every module's own operators, by its dotted name ("" = the model itself).

    Args:
        model: in evaluation mode, best on the meta device.
        input_size: (C, H, W) of one image.
        as_written: add the operations of the papers' formulations that our mixers avoid; see `corrections`.
    """
    by_module = {name: Counts() for name, _ in model.named_modules()}
    operators = _Operators(model.parameters(), by_module)
    first = next(model.parameters())
    with torch.no_grad(), _following(model, operators, as_written), operators:
        model(torch.empty(1, *input_size, device=first.device, dtype=first.dtype))
    return by_module


@contextmanager
def _following(model: nn.Module, operators: _Operators, as_written: bool) -> Iterator[None]:
    """Tell `operators` by hooks which module runs."""
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, inputs: Any, name: str = name) -> None:
            operators.path.append(name)
            if isinstance(module, nn.AdaptiveAvgPool2d):  # the dispatcher sees an ordinary mean
                operators.by_module[name].pooling += inputs[0].numel()

        def leave(module: nn.Module, inputs: Any, _: Any, name: str = name) -> None:
            operators.path.pop()
            if as_written and (correction := correction_of(module)):
                operators.by_module[name] += Counts(**correction(module, *inputs[0].shape[2:]))

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
