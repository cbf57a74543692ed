"""The work of a laboratory's processes: each takes the next free run, trains and measures it."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.load import open_network, pick_device
from ..checkpoint.run_dir import CONFIG, read_log
from ..config.train import TrainConfig
from ..engine.trainer import Diverged, fit
from ..errors import Interrupted
from ..utils.locks import LOCK
from .checks import open_task
from .claims import Claim
from .measures import Measures, analysed_images, attention_spans, correct_images, packed, stage_rises
from .options import run_config
from .plan import Job, LabFolder, Plan

#: seconds between two looks for a free run
POLL = 2.0
#: what launchers tell their processes; the runs know nothing of it, as each is trained by one process
LAUNCHED = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID"),
)

Note = Callable[[str], None]


class LostClaim(Exception):
    """Another process took this one for dead and goes on with its run."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hides from the library that a launcher has started this process beside others."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def launched_as() -> int:
    """Number of this process among those of its launcher on this machine; 0 without one."""
    with contextlib.suppress(ValueError):
        return int(os.environ.get("LOCAL_RANK", "0"))
    return 0


def own_device(device: str, number: int) -> str:
    """The device of a process: of several GPUs each process takes another one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{number % count}" if device in ("auto", "cuda") and count > 1 else device


def work(plan: Plan, folder: LabFolder, recipe: TrainConfig, *, wait: bool, note: Note) -> bool:
    """Train and measure what no other process does, until nothing is left.

    Args:
        plan: of the laboratory.
        folder: its own.
        recipe: the plan's, with this process's places and device.
        wait: for the runs of other processes; else return when none is free.
        note: called with a sentence on each run.

    Returns:
        True if all runs are done.

    Raises:
        Interrupted: by Ctrl-C or SIGTERM, after the state of the run was saved.
        UserError: a run cannot be trained here: memory, disk, data.
    """
    jobs, told = plan.jobs(), ""
    if not all(map(folder.is_done, jobs)):
        note(f"{len(jobs)} trainings: {len(plan.candidates)} candidates with {plan.options.seeds} seed(s) each")
    while left := [job for job in jobs if not folder.is_done(job)]:
        if take_one(plan, folder, recipe, left, note=note):
            continue
        if not wait:
            return False
        waiting = _waiting(folder, left)
        if waiting != told:
            note(waiting)
            told = waiting
        time.sleep(POLL)
    return True


def _waiting(folder: LabFolder, left: list[Job]) -> str:
    holders = {job.name: folder.claims.holder(job.name) for job in left}
    who = [f"{name} by process {one.pid} on {one.host}" for name, one in holders.items() if one is not None]
    return f"waiting for {len(left)} run{'s' if len(left) > 1 else ''} of other processes: {', '.join(who)}"


def _still(count: int, seconds: float) -> str:
    """How long runs may take that are left, when each takes as long as the last one."""
    minutes = math.ceil(count * seconds / 60)
    amount = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} hours"
    return f"{count} run{'s' if count > 1 else ''} left, about {amount} at the pace of this one by one process"


def take_one(plan: Plan, folder: LabFolder, recipe: TrainConfig, left: list[Job], note: Note) -> bool:
    """Train and measure the first run that no other process works on; False if there is none."""
    for job in left:
        claim = folder.claims.take(job.name)
        if claim is None:
            continue
        with claim:
            if folder.is_done(job):  # by another process, since it was looked for
                return True
            number = plan.jobs().index(job) + 1
            note(f"run {number} of {len(plan.jobs())}: {job.candidate.name}, seed {job.seed}")
            began = time.perf_counter()
            try:
                measures = train_and_measure(plan, folder, recipe, job, claim=claim)
            except LostClaim:
                note(f"{job.candidate.name}, seed {job.seed}: another process goes on with this run")
                return True
            except Interrupted as error:
                raise Interrupted(
                    f"Stopped in the run of {job.candidate.name}, seed {job.seed}; its state is saved: the same "
                    f"command goes on (--output {folder.path})."
                ) from error
            folder.write_measures(job, measures)
        folder.claims.drop(job.name)
        result = measures.failed or f"{measures.top1:.2f} % of {measures.images:,} validation images"
        note(f"run {number} of {len(plan.jobs())}: {job.candidate.name}, seed {job.seed}: {result}")
        if len(left) > 1:
            note(_still(len(left) - 1, time.perf_counter() - began))
        return True
    return False


def config_of(folder: LabFolder, recipe: TrainConfig, job: Job) -> TrainConfig:
    """The recipe of one run, which goes on where it was."""
    path = folder.run_path(job)
    return run_config(
        recipe,
        model=job.candidate.model,
        model_options=job.candidate.model_options,
        seed=job.seed,
        output=str(path),
        resume=(path / CONFIG).is_file(),
    )


def train_and_measure(plan: Plan, folder: LabFolder, recipe: TrainConfig, job: Job, claim: Claim) -> Measures:
    """Train a run to its end, from where it was, and measure it.

    Raises:
        LostClaim: another process has taken over.
    """
    config, path = config_of(folder, recipe, job), folder.run_path(job)
    if claim.elsewhere:  # the dead process cannot release the lock that its machine holds
        (path / LOCK).unlink(missing_ok=True)

    def on_step(step: int, loss: float) -> None:
        if claim.lost:
            raise LostClaim

    try:
        summary = fit(config, on_step)
    except Diverged as error:
        return Measures(seed=job.seed, failed=str(error), history=history_of(path))
    return measured(config, path, seconds=summary["seconds"])


def measured(config: TrainConfig, path: Path, seconds: float) -> Measures:
    """What is measured of the weights of a run's last epoch.

    Args:
        config: of the run.
        path: of its directory.
        seconds: of its training.
    """
    task, device = open_task(config), pick_device(config.device)
    network = open_network(str(path)).to(device)
    hits = correct_images(network, task, device)
    images = analysed_images(task).to(device)
    return Measures(
        seed=config.seed,
        top1=100 * float(hits.mean()),
        correct=packed(hits),
        images=len(hits),
        seconds=seconds,
        history=history_of(path),
        spans=attention_spans(network, images),
        rises=stage_rises(network, images),
    )


def history_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv, as numbers; empty if it has none."""
    return list(read_log(path))
