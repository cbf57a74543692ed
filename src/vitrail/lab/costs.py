"""Latency and memory of all candidates, measured once at the end, side by side in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..benchmark.forms import Candidate as TimedCandidate
from ..benchmark.forms import call_of
from ..benchmark.machine import describe, load_average, pinned_threads
from ..benchmark.memory import device_peak, peaks
from ..benchmark.speed import TimedForm, measure
from ..checkpoint.load import open_network, pick_device
from ..models.mixers import MIXERS

#: rounds in which every candidate is timed once
ROUNDS = 30


@dataclass
class Costs:
    """What candidates cost on one machine.

    Attributes:
        latency_ms: median time of one image, in fp32, by candidate.
        quartiles_ms: of these times.
        memory_mb: peak memory that one image adds to the loaded network; None where that cannot be measured.
        machine: processor, libraries, threads, and the load before and after.
        rounds: in which each was timed once.
    """

    latency_ms: dict[str, float]
    quartiles_ms: dict[str, tuple[float, float]]
    memory_mb: dict[str, float | None]
    machine: dict[str, Any] = field(default_factory=dict)
    rounds: int = ROUNDS


def measure_costs(
    runs: dict[str, Path], image_size: tuple[int, int], device: str, advance: Callable[[], None] = lambda: None
) -> Costs:
    """Time one image through each candidate in interleaved rounds, and measure its memory.

    Args:
        runs: a trained run of each candidate, by name.
        image_size: (height, width).
        device: to measure on; on the processor one thread is used.
        advance: called ROUNDS times, and once for each candidate.
    """
    chosen = pick_device(device)
    load = load_average()
    networks = {name: open_network(str(path)) for name, path in runs.items()}
    timed = {name: TimedCandidate(str(runs[name]), image_size=image_size, device=str(chosen)) for name in runs}
    with pinned_threads(1):
        forms = [TimedForm(name, call_of(timed[name], networks[name])) for name in runs]
        timings = measure(forms, ROUNDS, advance=advance)
        if chosen.type == "cuda":
            found = [device_peak(form.call, chosen) for form in forms]
        else:
            found = _host_peaks(networks, list(timed.values()), advance)
    memory = {name: None if peak is None else peak / 1e6 for name, peak in zip(runs, found, strict=True)}
    return Costs(
        latency_ms={one.name: 1e3 * one.median for one in timings},
        quartiles_ms={one.name: (1e3 * one.quantile(0.25), 1e3 * one.quantile(0.75)) for one in timings},
        memory_mb=memory,
        machine={
            **describe(),
            "device": str(chosen),
            "threads": torch.get_num_threads(),
            "load": [load, load_average()],
        },
    )


def _host_peaks(
    networks: dict[str, nn.Module], timed: Sequence[TimedCandidate], advance: Callable[[], None]
) -> list[float | None]:
    """Peak memory on the processor, each in a process of its own, which knows no class of the user's."""
    own = [_has_own_class(network) for network in networks.values()]
    found = peaks([one for one, is_own in zip(timed, own, strict=True) if not is_own], advance)
    return [None if is_own else next(found) for is_own in own]


def _has_own_class(network: nn.Module) -> bool:
    own = tuple(kind.made_of for kind in MIXERS.values() if kind.made_of is not None)
    return any(isinstance(module, own) for module in network.modules())
