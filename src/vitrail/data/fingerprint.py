"""Fingerprint of a data split, by which a resumed run recognises its data wherever they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from ..utils.files import shortened
from .datasets.base import AnnotatedSet, ImageSet, ImageStream

#: images of a split whose stored content is hashed, evenly spread over it; a smaller split is hashed whole
SAMPLED = 2048

DataSet = ImageSet | ImageStream | AnnotatedSet


@dataclass
class Fingerprint:
    """Count, classes and hashes that identify a split of a data set.

    Attributes:
        count: of the images, or of the persons in them.
        classes: names, in order.
        names: hash of the names of the images below the data's folder, in order.
        truth: hash of the ground truth: classes, boxes, masks, keypoints, identities.
        files: hash of the content of images and masks, where they can be chosen by number.
    """

    count: int
    classes: list[str]
    names: str
    truth: str
    files: str


def fingerprint(data: DataSet) -> Fingerprint:
    """The fingerprint of a split of a data set, without decoding an image."""
    if isinstance(data, ImageStream):
        return Fingerprint(
            count=len(data), classes=list(data.classes), names=_hash(data.names()), truth=_hash([]), files=_hash([])
        )
    truth = [np.asarray(data.targets).tolist()] if isinstance(data, ImageSet) else data.annotations()
    numbers = range(len(data))
    chosen = np.unique(np.linspace(0, len(data) - 1, min(len(data), SAMPLED)).round().astype(int)).tolist()
    return Fingerprint(
        count=len(data),
        classes=list(data.classes),
        names=_hash(data.key(index) for index in numbers),
        truth=_hash(truth),
        files=_hash(stored for index in chosen for stored in data.stored(index)),
    )


def _hash(values: Iterable[Any]) -> str:
    """Of values, each bytes or as JSON writes it."""
    state = hashlib.blake2b(digest_size=16)
    for value in values:
        data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def difference(before: Fingerprint, now: Fingerprint) -> str | None:
    """The first difference in words, None if there is none."""
    if before.count != now.count:
        return f"{before.count:,} then, {now.count:,} now"
    if before.classes != now.classes:
        pairs = enumerate(zip_longest(before.classes, now.classes))
        index, (old, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        old, new = ("none" if name is None else shortened(name) for name in (old, new))
        return f"class number {index} was {old} then and is {new} now"
    if before.names != now.names:
        return "as many as then, but with other names or in another order"
    if before.truth != now.truth:
        return "the same names as then, but other labels or annotations"
    if before.files != now.files:
        return "the same names and labels as then, but files of other content"
    return None
