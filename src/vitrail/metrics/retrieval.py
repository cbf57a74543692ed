"""Retrieval of persons: mAP and the cumulative match characteristic (CMC) under the rules of Market-1501."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.datasets.market1501 import JUNK, ReidSet
from ..errors import UserError
from ..utils.draw import draw_ranking
from .base import Metrics, evenly_spaced

RANKS = (1, 5, 10)


@dataclass
class Gallery:
    """Embedded crops.

    Attributes:
        features: (N, D) float.
        ids: (N,) identity of each.
        cameras: (N,) camera of each.
    """

    features: np.ndarray
    ids: np.ndarray
    cameras: np.ndarray

    def __post_init__(self) -> None:
        shapes = (self.features.shape, self.ids.shape, self.cameras.shape)
        if self.features.ndim != 2 or not all(shape == (len(self.features),) for shape in shapes[1:]):
            raise UserError(f"Features, identities and cameras must be (N, D), (N,) and (N,), not {shapes}.")
        if not (np.issubdtype(self.features.dtype, np.floating) and np.isfinite(self.features).all()):
            raise UserError("Features must be finite floating-point numbers.")
        if not all(np.issubdtype(values.dtype, np.integer) for values in (self.ids, self.cameras)):
            raise UserError("Identities and cameras must be whole numbers.")

    def __len__(self) -> int:
        return len(self.ids)


def similarity(queries: Gallery, gallery: Gallery) -> np.ndarray:
    """Cosine of every query with every crop of the gallery, (queries, gallery), computed in float64."""
    a, b = (g.features.astype(np.float64) for g in (queries, gallery))
    a, b = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (a, b))
    return a @ b.T


def ranking(queries: Gallery, gallery: Gallery, query: int, scores: np.ndarray) -> np.ndarray:
    """Indices of the gallery for one query, likeliest first, without junk and without its own identity's own camera."""
    same_view = (gallery.ids == queries.ids[query]) & (gallery.cameras == queries.cameras[query])
    order = np.argsort(-scores, kind="stable")
    return order[~(same_view | (gallery.ids == JUNK))[order]]


def retrieval(queries: Gallery, gallery: Gallery) -> dict[str, Any]:
    """Single-query mAP and CMC, in [0, 1].

    Average precision is the mean of the precisions at each hit. Queries whose identity no other camera has seen are
    left out and counted as such.

    Returns:
        mAP, rank1, rank5, rank10, queries (that count) and skipped.

    Raises:
        UserError: no query counts, or the features have different lengths.
    """
    if queries.features.shape[1] != gallery.features.shape[1]:
        raise UserError(
            f"Features of queries have {queries.features.shape[1]} numbers, those of the gallery "
            f"{gallery.features.shape[1]}."
        )
    scores = similarity(queries, gallery)
    precisions, firsts = [], []
    for query in range(len(queries)):
        order = ranking(queries, gallery, query, scores[query])
        places = np.flatnonzero(gallery.ids[order] == queries.ids[query])
        if len(places) == 0:
            continue
        precisions.append(np.mean(np.arange(1, len(places) + 1) / (places + 1)))
        firsts.append(places[0])
    if not precisions:
        raise UserError("No query has a match from another camera: there is nothing to measure on.")
    first = np.array(firsts)
    ranks = {f"rank{k}": float((first < k).mean()) for k in RANKS}
    metrics = {"mAP": float(np.mean(precisions)), **ranks}
    return {**metrics, "queries": len(precisions), "skipped": len(queries) - len(precisions)}


#: queries whose rankings are drawn, and images in each
DRAWN, RANKED = 8, 10


class ReidMetrics(Metrics):
    """Market-1501's metrics, from the embeddings of queries and gallery.

    Args:
        data: the images, from which rankings are drawn.
    """

    def __init__(self, data: ReidSet):
        self.data = data
        self.batches: list[dict[str, Tensor]] = []

    def update(self, output: Tensor, batch: Sequence[Tensor]) -> None:
        """Take in the embeddings (B, D) of one batch of `ReidInference.batches`."""
        pids, cameras, queries = batch[1].cpu().unbind(1)
        labels = {"pids": pids, "cameras": cameras, "queries": queries, "numbers": batch[2].cpu()}
        self.batches.append({"features": output.detach().float().cpu(), **labels})

    def state(self) -> dict[str, Tensor]:
        """features (N, D), and pids, cameras, queries (1 of a query) and numbers (N,), in the order of the numbers."""
        if not self.batches:
            return {"numbers": torch.empty(0, dtype=torch.int64)}
        joined = {name: torch.cat([batch[name] for batch in self.batches]) for name in self.batches[0]}
        order = joined["numbers"].argsort()
        return {name: values[order] for name, values in joined.items()}

    def load(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Replace what was taken in by that of all processes, some of which may have had no image."""
        self.batches = [state for state in states if len(state["numbers"])]

    def compute(self) -> dict[str, Any]:
        """mAP, rank1, rank5 and rank10 in [0, 1], queries that count, those skipped, and the number of images."""
        queries, gallery, _ = self.queries_and_gallery()
        return {**retrieval(queries, gallery), "images": len(queries) + len(gallery)}

    def report(self, folder: Path) -> None:
        """Write `ranking_1.jpg` and so on: a few queries, each before the images of the gallery most like it.

        Junk, and images of the query's identity by its own camera, are left out, as they are of the metrics; a
        right match has a green frame, a wrong one a red one, and each its cosine with the query.
        """
        queries, gallery, numbers = self.queries_and_gallery()
        chosen = evenly_spaced(len(queries), DRAWN)
        asked = Gallery(queries.features[chosen], queries.ids[chosen], queries.cameras[chosen])
        scores = similarity(asked, gallery)
        for i, query in enumerate(chosen):
            ranked = ranking(asked, gallery, i, scores[i])[:RANKED]
            cells = [
                (
                    self.data.image(numbers[len(queries) + j]),
                    f"{scores[i, j]:.2f}",
                    bool(gallery.ids[j] == asked.ids[i]),
                )
                for j in ranked
            ]
            draw_ranking(self.data.image(numbers[query]), cells).save(folder / f"ranking_{i + 1}.jpg", quality=90)

    def queries_and_gallery(self) -> tuple[Gallery, Gallery, list[int]]:
        """Queries, gallery, and the numbers of the images of the one and then the other."""
        state = {name: values.cpu().numpy() for name, values in self.state().items()}
        if not len(state["numbers"]):
            raise UserError("There are no validation images to measure on.")
        asked = state["queries"] == 1
        queries, gallery = (
            Gallery(state["features"][own], state["pids"][own], state["cameras"][own]) for own in (asked, ~asked)
        )
        return queries, gallery, [*state["numbers"][asked].tolist(), *state["numbers"][~asked].tolist()]
