"""A backbone and a head as one network: any of ours, or of timm's with maps at strides 4 to 32, under any head."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import heads
from .errors import UserError, unknown
from .heads.common import STRIDES, BackboneMethods, Resizing
from .heads.resizing import padding_mask
from .utils.files import shortened


@dataclass(frozen=True)
class Head:
    """A head, what it takes from a backbone, and what its task has to know of it.

    Attributes:
        make: its class.
        used: the maps it reads, 0 the finest.
        normed: the last map passes the network's final norm.
        any_strides: it takes any four maps; else only those at strides 4, 8, 16 and 32.
        multiple: the height and width of images are rounded up to multiples of it in measuring.
        detector: it takes the backbone itself and lists of images, and not the maps of a batch. The other attributes
            are of detectors.
        first_label: label of the first class: 1 where 0 is the background.
        one_size: it resizes all images to one size; else it keeps their aspect ratio.
        single_stage: its outputs are scores and box deltas of all anchors, which can be exported.
    """

    make: Callable[..., nn.Module]
    used: tuple[int, ...] = (0, 1, 2, 3)
    normed: bool = False
    any_strides: bool = False
    multiple: int = 1
    detector: bool = False
    first_label: int = 0
    one_size: bool = False
    single_stage: bool = False


#: every head by its name; a new one is a file of `heads/` and a line here
HEADS = {
    "retinanet": Head(heads.RetinaNet, detector=True, used=(1, 2, 3), single_stage=True),
    "mask_rcnn": Head(heads.MaskRCNN, detector=True, first_label=1),
    "sparse_rcnn": Head(heads.SparseRCNN, detector=True),
    "ssdlite": Head(heads.SSDLite, detector=True, used=(2, 3), first_label=1, one_size=True, single_stage=True),
    "panoptic_fpn": Head(heads.PanopticFPN, detector=True, first_label=1),
    "semantic_fpn": Head(heads.SemanticFPN),
    "upernet": Head(heads.UperNet),
    "segformer": Head(heads.SegFormerHead, any_strides=True, multiple=32),
    "simple_baseline": Head(heads.SimpleBaseline, used=(3,)),
    "bnneck": Head(heads.BNNeck, used=(3,), normed=True),
}


#: sides to whose multiples images are padded for a network that does not take every size
MULTIPLES = (1, 32)
#: (height, width) of the images that are tried, and of one that contains them
TRIED_SIZES = ((71, 90), (320, 250))
PROBE_SIZE = (320, 250)


class Backbone(nn.Module):
    """A classification network as the source of feature maps; its classifier is dropped.

    Args:
        network: of ours, or of timm's with `forward_intermediates`.
        used: the maps that will be read; norms of the others are dropped.
        normed: apply the network's final norm to the last map.
        any_strides: take the last four maps, whatever their strides (VOLO's are 8, 16, 16 and 16).

    Shapes: images (B, C, H, W) -> four maps at strides 4 to 32, each side rounded up.

    Networks that timm says take one size get images padded with zeros (the mean colour) to multiples of a side that
    they take, where there is one; the maps of the padding are cut off.

    Under a detector, a network whose `forward_intermediates` takes a `padding_mask` (B, H, W) is told where the batch
    is padding; the other networks are not.

    Raises:
        UserError: the network has no such maps, or takes images of one size only.
    """

    def __init__(
        self,
        network: nn.Module,
        used: tuple[int, ...] = (0, 1, 2, 3),
        normed: bool = False,
        any_strides: bool = False,
    ):
        super().__init__()
        body, name = cast(Any, network), type(network).__name__
        if not hasattr(body, "forward_intermediates") or not hasattr(body, "feature_info"):
            raise UserError(f"{name} gives no maps at several scales; choose a network that does, such as mat_1.")
        info = list(body.feature_info)
        strides = [int(entry["reduction"]) for entry in info]
        if any_strides and len(info) >= len(STRIDES):
            self.indices = list(range(len(info)))[-len(STRIDES) :]
        elif set(STRIDES) <= set(strides):
            last = {stride: i for i, stride in enumerate(strides)}
            self.indices = [last[stride] for stride in STRIDES]
        else:
            raise UserError(f"{name} has maps at strides {strides}; this head needs strides 4, 8, 16 and 32.")
        self.widths = [int(info[i]["num_chs"]) for i in self.indices]
        body.prune_intermediate_layers([self.indices[i] for i in used], prune_norm=not normed, prune_head=True)
        self.network = network
        self.normed = normed
        self.takes_padding = "padding_mask" in inspect.signature(body.forward_intermediates).parameters
        self.strides = [strides[i] for i in self.indices]
        self.multiple = 1
        cfg = getattr(network, "pretrained_cfg", None) or {}
        first = next(network.parameters())
        if cfg.get("fixed_input_size") and not first.is_meta:
            self.multiple = self.required_multiple(first.new_zeros(1, cfg["input_size"][0], *PROBE_SIZE))

    @torch.no_grad()
    def required_multiple(self, images: Tensor) -> int:
        """The smallest of `MULTIPLES` to which sides of images must be padded for the network to take any size.

        Raises:
            UserError: there is none.
        """
        was, self.network.training = self.network.training, False
        self.network.eval()
        try:
            for self.multiple in MULTIPLES:
                if all(self.accepts(images[..., :height, :width]) for height, width in TRIED_SIZES):
                    return self.multiple
        finally:
            self.network.train(was)
        raise UserError(
            f"{type(self.network).__name__} takes images of one size only, and under a head sizes vary; choose a "
            "network that takes any, such as mat_1 or timm's Swin."
        )

    def accepts(self, images: Tensor) -> bool:
        """True if the network gives maps of the expected sizes."""
        try:
            maps = self(images)
        except (AssertionError, RuntimeError, IndexError, ValueError):  # whatever a network's arithmetic stops at
            return False
        wanted = [tuple(-(-side // stride) for side in images.shape[-2:]) for stride in self.strides]
        return [tuple(x.shape[-2:]) for x in maps] == wanted

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images -> maps, see above."""
        if self.multiple == 1:
            return self.maps(images)
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        found = zip(self.maps(padded), self.strides, strict=True)
        return [x[..., : -(-height // stride), : -(-width // stride)] for x, stride in found]

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's own maps of images of a size it takes."""
        padding = {"padding_mask": padding_mask(images)} if self.takes_padding else {}
        return cast(Any, self.network).forward_intermediates(
            images, indices=self.indices, norm=self.normed, output_fmt="NCHW", intermediates_only=True, **padding
        )


class WithHead(BackboneMethods, nn.Module):
    """A backbone and a head that reads its maps."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) -> the head's output."""
        return self.head(self.backbone(images))


def build_flexible(name: str, options: dict[str, Any]) -> nn.Module:
    """A network by name, without the check of its input's size where that is optional, as in timm's Swin.

    Raises:
        UserError: unknown name or option, or impossible value.
    """
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    if cfg is not None and cfg.fixed_input_size and "strict_img_size" not in options:
        try:
            return build_model(name, {**options, "strict_img_size": False}, 0)
        except UserError as error:
            if "strict_img_size" not in str(error):
                raise
    return build_model(name, options, 0)


def assemble(
    model: str, head: str, model_options: dict[str, Any] | None = None, head_options: dict[str, Any] | None = None
) -> nn.Module:
    """A network under a head, both with fresh weights.

    Args:
        model: name of ours or of timm's.
        head: one of `HEADS`.
        model_options: constructor options of the network.
        head_options: constructor options of the head.

    Raises:
        UserError: unknown name or option, impossible value, or a network without maps at strides 4 to 32.
    """
    if head not in HEADS:
        raise UserError(unknown("head", head, HEADS))
    kind, options = HEADS[head], dict(head_options or {})
    backbone = Backbone(build_flexible(model, dict(model_options or {})), kind.used, kind.normed, kind.any_strides)
    try:
        if kind.detector:
            return kind.make(backbone, backbone.widths, **options)
        return WithHead(backbone, kind.make(backbone.widths, **options))
    except TypeError as error:
        known = [name for name in inspect.signature(kind.make).parameters if name not in ("body", "in_chs", "options")]
        wrong = [name for name in options if name not in known]
        if not wrong:
            raise
        raise UserError(f"Head {head} has no option {wrong[0]!r}; it has {', '.join(known)}.") from error
    except ValueError as error:
        raise UserError(f"Head {head} cannot be built: {error}") from error


def resizing_of(options: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> Resizing:
    """The resizing and normalisation of a detector that keeps the shape of images, without its network.

    Args:
        options: of its head.
        mean, std: of each channel.
    """
    return Resizing(options.get("min_size", 800), options.get("max_size", 1333), [*mean], [*std]).eval()


#: options that say where weights come from; a weights file's network is never filled from elsewhere
WEIGHT_ORIGINS = ("pretrained", "checkpoint", "cache_dir")


def build_model(name: str, options: dict[str, Any], num_classes: int) -> nn.Module:
    """A network by name, with fresh weights.

    Raises:
        UserError: unknown name or tag (with those that exist), unknown option or impossible value.
    """
    check_name(name)
    for option in UNFIT:
        if option in options:
            raise UserError(
                f"--model_options.{option} is no option of a network that is trained or measured: leave it out."
            )
    try:
        return timm.create_model(name, **{**options, "num_classes": num_classes})
    except UserError:
        raise
    except Exception as error:  # a thousand networks meet impossible values in as many ways
        wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and wrong:
            raise UserError(f"Model {name} has no option {wrong.group(1)!r}.") from error
        reason = (
            f"{type(error).__name__} {error}" if not isinstance(error, (ValueError, AssertionError)) else str(error)
        )
        given = shortened(json.dumps(options, default=str), 300).strip("'")
        raise UserError(f"Model {name} cannot be built with {given}: {shortened(reason, 300)}") from error


def check_name(name: str) -> None:
    """Refuse what is no registered network: names that fetch or import, such as "hf-hub:...", included.

    Raises:
        UserError: unknown name, with the nearest ones, or unknown tag, with those of the network.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(unknown("model", name, timm.list_models()))
    tags = [known.partition(".")[2] for known in timm.models.get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        known = [known for known in tags if known]
        have = f"its weights are {', '.join(known)}" if known else "it has no tags"
        raise UserError(f"Model {architecture} has no weights {shortened(tag)}: {have}.")


def without_origins(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a network without those that say where weights come from, or that give maps instead of scores."""
    return {name: value for name, value in options.items() if not name.startswith(WEIGHT_ORIGINS)}


#: options of `timm.create_model` that no description can have: they say where and as what a network is built
UNFIT = ("features_only", "device", "dtype", "model_name", "num_classes")
