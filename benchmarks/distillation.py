"""What a teacher adds to small networks on 5,000 CIFAR-10 images: alone, with a teacher, and alone at equal compute.

    python benchmarks/distillation.py FOLDER_OR_NPZ [--init WEIGHTS] [--output FILE] [--runs FOLDER] [ARM...]

One teacher is trained once: on the same images from scratch, or, with --init, from the ImageNet weights that
benchmarks/imagenet_weights.py writes. Each student is then trained with configs/cifar10_small.yaml from scratch
(`alone`), for as many epochs with the teacher's outputs, which `vitrail teach` caches (`teacher`), and without a
teacher for so many epochs that their compute is that of the second (`longer`); three seeds each, one thread. The
weights are those of the last epoch, so that the test images choose nothing. A run whose result already lies in --runs
is not repeated.
"""

import argparse
import json
import platform
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path

from cpu_runs import finished, kept

RECIPE = "configs/cifar10_small.yaml"
STUDENTS = ("mat_1", "emsnet_xxtiny")
SEEDS = (0, 1, 2)
#: chosen before any run
DISTILL = {"distill.weight": 0.9, "distill.temperature": 2.0}
ARMS = {"alone": "alone", "teacher": "with the teacher", "longer": "alone, equal compute"}


@dataclass(frozen=True)
class Study:
    """A teacher and how long its students learn.

    Attributes:
        data: the images, a folder or an .npz.
        runs: folder of the runs and their results.
        recipe: options of the teacher's training.
        origin: what it starts from, in words.
        epochs: of a student.
        longer: epochs without a teacher that cost as much as these and the student's share of the teacher's passes.
    """

    data: str
    runs: Path
    recipe: dict[str, object]
    origin: str
    epochs: int
    longer: int

    def length(self, arm: str) -> int:
        """Epochs of a student."""
        return self.longer if arm == "longer" else self.epochs


def study(data: str, runs: Path, init: str | None) -> Study:
    """The teacher from scratch, or from ImageNet weights."""
    if init is None:  # as in benchmarks/cifar10_mini.py, of whose networks it learns the most
        recipe = {"model": "pslt_tiny", "model_options": '{"depths": [3, 3, 4, 2]}', "epochs": 14}
        return Study(data, runs, recipe, "from scratch", epochs=4, longer=5)
    recipe = {"model": "tf_efficientnet_lite0", "init": init, "epochs": 8, "lr": 5e-4, "optim.layer_decay": 0.8}
    recipe |= {"image_size": 96, "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    return Study(data, runs, recipe, "from ImageNet weights", epochs=8, longer=11)


def command(name: str, *words: str, **options: object) -> list[str]:
    """A command of vitrail, as words."""
    given = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    return ["vitrail", name, *words, "--config", RECIPE, *given]


def call(words: list[str], result: Path) -> dict:
    """Run a command in a process of its own; its last JSON document with CPU minutes, kept in `result`."""

    def run() -> dict:
        done = finished(words[0], [*words[1:], "--keep_memory", "--json"])
        return {**json.loads(done.output), "cpu_minutes": done.cpu_minutes, "command": shlex.join(words)}

    return kept(result, run)


def teacher(plan: Study) -> dict:
    """The trained teacher."""
    fixed = {"data.root": plan.data, "keep": "last", "eval_every": plan.recipe["epochs"]}
    options = {**plan.recipe, **fixed, "output": plan.runs / "teacher"}
    return call(command("train", **options), plan.runs / "results" / "teacher.json")


def labels(plan: Study, seed: int) -> dict:
    """The teacher's outputs for all images that a student of a seed sees; the two students see the same ones."""
    teacher(plan)
    options = {"epochs": plan.epochs, "seed": seed, "data.root": plan.data, "output": plan.runs / f"labels_{seed}"}
    return call(command("teach", str(plan.runs / "teacher"), **options), plan.runs / "results" / f"labels_{seed}.json")


def student(plan: Study, name: str, arm: str, seed: int) -> dict:
    """One run of a student."""
    epochs = plan.length(arm)
    options = {"model": name, "epochs": epochs, "seed": seed, "data.root": plan.data, "keep": "last"}
    options |= {"eval_every": epochs}
    if arm == "teacher":
        labels(plan, seed)
        options |= {"teacher": plan.runs / f"labels_{seed}", **DISTILL}
    options |= {"output": plan.runs / name / f"{arm}_{seed}"}
    return call(command("train", **options), plan.runs / "results" / f"{name}_{arm}_{seed}.json")


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def page(plan: Study) -> str:
    """The table and the commands."""
    taught = teacher(plan)
    lines = ["| student | training | epochs | top-1, three seeds | mean ± s.d. | CPU time of a run |"]
    lines += ["|---|---|---:|---|---:|---:|"]
    for name in STUDENTS:
        for arm, words in ARMS.items():
            found = [student(plan, name, arm, seed) for seed in SEEDS]
            minutes = statistics.mean(run["cpu_minutes"] for run in found)
            if arm == "teacher":
                minutes += statistics.mean(labels(plan, seed)["cpu_minutes"] for seed in SEEDS) / len(STUDENTS)
            top1 = [run["metrics"]["top1"] for run in found]
            each = ", ".join(f"{value:.1f}" for value in top1)
            lines.append(f"| `{name}` | {words} | {plan.length(arm)} | {each} | {spread(top1)} % | {minutes:.1f} min |")
    lines += [
        "",
        f"The teacher is `{plan.recipe['model']}` {plan.origin} after {taught['epochs']} epochs on the same images: "
        f"{taught['metrics']['top1']:.1f} % top-1, {taught['cpu_minutes']:.1f} min of CPU time, which no row counts. "
        "The CPU time with the teacher includes half of its forward passes (`vitrail teach`), which both students "
        "share.",
        "",
        f"{taught['hardware']['cpu']}, one thread, {platform.system()}, torch {taught['versions']['torch']}, timm "
        f"{taught['versions']['timm']}. Written by `python benchmarks/distillation.py`, which runs",
        "",
        "```sh",
        *dict.fromkeys(shown(plan, run) for run in examples(plan)),
        "```",
    ]
    return "\n".join(lines) + "\n"


def examples(plan: Study) -> list[dict]:
    """One run of each kind."""
    students = [student(plan, STUDENTS[0], arm, SEEDS[0]) for arm in ARMS]
    return [teacher(plan), labels(plan, SEEDS[0]), *students]


def shown(plan: Study, run: dict) -> str:
    """The command of a run, without the paths of this machine."""
    text = str(run["command"]).replace(plan.data, "DATA").replace(f"{plan.runs}/", "runs/")
    init = plan.recipe.get("init")
    return text if init is None else text.replace(str(init), Path(str(init)).name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10 folder or .npz")
    parser.add_argument("arms", nargs="*", help="train these only; all, and the table, if none")
    parser.add_argument("--init", help="ImageNet weights of the teacher, of benchmarks/imagenet_weights.py")
    parser.add_argument("--output", help="file to write the table to")
    parser.add_argument("--runs", default="runs/distillation", help="folder of the runs")
    args = parser.parse_intermixed_args()
    plan = study(args.data, Path(args.runs).absolute(), args.init and str(Path(args.init).absolute()))
    for seed in SEEDS:
        for arm in args.arms or ARMS:
            for name in STUDENTS:
                found = student(plan, name, arm, seed)
                print(f"{name} {ARMS[arm]}, seed {seed}: {found['metrics']['top1']:.1f} %", flush=True)
    if not args.arms:
        text = page(plan)
        print(text)
        if args.output:
            Path(args.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
