"""The `vitrail` command's front door: answers --help and --version at once, imports the library only for work.

It stands outside the package because importing `vitrail` imports torch and timm, which takes seconds.
"""

from __future__ import annotations

import sys
from importlib import metadata

VERBS = {
    "models": "list the networks: parameters, multiply-adds, printed accuracy, weights and their licence",
    "train": "train a classifier; without any option: the embedded default, minutes on a CPU",
    "evaluate": "measure trained weights on a data set",
    "predict": "classify pictures: files, folders or globs",
    "export": "ONNX, OpenVINO, ExecuTorch or torch.export: a file that runs elsewhere, compared with PyTorch",
    "token_labels": "label maps by a stronger network, for training LVT, VOLO and Pale with token labels",
    "reproduce": "the papers' tables beside our own counts of parameters and multiply-adds",
    "benchmark": "time and memory of networks in several forms, side by side, beside the machine's ceilings",
}


def usage() -> str:
    """The page `vitrail --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: vitrail VERB [options]\n\n"
        "Small, fast vision transformers: train, fine-tune, evaluate, predict.\n\n"
        f"verbs:\n{verbs}\n\n"
        "options:\n"
        "  -h, --help  this page; `vitrail VERB --help` lists a verb's options\n"
        "  --version   the installed version\n"
        "  --debug     print the traceback of an error instead of one sentence\n"
        "  --keep_memory  keep freed memory for the next tensors: often faster on Linux CPUs, see docs/performance.md\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 the user's mistake, 130 interrupted, 1 our fault)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if argv[0] == "--version":
        print(metadata.version("vitrail"))
        return 0
    from vitrail.cli import main as run

    return run(argv)
