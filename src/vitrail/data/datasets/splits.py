"""Train and validation splits: names of their folders, and checks that no image is in both."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from ...config.data import ALL_IMAGES, DataConfig
from ...errors import UserError

#: words for the training split and the validation split, the best one first
TRAIN_NAMES = ("train", "training", "trainval")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation", "dev", "test", "testing")
#: --data.val_split of data without splits: the share that training holds out
HOLDOUT = "holdout"
#: data whose splits need no folders of their own
WITHOUT_SPLITS = ("folder", "coco", "ade20k")
#: names of a split's folder, by the split's default name
SPLIT_WORDS = {"train": TRAIN_NAMES, "training": TRAIN_NAMES, "validation": VAL_NAMES, "val": VAL_NAMES}
#: words around the name of a split in a folder's name
_AROUND = "sets?|data|datasets?|splits?|parts?|folders?|images?|imgs?|pictures?|photos?|masks?|labels?|annotations?"
_WORD = re.compile(
    rf"(?:(?:{_AROUND})[ _.-]*)*({'|'.join(sorted(TRAIN_NAMES + VAL_NAMES, key=len, reverse=True))})"
    rf"(?:[ _.-]*(?:{_AROUND}))*(?:[ _.-]*(?:19|20)\d\d)?"
)
#: images of larger data sets are not compared file by file, which would take minutes on a network's disk
MAX_COMPARED = 100_000


def for_measuring(data: DataConfig, own: DataConfig | None) -> DataConfig:
    """The options of data that a user names for evaluation: without splits, all images are used.

    Args:
        data: as named; a `val_split` that is named stays.
        own: the data that the network learned from, where they are known: of the same data only the share that was
            held out is measured.

    Raises:
        UserError: another share of the same data is named, in which there would be images that were learned.
    """
    own = own if own is not None and _same_place(data, own) else None
    if own is not None:
        data = _with_share_of(data, own)
    if data.name not in WITHOUT_SPLITS or data.val_split != DataConfig.val_split:
        return data
    if own is None:
        return replace(data, val_split=ALL_IMAGES)
    return replace(data, val_split=own.val_split if own.measures_training else HOLDOUT)


def _with_share_of(data: DataConfig, own: DataConfig) -> DataConfig:
    """The options with the held-out share of the run that was trained on these data."""
    for name in ("val_fraction", "split_seed"):
        named, held, default = (getattr(one, name) for one in (data, own, DataConfig))
        if named not in (default, held):
            raise UserError(
                f"--data.{name} {named} is not what these weights were trained with, {held}: another share has images "
                "that were learned; leave it out."
            )
    return replace(data, val_fraction=own.val_fraction, split_seed=own.split_seed)


def measured_split(data: DataConfig) -> str:
    """Name of the validation split's folder, where there is one."""
    return "validation" if data.val_split in (ALL_IMAGES, HOLDOUT) else data.val_split


def _same_place(one: DataConfig, other: DataConfig) -> bool:
    """True if two settings mean the same files."""
    places = [
        [os.path.realpath(os.path.expanduser(path)) for path in (data.root, data.images, data.annotations) if path]
        for data in (one, other)
    ]
    return (one.name, one.source) == (other.name, other.source) and places[0] == places[1]


class Named(Protocol):
    """Images whose names are their files' paths."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name of image `index` in messages."""
        ...


def split_word(name: str) -> str | None:
    """The word of `TRAIN_NAMES` or `VAL_NAMES` in a folder's name, in any capitals; None = it names no split.

    Words such as "set" or "images" and a year may stand around it: `Training`, `test_set`, `VAL-images`, `train2017`.
    """
    match = _WORD.fullmatch(name.casefold())
    return match[1] if match else None


def split_folders(names: Iterable[str], words: Sequence[str], where: str | os.PathLike[str]) -> list[str]:
    """The folders' names that mean one of `words`, in the order of the words.

    Raises:
        UserError: two names mean the same word, such as `Train` and `train_set`.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        word = split_word(name)
        if word is not None and word in words:
            if word in found:
                raise UserError(
                    f"{where} has two folders for one split, {found[word]!r} and {name!r}: keep one of them."
                )
            found[word] = name
    return [found[word] for word in words if word in found]


def check_disjoint(learned: Named, measured: Named) -> None:
    """Refuse validation images that are training images, by their files, also behind links.

    Images without files of their own, such as those of archives, are not compared, nor are very many.

    Raises:
        UserError: there are such files, though nobody asked for that.
    """
    if len(learned) + len(measured) > MAX_COMPARED:
        return
    ours = {_file(learned.name(i)) for i in range(len(learned))} - {None}
    shared = [name for name in map(measured.name, range(len(measured))) if _file(name) in ours] if ours else []
    if shared:
        raise UserError(
            f"{len(shared):,} of the {len(measured):,} images to measure on are images to learn from, such as "
            f"{shared[0]}: keep the two splits apart."
        )


def _file(name: str) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is no such file."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
