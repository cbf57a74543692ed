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
from .dense import found_in, is_detector, prepared
from .folder import Files, Runner, image_files, rows_of_images
from .forms import Candidate, timed_form_of
from .machine import describe, load_average, pinned_threads
from .memory import device_peak, peaks
from .networks import Entry, images_of, network_of, with_size
from .paper_tables import add_ratios, rows_of
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


def benchmark(
    settings: Settings, advance: Callable[[], None] = lambda: None, *, files: Path | None = None, memory: bool = True
) -> dict[str, Any]:
    """Measure, and return plain values for JSON: machine, roofline, and one row a network, form and batch.

    Args:
        advance: called `settings.work()` times; fewer without `memory`.
        files: folder in which exported files are kept and found again; None = they are written anew and removed.
        memory: measure peak memory on the CPU, in processes that load every network again.

    Raises:
        UserError: an option names something that does not exist or cannot run.
    """
    settings.check()
    device = pick_device(settings.device)
    entries = [with_size(entry) for entry in settings.entries()]
    images = None if settings.images is None else image_files(settings.images)
    load_before = load_average()
    with pinned_threads(settings.threads), tempfile.TemporaryDirectory() as folder:
        measured = peaks if memory else _no_peaks
        work = (
            _images_work(settings, entries, images)
            if images
            else _random_work(settings, entries, files or Path(folder), device=device, host_peaks=measured)
        )
        start = rates(device) if settings.roofline else {}
        rows = work(advance)
        found = roofline(start, rates(device) if settings.roofline else {})
    for row in rows if images is None else []:
        row.update(_roofline_share(row, matching(found, row["precision"])))
    if settings.options_of is not None:
        add_ratios(rows, rows_of(settings.options_of, settings.task))
    return {
        "vitrail": __version__,
        "settings": {**asdict(settings), "device": str(device)},
        "machine": {**describe(), "threads": settings.threads, "load": [load_before, load_average()]},
        "roofline": [asdict(rate) for rate in found],
        "unsteady": unsteady(found),
        "images": None if images is None else [str(path) for path in images.paths],
        "notes": [] if images is None else images.notes,
        "rows": rows,
    }


#: measures networks that are built already; its argument is called after every step
Work = Callable[[Callable[[], None]], list[dict[str, Any]]]


#: peak memory of candidates on the CPU, see `memory.peaks`
Peaks = Callable[[list[Candidate], Callable[[], None]], Iterator[float | None]]


def _no_peaks(candidates: list[Candidate], advance: Callable[[], None]) -> Iterator[None]:
    """No peak memory of any."""
    return iter([None] * len(candidates))


def _random_work(
    settings: Settings, entries: list[Entry], folder: Path, *, device: torch.device, host_peaks: Peaks
) -> Work:
    """The networks, built, to be timed on random images."""
    networks = [_counted(entry) for entry in entries]
    _check_detectors(settings, networks)
    return lambda advance: [
        row
        for batch in settings.batch_size
        for row in _of_batch(
            settings, networks, batch=batch, folder=folder, device=device, advance=advance, host_peaks=host_peaks
        )
    ]


def _images_work(settings: Settings, entries: list[Entry], files: Files) -> Work:
    """The networks, built, to be timed on image files."""
    runners = [Runner(entry, files.paths, settings.device) for entry in entries]
    return lambda advance: rows_of_images(runners, files.paths, settings.rounds or 1, advance)


@dataclass
class Counted:
    """A network with its counts.

    Attributes:
        entry: how it is built, and its images' size.
        network: in evaluation mode, on the processor.
        params: parameters.
        macs: multiply-adds for one image; None of detectors, where they depend on the regions found.
    """

    entry: Entry
    network: nn.Module
    params: int
    macs: int | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images."""
        assert self.entry.image_size is not None
        return self.entry.image_size


def _counted(entry: Entry) -> Counted:
    assert entry.image_size is not None
    network = network_of(entry.source, entry.image_size, entry.build)
    if is_detector(network):
        return Counted(entry, network, sum(p.numel() for p in network.parameters()), None)
    image = tuple(images_of(network, 1, entry.image_size).shape[1:])
    found = _tried(entry, lambda: profile(network, image))
    return Counted(entry, network, found.params, found.macs)


def _check_detectors(settings: Settings, networks: list[Counted]) -> None:
    """Refuse forms that detectors do not have: their output has as many boxes as are found."""
    name = next((one.entry.name for one in networks if is_detector(one.network)), None)
    default = Settings()
    for option in ("forms", "compile", "runtime", "precision", "dynamic", "training"):
        if name is not None and getattr(settings, option) != getattr(default, option):
            raise UserError(f"--{option} is not for detectors: {name} is timed eager, in fp32; leave it out.")


def _tried(entry: Entry, work: Callable[[], Any]) -> Any:
    """The result of `work`.

    Raises:
        UserError: the network does not take such images.
    """
    try:
        return work()
    except (RuntimeError, ValueError, AssertionError) as error:
        message = str(error).strip() or type(error).__name__
        height, width = entry.image_size or (0, 0)
        raise UserError(f"{entry.name} cannot run on images of {height}x{width}: {message.splitlines()[0]}") from error


def _of_batch(
    settings: Settings,
    networks: list[Counted],
    batch: int,
    folder: Path,
    device: torch.device,
    advance: Callable[[], None],
    host_peaks: Peaks,
) -> Iterator[dict[str, Any]]:
    """The rows of one batch size, whose timed forms take turns in this process."""
    candidates, timed_forms, counts = [], [], []
    for counted in networks:
        expected = _expected(counted, batch, settings, device)
        for candidate in settings.candidates(counted.entry, batch):
            candidate, timed_form = timed_form_of(candidate, counted.network, expected, folder)
            if settings.training:  # some networks take such images, but not a batch so small
                _tried(counted.entry, timed_form.call)
            counts.append(counted)
            candidates.append(candidate)
            timed_forms.append(timed_form)
            advance()
    timings = measure(timed_forms, settings.rounds or default_rounds(batch), advance=advance)
    on_gpu = device.type == "cuda"
    memory = _device_memory(timed_forms, device, advance) if on_gpu else host_peaks(candidates, advance)
    forms = zip(counts, candidates, timed_forms, strict=True)
    for (counted, candidate, timed_form), timing, peak in zip(forms, timings, memory, strict=True):
        yield {**_row(candidate, counted, timing, peak), "found": _found(candidate, timed_form)}


def _found(candidate: Candidate, timed_form: TimedForm) -> int | None:
    """Objects that a detector found in the images timed."""
    return found_in(timed_form.call()) if candidate.decoding and timed_form.refused is None else None


def _device_memory(
    timed_forms: list[TimedForm], device: torch.device, advance: Callable[[], None]
) -> Iterator[float | None]:
    for timed_form in timed_forms:
        yield None if timed_form.refused else device_peak(timed_form.call, device)
        advance()


def _expected(counted: Counted, batch: int, settings: Settings, device: torch.device) -> torch.Tensor | None:
    """The network's logits in fp32, with which every form is compared; None in training, which is random.

    None of detectors, too, which are timed in one form only.
    """
    network, size = counted.network.to(device), counted.size
    detector = is_detector(network)
    x = prepared(network, batch, size, device)[1] if detector else images_of(network, batch, size).to(device)
    with torch.inference_mode():
        found = _tried(counted.entry, lambda: network(x))
    counted.network.cpu()
    return None if settings.training or detector else found.cpu()


def _row(candidate: Candidate, counted: Counted, timing: Timing, peak: float | None) -> dict[str, Any]:
    row = {
        **{name: value for name, value in asdict(candidate).items() if name != "file"},
        "name": candidate.name or candidate.source,
        "label": candidate.label,
        "timed": candidate.timed,
        "params": counted.params,
        "gmac": None if counted.macs is None else counted.macs / 1e9,
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
        "gmac_per_second": _rate(counted.macs, candidate, timing),
    }


def _rate(macs: int | None, candidate: Candidate, timing: Timing) -> float | None:
    """Billions of multiply-adds a second of the network alone."""
    if macs is None or candidate.decoding:
        return None
    return macs * candidate.batch / timing.median / 1e9


def _roofline_share(row: dict[str, Any], peak: PeakRate | None) -> dict[str, Any]:
    """The share of its peak rate that a prediction reaches; none in training, whose backward pass is not counted."""
    if peak is None or row["refused"] or row["training"] or row["gmac_per_second"] is None:
        return {"roofline": None, "roofline_share": None}
    return {"roofline": peak.name, "roofline_share": row["gmac_per_second"] / peak.best}
