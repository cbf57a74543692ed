"""Class activation maps by gradients (Grad-CAM): where a layer's map speaks for a class.

Selvaraju et al., ICCV 2017; EMSNet's Fig. 3.11 draws them for its last stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..utils.plot import rendered
from .layers import as_maps, blocks_of, evaluating, outputs_of, stage_of
from .result import Analysis, NamedArray, about, backdrop_of

#: what is said of a layer whose map is 1 x 1
ONE_PLACE = "its map is a single place for the whole image: choose an earlier layer"


@dataclass
class GradCam(Analysis):
    """Class activation maps.

    Attributes:
        arrays: "map" (image, y, x) of the layer's resolution, not negative; "weights" (image, channel), the mean
            gradients; "logit" and "probability" (image,) of the classes in about["classes"].
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
        return [f"{name} ({100 * p:.1f} %)" for name, p in zip(self.about["class_names"], chances, strict=True)]

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

    Args:
        network: a classifier, of this library or timm's; it is used in evaluation mode.
        images: preprocessed, (B, C, H, W).
        layer: name of any module that gives a map; None = the last stage before the final norm, of networks that read
            a class token the last block but one (the last one's other tokens reach no logit).
        target: number of the class, or one for each image; None = the likeliest of each.

    Raises:
        UserError: a layer that is not there or gives no map, a class that is not there, or a network without logits.
    """
    name = default_layer(network) if layer is None else layer
    with evaluating(network), torch.enable_grad(), outputs_of(network, [name]) as outputs:
        # the images' gradient keeps the graph alive where all weights are frozen
        logits = network(images.detach().clone().requires_grad_())
        classes = _classes(logits, target, len(images))
        chosen = logits.gather(1, classes[:, None])[:, 0]
        if name not in outputs:
            raise UserError(f"Layer {name} has no part in the network's output.")
        slopes = torch.autograd.grad(chosen.sum(), outputs[name], allow_unused=True)[0]
    if slopes is None:
        raise UserError(f"Layer {name} has no part in the logits.")
    activations, slopes = as_maps(outputs[name].detach(), network, name), as_maps(slopes, network, name)
    weights = slopes.mean((2, 3))
    maps = torch.einsum("bk,bkhw->bhw", weights, activations).relu()
    values = {
        "map": (maps, ("image", "y", "x")),
        "weights": (weights, ("image", "channel")),
        "logit": (chosen, ("image",)),
        "probability": (logits.softmax(1).gather(1, classes[:, None])[:, 0], ("image",)),
    }
    return GradCam(
        about(network, images, layer=name, classes=classes.tolist(), class_names=_names(network, classes.tolist())),
        {key: NamedArray(one.detach().cpu().numpy(), axes) for key, (one, axes) in values.items()},
        enlarged=_enlarged(maps, images.shape[-2:]).cpu().numpy(),
        backdrop=backdrop_of(images),
    )


def default_layer(network: nn.Module) -> str:
    """The layer whose map is drawn where none is named: the last stage, or a late block of a column of tokens.

    Raises:
        UserError: the network has no blocks that are known by name.
    """
    last = blocks_of(network)[-1]
    if stage_of(last) is None and last.startswith("blocks."):
        blocks = blocks_of(network)
        reads_one_token = getattr(network, "global_pool", "") in ("token", "map") and "." not in last[len("blocks.") :]
        return blocks[-2] if reads_one_token and len(blocks) > 1 else last
    # stages.3.blocks.1 stands in stages.3, layer4.1 in layer4
    for end in (".blocks.", ".layers."):
        if end in last:
            return last.rpartition(end)[0]
    return last.rpartition(".")[0]


def _classes(logits: Any, target: int | Sequence[int] | None, count: int) -> Tensor:
    """Numbers of the classes, (count,)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError("gradcam needs a classifier: this network gives no logits (images, classes).")
    if target is None:
        return logits.argmax(1)
    wanted = [target] * count if isinstance(target, int) else list(target)
    if len(wanted) != count:
        raise UserError(f"target has {len(wanted)} classes for {count} images: give one, or one for each.")
    for one in wanted:
        if not 0 <= one < logits.shape[1]:
            raise UserError(f"target={one} is not allowed; give the number of a class, 0 to {logits.shape[1] - 1}.")
    return torch.tensor(wanted, device=logits.device)


def _names(network: nn.Module, classes: Sequence[int]) -> list[str]:
    """What the description of the network's weights calls the classes; without one "class 3"."""
    known = getattr(getattr(network, "meta", None), "classes", None)
    return [known[one] if known else f"class {one}" for one in classes]


def _enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, h, w) at another size, bilinear with corners not aligned, each divided by its maximum."""
    large = F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    peak = large.amax((1, 2), keepdim=True)
    return large / torch.where(peak > 0, peak, 1)  # an empty map stays empty
