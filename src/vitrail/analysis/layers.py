"""Layers of a network by name, and the maps that leave them, for our networks and timm's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest, unknown

#: names that layers of one depth have: ours and those of timm's networks
_STEM = re.compile(r"stem|patch_embed|conv_stem|maxpool")
_BLOCK = re.compile(
    r"(stages|layers|blocks|layer\d)(\.\d+)*\.(blocks|layers)\.\d+"  # stages.1.blocks.0, layers.0.blocks.1
    r"|(blocks|layers|stages)\.\d+\.\d+"  # blocks.2.0
    r"|layer\d\.\d+"  # layer4.1 (ResNet)
    r"|blocks\.\d+"  # blocks.3 (columns of tokens)
    r"|encoder\.layers\.encoder_layer_\d+"  # columns of tokens in torchvision
)
_DOWNSAMPLE = re.compile(r"(stages|layers)\.\d+\.downsample|downsample_\d+")


def blocks_of(network: nn.Module) -> list[str]:
    """Names of a network's blocks, first to last.

    A block is what a stage repeats; names are the modules' own. Blocks inside blocks are not listed.

    Raises:
        UserError: the network has none that this library knows.
    """
    found: list[str] = []
    for name, module in network.named_modules():
        if _BLOCK.fullmatch(name) and not any(name.startswith(f"{outer}.") for outer in found):
            if isinstance(module, (nn.Identity, nn.Sequential, nn.ModuleList)) and not _has_own_forward(module):
                continue
            found.append(name)
    if not found:
        raise UserError(f"{type(network).__name__} has no blocks that are known by name: name a layer outright.")
    return found


def block_of(layer: str) -> str:
    """The block that the name of a layer begins with, such as stages.1.blocks.0; the whole name if with none."""
    found = _BLOCK.match(layer)
    return found.group() if found else layer


def _has_own_forward(module: nn.Module) -> bool:
    return type(module).forward not in (nn.Sequential.forward, nn.Identity.forward, nn.Module.forward)


def layers_of(network: nn.Module) -> list[str]:
    """Names of the stem, the down-samplings and the blocks, first to last."""
    blocks = set(blocks_of(network))
    return [
        name
        for name, module in network.named_modules()
        if name in blocks
        or (not isinstance(module, nn.Identity) and (_STEM.fullmatch(name) or _DOWNSAMPLE.fullmatch(name)))
    ]


def stage_of(name: str) -> int | None:
    """Number of the stage in a layer's name; None outside stages (the stem, columns of tokens)."""
    found = re.match(r"(?:stages|layers|layer)\.?(\d+)\.", name)
    return int(found[1]) if found else None


def layer(network: nn.Module, name: str) -> nn.Module:
    """The layer of a name.

    Raises:
        UserError: there is none; the nearest names are in the message, or those of the blocks where none is near.
    """
    modules = dict(network.named_modules())
    if not name or name not in modules:
        raise UserError(_no_layer(name, [known for known in modules if known]))
    return modules[name]


def _no_layer(name: str, known: list[str]) -> str:
    sentence = unknown("layer", name, known)
    blocks = [one for one in known if _BLOCK.fullmatch(one)]
    if not blocks or nearest(name, known):
        return sentence
    return f"{sentence.removesuffix('.')}; its blocks are {blocks[0]} to {blocks[-1]}."


def prefix_tokens(network: nn.Module) -> int:
    """Class and register tokens before those of the map, by timm's or torchvision's attributes."""
    return getattr(network, "num_prefix_tokens", int(hasattr(network, "class_token")))


def batches_of(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of at most `batch_size`, of images (B, C, H, W) or of larger batches that come one by one."""
    for given in [images] if isinstance(images, Tensor) else images:
        yield from given.split(batch_size)


def number_of_batches(images: Tensor | Iterable[Tensor], batch_size: int) -> int | None:
    """How many `batches_of` gives; None where that is not known before the last one."""
    return -(-len(images) // batch_size) if isinstance(images, Tensor) else None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; every module's own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def outputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers in every forward pass inside the context, by name, in the layers' own layout.

    They are the tensors of the pass itself, on the path from the images to the logits: gradients can be taken for them.

    Raises:
        UserError: no such layer, or one whose output is no tensor.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise UserError(f"Layer {name} gives no tensor, but {type(output).__name__}.")
        outputs[name] = output

    with _seeing(network, names, keep):
        yield outputs


@contextmanager
def recorded(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The maps (B, C, H, W) that leave layers in every forward pass inside the context, by name.

    Gradients flow through them. The layout of a layer's output is told by the network: tokens lose their prefix (class
    and register tokens) and take the grid of the patches.

    Raises:
        UserError: no such layer, or one whose output is no map.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        maps[name] = as_maps(output, network, name)

    with _seeing(network, names, keep):
        yield maps


@contextmanager
def _seeing(network: nn.Module, names: Sequence[str], keep: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `keep(name, output)` for the layers in every forward pass.

    What follows in the network computes with a copy, since some networks overwrite what a layer gave.
    """
    modules = [layer(network, name) for name in names]

    def hook_of(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            keep(name, output)
            return output.clone() if isinstance(output, Tensor) else None

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in zip(names, modules, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_maps(output: Any, network: nn.Module, name: str = "output") -> Tensor:
    """The output of a layer as maps (B, C, H, W).

    Args:
        output: (B, C, H, W), (B, H, W, C) or tokens (B, prefix + N, C).
        network: says which: `output_fmt` and `num_prefix_tokens` are timm's attributes.
        name: of the layer, for messages.

    Raises:
        UserError: neither.
    """
    output = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(output, Tensor) and output.ndim == 4:
        return output.permute(0, 3, 1, 2) if _channels_last(output, network) else output
    if isinstance(output, Tensor) and output.ndim == 3:
        tokens, size = _grid_of(network, output, name)
        return tokens.transpose(1, 2).unflatten(2, size)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UserError(f"Layer {name} gives no map: its output is {shape}.")


def _channels_last(output: Tensor, network: nn.Module) -> bool:
    """True for maps (B, H, W, C): square maps show it, others are what the network says of itself."""
    _, first, second, last = output.shape
    if second == last != first:
        return False
    if first == second != last:
        return True
    return getattr(network, "output_fmt", "NCHW") == "NHWC"


def _grid_of(network: nn.Module, tokens: Tensor, name: str) -> tuple[Tensor, tuple[int, int]]:
    """Tokens (B, N, C) without the prefix, and (height, width) of their map."""
    prefix = prefix_tokens(network)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    for number in (0, prefix):  # what patch embeddings give has no prefix yet
        count = tokens.shape[1] - number
        if grid is not None and grid[0] * grid[1] == count:
            return tokens[:, number:], (int(grid[0]), int(grid[1]))
    side = math.isqrt(tokens.shape[1] - prefix)
    if side * side != tokens.shape[1] - prefix:
        raise UserError(f"Layer {name} gives {tokens.shape[1]} tokens, which are no square map.")
    return tokens[:, prefix:], (side, side)


@torch.inference_mode()
def maps_of(network: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The maps (B, C, H, W) that leave layers for a batch of preprocessed images."""
    with evaluating(network), recorded(network, names) as maps:
        network(images)
    return {name: maps[name] for name in names}
