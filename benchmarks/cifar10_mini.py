"""Accuracy of each family after at most 20 minutes of CPU time on 5,000 CIFAR-10 images, with two networks of timm.

    python benchmarks/cifar10_mini.py FOLDER_OR_NPZ [--output docs/cifar10_mini.md] [--runs FOLDER] [NETWORK...]

Every network is trained by `vitrail train` with configs/cifar10_small.yaml, one after the other, on one thread. CPU
time is that of the whole process. A network whose result already lies in --runs is not trained again, so several of
these commands, each with some of the names, fill several cores; one more without names then writes the page.
"""

import argparse
import json
import platform
import shlex
from pathlib import Path

from cpu_runs import finished, kept

RECIPE = "configs/cifar10_small.yaml"
FLOOR = 35.9  # 5-nearest-neighbour vote on mean-removed pixels (cosine), % top-1
# PSLT and Pale have fewer blocks to stay within the budget. LVT's class attention and token head are for token labels,
# so it pools instead. PSLT and LVT learn slowly at first and use more of the budget.
OURS = {
    "pslt_tiny": ["--model_options", '{"depths": [3, 3, 4, 2]}', "--epochs", "14"],
    "lvt": ["--model_options", '{"class_attention": false, "token_labeling": false}', "--epochs", "14"],
    "pale_tiny": ["--model_options", '{"depths": [1, 2, 4, 1]}'],
    "emsnet_xxtiny": [],
    "mat_1": [],
    "partialformer_b0": [],
}
TIMM = {"pvt_v2_b0": [], "mobilenetv3_small_100": []}


def train(name: str, options: list[str], root: str, output: Path) -> dict:
    """Train one network in a process of its own; its summary with CPU minutes, kept in the folder of the run."""

    def run() -> dict:
        words = ["train", "--config", RECIPE, "--model", name, "--data.root", root, "--output", str(output)]
        done = finished("vitrail", [*words, "--overwrite", *options])
        summary = json.loads((output / "summary.json").read_text())
        return {
            "name": name,
            "options": shlex.join(options),
            "parameters": summary["parameters"],
            "top1": summary["metrics"]["top1"],
            "epochs": summary["epochs"],
            "cpu_minutes": done.cpu_minutes,
            "minutes": done.minutes,
            "versions": summary["versions"],
            "cpu": summary["hardware"]["cpu"],
        }

    return kept(output / "benchmark.json", run)


def page(rows: list[dict]) -> str:
    """The results as a page of the documentation."""
    lines = [
        "# 5,000 images, 20 minutes of CPU time",
        "",
        "Written by `python benchmarks/cifar10_mini.py`. Each network is trained from scratch on the same 5,000 images "
        f"of CIFAR-10 (500 per class) with the same recipe, `{RECIPE}`, and evaluated on 1,000 other images. A "
        f"classifier by the five nearest training images (k-NN) reaches {FLOOR} %.",
        "",
        "| network | parameters | epochs | top-1 | above k-NN | CPU time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{r['name']}`{' (timm)' if r['name'] in TIMM else ''} | {r['parameters'] / 1e6:.2f} M | {r['epochs']} | "
        f"{r['top1']:.1f} % | {r['top1'] - FLOOR:+.1f} | {r['cpu_minutes']:.1f} min |"
        for r in rows
    ]
    versions = ", ".join(f"{k} {v}" for k, v in rows[0]["versions"].items() if k in ("torch", "timm", "python"))
    lines += [
        "",
        "The settings are not equal: PSLT and Pale have fewer blocks than their registered sizes, LVT pools instead of "
        "using class attention, and PSLT and LVT train for more epochs; the others, also timm's, do not use the whole "
        "budget. Such short trainings say little about the results of long ones.",
        "",
        f"{rows[0]['cpu']}, one thread, {platform.system()}, {versions}; one run each, seed 0.",
        "",
    ]
    lines += ["The commands:", "", "```sh"]
    lines += [
        f"vitrail train --config {RECIPE} --model {r['name']} {r['options']}".rstrip()
        + f" --data.root FOLDER --output runs/{r['name']}"
        for r in rows
    ]
    return "\n".join([*lines, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="cifar10 folder or .npz")
    parser.add_argument("names", nargs="*", help="networks; all if none is named")
    parser.add_argument("--output", help="page to write")
    parser.add_argument("--runs", default="runs/cifar10_mini", help="folder of the runs")
    args = parser.parse_intermixed_args()
    everything, root, runs = {**OURS, **TIMM}, Path(args.root).absolute(), Path(args.runs).absolute()
    rows = []
    for name in args.names or everything:
        rows.append(train(name, everything.get(name, []), str(root), runs / name))
        print(f"{name}: {rows[-1]['top1']:.1f} % in {rows[-1]['cpu_minutes']:.1f} CPU minutes", flush=True)
    text = page(rows)
    print(text)
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
