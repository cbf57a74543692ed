"""Peak memory of one call, in a process of its own where the processor does the work.

    python -m vitrail.benchmark.memory

starts a server: a line of JSON names an `Candidate`, and for each a fresh copy of the server builds it, calls it and
answers with one line. The copies have imported everything and allocated nothing, so that none stands on another's heap.
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
from .forms import Candidate, call_of, network_of

STATUS = Path("/proc/self/status")


def peaks(candidates: Sequence[Candidate], advance: Callable[[], None] = lambda: None) -> Iterator[float | None]:
    """Bytes by which one call of each raises the peak over the loaded network; None where it cannot be measured."""
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
    """The same of a GPU, which keeps account itself."""
    call()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return float(torch.cuda.max_memory_allocated(device) - before)


def host_peak(prepare: Callable[[], Callable[[], Any]], again: bool) -> float | None:
    """The same of this process, which from now on gives back what it frees: let it end afterwards.

    Args:
        prepare: builds what is called, in here so that it leaves no holes in the heap either.
        again: measure the second call: the first one of torch also loads kernels, and compiles. Runtimes keep what
            they allocate, so that theirs is the first.
    """
    return_memory()
    call = prepare()
    if again:
        call()
    gc.collect()
    return_memory()  # also what the first call left in small pieces, so that it counts when taken again
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        before = _status("VmRSS")
        call()
        return max(0.0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(name: str) -> float:
    """A figure of this process's memory in bytes."""
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
    """In the copy: build, measure, answer, end."""
    status = 1
    try:
        candidate = Candidate(**{**values, "image_size": tuple(values["image_size"])})
        torch.set_num_threads(candidate.threads)
        print(json.dumps(host_peak(lambda: _call_of(candidate), again=candidate.runtime == "torch")), flush=True)
        status = 0
    finally:
        os._exit(status)


def _call_of(candidate: Candidate) -> Callable[[], Any]:
    return call_of(candidate, network_of(candidate.source, candidate.image_size))


if __name__ == "__main__":
    _serve()
