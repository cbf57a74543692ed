"""Attention weights of the very forward pass, for every attention module of a network by its name.

A `TorchFunctionMode` sees the calls that make the weights (softmax, fused attention, selection) while an attention
module runs; they run as they are, so the pass and its output do not change. Where the fused kernel never makes the
weights, they are made from its queries, keys and mask. `attention_layouts.py` says of each class of modules which call
is which and where its queries and keys lie on the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from .attention_layouts import LAYOUTS, NOT_BETWEEN_TOKENS, plain_attention
from .attention_weights import AttentionWeights, Call, Layout, Pass
from .layers import layer

#: calls that are kept, by the function's name
WATCHED = {"scaled_dot_product_attention", "softmax", "matmul", "topk", "sort", "silu", "multi_head_attention_forward"}


class _Recorder(TorchFunctionMode):
    """Keeps the watched calls for the attention module that runs; they run as without it."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Pass] = []
        self.paused = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        output = function(*args, **options)
        name = getattr(function, "__name__", "")
        if self.running and not self.paused and name in WATCHED:
            self.running[-1].calls.append(Call(name, args, options, output))
        return output


def attention_modules(network: nn.Module) -> list[str]:
    """Names of a network's attention modules, first to last.

    They are the modules of the classes that `attention_layouts.py` knows, and all that have timm's child `attn_drop`.
    """
    return [name for name, module in network.named_modules() if name and _layout(module) is not None]


@contextmanager
def captured(network: nn.Module, names: Sequence[str] | None = None) -> Iterator[dict[str, AttentionWeights]]:
    """The attention weights of the last forward pass inside the context, by the attention module's name.

    A module with several attentions has one entry for each, such as "stages.2.blocks.0.mixer.fusion". The weights
    carry no gradient. The pass is not changed in any way: its output is bitwise the same, except that PyTorch's
    `nn.MultiheadAttention` leaves its fused kernel, which may round otherwise.

    Args:
        network: in evaluation mode; ours, or one of timm's.
        names: attention modules, or modules that hold some; None = all. A pass at 224 pixels may hold hundreds of
            megabytes of weights: name what is needed.

    Example:
        with captured(network, ["stages.2"]) as maps:
            network(images)
        maps["stages.2.blocks.0.mixer.fusion"].weights  # (image, window, head, query, key)

    Raises:
        UserError: no such module, or none with attention.
    """
    modules = dict(network.named_modules())
    wanted = _wanted(network, names)
    recorder, found = _Recorder(), {}
    batch: list[int] = []
    outer_shapes: dict[str, torch.Size] = {}
    handles = [network.register_forward_pre_hook(lambda module, inputs: found.clear())]
    # of the network's first layers too, which `forward_features` calls without the network itself
    handles += [one.register_forward_pre_hook(_keep_batch(batch)) for one in (network, *network.children())]

    handles += [
        modules[outer].register_forward_pre_hook(_keep_shape(outer_shapes, outer))
        for outer in {name.rpartition(".")[0] for name in wanted} - {""}
    ]
    for name in wanted:
        module, outer = modules[name], name.rpartition(".")[0]

        def before(module: nn.Module, inputs: Any, outer: str = outer) -> None:
            about = Pass(inputs, outer_shapes.get(outer), modules[outer], network, images=batch[-1])
            recorder.running.append(about)

        def after(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            about = recorder.running.pop()
            if output is None:  # the module raised: nothing to read
                return
            layout = _layout(module)
            assert layout is not None
            recorder.paused = True
            try:
                with torch.no_grad():
                    for part, weights in layout(module, about).items():
                        found[f"{name}.{part}" if part else name] = weights
            finally:
                recorder.paused = False

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after, always_call=True))
    try:
        with recorder:
            yield found
    finally:
        for handle in handles:
            handle.remove()


def _wanted(network: nn.Module, names: Sequence[str] | None) -> list[str]:
    known = attention_modules(network)
    if not known:
        raise UserError(
            f"No attention of {type(network).__name__} can be captured: it has none between tokens, or one of a kind "
            "that is not known here."
        )
    if names is None:
        return known
    for name in names:
        layer(network, name)  # refused here if there is none
    wanted = [one for one in known if any(f"{one}.".startswith(f"{name}.") for name in names)]
    if not wanted:
        raise UserError(f"{', '.join(names)}: no attention there; layers with attention are {', '.join(known)}.")
    return wanted


def _keep_batch(batch: list[int]) -> Callable[..., None]:
    """A pre-hook that keeps the number of images."""

    def hook(module: nn.Module, inputs: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            batch[:] = [inputs[0].shape[0]]

    return hook


def _keep_shape(shapes: dict[str, torch.Size], name: str) -> Callable[..., None]:
    """A pre-hook that keeps the shape of a module's input."""

    def hook(module: nn.Module, inputs: Any) -> None:
        shapes[name] = inputs[0].shape

    return hook


def _layout(module: nn.Module) -> Layout | None:
    if isinstance(module, NOT_BETWEEN_TOKENS):
        return None
    known = LAYOUTS.get(type(module))
    return plain_attention if known is None and isinstance(getattr(module, "attn_drop", None), nn.Module) else known
