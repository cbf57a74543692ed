"""What is measured of one trained network: correct images, how far it attends, which frequencies it keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..analysis.attention_weights import AttentionWeights
from ..analysis.captured import attention_modules, captured
from ..analysis.layers import blocks_of, evaluating, stage_of
from ..analysis.spectrum import spectrum
from ..data import EvalLoader, eval_transform
from ..data.datasets.base import ImageSet
from ..errors import UserError
from ..tasks.classification import Classification

#: validation images, spread evenly, whose attention and spectra are measured
ANALYSED = 64
#: images of which all attention weights of a layer are held at a time
AT_ONCE = 8


@dataclass
class Span:
    """How far one attention looks.

    Attributes:
        layer: its name.
        stage: its stage, from 0; None outside stages.
        tokens: mean distance between query and attended token, weighted by attention, in tokens of the queries' map.
        pixels: the same in pixels of the network's input.
        even_pixels: what it would be if every query attended evenly to the tokens it attends to at all.
    """

    layer: str
    stage: int | None
    tokens: float
    pixels: float
    even_pixels: float


@dataclass
class Rise:
    """Spectrum of what leaves a stage.

    Attributes:
        stage: from 0.
        side: of its map.
        relative: log amplitude of the highest frequency of the half diagonal relative to frequency 0; None for a map of
            a single place, or one without a mean.
        error: standard error over images.
    """

    stage: int
    side: int
    relative: float | None
    error: float | None


@dataclass
class Measures:
    """Measurements of one run.

    Attributes:
        seed: of the run.
        top1: accuracy on the validation images in %, of the weights of the last epoch, in fp32; None where the training
            diverged.
        correct: a bit for each validation image in the order of the data, as hexadecimal digits.
        images: number of validation images.
        seconds: of training.
        history: a row an epoch, as in metrics.csv.
        spans: of its attentions, first to last; empty where nothing attends, or not in a way that is known.
        rises: of its stages; empty where maps are not square.
        failed: why there is no result; None for a run that ended well.
    """

    seed: int
    top1: float | None = None
    correct: str = ""
    images: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    rises: list[Rise] = field(default_factory=list)
    failed: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]*", self.correct) or len(self.correct) != 2 * math.ceil(self.images / 8):
            raise UserError(f"correct has not two hexadecimal digits for every eight of {self.images} images")

    def hits(self) -> np.ndarray:
        """(images,) 1 for every validation image whose class was found, else 0."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.correct), dtype=np.uint8))
        return bits[: self.images].astype(np.int64)


def packed(hits: np.ndarray) -> str:
    """Booleans as hexadecimal digits, eight to a byte, the first in the highest bit."""
    return np.packbits(hits.astype(bool)).tobytes().hex()


@torch.no_grad()
def correct_images(network: nn.Module, task: Classification, device: torch.device) -> np.ndarray:
    """(images,) booleans: whose class is the likeliest one."""
    found = np.zeros(len(task.eval_set), dtype=bool)
    network.eval()
    batches = task.eval_batches()
    assert isinstance(batches, EvalLoader)
    for x, y, index in batches:
        found[index.numpy()] = (network(x.to(device)).argmax(1).cpu() == y).numpy()
    return found


def analysed_images(task: Classification) -> Tensor:
    """Some validation images, spread evenly over the set, preprocessed: (B, C, H, W)."""
    assert isinstance(task.eval_set, ImageSet)
    transform, count = eval_transform(task.preprocess), len(task.eval_set)
    chosen = min(ANALYSED, count)
    return torch.stack([transform(task.eval_set.image(i * count // chosen)) for i in range(chosen)])


# ---- attention span -------------------------------------------------------------------------------------------------


class _Distances:
    """Sums over images of the distances of one attention."""

    def __init__(self) -> None:
        self.mass = self.pixels = self.rows = self.even = 0.0
        self.pitch = 1.0

    def add(self, one: AttentionWeights, image_size: tuple[int, int]) -> None:
        assert one.query_positions is not None
        assert one.key_positions is not None
        assert one.query_size is not None
        assert one.key_size is not None
        weights = one.weights.double().abs().sum(2)  # over heads: (images, windows, queries, keys)
        queries, known_queries = _centres(one.query_positions, one.query_size, image_size)
        keys, known_keys = _centres(one.key_positions, one.key_size, image_size)
        distance = (queries[:, :, :, None] - keys[:, :, None]).square().sum(-1).sqrt().to(weights.device)
        known = (known_queries[:, :, :, None] & known_keys[:, :, None]).to(weights.device)
        weights = weights * known
        self.mass += float(weights.sum())
        self.pixels += float((weights * distance).sum())
        seen = weights > 0
        counts = seen.sum(3)
        self.even += float(((seen * distance).sum(3) / counts.clamp(min=1)).sum())
        self.rows += float((counts > 0).sum())
        self.pitch = math.sqrt(math.prod(image_size) / math.prod(one.query_size))


def _is_placed(one: AttentionWeights) -> bool:
    """True for weights that multiply values, between tokens whose places on the map are known."""
    places = (one.query_positions, one.key_positions, one.query_size, one.key_size)
    return one.values is not None and all(place is not None for place in places)


def _centres(places: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centres of tokens in pixels (..., 2), and which lie on the map at all (...)."""
    rows, columns = places.div(size[1], rounding_mode="floor"), places % size[1]
    pitch = [whole / count for whole, count in zip(image_size, size, strict=True)]
    return torch.stack(((rows + 0.5) * pitch[0], (columns + 0.5) * pitch[1]), -1).double(), places >= 0


def attention_spans(network: nn.Module, images: Tensor) -> list[Span]:
    """How far each attention of a network looks, first to last.

    The distance from the centre of the query's token to that of the attended token, weighted by attention (its
    magnitude where weights may be negative), over images, windows, heads and queries. Tokens on no map (padding, class
    tokens) do not count. Attentions whose tokens' places are not known, and weights that multiply no values, are left
    out.

    Args:
        network: any.
        images: preprocessed (B, C, H, W).
    """
    found: list[Span] = []
    size = (images.shape[2], images.shape[3])
    for name in attention_modules(network):
        sums: dict[str, _Distances] = {}
        with torch.inference_mode(), evaluating(network), captured(network, [name]) as maps:
            for batch in images.split(AT_ONCE):
                network(batch)
                for part, one in maps.items():
                    if _is_placed(one):
                        sums.setdefault(part, _Distances()).add(one, size)
        for part, one in sums.items():
            if one.mass > 0:
                pixels = one.pixels / one.mass
                even = one.even / max(one.rows, 1)
                stage = stage_of(f"{part}.")
                found.append(Span(part, stage, tokens=pixels / one.pitch, pixels=pixels, even_pixels=even))
    return found


# ---- spectrum -------------------------------------------------------------------------------------------------------


def stage_rises(network: nn.Module, images: Tensor) -> list[Rise]:
    """Spectrum of what leaves each stage; none where images or maps are not square, or there are no stages."""
    if images.shape[2] != images.shape[3]:
        return []
    try:
        blocks = blocks_of(network)
        last = {stage: name for name in blocks if (stage := stage_of(name)) is not None}
        if not last:
            return []
        measured = spectrum(network, images, layers=list(last.values()))
    except UserError:  # no blocks that are known by name, or maps that are not square
        return []
    values, errors = measured.rise()
    return [
        Rise(stage, side=len(measured.map_of(name)), relative=finite(value), error=finite(error))
        for (stage, name), value, error in zip(last.items(), values, errors, strict=True)
    ]


def finite(value: float | str) -> float | None:
    """A number; None where it is not finite, which JSON cannot say."""
    return float(value) if math.isfinite(float(value)) else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the known values; None where there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
