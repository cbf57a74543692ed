"""WebDataset shards: which tar files are a split, how many pictures they hold and of which classes."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import UserError
from .folder import TRAIN_NAMES, VAL_NAMES


@dataclass(frozen=True)
class Shards:
    """One split of a WebDataset.

    Attributes:
        root: folder or URL prefix of the shards.
        split: what timm's reader takes: a name in `_info.json`, or file names.
        files: the shards, relative to `root`.
        stated: number of pictures, 0 = unknown.
        target_key: field of the `.json` parts that holds the class; None = the `.cls` parts hold it.
    """

    root: str
    split: str
    files: tuple[str, ...]
    stated: int
    target_key: str | None

    def num_samples(self) -> int:
        """Pictures in the split: as stated, else counted."""
        return self.stated or self._scan()[0]

    def classes(self) -> list[str]:
        """Names from `classes.txt` (one a line) beside the shards, else numbers up to the largest label in them."""
        path = os.path.join(self.root, "classes.txt")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as lines:
                names = [line.strip() for line in lines if line.strip()]
            if len(names) < 2:
                raise UserError(f"{path} must name at least two classes, one a line.")
            return names
        return [str(i) for i in range(self._scan()[1] + 1)]

    def _scan(self) -> tuple[int, int]:
        if not self._local():
            raise UserError(
                f"The shards at {self.root} cannot be counted from here: write the split as 'PATTERN|NUMBER' and put "
                "the names of the classes into a file classes.txt in data.root, or give a local copy of both."
            )
        paths = [os.path.join(self.root, f) for f in self.files]
        return _scan(tuple((path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths), self.target_key)

    def _local(self) -> bool:
        return not any("://" in part or part.startswith("pipe:") for part in (self.root, *self.files))

    def check(self) -> Shards:
        """Raises `UserError` when a local shard is missing; timm's reader would go on without it."""
        missing = [f for f in self.files if self._local() and not os.path.isfile(os.path.join(self.root, f))]
        if missing:
            raise UserError(f"{len(missing)} of {len(self.files)} shards are not in {self.root}, such as {missing[0]}.")
        return self


def find_shards(root: str, split: str, target_key: str | None) -> Shards:
    """The shards that a split means.

    Args:
        root: folder or URL prefix.
        split: a name in `_info.json`; else the beginning of the shards' names or their folder ("train" means
            `train-*.tar`, `train_*.tar` or `train/*.tar`, and "validation" also `val...`); else a pattern such as
            "train-{0000..0009}.tar|50000", with the number of pictures behind the bar.
        target_key: field of the `.json` parts that holds the class.

    Raises:
        UserError: no shards there.
    """
    from webdataset.shardlists import expand_urls

    pattern, _, count = split.partition("|")
    if count and not count.isdigit():
        raise UserError(f"Split {split!r} must have the number of pictures after the bar.")
    if ".tar" in pattern or ".." in pattern:
        files = tuple(expand_urls(pattern))
        return Shards(root, pattern, files, int(count or 0), target_key).check()
    stated = _stated(root, pattern)
    if stated is not None:
        files, number = stated
        return Shards(root, pattern, files, int(count or number), target_key).check()
    if not os.path.isdir(root):
        raise UserError(f"Folder {root} does not exist: give the folder of the shards as data.root.")
    files = _by_name(root, pattern)
    if not files:
        raise UserError(
            f"No shards of split {pattern!r} in {root}: expected {pattern}-0000.tar and so on, or a pattern such as "
            f"'{pattern}-{{0000..0009}}.tar'."
        )
    return Shards(root, "::".join(files), files, int(count or 0), target_key)


def _stated(root: str, split: str) -> tuple[tuple[str, ...], int] | None:
    """Files and number of pictures of a split as `_info.json` states them."""
    for name in ("_info.json", "info.json"):
        path = os.path.join(root, name)
        if os.path.isfile(path):
            try:
                with open(path, encoding="utf-8") as file:
                    splits = json.load(file)["splits"]
                if split in splits:
                    return tuple(splits[split]["filenames"]), int(splits[split]["num_samples"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} does not describe shards as timm writes it ({error}).") from None
    return None


def _by_name(root: str, split: str) -> tuple[str, ...]:
    synonyms = next((group for group in (TRAIN_NAMES, VAL_NAMES) if split in group), ())
    for name in (split, *synonyms):
        for pattern in (f"{name}[-_]*.tar", f"{name}.tar", os.path.join(name, "*.tar")):
            found = sorted(glob.glob(os.path.join(glob.escape(root), pattern)))
            if found:
                return tuple(os.path.relpath(path, root) for path in found)
    return ()


@lru_cache(maxsize=8)
def _scan(shards: Sequence[tuple[str, int, int]], target_key: str | None) -> tuple[int, int]:
    """Number of labelled samples, and the largest label, of shards by path, size and time of change."""
    count, largest = 0, -1
    for path, _, _ in shards:
        try:
            with tarfile.open(path) as shard:
                for member in shard:
                    if not member.name.endswith(".json" if target_key else ".cls"):
                        continue
                    content = shard.extractfile(member)
                    if content is not None:
                        text = content.read()
                        largest = max(largest, int(json.loads(text)[target_key] if target_key else text))
                        count += 1
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"Shard {path} is truncated or not a tar file ({error}).") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"Shard {path} has a label that is not a whole number ({error}).") from error
    if not count:
        what = f"'{target_key}' in .json parts" if target_key else ".cls parts"
        raise UserError(f"The shards beside {shards[0][0]} hold no labels: expected {what}.")
    return count, largest
