"""The results of a laboratory as one document of plain values: a row a candidate, and tests between neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..metrics.significance import LEVEL, Interval, holm, interval, paired_t, sign_flips
from ..utils.plain import to_dict
from .costs import Costs
from .measures import Measures, mean_of
from .plan import LabFolder, Plan, PlannedCandidate

#: what the numbers are, in the document and on the page
ABOUT = {
    "top1": (
        "Accuracy in % on the validation images with the weights of the last epoch, which no validation image has "
        f"chosen: mean over seeds with its {LEVEL:.0%} interval by Student's t. The interval is about other seeds with "
        "the same images."
    ),
    "p_seeds": (
        "Paired t test over seeds: would other seeds (initial weights, order and augmentation of the images) give a "
        "difference of this sign, too? Runs of one seed see the same images in the same order with the same "
        "augmentation."
    ),
    "p_images": (
        "Exact sign-flip test over validation images: would other images like these give a difference of this sign, "
        "too, with these trained networks? With one seed it is McNemar's exact test."
    ),
    "holm": "Both p are adjusted by Holm's method for the number of neighbours that are compared.",
    "span": (
        "Mean distance between a query and the tokens it attends to, weighted by attention, on 64 validation images; "
        "mean over all attentions of the network. In pixels of the input, and in tokens of each attention's own map. "
        "Of networks without attention, or whose tokens' places are not known, there is none."
    ),
    "spectrum": (
        "Log amplitude of the highest frequency on the half diagonal relative to frequency 0 of the map that leaves "
        "each stage, on the same images: below 0, high frequencies are weaker than the mean."
    ),
    "latency": (
        "Median time of one image in fp32 in interleaved rounds of all candidates in one process, after the trainings."
    ),
    "memory": "Peak memory that one image adds to the loaded network, in a process of its own.",
    "seconds": "Mean time of a training, on whatever else the machine did.",
}


@dataclass(frozen=True)
class Comparison:
    """A candidate and the next one in the ranking.

    Attributes:
        better, worse: names.
        difference: of the accuracies in percentage points, seed by seed.
        p_seeds, p_images: see `ABOUT`; None where they are not defined.
        images_won, images_lost: validation images that the better one gets right in more runs, or in fewer.
        p_seeds_holm, p_images_holm: adjusted.
    """

    better: str
    worse: str
    difference: Interval
    p_seeds: float | None
    p_images: float | None
    images_won: int
    images_lost: int
    p_seeds_holm: float | None = None
    p_images_holm: float | None = None


def compare(better: tuple[str, Sequence[Measures]], worse: tuple[str, Sequence[Measures]]) -> Comparison | None:
    """Paired tests of two candidates over the seeds that both have; None without such a seed."""
    (name, own), (other_name, others) = better, worse
    by_seed = {one.seed: one for one in others if one.top1 is not None}
    pairs = [(one, by_seed[one.seed]) for one in own if one.top1 is not None and one.seed in by_seed]
    if not pairs:
        return None
    gains = [float(a.top1 or 0) - float(b.top1 or 0) for a, b in pairs]
    images = sum((a.hits() - b.hits() for a, b in pairs), np.zeros(pairs[0][0].images, dtype=np.int64))
    return Comparison(
        better=name,
        worse=other_name,
        difference=interval(gains),
        p_seeds=paired_t(gains),
        p_images=sign_flips(images),
        images_won=int((images > 0).sum()),
        images_lost=int((images < 0).sum()),
    )


def results(plan: Plan, folder: LabFolder, costs: Costs | None) -> dict[str, Any]:
    """The document of `lab.json`: what is done so far, or all of it."""
    found = {
        candidate.name: [one for job in plan.jobs() if job.candidate is candidate and (one := folder.measures(job))]
        for candidate in plan.candidates
    }
    rows = [_row(plan, candidate, found[candidate.name], costs) for candidate in plan.candidates]
    rows.sort(key=lambda row: -(row["top1"]["mean"] if row["top1"] else -1.0))
    ranked = [row["name"] for row in rows if row["top1"]]
    comparisons = [compare((a, found[a]), (b, found[b])) for a, b in pairwise(ranked)]
    done = sum(len(one) for one in found.values())
    return {
        "vitrail": plan.versions.get("vitrail"),
        "complete": done == len(plan.jobs()) and (costs is not None or not ranked),
        "runs_done": done,
        "runs": len(plan.jobs()),
        "equal": plan.options.equal,
        "budget": plan.budget,
        "seeds": plan.options.seeds,
        "host": plan.options.host,
        "data": plan.recipe.data.title,
        "training_images": plan.training.count,
        "validation_images": plan.validation.count,
        "classes": len(plan.validation.classes),
        "image_size": list(plan.image_size),
        "about": ABOUT,
        "rows": rows,
        "comparisons": _adjusted([one for one in comparisons if one is not None]),
        "costs": None if costs is None else {"machine": costs.machine, "rounds": costs.rounds},
        "plan": to_dict(plan),
    }


def _adjusted(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    seeds, images = holm([one.p_seeds for one in comparisons]), holm([one.p_images for one in comparisons])
    return [
        {**asdict(one), "p_seeds_holm": by_seeds, "p_images_holm": by_images}
        for one, by_seeds, by_images in zip(comparisons, seeds, images, strict=True)
    ]


def _row(plan: Plan, candidate: PlannedCandidate, runs: Sequence[Measures], costs: Costs | None) -> dict[str, Any]:
    """One candidate's row."""
    values = [one.top1 for one in runs if one.top1 is not None]
    spans = [span for one in runs for span in one.spans]
    stages = sorted({rise.stage for one in runs for rise in one.rises})
    attending = sorted({span.stage for span in spans if span.stage is not None})
    return {
        "name": candidate.name,
        "folder": candidate.folder,
        "model": candidate.model,
        "model_options": candidate.model_options,
        "params": candidate.params,
        "macs": candidate.macs,
        "reached": candidate.reached,
        "remark": candidate.remark,
        "top1": asdict(interval(values)) if values else None,
        "latency_ms": costs.latency_ms.get(candidate.name) if costs else None,
        "latency_quartiles_ms": costs.quartiles_ms.get(candidate.name) if costs else None,
        "memory_mb": costs.memory_mb.get(candidate.name) if costs else None,
        "span_pixels": mean_of([span.pixels for span in spans]),
        "span_tokens": mean_of([span.tokens for span in spans]),
        "even_span_pixels": mean_of([span.even_pixels for span in spans]),
        "span_by_stage": [
            {"stage": stage, "pixels": mean_of([span.pixels for span in spans if span.stage == stage])}
            for stage in attending
        ],
        "spectrum": [
            {"stage": stage, **_spectrum([r for one in runs for r in one.rises if r.stage == stage])}
            for stage in stages
        ],
        "seconds": mean_of([one.seconds for one in runs if one.failed is None]),
        "runs": [
            {
                "seed": one.seed,
                "top1": one.top1,
                "seconds": one.seconds,
                "failed": one.failed,
                "folder": f"runs/{candidate.folder}/seed-{one.seed}",
                "history": one.history,
            }
            for one in runs
        ],
    }


def _spectrum(rises: Sequence[Any]) -> dict[str, Any]:
    known = [one.relative for one in rises if one.relative is not None]
    return {
        "side": rises[0].side,
        "relative": mean_of(known),
        "deviation": interval(known).deviation if known else None,
    }
