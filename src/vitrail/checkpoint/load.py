"""Loading every form of the WEIGHTS argument as a network in evaluation mode."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from ..config.data import Preprocess
from ..errors import UserError
from ..factory import build_model, check_name, without_origins
from ..utils.files import shortened
from ..utils.plain import typed
from .dense_files import dense_file, open_dense
from .description import WeightsMeta
from .format import described_header, file_of, meta_of, read_tensors, set_meta
from .header import Header, bounded, check_numbers, read_header
from .initialize import check_fit, classifier_names, init_from, load_checked

RANDOM = "random:"
TIMM = "timm:"


def load_network(path: str | Path) -> nn.Module:
    """The network of a weights file, in evaluation mode, with the file's description as `.meta`.

    Args:
        path: a .safetensors of ours, or a run directory (its best weights).

    Raises:
        UserError: no such file, a damaged one, or one that does not fit its own description.
    """
    path = file_of(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no .safetensors of vitrail; authors' files are read with --init and --model.")
    header, meta = described_header(path)
    check_numbers(meta, header)
    with bounded(header):
        outline = _outline(meta, path)
        if outline is not None:
            _check_classifier(outline, meta, header)
            check_fit(outline.state_dict(), header.shapes, path=str(path), source=meta.model, name=meta.model)
        model = _built(meta, path)
    load_checked(model, read_tensors(path), path=str(path), source=meta.model, name=meta.model)
    return set_meta(model, meta).eval()


def _built(meta: WeightsMeta, path: Path) -> nn.Module:
    """The network of a description, with fresh weights.

    Raises:
        UserError: it cannot be built.
    """
    # the weights come from the file: whatever the training started from is neither needed nor fetched
    options = without_origins(meta.model_options)
    try:
        if meta.head is None:
            return build_model(meta.model, options, len(meta.classes))
        from ..factory import HEADS, assemble  # the detectors' modules, which classifiers do not need

        if meta.head in HEADS:
            _check_kinds(meta.head_options, HEADS[meta.head].make, path)
        return assemble(meta.model, meta.head, options, meta.head_options)
    except UserError:
        raise
    except Exception as error:  # options of a stranger's file break heads and networks in any way they like
        reason = f"{type(error).__name__} {shortened(str(error), 200)}"
        raise UserError(f"{path} describes a network that cannot be built: {reason}.") from error


def _check_kinds(options: dict[str, Any], make: Any, path: Path) -> None:
    """A head's options are of the kinds of its defaults, its base classes' included: some are first used in `forward`.

    Raises:
        UserError: naming the first that is not.
    """
    defaults: dict[str, Any] = {}
    for base in reversed(inspect.getmro(make)):
        known = inspect.signature(base.__init__).parameters if "__init__" in vars(base) else {}
        defaults |= {name: known[name].default for name in known}
    for name, value in options.items():
        default = defaults.get(name)
        if name != "min_size" and isinstance(default, (bool, int, float, str)):
            try:
                typed(type(default), value, f"head_options.{name}")
            except UserError as error:
                raise UserError(f"The description in {path} cannot be used: {error}") from error


def _outline(meta: WeightsMeta, path: Path) -> nn.Module | None:
    """The network without memory for its tensors; None of those of timm's that compute while they are built."""
    try:
        with torch.device("meta"):
            return _built(meta, path)
    except UserError as error:
        if isinstance(error.__cause__, (NotImplementedError, RuntimeError)):
            return None
        raise


def _check_classifier(outline: nn.Module, meta: WeightsMeta, header: Header) -> None:
    """The description must name as many classes as the file's classifier scores."""
    if meta.head is not None:
        return
    for prefix in classifier_names(outline):
        rows = header.shapes.get(f"{prefix}weight", (len(meta.classes),))[:1]
        if rows != (len(meta.classes),):
            raise UserError(
                f"{header.path} names {len(meta.classes)} classes, but its classifier {prefix}weight scores "
                f"{''.join(map(str, rows)) or 'none'}: the description is not that of these weights."
            )


def open_network(weights: str, model: str | None = None) -> nn.Module:
    """The network behind a WEIGHTS argument, in evaluation mode, described by `.meta`.

    Args:
        weights: a .safetensors of ours, a run directory, an authors' file, "random:MODEL" for fresh weights, or
            "timm:MODEL" for the weights timm fetches.
        model: the network an authors' file belongs to, or its encoder where the file has a head, too (`dense_files`);
            must be None for the other forms.

    Raises:
        UserError: no such file or network, weights of another network, or a missing or superfluous `model`.
    """
    if weights.startswith((RANDOM, TIMM)) and model is not None:
        raise UserError(f"{weights} says itself which network it means: leave --model {model} out.")
    if weights.startswith(RANDOM):
        return _authors_classes(weights.removeprefix(RANDOM), None)
    if weights.startswith(TIMM):
        return _from_timm(weights.removeprefix(TIMM))
    path = Path(weights)
    ours = path.suffix == ".safetensors" and path.is_file() and read_header(path).text is not None
    if path.is_dir() or ours or not path.exists():
        if model is not None and path.exists():
            raise UserError(f"{weights} says itself which network it holds: leave --model {model} out.")
        return load_network(path)
    if model is None:
        raise UserError(f"{weights} is an authors' file, which does not say its network: name it with --model.")
    dense = dense_file(path)
    return _authors_classes(model, path) if dense is None else open_dense(dense, model)


def _authors_classes(name: str, path: Path | None) -> nn.Module:
    """A network with the 1000 ImageNet classes and its own preprocessing; fresh weights without a file."""
    network = build_model(name, {}, 1000).eval()
    if path is None:
        return described(network, name, note="fresh random weights: predictions mean nothing")
    report = init_from(network, path, name)
    if report.reinitialised:
        raise UserError(
            f"{path} has no classifier of the 1000 classes of ImageNet ({', '.join(report.reinitialised[:2])} would be "
            "random): fine-tune it with vitrail train --init."
        )
    return described(network, name, licence=report.licence, training_data="ImageNet-1K")


def _from_timm(name: str) -> nn.Module:
    """A network with the weights timm has for it, downloaded where they are not at hand."""
    check_name(name)
    try:
        network = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # the hub's client has a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"timm has no weights at hand for {name} and cannot fetch them: {reason}") from error
    licence = cast(dict[str, Any], network.pretrained_cfg).get("license")
    return described(network, name, licence=licence, training_data=f"as timm says of {name}")


def described(network: nn.Module, name: str, **origin: Any) -> nn.Module:
    """The network with a `.meta` from its `pretrained_cfg` and the origin of its weights."""
    from timm.data import ImageNetInfo

    count = int(network.num_classes)  # pyright: ignore[reportArgumentType]
    info = ImageNetInfo()
    cfg = cast(dict[str, Any], network.pretrained_cfg)
    meta = WeightsMeta(
        model=name,
        classes=[info.index_to_description(i) for i in range(1000)] if count == 1000 else list(map(str, range(count))),
        preprocess=Preprocess(
            image_size=(cfg["input_size"][1], cfg["input_size"][2]),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
            crop_pct=cfg["crop_pct"],
            in_chans=cfg["input_size"][0],
        ),
        **{"training_data": "none", **origin},
    )
    return set_meta(network, meta)


def notes(network: nn.Module) -> list[str]:
    """Notes for the user of a network: the origin and the licence of its weights."""
    meta = meta_of(network)
    terms = f"licence of the weights: {meta.licence}" if meta.licence else ""
    return [note for note in (meta.note, terms) if note]


def pick_device(device: str, network: nn.Module | None = None) -> torch.device:
    """The device a name means; "auto" is a GPU where there is one.

    Args:
        device: its name.
        network: what is to run there; without parameters it is an exported file, which runs on the processor.

    Raises:
        UserError: the device does not exist here, or the network cannot run there.
    """
    exported = network is not None and next(network.parameters(), None) is None
    if exported and not device.startswith(("auto", "cpu")):
        raise UserError(f"--device {device} has no effect: exported files run on the processor; leave it out.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {device!r} cannot be used here; try --device cpu.") from error
    return chosen
