"""Stored outputs of reference implementations: which networks, from which weights, on which images, gave what.

The folder `parity` beside VITRAIL_TEST_DATA holds a file a family and `fill.py`, which makes weights from their names
and images from a seed. PSLT's, LVT's and VOLO's numbers come from the authors' code, those of Pale, EMSNet, MAT and
PartialFormer from independent implementations of the papers. Everything that is special about one of these files is
said here.
"""

import json
import os
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FAMILIES = ("pslt", "lvt", "pale", "emsnet", "mat", "partialformer")

#: entries of LVT's file that are named after what the authors' code calls them
NETWORKS = {
    "lvt_gap_head": ("lvt", {"class_attention": False, "token_labeling": False}),
    "lvt_backbone": ("lvt", {"features_only": True}),
}


def bare(weights: dict[str, Tensor]) -> dict[str, Any]:
    return weights


def trainer(weights: dict[str, Tensor]) -> dict[str, Any]:
    """As LVT's and VOLO's classifiers are published: a trainer's checkpoint of a distributed run."""
    return {"epoch": 3, "arch": "x", "state_dict": {f"module.{name}": value for name, value in weights.items()}}


def averaged(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A trainer's checkpoint whose averaged weights are the ones wanted."""
    return {"state_dict": {name: value + 1 for name, value in weights.items()}, "state_dict_ema": weights}


def model_entry(weights: dict[str, Tensor]) -> dict[str, Any]:
    """As DeiT's scripts, which PSLT was trained with, save."""
    return {"model": weights, "epoch": 3}


def lightning(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A Lightning checkpoint of a compiled network, beside a loss with weights of its own."""
    wrapped = {f"model._orig_mod.{name}": value for name, value in weights.items()}
    return {"epoch": 3, "state_dict": {**wrapped, "criterion.weight": torch.ones(10)}, "pytorch-lightning_version": "2"}


def dense(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A detector's or segmenter's checkpoint: the encoder is its "backbone", beside other parts."""
    encoder = {f"backbone.{name}": value for name, value in weights.items()}
    others = {
        "neck.lateral_convs.0.conv.weight": torch.ones(2, 2),
        "decode_head.conv_seg.weight": torch.ones(2, 2, 1, 1),
    }
    return {"meta": {"epoch": 12}, "state_dict": {**encoder, **others}}


@dataclass(frozen=True)
class Case:
    """One stored run.

    Attributes:
        family: name of the stored file.
        key: name of the entry in it, with the size of its second and later runs.
        model: what `timm.create_model` builds, with `options`.
        input: seed, batch, height, width.
        golden: the stored numbers: `logits_*`, `feature_stats` and shapes.
        listing: name, shape, dtype of every entry of the reference's state dict.
        scales: endings of names, and the factor on the filled values; all that fit are applied.
        wrap: the reference's state dict as its authors' files hold it.
    """

    family: str
    key: str
    model: str
    options: dict[str, Any]
    input: tuple[int, int, int, int]
    golden: dict[str, Any]
    listing: list[tuple[str, list[int], str]]
    scales: list[tuple[tuple[str, ...], float]]
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.family}:{self.key}"

    def weights(self) -> dict[str, Tensor]:
        """The reference's state dict, under the reference's names."""
        fill, out = _tools()["fill"], {}
        for name, shape, dtype in self.listing:
            out[name] = torch.from_numpy(fill(name, tuple(shape), dtype))
            for endings, factor in self.scales:
                if name.endswith(endings):
                    out[name] = factor * out[name]
        return out

    def image(self) -> Tensor:
        """The input batch."""
        return image(self.input)


def image(size: tuple[int, int, int, int]) -> Tensor:
    """The image batch of a seed, batch, height and width."""
    return torch.from_numpy(_tools()["image"](*size))


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The values that a name stands for."""
    return torch.from_numpy(_tools()["fill"](name, shape))


def cases(*families: str) -> list[Case]:
    """Every stored run of the families named (all without names); none where there is no folder of them."""
    if folder() is None:
        return []
    return [case for family in families or FAMILIES for case in _family(family)]


def training() -> dict[str, Any]:
    """The stored training forward of LVT; its network and weights are those of the case "lvt"."""
    return stored("lvt")["training"]


@cache
def folder() -> Path | None:
    """Where the stored outputs are; None if VITRAIL_TEST_DATA is not set or has none beside it."""
    data = os.environ.get("VITRAIL_TEST_DATA")
    beside = Path(data).resolve().parent / "parity" if data else None
    return beside if beside and (beside / "fill.py").exists() else None


@cache
def stored(family: str) -> dict[str, Any]:
    """The stored file of a family."""
    path = folder()
    if path is None:
        raise FileNotFoundError("VITRAIL_TEST_DATA is not set, or no folder of reference outputs lies beside it")
    return json.loads((path / f"{family}.json").read_text(encoding="utf-8"))


@cache
def _tools() -> dict[str, Any]:
    path = folder()
    assert path is not None
    return runpy.run_path(str(path / "fill.py"))


def _family(family: str) -> list[Case]:
    content = stored(family)
    conventions = content["conventions"] if isinstance(content["conventions"], dict) else {}
    out = []
    for key, entry in content["models"].items():
        scales = [
            (tuple(scale["key_suffixes"]), scale["factor"])
            for scale in (conventions.get("scale"), entry.get("scale"))
            if scale
        ]
        listing = entry["state_dict"]
        if isinstance(listing, str):  # that of another entry
            listing = content["models"][listing]["state_dict"]
        wrap = _wrapper(family, key)
        for i, golden in enumerate(entry["golden"]):
            size = tuple(golden["input"])
            name = f"{key}/{size[2]}x{size[3]}" if i else key
            out.append(Case(family, name, *_network(key, entry), size, golden, listing, scales, wrap))
        if "detection_backbone" in entry:
            out += _detector(family, key, entry)
    return out


def _network(key: str, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if key in NETWORKS:
        return NETWORKS[key]
    # JSON's null travels as "none": timm.create_model drops options that are None
    options = {name: "none" if value is None else value for name, value in entry.get("options", {}).items()}
    return entry.get("model", key), {**options, "features_only": True} if entry.get("features_only") else options


def _wrapper(family: str, key: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    if key == "lvt_backbone":
        return bare
    return {"pslt": model_entry, "emsnet": averaged, "partialformer": lightning}.get(family, trainer)


def _detector(family: str, key: str, entry: dict[str, Any]) -> list[Case]:
    """The same parameters without norm and classifier, in a network that gives its maps."""
    reference = entry["detection_backbone"]
    listing = [
        row for row in entry["state_dict"] if not row[0].startswith(("norm.", "head.")) and "attn_mask" not in row[0]
    ]
    options = {"features_only": True, **reference["options"]}
    return [
        Case(family, f"{key}/detection", key, options, tuple(golden["input"]), golden, listing, [], dense)
        for golden in reference["golden"]
    ]
