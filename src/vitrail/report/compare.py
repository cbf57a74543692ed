"""The page that shows several runs, weights or models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.load import open_network, pick_device
from ..checkpoint.sources import TIMM
from ..config.data import DataConfig
from ..engine.option_rules import names, option
from ..errors import UserError
from ..metrics.base import evenly_spaced
from ..metrics.significance import sign_flips
from ..utils.progress import bar
from . import classification, dense, parts
from .classified import Classified
from .costs import Costs, costs_of
from .html import (
    Html,
    Section,
    captioned,
    check_page,
    gallery,
    image,
    note,
    page,
    paragraph,
    short,
    table,
    tag,
    write_page,
)
from .report import EXAMPLES, ROUNDS, check_counts, check_effect
from .run import Run
from .spectra import spectra_part
from .subject import Subject, data_key, is_trained, open_subject, short_names

#: most networks on a page
MOST = 12


def compare(
    sources: str | Path | Sequence[str | Path],
    data: DataConfig | None = None,
    *,
    output: str | Path,
    evaluate: bool = True,
    examples: int | None = None,
    rounds: int = ROUNDS,
    batch_size: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write one self-contained HTML page that shows runs, weights and models side by side.

    Args:
        sources: two or more run directories, weights, timm:MODEL, random:MODEL or names of ours; of names only the
            costs are compared, and so of timm:MODEL without `data`.
        data: data set on which all trained ones are measured; by default each run on its own data.
        output: file of the page, .html; only an unchanged page of vitrail is replaced.
        evaluate: measure the weights and show images; false = the metrics that runs stored, in seconds.
        examples: images on which the networks disagree, 0 to 64; None = 8.
        rounds: timed calls of each network, in turns; 0 = latency is not measured.
        batch_size: images in one forward pass; None as in vitrail evaluate.
        device: "auto", "cpu", "cuda", "cuda:1", ...

    Returns:
        The numbers on the page: networks (source, task, model, metrics, data, costs), same_data, notes, output.

    Raises:
        UserError: fewer than two or the same twice, something that is not there, an option outside what is allowed,
            named data that cannot be used, or an output that must not be replaced.
    """
    given = [str(one) for one in ([sources] if isinstance(sources, (str, Path)) else sources)]
    check_effect(evaluate, data=data, batch_size=batch_size, examples=examples)
    asked, examples = examples is not None, EXAMPLES if examples is None else examples
    check_counts(examples, rounds)
    _check_sources(given)
    file = check_page(output, [one for one in given if Path(one).is_file()])
    subjects = [_opened(one, data) for one in given]
    _check_examples(subjects, data, asked)
    if evaluate:
        for subject in subjects:
            _measure(subject, data, batch_size=batch_size, device=device)
    networks = [subject.network for subject in subjects if subject.network is not None]
    costs = iter(costs_of(networks, rounds, pick_device(device)))
    compared = Compared(
        subjects, short_names(given), [None if one.network is None else next(costs) for one in subjects]
    )
    text = page(
        f"Comparison of {', '.join(compared.names)}",
        compared.sections(examples, str(pick_device(device))),
        intro=tag("div", compared.overview(), note(*compared.notes())),
    )
    write_page(file, text)
    return compared.to_dict() | {"output": str(file)}


def _check_sources(given: Sequence[str]) -> None:
    if not 2 <= len(given) <= MOST:
        raise UserError(f"compare shows 2 to {MOST} runs or models beside each other, not {len(given)}.")
    places = [str(Path(one).resolve()) if Path(one).exists() else one for one in given]
    twice = next((one for i, one in enumerate(given) if places[i] in places[:i]), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice: name different runs or models.")


def _check_examples(subjects: Sequence[Subject], data: DataConfig | None, asked: bool) -> None:
    """Refuse `--examples` where no two networks of one task are measured."""
    measured = [one for one in subjects if one.network is not None and _missing(one, data) is None]
    if asked and (len(measured) < 2 or len({one.task for one in subjects}) > 1):
        raise UserError(
            "--examples has no effect: images are shown where networks of one task are measured, two or more; leave it "
            "out."
        )


def _missing(subject: Subject, data: DataConfig | None) -> str | None:
    """Why a network is not measured; None = it is."""
    if not is_trained(subject.source):
        return "Only its costs are compared: the weights are fresh."
    if data is None and subject.run is None:
        return "Only its costs are compared: it is no run, which would know its data (--data)."
    return None


def _opened(source: str, data: DataConfig | None) -> Subject:
    subject = open_subject(source)
    if data is not None and source.startswith(TIMM):
        subject.network = open_network(source)  # with timm's weights
    return subject


def _measure(subject: Subject, data: DataConfig | None, *, batch_size: int | None, device: str) -> None:
    """Measure what can be; what is missing says why the others are not."""
    if subject.network is None:
        return
    if (sentence := _missing(subject, data)) is not None:
        subject.missing.append(sentence)
    else:
        subject.measure(data, batch_size, device)


class Compared:
    """Networks side by side.

    Args:
        subjects: what is compared.
        names: of each on the page.
        costs: of each; None of a run without weights.

    Attributes:
        task: the task of all; None = they have several.
        same_data: whether all that were measured were measured on the same images; None = fewer than two were.
        measured: number of those that were measured now.
    """

    def __init__(self, subjects: Sequence[Subject], names: Sequence[str], costs: Sequence[Costs | None]):
        self.subjects, self.names, self.costs = list(subjects), list(names), list(costs)
        tasks = {one.task for one in subjects}
        self.task = tasks.pop() if len(tasks) == 1 else None
        self.keys = [None if one.evaluation is None else data_key(one.evaluation) for one in subjects]
        self.measured = [i for i, key in enumerate(self.keys) if key is not None]
        known = {self.keys[i] for i in self.measured}
        self.same_data = len(known) == 1 if len(self.measured) > 1 else None

    # ---- what is known ------------------------------------------------------------------------------------------

    @property
    def comparable(self) -> list[int]:
        """Numbers of the networks whose results on single images can be compared."""
        return self.measured if self.task is not None and self.same_data else []

    def notes(self) -> list[str]:
        """What a reader must know before the numbers."""
        found = []
        if self.task is None:
            tasks = ", ".join(f"{name}: {one.task}" for name, one in zip(self.names, self.subjects, strict=True))
            found.append(f"The tasks differ ({tasks}): only what they have in common is compared.")
        if self.same_data is False:
            found.append("Measured on different data: the metrics stand side by side and are not ranked.")
        with_metrics = [one for one in self.subjects if one.metrics]
        if self.task is not None and len(with_metrics) > max(1, len(self.measured)):
            found.append(
                "Not all were measured for this page: whether the stored metrics are of the same data is not known."
            )
        for name, one in zip(self.names, self.subjects, strict=True):
            found += [f"{name}: {sentence}" for sentence in parts.remarks(one)]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        networks = []
        for one, name, key, costs in zip(self.subjects, self.names, self.keys, self.costs, strict=True):
            meta = one.meta
            networks.append(
                {
                    "source": one.source,
                    "name": name,
                    "task": one.task,
                    "model": None if meta is None else meta.model,
                    "measured": one.measured,
                    "data": key,
                    "metrics": one.metrics,
                    "costs": None if costs is None else costs.to_dict(),
                }
            )
        pairs = [
            {"one": self.names[a], "other": self.names[b], **agreement(left, right)}
            for a, b, left, right in self._pairs()
        ]
        return {"networks": networks, "same_data": self.same_data, "pairs": pairs, "notes": self.notes()}

    def _pairs(self) -> list[tuple[int, int, Classified, Classified]]:
        """All pairs of classifiers that saw the same images."""
        seen = [(i, one) for i in self.comparable if (one := self.subjects[i].classified) is not None]
        return [(a, b, left, right) for (a, left), (b, right) in combinations(seen, 2)]

    # ---- the page -----------------------------------------------------------------------------------------------

    def overview(self) -> Html:
        """A row a network: task, model, metrics shown first, costs."""
        tasks = list(dict.fromkeys(one.task for one in self.subjects))
        wanted = [
            name
            for task in tasks
            for name in parts.HEADLINES.get(task, ())
            if any(name in one.metrics for one in self.subjects if one.task == task)
        ]
        wanted = list(dict.fromkeys(wanted))
        rows = []
        for name, one, costs in zip(self.names, self.subjects, self.costs, strict=True):
            model = one.meta.model if one.meta else one.run.config.model if one.run else ""
            values = [one.metrics.get(metric) for metric in wanted]
            cost = [None, None, None] if costs is None else [costs.params / 1e6, costs.macs / 1e9, _milliseconds(costs)]
            rows.append([name, one.task.replace("_", " "), model, *values, *cost])
        head = ["network", "task", "model", *(_with_unit(metric) for metric in wanted)]
        digits = [0, 0, 0, *(2 if metric in parts.IN_PERCENT else 4 for metric in wanted), 3, 3, 2]
        return table(
            [*head, "parameters, M", "multiply-adds, G", "latency, ms"], rows, caption="overview", digits=digits
        )

    def sections(self, examples: int, device: str) -> list[Section]:
        """The parts of the page; those without content are left out."""
        found: list[Section] = []
        runs: list[tuple[str, Run]] = [
            (name, one.run) for name, one in zip(self.names, self.subjects, strict=True) if one.run is not None
        ]
        if self.task is not None:
            if any(run.rows for _, run in runs):
                found.append(Section("Curves", parts.curves(runs)))
            if any(one.metrics for one in self.subjects):
                found.append(Section("Metrics", self._metrics()))
            if len(self._with_classes()) > 1:
                found.append(Section("Classes", self._classes()))
            if len(self.comparable) > 1:
                found += self._on_same_images(examples)
            calibrated = [(n, one.metrics) for n, one in self._named() if one.metrics.get("calibration")]
            if calibrated:
                found.append(Section("Calibration", classification.calibration_part(calibrated)))
            measured = [(self.names[i], self.subjects[i]) for i in self.comparable]
            if len(measured) > 1 and (spectra := spectra_part(measured)) is not None:
                found.append(Section("Spectra", spectra))
        costs = [(name, one) for name, one in zip(self.names, self.costs, strict=True) if one is not None]
        if costs:
            found.append(Section("Costs", parts.costs_table(costs, f"on {device}")))
        if runs:
            found.append(Section("Recipes", _recipes(runs)))
        found.append(Section("Environment", parts.environment_part(runs)))
        return found

    def _named(self) -> list[tuple[str, Subject]]:
        return list(zip(self.names, self.subjects, strict=True))

    def _metrics(self) -> Html:
        """All metrics, a column a network."""
        named = [(name, parts.plain_metrics(one.metrics)) for name, one in self._named() if one.metrics]
        wanted = list(dict.fromkeys(metric for _, values in named for metric in values))
        rows = [[metric, *(values.get(metric) for _, values in named)] for metric in wanted]
        keys = [self.keys[i] for i, one in enumerate(self.subjects) if one.metrics]
        data = ", ".join(
            f"{name} {key[:12] if key else 'not known'}" for (name, _), key in zip(named, keys, strict=True)
        )
        head = ["metric", *(name for name, _ in named)]
        told = paragraph(f"Fingerprints of the measured data: {data}.", quiet=True)
        return tag("div", table(head, rows, caption="metrics", digits=4), told)

    def _with_classes(self) -> list[tuple[str, dict[str, Any], str]]:
        """Names and rows by class of the networks that have them, and the metric that is compared."""
        found = []
        for name, one in self._named():
            rows = one.metrics.get("per_class") or []
            if rows:
                metric = next(key for key in rows[0] if key not in ("class", "category"))
                found.append((name, {row["class"]: row[metric] for row in rows}, metric))
        return found

    def _classes(self) -> Html:
        """The first metric of each class, and how far the networks lie apart, where the data are the same."""
        named = self._with_classes()
        classes = list(dict.fromkeys(name for _, values, _ in named for name in values))
        ranked = self.same_data is True
        rows = []
        for one in classes:
            values = [own.get(one) for _, own, _ in named]
            known = [value for value in values if value is not None]
            apart = max(known) - min(known) if ranked and len(known) > 1 else None
            rows.append([one, *values, *([apart] if ranked else [])])
        if ranked:
            rows.sort(key=lambda row: -(row[-1] or 0.0))
        head = ["class", *(f"{name}: {metric}" for name, _, metric in named), *(["apart"] if ranked else [])]
        digits = 1 if self.task == "classification" else 3
        return table(head, rows, caption="classes", digits=digits, tall=len(rows) > 30)

    def _on_same_images(self, examples: int) -> list[Section]:
        if self.task == "classification":
            return [Section("Agreement", self._agreement()), Section("Disagreements", self._disagreements(examples))]
        if self.task == "reid" or not examples:
            return []
        return [Section("Examples", self._examples(examples))]

    def _agreement(self) -> Html:
        """How often both, one or none of two classifiers are right, and whether that is chance."""
        rows = []
        for a, b, left, right in self._pairs():
            found = agreement(left, right)
            counts = [found[name] for name in ("both", "only_one", "only_other", "none")]
            rows.append([self.names[a], self.names[b], *counts, found["same"], found["p"]])
        told = (
            "p: chance of images at least so unevenly divided between those that only the first has right and those "
            "that only the second has, if both were equally good (exact McNemar test). It says nothing of other seeds "
            "or data."
        )
        head = ["first", "second", "both right", "only the first", "only the second", "both wrong", "same answer", "p"]
        return tag("div", table(head, rows, caption="agreement", digits=4), paragraph(told, quiet=True))

    def _disagreements(self, examples: int) -> Html:
        """Images on which the classifiers give different answers, one of them the right one first."""
        seen = [(self.names[i], self.subjects[i].classified) for i in self.comparable]
        named = [(name, one) for name, one in seen if one is not None]
        answers = np.array([[one.found_name(i) for i in range(len(one.truth))] for _, one in named], dtype=object)
        truth = np.array([named[0][1].true_name(i) for i in range(answers.shape[1])], dtype=object)
        differ = (answers != answers[0]).any(0)
        right = (answers == truth).any(0)
        # the surest wrong answer first: where the networks differ most clearly
        sure = np.max([np.where(row != truth, one.best, 0) for row, (_, one) in zip(answers, named, strict=True)], 0)
        order = sorted(np.flatnonzero(differ).tolist(), key=lambda i: (not right[i], -sure[i], i))
        told = f"{int(differ.sum()):,} of {len(truth):,} images have different answers."
        first = named[0][1]
        if not first.can_be_shown or not examples:
            return paragraph(told, " No images are shown.")
        figures = []
        for place in order[:examples]:
            lines = [f"{name}: {one.found_name(place)} {100 * one.best[place]:.0f} %" for name, one in named]
            shown = image(first.image(place), first.name(place), longest=classification.LARGE)
            figures.append(captioned(shown, f"true: {truth[place]}", *lines))
        return tag("div", paragraph(told), gallery(figures))

    def _examples(self, examples: int) -> Html:
        """Annotations and every network's prediction for the same images."""
        evaluations = [one for i in self.comparable if (one := self.subjects[i].evaluation) is not None]
        figures = []
        chosen = evenly_spaced(len(evaluations[0].images), examples)
        with bar("Images", len(chosen)) as advance:
            for number in chosen:
                seen = dense.see(evaluations, number)
                scores = [dense.quality(seen.truth, found) for found in seen.found]
                labels = [
                    (self.names[i], "" if score is None else f"{score:.2f}")
                    for i, score in zip(self.comparable, scores, strict=True)
                ]
                figures.append(dense.beside(seen, labels))
                advance()
        told = f"Numbers are the {dense.QUALITY.get(self.task or '', 'quality')}."
        return tag("div", paragraph(told, quiet=True), gallery(figures, wide=True))


def agreement(one: Classified, other: Classified) -> dict[str, Any]:
    """How two classifiers' answers to the same images agree; p of McNemar's exact test, two-sided."""
    mine, theirs = one.found == one.truth, other.found == other.truth
    first, second = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    same = sum(one.found_name(i) == other.found_name(i) for i in range(len(one.found)))
    return {
        "both": int((mine & theirs).sum()),
        "only_one": first,
        "only_other": second,
        "none": int((~mine & ~theirs).sum()),
        "same": same,
        "p": sign_flips(mine.astype(int) - theirs.astype(int)),
    }


def _milliseconds(costs: Costs) -> float | None:
    return None if costs.eager is None or costs.eager.refused is not None else 1e3 * costs.eager.median


def _with_unit(metric: str) -> str:
    return f"{parts.label(metric)}, %" if metric in parts.IN_PERCENT else parts.label(metric)


def _recipes(runs: Sequence[tuple[str, Run]]) -> Html:
    """The options in which the recipes differ, and each in full."""
    plain = [_flat(run) for _, run in runs]
    differ = [name for name in plain[0] if any(one.get(name) != plain[0][name] for one in plain)]
    rows = [[name, *(short(str(one.get(name)), 60) for one in plain)] for name in differ]
    told = table(["option", *(name for name, _ in runs)], rows, caption="recipes") if rows else None
    same = paragraph("The recipes are the same.", quiet=True) if len(runs) > 1 and not rows else None
    full = [tag("div", tag("h3", name), parts.recipe_part(run)) for name, run in runs]
    return tag("div", told if len(runs) > 1 else None, same, full)


def _flat(run: Run) -> dict[str, Any]:
    """Every value of a recipe by its dotted name."""
    return {name: option(run.config, name) for name in names()}
