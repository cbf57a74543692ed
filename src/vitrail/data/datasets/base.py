"""Base classes of data sets: `ImageSet` (images with a class), `ImageStream` and `AnnotatedSet` (other targets)."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from torch.utils.data import Dataset

from ...config.data import DataConfig
from ...errors import BadOption, UserError
from ..images import MAX_PIXELS, Source, head_of, levels_of, open_image
from ..levels import FULL, LEVEL_SAMPLES, Levels, levels_note


class ImageSource(ABC):
    """Base of every data set.

    Attributes:
        classes: names, in the order of a network's outputs.
        remarks: sentences on the data for the user, such as what was left out; see `notes`.
        levels: black and white of samples of more than 8 bits; None = of each image by itself.
        streaming: images only come one after another, not by number.
    """

    streaming = False

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.remarks: list[str] = []
        self.levels: Levels | None = None

    def notes(self) -> list[str]:
        """Notes on the data for the user, a sentence each."""
        return list(self.remarks)

    @abstractmethod
    def __len__(self) -> int: ...


class ImageSet(ImageSource, Dataset[tuple[Image.Image, int]]):
    """Images with a class each, reachable by number.

    Attributes:
        classes: name of each class; a target is an index into it.
        targets: (N,) int64, the class of each image.
        aliases: other names of each class, best first, such as its WordNet number; None = none.
        unnamed: the data number their classes and do not name them; `classes` are then these numbers.
    """

    def __init__(self, classes: Sequence[str], targets: ArrayLike) -> None:
        super().__init__(classes)
        self.aliases: list[Sequence[str]] | None = None
        self.unnamed = False
        self.targets = np.asarray(targets, dtype=np.int64)
        if self.targets.size and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise UserError(
                f"Labels run from {self.targets.min()} to {self.targets.max()}, but there are {len(self.classes)} "
                "classes: labels must be numbers from 0 to classes - 1."
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.targets[index])

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB.

        Raises:
            BadImage: it cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of image `index` in messages."""

    def key(self, index: int) -> str:
        """Name of image `index` in folders that accompany the data, such as label maps.

        A relative path that no other image of the split has and that does not depend on where the data lies.
        """
        return f"{index:06d}"

    def stored(self, index: int) -> list[bytes]:
        """Size and beginning of the stored content of image `index`, for fingerprints; [] if there is none."""
        return []


class FileSet(ImageSet):
    """Images in files.

    Args:
        root: folder that the paths are relative to.
        paths: one an image.
        targets: class of each image.
        classes: name of each class.
        max_pixels: larger images are refused.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Sequence[str],
        targets: ArrayLike,
        classes: Sequence[str],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(classes, targets)
        self.root = os.fspath(root)
        self.max_pixels = max_pixels
        # One block of bytes instead of a million strings, whose reference counts would make every worker copy them.
        self._paths = np.array([os.fsencode(p) for p in paths], dtype=np.bytes_)

    def name(self, index: int) -> str:
        """Path of image number `index`."""
        return os.path.join(self.root, os.fsdecode(self._paths[index]))

    def key(self, index: int) -> str:
        """Path of image number `index` below the split's folder."""
        return os.fsdecode(self._paths[index]).replace(os.sep, "/")

    def stored(self, index: int) -> list[bytes]:
        """Size and beginning of the file."""
        return [head_of(self.name(index))]

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return open_image(self.name(index), self.max_pixels, levels=self.levels)


class ArraySet(ImageSet):
    """Images in memory.

    Args:
        pixels: (N, H, W, 3) uint8.
        targets: class of each image.
        classes: name of each class.
        title: what messages call the set.
    """

    def __init__(self, pixels: np.ndarray, targets: ArrayLike, classes: Sequence[str], title: str) -> None:
        super().__init__(classes, targets)
        self.pixels = pixels
        self.title = title

    def name(self, index: int) -> str:
        """Title and number of an image."""
        return f"{self.title} number {index}"

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return Image.fromarray(self.pixels[index])

    def stored(self, index: int) -> list[bytes]:
        """The pixels."""
        return [self.pixels[index].tobytes()]


class Subset(ImageSet):
    """Some images of another set, in the order of `indices`."""

    def __init__(self, dataset: ImageSet, indices: Sequence[int] | np.ndarray) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)
        super().__init__(dataset.classes, dataset.targets[self.indices])
        self.aliases, self.unnamed, self.remarks = dataset.aliases, dataset.unnamed, list(dataset.remarks)

    def name(self, index: int) -> str:
        """Name of the image in the other set."""
        return self.dataset.name(int(self.indices[index]))

    def key(self, index: int) -> str:
        """Key of the image in the other set."""
        return self.dataset.key(int(self.indices[index]))

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return self.dataset.image(int(self.indices[index]))

    def stored(self, index: int) -> list[bytes]:
        """Stored content of the image in the other set."""
        return self.dataset.stored(int(self.indices[index]))


class ImageStream(ImageSource):
    """Images that only come one after another, to measure on.

    Attributes:
        num_samples: images in one pass over all processes.
        aliases: see `ImageSet`.
        unnamed: see `ImageSet`.
    """

    streaming = True

    def __init__(self, classes: Sequence[str], num_samples: int) -> None:
        super().__init__(classes)
        self.num_samples = num_samples
        self.aliases: list[Sequence[str]] | None = None
        self.unnamed = False

    def __len__(self) -> int:
        return self.num_samples

    def names(self) -> list[str]:
        """Names that are known without reading the stream, such as those of its shards."""
        return []

    @abstractmethod
    def eval_samples(self, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """Images for process `rank` of `world`: over all processes and workers each image exactly once."""


class TrainingStream(ImageStream):
    """A stream to learn from or to measure on, such as the shards of a WebDataset."""

    @abstractmethod
    def train_samples(self, seed: int, batch_size: int, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """Shuffled images for process `rank` of `world`, at least its share of a pass, whole batches per worker.

        Inside a loader's worker process the share is divided further between the workers. The order is a function
        of `seed` and of this layout.
        """


def stratified_split(
    targets: np.ndarray, fraction: float, seed: int, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Divide images into training and validation, class by class.

    Each class holds out `fraction` of its images, rounded, at least one and never all; the choice depends only on
    `seed`, the class's index and its number of images. A class with a single image is learnt from, with a warning.

    Args:
        targets: (N,) class of each image.
        fraction: share held out, between 0 and 1.
        seed: of the choice.
        classes: names, for the warning.

    Returns:
        Two ascending arrays of indices: training, validation.

    Raises:
        BadOption: `fraction` not strictly between 0 and 1.
        UserError: nothing can be held out, as no class has two images.
    """
    if not 0 < fraction < 1:
        raise BadOption(f"val_fraction={fraction!r} is not allowed; give a share above 0 and below 1.")
    held = np.zeros(len(targets), dtype=bool)
    single = []
    for index, name in enumerate(classes):
        members = np.flatnonzero(targets == index)
        if len(members) == 1:
            single.append(name)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        if count > 0:
            held[frozen_random(seed, index).permutation(members)[:count]] = True
    if not held.any():
        raise UserError("No class has two images, so none can be held out for validation: add images.")
    if single:
        warnings.warn(
            f"Only one image in class {', '.join(map(repr, single))}: it is learnt from and not measured on.",
            stacklevel=2,
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_off(images: ImageSet, train: bool, fraction: float, seed: int) -> ImageSet:
    """The training or the validation split of a set that has none of its own (see `stratified_split`)."""
    learn, held = stratified_split(images.targets, fraction, seed, images.classes)
    split = Subset(images, learn if train else held)
    split.remarks.append(holdout_note(len(held), len(images), fraction, seed))
    return split


def holdout_note(held: int, total: int, fraction: float, seed: int) -> str:
    """The note on a data set without validation split, whose images we divide."""
    return (
        f"no validation split: {held:,} of {total:,} images are held out for validation (data.val_fraction "
        f"{fraction:g}, data.split_seed {seed})"
    )


def root_of(data: DataConfig, holds: str = "folder") -> str:
    """The path that `--data.root` names.

    Args:
        data: options of a data set.
        holds: what messages call the root.

    Raises:
        UserError: none is given.
    """
    if not data.root:
        raise UserError(f"Data {data.name!r} needs --data.root, the {holds} that holds the images.")
    return os.path.expanduser(data.root)


def frozen_random(*key: int) -> np.random.RandomState:
    """A random generator for a tuple of non-negative integers, whose numbers no version of numpy will change."""
    return np.random.RandomState(np.random.SeedSequence(key).generate_state(8))


class AnnotatedSet(ImageSource, Dataset[tuple[Image.Image, dict[str, Any]]]):
    """Images with annotations (boxes, masks, keypoints, identities), reachable by number.

    Attributes:
        max_pixels: larger images are refused.
        skipped: count of what was left out when the set was opened, by reason.
    """

    def __init__(self, classes: Sequence[str], max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(classes)
        self.max_pixels = max_pixels
        self.skipped: dict[str, int] = {}

    def notes(self) -> list[str]:
        """The remarks, then what was left out and how often; a sentence each."""
        return [*self.remarks, *(f"skipped: {count} {what}" for what, count in self.skipped.items() if count)]

    def reorder_classes(self, classes: Sequence[str]) -> None:
        """Number the same classes as a network does, where these data can; otherwise nothing changes."""

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        image = self.image(index)
        return image, self.target(index, image)

    @abstractmethod
    def path(self, index: int) -> str | os.PathLike[str]:
        """The file of image number `index`."""

    def key(self, index: int) -> str:
        """Name of image `index` that does not depend on where the data lie."""
        return os.path.basename(self.path(index))

    @abstractmethod
    def annotations(self) -> Iterator[Any]:
        """The ground truth as plain values, for fingerprints; masks and images are in `stored`."""

    def stored(self, index: int) -> list[bytes]:
        """Size and beginning of the files of image number `index` and of its annotations."""
        return [head_of(self.path(index))]

    def name(self, index: int) -> str:
        """Name of image `index` in messages."""
        return str(self.path(index))

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return open_image(self.path(index), self.max_pixels, levels=self.levels)

    @abstractmethod
    def target(self, index: int, image: Image.Image) -> dict[str, Any]:
        """Ground truth of image `index`.

        Raises:
            UserError: the annotation does not fit the image.
        """


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first `most` names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


# ---- one black and white for all images of a set -----------------------------------------------------------------


def set_levels(data: ImageSource, white: float | None = None, known: Levels | None = None) -> Levels | None:
    """Set one black and one white for all images of a split (see `levels`), and note what was found.

    Args:
        data: one split of a data set, just opened.
        white: `--data.white`; None = not given.
        known: levels of the training images, or of the other split.

    Returns:
        None if no sampled image has samples of more than 8 bits whose range its file does not state.

    Raises:
        BadOption: a white without such images.
    """
    inner = data.dataset if isinstance(data, Subset) else data
    files = _sampled_files(inner)
    levels = known
    if white is not None:
        if not white > 0:
            raise BadOption(f"data.white={white!r} is not allowed; give the sample value that is white, above 0.")
        if files is not None and levels_of(files) is None:
            raise BadOption(
                f"data.white={white:g} changes nothing: none of the {len(files)} images looked at has samples of more "
                "than 8 bits whose range its file does not state; leave it out."
            )
        levels = (0.0, float(white))
    elif known is None and files is not None:
        levels = levels_of(files)
        if levels is not None:
            data.remarks.append(levels_note(levels, "--data.white"))
    # of a stream nothing is seen beforehand: its samples are taken to fill 16 bits, whichever image comes first
    inner.levels = FULL if levels is None and isinstance(inner, ImageStream) else levels
    return levels


def _sampled_files(data: ImageSource) -> list[Source] | None:
    """Up to `LEVEL_SAMPLES` files of a split, evenly spread; None if it is not made of files."""
    if not isinstance(data, (FileSet, AnnotatedSet)):
        return None
    count = min(LEVEL_SAMPLES, len(data))
    name = data.path if isinstance(data, AnnotatedSet) else data.name
    return [name(i * len(data) // count) for i in range(count)]
