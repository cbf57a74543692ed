"""Layers, anchors, resizing and checks that two or more heads share."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.poolers import initLevelMapper

from .resizing import AnyShapeTransform, attach_sizes, keep_one_pixel

#: initialisations of new layers: the head's own, or Xavier-uniform weights for all
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


def check_torchvision_options(options: Mapping[str, Any], detector: type[nn.Module], *fixed: str) -> None:
    """Raise `ValueError` naming the first option that torchvision's detector does not have and would ignore.

    Args:
        options: as they are passed on.
        detector: the class that takes them.
        fixed: its options that the head sets itself.
    """
    known = [name for name in inspect.signature(detector).parameters if name not in ("backbone", "kwargs", *fixed)]
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


def fpn_levels(network: FeaturePyramidNetwork, maps: Sequence[Tensor]) -> list[Tensor]:
    """The levels of a feature pyramid as a list, finest first."""
    return list(network({str(i): x for i, x in enumerate(maps)}).values())


class BackboneWithFPN(nn.Module):
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


class Resizing(AnyShapeTransform):
    """torchvision's resizing, normalisation and padding, with sizes that can be fixed beforehand.

    In training, targets may have "short_side", the one to resize to instead of one drawn here, and "padded", the least
    (height, width) of the batch: so that micro-batches see what the whole batch would have seen.
    """

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        """See torchvision's."""
        self.padded = targets[0].get("padded", (0, 0)) if targets and self.training else (0, 0)
        return super().forward(images, targets)

    def resize(self, image: Tensor, target: dict[str, Any] | None = None) -> Any:
        """See torchvision's."""
        if not self.training or target is None or "short_side" not in target:
            return super().resize(image, target)
        drawn, self.min_size = self.min_size, (target["short_side"],)
        try:
            return super().resize(image, target)
        finally:
            self.min_size = drawn

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """See torchvision's; the images' sizes are attached to the batch, so that padding can be told from them."""
        batch = super().batch_images(images, size_divisible)
        below, right = (max(0, least - side) for least, side in zip(self.padded, batch.shape[-2:], strict=True))
        batch = F.pad(batch, (0, right, 0, below)) if below or right else batch
        return batch if torch.jit.is_tracing() else attach_sizes(batch, images)

    def draw_short_sides(self, images: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """Draw the short sides of images and note them in the targets; returns the size of their batch."""
        for target in targets:
            target["short_side"] = self.torch_choice(list(cast(Any, self.min_size)))
        return self.batch_size(self.sizes(images, targets))

    def sizes(self, images: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
        """(height, width) of each image once it is resized to its "short_side"."""
        if self.fixed_size is not None:
            return [(self.fixed_size[1], self.fixed_size[0])] * len(images)
        found = []
        for image, target in zip(images, targets, strict=True):
            sides = keep_one_pixel((int(image.shape[-2]), int(image.shape[-1])), self.max_size)
            scale = min(target["short_side"] / min(sides), self.max_size / max(sides))
            found.append((math.floor(sides[0] * scale), math.floor(sides[1] * scale)))
        return found

    def batch_size(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """(height, width) of a batch of images of these sizes."""
        step = self.size_divisible
        height, width = (-(-max(sides) // step) * step for sides in zip(*sizes, strict=True))
        return height, width


def num_positive_boxes(detector: Any, strides: Sequence[int], images: Sequence[Tensor], targets: Any) -> int:
    """Number of a detector's anchors that match an object, before it has seen the images.

    Args:
        detector: with `Resizing`, its generator of boxes and its matcher.
        strides: of its levels.
        images: (C, H, W) each.
        targets: with "boxes", "short_side" and "padded".
    """
    batch, count = targets[0]["padded"], 0
    one = targets[0]["boxes"].new_zeros(())
    maps = [one.expand(1, 1, *(-(-side // stride) for side in batch)) for stride in strides]
    boxes = detector.anchor_generator(ImageList(one.expand(1, 1, *batch), [batch]), maps)[0]
    for image, target, size in zip(images, targets, detector.transform.sizes(images, targets), strict=True):
        if len(target["boxes"]):
            objects = resize_boxes(target["boxes"], list(image.shape[-2:]), list(size))
            count += int((detector.proposal_matcher(box_iou(objects, boxes)) >= 0).sum())
    return count


class Anchors(AnchorGenerator):
    """torchvision's anchors, in float32 for maps of any type: bfloat16 has only every fourth number from 512 on."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        """Images and maps -> the boxes (N, 4) of each image."""
        return super().forward(image_list, [x[:1, :1].float() for x in feature_maps])


class ExactAnchors(Anchors):
    """Anchors of exactly their scale and aspect ratio, as MMDetection's; torchvision rounds their sides to pixels."""

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - as torchvision's
    ) -> Tensor:
        """The boxes (N, 4) around the origin, aspect ratio by aspect ratio."""
        ratios = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        sides = torch.tensor(scales, dtype=dtype, device=device)
        heights, widths = (ratios * sides).flatten(), (sides / ratios).flatten()
        return torch.stack([-widths, -heights, widths, heights], 1) / 2


class DefaultBoxes(DefaultBoxGenerator):
    """torchvision's default boxes, in float32 as `Anchors`."""

    def forward(self, image_list: Any, feature_maps: list[Tensor]) -> list[Tensor]:
        """Images and maps -> the boxes (N, 4) of each image."""
        return super().forward(image_list, [x[:1, :1].float() for x in feature_maps])


class BackboneMethods:
    """timm's training methods of a backbone, for the network and head that contain it."""

    def backbone_network(self) -> tuple[str, Any]:
        """Prefix of its parameters' names, and the backbone; "" and None where there is none of timm's."""
        for name, module in cast(nn.Module, self).named_modules():
            if hasattr(module, "forward_intermediates"):
                return f"{name}.", module
        return "", None

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, besides biases and 1-D tensors."""
        prefix, network = self.backbone_network()
        return {prefix + name for name in getattr(network, "no_weight_decay", set)()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """The backbone's layers in their order, for layer-wise learning rate decay; the head comes after the last."""
        prefix, network = self.backbone_network()
        own = network.group_matcher(coarse=coarse) if hasattr(network, "group_matcher") else {}

        def below(patterns: Any) -> Any:
            if patterns is None:
                return None
            if isinstance(patterns, str):  # every alternative is tried at the beginning of a name, with "^" or without
                return re.escape(prefix) + "(?:" + re.sub(r"(^|[|(])\^", r"\1", patterns) + ")"
            return [(below(pattern), order) for pattern, order in patterns]

        return {name: below(patterns) for name, patterns in own.items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in backward instead of storing their activations.

        Raises:
            ValueError: the network cannot.
        """
        network = self.backbone_network()[1]
        if not hasattr(network, "set_grad_checkpointing"):
            raise ValueError(f"{type(network).__name__} cannot compute its blocks again in backward.")
        network.set_grad_checkpointing(enable)


class RegionPool(MultiScaleRoIAlign):
    """torchvision's RoIAlign over the levels "0" to "3" of a pyramid, also for boxes that are not finite.

    Its kernel ends the process at a coordinate that is not finite, as a training that diverges gives them; what is read
    there is NaN here, which the loss passes on. The levels' scales are those of their strides: torchvision guesses them
    once from the first batch, wrongly where that is padded to more than 1.4 times its largest image.

    Args:
        side: of the pooled map.
        sampling_ratio: samples per bin and axis; 0 = as many as a bin has pixels.
        aligned: shift boxes by half a pixel of the map, whose samples lie at the centres of its pixels (Detectron2 and
            MMDetection); torchvision's detectors do not.
    """

    def __init__(self, side: int, sampling_ratio: int = 2, aligned: bool = False):
        super().__init__([str(i) for i in range(len(STRIDES))], side, sampling_ratio=sampling_ratio)
        self.aligned = aligned
        self.scales = [1 / stride for stride in STRIDES]
        first, last = (int(math.log2(stride)) for stride in (STRIDES[0], STRIDES[-1]))
        self.map_levels = initLevelMapper(first, last, self.canonical_scale, self.canonical_level)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Levels, boxes (n, 4) of each image, the images' sizes -> (sum of n, C, side, side)."""
        if torch.compiler.is_exporting():
            return self.pooled_by_level(x, boxes)
        finite = [own.isfinite().all(1, keepdim=True) for own in boxes]
        readable = [torch.where(good, own, torch.zeros_like(own)) for good, own in zip(finite, boxes, strict=True)]
        # torchvision's own loop cannot shift boxes
        pooled = self.pooled_by_level(x, readable) if self.aligned else super().forward(x, readable, image_shapes)
        return pooled.masked_fill(~torch.cat(finite)[:, :, None, None], float("nan"))

    def pooled_by_level(self, x: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """As `forward`, for finite boxes: those of each level pooled from it and put in their places."""
        maps = [x[name] for name in self.featmap_names]
        regions, levels = self._regions(boxes)
        made = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for level, (own, scale) in enumerate(zip(maps, cast(list[float], self.scales), strict=True)):
            chosen = torch.where(levels == level)[0]
            found = roi_align(
                own,
                regions[chosen],
                output_size=self.output_size,
                spatial_scale=scale,
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            )
            made = made.index_put((chosen,), found.to(made.dtype))
        return made

    def _regions(self, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (N, 5) with the numbers of their images before them, and their levels (N,)."""
        numbers = torch.cat([own.new_full((len(own), 1), number) for number, own in enumerate(boxes)])
        return torch.cat([numbers, torch.cat(boxes)], 1), cast(Any, self.map_levels)(boxes)
