"""Parts of a page about a network with a head: examples beside the truth, worst images, classes, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..analysis.explain import whole_view
from ..analysis.gradcam import gradcam
from ..analysis.overlay import painted
from ..analysis.scores import NotFound
from ..checkpoint.format import meta_of
from ..data.datasets.base import AnnotatedSet
from ..engine.evaluate import Evaluation
from ..errors import UserError
from ..metrics.base import evenly_spaced
from ..metrics.box_curves import GRID, box_curves
from ..metrics.coco import CocoMetrics
from ..metrics.panoptic import PanopticQuality, Segment
from ..metrics.retrieval import Gallery, ReidMetrics, ranking, similarity
from ..metrics.segmentation import Confusion, SemanticMetrics
from ..structures import Detections, PanopticSegments, Poses, Prediction, SegmentationMap
from ..tasks.keypoints import KeypointsInference
from ..utils.draw import draw_ranking
from ..utils.progress import bar
from .charts import Axis, Series, common_area, heat_map, line_chart
from .classification import MOST_DRAWN
from .html import Html, captioned, gallery, image, paragraph, short, table, tag

#: images that are predicted one by one to find the worst, evenly spread over the data
LOOKED_AT = 200
#: longest side of an example in pixels
LARGE = 400
#: score and overlap of boxes above which an object counts as found
SCORE, OVERLAP = 0.5, 0.5
#: distance of a keypoint, relative to the longer side of its person, up to which it counts as found
NEAR = 0.1
#: images of a ranking, and their size
RANKED, CROP = 6, (48, 96)


# ---- one image --------------------------------------------------------------------------------------------------


def quality(truth: Prediction, found: Prediction) -> float | None:
    """How good the prediction for one image is, from 0 to 1; None where there is nothing to find.

    Of boxes F1 of objects of the right class with an IoU of 0.5 and a score of 0.5; of masks of classes mIoU; of
    panoptic segments PQ; of keypoints the share of those annotated that are near their place. These rank the images of
    a page: the metrics of a data set are those of `metrics/`.
    """
    if isinstance(truth, Detections) and isinstance(found, Detections):
        return f1_of_boxes(truth, found)
    if isinstance(truth, SegmentationMap) and isinstance(found, SegmentationMap):
        return _mean_iou(truth, found)
    if isinstance(truth, PanopticSegments) and isinstance(found, PanopticSegments):
        return _panoptic_quality(truth, found)
    if isinstance(truth, Poses) and isinstance(found, Poses):
        return _near_keypoints(truth, found)
    return None


#: what `quality` is called, by task
QUALITY = {
    "detection": "F1 of objects at IoU 0.5 and score 0.5",
    "instance_segmentation": "F1 of boxes at IoU 0.5 and score 0.5",
    "semantic_segmentation": "mIoU of the image",
    "panoptic_segmentation": "PQ of the image",
    "keypoints": "share of keypoints nearer than a tenth of the person's longer side",
}


def f1_of_boxes(truth: Detections, found: Detections) -> float | None:
    """F1 of the objects of one image: matched greedily, best scores first, each annotated object once."""
    scores = np.ones(len(found.boxes)) if found.scores is None else np.asarray(found.scores)
    kept = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= SCORE]
    left, matched = set(range(len(truth.boxes))), 0
    for i in kept:
        same = [j for j in sorted(left) if truth.labels[j] == found.labels[i]]
        overlaps = [box_iou(truth.boxes[j], found.boxes[i]) for j in same]
        if overlaps and max(overlaps) >= OVERLAP:
            left.remove(same[int(np.argmax(overlaps))])
            matched += 1
    total = len(truth.boxes) + len(kept)
    return 2 * matched / total if total else None


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes, left, top, right, bottom."""
    common = common_area(one, other)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(common / (sum(areas) - common)) if common else 0.0


def _mean_iou(truth: SegmentationMap, found: SegmentationMap) -> float | None:
    counts = Confusion(list(truth.classes))
    counts.update(torch.from_numpy(np.asarray(found.indices)), torch.from_numpy(np.asarray(truth.indices)))
    try:
        return counts.compute()["mIoU"]
    except UserError:  # no pixel of a known class
        return None


def _panoptic_quality(truth: PanopticSegments, found: PanopticSegments) -> float | None:
    things = {segment["label"]: bool(segment["thing"]) for segment in (*truth.segments, *found.segments)}
    own, other = ([Segment(s["id"], s["label"]) for s in one.segments] for one in (found, truth))
    counts = PanopticQuality(things)
    counts.update(found.ids, own, truth=truth.ids, true=other, name="the image")
    try:
        return counts.compute()["PQ"]
    except UserError:  # no segment at all
        return None


def _near_keypoints(truth: Poses, found: Poses) -> float | None:
    near, total = 0, 0
    for true, own in zip(truth.poses, found.poses, strict=False):
        labelled = true[:, 2] > 0
        if labelled.any():
            side = max(np.ptp(true[labelled, 0]), np.ptp(true[labelled, 1]), 1.0)
            near += int((np.linalg.norm((true - own)[labelled, :2], axis=1) <= NEAR * side).sum())
            total += int(labelled.sum())
    return near / total if total else None


# ---- images of a data set ---------------------------------------------------------------------------------------


@dataclass
class Seen:
    """An image of a data set with its truth and what networks say.

    Attributes:
        number: of the image.
        name: of the image.
        original: the image.
        truth: its annotations.
        found: the prediction of each network.
    """

    number: int
    name: str
    original: Image.Image
    truth: Prediction
    found: list[Prediction]


def see(evaluations: Sequence[Evaluation], number: int) -> Seen:
    """Truth and predictions of networks of one task for one image of the first one's data."""
    images: AnnotatedSet = evaluations[0].images
    original, target = images[number]
    inferences = [_inference(one) for one in evaluations]
    truth, found = inferences[0].ground_truth(target), []
    with torch.no_grad():
        for one, inference in zip(evaluations, inferences, strict=True):
            found.append(_predicted(inference, one.network, original, target))
    return Seen(number, images.name(number), original, truth=truth, found=found)


def _inference(one: Evaluation) -> Any:
    assert one.task is not None
    return one.task.inference


def _predicted(inference: Any, network: nn.Module, original: Image.Image, target: Any) -> Prediction:
    """The prediction for an image; of keypoints for the annotated person."""
    device = next(network.parameters()).device
    if isinstance(inference, KeypointsInference):
        return inference.predict_boxes(network, original, boxes=[target["box"]], scores=[1.0], device=device)
    return inference.predict(network, [original], device)[0]


def examples_part(evaluation: Evaluation, task: str, examples: int) -> Html:
    """Images with their annotations and predictions: evenly spread ones, and the worst."""
    if not examples:
        return paragraph("No images are shown (--examples 0).", quiet=True)
    total = len(evaluation.images)
    looked = evenly_spaced(total, LOOKED_AT)
    scores: dict[int, float] = {}
    with bar("Images", len(looked) + 2 * examples) as advance:
        for number in looked:
            seen = see([evaluation], number)
            value = quality(seen.truth, seen.found[0])
            if value is not None:
                scores[number] = value
            advance()
        spread = [_shown(evaluation, number, scores, advance) for number in evenly_spaced(total, examples)]
        worst = sorted(scores, key=lambda number: (scores[number], number))[:examples]
        worsts = [_shown(evaluation, number, scores, advance) for number in worst]
    among = f"all {total:,} images" if len(looked) == total else f"{len(looked)} of {total:,} images, evenly spread"
    first = [paragraph("Annotations left, predictions right.", quiet=True), gallery(spread, wide=True)]
    told = f"Of {among}, least {QUALITY.get(task, 'quality')} first."
    return tag("div", first, [tag("h3", "Worst"), paragraph(told, quiet=True), gallery(worsts, wide=True)])


def _shown(evaluation: Evaluation, number: int, scores: dict[int, float], advance: Any) -> Html:
    seen = see([evaluation], number)
    advance()
    score = f"{scores[number]:.2f}" if number in scores else ""
    return beside(seen, [("prediction", score)])


def gradcam_part(network: nn.Module, evaluation: Evaluation, examples: int) -> Html:
    """Class activation maps of evenly spread images, each for the class the network is surest of."""
    if not examples:
        return paragraph("No images are shown (--examples 0).", quiet=True)
    meta, device = meta_of(network), next(network.parameters()).device
    figures, without = [], 0
    chosen = evenly_spaced(len(evaluation.images), examples)
    with bar("Class activation maps", len(chosen)) as advance:
        for number in chosen:
            name, (original, target) = evaluation.images.name(number), evaluation.images[number]
            if meta.task == "keypoints":  # of one person
                original = original.crop(tuple(round(float(side)) for side in target["box"]))
            view = whole_view(original, meta)
            try:
                found = gradcam(network, view.prepared[None].to(device))
            except NotFound:
                without += 1
                continue
            finally:
                advance()
            drawn = painted(view.image, found.enlarged[0], view.window)
            shown = image(drawn, f"class activation map, {name}", longest=LARGE)
            empty = "" if found.enlarged[0].any() else ", nothing speaks for it"
            figures.append(captioned(shown, f"for {found.captions()[0]}{empty}", f"layer {found.about['layer']}"))
    told = (
        "Where a layer speaks for what the network is surest of in the image (Grad-CAM): red most, blue not at all, "
        "each map by its own maximum."
    )
    none = f" Nothing was found in {without} of {len(chosen)} images." if without else ""
    return tag("div", paragraph(told + none, quiet=True), gallery(figures))


def beside(seen: Seen, named: Sequence[tuple[str, str]]) -> Html:
    """Truth and predictions of one image, each under its name."""
    drawn = [
        ("annotated", "", seen.truth),
        *((name, more, one) for (name, more), one in zip(named, seen.found, strict=True)),
    ]
    figures = []
    for name, more, one in drawn:
        shown = image(one.draw(seen.original), f"{seen.name}, {name}", longest=LARGE)
        figures.append(captioned(shown, ": ".join(filter(None, (name, one.summary()))), more))
    return tag("figure", tag("div", figures, class_="pair"), tag("figcaption", short(seen.name.rpartition("/")[2], 60)))


# ---- classes ----------------------------------------------------------------------------------------------------


def classes_part(metrics: dict[str, Any]) -> Html:
    """What is known of each class."""
    rows = metrics.get("per_class") or []
    if not rows:
        return paragraph("This task has no metrics of classes.", quiet=True)
    names = [name for name in rows[0] if name != "category"]
    body = [[row[name] for name in names] for row in rows]
    return table(names, body, caption="classes", digits=3, tall=len(rows) > 30)


def pixels_part(metrics: SemanticMetrics) -> Html | None:
    """The confusion matrix of pixels; None where classes are too many to draw it."""
    counts, classes = metrics.confusion.counts.double(), metrics.confusion.classes
    if len(classes) > MOST_DRAWN:
        return None
    shares = (100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
    return heat_map(
        shares,
        "Pixels by true and predicted class",
        rows=classes,
        columns=[*classes, "none"],
        labels=("true", "predicted"),
        texts=lambda i, j: f"{shares[i][j]:.0f}",
        note="Numbers and colours are shares of the true class, in %.",
    )


def curves_part(metrics: CocoMetrics) -> Html | None:
    """Precision over recall and F1 over the score of boxes; None where there is no object to find."""
    curves = box_curves(metrics.data.content, metrics.results)
    if curves is None:
        return None

    def drawn(title: str, values: np.ndarray, *, over: str, named: str, note: str) -> Html:
        x, y = Axis(over, 0.0, 1.0), Axis(named, 0.0, 1.0)
        return line_chart(
            [Series("", GRID.tolist(), values.tolist())], title, x=x, y=y, note=f"At an IoU of 0.5, {note}"
        )

    first = drawn(
        "Precision over recall of boxes",
        curves.precision,
        over="recall",
        named="precision",
        note=f"interpolated, mean over the classes that occur; the area is AP50, {curves.precision.mean():.3f}.",
    )
    second = drawn(
        "F1 over the score from which boxes are taken",
        curves.f1,
        over="score",
        named="F1",
        note=f"mean over the classes that occur; highest at a score of {curves.best_score:.2f}: {curves.f1.max():.3f}.",
    )
    return tag("div", first, second, class_="charts")


# ---- re-identification ------------------------------------------------------------------------------------------


def rankings_part(metrics: ReidMetrics, examples: int) -> Html:
    """Queries with the images of the gallery most like them: evenly spread ones, and the worst."""
    if not examples:
        return paragraph("No images are shown (--examples 0).", quiet=True)
    queries, gallery_, numbers = metrics.queries_and_gallery()
    scores = similarity(queries, gallery_)
    orders = [ranking(queries, gallery_, query, scores[query]) for query in range(len(queries))]
    precisions = {query: _precision(orders[query], queries.ids[query], gallery_) for query in range(len(queries))}
    known = {query: value for query, value in precisions.items() if value is not None}

    def drawn(query: int) -> Html:
        cells = [
            (
                metrics.data.image(numbers[len(queries) + int(j)]).resize(CROP),
                f"{scores[query, j]:.2f}",
                bool(gallery_.ids[j] == queries.ids[query]),
            )
            for j in orders[query][:RANKED]
        ]
        sheet = draw_ranking(metrics.data.image(numbers[query]).resize(CROP), cells)
        found = "no match by another camera" if query not in known else f"average precision {known[query]:.3f}"
        name = metrics.data.name(numbers[query])
        return captioned(image(sheet, name, longest=LARGE), found, name.rpartition("/")[2])

    worst = sorted(known, key=lambda query: (known[query], query))[:examples]
    told = "The query, then the images of the gallery most like it; green: the same person, red: another one."
    spread = gallery([drawn(query) for query in evenly_spaced(len(queries), examples)], wide=True)
    worsts = gallery([drawn(query) for query in worst], wide=True)
    return tag("div", paragraph(told, quiet=True), spread, [tag("h3", "Worst"), worsts])


def _precision(order: np.ndarray, identity: int, gallery_: Gallery) -> float | None:
    """Average precision of one query; None without a match."""
    places = np.flatnonzero(gallery_.ids[order] == identity)
    return float(np.mean(np.arange(1, len(places) + 1) / (places + 1))) if len(places) else None
