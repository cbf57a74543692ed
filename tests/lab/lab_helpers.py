"""A laboratory of seconds: two small networks, few steps on digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrail.config.train import TrainConfig
from vitrail.lab.options import LabConfig

SMALL = {"width": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "stem_stride": 2}


def small_options(**changes: Any) -> LabConfig:
    return LabConfig(**{"mixers": ["identity", "window"], "host_options": SMALL, "seeds": 2, **changes})


def small_recipe(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 1, "max_steps": 3, "batch_size": 16, "device": "cpu", **changes})


def small_argv(output: Path, *more: str) -> list[str]:
    host = [f"--host_options.{name}={value}" for name, value in SMALL.items()]
    recipe = ["--epochs", "1", "--max_steps", "3", "--batch_size", "16", "--device", "cpu"]
    return ["lab", "--mixers", "identity,window", *host, "--seeds", "2", *recipe, "--output", str(output), *more]


#: what is measured of time and machine, and differs from call to call
TIMED = {"latency_ms", "latency_quartiles_ms", "memory_mb", "seconds", "images_per_second", "costs"}


def steady(value: Any) -> Any:
    """A document without its times."""
    if isinstance(value, dict):
        return {name: steady(item) for name, item in value.items() if name not in TIMED}
    return [steady(item) for item in value] if isinstance(value, list) else value
