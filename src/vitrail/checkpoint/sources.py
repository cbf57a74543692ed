"""Every place that trained weights come from, behind one door: `read_stored`.

Weights are named as a .safetensors of ours or a run directory, "timm:NAME[.tag]", "hf-hub:org/name", a folder in the
Hub's form (config.json beside the weights), or a file of tensors: timm's, torchvision's and the papers' authors'.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
from torch import nn

from ..config.data import Preprocess
from ..errors import UserError, printable
from ..factory import check_name
from ..utils.files import parse_yaml, read_json, read_text, shortened
from ..utils.plain import typed
from .description import WeightsMeta, meta_from
from .format import BEST, HUB_CONFIG, HUB_WEIGHTS, file_of, read_tensors
from .header import read_header
from .pickled import read_pickle
from .remote import address_file, hub_file

RANDOM = "random:"
TIMM = "timm:"
HUB = "hf-hub:"
#: the model card of a folder in the Hub's form
CARD = "README.md"

#: what parts of timm's tags say of the training data, in the order in which they stand in a tag
TAG_DATA = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "laion2b": "LAION-2B",
    "laion400m": "LAION-400M",
    "laiona": "LAION-Aesthetics",
    "datacompxl": "DataComp-1B",
    "openai": "OpenAI's image-text pairs",
    "webli": "WebLI",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "inat21": "iNaturalist 2021",
    "ig1b": "Instagram-1B",
    "swag": "Instagram-3.6B",
    "yfcc100m": "YFCC-100M",
    "jft": "JFT-300M",
}


@dataclass
class Stored:
    """Trained weights as they are stored, before a network takes them.

    Attributes:
        source: their name for the user.
        tensors: by name; in a trainer's file perhaps nested.
        meta: what they are; None of files of tensors, which do not say.
    """

    source: str
    tensors: dict[str, Any]
    meta: WeightsMeta | None


def is_remote(weights: str) -> bool:
    """True if the argument names weights, and no file or folder."""
    return weights.startswith((RANDOM, TIMM, HUB))


def read_stored(weights: str | Path) -> Stored:
    """Trained weights of any source, with what is known of them.

    Raises:
        UserError: there are none, they cannot be fetched, or they are damaged.
    """
    weights = str(weights)
    if weights.startswith(RANDOM):
        raise UserError(f"{weights} has fresh weights, from which nothing can be taken over: leave it out.")
    if weights.startswith(TIMM):
        network = timm_network(weights.removeprefix(TIMM))
        meta = meta_of_cfg(network)
        return Stored(f"{TIMM}{meta.model}", network.state_dict(), meta)
    folder = hub_folder(weights)
    if folder is not None and (stored := _of_folder(folder, weights)) is not None:
        return stored
    path = file_of(local_path(weights))
    meta = read_header(path).meta() if path.suffix == ".safetensors" else None
    return Stored(weights, read_any(path), meta)


def read_any(path: Path) -> dict[str, Any]:
    """What a file of weights holds: tensors by name, in a trainer's file among other entries.

    Raises:
        UserError: a damaged or unsafe file.
    """
    return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def local_path(weights: str | Path) -> Path:
    """The file or folder on the disk that weights are in; of "hf-hub:" the folder in the cache, fetched if need be.

    Raises:
        UserError: it cannot be fetched.
    """
    weights = str(weights)
    if not weights.startswith(HUB):
        return Path(weights)
    repo = weights.removeprefix(HUB)
    hub_file(repo, (HUB_CONFIG,), weights)
    with contextlib.suppress(UserError):  # licence and data are known from the model card, where there is one
        hub_file(repo, (CARD,), weights)
    return hub_file(repo, HUB_WEIGHTS, weights).parent


def hub_folder(weights: str | Path) -> Path | None:
    """The folder in the Hub's form that weights are in; None of everything else."""
    if str(weights).startswith((RANDOM, TIMM)):
        return None
    path = local_path(weights)
    if not path.is_dir() or (path / BEST).is_file() or not (path / HUB_CONFIG).is_file():
        return None
    return path


def meta_of_source(weights: str | Path) -> WeightsMeta | None:
    """The description of weights of ours or in the Hub's form, without their tensors; None where nothing says it.

    Raises:
        UserError: there are no such weights, or their description cannot be used.
    """
    if str(weights).startswith((RANDOM, TIMM)):
        return None
    path, folder = file_of(local_path(weights)), hub_folder(weights)
    meta = read_header(path).meta() if path.suffix == ".safetensors" else None
    return meta_of_folder(folder, str(weights)) if meta is None and folder is not None else meta


def head_of(weights: str | Path) -> str | None:
    """The head of a network by its weights; None of a classifier and of weights that do not say."""
    meta = meta_of_source(weights)
    return meta.head if meta else None


# ---- a folder in the Hub's form ------------------------------------------------------------------------------------


def _of_folder(folder: Path, weights: str) -> Stored | None:
    """The weights in a folder in the Hub's form, by its config.json; None if the file in it describes itself."""
    file = file_of(folder)
    if file.suffix == ".safetensors" and read_header(file).text is not None:
        return None
    return Stored(weights, read_any(file), meta_of_folder(folder, weights))


def meta_of_folder(folder: Path, weights: str) -> WeightsMeta:
    """What the config.json and the model card of a folder in the Hub's form say of its weights, checked.

    Raises:
        UserError: it describes no network of timm's form, or a value that cannot be.
    """
    where = f"{HUB_CONFIG} of {weights}"
    config = read_json(folder / HUB_CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(
            f"{where} names no architecture of timm's: its network is of another library (a Transformers model?) and "
            "cannot be opened here."
        )
    cfg = config.get("pretrained_cfg", config)
    card = card_of(folder)
    tag = cfg.get("tag") if isinstance(cfg, dict) else None
    try:
        if not isinstance(cfg, dict):
            raise UserError("pretrained_cfg is no mapping.")
        check_name(config["architecture"])
        count = typed(int, config.get("num_classes", cfg.get("num_classes", 1000)), "num_classes")
        classes = _classes_in(config, cfg, count)
        meta = meta_from(
            {
                "model": config["architecture"],
                "model_options": _options_in(config),
                "classes": classes or ["none"],
                "preprocess": _preprocess_in(cfg),
                "licence": card.get("license") or cfg.get("license"),
                "training_data": card.get("datasets") or training_data_of(tag if isinstance(tag, str) else ""),
            }
        )
    except UserError as error:
        raise UserError(f"{where} cannot be used: {error}") from error
    meta.classes = classes  # a network without a classifier has none
    return meta


def _classes_in(config: Mapping[str, Any], cfg: Mapping[str, Any], count: int) -> list[str]:
    """Names of the classes: those it states, ImageNet's if there are 1000, else their numbers."""
    stated = config.get("label_names") or cfg.get("label_names") or cfg.get("labels")
    if not stated:
        return standard_classes(count)
    if isinstance(stated, dict):
        stated = [stated.get(str(i), str(i)) for i in range(count)]
    names = typed(list[str], stated, "label_names")
    if len(names) != count:
        raise UserError(f"it has {count} classes and names {len(names)}.")
    texts = typed(
        dict[str, str], config.get("label_descriptions") or cfg.get("label_descriptions") or {}, "label_descriptions"
    )
    return [texts.get(name, name) for name in names]


def _options_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor options of the network; the number of classes stands beside them."""
    options = typed(dict[str, Any], config.get("model_args") or {}, "model_args")
    return {name: value for name, value in options.items() if name != "num_classes"}


def _preprocess_in(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing in a `pretrained_cfg`, as plain values."""
    default = Preprocess()
    channels, *size = typed(tuple[int, int, int], cfg.get("input_size", (3, *default.image_size)), "input_size")
    return {
        "image_size": size,
        "in_chans": channels,
        **{
            name: cfg.get(name, getattr(default, name))
            for name in ("mean", "std", "interpolation", "crop_pct")
            if cfg.get(name) is not None
        },
    }


def card_of(folder: Path) -> dict[str, str]:
    """Licence and data sets that the model card of a folder in the Hub's form states; empty if it states none."""
    file = folder / CARD
    if not file.is_file():
        return {}
    head = re.match(r"---\r?\n(.*?)\r?\n---", read_text(file), re.DOTALL)
    try:
        values = parse_yaml(head.group(1), "the model card") if head else {}
    except UserError:  # a card that cannot be read says nothing
        return {}
    found = {}
    for name in ("license", "datasets"):
        stated = values.get(name) if isinstance(values, dict) else None
        listed = stated if isinstance(stated, list) else [stated]
        if text := ", ".join(one for one in listed if isinstance(one, str)):
            found[name] = printable(text)
    return found


# ---- timm ----------------------------------------------------------------------------------------------------------


def timm_network(name: str) -> nn.Module:
    """A network with the weights that timm has for it, from the cache or fetched, in evaluation mode.

    Args:
        name: with a tag, or without one for the default weights.

    Raises:
        UserError: unknown name or tag, no weights, or they can neither be found nor fetched.
    """
    cfg, architecture = check_pretrained(name), name.partition(".")[0]
    full = f"{architecture}.{cfg.tag}" if cfg.tag else architecture
    if cfg.hf_hub_id:
        files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_WEIGHTS
        file = hub_file(cfg.hf_hub_id, files, f"{TIMM}{full}", architecture)
    elif cfg.url:
        file = address_file(str(cfg.url), f"{TIMM}{full}", architecture)
    else:
        raise UserError(f"{TIMM}{full}: timm says no address of these weights; name their file with --model {name}.")
    try:
        # timm reads the file: it knows the many forms in which its weights are stored
        network = timm.create_model(full, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(
            f"{file} does not hold the weights of {TIMM}{full} ({type(error).__name__} {shortened(str(error), 200)}): "
            "delete it, and fetch it again."
        ) from error
    cast(dict[str, Any], network.pretrained_cfg)["file"] = None
    return network.eval()


def check_pretrained(name: str) -> Any:
    """timm's `pretrained_cfg` of a network that it has weights for.

    Raises:
        UserError: unknown name or tag, or no weights.
    """
    check_name(name)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise UserError(
            f"{TIMM}{name}: no trained weights of {name} can be fetched; `vitrail models` lists which exist, and "
            "timm's networks of equal cost that have some."
        )
    return cfg


def training_data_of(tag: str) -> str:
    """The training data by the tag of timm's weights, in the order of training; the tag itself where it does not say.

    "augreg_in21k_ft_in1k" is "ImageNet-21k, then ImageNet-1k".
    """
    known = [TAG_DATA[part] for part in re.split(r"[_.]", tag) if part in TAG_DATA]
    if known:
        return ", then ".join(dict.fromkeys(known))
    return f"as timm says of the tag {tag}" if tag else "not stated"


def standard_classes(count: int) -> list[str]:
    """ImageNet's names of 1000 classes; of any other count the numbers."""
    from timm.data import ImageNetInfo

    if count != 1000:
        return list(map(str, range(count)))
    info = ImageNetInfo()
    return [info.index_to_description(i) for i in range(1000)]


def meta_of_cfg(network: nn.Module, name: str | None = None, **origin: Any) -> WeightsMeta:
    """The description of a network from its `pretrained_cfg`.

    Args:
        network: one of timm's form.
        name: what it is called; None = its architecture and tag.
        origin: licence, training data and note, where they are not those of the `pretrained_cfg`.
    """
    cfg = cast(dict[str, Any], network.pretrained_cfg)
    tag = cfg.get("tag") or ""
    return WeightsMeta(
        model=name or ".".join(filter(None, (cfg["architecture"], tag))),
        classes=standard_classes(int(cast(Any, network).num_classes)),
        preprocess=Preprocess(
            image_size=(cfg["input_size"][1], cfg["input_size"][2]),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_pct=cfg["crop_pct"],
            in_chans=cfg["input_size"][0],
        ),
        **{"licence": cfg.get("license"), "training_data": training_data_of(tag), **origin},
    )
