"""Every form of the WEIGHTS argument as a network ready to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .data.config import Preprocess
from .errors import UserError
from .weights import WeightsMeta, build_model, init_from, load, meta_of

RANDOM = "random:"


def open_network(weights: str, model: str | None = None) -> nn.Module:
    """The network behind a WEIGHTS argument, in evaluation mode, described by `.meta`.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file, or "random:MODEL" for fresh weights.
        model: the network an authors' file belongs to; must be None for the other forms.

    Raises:
        UserError: no such file or network, weights of another network, or a missing or superfluous `model`.
    """
    if weights.startswith(RANDOM):
        return _authors_classes(weights.removeprefix(RANDOM), None)
    path = Path(weights)
    if path.is_dir() or path.suffix == ".safetensors" or not path.exists():
        if model is not None and path.exists():
            raise UserError(f"{weights} says itself which network it holds: leave --model {model} out.")
        return load(path)
    if model is None:
        raise UserError(f"{weights} is an authors' file, which does not say its network: name it with --model.")
    return _authors_classes(model, path)


def _authors_classes(name: str, path: Path | None) -> nn.Module:
    """A network with the 1000 ImageNet classes and its own preprocessing; fresh weights without a file."""
    from timm.data import ImageNetInfo

    network = build_model(name, {}, 1000).eval()
    licence = None
    if path is not None:
        licence = init_from(network, path, name).licence
    info = ImageNetInfo()
    cfg = cast(dict[str, Any], network.pretrained_cfg)
    network.meta = WeightsMeta(  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        model=name,
        classes=[info.index_to_description(i) for i in range(1000)],
        preprocess=Preprocess(
            image_size=(cfg["input_size"][1], cfg["input_size"][2]),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_pct=cfg["crop_pct"],
            in_chans=cfg["input_size"][0],
        ),
        licence=licence,
        training_data="ImageNet-1K" if path else "none",
        note="" if path else "fresh random weights: predictions mean nothing",
    )
    return network


def remarks(network: nn.Module) -> list[str]:
    """What a user of the network must know: where its weights come from, and their terms."""
    meta = meta_of(network)
    terms = f"licence of the weights: {meta.licence}" if meta.licence else ""
    return [remark for remark in (meta.note, terms) if remark]


def pick_device(device: str) -> torch.device:
    """The device a name means; "auto" is a GPU where there is one.

    Raises:
        UserError: if the device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {device!r} cannot be used here; try --device cpu.") from error
    return chosen
