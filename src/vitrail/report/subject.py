"""A run, weights or a model, opened and measured for a page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..checkpoint.description import WeightsMeta
from ..checkpoint.format import meta_of
from ..checkpoint.load import described, open_network
from ..checkpoint.run_dir import CONFIG
from ..checkpoint.sources import RANDOM, TIMM, hub_folder
from ..config.data import DataConfig
from ..data.datasets.base import AnnotatedSet, ImageSet
from ..data.datasets.classes import Renumbered
from ..data.fingerprint import fingerprint
from ..deploy.export.backends import backend_of
from ..engine.evaluate import Evaluation, open_evaluation
from ..errors import UserError
from ..factory import build_model, check_name
from ..metrics.classification import ClassificationMetrics
from ..models import names
from .classified import Classified, Recorder
from .run import Run, read_run


@dataclass
class Subject:
    """What a page is about, or one of several.

    Attributes:
        source: as the user named it.
        run: its run directory's account; None of weights and models.
        network: on the CPU or its device; None of a run without weights.
        evaluation: its weights with the data they were measured on; None where they were not measured.
        metrics: measured now, or else those the run stored; {} where there are none.
        measured: whether the metrics were measured now.
        missing: sentences on what could not be done.
    """

    source: str
    run: Run | None = None
    network: nn.Module | None = None
    evaluation: Evaluation | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    measured: bool = False
    missing: list[str] = field(default_factory=list)

    @property
    def meta(self) -> WeightsMeta | None:
        """Description of the network."""
        return None if self.network is None else meta_of(self.network)

    @property
    def task(self) -> str:
        """What it was trained for."""
        if self.meta is not None:
            return self.meta.task
        return self.run.config.task if self.run else "classification"

    @property
    def classified(self) -> Classified | None:
        """What a classifier said of each image; None of other tasks, and where nothing was measured now."""
        if self.evaluation is None or not isinstance(self.evaluation.metrics, Recorder):
            return None
        return self.evaluation.metrics.classified(self.evaluation.images)

    def measure(self, data: DataConfig | None, batch_size: int | None, device: str) -> None:
        """Measure the weights; where the run's own data cannot be used, what is missing says so.

        Args:
            data: as named; None = those of the run.
            batch_size: images in one forward pass.
            device: where.

        Raises:
            UserError: named data that cannot be used.
        """
        try:
            opened = open_evaluation(self.weights, data, batch_size=batch_size)
            if isinstance(opened.metrics, ClassificationMetrics):
                opened.metrics = Recorder(opened.metrics.classes, opened.metrics.title)
            self.metrics = opened.run(device)
        except UserError as error:
            if data is not None:
                raise
            self.missing.append(f"Nothing could be measured: {error}")
            return
        self.evaluation, self.network, self.measured = opened, opened.network, True

    @property
    def weights(self) -> str:
        """What `evaluate` takes."""
        return str(self.run.path) if self.run else self.source


def open_subject(source: str) -> Subject:
    """A run directory, weights, or a model by name, with its network.

    A name of ours and random:MODEL have fresh weights; so has timm:MODEL here, whose weights are only fetched to be
    measured.

    Raises:
        UserError: an exported file, or something that is not there.
    """
    if backend_of(source) is not None and Path(source).is_file():
        raise UserError(
            f"{source} is an exported file, whose layers cannot be looked into: give the weights it was exported from."
        )
    if hub_folder(source) is not None:
        return Subject(source, network=open_network(source))
    if Path(source).is_dir() and not (Path(source) / CONFIG).is_file():
        read_run(source)  # says what is missing
    if Path(source).is_dir():
        run = read_run(source)
        return Subject(source, run, None if run.weights is None else open_network(source), metrics=dict(run.metrics))
    if source in names() or source.startswith((RANDOM, TIMM)):
        return Subject(source, network=_fresh(source.removeprefix(RANDOM).removeprefix(TIMM)))
    return Subject(source, network=open_network(source))


def is_trained(source: str) -> bool:
    """False of names of ours and random:MODEL."""
    return source not in names() and not source.startswith(RANDOM)


def _fresh(name: str) -> nn.Module:
    """A network of ours or timm's with fresh weights."""
    check_name(name)
    network = build_model(name, {}, 1000) if name in names() else timm.create_model(name)
    return described(network.eval(), name, note="fresh random weights", licence=None)


def data_key(evaluation: Evaluation) -> str:
    """A text that two evaluations share if they measured on the same images with the same ground truth."""
    images = evaluation.images
    while isinstance(images, Renumbered):
        images = images.images
    known = fingerprint(images)
    truth: Any = known.truth
    if isinstance(images, ImageSet):  # classes may be numbered otherwise
        truth = [images.classes[target] for target in images.targets]
    elif isinstance(images, AnnotatedSet):
        truth = [known.truth, known.classes]
    text = json.dumps([known.count, known.names, known.files, truth])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def short_names(sources: Sequence[str]) -> list[str]:
    """A name for each source: the last part of a path, with as many folders before it as tell it from the others."""
    parts = [[source] if not Path(source).exists() else list(Path(source).resolve().parts) for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        shown = ["/".join(one[-depth:]) for one in parts]
        if len(set(shown)) == len(shown):
            return shown
    return list(sources)
