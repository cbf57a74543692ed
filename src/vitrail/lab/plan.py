"""The plan of a laboratory: what is trained, written once; all its processes follow it.

A laboratory's folder:

.vitrail-lab   marks the folder as a laboratory's
plan.json      candidates as scaled, recipe, seeds, fingerprints of the data, versions
claims/        which process works on what
runs/NAME/seed-K/        the run directory of each training
measures/NAME.seed-K.json  what was measured of it; written last, so that it marks the run as done
lab.json, lab.html, lab.md  the results
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.train import TrainConfig
from ..data.fingerprint import Fingerprint, difference
from ..engine.option_rules import with_option
from ..errors import UserError
from ..utils.environment import versions
from ..utils.files import read_json, saving, shortened, write_whole
from ..utils.plain import from_dict, to_dict
from .claims import Claims
from .measures import Measures
from .options import LabConfig, changed_option, check_recipe, flat, shared_options

#: version of the plan's format
FORMAT = 1
MARKER, PLAN = ".vitrail-lab", "plan.json"
RESULTS, PAGE, TABLES = "lab.json", "lab.html", "lab.md"
CLAIMS, RUNS, MEASURES = "claims", "runs", "measures"


@dataclass
class PlannedCandidate:
    """A candidate as it is trained.

    Attributes:
        name: of its mixer or ablation.
        folder: its name in file names.
        model: of `timm.create_model`.
        model_options: of its constructor, scaled to the budget.
        params: parameters.
        macs: multiply-adds for an image.
        reached: of the budget, in its units.
        remark: why it is not within the tolerance of the budget; empty where it is.
    """

    name: str
    folder: str
    model: str
    model_options: dict[str, Any]
    params: int
    macs: int
    reached: float
    remark: str = ""


@dataclass(frozen=True)
class Job:
    """One training: a candidate and a seed."""

    candidate: PlannedCandidate
    seed: int

    @property
    def name(self) -> str:
        """Of its claim and of its file of measurements."""
        return f"{self.candidate.folder}.seed-{self.seed}"


@dataclass
class Plan:
    """What a laboratory trains.

    Attributes:
        options: of the laboratory.
        recipe: all options of the runs.
        budget: parameters, multiply-adds or milliseconds, by `options.equal`.
        image_size: (height, width) of the images.
        candidates: in the order of `mixers`.
        training: fingerprint of the training images.
        validation: of the validation images.
        versions: of the libraries.
        format: version of this format.
    """

    options: LabConfig
    recipe: TrainConfig
    budget: float
    image_size: tuple[int, int]
    candidates: list[PlannedCandidate]
    training: Fingerprint
    validation: Fingerprint
    versions: dict[str, str] = field(default_factory=versions)
    format: int = FORMAT

    def jobs(self) -> list[Job]:
        """All trainings: the first seed of all candidates, then the second, ... so that a part of them is fair."""
        return [Job(candidate, seed) for seed in range(self.options.seeds) for candidate in self.candidates]

    def check_same(self, options: LabConfig, recipe: TrainConfig, where: Path) -> None:
        """Refuse other options than the plan's.

        Raises:
            UserError: naming the first option that differs.
        """
        pairs = [
            (flat(to_dict(self.options)), flat(to_dict(options))),
            (shared_options(self.recipe), shared_options(recipe)),
        ]
        for stored, given in pairs:
            if (name := changed_option(stored, given)) is not None:
                raise UserError(
                    f"The laboratory in {where} was begun with --{name} {shortened(stored.get(name))}, not "
                    f"{shortened(given[name])}: go on with its own options (give --output alone), or choose another "
                    "--output."
                )

    def check_versions(self, where: Path) -> None:
        """Refuse to mix the results of different versions of libraries in one table.

        Raises:
            UserError: naming the first library that differs.
        """
        now = versions()
        for name in self.versions:
            if now.get(name) != self.versions[name]:
                raise UserError(
                    f"The laboratory in {where} was begun with {name} {shortened(self.versions[name])[1:-1]}, and this "
                    f"is {now.get(name, 'none')}: one table comes from one version; go on with that one, or choose "
                    "another --output."
                )

    def check_data(self, training: Fingerprint, validation: Fingerprint, where: Path) -> None:
        """Refuse other data than the plan's.

        Raises:
            UserError: with the first difference.
        """
        for split, before, now in (
            ("training", self.training, training),
            ("validation", self.validation, validation),
        ):
            if (change := difference(before, now)) is not None:
                raise UserError(
                    f"The laboratory in {where} goes on with the same data, but its {split} images have changed: "
                    f"{change}. Bring them back, or choose another --output."
                )


class LabFolder:
    """The folder of a laboratory.

    Args:
        path: made with the plan.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.claims = Claims(self.path / CLAIMS)

    def check(self) -> None:
        """Refuse a folder that is not a laboratory's and holds something; changes nothing.

        Raises:
            UserError: saying why.
        """
        if not os.fspath(self.path).strip():
            raise UserError("--output is empty: name a folder for the laboratory.")
        try:
            present = os.listdir(self.path) if os.path.lexists(self.path) else []
        except NotADirectoryError as error:
            raise UserError(f"--output {self.path} is a file; name a folder.") from error
        except (OSError, ValueError) as error:
            raise UserError(f"--output {self.path}: {getattr(error, 'strerror', None) or error}.") from error
        if present and MARKER not in present:
            raise UserError(
                f"--output {self.path} holds {shortened(min(present))[1:-1]} and is no laboratory's folder: choose a "
                "new or an empty one."
            )
        own = [self.path / name for name in (MARKER, PLAN, CLAIMS, RUNS, MEASURES)]
        for place in itertools.chain(own, *((self.path / RUNS).glob(pattern) for pattern in ("*", "*/*"))):
            if place.is_symlink():
                raise UserError(
                    f"{place} is a link: what a laboratory writes stays in its own folder, so put what it "
                    "leads to in its place or choose another --output."
                )

    def begin(self) -> None:
        """Make the folder and mark it as a laboratory's.

        Raises:
            UserError: it cannot be written.
        """
        with saving(self.path, "free some space or choose another --output."):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / MARKER).touch()
            for name in (CLAIMS, RUNS, MEASURES):
                (self.path / name).mkdir(exist_ok=True)

    def plan(self) -> Plan | None:
        """The plan; None if there is none yet.

        Raises:
            UserError: it is damaged or of another version's format.
        """
        file = self.path / PLAN
        if not file.is_file():
            return None
        values = read_json(file)
        if isinstance(values, dict) and values.get("format") != FORMAT:
            raise UserError(
                f"{file} was written by another version of vitrail (format {shortened(values.get('format'))}, this "
                f"version reads {FORMAT}): choose another --output."
            )
        try:
            plan = from_dict(Plan, values)
            _check_read(plan)
            return plan
        except UserError as error:
            raise UserError(f"{file} is damaged, so that the laboratory cannot go on: {error}") from error

    def write_plan(self, plan: Plan) -> None:
        """Write the plan, atomically."""
        with saving(self.path):
            write_whole(self.path / PLAN, json.dumps(to_dict(plan), indent=1) + "\n")

    def run_path(self, job: Job) -> Path:
        """The run directory of a training."""
        return self.path / RUNS / job.candidate.folder / f"seed-{job.seed}"

    def measures(self, job: Job) -> Measures | None:
        """What was measured of a training; None as long as it is not done.

        Raises:
            UserError: the file is damaged.
        """
        file = self.path / MEASURES / f"{job.name}.json"
        if not file.is_file():
            return None
        try:
            return from_dict(Measures, read_json(file))
        except UserError as error:
            raise UserError(f"{file} is damaged ({error}): delete it, and it is measured again.") from error

    def write_measures(self, job: Job, measures: Measures) -> None:
        """Write what was measured of a training, which marks it as done; atomically."""
        with saving(self.path):
            write_whole(self.path / MEASURES / f"{job.name}.json", json.dumps(to_dict(measures)) + "\n")

    def is_done(self, job: Job) -> bool:
        """True if a training was measured."""
        return (self.path / MEASURES / f"{job.name}.json").is_file()


def _check_read(plan: Plan) -> None:
    """Refuse a plan that would write outside its folder, or that says of runs what a laboratory does not.

    Raises:
        UserError: saying what.
    """
    names = [one.name for one in plan.candidates]
    if not names or [one.folder for one in plan.candidates] != list(folders_of(names)):
        raise UserError("the folders of its candidates are not those that their names give.")
    plan.options.check()
    check_recipe(plan.recipe)


def folders_of(names: Sequence[str]) -> Iterator[str]:
    """A name for file names for each candidate, all different: letters, digits, `_`, `-` and `+`."""
    used: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_+-]", "_", name)[:60] or "_"
        folder, number = plain, 2
        while folder.lower() in used:  # some file systems do not tell capitals apart
            folder, number = f"{plain}-{number}", number + 1
        used.add(folder.lower())
        yield folder


def with_places(recipe: TrainConfig, places: Mapping[str, Any]) -> TrainConfig:
    """A recipe with other values of options that may differ between processes (`MAY_DIFFER`), by dotted name."""
    for name, value in places.items():
        recipe = with_option(recipe, name, value)
    return recipe
