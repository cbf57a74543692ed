"""Classes of data as a network numbers them: matched by their names, never by their places in a list."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ...errors import UserError, nearest
from ...utils.files import shortened
from .base import ImageSet, ImageStream
from .folder import are_numbers
from .imagenet import aliases_of, standard_names, standard_wnids

_WNID = re.compile(r"n\d{8}", re.ASCII)


def with_classes_of(known: Sequence[str], images: ImageSet | ImageStream, weights: str) -> ImageSet | ImageStream:
    """The same images with the classes and the targets of a network.

    Args:
        known: the network's classes, in the order of its outputs.
        images: of these classes, or some of them, in any order.
        weights: what messages call the network.

    Raises:
        UserError: a class that the network does not know, or that means two of its classes.
    """
    positions = class_positions(known, images, weights)
    if len(positions) == len(known) and positions == list(range(len(known))):
        return images
    if isinstance(images, ImageStream):
        return RenumberedStream(images, known, positions)
    return Renumbered(images, known, positions)


def check_same_classes(known: Sequence[str], images: ImageSet | ImageStream, weights: str) -> None:
    """Raise `UserError` unless the data have a network's classes, all of them and in its order."""
    if len(known) != len(images.classes):
        raise UserError(f"{weights} knows {len(known)} classes, but the data has {len(images.classes)}.")
    positions = class_positions(known, images, weights)
    other = next((i for i, position in enumerate(positions) if position != i), None)
    if other is not None:
        raise UserError(
            f"The classes of the data come in another order than {weights} knows them: number {other} is "
            f"{shortened(images.classes[other])} here and {shortened(known[other])} there."
        )


def class_positions(known: Sequence[str], images: ImageSet | ImageStream, weights: str) -> list[int]:
    """For each class of the data its place among a network's.

    Compared are names, then WordNet numbers and the standard names of ImageNet's classes. Where all names of both are
    numbers, these are compared as numbers. Data that number their classes without names, as many streams do, are taken
    by number if they have as many classes as the network.

    Raises:
        UserError: a class that the network does not know, or that means two of its classes.
    """
    if images.unnamed and len(images.classes) == len(known):
        return list(range(len(known)))
    as_numbers = are_numbers(known) and are_numbers(images.classes)
    index = _index(known, as_numbers)
    positions = []
    for number, name in enumerate(images.classes):
        names = [str(int(name)) if as_numbers else name, *(images.aliases[number] if images.aliases else ())]
        names += aliases_of(name, name) if _WNID.fullmatch(name) else ()
        found = next((index[n] for n in map(_normal, names) if n in index), None)
        if found is None:
            raise UserError(_stranger(name, known, weights))
        positions.append(found)
    twice = next((place for place, count in Counter(positions).items() if count > 1), None)
    if twice is not None:
        two = [name for name, place in zip(images.classes, positions, strict=True) if place == twice]
        raise UserError(f"{weights} has one class, {shortened(known[twice])}, for {' and '.join(map(shortened, two))}.")
    return positions


def _index(known: Sequence[str], as_numbers: bool) -> dict[str, int]:
    """The place of every name that one class alone has."""
    names = list(map(_normal, known))
    if len(names) == len(standard_names()) and names == standard_names():
        names = standard_wnids()  # two of the standard names are those of two classes
    names = [str(int(name)) for name in names] if as_numbers else names
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stranger(name: str, known: Sequence[str], weights: str) -> str:
    close = nearest(name, known, 1)
    hint = f" (did you mean {shortened(close[0])}?)" if close else f", which are {shortened(', '.join(known[:5]))}"
    standard = len(known) == len(standard_names()) and list(known) == standard_names()
    number = " Folders with the numbers of ImageNet's classes are read by --data imagenet_v2."
    return f"The data has the class {shortened(name)}, which is none of those {weights} was trained on{hint}." + (
        number if standard and name.isdigit() else ""
    )


class Renumbered(ImageSet):
    """Another set's images, with a network's classes.

    Args:
        images: that set.
        classes: names, in the order of the network's outputs.
        positions: the place of each of the set's classes among them.
    """

    def __init__(self, images: ImageSet, classes: Sequence[str], positions: Sequence[int]) -> None:
        super().__init__(classes, np.asarray(positions, dtype=np.int64)[images.targets])
        self.images = images
        self.remarks = list(images.remarks)

    def name(self, index: int) -> str:
        """Name of image `index` in messages."""
        return self.images.name(index)

    def key(self, index: int) -> str:
        """See `ImageSet`."""
        return self.images.key(index)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return self.images.image(index)


class RenumberedStream(ImageStream):
    """Another stream's images, with a network's classes; the arguments are those of `Renumbered`."""

    def __init__(self, images: ImageStream, classes: Sequence[str], positions: Sequence[int]) -> None:
        super().__init__(classes, images.num_samples)
        self.images, self.positions = images, list(positions)

    def eval_samples(self, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """See `ImageStream`."""
        for image, target in self.images.eval_samples(rank, world):
            yield image, self.positions[target]
