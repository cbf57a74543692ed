"""CIFAR-10 and CIFAR-100, from torchvision's layout or one `.npz`, without executing what is in the files.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from typing import Any

import numpy as np

from ...config.data import DataConfig
from ...errors import UserError
from ..arrays import check_members
from .base import ArraySet, ImageSet, root_of

# By number of classes: official folder, training files, test files, names' file and key, labels' key.
_LAYOUT = {
    10: (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        ["test_batch"],
        ("batches.meta", "label_names"),
        "labels",
    ),
    100: ("cifar-100-python", ["train"], ["test"], ("meta", "fine_label_names"), "fine_labels"),
}
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


def open_cifar(data: DataConfig, train: bool) -> ImageSet:
    """The training or the test images of CIFAR-10, or of CIFAR-100 with its fine labels.

    Args:
        data: its name says which; its root is an `.npz` file with `x_train` (N, H, W, 3) uint8, `y_train` (N,),
            `x_test`, `y_test` and perhaps `class_names`; a folder with exactly one such file; or the folder of the
            official Python files.
        train: which split.

    Raises:
        UserError: nothing of this kind there, damaged files, code in a file, or another number of classes.
    """
    num_classes = int(data.name.removeprefix("cifar"))
    path = _locate(root_of(data, "folder or .npz file"), num_classes)
    load = _load_npz if os.path.isfile(path) else _load_official
    pixels, labels, names = load(path, train, num_classes)
    if names is None:
        names = [str(i) for i in range(num_classes)]
    if len(names) != num_classes:
        raise UserError(f"{path} names {len(names)} classes, but cifar{num_classes} has {num_classes}.")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise UserError(f"{path}: images must be (N, H, W, 3) of uint8, not {pixels.shape} of {pixels.dtype}.")
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(f"{path}: {len(pixels)} images need as many whole-number labels, not {labels.shape}.")
    found = np.unique(labels)
    if found[0] < 0 or found[-1] >= num_classes or (train and len(found) != num_classes):
        raise UserError(
            f"{path} has {len(found)} classes, labelled {found[0]} to {found[-1]}, but cifar{num_classes} has "
            f"{num_classes}: choose the data name that fits."
        )
    images = ArraySet(pixels, labels, names, f"cifar{num_classes} {'training' if train else 'test'} image")
    images.aliases = [(str(number),) for number in range(num_classes)]  # for networks that number their classes
    return images


def _locate(root: str, num_classes: int) -> str:
    """The `.npz` file or the official folder that `root` means."""
    folder = _LAYOUT[num_classes][0]
    if os.path.isfile(root) and root.endswith(".npz"):
        return root
    if os.path.isfile(root):
        raise UserError(f"{root} is not an .npz file: unpack an archive first and give the folder as data.root.")
    if not os.path.isdir(root):
        raise UserError(f"{root} does not exist: give the folder of {folder} or an .npz file as data.root.")
    if os.path.isdir(os.path.join(root, folder)):
        return os.path.join(root, folder)
    if os.path.isfile(os.path.join(root, _LAYOUT[num_classes][1][0])):
        return root
    arrays = sorted(name for name in os.listdir(root) if name.endswith(".npz"))
    if len(arrays) == 1:
        return os.path.join(root, arrays[0])
    if arrays:
        raise UserError(f"{root} holds {len(arrays)} .npz files: give the one to use as data.root.")
    packed = [name for name in os.listdir(root) if name.endswith((".tar.gz", ".tgz"))]
    hint = f"unpack {packed[0]} first" if packed else f"expected {folder} or one .npz file"
    raise UserError(f"{root} does not hold cifar{num_classes}: {hint}.")


def _load_npz(path: str, train: bool, num_classes: int) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    split = "train" if train else "test"
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, (f"x_{split}", f"y_{split}", "class_names"), path)
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in (f"x_{split}", f"y_{split}") if key not in arrays]
            if missing:
                raise UserError(f"{path} lacks {' and '.join(missing)}; it has {', '.join(arrays.files) or 'nothing'}.")
            names = [str(n) for n in arrays["class_names"]] if "class_names" in arrays else None
            return arrays[f"x_{split}"], np.ravel(arrays[f"y_{split}"]), names
    except UserError:
        raise
    except Exception as error:  # damaged archives and headers raise almost anything
        if "allow_pickle" in str(error):
            raise UserError(f"{path} is refused: it holds Python objects, which may carry code.") from None
        raise UserError(f"{path} is truncated or not an .npz file ({error}).") from error


def _load_official(path: str, train: bool, num_classes: int) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    _, train_files, test_files, (names_file, names_key), label_key = _LAYOUT[num_classes]
    files = [_read(os.path.join(path, name), "data", label_key) for name in (train_files if train else test_files)]
    try:
        flat = np.concatenate([np.asarray(f["data"]) for f in files])  # (N, 3072), channel by channel
        pixels = np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels = np.concatenate([np.asarray(f[label_key]) for f in files])
    except ValueError as error:
        raise UserError(f"{path}: the files do not hold 32 x 32 images with labels ({error}).") from error
    names = None
    if os.path.exists(os.path.join(path, names_file)):
        names = [str(n) for n in _read(os.path.join(path, names_file), names_key)[names_key]]
    return pixels, labels, names


def _read(path: str, *keys: str) -> dict[str, Any]:
    """One official file: a pickled dictionary of arrays, lists and strings, and nothing else."""
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing: the data set is incomplete.")
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except _CodeFound as error:
        raise UserError(f"{path} is refused: it holds code ({error}), not only arrays.") from None
    except Exception as error:  # damaged pickles raise anything
        raise UserError(f"{path} is truncated or corrupt ({error}).") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise UserError(f"{path} lacks {' or '.join(keys)}: it is not a file of this data set.")
    return content


class _CodeFound(Exception):
    """A pickle asks for something that is not an array."""


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers; any other name in the file stops it before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _CodeFound(f"{module}.{name}")
        return super().find_class(module, name)
