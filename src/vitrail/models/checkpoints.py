"""Weights files under a network's own names: trainers' wrappers, detectors' files, networks without a classifier.

`timm.create_model(name, checkpoint_path=FILE)` hands a file's entries to `load_state_dict` as they are; behind
`translate_files` that takes whatever the family's filter can read.
"""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

#: under which names trainers keep the state dict in a checkpoint, the most wanted first
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model")
#: what stands behind the stages: a network built without one of these leaves a file's entries of it alone
BEHIND = ("norm", "post", "head", "aux_head")

Filter = Callable[[dict[str, Any], nn.Module], dict[str, Tensor]]


def unwrap(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict inside a trainer's checkpoint, averaged weights first, without "module." before the names.

    A plain state dict passes unchanged; what is not a tensor is left behind.
    """
    for wrapper in WRAPPERS:
        if isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
    return {str(name).removeprefix("module."): v for name, v in checkpoint.items() if isinstance(v, Tensor)}


def encoder_of(state_dict: dict[str, Tensor], *roots: str) -> dict[str, Tensor]:
    """The encoder in a detector's or segmenter's state dict, under its own names; other state dicts unchanged.

    Its names there begin with "backbone.", or "backbone.model." if it is a network of timm's `features_only`.

    Args:
        roots: how the names of an encoder may begin, besides "stem" and "stages".
    """
    for prefix in ("backbone.model.", "backbone."):
        starts = tuple(f"{prefix}{root}." for root in ("stem", "stages", *roots))
        if any(name.startswith(starts) for name in state_dict):
            return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    return state_dict


def renamed(pairs: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
    """The state dict of (name in the file, our name, value).

    Raises:
        ValueError: if two entries of the file have one place here, so that none is lost in silence.
    """
    out: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for theirs, ours, value in pairs:
        if ours in out:
            raise ValueError(f"{sources[ours]!r} and {theirs!r} of the file are both {ours!r} here")
        out[ours], sources[ours] = value, theirs
    return out


def fit_shapes(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors in the shapes of the model's of the same names and sizes.

    A linear layer kept as a 1x1 convolution, or stacked matrices, hold the same numbers in another shape.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    out = {}
    for name, value in state_dict.items():
        shape = shapes.get(name, value.shape)
        out[name] = value.reshape(shape) if value.numel() == shape.numel() else value
    return out


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's checkpoint filter for a network whose checkpoints have our own parameter names only."""
    return encoder_of(unwrap(state_dict))


# ---- the door of timm.create_model --------------------------------------------------------------------------------


def translate_files(model: nn.Module, filter_fn: Filter) -> nn.Module:
    """Let `load_state_dict` take every file that the family's filter reads; returns the model.

    Loading stays strict: names too many or too few are errors. Two cases are none, as the network says so itself: one
    without a classifier (`num_classes=0`, `features_only=True`) leaves a file's entries for what it lacks behind the
    stages; and where the file holds the encoder alone, its parts behind the stages stay as initialised, with a warning.
    """
    model.register_load_state_dict_pre_hook(partial(_translate, filter_fn))
    return model


def _translate(filter_fn: Filter, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace the entries of `state_dict` below `prefix` by those of the network in `module`."""
    given = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    inner, inside = module, ""
    if isinstance(module, FeatureGetterNet):
        inner, inside = cast(nn.Module, module.model), "model."
    own = inner.state_dict()
    if given.keys() == {inside + name for name in own}:
        return
    bare = {n.removeprefix(inside): v for n, v in given.items()} if all(n.startswith(inside) for n in given) else given
    weights = _fit_parts(filter_fn(bare, inner), inner, own)
    for name in given:
        del state_dict[prefix + name]
    state_dict.update({prefix + inside + name: value for name, value in weights.items()})


def _fit_parts(weights: dict[str, Tensor], model: Any, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` for a network without a classifier, as `translate_files` says; for others unchanged."""
    if model.num_classes > 0:
        return weights
    classifier = model.pretrained_cfg["classifier"]
    absent = [part for part in BEHIND if not any(name.startswith(f"{part}.") for name in own)]
    absent += ["out_norms", *((classifier,) if isinstance(classifier, str) else classifier)]
    absent += [f"stages.{i}" for i in range(len(model.stages), len(model.feature_info))]
    left = tuple(f"{part}." for part in absent)
    fitting = {name: value for name, value in weights.items() if name in own or not name.startswith(left)}

    fresh = () if any(name.startswith("out_norms.") for name in weights) else ("out_norms.",)
    if all(name.startswith(("stem.", "stages.")) for name in weights):
        fresh += tuple(f"{part}." for part in BEHIND)
    kept = {name: value for name, value in own.items() if name.startswith(fresh) and name not in weights}
    if kept:
        parts = ", ".join(sorted({name.partition(".")[0] for name in kept}))
        warnings.warn(f"the file holds no weights of {parts}: kept as initialised", stacklevel=2)
    return {**fitting, **kept}
