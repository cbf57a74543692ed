"""Shares of a list of images for processes that do not know of each other: of torchrun, or of a job array."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..utils.files import shortened

#: most shares of one list
MAX_SHARDS = 99_999


@dataclass(frozen=True)
class Shard:
    """One share of the images.

    An image's share follows from its name alone, so that shares are disjoint and complete even if images are added
    between the starts of two processes, and whatever order the files are found in. Their sizes differ at random: of
    N images in n shares by about the square root of N / n.

    Attributes:
        index: of the share, from 1.
        count: of all shares.
    """

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, name: str) -> bool:
        """True if the image of this name belongs to the share."""
        if self.count == 1:
            return True
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    def name_of(self, stem: str) -> str:
        """The stem of this share's part of a file, such as "results-00002-of-00008"; the same where there is one."""
        return stem if self.count == 1 else f"{stem}-{self.index:05d}-of-{self.count:05d}"


def shard_of(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """The share of this process.

    Args:
        text: of `--shard`, such as "2/8".
        environment: RANK and WORLD_SIZE as torchrun and other launchers set them; with `text`, each of its shares is
            divided among the processes.

    Raises:
        UserError: no share, or variables that are none.
    """
    given = Shard() if text is None else _parsed(text)
    try:
        rank, world = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise UserError(
            f"The variables RANK={shortened(environment.get('RANK'))} and "
            f"WORLD_SIZE={shortened(environment.get('WORLD_SIZE'))} are no process of a launcher: unset them."
        )
    return Shard((given.index - 1) * world + rank + 1, given.count * world)


def _parsed(text: str) -> Shard:
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= index <= count:
        raise UserError(
            f"--shard {shortened(text)[1:-1]} is not allowed; give the share and their number, from 1/8 to 8/8 for "
            f"eight processes, at most {MAX_SHARDS}."
        )
    return Shard(index, count)


def local_device(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """The device of a process of torchrun: with "auto" each process of a machine takes a GPU of its own."""
    if device != "auto" or "LOCAL_RANK" not in environment or not torch.cuda.is_available():
        return device
    return f"cuda:{int(environment['LOCAL_RANK']) % torch.cuda.device_count()}"
