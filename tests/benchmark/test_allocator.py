"""Memory kept between calls: page faults of a process that allocates and frees the same large blocks."""

import ctypes
import subprocess
import sys

import pytest

from vitrail.benchmark.machine import describe

GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

FAULTS = """
import resource, sys
import torch
from vitrail.utils.allocator import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()

def work():
    for _ in range(3):
        torch.ones(10_000_000)  # 40 MB: above the most that glibc learns to keep by itself

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_kept_memory_is_not_faulted_in_again():
    fresh, kept = faults("fresh"), faults("keep")
    assert kept < 20
    assert fresh > 10 * max(kept, 1)


def test_without_glibc_nothing_happens(monkeypatch):
    from vitrail.utils import allocator

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_memory() is False
    allocator.return_memory()
    assert not allocator.keeps_memory()


def test_the_machine_s_description_says_so(monkeypatch):
    from vitrail.utils import allocator

    monkeypatch.setitem(allocator._state, "keeps", True)
    assert describe()["allocator"]["keep_memory"] == "on"
    monkeypatch.setitem(allocator._state, "keeps", False)
    assert "keep_memory" not in describe()["allocator"]
