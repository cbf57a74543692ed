"""Retrieval of people: mAP and the cumulative match characteristic (CMC) under the rules of Market-1501."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.market1501 import JUNK
from ..errors import UserError

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
    figures = {"mAP": float(np.mean(precisions)), **ranks}
    return {**figures, "queries": len(precisions), "skipped": len(queries) - len(precisions)}
