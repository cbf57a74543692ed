"""Pieces that two or more heads share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign

#: how new layers begin: as the head's own code has it, or all with Xavier-uniform weights
INITS = ("default", "xavier")
#: strides of the maps that heads read
STRIDES = (4, 8, 16, 32)


def check_widths(in_chs: Sequence[int], count: int = 4) -> None:
    """Raise `ValueError` unless there is one positive width for each of `count` maps."""
    if len(in_chs) != count or min(in_chs) < 1:
        raise ValueError(f"in_chs={list(in_chs)!r} must be the {count} widths of the maps, finest first.")


def check_counts(**options: int) -> None:
    """Raise `ValueError` naming the first option that is below 1."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name}={value!r} must be 1 or more.")


def check_passed_on(options: Mapping[str, Any], detector: type[nn.Module], *ours: str) -> None:
    """Raise `ValueError` naming the first option that torchvision's detector has not; it would be read and forgotten.

    Args:
        detector: the class that gets the options.
        ours: its options that are set here.
    """
    known = [name for name in inspect.signature(detector).parameters if name not in ("backbone", "kwargs", *ours)]
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{name}={value!r} is no option; there are {', '.join(known)}.")


def conv_norm_act(in_chs: int, out_chs: int, kernel_size: int = 3, **options: Any) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; the map keeps its size."""
    return Conv2dNormActivation(in_chs, out_chs, kernel_size, bias=False, inplace=False, **options)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned; nothing where the size is right already."""
    size = list(size)
    return x if list(x.shape[-2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def fpn(in_chs: Sequence[int], channels: int, extra: Any = None) -> FeaturePyramidNetwork:
    """Feature pyramid (Lin et al., CVPR 2017): 1x1 laterals, nearest up-sampling to the finer map's size, 3x3 outputs.

    All convolutions with bias, no normalisation, no activation; Xavier-uniform weights.

    Args:
        extra: makes coarser levels, as torchvision's `ExtraFPNBlock`.
    """
    made = FeaturePyramidNetwork(list(in_chs), channels, extra)
    xavier(made)
    return made


def xavier(*parts: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every convolution and linear layer."""
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pyramid(network: FeaturePyramidNetwork, maps: Sequence[Tensor]) -> list[Tensor]:
    """The levels of a feature pyramid as a list, finest first."""
    return list(network({str(i): x for i, x in enumerate(maps)}).values())


class PyramidBackbone(nn.Module):
    """A backbone with its feature pyramid, as torchvision's detectors take it.

    Args:
        body: gives its four maps for images (B, C, H, W).
        network: of `fpn`.
        used: which of the maps the pyramid begins with.

    Shapes: images (B, C, H, W) -> the levels by name, finest first, all of `out_channels`.
    """

    def __init__(self, body: nn.Module, network: FeaturePyramidNetwork, used: slice = slice(None)):
        super().__init__()
        self.body = body
        self.fpn = network
        self.used = used
        self.out_channels = cast(Any, network.layer_blocks[0])[0].out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images -> levels, see above."""
        return self.fpn({str(i): x for i, x in enumerate(self.body(x)[self.used])})


class Anchors(AnchorGenerator):
    """torchvision's anchors, in float32 whatever the maps: bfloat16 knows every fourth pixel from 512 on."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        """Images and maps -> the boxes (N, 4) of each image."""
        return super().forward(image_list, [x[:1, :1].float() for x in feature_maps])


class DefaultBoxes(DefaultBoxGenerator):
    """torchvision's default boxes, in float32 as `Anchors`."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        """Images and maps -> the boxes (N, 4) of each image."""
        return super().forward(image_list, [x[:1, :1].float() for x in feature_maps])


class RegionPool(MultiScaleRoIAlign):
    """torchvision's pooling of boxes from the levels "0" to "3" of a pyramid, which takes boxes of any values.

    Its kernel ends the process at a coordinate that is not finite, as a training that diverges gives them; what is read
    there is NaN here, which the loss passes on.

    Args:
        side: of the pooled map; two samples a place and axis.
    """

    def __init__(self, side: int):
        super().__init__([str(i) for i in range(len(STRIDES))], side, sampling_ratio=2)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Levels, boxes (n, 4) of each image, the images' sizes -> (sum of n, C, side, side)."""
        if torch.compiler.is_exporting():
            return super().forward(x, boxes, image_shapes)
        finite = [own.isfinite().all(1, keepdim=True) for own in boxes]
        readable = [torch.where(good, own, torch.zeros_like(own)) for good, own in zip(finite, boxes, strict=True)]
        pooled = super().forward(x, readable, image_shapes)
        return pooled.masked_fill(~torch.cat(finite)[:, :, None, None], float("nan"))
