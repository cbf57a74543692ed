"""Description of a network in its weights file, checked before anything is built from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import timm
import torch

from ..config.data import Preprocess, check_sides
from ..config.tasks import TASK_GROUPS, DetectionConfig, SegmentationConfig
from ..errors import UserError, printable
from ..factory import UNFIT
from ..utils.files import parse_json, shortened
from ..utils.plain import from_dict, typed
from ..version import __version__

KEY = "vitrail"  # the entry of the safetensors metadata that holds ours
#: most characters of a description: the names of 22,000 classes take one million
MAX_TEXT = 1 << 23
#: most characters of a class's name, and of the texts on origin and terms
MAX_NAME, MAX_NOTE = 1000, 20_000
#: options of the network or head may be nested so deeply, and hold so many values
MAX_NESTING, MAX_VALUES = 6, 2000

#: options of heads that say how many classes there are; a panoptic head has two, which add up
COUNTS = ("num_classes", "num_keypoints", "num_ids", "num_things", "num_stuff")


@dataclass
class WeightsMeta:
    """Description of a network in its weights file.

    Attributes:
        model: name that `timm.create_model` builds after `import vitrail`.
        model_options: its constructor options, without the number of classes.
        head: what stands on the network's maps; None = its own classifier.
        head_options: constructor options of the head.
        task: what it was trained for.
        classes: names, in the order of the outputs.
        preprocess: how an image becomes its input.
        settings: what else of its recipe it is used with, as plain values.
        licence: terms of the weights; None = never stated.
        training_data: what it learned from.
        metrics: of the task, on the validation data, when the weights were saved.
        note: anything else, such as what the training started from.
        vitrail: version that wrote the file.
        timm: version that wrote the file.
        torch: version that wrote the file.
    """

    model: str
    model_options: dict[str, Any] = field(default_factory=dict)
    head: str | None = None
    head_options: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    classes: list[str] = field(default_factory=list)
    preprocess: Preprocess = field(default_factory=Preprocess)
    settings: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    training_data: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    vitrail: str = __version__
    timm: str = timm.__version__
    torch: str = torch.__version__


def parse_meta(text: str, where: str) -> WeightsMeta:
    """The description in a file's metadata, every value of the right type and inside what can be meant.

    Args:
        text: JSON, of which nothing is certain.
        where: what messages call the file.

    Raises:
        UserError: no JSON, or a value that cannot be; the sentence names it.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"The description in {where} has {len(text):,} characters, more than {MAX_TEXT:,}: refused.")
    try:
        meta = meta_from(parse_json(text, "it"))
    except UserError as error:
        raise UserError(f"The description in {where} cannot be used: {error}") from error
    return meta


def meta_from(values: Any) -> WeightsMeta:
    """A description from plain values, checked; entries that a later version may have added are left out.

    Raises:
        UserError: a value that cannot be; the sentence names it.
    """
    values = _known(values, WeightsMeta)
    if isinstance(values, dict) and "preprocess" in values:
        values = {**values, "preprocess": _known(values["preprocess"], Preprocess)}
    meta = from_dict(WeightsMeta, values)
    _check_texts(meta)
    for name in UNFIT:
        if name in meta.model_options:
            raise UserError(f"model_options.{name} is no option of a network under its own classifier or a head.")
    check_plain(meta.model_options, "model_options")
    check_plain(meta.head_options, "head_options")
    meta.preprocess.check()
    _check_channels(meta)
    _check_settings(meta)
    _check_count(meta)
    return meta


def _known(values: Any, cls: type) -> Any:
    if not isinstance(values, dict):
        return values
    known = {option.name for option in dataclasses.fields(cls)}
    return {key: value for key, value in values.items() if key in known}


def _check_texts(meta: WeightsMeta) -> None:
    names = dict.fromkeys(("model", "head", "task", "vitrail", "timm", "torch"), 200)
    for name, most in (names | dict.fromkeys(("note", "licence", "training_data"), MAX_NOTE)).items():
        value = getattr(meta, name) or ""
        if len(value) > most:
            raise UserError(f"{name} has {len(value):,} characters, more than {most:,}: {shortened(value)}.")
    check_class_names(meta.classes)


def check_class_names(names: Iterable[str]) -> None:
    """Names of classes must be such as files of weights can hold and other programs can read.

    Raises:
        UserError: one is too long, or no text, as the name of a folder is that is not in UTF-8.
    """
    for name in names:
        if len(name) > MAX_NAME:
            raise UserError(f"A class's name has {len(name):,} characters, more than {MAX_NAME:,}: {shortened(name)}.")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"The name of class '{printable(name)[:80]}' is no text in UTF-8: give it another one."
            ) from error


def check_plain(options: dict[str, Any], name: str) -> None:
    """Constructor options out of a file are few plain values: numbers, texts, lists and options by name.

    Raises:
        UserError: they are nested too deeply, or too many.
    """
    for count, (depth, value) in enumerate(_values(options)):
        if depth > MAX_NESTING or count >= MAX_VALUES:
            raise UserError(f"{name} is nested too deeply or too long to be options of a network.")
        if isinstance(value, str) and len(value) > MAX_NAME:
            raise UserError(f"{name} holds a text of {len(value):,} characters: {shortened(value)}.")


def _values(value: Any, depth: int = 0) -> Iterator[tuple[int, Any]]:
    """Every value with its depth, lists and mappings before what they hold; nothing below the deepest allowed."""
    yield depth, value
    if depth <= MAX_NESTING and isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item, depth + 1)


def numbers_of(options: dict[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Every number in options, with the name of the option that holds it."""
    for name, option in options.items():
        for _, value in _values(option):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield name, value


def _check_channels(meta: WeightsMeta) -> None:
    pre = meta.preprocess
    built = meta.model_options.get("in_chans", 3)
    if built != pre.in_chans or isinstance(built, bool):
        raise UserError(
            f"preprocess.in_chans={pre.in_chans} does not fit the network's model_options.in_chans={shortened(built)}."
        )
    for name in ("mean", "std"):
        if len(getattr(pre, name)) not in (1, pre.in_chans):
            raise UserError(f"preprocess.{name} has {len(getattr(pre, name))} values for {pre.in_chans} channels.")


def _check_settings(meta: WeightsMeta) -> None:
    for group, values in meta.settings.items():
        if group not in TASK_GROUPS:
            raise UserError(f"settings.{shortened(group)} is no group of settings; there are {', '.join(TASK_GROUPS)}.")
        config = from_dict(TASK_GROUPS[group], values, f"settings.{group}.")
        if isinstance(config, (DetectionConfig, SegmentationConfig)):
            short = config.short_side if isinstance(config, SegmentationConfig) else None
            check_sides((short or min(meta.preprocess.image_size), config.max_side), f"settings.{group}'s sides")


def _check_count(meta: WeightsMeta) -> None:
    """As many class names as the head has classes; of a classifier the weights themselves tell."""
    if not meta.classes:
        raise UserError("it names no classes.")
    if meta.head is None:
        if meta.task != "classification":
            raise UserError(f"the task {shortened(meta.task)} needs a head, and none is named.")
        return
    options = meta.head_options
    given = {name: typed(int, options[name], f"head_options.{name}") for name in COUNTS if name in options}
    if sum(given.values()) != len(meta.classes):
        counts = " and ".join(f"{name}={count}" for name, count in given.items()) or (
            f"no number of classes ({', '.join(COUNTS)}), as of another version of vitrail: train the network again"
        )
        raise UserError(f"it names {len(meta.classes)} classes, but head_options has {counts}.")
    _check_sizes(options)


def _check_sizes(options: dict[str, Any]) -> None:
    """Check how a detector resizes and normalises images."""
    normal = {own: options[name] for name, own in (("image_mean", "mean"), ("image_std", "std")) if name in options}
    from_dict(Preprocess, normal, "head_options.image_").check()
    if "min_size" in options or "max_size" in options:
        short = options.get("min_size", 800)
        shorts = typed(list[int], short if isinstance(short, list) else [short], "head_options.min_size")
        longest = typed(int, options.get("max_size", 1333), "head_options.max_size")
        for side in shorts:
            check_sides((side, longest), "head_options.min_size and max_size")
    if "image_size" in options:
        sides = typed(tuple[int, int], options["image_size"], "head_options.image_size")
        check_sides(sides, "head_options.image_size")
