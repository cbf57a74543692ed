"""Weights files: atomic writing, and reading without running any code they may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol, cast

import safetensors.torch
import timm
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import UserError
from ..models import names
from ..utils.files import write_whole
from ..utils.plain import to_dict
from .description import KEY, WeightsMeta, check_class_names
from .header import Header, damaged, read_header

__all__ = ["KEY", "WeightsMeta", "check_class_names"]

#: the weights of a run directory
BEST = "best.safetensors"
#: the description and the weights of a folder in the Hub's form, the safe file first
HUB_CONFIG, HUB_WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")


# ---- writing ----------------------------------------------------------------------------------------------------


def save_weights(path: str | Path, state_dict: dict[str, Tensor], meta: WeightsMeta) -> None:
    """Write tensors and their description as one .safetensors file, whole or not at all.

    Args:
        path: the file, replaced if it exists.
        state_dict: tensors by name; tensors that share memory are written once each.
        meta: the description, as JSON in the file's metadata.

    Raises:
        OSError: what the file system says; an older file is then as before.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    text = json.dumps(to_dict(meta), ensure_ascii=False, sort_keys=True)
    write_whole(path, _serialise(tensors, {"format": "pt", KEY: text}))


def _serialise(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A .safetensors file, the same bytes for the same content: the library shuffles the metadata's entries."""
    data = safetensors.torch.save(tensors)
    size = int.from_bytes(data[:8], "little")
    entries = {"__metadata__": metadata, **json.loads(data[8 : 8 + size])}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


# ---- reading ----------------------------------------------------------------------------------------------------


def file_of(path: str | Path) -> Path:
    """The weights file that a path means: itself, `best.safetensors` of a run directory, or that of a folder in the
    Hub's form."""
    path = Path(path)
    if path.is_dir():
        names = (BEST, *(HUB_WEIGHTS if (path / HUB_CONFIG).is_file() else ()))
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None and len(names) > 1:
            raise UserError(f"{path} has a {HUB_CONFIG}, but neither {' nor '.join(HUB_WEIGHTS)} beside it.")
        if found is None:
            raise UserError(f"{path} holds no {BEST}: it is no run directory, or its first epoch never ended.")
        return found
    if not path.is_file():
        raise UserError(f"There is no weights file {path}{_network_hint(str(path))}.")
    return path


def _network_hint(name: str) -> str:
    """What to give in the place of a network's name, which is no weights; else nothing."""
    if not timm.is_model(name.partition(".")[0]):
        return ""
    if name in names():
        return f": {name} is a network; train it first, or give random:{name} for fresh weights"
    return f": {name} is a network of timm's; timm:{name} has its weights, random:{name} fresh ones"


class DescribedNetwork(Protocol):
    """A network with its description."""

    meta: WeightsMeta


def meta_of(network: nn.Module) -> WeightsMeta:
    """The description of a network that `load_network` or `open_network` gave."""
    return cast(DescribedNetwork, network).meta


def set_meta(network: nn.Module, meta: WeightsMeta) -> nn.Module:
    """Give a network its description, which `meta_of` reads; returns the network."""
    cast(DescribedNetwork, network).meta = meta
    return network


def read_meta(path: str | Path) -> WeightsMeta:
    """Read the description in a weights file, or in the best weights of a run directory; every value is checked.

    Raises:
        UserError: no such file, a damaged one, one that this library did not write, or a value that cannot be.
    """
    return described_header(path)[1]


def described_header(path: str | Path) -> tuple[Header, WeightsMeta]:
    """The tensors' names and shapes of a weights file, and what it says of itself; see `read_meta`."""
    path = file_of(path)
    header = read_header(path)
    meta = header.meta()
    if meta is None:
        raise UserError(
            f"{path} has no description of its network; name it with --model, or start from it with --init."
        )
    return header, meta


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors by name.

    Raises:
        UserError: it is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error
