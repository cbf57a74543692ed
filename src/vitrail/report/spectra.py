"""Spectra of the feature maps of one network, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..analysis.layers import stage_of
from ..analysis.spectrum import spectrum
from ..checkpoint.format import meta_of, set_meta
from ..data.datasets.base import AnnotatedSet, ImageSet
from ..data.transforms.classification import eval_transform
from ..errors import UserError
from ..metrics.base import evenly_spaced
from ..tasks.with_head import backbone_of
from .charts import Axis, Series, line_chart
from .html import Html, note, paragraph, tag
from .subject import Subject

#: images of which spectra are measured
IMAGES = 32
#: the same of networks with a head, whose images are large
LARGE_IMAGES = 8


def spectra_part(named: Sequence[tuple[str, Subject]]) -> Html | None:
    """Relative log amplitude of the highest frequency over depth, and the spectra of each stage's last block.

    Of a network with a head those of its backbone, whose input must be square. All see the first one's images; None
    where these are no files, or no network has spectra.

    Args:
        named: networks of one task that were measured on the same data, by their name on the page.
    """
    evaluation = named[0][1].evaluation
    images = None if evaluation is None else evaluation.images
    networks = [(name, _network(subject)) for name, subject in named]
    if all(network is None for _, network in networks) or not isinstance(images, ImageSet | AnnotatedSet):
        return None
    return _part(networks, images)


def _network(subject: Subject) -> nn.Module | None:
    """The classifier, or the backbone under a head; None where its input is not square."""
    if subject.network is None:
        return None
    if subject.task == "classification":
        return subject.network
    meta = meta_of(subject.network)
    height, width = meta.preprocess.image_size
    return set_meta(backbone_of(subject.network), meta) if height == width else None


def _part(named: Sequence[tuple[str, nn.Module | None]], images: ImageSet | AnnotatedSet) -> Html:
    one_by_one = isinstance(images, AnnotatedSet)
    chosen = evenly_spaced(len(images), LARGE_IMAGES if one_by_one else IMAGES)
    depth, over, missing = [], [], []
    for name, network in named:
        if network is None:
            missing.append(f"{name} has no spectra: its input is not square.")
            continue
        prepare = eval_transform(meta_of(network).preprocess)
        batch = torch.stack([prepare(images.image(i)) for i in chosen]).to(next(network.parameters()).device)
        try:
            found = spectrum(network, batch.split(1) if one_by_one else batch, frequency="true")
        except UserError as error:
            missing.append(f"{name or 'The network'} has no spectra: {error}")
            continue
        rise, error = found.rise()
        layers = found.arrays["depth"].coords["layer"]
        places = found.arrays["depth"].values.tolist()
        depth.append(
            Series(
                name,
                places,
                rise.tolist(),
                low=(rise - error).tolist(),
                high=(rise + error).tolist(),
                labels=layers,
            )
        )
        if len(named) == 1:
            over = _stage_series(found, layers)
    told = (
        f"Log amplitude of the feature maps, relative to frequency 0, of {len(chosen)} images: layers that rise keep "
        "detail, layers that fall smooth it."
    )
    charts = (
        [line_chart(depth, "Highest frequency, by depth", x=Axis("depth", 0, 1), y=Axis("relative log amplitude"))]
        if depth
        else []
    )
    if over:
        charts.append(
            line_chart(over, "Last block of each stage", x=Axis("frequency, π", 0, 1), y=Axis("relative log amplitude"))
        )
    return tag("div", paragraph(told, quiet=True), tag("div", charts, class_="charts"), note(*missing))


def _stage_series(found: Any, layers: list[str]) -> list[Series]:
    """The spectra of the last layer of each stage."""
    last = {stage_of(name): i for i, name in enumerate(layers)}
    frequencies, values = found.arrays["frequency"].values, found.arrays["relative"].values
    series = []
    for i in last.values():
        known = ~np.isnan(frequencies[i])
        if known.sum() > 1:  # of a map of one place only frequency 0 is known
            series.append(Series(layers[i], frequencies[i][known].tolist(), values[i][known].tolist()))
    return series
