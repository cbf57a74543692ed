"""Class activation maps by gradients (Grad-CAM): where a layer's map speaks for a class.

Selvaraju et al., ICCV 2017; EMSNet's Fig. 3.11 draws them for its last stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..tasks.with_head import backbone_of, backbone_prefix
from ..utils.plot import rendered
from .layers import as_maps, blocks_of, evaluating, outputs_of, stage_of
from .layers import layer as layer_named
from .result import Analysis, NamedArray, about, backdrop_of, class_names
from .scores import OF_BOXES, scoring_of

#: what is said of a layer whose map is 1 x 1
ONE_PLACE = "its map is a single place for the whole image: choose an earlier layer"


@dataclass
class GradCam(Analysis):
    """Class activation maps.

    Attributes:
        arrays: "map" (image, y, x) of the layer's resolution, not negative; "weights" (image, channel), the mean
            gradients; "logit" (image,), the number about["score"] whose gradient they are, and "probability" (image,)
            of the classes in about["classes"], or what about["share"] says.
        enlarged: the maps at the input's size, each divided by its maximum: (images, height, width), 0 to 1.
        backdrop: the images as grey values from 0 to 1, to draw on.
    """

    enlarged: np.ndarray
    backdrop: np.ndarray

    def summary(self) -> str:
        """The layer, the classes, and which maps are empty."""
        found = f"{self.about['model']}: where layer {self.about['layer']} speaks for " + ", ".join(self.captions())
        empty = [str(i) for i, one in enumerate(self.enlarged) if not one.any()]
        found += f"; nothing does in the maps of {', '.join(empty)} (counted from 0)" if empty else ""
        return found + (f"; {ONE_PLACE}." if self.has_one_place() else ".")

    def has_one_place(self) -> bool:
        """True if the layer's map is a single place, which covers every image whole."""
        return self.arrays["map"].values.shape[1:] == (1, 1)

    def captions(self) -> list[str]:
        """Class and probability of each image."""
        chances = self.arrays["probability"].values
        share = "" if self.about["share"] == "probability" else f" {self.about['share']}"
        return [f"{name} ({100 * p:.1f} %{share})" for name, p in zip(self.about["class_names"], chances, strict=True)]

    def plot(self) -> Image.Image:
        """The maps over the images, side by side."""

        def draw(figure: Any) -> None:
            axes = figure.subplots(1, len(self.enlarged), squeeze=False)[0]
            drawn = None
            for axis, grey, one, caption in zip(axes, self.backdrop, self.enlarged, self.captions(), strict=True):
                axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
                drawn = axis.imshow(one, cmap="turbo", vmin=0, vmax=1, alpha=0.5)
                axis.set(title=caption, xticks=[], yticks=[])
            figure.suptitle(f"Grad-CAM, {self.about['model']}, layer {self.about['layer']}")
            figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the map's maximum")

        return rendered(3 * len(self.enlarged) + 1.2, 3.8, draw)


def gradcam(
    network: nn.Module,
    images: Tensor,
    *,
    layer: str | None = None,
    target: int | Sequence[int] | None = None,
) -> GradCam:
    """Class activation maps of a layer by gradients.

    With A_k the layer's channels and y the logit of the class, the map is ReLU(sum over k of a_k A_k), where a_k is the
    mean over positions of dy / dA_k. It shows where the layer supports the class, at the layer's resolution; not what
    the network would do without these pixels.

    Of a network with a head, y is: in semantic segmentation the sum of the class's logits over the pixels that are
    taken for it (Vinogradova et al., 2020); of keypoints the highest value of the keypoint's heat map; of boxes the log
    odds of the surest box's score. Layers are named as in the backbone, or as in the whole network.

    Args:
        network: a classifier, of this library or timm's, or a described network with a head; it is used in evaluation
            mode.
        images: preprocessed, (B, C, H, W); for detectors as they are, from 0 to 1.
        layer: name of any module that gives a map; None = the last stage before the final norm, of networks that read
            a class token the last block but one (the last one's other tokens reach no logit).
        target: number of the class, or one for each image; None = the likeliest of each.

    Raises:
        UserError: a layer that is not there or gives no map, a class that is not there, or a network without logits.
    """
    scoring, body = scoring_of(network), body_of(network)
    name = default_layer(body) if layer is None else layer
    inner = name_in_whole(network, name)
    # the images' gradient keeps the graph alive where all weights are frozen
    inputs: Any = images.detach().clone().requires_grad_()
    padding = _Padding(images.shape[-2:])
    with evaluating(network), torch.enable_grad(), outputs_of(network, [inner]) as outputs, padding.seen(network):
        score = scoring(network(list(inputs) if padding.is_needed(network) else inputs), target, len(images))
        if inner not in outputs:
            raise UserError(f"Layer {name} has no part in the network's output.")
        slopes = torch.autograd.grad(score.values.sum(), outputs[inner], allow_unused=True)[0]
    if slopes is None:
        raise UserError(f"Layer {name} has no part in the {score.meaning}.")
    activations, slopes = as_maps(outputs[inner].detach(), body, name), as_maps(slopes, body, name)
    weights = slopes.mean((2, 3))
    maps = torch.einsum("bk,bkhw->bhw", weights, activations).relu()
    values = {
        "map": (maps, ("image", "y", "x")),
        "weights": (weights, ("image", "channel")),
        "logit": (score.values, ("image",)),
        "probability": (score.shares, ("image",)),
    }
    classes = score.classes.tolist()
    told = about(network, images, layer=name, classes=classes, class_names=class_names(network, classes))
    return GradCam(
        {**told, "score": score.meaning, "share": score.share},
        {key: NamedArray(one.detach().cpu().numpy(), axes) for key, (one, axes) in values.items()},
        enlarged=_enlarged(maps, padding).cpu().numpy(),
        backdrop=backdrop_of(images),
    )


class _Padding:
    """How a detector resizes its images and pads them; of other networks nothing is done.

    Args:
        size: (height, width) of the images.
    """

    def __init__(self, size: Sequence[int]):
        self.size = (int(size[0]), int(size[1]))
        self.padded = self.resized = self.size

    def is_needed(self, network: nn.Module) -> bool:
        """True for networks that take lists of images."""
        return getattr(getattr(network, "meta", None), "task", None) in OF_BOXES

    @contextmanager
    def seen(self, network: Any) -> Iterator[None]:
        """Note the sizes in the pass inside the context; boxes of any score are kept."""
        if not self.is_needed(network):
            yield
            return

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            batch = output[0]
            self.padded, self.resized = tuple(batch.tensors.shape[-2:]), batch.image_sizes[0]

        handle = network.transform.register_forward_hook(keep)
        owner = getattr(network, "roi_heads", network)
        least = getattr(owner, "score_thresh", None)
        if least is not None:
            owner.score_thresh = 0.0
        try:
            yield
        finally:
            handle.remove()
            if least is not None:
                owner.score_thresh = least


def body_of(network: nn.Module) -> nn.Module:
    """The backbone of a network with a head, else the network itself."""
    return network if getattr(getattr(network, "meta", None), "head", None) is None else backbone_of(network)


def name_in_whole(network: nn.Module, name: str) -> str:
    """The name in the whole network of a layer that is named as in its backbone.

    Raises:
        UserError: there is none of that name; the nearest are in the message.
    """
    body = body_of(network)
    if body is network or (name in dict(network.named_modules()) and name not in dict(body.named_modules())):
        return name
    layer_named(body, name)
    return f"{backbone_prefix(network)}network.{name}"


def default_layer(network: nn.Module) -> str:
    """The layer whose map is drawn where none is named: the last stage, or a late block of a column of tokens.

    Raises:
        UserError: the network has no blocks that are known by name.
    """
    last = blocks_of(network)[-1]
    if stage_of(last) is None and last.startswith(("blocks.", "encoder.layers.")):
        blocks = blocks_of(network)
        reads_one_token = getattr(network, "global_pool", "") in ("token", "map") and last.count(".") == 1
        reads_one_token |= hasattr(network, "class_token")  # torchvision's
        return blocks[-2] if reads_one_token and len(blocks) > 1 else last
    # stages.3.blocks.1 stands in stages.3, layer4.1 in layer4
    for end in (".blocks.", ".layers."):
        if end in last:
            return last.rpartition(end)[0]
    return last.rpartition(".")[0]


def _enlarged(maps: Tensor, padding: _Padding) -> Tensor:
    """Maps (B, h, w) at the images' size, bilinear with corners not aligned, each divided by its maximum."""
    large = F.interpolate(maps[:, None], padding.padded, mode="bilinear", align_corners=False)
    if padding.padded != padding.size:
        inside = large[:, :, : padding.resized[0], : padding.resized[1]]
        large = F.interpolate(inside, padding.size, mode="bilinear", align_corners=False)
    large = large[:, 0]
    peak = large.amax((1, 2), keepdim=True)
    return large / torch.where(peak > 0, peak, 1)  # an empty map stays empty
