"""Initialise a network from trained weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ..config.data import Preprocess
from ..errors import UserError
from ..models.catalog import AUTHORS_WEIGHTS
from ..models.checkpoints import unwrap
from ..utils.files import shortened
from .description import WeightsMeta
from .sources import Stored, read_stored


@dataclass
class InitReport:
    """Report of an initialisation from trained weights.

    Attributes:
        source: the weights, as the user named them; of timm's with their tag.
        loaded: names of the entries taken over.
        reinitialised: names left as they were, because the file's classes are others.
        reason: why these were left; empty if none.
        licence: of the source weights, None where the file does not say.
        left: names of the source's entries that the network has no use for, such as its classifier.
        training_data: what the source weights learned from; empty where nothing says it.
        preprocess: how images became their input; None where nothing says it.
    """

    source: str
    loaded: list[str]
    reinitialised: list[str] = field(default_factory=list)
    reason: str = ""
    licence: str | None = None
    left: list[str] = field(default_factory=list)
    training_data: str = ""
    preprocess: Preprocess | None = None

    def summary(self) -> str:
        """One sentence for the user; it is kept with the weights, so that it names no folders of this machine."""
        path = Path(self.source)
        text = f"Started from {path.name if path.is_absolute() else self.source}: {len(self.loaded)} tensors taken over"
        if self.left:
            text += f", {len(self.left)} left out ({_first_names(self.left)})"
        if self.reinitialised:
            text += f", {', '.join(self.reinitialised)} initialised anew because {self.reason}"
        return f"{text}; {terms(self.licence, self.training_data)}."

    def normalisation_note(self, own: Preprocess) -> str:
        """A sentence if the source weights saw images normalised otherwise than the network will; else empty."""
        theirs = self.preprocess
        if theirs is None or theirs.in_chans != own.in_chans:
            return ""
        pairs = [(theirs.mean, own.mean), (theirs.std, own.std)]
        if all(len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True)) for a, b in pairs):
            return ""
        options = " ".join(
            f"--{name} {' '.join(f'{value:g}' for value in getattr(theirs, name))}" for name in ("mean", "std")
        )
        return f"These weights saw images with another normalisation than this run's: theirs is {options}."


def terms(licence: str | None, training_data: str) -> str:
    """Licence and training data of weights, in words."""
    return f"licence of the source weights: {licence or 'not stated'}; trained on: {training_data or 'not stated'}"


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters that give the class scores, such as ("head.",); empty for a network without."""
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{name}." for name in names)


def is_classifier(name: str, model: nn.Module) -> bool:
    """True if the parameter or buffer of that name belongs to the classifier."""
    return name.startswith(classifier_names(model))


def init_from(
    model: nn.Module,
    path: str | Path | Stored,
    name: str = "",
    classes: Sequence[str] | None = None,
    fresh: tuple[str, ...] = (),
) -> InitReport:
    """Start a network from trained weights, for fine-tuning.

    The classifier starts at zero where the file's classes are others than the network's, by number or by name; a first
    convolution for another number of channels is adapted as timm does.

    Args:
        model: the network, changed in place.
        path: weights as `read_stored` takes them. A file of tensors that does not describe itself (an authors' .pth,
            .pt, .bin, .tar, timm's or torchvision's; one that holds Python code is refused) is read through the filter
            of the network's family.
        name: what the network is called, for messages.
        classes: names of the network's classes, compared with the file's where it states them.
        fresh: modules of the network that may keep their fresh weights, where the file has none of them.

    Raises:
        UserError: no such file, a damaged or unsafe one, or weights of another network.
    """
    stored = path if isinstance(path, Stored) else read_stored(path)
    name, meta = name or type(model).__name__, stored.meta
    source = meta.model if meta else Path(stored.source).name
    state = filtered(_network_in(stored.tensors, model, stored.source), model, source, name)
    own = model.state_dict()
    other_names = bool(meta and classes is not None and not same_classes(classes, meta.classes))
    kept = [key for key in own if is_classifier(key, model) and (other_names or _shape(state, key) != own[key].shape)]
    left = [key for key in state if is_classifier(key, model) and (key in kept or key not in own)]
    for key in left:
        del state[key]
    _adapt_first_conv(model, state, own)
    absent = tuple(f"{module}." for module in fresh if not any(key.startswith(f"{module}.") for key in state))
    new = [key for key in own if key.startswith(absent)]
    whole = {**{key: own[key] for key in [*kept, *new]}, **state}
    load_checked(model, whole, path=stored.source, source=source, name=name)
    start_at_zero(model, kept)
    reason = "the weights have none of them" if new else ""
    if kept:
        reason = "the classes of the weights are others" if other_names else "the weights are for another class count"
    return InitReport(
        source=stored.source,
        loaded=sorted(state),
        reinitialised=[*kept, *new],
        reason=reason,
        left=left,
        **_origin(meta, name),
    )


def start_at_zero(model: nn.Module, names: Collection[str]) -> None:
    """Set the linear layers of a new classifier to zero, so that all classes are equally likely at first.

    Random scores of a new classifier mean nothing, but their gradients change the trained layers below it. Some
    networks of timm's start with large ones: EfficientNet's uniform in 1 / sqrt(classes), whatever the width. (As BiT,
    Kolesnikov et al. 2020, section 3.3.)

    Args:
        model: the network, changed in place.
        names: of the parameters that were not loaded.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and f"{name}.weight" in names:
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _origin(meta: WeightsMeta | None, name: str) -> dict[str, Any]:
    """Licence, training data and preprocessing of source weights.

    A file of one of the papers' networks is taken for the authors', whose terms are known, where it does not
    describe itself.
    """
    if meta is None:
        licence = f"{AUTHORS_WEIGHTS[name][1]} (if this is the authors' file)" if name in AUTHORS_WEIGHTS else None
        return {"licence": licence}
    return {"licence": meta.licence, "training_data": meta.training_data, "preprocess": meta.preprocess}


def same_classes(names: Sequence[str], known: Sequence[str]) -> bool:
    """True if both name the same classes in the same order; ImageNet's by WordNet number or by name."""
    if list(names) == list(known):
        return True
    if len(names) != 1000 or len(known) != 1000:
        return False
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return list(names) == info.label_names() and list(known) == [info.index_to_description(i) for i in range(1000)]


def init_same(
    model: nn.Module, path: str | Path, name: str, classes: Sequence[str] = (), of_classes: Callable[[], set[str]] = set
) -> InitReport:
    """Start a network from weights of the same kind of network; what has another shape, as other classes have, stays.

    Args:
        model: the network, changed in place.
        path: a .safetensors of ours, a run directory, or one of ours on the Hub.
        name: what the network is called, for messages.
        classes: the network's; where the file's are others, or in another order, ...
        of_classes: ... the tensors that this names stay, too.

    Raises:
        UserError: a damaged file, or weights of another network.
    """
    stored = read_stored(path)
    meta = stored.meta
    assert meta is not None  # its head is known
    report = take_same(
        model,
        stored.tensors,
        path=stored.source,
        source=meta.model,
        name=name,
        classes=(meta.classes, classes),
        of_classes=of_classes,
    )
    return replace(report, **_origin(meta, name))


def take_same(
    model: nn.Module,
    state: dict[str, Tensor],
    path: str,
    source: str,
    name: str,
    classes: tuple[Sequence[str], Sequence[str]],
    of_classes: Callable[[], set[str]],
) -> InitReport:
    """As `init_same`, of tensors under the network's names.

    Args:
        model: the network, changed in place.
        state: tensors by name.
        path, source, name: for messages: the file, its network, and the network.
        classes: the file's and the network's.
        of_classes: see `init_same`.

    Raises:
        UserError: weights of another network.
    """
    theirs, ours = map(list, classes)
    own = model.state_dict()
    # of other classes is what differs in its outputs alone; anything else is a network of other options
    other_names = bool(ours and theirs and ours != theirs)
    others = of_classes() if other_names else set[str]()
    kept = [k for k in own if k in state and (k in others or _other_outputs(state[k].shape, own[k].shape))]
    whole = {**state, **{key: own[key] for key in kept}}
    load_checked(model, whole, path=path, source=source, name=name)
    same_count = other_names and len(ours) == len(theirs)
    reason = "the classes of the weights are others" if same_count else "the weights are for another class count"
    return InitReport(
        source=path,
        loaded=sorted(set(state) - set(kept)),
        reinitialised=kept,
        reason=reason if kept else "",
        left=kept,
    )


def _other_outputs(a: torch.Size, b: torch.Size) -> bool:
    return a != b and len(a) == len(b) > 0 and a[1:] == b[1:]


def _shape(state: dict[str, Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def _network_in(content: dict[str, Any], model: nn.Module, path: str) -> dict[str, Tensor]:
    """The state dict in what a file holds; its tensors have numbers of their own in the file."""
    try:
        state = unwrap(content, model)
    except ValueError as error:
        raise UserError(f"{path} is ambiguous: {error}.") from error
    if not state:
        raise UserError(f"{path} holds no weights: expected tensors by name, found {type(content).__name__}.")
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{path} holds {shortened(key)} as no plain numbers (sparse, quantised, repeated or on the meta "
                "device); ask its author for a .safetensors."
            )
    return state


def filtered(state: dict[str, Any], model: nn.Module, source: str, name: str) -> dict[str, Tensor]:
    """The entries under the names of the network, through the filter of its family."""
    own = model.state_dict()
    if set(state) == set(own) and all(state[key].shape == own[key].shape for key in own):
        return dict(state)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        return dict(convert(dict(state), model))
    except Exception as error:  # a filter meets keys it was not written for in any way it likes
        reason = f"{type(error).__name__} {shortened(str(error), 200)}"
        raise UserError(f"The weights of {source} do not fit the network {name}: {reason}.") from error


def _adapt_first_conv(model: nn.Module, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    convs = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for conv in (convs,) if isinstance(convs, str) else convs:
        key = f"{conv}.weight"
        if key not in state or key not in own or state[key].ndim != 4 or state[key].shape[1] == own[key].shape[1]:
            continue
        try:
            state[key] = adapt_input_conv(own[key].shape[1], state[key], base_chans=state[key].shape[1])
        except (NotImplementedError, AssertionError, ValueError):
            continue  # the comparison of shapes that follows says it


def load_checked(model: nn.Module, state: dict[str, Tensor], path: str, source: str, name: str) -> None:
    """Copy `state` into the network; entries must be the network's own, one for one, and finite numbers.

    Raises:
        UserError: naming both networks and the first entries that differ, or the tensor that cannot be taken.
    """
    own = model.state_dict()
    check_fit(own, {key: value.shape for key, value in state.items()}, path=path, source=source, name=name)
    for key, value in state.items():
        _check_values(key, value, own[key], path)
    model.load_state_dict(state)


def check_fit(own: Mapping[str, Tensor], found: Mapping[str, Sequence[int]], path: str, source: str, name: str) -> None:
    """The network's tensors must be the file's, one for one, by names and shapes.

    Args:
        own: the network's, perhaps on the meta device.
        found: shapes of the file's.
        path, source, name: for the message: the file, its network, and the network.

    Raises:
        UserError: naming both networks and the first entries that differ.
    """
    missing = [key for key in own if key not in found]
    extra = [key for key in found if key not in own]
    shapes = [key for key in own if key in found and tuple(own[key].shape) != tuple(found[key])]
    if missing or extra or shapes:
        differences = [
            f"{shapes[0]} is {_size(found[shapes[0]])} instead of {_size(own[shapes[0]].shape)}" if shapes else "",
            f"lacks {_first_names(missing)}" if missing else "",
            f"has {_first_names(extra)} besides" if extra else "",
        ]
        whose = "other options" if source == name else f"{source}, not of {name}"
        raise UserError(f"{path} holds weights of {whose}: {'; '.join(filter(None, differences))}.")


def _check_values(key: str, value: Tensor, own: Tensor, path: str) -> None:
    """One tensor of a file: of the network's kind of numbers, and finite once it has the network's precision."""
    if own.is_floating_point() != value.is_floating_point() or value.is_complex():
        kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, own)]
        raise UserError(
            f"{path} holds {key} as {kinds[0]}, where the network has {kinds[1]}: these are no weights of it."
        )
    if own.is_floating_point() and not value.to(own.dtype).isfinite().all():
        raise UserError(
            f"{path} holds values in {key} that are not finite (nan or inf): training diverged, or the file is damaged."
        )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _first_names(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(shortened(name, 120).strip("'") for name in names[:2])
    return shown + (f" and {len(names) - 2} more" if len(names) > 2 else "")
