"""The benchmark command: networks in several forms, timed side by side in one process, with the machine's roofline."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.load import pick_device
from ..errors import UserError
from ..flops.profile import profile
from ..utils.files import exists, read_json, saving, write_whole
from ..version import __version__
from .forms import Candidate, images_of, network_of, sources, timed_form_of
from .machine import describe, load_average, pinned_threads
from .memory import device_peak, peaks
from .roofline import PeakRate, matching, rates, roofline, unsteady
from .settings import Settings
from .speed import TimedForm, Timing, default_rounds, measure


def check_output(path: Path) -> None:
    """Raise `UserError` if the file exists and is not the result of an earlier benchmark."""
    if not exists(path, "--output"):
        return
    try:
        found = None if path.is_symlink() else read_json(path)
    except UserError:
        found = None
    if not isinstance(found, dict) or not {"machine", "rows"} <= found.keys():
        raise UserError(f"--output {path} exists and is not a result of vitrail benchmark: choose another name.")


def write(document: dict[str, Any], path: Path) -> None:
    """Write the document as a JSON file, atomically."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(document, indent=1) + "\n")


def benchmark(settings: Settings, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Measure, and return plain values for JSON: machine, roofline, and one row a network, form and batch.

    Args:
        advance: called `settings.work()` times.

    Raises:
        UserError: an option names something that does not exist or cannot run.
    """
    settings.check()
    wanted = sources(settings.models, settings.against)
    device = pick_device(settings.device)
    load_before = load_average()
    with pinned_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        start = rates(device) if settings.roofline else {}
        networks = [_counted(source, settings.size_of(source)) for source in wanted]
        rows = [
            row
            for batch in settings.batch_size
            for row in _of_batch(settings, networks, batch=batch, folder=Path(folder), device=device, advance=advance)
        ]
        found = roofline(start, rates(device) if settings.roofline else {})
    for row in rows:
        row.update(_roofline_share(row, matching(found, settings.precision)))
    return {
        "vitrail": __version__,
        "settings": {**asdict(settings), "device": str(device)},
        "machine": {**describe(), "threads": settings.threads, "load": [load_before, load_average()]},
        "roofline": [asdict(rate) for rate in found],
        "unsteady": unsteady(found),
        "rows": rows,
    }


@dataclass
class Counted:
    """A network with its counts: (C, H, W) of an image, parameters, multiply-adds for one image."""

    source: str
    network: nn.Module
    image: tuple[int, ...]
    params: int
    macs: int


def _counted(source: str, size: tuple[int, int]) -> Counted:
    network = network_of(source, size)
    image = tuple(images_of(network, 1, size).shape[1:])
    found = _tried(source, size, lambda: profile(network, image))
    return Counted(source=source, network=network, image=image, params=found.params, macs=found.macs)


def _tried(source: str, size: tuple[int, int], work: Callable[[], Any]) -> Any:
    """The result of `work`.

    Raises:
        UserError: the network does not take such images.
    """
    try:
        return work()
    except (RuntimeError, ValueError, AssertionError) as error:
        message = str(error).strip() or type(error).__name__
        raise UserError(f"{source} cannot run on images of {size[0]}x{size[1]}: {message.splitlines()[0]}") from error


def _of_batch(
    settings: Settings,
    networks: list[Counted],
    batch: int,
    folder: Path,
    device: torch.device,
    advance: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """The rows of one batch size, whose timed forms take turns in this process."""
    candidates, timed_forms, counts = [], [], []
    for counted in networks:
        expected = _expected(counted, batch, settings, device)
        for candidate in settings.candidates(counted.source, batch):
            candidate, timed_form = timed_form_of(candidate, counted.network, expected, folder)
            if settings.training:  # some networks take such images, but not a batch so small
                _tried(candidate.source, candidate.image_size, timed_form.call)
            counts.append(counted)
            candidates.append(candidate)
            timed_forms.append(timed_form)
            advance()
    timings = measure(timed_forms, settings.rounds or default_rounds(batch), advance=advance)
    memory = _memory(candidates, timed_forms, device, advance)
    for counted, candidate, timing, peak in zip(counts, candidates, timings, memory, strict=True):
        yield _row(candidate, counted, timing, peak)


def _memory(
    candidates: list[Candidate], timed_forms: list[TimedForm], device: torch.device, advance: Callable[[], None]
) -> Iterator[float | None]:
    if device.type != "cuda":
        yield from peaks(candidates, advance)
        return
    for timed_form in timed_forms:
        yield None if timed_form.refused else device_peak(timed_form.call, device)
        advance()


def _expected(counted: Counted, batch: int, settings: Settings, device: torch.device) -> torch.Tensor | None:
    """The network's logits in fp32, with which every form is compared; None in training, which is random."""
    size = settings.size_of(counted.source)
    x = images_of(counted.network, batch, size).to(device)
    with torch.inference_mode():
        found = _tried(counted.source, size, lambda: counted.network.to(device)(x).cpu())
    counted.network.cpu()
    return None if settings.training else found


def _row(candidate: Candidate, counted: Counted, timing: Timing, peak: float | None) -> dict[str, Any]:
    row = {
        **{name: value for name, value in asdict(candidate).items() if name != "file"},
        "label": candidate.label,
        "params": counted.params,
        "gmac": counted.macs / 1e9,
        "difference": timing.difference,
        "refused": timing.refused,
        "settled": timing.settled,
        "peak_mb": None if peak is None else peak / 1e6,
    }
    if timing.refused is not None:
        return row
    return {
        **row,
        "median_ms": 1e3 * timing.median,
        "quartiles_ms": [1e3 * timing.quantile(0.25), 1e3 * timing.quantile(0.75)],
        "min_ms": 1e3 * min(timing.seconds),
        "times_ms": [1e3 * seconds for seconds in timing.seconds],
        "images_per_second": candidate.batch / timing.median,
        "speedup": timing.speedup,
        "gmac_per_second": counted.macs * candidate.batch / timing.median / 1e9,
    }


def _roofline_share(row: dict[str, Any], peak: PeakRate | None) -> dict[str, Any]:
    """The share of its peak rate that a prediction reaches; none in training, whose backward pass is not counted."""
    if peak is None or row["refused"] or row["training"]:
        return {"roofline": None, "roofline_share": None}
    return {"roofline": peak.name, "roofline_share": row["gmac_per_second"] / peak.best}
