"""The networks to be timed, as plain values from which any process can build them."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..checkpoint.format import meta_of
from ..checkpoint.load import described, open_network
from ..checkpoint.sources import HUB, RANDOM, TIMM
from ..errors import UserError, unknown
from ..factory import build_model, check_name
from ..models import names
from ..tasks import default_size_of
from . import dense

#: (height, width) of images where nothing else says one
DEFAULT_SIZE = (224, 224)


@dataclass(frozen=True)
class Build:
    """How a network by name is built.

    Attributes:
        model_options: its constructor options.
        task: task of the head; None = a classifier.
        head: head on its maps; None = its own classifier.
        head_options: constructor options of the head.
    """

    model_options: dict[str, Any] = field(default_factory=dict)
    task: str | None = None
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A network to be timed.

    Attributes:
        source: a name of ours, "timm:NAME", or weights of ours.
        name: what the results call it.
        build: how it is built; weights say that themselves.
        image_size: (height, width) of its images; None = that of its task, of its weights, or `DEFAULT_SIZE`.
    """

    source: str
    name: str
    build: Build = field(default_factory=Build)
    image_size: tuple[int, int] | None = None


def sources(models: list[str], against: list[str]) -> list[str]:
    """The sources of all networks: our patterns expanded, "timm:" before the names of `against`.

    Raises:
        UserError: a name or pattern that matches nothing.
    """
    found = []
    for model in models:
        pattern = model.removeprefix(RANDOM)
        if model.startswith(TIMM):
            found.append(timm_source(model))
        elif matches := fnmatch.filter(names(), pattern):
            found += matches
        elif model.startswith(HUB) or Path(model).exists():
            found.append(model)
        elif timm.is_model(pattern):  # such as lab_plain, the laboratory's host, which is no paper's network
            found.append(TIMM + pattern)
        else:
            raise UserError(unknown("model", pattern, names()))
    found += [timm_source(name) for name in against]
    return list(dict.fromkeys(found))


def timm_source(name: str) -> str:
    """The source of a network of timm.

    Raises:
        UserError: timm has none of that name.
    """
    name = name.removeprefix(TIMM)
    check_name(name)
    return TIMM + name


def holds_weights(source: str) -> bool:
    """True if a source is a file or run with weights, and not a name."""
    return not source.startswith(TIMM) and source not in names()


def named(source: str, options: dict[str, Any]) -> str:
    """What results call a network with options that have no label."""
    return f"{source} {json.dumps(options)}" if options else source


def network_of(source: str, image_size: tuple[int, int], build: Build | None = None, exact: bool = True) -> nn.Module:
    """The network in evaluation mode, in fp32 on the processor, described by `.meta`.

    Args:
        source: see `Entry`.
        image_size: (height, width) of its images.
        build: how a network by name is built; None = as its name says.
        exact: images have this size already; False = `predict` resizes them as it does with weights of this size. The
            size in weights stays.

    A name stands for random weights, the same in every process, with random statistics and biases: with freshly
    initialised ones, a wrongly folded normalisation would change nothing. Times do not depend on weights, so timm's are
    not downloaded.

    Raises:
        UserError: weights that cannot be used, an unknown option or an impossible value.
    """
    if holds_weights(source):
        return dense.resized(open_network(source), image_size) if exact else open_network(source)
    build = build or Build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name = source.removeprefix(TIMM)
        if build.head is None:
            network = _classifier(name, image_size, build.model_options)
        else:
            network = _with_head(name, build, image_size)
            network = dense.resized(network, image_size) if exact else network
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if value.ndim == 1 and value.is_floating_point():
                    value.add_(0.1 * torch.rand_like(value) if name.endswith("var") else 0.1 * torch.randn_like(value))
    return network.eval()


def _with_head(name: str, build: Build, image_size: tuple[int, int]) -> nn.Module:
    assert build.task is not None
    assert build.head is not None
    return dense.fresh(
        name,
        build.model_options,
        task=build.task,
        head=build.head,
        head_options=build.head_options,
        image_size=image_size,
    )


def _classifier(name: str, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    """A network of timm's registry, which holds ours, too; one with a fixed size is built for `image_size`."""
    cfg = timm.get_pretrained_cfg(name)
    own = dict(options)
    if cfg is not None and cfg.fixed_input_size and tuple(cfg.input_size[1:]) != image_size:
        own.setdefault("img_size", image_size)
    network = described(build_model(name, own, 1000 if cfg is None else cfg.num_classes), name)
    preprocess = meta_of(network).preprocess
    preprocess.image_size = image_size
    preprocess.in_chans = options.get("in_chans", preprocess.in_chans)
    return network


def images_of(network: nn.Module, batch: int, image_size: tuple[int, int]) -> Tensor:
    """A batch of random images, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, meta_of(network).preprocess.in_chans, *image_size, generator=generator)


def with_size(entry: Entry) -> Entry:
    """The entry with the size of its images, for which weights are opened."""
    if entry.image_size is not None:
        return entry
    if entry.build.task is not None:
        return replace(entry, image_size=default_size_of(entry.build.task))
    if holds_weights(entry.source):
        height, width = meta_of(open_network(entry.source)).preprocess.image_size
        return replace(entry, image_size=(height, width))
    return replace(entry, image_size=DEFAULT_SIZE)
