"""Authors' files of a network under a head: MMSegmentation's and MMDetection's entries as our heads' names and shapes.

Their names and layouts differ from ours in known ways (`Layout.rules`); the encoder goes through the filter of its
network's family. Number of classes and widths are those of the file's tensors; how images become the input, and what
differs between their layers and torchvision's, is in the description that the network gets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config.data import Preprocess
from ..errors import UserError
from ..factory import Backbone, assemble
from ..models.catalog import AUTHORS_WEIGHTS
from ..models.checkpoints import rename_all, unwrap
from ..utils.class_names import ade20k_names, coco_panoptic_names
from .description import WeightsMeta
from .format import set_meta
from .initialize import InitReport, filtered, load_checked, take_same
from .sources import read_any

#: options that change what a head computes with the same weights
COMPUTED = ("aligned", "sampling_ratio", "round_anchors")
#: their background is the last class, ours the first
BACKGROUND_LAST = ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.bias")

Options = Callable[[Mapping[str, Tensor]], dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """Layout of the files of one head.

    Attributes:
        head: as in `--head`.
        task: what such files are for.
        marks: entries that every such file has.
        rules: patterns of their names and our replacements, for the head's entries.
        unused: beginnings of entries that no result depends on.
        options: of our head, from the file's entries.
        classes: names of the standard data set's classes.
        image_size: (height, width) in pixels that the authors measure at.
        settings: of the task, as the authors measure.
        data: what the published weights learned from.
    """

    head: str
    task: str
    marks: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    options: Options
    classes: Callable[[], list[str]]
    image_size: tuple[int, int]
    settings: dict[str, Any]
    data: str
    unused: tuple[str, ...] = ()


def _segformer_options(entries: Mapping[str, Tensor]) -> dict[str, Any]:
    classes, channels = entries["decode_head.linear_pred.weight"].shape[:2]
    return {"num_classes": classes, "channels": channels}


def _panoptic_options(entries: Mapping[str, Tensor]) -> dict[str, Any]:
    """Widths and classes; RoIAlign and anchors as in MMDetection, sizes and normalisation as the authors measure."""
    semantic = entries["semantic_head.conv_logits.weight"].shape
    pre = Preprocess()
    return {
        "num_things": len(entries["roi_head.mask_head.conv_logits.weight"]),
        "num_stuff": semantic[0] - 1,
        "channels": len(entries["neck.lateral_convs.0.conv.weight"]),
        "fc_channels": len(entries["roi_head.bbox_head.shared_fcs.0.weight"]),
        "semantic_channels": semantic[1],
        "aligned": True,
        "sampling_ratio": 0,
        "round_anchors": False,
        "min_size": [800],
        "max_size": 1333,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
    }


LAYOUTS = (
    Layout(
        head="segformer",
        task="semantic_segmentation",
        marks=("decode_head.linear_pred.weight", "decode_head.linear_fuse.conv.weight"),
        rules=(
            *((rf"^decode_head\.linear_c{i + 1}\.proj\.", f"head.projections.{i}.") for i in range(4)),
            (r"^decode_head\.linear_fuse\.conv\.", "head.fuse.0."),
            (r"^decode_head\.linear_fuse\.bn\.", "head.fuse.1."),
            (r"^decode_head\.linear_pred\.", "head.classifier."),
        ),
        unused=("decode_head.conv_seg.",),  # of MMSegmentation's base class
        options=_segformer_options,
        classes=ade20k_names,
        image_size=(512, 512),
        settings={"segmentation": {"short_side": 512, "max_side": 2048}},
        data="ADE20K",
    ),
    Layout(
        head="panoptic_fpn",
        task="panoptic_segmentation",
        marks=(
            "neck.lateral_convs.0.conv.weight",
            "roi_head.bbox_head.shared_fcs.0.weight",
            "roi_head.mask_head.conv_logits.weight",
            "semantic_head.conv_logits.weight",
        ),
        rules=(
            (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
            (r"^neck\.fpn_convs\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
            (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
            (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
            (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
            (r"^roi_head\.bbox_head\.shared_fcs\.0\.", "roi_heads.box_head.fc6."),
            (r"^roi_head\.bbox_head\.shared_fcs\.1\.", "roi_heads.box_head.fc7."),
            (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
            (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
            (r"^roi_head\.mask_head\.convs\.(\d)\.conv\.", r"roi_heads.mask_head.\1.0."),
            (r"^roi_head\.mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask."),
            (r"^roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
            (r"^semantic_head\.conv_upsample_layers\.(\d)\.conv\.(\d)\.conv\.", r"semantic.paths.\1.\2.0."),
            (r"^semantic_head\.conv_upsample_layers\.(\d)\.conv\.(\d)\.gn\.", r"semantic.paths.\1.\2.1."),
            (r"^semantic_head\.conv_logits\.", "semantic.classifier."),
        ),
        options=_panoptic_options,
        classes=coco_panoptic_names,
        image_size=(800, 800),
        settings={"detection": {"max_side": 1333}},
        data="COCO 2017",
    ),
)


@dataclass(frozen=True)
class DenseFile:
    """An authors' file of a network under a head.

    Attributes:
        path: the file.
        layout: its layout.
        entries: its tensors under the authors' names.
        class_names: those that the file states; empty if it states none.
    """

    path: Path
    layout: Layout
    entries: dict[str, Tensor]
    class_names: list[str] = field(default_factory=list)

    @property
    def head_options(self) -> dict[str, Any]:
        """Options of our head with the file's widths and classes.

        Raises:
            UserError: tensors of shapes that are no head's.
        """
        try:
            return self.layout.options(self.entries)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise UserError(f"{self.path} is damaged: its {self.layout.head} head has no such shapes.") from error

    @property
    def classes(self) -> list[str]:
        """The data set's names for its number of classes, else the file's own, else numbers."""
        options = self.head_options
        count = options.get("num_classes") or options["num_things"] + options["num_stuff"]
        for names in (self.layout.classes(), self.class_names):
            if len(names) == count:
                return names
        return [str(number) for number in range(count)]

    def state_for(self, model: nn.Module, name: str) -> dict[str, Tensor]:
        """The entries under the names and in the shapes of a network of ours.

        Args:
            model: the network with its head.
            name: what its encoder is called, for messages.
        """
        prefix, backbone = next((own, m.network) for own, m in model.named_modules() if isinstance(m, Backbone))
        prefix += ".network."
        encoder = {key: value for key, value in self.entries.items() if key.startswith("backbone.")}
        head = {
            key: value
            for key, value in self.entries.items()
            if key not in encoder and not key.startswith(self.layout.unused or ("\0",))
        }
        head = rename_all(head, self.layout.rules)
        for key in BACKGROUND_LAST:
            if key in head and head[key].ndim:
                head[key] = head[key].roll(1, 0)
        own = model.state_dict()
        head = {key: _as(value, own.get(key)) for key, value in head.items()}
        found = filtered(encoder, backbone, self.path.name, name)
        return {**{prefix + key: value for key, value in found.items()}, **head}


def _as(value: Tensor, own: Tensor | None) -> Tensor:
    """A linear layer's weight as the 1x1 convolution that the network has for it; anything else as it is."""
    return value[:, :, None, None] if own is not None and (value.ndim, own.ndim) == (2, 4) else value


def dense_file(path: str | Path) -> DenseFile | None:
    """An authors' file of a network under a head; None if it is another one.

    Raises:
        UserError: a damaged or unsafe file.
    """
    path = Path(path)
    if not path.is_file():
        return None
    content = read_any(path)
    try:
        entries = unwrap(content)
    except ValueError:  # of several networks, which the loader of classifiers names
        return None
    for layout in LAYOUTS:
        if all(mark in entries for mark in layout.marks):
            return DenseFile(path, layout, entries, _stated_classes(content))
    return None


def _stated_classes(content: dict[str, Any]) -> list[str]:
    """The names in an MMSegmentation's or MMDetection's `meta`."""
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, dict) else None
    plain = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return [*names] if plain else []  # pyright: ignore[reportOptionalIterable]


def open_dense(found: DenseFile, model: str) -> nn.Module:
    """The network of an authors' file, in evaluation mode, described by `.meta` as its authors measure it.

    Args:
        found: the file.
        model: name of its encoder.

    Raises:
        UserError: the file does not fit the network.
    """
    layout = found.layout
    meta = WeightsMeta(
        model=model,
        head=layout.head,
        head_options=found.head_options,
        task=layout.task,
        classes=found.classes,
        preprocess=Preprocess(image_size=layout.image_size, interpolation="bilinear", crop_pct=1.0),
        settings=layout.settings,
        licence=licence_of(model),
        training_data=layout.data,
        note=f"an authors' file under {layout.head}, measured as its authors do",
    )
    network = assemble(model, layout.head, {}, meta.head_options).eval()
    state = found.state_for(network, model)
    load_checked(network, state, path=str(found.path), source=found.path.name, name=f"{model} under {layout.head}")
    return set_meta(network, meta)


def init_dense(
    model: nn.Module,
    found: DenseFile,
    name: str,
    classes: Sequence[str],
    head_options: Mapping[str, Any],
    of_classes: Callable[[], set[str]],
) -> InitReport:
    """Start a network from an authors' file of its encoder under its head; see `init_same`.

    Args:
        model: the network, changed in place.
        found: the file.
        name: what its encoder is called.
        classes: the network's.
        head_options: of its head.
        of_classes: names of the tensors that depend on the classes.

    Raises:
        UserError: weights of another network, or of layers that this head computes otherwise.
    """
    theirs = {key: found.head_options[key] for key in COMPUTED if key in found.head_options}
    ours = {key: head_options.get(key, not value if isinstance(value, bool) else None) for key, value in theirs.items()}
    if ours != theirs:
        raise UserError(
            f"{found.path} learned with other RoIAlign and anchors than the head has by default: add --head_options "
            f"'{json.dumps(theirs)}'."
        )
    report = take_same(
        model,
        found.state_for(model, name),
        path=str(found.path),
        source=found.path.name,
        name=name,
        classes=(found.classes, classes),
        of_classes=of_classes,
    )
    report.licence = licence_of(name)
    return report


def licence_of(model: str) -> str | None:
    """Licence of the weights that the authors of a network published; None where it is not known."""
    return AUTHORS_WEIGHTS.get(model, ("", ""))[1] or None
