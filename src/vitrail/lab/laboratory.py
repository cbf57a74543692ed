"""`vitrail lab`: mixers in one network at one budget, trained with one recipe and several seeds, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.train import TrainConfig
from ..data.fingerprint import fingerprint
from ..errors import UserError, unknown
from ..flops.profile import profile
from ..utils.files import read_json, write_whole
from ..utils.output_folder import OutputFolder
from ..utils.progress import bar
from .ablations import FAMILIES, ablations
from .budget import Scaled, cost, scaled
from .candidates import ALL, DEFAULT_MIXERS, Candidate, all_mixers, candidates
from .checks import check_memory, open_task, try_step
from .costs import ROUNDS, measure_costs
from .measures import Measures
from .options import LabConfig, check_recipe, run_config
from .own import import_mixer
from .page import lab_page
from .plan import PAGE, RESULTS, TABLES, LabFolder, Plan, PlannedCandidate, folders_of, with_places
from .results import results
from .table import markdown
from .work import POLL, alone, launched_as, own_device, work

#: relative difference from the budget beyond which a comparison is refused; a smaller one is told
FARTHEST = 0.25


def run_lab(
    options: LabConfig | None = None,
    recipe: TrainConfig | None = None,
    *,
    output: str | Path,
    wait: bool = True,
    places: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compare token mixers: train every candidate with several seeds, and measure what differs.

    Any number of processes may work on one folder at the same time, and a laboratory that was killed goes on where it
    was: call it again in the same way, or with `output` alone.

    Args:
        options: what is compared; None = the laboratory in `output` goes on with its own options and recipe.
        recipe: how all candidates are trained; None = the defaults, which train on digits.
        output: folder of the laboratory.
        wait: when no run is free, wait for those of other processes; else return what is done so far.
        places: where `options` is None, values of options that may differ between processes, by dotted name: "device",
            "checkpoint_every", "data.root", "data.workers".
        note: called with a sentence on each run.

    Returns:
        The content of lab.json: rows, comparisons, costs, plan. "complete" is False while runs, or costs, are missing.

    Raises:
        UserError: options that cannot work or that differ from those the laboratory was begun with; raised before
            anything is trained.
        Interrupted: stopped by Ctrl-C or SIGTERM, after the state was saved.
    """
    if options is None and recipe is not None:
        raise UserError("recipe has no effect without options: the laboratory goes on with its own; leave it out.")
    if options is not None and places:
        raise UserError("places has no effect with options: say it in recipe.")
    folder, number = LabFolder(output), launched_as()
    with alone():
        folder.check()
        if options is None:
            plan, recipe = _known_plan(folder, places or {})
        else:
            recipe = recipe or TrainConfig()
            plan = _plan(folder, options, recipe)
        recipe = replace(recipe, device=own_device(recipe.device, number))
        if work(plan, folder, recipe, wait=wait, note=note):
            document = _finish(plan, folder, recipe, wait=wait, note=note)
            if document is not None:
                return document
        return results(plan, folder, None)


# ---- plan -----------------------------------------------------------------------------------------------------------


def _known_plan(folder: LabFolder, places: Mapping[str, Any]) -> tuple[Plan, TrainConfig]:
    """The plan that is in the folder, and its recipe with this process's places."""
    plan = folder.plan()
    if plan is None:
        raise UserError(f"There is no laboratory in {folder.path} to go on with: say with --mixers what it compares.")
    own = [name for name in plan.options.mixers if ":" in name]
    if own:
        raise UserError(
            f"--output alone cannot go on with {own[0]}: no class is imported because a file names it; give all "
            f"options again, with --mixers {','.join(plan.options.mixers)}."
        )
    recipe = with_places(plan.recipe, places)
    _check_unchanged(plan, recipe, folder)
    return plan, recipe


def _plan(folder: LabFolder, options: LabConfig, recipe: TrainConfig) -> Plan:
    """The plan of the folder: the one that is there, checked against what is asked for, or a new one."""
    options.check()
    check_recipe(recipe)
    known = folder.plan()
    if known is None:
        made = _new_plan(options, recipe)
        folder.begin()
        known = _written(folder, made)
        if known is made:
            return made
    known.check_same(options, recipe, folder.path)
    if options.host == "plain":
        for name in options.mixers:
            if name != ALL:
                import_mixer(name)
    _check_unchanged(known, recipe, folder)
    return known


def _check_unchanged(plan: Plan, recipe: TrainConfig, folder: LabFolder) -> None:
    """Refuse to go on with other libraries or other data than the plan's."""
    plan.check_versions(folder.path)
    first = plan.candidates[0]
    task = open_task(run_config(recipe, model=first.model, model_options=first.model_options))
    plan.check_data(fingerprint(task.train_set), fingerprint(task.eval_set), folder.path)


def _written(folder: LabFolder, made: Plan) -> Plan:
    """The plan that was written: `made`, or another process's that was faster."""
    while True:
        if (known := folder.plan()) is not None:
            return known
        claim = folder.claims.take("plan")
        if claim is not None:
            with claim:
                if (known := folder.plan()) is None:
                    folder.write_plan(made)
            folder.claims.drop("plan")
            return made if known is None else known
        time.sleep(POLL / 10)


def _candidates(options: LabConfig, image_size: tuple[int, int] | None = None) -> list[Candidate]:
    """What is compared, before it is scaled.

    Args:
        options: of the laboratory.
        image_size: (height, width), to which a family's windows are fitted; None = not known yet.

    Raises:
        UserError: an unknown host, mixer, ablation or option.
    """
    everything = options.mixers == [ALL]
    if options.host == "plain":
        named = all_mixers() if everything else options.mixers or DEFAULT_MIXERS
        return candidates(named, options.host_options, options.mixer_options)
    if options.host not in FAMILIES:
        raise UserError(unknown("host", options.host, ["plain", *FAMILIES]))
    known = {one.name: one for one in ablations(options.host, image_size)}
    if everything or not options.mixers:
        return list(known.values())
    for name in options.mixers:
        if name not in known:
            raise UserError(unknown(f"ablation of {options.host}", name, known))
    return [known[name] for name in options.mixers]


def _new_plan(options: LabConfig, recipe: TrainConfig) -> Plan:
    """Scale the candidates to the budget, and check that each can be trained here.

    Raises:
        UserError: data, mixers, a budget or a memory that do not fit.
    """
    found = _candidates(options)
    if len(found) < 2:
        raise UserError(f"--mixers {found[0].name} is a single candidate: name two or more to compare.")
    task = open_task(run_config(recipe, model=found[0].model, model_options=found[0].model_options))
    size, classes = task.preprocess.image_size, len(task.classes)
    found = _candidates(options, size)
    setting: dict[str, Any] = {"equal": options.equal, "image_size": size, "num_classes": classes}
    planned = []
    with bar("Scaling", len(found)) as advance:
        budget = options.budget or cost(found[0], **setting)
        for one, name in zip(found, folders_of([one.name for one in found]), strict=True):
            at_budget = scaled(one, budget=budget, **setting)
            if abs(at_budget.error) > FARTHEST:
                raise UserError(f"--budget {budget:,.6g} cannot be reached: {at_budget.note}")
            planned.append(_planned(at_budget, name, size, classes, recipe=recipe))
            advance()
    return Plan(
        options=options,
        recipe=recipe,
        budget=float(budget),
        image_size=size,
        candidates=planned,
        training=fingerprint(task.train_set),
        validation=fingerprint(task.eval_set),
    )


def _planned(
    at_budget: Scaled, folder: str, size: tuple[int, int], classes: int, recipe: TrainConfig
) -> PlannedCandidate:
    """A scaled candidate that was counted and tried."""
    one = at_budget.candidate
    network = one.build(classes)
    counted = profile(network, (3, *size))
    check_memory(one.name, lambda: one.build(classes), size, recipe)
    try_step(one.name, network, size, classes)
    return PlannedCandidate(
        **one.to_dict(),
        folder=folder,
        params=counted.params,
        macs=counted.macs,
        reached=at_budget.reached,
        remark="" if at_budget.within else at_budget.note,
    )


# ---- end ------------------------------------------------------------------------------------------------------------


def _finish(
    plan: Plan, folder: LabFolder, recipe: TrainConfig, *, wait: bool, note: Callable[[str], None]
) -> dict[str, Any] | None:
    """Measure costs and write the results in the first process that comes here; others wait for it, or get None."""
    while True:
        if (document := _stored(plan, folder)) is not None:
            return document
        claim = folder.claims.take("results")
        if claim is not None:
            with claim:
                document = _stored(plan, folder) or _write_results(plan, folder, recipe, note)
            folder.claims.drop("results")
            return document
        if not wait:
            return None
        time.sleep(POLL)


def _stored(plan: Plan, folder: LabFolder) -> dict[str, Any] | None:
    """The results, if they were written and are those of the measures that are there."""
    file = folder.path / RESULTS
    if not file.is_file() or not OutputFolder(folder.path, "--output").wrote(RESULTS):
        return None
    document = read_json(file)
    if not isinstance(document, dict) or not document.get("complete"):
        return None
    known = {
        (row["folder"], one["seed"]): (one["top1"], one["seconds"]) for row in document["rows"] for one in row["runs"]
    }
    there = {(job.candidate.folder, job.seed): folder.measures(job) for job in plan.jobs()}
    return document if known == {key: (one.top1, one.seconds) for key, one in there.items() if one} else None


def _write_results(plan: Plan, folder: LabFolder, recipe: TrainConfig, note: Callable[[str], None]) -> dict[str, Any]:
    runs = {}
    for job in plan.jobs():
        measures = folder.measures(job)
        if isinstance(measures, Measures) and measures.failed is None:
            runs.setdefault(job.candidate.name, folder.run_path(job))
    note("measuring latency and memory of all candidates")
    with bar("Latency and memory", ROUNDS + len(runs)) as advance:
        costs = measure_costs(runs, plan.image_size, recipe.device, advance) if runs else None
    document = results(plan, folder, costs)
    place = OutputFolder(folder.path, "--output")
    with place.adding() as fresh:
        write_whole(fresh / RESULTS, json.dumps(document, indent=1) + "\n")
        write_whole(fresh / PAGE, lab_page(document))
        write_whole(fresh / TABLES, markdown(document))
    return document
