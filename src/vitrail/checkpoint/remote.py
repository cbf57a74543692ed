"""Files of trained weights from the Hugging Face Hub and timm's addresses: the cached ones, else fetched.

Nothing is asked of the network for a file that is in the cache. Without a network one sentence says which file is
missing, where the cache is, and how to bring the file there.
"""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from ..errors import UserError

#: seconds after which an address counts as unreachable
PATIENCE = 5


def hub_file(repo: str, names: Sequence[str], weights: str, model: str | None = None) -> Path:
    """A file of a repository on the Hub: the first of `names` that is cached, else the first that exists there.

    Args:
        repo: "org/name" or "org/name@revision".
        names: of the files, the preferred one first.
        weights: what the user named, for messages.
        model: the network that the file is of, for the advice to name the file itself.

    Raises:
        UserError: it is neither in the cache nor can it be fetched; the sentence says where the cache is.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repo.partition("@")
    try:
        cached = (try_to_load_from_cache(name, file, revision=revision or None) for file in names)
        found = next((Path(path) for path in cached if isinstance(path, str)), None)
    except HFValidationError as error:
        raise UserError(f"{weights} is no repository of the Hub: write hf-hub:ORGANISATION/NAME.") from error
    if found is not None:
        return found
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    for file in () if reason else names:
        try:
            with _quiet():
                return Path(hf_hub_download(name, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            reason = _first_line(error)
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # the client has a dozen kinds: no such repository, no permission, a broken line
            reason = _first_line(error)
            break
    else:
        if not reason:
            raise UserError(f"{weights}: the repository {repo} of the Hub has no file {' or '.join(names)}.")
    raise UserError(
        f"{weights} needs {names[0]} of {name}, which is not in the cache {folder} and cannot be fetched ({reason}): "
        f"run `hf download {name}` where there is a network and copy that folder here, or fetch {names[0]} alone and "
        f"name that file instead{f' (with --model {model})' if model else ''}."
    )


def address_file(address: str, weights: str, model: str) -> Path:
    """A file of weights at an address of timm's, in PyTorch's cache.

    Args:
        address: an URL.
        weights: what the user named, for messages.
        model: the network that the file is of.

    Raises:
        UserError: it is neither in the cache nor can it be fetched.
    """
    from huggingface_hub import constants
    from timm.models._hub import download_cached_file

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(address).path).name
    if file.is_file():
        return file
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(address)
    if reason is None:
        try:
            return Path(download_cached_file(address, check_hash=True))
        except Exception as error:  # a broken line, a full disk, a file that has moved
            reason = _first_line(error)
    raise UserError(
        f"{weights} needs {file.name}, which is not in the cache {file.parent} and cannot be fetched ({reason}): fetch "
        f"{address} where there is a network and put it there, or name that file instead (with --model {model})."
    )


def unreachable(address: str) -> str | None:
    """Why an address cannot be reached from here, in words; None if it can be, or if a proxy is asked for it."""
    url = urlparse(address)
    if not url.hostname or url.scheme in urllib.request.getproxies():
        return None
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=PATIENCE).close()
    except OSError as error:
        return f"{url.hostname} cannot be reached: {error.strerror or type(error).__name__}"
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's lines on every try; what fails in the end is said by the one who asked."""
    logger: Any = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
