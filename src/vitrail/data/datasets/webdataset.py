"""WebDataset shards: which tar files are a split, how many images they hold and of which classes."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...config.addresses import check_local, is_address
from ...errors import UserError
from ...utils.files import inside, read_json, read_text, shortened
from .splits import TRAIN_NAMES, VAL_NAMES

#: most shards of a split; ImageNet-22k has 4,096
MAX_SHARDS = 100_000
#: longest pattern of shards, in characters
MAX_PATTERN = 4096
#: longest part that holds a label, in bytes
MAX_LABEL_BYTES = 1 << 20
#: most classes that labels may count; ImageNet-22k has 21,843
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Shards:
    """One split of a WebDataset.

    Attributes:
        root: folder or URL prefix of the shards.
        split: what timm's reader takes: a name in `_info.json`, or file names.
        files: the shards, relative to `root`.
        stated: number of images, 0 = unknown.
        target_key: field of the `.json` parts that holds the class; None = the `.cls` parts hold it.
    """

    root: str
    split: str
    files: tuple[str, ...]
    stated: int
    target_key: str | None

    def num_samples(self) -> int:
        """Images in the split: as stated, else counted."""
        return self.stated or self._scan()[0]

    def classes(self) -> list[str]:
        """Names from `classes.txt` (one a line) beside the shards, else numbers up to the largest label in them."""
        path = os.path.join(self.root, "classes.txt")
        if os.path.isfile(path):
            names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
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
        return not any(map(is_address, (self.root, *self.files)))

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
            "train-{0000..0009}.tar|50000", with the number of images behind the bar.
        target_key: field of the `.json` parts that holds the class.

    Raises:
        UserError: no shards there, too many, or a command or an address that was not allowed.
    """
    for place, text in (("root of shards", root), ("split", split)):
        check_local(place, text)
    pattern, _, count = split.rpartition("|") if "|" in split else (split, "", "")
    if count and not (count.isdecimal() and len(count) < 16):
        raise UserError(f"Split {shortened(split)} must have the number of images after the bar.")
    if ".tar" in pattern or ".." in pattern:
        files = expand(pattern)
        if not is_address(pattern):  # one that was allowed is the user's own, as typed
            for file in files:
                check_local("shard", file)
        return Shards(root, "::".join(files), files=files, stated=int(count or 0), target_key=target_key).check()
    stated = _stated(root, pattern)
    if stated is not None:
        files, number = stated
        return Shards(root, pattern, files=files, stated=int(count or number), target_key=target_key).check()
    if not os.path.isdir(root):
        raise UserError(f"Folder {root} does not exist: give the folder of the shards as data.root.")
    files = _by_name(root, pattern)
    if not files:
        raise UserError(
            f"No shards of split {pattern!r} in {root}: expected {pattern}-0000.tar and so on, or a pattern such as "
            f"'{pattern}-{{0000..0009}}.tar'."
        )
    return Shards(root, "::".join(files), files=files, stated=int(count or 0), target_key=target_key)


def expand(pattern: str) -> tuple[str, ...]:
    """The file names that a pattern such as "a-{00..09}.tar::b-{x,y}.tar" stands for, in the shell's way.

    Raises:
        UserError: they are too many, which is known before any is made, or the braces do not close.
    """
    from braceexpand import braceexpand

    if len(pattern) > MAX_PATTERN:
        raise UserError(f"The pattern of shards {shortened(pattern)} is longer than {MAX_PATTERN} characters.")
    parts = pattern.split("::")
    count = sum(map(_expanded_count, parts))
    if count > MAX_SHARDS:
        raise UserError(
            f"The pattern of shards {shortened(pattern)} stands for up to {count:.3g} files; at most {MAX_SHARDS:,} "
            "are read."
        )
    try:
        files = tuple(file for part in parts for file in braceexpand(part))
    except ValueError as error:
        raise UserError(f"The pattern of shards {shortened(pattern)} has braces that do not close.") from error
    odd = next((file for file in files if re.search(r"[{}$\0]", file)), None)
    if odd is not None:  # timm would expand them once more
        raise UserError(f"The shard {shortened(odd)} has braces, a dollar or a null in its name: rename it.")
    return files


def _expanded_count(text: str) -> int:
    """At least as many names as the braces of a pattern stand for."""
    count, bodies = 1, [""]
    for character in text:
        if character == "{":
            bodies.append("")
        elif character == "}" and len(bodies) > 1:
            body = bodies.pop()
            ends = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", body)
            # letters give at most 58 names
            count *= abs(int(ends[1]) - int(ends[2])) + 1 if ends else 58 if ".." in body else body.count(",") + 1
        else:
            bodies[-1] += character
    return count


def _stated(root: str, split: str) -> tuple[tuple[str, ...], int] | None:
    """Files and number of images of a split as `_info.json` states them."""
    for name in ("_info.json", "info.json"):
        path = os.path.join(root, name)
        if os.path.isfile(path):
            content = read_json(path)
            try:
                splits = content["splits"]
                if split in splits:
                    files = splits[split]["filenames"]
                    for file in files:
                        inside(root, file, path)
                        check_local(f"shard in {path}", file)
                    return tuple(files), int(splits[split]["num_samples"])
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
                        text = content.read(MAX_LABEL_BYTES)
                        largest = max(largest, int(json.loads(text)[target_key] if target_key else text))
                        count += 1
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"Shard {path} is truncated or not a tar file ({error}).") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"Shard {path} has a label that is not a whole number ({error}).") from error
    if largest >= MAX_CLASSES:
        raise UserError(f"The shards beside {shards[0][0]} have the label {largest}: at most {MAX_CLASSES:,} classes.")
    if not count:
        what = f"'{target_key}' in .json parts" if target_key else ".cls parts"
        raise UserError(f"The shards beside {shards[0][0]} hold no labels: expected {what}.")
    return count, largest
