"""Description of the machine, and fixed threads, cores and precision for a measurement."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..utils.allocator import keeps_memory
from ..utils.environment import git_commit, hardware, vector_instructions, versions
from ..utils.tf32 import tf32

#: environment variables that configure the allocator
ALLOCATOR = ("THP_MEM_ALLOC_ENABLE", "LD_PRELOAD")


def load_average() -> float | None:
    """Average number of processes waiting for a core during the last minute; None where that is unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def cores() -> list[int]:
    """Numbers of the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def describe() -> dict[str, Any]:
    """Processor, libraries and settings that times depend on, as plain values."""
    return {
        **hardware(),
        "usable_cores": len(cores()),
        "flags": vector_instructions(),
        "versions": {**versions(), **_installed("onnxruntime", "openvino")},
        **_libraries(torch.__config__.show()),
        "allocator": {
            **{name: value for name, value in os.environ.items() if name.startswith("MALLOC_") or name in ALLOCATOR},
            **({"keep_memory": "on"} if keeps_memory() else {}),
        },
        "git": git_commit(),
    }


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _libraries(config: str) -> dict[str, str | None]:
    """Versions of the two libraries of matrix products, from what PyTorch says of its build."""
    patterns = {
        "mkl": r"Math Kernel Library Version ([^\s,]+)",
        "onednn": r"MKL-DNN v([\d.]+)",
        "cpu_capability": r"CPU capability usage: (\S+)",
    }
    found = {name: re.search(pattern, config) for name, pattern in patterns.items()}
    return {name: match and match[1] for name, match in found.items()}


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """A number of threads, pinned to as many cores where the system allows it, and no TF32; restored afterwards."""
    before, allowed = torch.get_num_threads(), cores()
    torch.set_num_threads(threads)
    _pin(allowed[:threads])
    try:
        with tf32(False):
            yield
    finally:
        _pin(allowed)
        torch.set_num_threads(before)


def _pin(wanted: list[int]) -> None:
    """Pin every thread of this process to these cores."""
    with suppress(AttributeError, OSError):  # not every system can do or allows this
        for thread in os.listdir("/proc/self/task"):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread), wanted)
