"""Network and initial weights of a recipe, by whichever of --model, --init and --pretrained names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import timm

from ..checkpoint.sources import HUB, RANDOM, TIMM, check_pretrained, meta_of_source
from ..config.train import TrainConfig
from ..errors import UserError

#: options of a stored network that follow from the size of its images, which a new run chooses itself
SIZE_OPTIONS = ("img_size",)


def with_named_weights(config: TrainConfig) -> TrainConfig:
    """The run with the name of its network in `model` and the weights it starts from in `init`.

    `--model` may name weights: their network is built and starts from them. `--pretrained` means timm's weights of the
    model, by its tag or the default one. Where `init` names weights of timm, `model` gets their tag, so that images are
    normalised as in their training. Of a run that has passed here once nothing changes.

    Raises:
        UserError: two options name weights, a tag names some that nothing loads, or there are none.
    """
    config = _from_pretrained(_from_model(config))
    name, tag = _parts(config.model)
    if config.init is not None and config.init.startswith(TIMM):
        theirs, their_tag = _parts(_with_tag(config.init.removeprefix(TIMM)))
        return replace(config, model=f"{name}.{their_tag}") if their_tag and name == theirs and not tag else config
    if tag and config.init is None and not config.resume:
        raise UserError(
            f"--model {config.model} names trained weights by its tag, and --model alone loads none: add --pretrained "
            f"to start from them, or write --model {name} to start from random ones."
        )
    return config


def _from_model(config: TrainConfig) -> TrainConfig:
    """The run with the network of the weights that `model` names; unchanged if it names a network."""
    source = config.model
    if source.startswith(RANDOM):
        return replace(config, model=source.removeprefix(RANDOM))
    if not source.startswith((TIMM, HUB)) and (timm.is_model(_parts(source)[0]) or not Path(source).exists()):
        return config
    for option, given in (("init", config.init), ("pretrained", config.pretrained)):
        if given:
            raise UserError(f"--model {source} names weights itself: leave --{option} out.")
    if source.startswith(TIMM):
        return replace(config, model=_with_tag(source.removeprefix(TIMM)), init=source)
    meta = meta_of_source(source)
    if meta is None:
        raise UserError(
            f"--model {source} is a file of tensors, which does not say its network: name that with --model, and the "
            "file with --init."
        )
    options = {name: value for name, value in meta.model_options.items() if name not in SIZE_OPTIONS}
    return replace(config, model=meta.model, model_options={**options, **config.model_options}, init=source)


def _from_pretrained(config: TrainConfig) -> TrainConfig:
    """The run with timm's weights of its model in `init`, where `pretrained` asks for them."""
    if not config.pretrained:
        return config
    if config.init is not None:
        raise UserError(f"--pretrained and --init {config.init} both say what the run starts from: choose one.")
    name = _with_tag(config.model)
    check_pretrained(name)
    return replace(config, model=name, init=f"{TIMM}{name}", pretrained=False)


def _with_tag(name: str) -> str:
    """A name of timm's with the tag of its weights; the default one where it has none."""
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(_parts(name)[0]) else None
    return f"{_parts(name)[0]}.{cfg.tag}" if cfg is not None and cfg.tag else name


def _parts(name: str) -> tuple[str, str]:
    """Architecture and tag of a name of timm's."""
    architecture, _, tag = name.partition(".")
    return architecture, tag
