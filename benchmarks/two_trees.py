"""Latency of the same networks in two source trees.

    python benchmarks/two_trees.py OLD NEW [--models NAME ...] [--batch_size 1 16] [--rounds 9] [--image_size 224]

OLD and NEW are checkouts. One process for each imports its own `src`; the processes take turns, so that changes of the
machine affect both alike. Both keep freed memory (`vitrail.keep_memory`): without it, page faults differ more between
processes than the two versions do. The output is the median milliseconds of each, and the median of the rounds' ratios
new / old with its quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FAMILIES = ("pslt_tiny", "lvt", "pale_tiny", "emsnet_xtiny", "mat_1", "partialformer_b0", "volo_d0")
FORMS = ("eager", "fused")
SECONDS = 0.5  # of one measurement


class Tree:
    """A process that times networks of one checkout."""

    def __init__(self, root: Path, threads: int):
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(root)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: object) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a tree ended early; its error stands above")
        return float(json.loads(answer))


def serve(root: str) -> None:
    """Answer questions with seconds a call, from one tree."""
    import torch

    import vitrail

    assert Path(vitrail.__file__).is_relative_to(Path(root).resolve()), vitrail.__file__
    vitrail.keep_memory()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    known: dict[tuple[str, str], torch.nn.Module] = {}
    for line in sys.stdin:
        question = json.loads(line)
        name, form, batch, size = (question[key] for key in ("model", "form", "batch", "size"))
        if (name, form) not in known:
            known.clear()
            torch.manual_seed(0)
            model = vitrail.create_model(name).eval()
            known[name, form] = model if form == "eager" else vitrail.fuse(model)
        images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
        model, calls = known[name, form], 0
        with torch.inference_mode():
            model(images)
            started = time.perf_counter()
            while time.perf_counter() - started < SECONDS:
                model(images)
                calls += 1
        print((time.perf_counter() - started) / calls, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--models", nargs="+", default=list(FAMILIES))
    parser.add_argument("--batch_size", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    trees = [Tree(path.resolve(), args.threads) for path in (args.old, args.new)]
    print("| network | form | batch | old ms | new ms | new / old (quartiles) |\n|---|---|---:|---:|---:|---|")
    for model in args.models:
        for form in FORMS:
            for batch in args.batch_size:
                question = {"model": model, "form": form, "batch": batch, "size": args.image_size}
                rounds = []
                for number in range(args.rounds):
                    order = trees if number % 2 else trees[::-1]
                    found = {tree: tree.ask(**question) for tree in order}
                    rounds.append([found[tree] for tree in trees])
                old, new = (statistics.median(each) * 1000 for each in zip(*rounds, strict=True))
                low, middle, high = statistics.quantiles([b / a for a, b in rounds], n=4)
                print(
                    f"| {model} | {form} | {batch} | {old:.2f} | {new:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        sys.exit(0)
    sys.exit(main())
