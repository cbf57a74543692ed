"""What a teacher adds to small networks on 5,000 CIFAR-10 images: alone, with a teacher, and alone at equal compute.

    python benchmarks/distillation.py FOLDER_OR_NPZ [--output FILE] [--runs FOLDER] [ARM...]
    python benchmarks/distillation.py NPZ --init WEIGHTS [--labelled 100] [--output FILE] [--runs FOLDER] [ARM...]

One teacher is trained once. Each student is then trained with configs/cifar10_small.yaml from scratch (`alone`), for as
many steps with the teacher's outputs, which `vitrail teach` caches (`teacher`), and without a teacher for so many
epochs that their compute is that of the second (`longer`); three seeds each, one thread. The weights are those of the
last epoch, so that the test images choose nothing. A run whose result already lies in --runs is not repeated.

The first command has a teacher that is trained from scratch on the same 5,000 images. In the second, only --labelled
images of each class have labels: the teacher begins with the ImageNet weights that benchmarks/imagenet_weights.py
writes, and the students with a teacher see the other images without their labels.
"""

import argparse
import json
import platform
import shlex
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cpu_runs import finished, kept

RECIPE = "configs/cifar10_small.yaml"
STUDENTS = ("mat_1", "emsnet_xxtiny")
SEEDS = (0, 1, 2)
#: chosen before any run
DISTILL = {"distill.weight": 0.9, "distill.temperature": 2.0}
ARMS = {"alone": "alone", "teacher": "with the teacher", "longer": "alone, equal compute"}
#: epochs of a student with a teacher, and of one alone whose compute is as much, in the second study
TAUGHT, LONGER = 4, 5.2
#: training images of each of the ten classes, and epochs of the teacher if it sees 100 of them
PER_CLASS, TEACHER_EPOCHS = 500, 20


@dataclass(frozen=True)
class Study:
    """A teacher and how long its students learn.

    Attributes:
        runs: folder of the runs and their results.
        data: options that name the labelled images.
        more: options that name images without labels, for the students with a teacher.
        recipe: options of the teacher's training.
        origin: what it starts from, in words.
        epochs: of a student, by arm.
        words: what is given to this program.
    """

    runs: Path
    data: dict[str, object]
    recipe: dict[str, object]
    origin: str
    epochs: dict[str, int]
    words: str
    more: dict[str, object] = field(default_factory=dict)


def study(data: str, runs: Path, init: str | None, labelled: int) -> Study:
    """All images labelled and a teacher from scratch, or some of each class and a teacher from ImageNet weights.

    However few have labels, all arms take as many steps: epochs of fewer images are more epochs.
    """
    if init is None:  # as in benchmarks/cifar10_mini.py, of whose networks it learns the most
        recipe = {"model": "pslt_tiny", "model_options": '{"depths": [3, 3, 4, 2]}', "epochs": 14}
        epochs = {"alone": 4, "teacher": 4, "longer": 5}
        return Study(runs, {"data.root": data}, recipe, "from scratch", epochs, words="FOLDER_OR_NPZ")
    recipe = {"model": "tf_efficientnet_lite0", "init": init, "epochs": TEACHER_EPOCHS * 100 // labelled}
    recipe |= {"lr": 5e-4, "optim.layer_decay": 0.8}
    recipe |= {"image_size": 96, "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    few = few_labels(Path(data), runs / "images", labelled)
    folders: dict[str, object] = {"data.name": "folder", "data.root": few / "labelled"}
    more: dict[str, object] = {"data.unlabelled": few / "unlabelled"}
    share = PER_CLASS / labelled  # so many epochs of the labelled images are as long as one of all
    epochs = {"alone": round(TAUGHT * share), "teacher": TAUGHT, "longer": round(LONGER * share)}
    words = f"NPZ --init {Path(init).name} --labelled {labelled}"
    return Study(runs, folders, recipe, "from ImageNet weights", epochs, words=words, more=more)


def few_labels(data: Path, folder: Path, labelled: int) -> Path:
    """Image files of an .npz: so many training images of each class in their folders, the others in one."""
    if folder.is_dir():
        return folder
    arrays = np.load(data)
    names, seen = [str(name) for name in arrays["class_names"]], dict.fromkeys(range(10), 0)
    for number, (image, label) in enumerate(zip(arrays["x_train"], arrays["y_train"], strict=True)):
        seen[int(label)] += 1
        known = seen[int(label)] <= labelled
        place = folder / "labelled" / "train" / names[label] if known else folder / "unlabelled"
        write(image, place / f"{number}.png")
    for number, (image, label) in enumerate(zip(arrays["x_test"], arrays["y_test"], strict=True)):
        write(image, folder / "labelled" / "val" / names[label] / f"{number}.png")
    return folder


def write(image: np.ndarray, path: Path) -> None:
    """Write an image, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


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
    fixed = {"keep": "last", "eval_every": plan.recipe["epochs"]}
    options = {**plan.recipe, **plan.data, **fixed, "output": plan.runs / "teacher"}
    return call(command("train", **options), plan.runs / "results" / "teacher.json")


def labels(plan: Study, seed: int) -> dict:
    """The teacher's outputs for all images that a student of a seed sees; the two students see the same ones."""
    teacher(plan)
    options = {"epochs": plan.epochs["teacher"], "seed": seed, **plan.data, **plan.more}
    options |= {"output": plan.runs / f"labels_{seed}"}
    return call(command("teach", str(plan.runs / "teacher"), **options), plan.runs / "results" / f"labels_{seed}.json")


def student(plan: Study, name: str, arm: str, seed: int) -> dict:
    """One run of a student."""
    epochs = plan.epochs[arm]
    options = {"model": name, "epochs": epochs, "seed": seed, **plan.data, "keep": "last", "eval_every": epochs}
    if arm == "teacher":
        labels(plan, seed)
        options |= {**plan.more, "teacher": plan.runs / f"labels_{seed}", **DISTILL}
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
            lines.append(f"| `{name}` | {words} | {plan.epochs[arm]} | {each} | {spread(top1)} % | {minutes:.1f} min |")
    lines += [
        "",
        f"The teacher is `{plan.recipe['model']}` {plan.origin}, after {taught['epochs']} epochs on the labelled "
        f"images: {taught['metrics']['top1']:.1f} % top-1, {taught['cpu_minutes']:.1f} min of CPU time, which no row "
        "counts. The CPU time with the teacher includes half of its forward passes (`vitrail teach`), which both "
        "students share.",
        "",
        f"{taught['hardware']['cpu']}, one thread, {platform.system()}, torch {taught['versions']['torch']}, timm "
        f"{taught['versions']['timm']}. Written by `python benchmarks/distillation.py {plan.words}`, which runs",
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
    text = str(run["command"]).replace(f"{plan.runs}/images", "images").replace(f"{plan.runs}/", "runs/")
    text = text.replace(f"--data.root {plan.data['data.root']}", "--data.root DATA")
    init = plan.recipe.get("init")
    return text if init is None else text.replace(str(init), Path(str(init)).name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="cifar10 folder or .npz")
    parser.add_argument("arms", nargs="*", help="train these only; all, and the table, if none")
    parser.add_argument("--init", help="ImageNet weights of the teacher, of benchmarks/imagenet_weights.py")
    parser.add_argument("--labelled", type=int, default=100, help="images of each class with labels, with --init")
    parser.add_argument("--output", help="file to write the table to")
    parser.add_argument("--runs", default="runs/distillation", help="folder of the runs")
    args = parser.parse_intermixed_args()
    init = args.init and str(Path(args.init).absolute())
    plan = study(args.data, Path(args.runs).absolute(), init, args.labelled)
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
