"""Commands on one CPU thread, each run once: its output, what it took, and its result kept in a file."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        output: standard output.
        cpu_minutes: CPU time of the process and of those it started.
        minutes: time on the clock.
    """

    output: str
    cpu_minutes: float
    minutes: float


def finished(module: str, words: Sequence[str]) -> Finished:
    """Run `python -m module words...` in a process of its own, on one thread, in the folder of this tree.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", module, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, started = _cpu_seconds(), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    return Finished(done.stdout, (_cpu_seconds() - before) / 60, (time.perf_counter() - started) / 60)


def _cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in a JSON file; made and written there if there is none."""
    if file.is_file():
        return json.loads(file.read_text())
    result = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2))
    return result
