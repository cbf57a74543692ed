"""The page about one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.load import pick_device
from ..config.data import DataConfig
from ..errors import UserError
from ..metrics.coco import CocoMetrics
from ..metrics.retrieval import ReidMetrics
from ..metrics.segmentation import SemanticMetrics
from ..version import __version__
from . import classification, dense, parts
from .costs import Costs, costs_of
from .html import Section, check_page, page, write_page
from .run import read_run
from .spectra import spectra_part
from .subject import Subject, open_subject

#: largest number of images of one kind on a page
MOST_EXAMPLES = 64
#: images of one kind, where nothing is said
EXAMPLES = 8
#: timed calls of each form of a network
ROUNDS = 15


def report(
    run: str | Path,
    data: DataConfig | None = None,
    *,
    output: str | Path,
    evaluate: bool = True,
    examples: int | None = None,
    rounds: int = ROUNDS,
    batch_size: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write one self-contained HTML page about a training run.

    Args:
        run: run directory.
        data: data set, of which the validation split is measured; by default that of the run.
        output: file of the page, .html; only an unchanged page of vitrail is replaced.
        evaluate: measure the weights and show images; false = the metrics that the run stored, in seconds.
        examples: images of each kind (worst, best, of a cell, with class activation maps), 0 to 64; None = 8.
        rounds: timed calls of the network; 0 = latency is not measured.
        batch_size: images in one forward pass; None as in vitrail evaluate.
        device: "auto", "cpu", "cuda", "cuda:1", ...

    Returns:
        The numbers on the page: run, finished, metrics (as `evaluate` returns them), measured, costs, notes, output.

    Raises:
        UserError: no run directory, an option outside what is allowed, named data that cannot be used, or an output
            that must not be replaced.
    """
    check_effect(evaluate, data=data, batch_size=batch_size, examples=examples)
    examples = EXAMPLES if examples is None else examples
    check_counts(examples, rounds)
    given = read_run(run)
    file = check_page(output)
    if given.weights is None and data is not None:
        raise UserError(f"{run} has saved no weights yet: there is nothing to measure on --data.")
    subject = open_subject(str(run))
    subject.metrics = dict(given.metrics)
    if subject.network is None:
        pass
    elif not evaluate:
        subject.missing.append("The weights were not measured for this page: the metrics are those the run stored.")
    else:
        subject.measure(data, batch_size, device)
    costs = None
    if subject.network is not None:
        costs = costs_of([subject.network], rounds, pick_device(device))[0]
    title = f"{subject.task.replace('_', ' ')}: {Path(run).resolve().name}"
    intro = parts.head_of_page(subject, costs)
    text = page(title, sections_of(subject, costs, examples=examples, device=device), intro=intro, footer=_footer(run))
    write_page(file, text)
    return {
        "run": str(run),
        "finished": bool(given.summary),
        "measured": subject.measured,
        "metrics": subject.metrics,
        "costs": None if costs is None else costs.to_dict(),
        "epochs": given.rows,
        "notes": parts.remarks(subject),
        "output": str(file),
    }


def _footer(run: str | Path) -> str:
    return f"Written by vitrail {__version__} (vitrail report {run})."


def check_counts(examples: int, rounds: int) -> None:
    """Raise `UserError` for numbers outside what is allowed."""
    for name, value, most in (("examples", examples, MOST_EXAMPLES), ("rounds", rounds, 10_000)):
        if not 0 <= value <= most:
            raise UserError(f"--{name} {value} is not allowed; give a number from 0 to {most}.")


def check_effect(evaluate: bool, **given: Any) -> None:
    """Refuse options, None where they were not given, that have no effect where nothing is measured."""
    for name in (name for name, value in given.items() if value is not None and not evaluate):
        raise UserError(f"--{name} has no effect with --evaluate false: leave it out.")


def sections_of(subject: Subject, costs: Costs | None, *, examples: int, device: str) -> list[Section]:
    """The parts of the page, in order; those without content are left out."""
    found: list[Section] = []
    run = subject.run
    assert run is not None
    found.append(Section("Curves", parts.curves([(subject.source, run)])))
    if subject.metrics:
        found.append(Section("Metrics", parts.metrics_table(subject.metrics)))
    if (reported := parts.reported_part(subject)) is not None:
        found.append(Section("Printed results", reported))
    found += _of_task(subject, examples)
    if costs is not None:
        found.append(Section("Costs", parts.costs_table([("this network", costs)], f"on {pick_device(device)}")))
    found.append(Section("Recipe", parts.recipe_part(run)))
    found.append(Section("Data", parts.data_part(run.config, run)))
    found.append(Section("Environment", parts.environment_part([("run", run)])))
    return found


def _of_task(subject: Subject, examples: int) -> list[Section]:
    if subject.task == "classification":
        return _of_classifier(subject, examples)
    return _of_head(subject, examples)


def _of_classifier(subject: Subject, examples: int) -> list[Section]:
    found: list[Section] = []
    seen, network = subject.classified, subject.network
    if seen is not None and network is not None:
        found.append(Section("Confusion matrix", classification.confusion_part(seen, examples)))
    if subject.metrics.get("per_class"):
        found.append(Section("Classes", classification.classes_part(subject.metrics)))
    if seen is not None and network is not None:
        found.append(Section("Images", classification.predictions_part(seen, examples)))
        found.append(Section("Where it looks", classification.gradcam_part(network, seen, examples)))
    if subject.metrics.get("calibration"):
        found.append(Section("Calibration", classification.calibration_part([("", subject.metrics)])))
    if seen is not None and (drawn := spectra_part([("", subject)])) is not None:
        found.append(Section("Spectra", drawn))
    return found


def _of_head(subject: Subject, examples: int) -> list[Section]:
    found: list[Section] = []
    if subject.metrics.get("per_class"):
        found.append(Section("Classes", dense.classes_part(subject.metrics)))
    if subject.evaluation is None:
        return found
    metrics = subject.evaluation.metrics
    if isinstance(metrics, SemanticMetrics) and (drawn := dense.pixels_part(metrics)) is not None:
        found.append(Section("Confusion matrix", drawn))
    if isinstance(metrics, CocoMetrics) and (drawn := dense.curves_part(metrics)) is not None:
        found.append(Section("Precision and recall", drawn))
    if isinstance(metrics, ReidMetrics):
        found.append(Section("Rankings", dense.rankings_part(metrics, examples)))
    else:
        found.append(Section("Examples", dense.examples_part(subject.evaluation, subject.task, examples)))
        if subject.network is not None:
            found.append(Section("Where it looks", dense.gradcam_part(subject.network, subject.evaluation, examples)))
    if (drawn := spectra_part([("", subject)])) is not None:
        found.append(Section("Spectra", drawn))
    return found
