"""Peak memory of one call, in a process of its own where the processor does the work.

    python -m vitrail.benchmark.memory

starts a server. For every `Candidate`, a line of JSON, it forks a process that builds the candidate, calls it and
answers with one line. A forked process has all modules imported and no memory of earlier candidates on its heap.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..utils.allocator import return_memory
from .forms import Candidate, call_of
from .networks import Build, network_of

STATUS = Path("/proc/self/status")


def peaks(candidates: Sequence[Candidate], advance: Callable[[], None] = lambda: None) -> Iterator[float | None]:
    """Peak memory in bytes that one call of each adds to the loaded network; None if it cannot be measured."""
    with subprocess.Popen(
        [sys.executable, "-m", "vitrail.benchmark.memory"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for candidate in candidates:
            with suppress(BrokenPipeError):  # an answer is then missing too
                server.stdin.write(json.dumps(asdict(candidate)) + "\n")
                server.stdin.flush()
            answer = server.stdout.readline()
            yield json.loads(answer) if answer else None
            advance()
        server.stdin.close()


def device_peak(call: Callable[[], Any], device: torch.device) -> float:
    """Peak memory in bytes that one call adds on a GPU, by PyTorch's statistics."""
    call()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return float(torch.cuda.max_memory_allocated(device) - before)


def host_peak(prepare: Callable[[], Callable[[], Any]], again: bool) -> float | None:
    """Peak memory in bytes that one call adds in this process, which should end afterwards: its allocator is changed.

    Args:
        prepare: builds the function to call, here so that it leaves no gaps in the heap either.
        again: measure the second call, for torch, whose first call also loads kernels and compiles. Other runtimes
            keep the memory they allocate, so their first call is measured.
    """
    return_memory()
    call = prepare()
    if again:
        call()
    gc.collect()
    return_memory()  # also small blocks of the first call, which then count when they are allocated again
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _status("VmRSS")
        call()
        return max(0.0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(name: str) -> float:
    """A memory value of /proc/self/status in bytes."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024.0 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


def _serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(json.loads(line))
        _, status = os.waitpid(child, 0)
        if status:
            print("null", flush=True)


def _answer(values: dict[str, Any]) -> None:
    """In the forked process: build, measure, answer, exit."""
    status = 1
    try:
        size, build = tuple(values["image_size"]), Build(**values["build"])
        candidate = Candidate(**{**values, "image_size": size, "build": build})
        torch.set_num_threads(candidate.threads)
        print(json.dumps(host_peak(lambda: _call_of(candidate), again=candidate.runtime == "torch")), flush=True)
        status = 0
    finally:
        os._exit(status)


def _call_of(candidate: Candidate) -> Callable[[], Any]:
    return call_of(candidate, network_of(candidate.source, candidate.image_size, candidate.build))


if __name__ == "__main__":
    _serve()
