"""Loading every form of the WEIGHTS argument as a network in evaluation mode."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..factory import build_model, without_origins
from ..utils.files import shortened
from ..utils.plain import typed
from .dense_files import dense_file, open_dense
from .description import WeightsMeta
from .format import described_header, file_of, meta_of, read_tensors, set_meta
from .header import Header, bounded, check_numbers, read_header
from .initialize import InitReport, check_fit, classifier_names, init_from, load_checked
from .sources import RANDOM, TIMM, is_remote, local_path, meta_of_cfg, read_stored, timm_network


def load_network(path: str | Path) -> nn.Module:
    """The network of a weights file, in evaluation mode, with the file's description as `.meta`.

    Args:
        path: a .safetensors of ours, a run directory (its best weights), or a folder in the Hub's form that we wrote.

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
    return carry_cfg(set_meta(model, meta)).eval()


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
        weights: a .safetensors of ours, a run directory, "timm:NAME[.tag]", "hf-hub:org/name", a folder in the Hub's
            form, a file of tensors (an authors', timm's or torchvision's), or "random:MODEL" for fresh weights.
        model: the network a file of tensors belongs to, or its encoder where the file has a head, too (`dense_files`);
            must be None for the other forms.

    Raises:
        UserError: no such file or network, weights of another network, or a missing or superfluous `model`.
    """
    if is_remote(weights) and model is not None:
        raise UserError(f"{weights} says itself which network it means: leave --model {model} out.")
    if weights.startswith(RANDOM):
        return _authors_classes(weights.removeprefix(RANDOM), None)
    if weights.startswith(TIMM):
        return _from_timm(weights)
    path = local_path(weights)
    file = file_of(path) if path.is_dir() else path
    ours = file.suffix == ".safetensors" and file.is_file() and read_header(file).text is not None
    if model is not None and path.exists() and (path.is_dir() or ours):
        raise UserError(f"{weights} says itself which network it holds: leave --model {model} out.")
    if ours or not path.exists():
        return load_network(path)
    if path.is_dir():
        return _from_folder(weights)
    if model is None:
        raise UserError(
            f"{weights} is a file of tensors (an authors', timm's or torchvision's), which does not say its network: "
            "name it with --model."
        )
    dense = dense_file(path)
    return _authors_classes(model, path) if dense is None else open_dense(dense, model)


def _authors_classes(name: str, path: Path | None) -> nn.Module:
    """A network with the 1000 ImageNet classes and its own preprocessing; fresh weights without a file."""
    network = build_model(name, {}, 1000).eval()
    if path is None:
        return described(network, name, note="fresh random weights: predictions mean nothing", licence=None)
    report = init_from(network, path, name)
    if report.reinitialised:
        raise UserError(
            f"{path} has no classifier of the 1000 classes of ImageNet ({', '.join(report.reinitialised[:2])} would be "
            "random): fine-tune it with vitrail train --init."
        )
    origin = {"licence": report.licence, "training_data": "ImageNet-1K", "note": _loaded(report)}
    return _with_names(described(network, name, **origin))


def _from_timm(weights: str) -> nn.Module:
    """A network with the weights timm has for it, downloaded where they are not at hand."""
    network = timm_network(weights.removeprefix(TIMM))
    meta = meta_of_cfg(network)
    _check_classes(meta, weights)
    meta.note = f"{len(network.state_dict())} tensors loaded ({meta.model}); trained on: {meta.training_data}"
    return _with_names(set_meta(network, meta))


def _with_names(network: nn.Module) -> nn.Module:
    """The names of the classes in `pretrained_cfg`, which otherwise says already what the weights are."""
    cfg = getattr(network, "pretrained_cfg", None)
    if isinstance(cfg, dict):
        cfg["label_names"] = tuple(meta_of(network).classes)
    return network


def _from_folder(weights: str) -> nn.Module:
    """The network in a folder in the Hub's form that its config.json describes."""
    stored = read_stored(weights)
    meta = stored.meta
    assert meta is not None  # of its config.json
    _check_classes(meta, weights)
    shapes = {name: tuple(value.shape) for name, value in stored.tensors.items() if isinstance(value, Tensor)}
    header = Header(Path(weights), shapes, None)
    check_numbers(meta, header)
    with bounded(header):
        network = build_model(meta.model, without_origins(meta.model_options), len(meta.classes)).eval()
    report = init_from(network, stored, meta.model)
    if report.reinitialised:
        raise UserError(
            f"{weights} has no weights of {', '.join(report.reinitialised[:2])}: its config.json is of others."
        )
    meta.note = _loaded(report)
    return carry_cfg(set_meta(network, meta))


def _check_classes(meta: WeightsMeta, weights: str) -> None:
    if not meta.classes:
        raise UserError(f"{weights} has no classifier: start from it with vitrail train --init {weights}.")


def _loaded(report: InitReport) -> str:
    """What was loaded, in words."""
    left = f", {len(report.left)} left out" if report.left else ""
    data = report.training_data or "not stated"
    return f"{len(report.loaded)} tensors loaded{left}; trained on: {data}"


def carry_cfg(network: nn.Module) -> nn.Module:
    """Write what the network was trained for into its `pretrained_cfg`, from where timm's functions read it.

    These are size, mean, standard deviation, resize, crop and names of the classes; what says where the weights of that
    name come from is taken out, as these are others. Networks under a head have no such entry and stay as they are.
    """
    meta, cfg = meta_of(network), getattr(network, "pretrained_cfg", None)
    if meta.head is not None or not isinstance(cfg, dict):
        return network
    pre = meta.preprocess
    size = (pre.in_chans, *pre.image_size)
    own = {
        "input_size": size,
        "mean": tuple(pre.mean),
        "std": tuple(pre.std),
        "interpolation": pre.interpolation,
        "crop_pct": pre.crop_pct,
        "crop_mode": "center",
        "num_classes": len(meta.classes),
        "label_names": tuple(meta.classes),
        "license": meta.licence,
    }
    origins = dict.fromkeys(("url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "origin_url", "notes"))
    tests = dict.fromkeys(("test_input_size", "test_crop_pct", "pool_size", "label_descriptions", "description"))
    body: Any = network
    body.pretrained_cfg = {**cfg, **origins, **tests, **own, "custom_load": False, "label_offset": 0}
    if hasattr(body, "default_cfg"):
        body.default_cfg = body.pretrained_cfg
    return network


def described(network: nn.Module, name: str, **origin: Any) -> nn.Module:
    """The network with a `.meta` from its `pretrained_cfg` and the origin of its weights."""
    return set_meta(network, meta_of_cfg(network, name, **{"training_data": "none", **origin}))


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
