"""Effect of settings outside the networks: threads, allocator variables, precision hints.

    python benchmarks/settings.py [NETWORK...] [--batch_size 16] [--image_size 224] [--turns 3] [--only NAME...]

Every setting runs in a process of its own. The settings take turns, so that a change of the machine affects all of
them. The table shows the median of the ratios within each turn; the first row is the default.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

from vitrail.benchmark.machine import cores


@dataclass(frozen=True)
class Setting:
    """One way to run: variables of the environment, lines of Python before the work, options of the command."""

    name: str
    env: dict[str, str] = field(default_factory=dict)
    code: str = ""
    options: tuple[str, ...] = ()


MALLOC = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
SETTINGS = [
    Setting("default"),
    *[Setting(f"{count} threads", options=("--threads", str(count))) for count in range(2, len(cores()) + 1)],
    Setting("glibc keeps large blocks", MALLOC),
    Setting("--keep_memory", options=("--keep_memory",)),
    Setting("transparent huge pages", {"THP_MEM_ALLOC_ENABLE": "1"}),
    Setting("both", {**MALLOC, "THP_MEM_ALLOC_ENABLE": "1"}),
    Setting("matmul precision medium", code="torch.set_float32_matmul_precision('medium')"),
    Setting("denormals to zero", code="torch.set_flush_denormal(True)"),
    Setting("bf16", options=("--precision", "bf16")),
    Setting("contiguous maps", options=("--memory_format", "contiguous")),
]


def run(setting: Setting, networks: list[str], args: argparse.Namespace) -> list[dict]:
    """The rows of the networks under one setting."""
    command = ["benchmark", *networks, "--batch_size", args.batch_size, "--image_size", str(args.image_size)]
    command += ["--device", "cpu", "--roofline", "false", "--json", *setting.options]
    command += ["--rounds", str(args.rounds)]
    code = f"import sys, torch; {setting.code}\nfrom vitrail.cli import main\nsys.exit(main(sys.argv[1:]))"
    env = {name: value for name, value in os.environ.items() if name not in (*MALLOC, "THP_MEM_ALLOC_ENABLE")}
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env={**env, **setting.env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["rows"]


def table(found: dict[str, list[list[dict]]]) -> str:
    """Milliseconds and how many times as fast as the first setting, medians over the turns, as a page's table."""
    first = next(iter(found.values()))
    names = [f"{row['source']}, batch {row['batch']}" for row in first[0]]
    lines = [f"| setting | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for setting, turns in found.items():
        pairs = [list(zip(*both, strict=True)) for both in zip(first, turns, strict=True)]
        cells = [cell([turn[i] for turn in pairs]) for i in range(len(names))]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(pairs: list[tuple[dict, dict]]) -> str:
    """One network under one setting: (the default's row, the setting's row) of every turn."""
    if not all("median_ms" in row for _, row in pairs):
        return "-"
    milliseconds = statistics.median(row["median_ms"] for _, row in pairs)
    ratio = statistics.median(base["median_ms"] / row["median_ms"] for base, row in pairs)
    return f"{milliseconds:.1f} ({ratio:.2f}x)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["mat_2"])
    parser.add_argument("--batch_size", default="16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="calls of each network in a turn")
    parser.add_argument("--only", nargs="+", default=[setting.name for setting in SETTINGS], help="names of settings")
    args = parser.parse_intermixed_args()
    chosen = [setting for setting in SETTINGS if setting.name in args.only]
    found: dict[str, list[list[dict]]] = {setting.name: [] for setting in chosen}
    for turn, setting in itertools.product(range(args.turns), chosen):
        print(f"turn {turn + 1} of {args.turns}: {setting.name}", file=sys.stderr, flush=True)
        found[setting.name].append(run(setting, args.networks, args))
    print(table(found))


if __name__ == "__main__":
    main()
