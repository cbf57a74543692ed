"""What a teacher adds to small networks on 5,000 CIFAR-10 images: alone, with a teacher, and alone at equal compute.

    python benchmarks/distillation.py FOLDER_OR_NPZ [--output FILE] [--runs FOLDER] [ARM...]

One teacher is trained once. Each student is then trained with configs/cifar10_small.yaml for EPOCHS epochs from scratch
(`alone`), for as many with the teacher's outputs, which `vitrail teach` caches (`teacher`), and without a teacher for
LONGER epochs, whose compute is that of the second (`longer`); three seeds each, one thread. The weights are those of
the last epoch, so that the test images choose nothing. A run whose result already lies in --runs is not repeated.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = "configs/cifar10_small.yaml"
STUDENTS = ("mat_1", "emsnet_xxtiny")
SEEDS = (0, 1, 2)
#: epochs of a student; those that cost as much as these and its share of the teacher's forward passes
EPOCHS, LONGER = 4, 5
#: as in benchmarks/cifar10_mini.py, of whose networks it learns the most
TEACHER = {"model": "pslt_tiny", "model_options": '{"depths": [3, 3, 4, 2]}', "epochs": 14}
#: chosen before any run
DISTILL = {"distill.weight": 0.9, "distill.temperature": 2.0}
ARMS = {"alone": "alone", "teacher": "with the teacher", "longer": "alone, equal compute"}


def command(name: str, *words: str, **options: object) -> list[str]:
    """A command of vitrail, as words."""
    given = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    return ["vitrail", name, *words, "--config", RECIPE, *given]


def call(words: list[str], result: Path) -> dict:
    """Run a command in a process of its own; its last JSON document with CPU minutes, kept in `result`."""
    if result.is_file():
        return json.loads(result.read_text())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words, "--keep_memory", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    document = {**json.loads(done.stdout), "cpu_minutes": used / 60, "command": shlex.join(words)}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(document, indent=2))
    return document


def teacher(data: str, runs: Path) -> dict:
    """The trained teacher."""
    options = {**TEACHER, "data.root": data, "keep": "last", "eval_every": 14, "output": runs / "teacher"}
    return call(command("train", **options), runs / "results" / "teacher.json")


def labels(data: str, runs: Path, seed: int) -> dict:
    """The teacher's outputs for all images that a student of a seed sees; the two students see the same ones."""
    teacher(data, runs)
    options = {"epochs": EPOCHS, "seed": seed, "data.root": data, "output": runs / f"labels_{seed}"}
    return call(command("teach", str(runs / "teacher"), **options), runs / "results" / f"labels_{seed}.json")


def student(name: str, arm: str, seed: int, data: str, runs: Path) -> dict:
    """One run of a student."""
    epochs = LONGER if arm == "longer" else EPOCHS
    options = {"model": name, "epochs": epochs, "seed": seed, "data.root": data, "keep": "last", "eval_every": epochs}
    if arm == "teacher":
        labels(data, runs, seed)
        options |= {"teacher": runs / f"labels_{seed}", **DISTILL}
    options |= {"output": runs / name / f"{arm}_{seed}"}
    return call(command("train", **options), runs / "results" / f"{name}_{arm}_{seed}.json")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def page(data: str, runs: Path) -> str:
    """The table and the commands."""
    taught = teacher(data, runs)
    lines = ["| student | training | epochs | top-1, three seeds | mean ± s.d. | CPU time of a run |"]
    lines += ["|---|---|---:|---|---:|---:|"]
    for name in STUDENTS:
        for arm, words in ARMS.items():
            found = [student(name, arm, seed, data, runs) for seed in SEEDS]
            minutes = statistics.mean(run["cpu_minutes"] for run in found)
            if arm == "teacher":
                minutes += statistics.mean(labels(data, runs, seed)["cpu_minutes"] for seed in SEEDS) / len(STUDENTS)
            top1 = [run["metrics"]["top1"] for run in found]
            each = ", ".join(f"{value:.1f}" for value in top1)
            epochs = LONGER if arm == "longer" else EPOCHS
            lines.append(f"| `{name}` | {words} | {epochs} | {each} | {spread(top1)} % | {minutes:.1f} min |")
    lines += [
        "",
        f"The teacher is `{TEACHER['model']}` after {taught['epochs']} epochs of the same recipe: "
        f"{taught['metrics']['top1']:.1f} % top-1, {taught['cpu_minutes']:.1f} min of CPU time, which no row counts. "
        "The CPU time with the teacher includes half of its forward passes (`vitrail teach`), which both students "
        "share.",
        "",
        f"{taught['hardware']['cpu']}, one thread, {platform.system()}, torch {taught['versions']['torch']}, timm "
        f"{taught['versions']['timm']}. Written by `python benchmarks/distillation.py`, which runs",
        "",
        "```sh",
        *dict.fromkeys(
            str(run["command"]).replace(data, "DATA").replace(f"{runs}/", "runs/")
            for run in (
                taught,
                labels(data, runs, 0),
                *(student(STUDENTS[0], arm, 0, data, runs) for arm in ARMS),
            )
        ),
        "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10 folder or .npz")
    parser.add_argument("arms", nargs="*", help="train these only; all, and the table, if none")
    parser.add_argument("--output", help="file to write the table to")
    parser.add_argument("--runs", default="runs/distillation", help="folder of the runs")
    args = parser.parse_intermixed_args()
    runs = Path(args.runs).absolute()
    for seed in SEEDS:
        for arm in args.arms or ARMS:
            for name in STUDENTS:
                found = student(name, arm, seed, args.data, runs)
                print(f"{name} {ARMS[arm]}, seed {seed}: {found['metrics']['top1']:.1f} %", flush=True)
    if not args.arms:
        text = page(args.data, runs)
        print(text)
        if args.output:
            Path(args.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
