"""PSLT on CIFAR-10, as many epochs as fit into a few minutes of a GPU.

    python benchmarks/gpu_cifar.py pack CIFAR10 PARTS                     # CIFAR10: what --data.root of cifar10 takes
    python benchmarks/gpu_cifar.py train PARTS --output runs/cifar [--minutes 9] [options of vitrail train]

`pack` writes the images as two files below 60 MB each (lossless WebP sheets), for machines that take no larger ones.
`train` joins them, compares the pixels with the checksum in the parts, measures some steps, chooses the number of
epochs so that the whole schedule of configs/pslt/cifar10.yaml ends in time, and trains. It leaves
OUTPUT/run: weights, curves.png, metrics.csv, summary.json. On a processor, give --device cpu and a smaller network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from vitrail.benchmark.machine import cores
from vitrail.cli.parsing import read
from vitrail.cli.train import given, parser
from vitrail.config.data import DataConfig
from vitrail.config.train import TrainConfig
from vitrail.data import open_dataset
from vitrail.data.arrays import read_arrays
from vitrail.data.datasets.base import ArraySet
from vitrail.engine.option_rules import check, drop_ineffective
from vitrail.engine.trainer import fit
from vitrail.errors import Interrupted, UserError
from vitrail.utils.files import write_whole

RECIPE = Path(__file__).parent.parent / "configs" / "pslt" / "cifar10.yaml"
PARTS = 2
#: most bytes of a part
MOST = 60_000_000
#: images of a sheet, in rows of `COLUMNS`
SHEET, COLUMNS = 500, 20
#: optimiser steps that are measured, the first half of which warms up
PROBE = 60
#: share of the time that stays free for what was not measured
RESERVE = 0.1

Arrays = dict[str, np.ndarray]


# ---- parts ------------------------------------------------------------------------------------------------------


def checksum(arrays: Arrays) -> str:
    """Of pixels and labels."""
    made = hashlib.sha256()
    for name in ("x_train", "y_train", "x_test", "y_test"):
        made.update(str(arrays[name].shape).encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return made.hexdigest()


def sheet_of(pixels: np.ndarray) -> bytes:
    """(N, H, W, 3) images side by side in rows of `COLUMNS`, the last row filled up with black, as lossless WebP."""
    n, height, width, _ = pixels.shape
    rows = -(-n // COLUMNS)
    filled = np.zeros((rows * COLUMNS, height, width, 3), np.uint8)
    filled[:n] = pixels
    sheet = filled.reshape(rows, COLUMNS, height, width, 3).swapaxes(1, 2).reshape(rows * height, COLUMNS * width, 3)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "webp", lossless=True, exact=True, method=4)
    return file.getvalue()


def images_of(sheet: bytes, count: int, height: int, width: int) -> np.ndarray:
    """The images of a sheet."""
    pixels = np.asarray(Image.open(io.BytesIO(sheet), formats=["WEBP"]).convert("RGB"))
    rows = -(-count // COLUMNS)
    if pixels.shape != (rows * height, COLUMNS * width, 3):
        raise UserError(f"A sheet of {count} images has {pixels.shape[:2]} pixels: the parts are damaged.")
    images = pixels.reshape(rows, height, COLUMNS, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return images[:count]


def pack(root: str, folder: Path) -> list[Path]:
    """Write CIFAR-10 in parts; returns their paths.

    Raises:
        UserError: there is no CIFAR-10, a part is there already, or one becomes too large.
    """
    arrays: Arrays = {}
    for split in ("train", "test"):
        images = cast(ArraySet, open_dataset(DataConfig("cifar10", root=root), split == "train"))
        arrays[f"x_{split}"] = images.pixels
        arrays[f"y_{split}"] = np.asarray(images.targets, np.uint8)
        names = images.classes
    files = [folder / f"cifar10-{i + 1}.npz" for i in range(PARTS)]
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already: choose another folder.")
    pixels = [arrays[f"x_{split}"] for split in ("train", "test")]
    sheets = [sheet_of(own[i : i + SHEET]) for own in pixels for i in range(0, len(own), SHEET)]
    ends = np.cumsum([len(sheet) for sheet in sheets])
    share = np.minimum((ends - 1) * PARTS // ends[-1], PARTS - 1)  # the part of each sheet
    about = {"checksum": np.array(checksum(arrays)), "size": np.array(pixels[0].shape[1:3])}
    about |= {"y_train": arrays["y_train"], "y_test": arrays["y_test"], "class_names": np.array(names)}
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        own = [sheet for sheet, part in zip(sheets, share, strict=True) if part == i]
        content = io.BytesIO()
        lengths = np.array([len(sheet) for sheet in own], np.int64)
        np.savez(content, sheets=np.frombuffer(b"".join(own), np.uint8), lengths=lengths, **about)
        if content.tell() > MOST:
            raise UserError(f"Part {i + 1} has {content.tell():,} bytes, more than {MOST:,}: is this CIFAR-10?")
        write_whole(file, content.getvalue())
    return files


def join(folder: Path) -> Arrays:
    """The arrays of all parts, as `--data.root` of cifar10 takes them.

    Raises:
        UserError: a part is missing or damaged, or they do not belong together.
    """
    sheets: list[bytes] = []
    names = ("sheets", "lengths", "checksum", "size", "y_train", "y_test", "class_names")
    parts = [
        dict(zip(names, read_arrays(folder / f"cifar10-{i + 1}.npz", names, "part of CIFAR-10"), strict=True))
        for i in range(PARTS)
    ]
    for part in parts:
        ends = np.cumsum(part["lengths"])
        sheets += [part["sheets"][end - n : end].tobytes() for end, n in zip(ends, part["lengths"], strict=True)]
    first = parts[0]
    height, width = map(int, first["size"])
    found: Arrays = {name: first[name] for name in ("y_train", "y_test", "class_names")}
    for split in ("train", "test"):
        total = len(first[f"y_{split}"])
        counts = [min(SHEET, total - i) for i in range(0, total, SHEET)]
        own, sheets = sheets[: len(counts)], sheets[len(counts) :]
        images = [images_of(sheet, n, height, width) for sheet, n in zip(own, counts, strict=False)]
        found[f"x_{split}"] = np.concatenate(images) if images else np.zeros((0, height, width, 3), np.uint8)
    if any(str(part["checksum"]) != checksum(found) for part in parts):
        raise UserError(f"The parts in {folder} are damaged or of different packings: pack them again.")
    return found


# ---- training ---------------------------------------------------------------------------------------------------


def recipe(words: Sequence[str]) -> TrainConfig:
    """The recipe with further options of `vitrail train`."""
    call = read(parser(), ["--config", str(RECIPE), *words])
    config, notes = drop_ineffective(TrainConfig(**call.values), call.typed)
    for note in notes:
        print(note, file=sys.stderr)
    check(config, *given(call))
    return config


def epochs_in(seconds: float, *, step: float, steps: int, evaluation: float) -> int:
    """The epochs that fit into a time, at least one.

    Args:
        seconds: the time.
        step: seconds of an optimiser step.
        steps: of an epoch.
        evaluation: seconds of a validation and of what is written after it.
    """
    return max(1, int(seconds * (1 - RESERVE) / (steps * step + evaluation)))


def probe(config: TrainConfig) -> tuple[float, float]:
    """(seconds of an optimiser step, of a validation with what is written after it), from a short run."""
    times: list[float] = []
    fit(config, lambda *_: times.append(time.perf_counter()))
    half = len(times) // 2
    step = (times[-1] - times[half]) / max(1, len(times) - 1 - half)
    return step, time.perf_counter() - times[-1]


def train(folder: Path, output: Path, minutes: float, words: Sequence[str]) -> dict[str, Any]:
    """Train; returns the summary of the run, with the recipe's number of epochs as "recipe_epochs".

    Raises:
        UserError: parts or options that cannot be used, or a run is there already.
        Interrupted: the time was over before the run ended; its state is saved.
    """
    started = time.perf_counter()
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty: choose another --output.")
    arrays = join(folder)
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "cifar10.npz", **cast(Any, arrays))
    workers = ["--data.workers", str(max(1, len(cores()) - 1))]
    config = recipe([*workers, *words, "--data.root", str(output / "cifar10.npz"), "--output", str(output / "run")])
    steps = max(1, len(arrays["y_train"]) // config.batch_size)
    step, evaluation = probe(replace(config, output=str(output / "probe"), max_steps=PROBE))
    left = 60 * minutes - (time.perf_counter() - started)
    epochs = epochs_in(left, step=step, steps=steps, evaluation=evaluation)
    print(
        f"{step * 1e3:.0f} ms a step, {evaluation:.1f} s a validation: {epochs} epoch(s) of {steps} steps", flush=True
    )
    stopped: list[int] = []

    def stop_in_time(number: int, loss: float) -> None:
        if time.perf_counter() - started > 60 * minutes and not stopped and number + 1 < epochs * steps:
            stopped.append(number)
            os.kill(os.getpid(), signal.SIGTERM)  # the trainer saves its state and ends

    summary = fit(replace(config, epochs=epochs), stop_in_time)
    return {**summary, "recipe_epochs": config.epochs}


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write CIFAR-10 in two parts")
    packing.add_argument("root")
    packing.add_argument("folder", type=Path)
    training = commands.add_parser("train", help="train on the parts; further options are those of vitrail train")
    training.add_argument("folder", type=Path)
    training.add_argument("--output", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=9.0)
    args, words = made.parse_known_args(argv)
    try:
        if args.command == "pack":
            if words:
                raise UserError(f"Unknown option {words[0]}.")
            for file in pack(args.root, args.folder):
                print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
            return 0
        summary = train(args.folder, args.output, args.minutes, words)
    except (UserError, Interrupted) as error:
        print(f"gpu_cifar.py: {error}", file=sys.stderr)
        return 2
    gpus = summary["hardware"]["gpus"]
    print(
        f"{summary['model']}: {summary['metrics']['top1']:.2f} % top-1 after {summary['epochs']} of the recipe's "
        f"{summary['recipe_epochs']} epochs, {summary['seconds']:.0f} s on {gpus[0] if gpus else 'the processor'}, "
        f"{summary['final']['images_per_second']} images/s; curves in {args.output / 'run' / 'curves.png'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
