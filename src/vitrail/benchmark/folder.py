"""Images a second over real image files, as `predict` takes them: reading, preprocessing, network, decoding."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..data.images import BadImage, left_out_sentence, open_image
from ..data.levels import Levels
from ..engine.predict import Predictor, collect, levels_for
from ..errors import UserError
from ..structures import Detections, PanopticSegments, Prediction
from .dense import keeps_shape
from .networks import Entry, holds_weights, network_of
from .roofline import synchronise

#: parts of what `predict` does with an image file, in their order; they add up to its time
PHASES = ("reading", "preprocessing", "network", "decoding")


@dataclass
class Files:
    """The image files of a benchmark.

    Attributes:
        paths: files that can be read.
        notes: sentences on what was left out.
    """

    paths: list[Path]
    notes: list[str] = field(default_factory=list)


def image_files(pattern: str) -> Files:
    """The images of a folder, file or glob; those that cannot be read are left out, with a note.

    Raises:
        UserError: there is none.
    """
    left_out: Counter[str] = Counter()
    found = Files(collect([pattern], left_out))
    if sentence := left_out_sentence(left_out, pattern):
        found.notes.append(sentence)
    readable = []
    for path in found.paths:
        try:
            open_image(path)
            readable.append(path)
        except BadImage as error:
            found.notes.append(f"skipped: {error}")
    if not readable:
        raise UserError(f"--images {pattern}: none of the {len(found.paths)} images could be read.")
    found.paths = readable
    return found


class Stopwatch:
    """Seconds spent inside a network, by hooks around its forward passes.

    Args:
        network: whose calls are timed.
        device: that is waited for.
        clock: seconds.

    Attributes:
        started: when the first call since `reset` began; None before it.
        inside: seconds of all calls since `reset`.
    """

    def __init__(self, network: nn.Module, device: torch.device, clock: Callable[[], float]):
        self.device, self.clock = device, clock
        self.reset()
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)

    def reset(self) -> None:
        """Begin anew."""
        self.started: float | None = None
        self.inside = 0.0

    def _now(self) -> float:
        synchronise(self.device)
        return self.clock()

    def _enter(self, *_: Any) -> None:
        self._entered = self._now()
        if self.started is None:
            self.started = self._entered

    def _leave(self, *_: Any) -> None:
        self.inside += self._now() - self._entered


class Runner:
    """A network that predicts image files one after another, and keeps the seconds of every phase.

    Args:
        entry: the network; a name has fresh weights.
        paths: the images, from which black and white are guessed where they have more than 8 bits.
        device: "auto", "cpu", ...
        clock: seconds.

    Attributes:
        seconds: of every prediction, by phase.
        found: number of objects or segments in all predictions; None where every image has the same number.
    """

    def __init__(
        self, entry: Entry, paths: Sequence[Path], device: str, clock: Callable[[], float] = time.perf_counter
    ):
        assert entry.image_size is not None
        self.entry, self.clock = entry, clock
        network = network_of(entry.source, entry.image_size, entry.build, exact=False)
        self.params = sum(p.numel() for p in network.parameters())
        self.levels: Levels | None = levels_for(network, paths, None)
        self.predictor = Predictor(network, device)
        self.watch = Stopwatch(network, self.predictor.device, clock)
        self.seconds: list[dict[str, float]] = []
        self.found: int | None = None

    def run(self, path: Path) -> tuple[dict[str, float], Prediction]:
        """Predict one image: seconds by phase, and the prediction."""
        self.watch.reset()
        began = self.clock()
        image = open_image(path, levels=self.levels)
        read = self.clock()
        prediction = self.predictor.predict([self.predictor.prepare(image)])[0]
        synchronise(self.predictor.device)
        ended = self.clock()
        assert self.watch.started is not None
        inside = self.watch.inside
        seconds = (read - began, self.watch.started - read, inside, ended - self.watch.started - inside)
        return dict(zip(PHASES, seconds, strict=True)), prediction

    def add(self, path: Path) -> None:
        """Predict one image and keep its seconds."""
        seconds, prediction = self.run(path)
        self.seconds.append(seconds)
        count = found_in(prediction)
        if count is not None:
            self.found = (self.found or 0) + count

    def row(self) -> dict[str, Any]:
        """The results as plain values."""
        count = len(self.seconds)
        total = [sum(one.values()) for one in self.seconds]
        mean = {name: sum(one[name] for one in self.seconds) / count for name in PHASES}
        meta = meta_of(self.predictor.network)
        return {
            "source": self.entry.source,
            "name": self.entry.name,
            "build": asdict(self.entry.build),
            "weights": "its own" if holds_weights(self.entry.source) else "fresh",
            "task": meta.task,
            "head": meta.head,
            "image_size": list(meta.preprocess.image_size),
            "size": size_in_words(meta),
            "label": "predict",
            "timed": ", ".join(PHASES),
            "batch": 1,
            "params": self.params,
            "refused": None,
            "predictions": count,
            "found": self.found,
            **{f"{name}_ms": 1e3 * seconds for name, seconds in mean.items()},
            "times_ms": [1e3 * seconds for seconds in total],
            "phases_ms": {name: [1e3 * one[name] for one in self.seconds] for name in PHASES},
            "images_per_second": count / sum(total),
            "network_images_per_second": 1 / mean["network"],
        }


def size_in_words(meta: WeightsMeta) -> str:
    """What `predict` resizes images to."""
    height, width = meta.preprocess.image_size
    if meta.task == "semantic_segmentation" or (meta.head is not None and keeps_shape(meta.head)):
        return f"short side {min(height, width)}"
    return f"{height}x{width}"


def found_in(prediction: Prediction) -> int | None:
    """Number of objects or segments in a prediction; None of tasks that find the same number in every image."""
    if isinstance(prediction, PanopticSegments):
        return len(prediction.segments)
    return len(prediction.boxes) if isinstance(prediction, Detections) else None


def rows_of_images(
    runners: Sequence[Runner], paths: Sequence[Path], rounds: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """A row for each network, which take turns at every image, each round in another order.

    Args:
        runners: the networks.
        paths: the images; the first is also predicted once by every network before any is timed.
        rounds: passes over the images.
        advance: called after each image of each round.
    """
    for runner in runners:
        runner.run(paths[0])
    for number in range(rounds * len(paths)):
        turn = number % len(runners)
        for runner in [*runners[turn:], *runners[:turn]]:
            runner.add(paths[number % len(paths)])
        advance()
    return [runner.row() for runner in runners]
