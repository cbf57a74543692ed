"""torchvision's resizing of the detectors, extended to images of any shape and to masks of little memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

Target = dict[str, Tensor]


class AnyShapeTransform(GeneralizedRCNNTransform):
    """torchvision's resizing, also for images so slender that their short side would have no pixel.

    Their short side is stretched until it has one; boxes and masks with it, and back.

    Attributes:
        mask_thresh: probability from which a pixel belongs to a mask; masks are then bool, a quarter of the memory.
            None = probabilities, as torchvision's.
    """

    mask_thresh: float | None = None

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """See torchvision's."""
        height, width = image.shape[-2:]
        size = (height, width) if self.fixed_size is not None else keep_one_pixel((height, width), self.max_size)
        if size != (height, width):
            image = F.interpolate(image[None], size, mode="nearest")[0]
            target = None if target is None else _resize_target(target, (height, width), size)
        return super().resize(image, target)

    def postprocess(
        self,
        result: list[Target],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[Target]:
        """See torchvision's."""
        if self.training or self.mask_thresh is None:
            return super().postprocess(result, image_shapes, original_image_sizes)
        small = [found.pop("masks", None) for found in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found, masks, size in zip(result, small, original_image_sizes, strict=True):
            if masks is not None:
                found["masks"] = _paste_masks(masks, found["boxes"], size, self.mask_thresh)
        return result


def attach_sizes(batch: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Attach its images' sizes to a batch (B, C, H, W), for `padding_mask`; tensors made from it do not have them.

    They are an attribute of the tensor, as torchvision's detectors pass nothing else to the backbone.
    """
    setattr(batch, "image_sizes", [(int(image.shape[-2]), int(image.shape[-1])) for image in images])  # noqa: B010 - no attribute of the framework's tensors
    return batch


def with_sizes_of(made: Tensor, batch: Tensor) -> Tensor:
    """Attach to a tensor the images' sizes of the batch it was made from, if that has any; returns the tensor."""
    if hasattr(batch, "image_sizes"):
        setattr(made, "image_sizes", getattr(batch, "image_sizes"))  # noqa: B009, B010 - see `attach_sizes`
    return made


def padding_mask(batch: Tensor) -> Tensor | None:
    """(B, H, W) True where a batch of `attach_sizes` is padding; None without padding, or where sizes are unknown."""
    padded = (int(batch.shape[-2]), int(batch.shape[-1]))
    sizes: list[tuple[int, int]] = getattr(batch, "image_sizes", [])
    if all(size == padded for size in sizes):
        return None
    mask = torch.ones((len(sizes), *padded), dtype=torch.bool, device=batch.device)
    for own, (height, width) in zip(mask, sizes, strict=True):
        own[:height, :width] = False
    return mask


def keep_one_pixel(sides: tuple[int, int], max_size: int) -> tuple[int, int]:
    """Sides of which the short one keeps a pixel when the long one becomes `max_size`: stretched, if need be."""
    if max(sides) <= max_size:
        return sides
    least = -(-max(sides) // max_size) + 1  # one more, since sizes are rounded down
    return max(sides[0], least), max(sides[1], least)


def _resize_target(target: Target, before: tuple[int, int], after: tuple[int, int]) -> Target:
    made: dict[str, Any] = {**target, "boxes": resize_boxes(target["boxes"], list(before), list(after))}
    for name in ("masks", "semantic"):
        if name in target:
            plane = target[name]
            flat = plane.reshape(1, -1, *before).float()
            made[name] = F.interpolate(flat, after, mode="nearest").to(plane.dtype).reshape(*plane.shape[:-2], *after)
    return made


def _paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], thresh: float) -> Tensor:
    """Masks (N, 1, 28, 28) in their boxes: (N, 1, H, W) bool; one after another, as probabilities take 4 bytes."""
    made = torch.zeros((len(masks), 1, *size), dtype=torch.bool, device=masks.device)
    for i in range(len(masks)):
        made[i] = paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], size)[0] >= thresh
    return made


def use_bool_masks(model: nn.Module, thresh: float) -> None:
    """Let a network give bool masks (see `AnyShapeTransform.mask_thresh`); exported files are left as they are."""
    transform = getattr(model, "transform", None)
    if isinstance(transform, AnyShapeTransform):
        transform.mask_thresh = thresh
