"""Make every deliberate mistake once and see which test catches it: `python tests/mutations/run.py [FAMILY ...]`.

Each mistake is made in a temporary copy of the sources; the real ones are not touched. Real data sets are hidden from
the tests, so that what they need is in the repository. Exit 0 only if a test catches every mistake.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mutation_list import FAMILIES, ROOT, Misfit, Mutation, read
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

LIMIT = 600  # seconds that the tests of one mistake may take
#: a mistake that ends in one of these is no program any more
BROKEN = ("SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError")
TESTS_FAILED = 1  # pytest's exit status
STRANGER = 99  # ours: the tests did not run on the copy

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch
#: a server that has imported what takes long forks a process for the tests of each mistake
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "hypothesis", "torch", "torchvision", "timm", "fvcore.nn"])


@dataclass(frozen=True)
class Outcome:
    """What came of one mistake.

    Attributes:
        state: "caught", "SURVIVED" or "INVALID" (the mistake cannot be made, or is no program).
        by: the test that failed first; of an invalid one the reason.
        error: what that test said.
    """

    state: str
    by: str
    error: str
    seconds: float


def copy_tree(folder: Path) -> None:
    """What the tests need: sources, tests, the reference forms among the benchmarks, and pytest's settings."""
    for name in ("src", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tmp").mkdir()


def child(folder: Path, tests: tuple[str, ...], with_data: bool) -> None:
    """Run the tests of a copy in a process of its own; what they say goes to the copy's `said.txt`."""
    output = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    if not with_data:
        os.environ.pop("VITRAIL_TEST_DATA", None)
    paths = [str(folder / "src"), str(folder / "tests" / "mutations")]
    sys.path[:0] = paths
    # for what the tests start
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")]))
    os.environ |= {"TMPDIR": str(folder / "tmp"), "COLUMNS": "1000"}
    tempfile.tempdir = None
    import pytest

    arguments = ["-x", "-q", "-rfE", "--tb=no", "-W", "ignore", "-o", "addopts=", "-m", "not slow and not gpu"]
    status = pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "unshrunk", *tests])
    package = sys.modules.get("vitrail")
    if package is not None and not Path(str(package.__file__)).is_relative_to(folder):
        print(f"the tests imported {package.__file__}")
        status = STRANGER
    sys.stdout.flush()
    os._exit(int(status))


def judge(status: int, said: str) -> tuple[str, str, str]:
    """State, test and error of an `Outcome` from pytest's exit status and what it printed."""
    if status == 0:
        return "SURVIVED", "", ""
    first = re.search(r"^FAILED (.*?)(?: - (.*))?$", said, re.MULTILINE)
    if status != TESTS_FAILED or first is None:
        return "INVALID", "the tests do not start", said[-500:]
    error = (first[2] or "").strip()
    if error.startswith(BROKEN):
        return "INVALID", f"no program: {error}", ""
    return "caught", first[1], error


def run_tests(mutation: Mutation | None, tests: tuple[str, ...], with_data: bool) -> Outcome:
    """Run the tests in a copy with one mistake, or with none."""
    start = time.monotonic()

    def outcome(state: str, by: str = "", error: str = "") -> Outcome:
        return Outcome(state, by, error, round(time.monotonic() - start, 1))

    with tempfile.TemporaryDirectory(prefix="vitrail-mutation-") as name:
        folder = Path(name).resolve()
        copy_tree(folder)
        if mutation is not None:
            target = folder / "src" / "vitrail" / mutation.file
            try:
                target.write_text(mutation.applied(target.read_text(encoding="utf-8")), encoding="utf-8")
            except Misfit as misfit:
                return outcome("INVALID", str(misfit))
        process = CONTEXT.Process(target=child, args=(folder, tests, with_data), daemon=True)
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
            return outcome("INVALID", f"no test failed within {LIMIT} s")
        said = (folder / "said.txt").read_text(encoding="utf-8")
    return outcome(*judge(process.exitcode, said))


def baseline(mutations: list[Mutation], with_data: bool, advance: Callable[[str], None]) -> None:
    """Exit unless all the tests named pass without a mistake: else a failure would prove nothing."""
    for family in dict.fromkeys(mutation.family for mutation in mutations):
        advance(f"{family}, no mistake")
        tests = dict.fromkeys(test for m in mutations if m.family == family for test in m.tests)
        clean = run_tests(None, tuple(tests), with_data)
        if clean.state != "SURVIVED":
            sys.exit(f"{family}: without any mistake: {clean.by} {clean.error}")


def run_all(mutations: list[Mutation], with_data: bool) -> Iterator[tuple[Mutation, Outcome]]:
    """Every mistake with what came of it, behind a progress bar on stderr."""
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(mutations))
        baseline(mutations, with_data, lambda label: progress.update(task, description=label))
        for mutation in mutations:
            progress.update(task, description=f"{mutation.family}/{mutation.id}")
            outcome = run_tests(mutation, mutation.tests, with_data)
            if outcome.state != "caught":
                progress.console.print(f"{mutation.family}/{mutation.id}: {outcome.state} {outcome.by}", markup=False)
            yield mutation, outcome
            progress.advance(task)


# ---- what is printed ------------------------------------------------------------------------------------------------


def short(test: str) -> str:
    """A node id without the folder."""
    return test.rsplit("/", 1)[-1]


def summary(results: list[tuple[Mutation, Outcome]]) -> str:
    """The counts, in a sentence."""
    states = Counter(outcome.state for _, outcome in results)
    counts = f"{states['caught']} caught, {states['SURVIVED']} survived, {states['INVALID']} invalid"
    return f"{len(results)} mistakes: {counts}"


def print_table(results: list[tuple[Mutation, Outcome]]) -> None:
    """Family, mistake and what caught it."""
    table = Table("family", "id", "mistake", "caught by", "s")
    for mutation, outcome in results:
        by = short(outcome.by) if outcome.state == "caught" else f"{outcome.state} {outcome.by}"
        table.add_row(mutation.family, mutation.id, mutation.mistake, by, f"{outcome.seconds:.0f}")
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"{summary(results)}, {sum(outcome.seconds for _, outcome in results) / 60:.0f} minutes")


def markdown(results: list[tuple[Mutation, Outcome]]) -> str:
    """The table as a page; no times, so that it changes only with what it says."""
    lines = [
        "# Deliberate mistakes and the tests that catch them",
        "",
        "Written by `python tests/mutations/run.py --markdown`. Each mistake is made alone in a copy of the sources;",
        "the named test then fails, without any real data set.",
        "",
        f"{summary(results)}.",
    ]
    for family in dict.fromkeys(mutation.family for mutation, _ in results):
        lines += ["", f"## {family}", "", "| mistake | file | caught by |", "|---|---|---|"]
        for mutation, outcome in results:
            if mutation.family == family:
                by = short(outcome.by).split("[")[0] if outcome.state == "caught" else outcome.state
                lines.append(f"| {mutation.mistake} | `{mutation.file}` | `{by}` |")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(FAMILIES)}; none = all")
    parser.add_argument("--only", metavar="ID", action="append", help="this mistake only; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the mistakes, make none")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print a page")
    parser.add_argument("--with-data", action="store_true", help="let the tests see VITRAIL_TEST_DATA")
    options = parser.parse_args()
    if unknown := set(options.families) - set(FAMILIES):
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    mutations = [mutation for family in options.families or FAMILIES for mutation in read(family)]
    mutations = [m for m in mutations if not options.only or m.id in options.only]
    if options.list:
        for mutation in mutations:
            print(f"{mutation.family}/{mutation.id}: {mutation.mistake}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends by way of the folders' clean-up
    results = list(run_all(mutations, options.with_data))
    if options.json:
        print(json.dumps([{**asdict(mutation), **asdict(outcome)} for mutation, outcome in results], indent=1))
    elif options.markdown:
        print(markdown(results))
    else:
        print_table(results)
    return 0 if all(outcome.state == "caught" for _, outcome in results) else 1


if __name__ == "__main__":
    sys.exit(main())
