"""`fuse`: a trained network in its inference form."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ...layers.rebuild import rebuild
from .compare import refuse_changes
from .fold import fold, replace, weighted
from .forms import inference_form
from .layers import FusedConv2d, FusedLinear, LRUCache

Network = TypeVar("Network", bound=nn.Module)


def fuse(model: Network, example: Tensor | None = None, check: bool = True) -> Network:
    """A copy of a network for inference: the same outputs, fewer and faster operations.

    Parallel branches are merged where timm can; norms and layer scales are folded into adjacent layers; activations are
    computed together with the layer before them; values that depend only on weights and map sizes are cached; and every
    convolution and linear layer runs on the kernel that is fastest on this processor, measured the first time a shape
    occurs. All methods of the network remain (`forward_features`, `forward_intermediates`, ...), and it takes the same
    input sizes. On a GPU and under `torch.compile` the folded network runs with PyTorch's public operators.

    Args:
        model: any network of ours or of timm; it is not changed.
        example: a batch of inputs to compare the outputs on; None = random images of the size of the network's
            configuration.
        check: compare the outputs before the copy is returned.

    Returns:
        A network in evaluation mode whose parameters need no gradients. Do not train it.

    Raises:
        RuntimeError: the copy's outputs differ by more than 1e-4 of the largest one (float32).
    """
    fused = _merged(copy.deepcopy(model)).eval().requires_grad_(False)
    for name, module in list(fused.named_modules()):
        form = inference_form(module) if name else module
        if form is not module:
            replace(fused, name, form)
    fold(fused)
    fused = cast(Network, _with_kernels(fused))
    fused = fused.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if check:
        _compare(model, fused, _example(model) if example is None else example)
    return fused


def _merged(model: Network) -> Network:
    """The network with the parallel branches merged of modules that can do that themselves.

    timm's `reparameterize_model` would also call a submodule of the name `fuse`, which SegFormer's head has.
    """
    for name, child in cast(Any, model).named_children():
        if callable(child_fuse := getattr(child, "fuse", None)) and not isinstance(child_fuse, nn.Module):
            setattr(model, name, child_fuse())
        elif hasattr(child, "reparameterize"):
            child.reparameterize()
        elif hasattr(child, "switch_to_deploy"):
            child.switch_to_deploy()
        _merged(child)
    return model


def _with_kernels(model: nn.Module) -> nn.Module:
    """The network with all convolutions and linear layers replaced by fused ones."""
    fused: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        layer = weighted(module)
        if layer is None:
            continue
        if layer not in fused:
            kind = FusedConv2d if isinstance(layer, nn.Conv2d) else FusedLinear
            fused[layer] = rebuild(layer, kind, activation=getattr(layer, "activation", "none"), cache=LRUCache())
        if not name:
            return fused[layer]
        replace(model, name, fused[layer])
    return model


def _example(model: nn.Module) -> Tensor:
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *size, generator=generator).to(like)


def _compare(model: nn.Module, fused: nn.Module, example: Tensor) -> None:
    training = model.training
    try:
        with torch.inference_mode():
            expected, found = model.eval()(example), fused(example)
    finally:
        model.train(training)
    refuse_changes(expected, found, changed=f"fuse changed the outputs of {type(model).__name__}")
