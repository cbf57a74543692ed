"""Conversion of checkpoints to a network's own names: trainers' wrappers, detectors, networks without a classifier.

`timm.create_model(name, checkpoint_path=FILE)` passes a file's entries to `load_state_dict` unchanged; after
`translate_files`, that accepts every file the family's filter can read.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

#: parts of names by which tools mark a wrapped module: compiled, checkpointed, sharded, in Lightning
INSIDE = re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module|_module)\.")
#: words in names of averaged weights, which are preferred, and of teachers' weights, which come last
AVERAGED, LAST = {"ema", "averaged", "average", "swa"}, {"teacher", "target", "momentum"}
#: words of entries that hold no network
OTHER = ("optim", "sched", "scaler", "amp", "loss", "criterion", "rng", "hyper")
#: default prefixes of wrapped names, for files whose names only a filter knows
WRAPPERS = ("module.", "model.", "student.", "ema.", "teacher.", "net.", "state_dict.")
#: deepest nesting of a state dict in a trainer's checkpoint
DEPTH = 4
#: modules after the stages: a network built without one of these leaves a file's entries of it alone
AFTER_STAGES = ("norm", "post", "head", "aux_head")

Filter = Callable[[dict[str, Any], nn.Module], dict[str, Tensor]]


def unwrap(checkpoint: dict[str, Any], model: nn.Module | None = None) -> dict[str, Tensor]:
    """The state dict of a network inside a trainer's checkpoint, under the network's own names.

    Everything before the network's names is removed, in any order and depth: entries that hold the state dict, prefixes
    of wrappers ("module.", "_orig_mod.", "model."), and other entries next to them. If a checkpoint holds the network
    twice, averaged weights are preferred and a teacher's come last. A plain state dict is returned unchanged; values
    that are not tensors are dropped.

    Args:
        checkpoint: tensors by name, perhaps nested.
        model: the network, whose names are looked for; without one, or where a file has names that only a filter
            knows, the default wrappers are removed.

    Raises:
        ValueError: it holds several networks with these names, and it is unclear which one is meant.
    """
    own = frozenset(model.state_dict()) if model is not None else frozenset()
    states = [(path, _unwrapped_names(entries)) for path, entries in _states(checkpoint)]
    found = [part for path, entries in states for part in _parts(path, entries, own)]
    if found:
        most = max(part.matches for part in found)
        found = [part for part in found if part.matches == most]
    else:
        most = max((len(entries) for _, entries in states), default=0)
        found = [_without_wrappers(path, entries) for path, entries in states if 2 * len(entries) > most]
    if not found:
        return {}
    best = min(part.rank for part in found)
    found = [part for part in found if part.rank == best]
    if any(not _equal(found[0].entries, other.entries) for other in found[1:]):
        names = ", ".join(repr(".".join(part.path) or "the file itself") for part in found[:4])
        raise ValueError(f"several networks with the same names: {names}; save the one that is meant alone")
    return found[0].entries


@dataclass(frozen=True)
class _Part:
    """Entries of a checkpoint that may be the network's.

    Attributes:
        path: the entries and prefixes that led there.
        entries: tensors under the names that remain.
        matches: how many of these the network has.
    """

    path: tuple[str, ...]
    entries: dict[str, Tensor]
    matches: int = 0

    @property
    def rank(self) -> int:
        """0 for averaged weights, 1 for others, 2 for a teacher's."""
        words = {word for name in self.path for word in re.split(r"[^a-z0-9]+", name.lower())}
        return 0 if words & AVERAGED else 2 if words & LAST else 1


def _states(content: dict[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping of a checkpoint that holds tensors by name, with the entries that lead to it."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for name, value in content.items():
        if isinstance(value, dict) and len(path) < DEPTH and not str(name).lower().startswith(OTHER):
            yield from _states(value, (*path, str(name)))


def _unwrapped_names(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return renamed((name, INSIDE.sub("", name), value) for name, value in entries.items())


def _parts(path: tuple[str, ...], entries: dict[str, Tensor], own: frozenset[str]) -> Iterator[_Part]:
    """Parts of a checkpoint: one for each prefix of at least half of the network's names."""
    counts = Counter(
        name[:at] for name in entries for at in (0, *(m.end() for m in re.finditer(r"\.", name))) if name[at:] in own
    )
    for prefix, count in counts.items():
        if 2 * count >= len(own):
            # entries next to a wrapped network are dropped; next to an unwrapped one, loading reports them
            inside = {name[len(prefix) :]: value for name, value in entries.items() if name.startswith(prefix)}
            yield _Part((*path, *prefix.split(".")[:-1]), inside, count)


def _without_wrappers(path: tuple[str, ...], entries: dict[str, Tensor]) -> _Part:
    """The entries without the default wrappers' prefixes, as long as most of them have one."""
    for prefix in WRAPPERS * DEPTH:
        inside = {name.removeprefix(prefix): v for name, v in entries.items() if name.startswith(prefix)}
        if 2 * len(inside) > len(entries):
            path, entries = (*path, prefix.rstrip(".")), inside
    return _Part(path, entries)


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


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
        ValueError: two entries of the file have the same name here.
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


def fit_axes(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors with the axes of size one that the model's of the same names have, as a 1x1 convolution has two."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}

    def fit(name: str, value: Tensor) -> Tensor:
        shape = shapes.get(name, value.shape)
        same = [size for size in shape if size > 1] == [size for size in value.shape if size > 1]
        return value.reshape(shape) if same and value.shape != shape else value

    return {name: fit(name, value) for name, value in state_dict.items()}


def rename_all(state_dict: dict[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The state dict with every name changed by the (pattern, replacement) rules, one after the other."""
    rules = list(rules)

    def ours(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return renamed((name, ours(name), value) for name, value in state_dict.items())


# ---- loading through timm.create_model -----------------------------------------------------------------------------


def translate_files(model: nn.Module, filter_fn: Filter) -> nn.Module:
    """Let `load_state_dict` take every file that the family's filter reads; returns the model.

    Loading stays strict: missing and unexpected names are errors, with two exceptions. A network without a classifier
    (`num_classes=0`, `features_only=True`) ignores a file's entries for modules that it lacks after the stages. If the
    file holds the encoder alone, the network's modules after the stages stay as initialised, with a warning.
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
    absent = [part for part in AFTER_STAGES if not any(name.startswith(f"{part}.") for name in own)]
    absent += ["out_norms", *((classifier,) if isinstance(classifier, str) else classifier)]
    absent += [f"stages.{i}" for i in range(len(model.stages), len(model.feature_info))]
    left = tuple(f"{part}." for part in absent)
    fitting = {name: value for name, value in weights.items() if name in own or not name.startswith(left)}

    fresh = () if any(name.startswith("out_norms.") for name in weights) else ("out_norms.",)
    if all(name.startswith(("stem.", "stages.")) for name in weights):
        fresh += tuple(f"{part}." for part in AFTER_STAGES)
    kept = {name: value for name, value in own.items() if name.startswith(fresh) and name not in weights}
    if kept:
        parts = ", ".join(sorted({name.partition(".")[0] for name in kept}))
        warnings.warn(f"the file holds no weights of {parts}: kept as initialised", stacklevel=2)
    return {**fitting, **kept}
