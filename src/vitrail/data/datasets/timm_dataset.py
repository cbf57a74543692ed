"""Any data set timm can read, by timm's own name: folders and tar files, torchvision, Hugging Face, WebDataset, TFDS.

Map-style sources become an `ImageSet` whose images we decode ourselves, so that a damaged one is named instead of
replaced by its neighbour. Streaming ones become a `TrainingStream` around timm's reader, which skips, with a logged
warning, what it cannot decode.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ...config.addresses import check_local, is_address
from ...config.data import DataConfig
from ...errors import UserError, unknown
from ...utils.extras import how_to_install
from ..images import BadImage, open_image, to_rgb
from .base import ImageSet, TrainingStream, split_off
from .folder import check_known_classes, check_no_splits, subfolders
from .splits import HOLDOUT, TRAIN_NAMES, VAL_NAMES, split_folders
from .webdataset import Shards, find_shards

_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow_datasets"}
#: bytes of a file by which it is told from others
HEAD = 1 << 16
KINDS = ("torch", *_PACKAGES)


def open_timm(config: DataConfig, train: bool) -> ImageSet | TrainingStream:
    """The training or the validation images of `config.source`.

    Sources: "" or "folder" (a folder of class folders, or a tar file of them, with a folder per split or divided by
    `val_fraction`), "torch/NAME", "hfds/NAME", "hfids/NAME" (streamed; where the number of images is unknown, write
    the split as "train|50000"), "wds/" (shards in `root`: a split name, or a pattern such as
    "train-{0000..0009}.tar|50000"), "tfds/NAME".

    Raises:
        UserError: no source, an unknown kind, a package that is not installed, or what timm found wrong.
    """
    source = config.source
    if source is None:
        raise UserError("Data 'timm' needs --data.source, timm's name of the data set, such as 'hfds/NAME' or 'wds/'.")
    kind, _, name = source.partition("/") if "/" in source else ("", "", source)
    kind = kind.lower()
    if kind and kind not in KINDS:
        raise UserError(unknown("kind of timm source", kind, KINDS))
    package = _PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"Source {source!r} needs the package {package}: {how_to_install('stream')}.")
    root = os.path.expanduser(config.root) if config.root else None
    if kind == "wds":
        check_local("option --data.source", name)
        return _open_shards(config, root or name, train)
    if kind in ("hfids", "tfds"):
        return _open_stream(config, root, train)
    if not kind:
        return _open_files(config, root, train)
    learn = _map_style(config, root, config.train_split)
    return learn if train else _map_style(config, root, config.val_split, learn.classes)


class TimmSet(ImageSet):
    """A map-style data set of timm or torchvision."""

    def __init__(
        self, dataset: Any, source: str, max_pixels: int, classes: list[str] | None = None, rename: Any = None
    ) -> None:
        self.dataset, self.source, self.max_pixels = dataset, source, max_pixels
        self.reader: Any = getattr(dataset, "reader", None)
        if hasattr(self.reader, "cache_tarfiles"):
            self.reader.cache_tarfiles = False  # workers would share one open file, and its position
        targets = _targets(dataset, source)
        if rename is not None:
            targets = np.asarray(rename)[targets]
        names = classes or class_names(dataset) or [str(i) for i in range(int(targets.max(initial=-1)) + 1)]
        super().__init__(names, targets)
        self.unnamed = names == [str(i) for i in range(len(names))]

    def name(self, index: int) -> str:
        """Path within the source where it knows one, else its number."""
        return f"{self.source or 'image'}: {self._path(index) or f'number {index}'}"

    def key(self, index: int) -> str:
        """Path within the source where it knows one, else its number."""
        return self._path(index) or super().key(index)

    def stored(self, index: int) -> list[bytes]:
        """The beginning of the file, where the source gives files."""
        if self.reader is None:
            return []
        try:
            with self.reader[index][0] as file:
                return [file.read(HEAD)]
        except Exception:  # every reader raises its own; an unreadable file is reported when it is used
            return []

    def _path(self, index: int) -> str | None:
        try:
            return self.reader.filename(index) if self.reader is not None else None
        except Exception:  # not every reader has names
            return None

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        if self.reader is None:
            try:
                return to_rgb(self.dataset[index][0], self.levels)
            except (OSError, ValueError) as error:
                raise BadImage(f"Image {self.name(index)} is truncated or corrupt ({error}).") from error
        try:
            file = self.reader[index][0]
        except (OSError, AssertionError) as error:
            raise BadImage(f"Image {self.name(index)} cannot be read ({error}).") from error
        with file:
            return open_image(file, self.max_pixels, self.name(index), levels=self.levels)


class TimmStream(TrainingStream):
    """A streaming reader of timm, with the shards divided by us.

    Every pass starts from a fresh copy of the reader, so that its order depends on the seed alone and not on how
    many passes there were before.
    """

    def __init__(self, reader: Any, source: str, classes: list[str], num_samples: int) -> None:
        super().__init__(classes, num_samples)
        self.reader, self.source = reader, source
        if hasattr(reader, "input_img_mode") and not source.lower().startswith("tfds/"):
            reader.input_img_mode = None  # pixels as they are stored become RGB here, by the rule of all images
        self.unnamed = classes == [str(i) for i in range(len(classes))]

    def names(self) -> list[str]:
        """The source, and the names of its shards where it has some."""
        shards = getattr(getattr(self.reader, "split_info", None), "filenames", ())
        return [self.source, *(os.path.basename(str(name)) for name in shards)]

    def train_samples(self, seed: int, batch_size: int, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """See `TrainingStream`."""
        self._check_shards(world)
        reader = copy.copy(self.reader)
        reader.is_training, reader.batch_size, reader.num_samples = True, batch_size, self.num_samples
        reader.common_seed, reader.worker_seed = seed, seed + rank
        reader.dist_rank, reader.dist_num_replicas = rank, world
        yield from self._checked(reader)

    def eval_samples(self, rank: int, world: int) -> Iterator[tuple[Image.Image, int]]:
        """See `ImageStream`."""
        reader = copy.copy(self.reader)
        reader.is_training = False
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        if self.source.lower().startswith("wds/"):
            reader.split_info = copy.copy(reader.split_info)
            reader.split_info.filenames = tuple(reader.split_info.filenames[rank::world])
            if reader.split_info.filenames:
                yield from self._checked(reader)
        elif self.source.lower().startswith("hfids/"):
            reader.dist_rank, reader.dist_num_replicas = rank, world
            yield from self._checked(reader)
        else:  # timm would fill up the last process with copies
            for number, sample in enumerate(self._checked(reader)):
                if number % world == rank:
                    yield sample

    def _check_shards(self, world: int) -> None:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        readers = world * (info.num_workers if info else 1)
        shards = len(self.reader.split_info.filenames) if self.source.lower().startswith("wds/") else readers
        if shards < readers:
            raise UserError(
                f"{shards} shard(s) cannot feed {readers} readers (processes x workers): lower data.workers to "
                f"{shards // world} or write more, smaller shards."
            )

    def _checked(self, reader: Any) -> Iterator[tuple[Image.Image, int]]:
        samples, count = iter(reader), 0
        while True:
            try:
                image, target = next(samples)
            except StopIteration:
                return
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise BadImage(f"Image {count} of stream {self.source} cannot be read ({error}).") from error
            except RuntimeError as error:  # too few shards for the workers, an empty stream
                raise UserError(f"Stream {self.source} stopped: {_first_sentence(error)}") from error
            if not isinstance(target, int | np.integer) or not 0 <= target < len(self.classes):
                raise UserError(
                    f"Stream {self.source} has the label {target!r}, but labels must be numbers below "
                    f"{len(self.classes)}, the number of classes."
                )
            count += 1
            yield to_rgb(image, self.levels), int(target)


def class_names(dataset: Any) -> list[str]:
    """Names that a timm or torchvision data set gives to its classes, by index; empty when it has none."""
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return [" / ".join(c) if isinstance(c, list | tuple) else str(c) for c in getattr(dataset, "classes", [])]
    index = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return [str(name) for name, _ in sorted(index.items(), key=lambda item: item[1])]


def _targets(dataset: Any, source: str) -> np.ndarray:
    """(N,) the labels, without reading images."""
    reader = getattr(dataset, "reader", None)
    if reader is None:
        labels = getattr(dataset, "targets", None)
        if labels is None and hasattr(dataset, "index"):  # torchvision's INaturalist
            labels = [label for label, _ in dataset.index]
    elif hasattr(reader, "iter_targets"):
        labels = list(reader.iter_targets())
    elif hasattr(reader, "targets"):
        labels = reader.targets
    else:
        labels = [label for _, label in reader.samples]
    try:
        targets = np.asarray(labels, dtype=np.int64)
    except (TypeError, ValueError):
        raise UserError(f"The labels of {source!r} are not whole numbers: choose another data.target_key.") from None
    if targets.ndim != 1 or not len(targets):
        raise UserError(f"Source {source!r} holds no labelled images.")
    if targets.min() < 0:
        raise UserError(f"Source {source!r} has images without a label: choose another split.")
    return targets


def _create(source: str, root: str | None, split: str, **options: Any) -> Any:
    """timm's data set, or its complaint as one sentence."""
    from timm.data import create_dataset

    try:
        return create_dataset(source, root=root, split=split, **options)
    except UserError:
        raise
    except Exception as error:  # each reader, and each library behind it, raises its own kinds
        where = f" in {root}" if root else ""
        raise UserError(
            f"Source {source!r}, split {split!r}, cannot be opened{where}: {_first_sentence(error)}"
        ) from error


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def _map_style(config: DataConfig, root: str | None, split: str, classes: list[str] | None = None) -> TimmSet:
    """One split of a torchvision or Hugging Face data set."""
    source = config.source or ""
    if source.lower().startswith("torch/"):
        if root is None:
            raise UserError(f"Source {source!r} needs --data.root, the folder that torchvision keeps its data sets in.")
        options: dict[str, Any] = {}
    else:
        options = {"input_key": config.input_key, "target_key": config.target_key}
    dataset = _create(source, root, split, **options)
    if not options:
        return TimmSet(dataset, source, config.max_pixels, classes)
    reader = dataset.reader
    if reader.label_key.split("/")[0] not in reader.dataset.column_names:
        fields = ", ".join(reader.dataset.column_names)
        raise UserError(f"Source {source!r} has the fields {fields}: name two as data.input_key and data.target_key.")
    return TimmSet(dataset, source, config.max_pixels, classes)


def _open_files(config: DataConfig, root: str | None, train: bool) -> ImageSet:
    """timm's folder and tar readers, with a folder per split or divided by us."""
    if root is None:
        raise UserError(f"Source {config.source!r} needs --data.root, a folder of class folders or a tar file of them.")
    if not os.path.exists(root):
        raise UserError(f"{root} does not exist: give a folder or a tar file as data.root.")
    source = config.source or ""
    train_path = _split_path(root, config.train_split, TRAIN_NAMES)
    val_path = _split_path(root, config.val_split, VAL_NAMES)
    where = train_path or root
    if train_path is None and config.train_split not in TRAIN_NAMES:
        raise UserError(f"{root} has no split {config.train_split!r}, as data.train_split says.")
    if train_path is None and os.path.isdir(root):
        check_no_splits(root, subfolders(root))
    learn = TimmSet(_create(source, where, config.train_split, search_split=False), where, config.max_pixels)
    if val_path is None and config.measures_training and config.val_split == config.train_split:
        return learn
    if val_path is None and config.val_split not in (*VAL_NAMES, HOLDOUT):
        raise UserError(f"{root} has no split {config.val_split!r}, as data.val_split says.")
    if val_path is None:
        return split_off(learn, train, config.val_fraction, config.split_seed)
    if train:
        return learn
    dataset = _create(source, val_path, config.val_split, search_split=False)
    names = class_names(dataset)
    check_known_classes(val_path, names, learn.classes)
    rename = [learn.classes.index(name) for name in names]  # timm counts the classes of each split anew
    return TimmSet(dataset, val_path, max_pixels=config.max_pixels, classes=learn.classes, rename=rename)


def validation_split(config: DataConfig) -> str | None:
    """The validation split of a source; None if a share of its images is held out."""
    kind = (config.source or "").partition("/")[0].lower() if "/" in (config.source or "") else ""
    if kind:
        return f"split {config.val_split!r}"
    return _split_path(os.path.expanduser(config.root or ""), config.val_split, VAL_NAMES)


def _split_path(root: str, split: str, synonyms: tuple[str, ...]) -> str | None:
    if os.path.isdir(root):
        for name in (split, *(synonyms if split in synonyms else ())):
            for path in (os.path.join(root, name), os.path.join(root, f"{name}.tar")):
                if os.path.exists(path):
                    return path
        found = split_folders(subfolders(root), synonyms, root) if split in synonyms else []
        return os.path.join(root, found[0]) if found else None
    return None


def _open_stream(config: DataConfig, root: str | None, train: bool) -> TimmStream:
    """A Hugging Face or TensorFlow data set, streamed."""
    source = config.source or ""
    split, _, count = (config.train_split if train else config.val_split).partition("|")
    if count and not count.isdigit():
        raise UserError(f"Split {split}|{count} must name its number of images after the bar, as 'train|50000'.")
    options: dict[str, Any] = {"input_key": config.input_key, "target_key": config.target_key}
    options = {key: value for key, value in options.items() if value}
    if source.lower().startswith("hfids/"):
        options["num_samples"] = int(count) if count else None
    reader = _create(source, root, split, is_training=train, **options).reader
    classes = [name for name, _ in sorted(reader.class_to_idx.items(), key=lambda item: item[1])]
    if not classes and source.lower().startswith("hfids/"):
        classes = _names_in_files(reader, split)
    if not classes:
        raise UserError(f"Source {source!r} does not name its classes: choose another data.target_key, or 'hfds/'.")
    return TimmStream(reader, source, classes, reader.num_samples)


def _names_in_files(reader: Any, split: str) -> list[str]:
    """Names of the classes that the files of a streamed Hugging Face data set carry, when its page has none."""
    stream = reader.builder.as_streaming_dataset(split=split)
    features = stream.features or stream._resolve_features().features or {}
    return list(getattr(features.get(reader.target_key), "names", None) or [])


def _open_shards(config: DataConfig, root: str, train: bool) -> TimmStream:
    """WebDataset shards; the classes are those of the training split."""
    source = "wds/"
    splits = [config.train_split] if train else [config.val_split, config.train_split]
    shards: list[Shards] = [find_shards(root, split, config.target_key) for split in splits]
    wanted = shards[0]
    options = {"input_key": config.input_key, "target_key": config.target_key}
    options = {key: value for key, value in options.items() if value}
    # below an absolute folder no name is taken for a command or an address
    where = root if is_address(root) or any(map(is_address, wanted.files)) else os.path.abspath(root)
    dataset = _create(source, where, wanted.split, is_training=train, num_samples=wanted.num_samples(), **options)
    return TimmStream(dataset.reader, source, shards[-1].classes(), wanted.num_samples())
