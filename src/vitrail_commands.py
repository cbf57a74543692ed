"""The commands of `vitrail` and the page `vitrail --help` prints.

It stands outside the package because importing `vitrail` imports torch and timm, which takes seconds; `vitrail_cli` and
`vitrail.cli` both read it.
"""

from __future__ import annotations

COMMANDS = {
    "models": "list the networks: parameters, multiply-adds, reported accuracy, weights and their licence",
    "train": "train or fine-tune a network for any task; without options: a classifier of digits, minutes on a CPU",
    "evaluate": "compute a task's metrics of trained weights, or of stored predictions, on a data set",
    "predict": "find what is in images or a video: classes, boxes, masks, keypoints or embeddings",
    "explain": "show what a network sees in images: class activation maps, attention, receptive fields, spectra",
    "report": "write one HTML page about a run: curves, metrics, images, costs, recipe",
    "compare": "write one HTML page with several runs, weights or models side by side",
    "lab": "compare token mixers in one network at one budget: trained alike with several seeds, tested, measured",
    "demo": "write a page that runs a network in a browser, on images and on a camera; --serve opens it",
    "export": "write an ONNX, OpenVINO, ExecuTorch or torch.export file and compare it with PyTorch",
    "teach": "cache a teacher's outputs for the augmented images of a run: vitrail train --teacher learns from them",
    "token_labels": "make label maps with a teacher network, for training LVT, VOLO and Pale with token labels",
    "reproduce": "compare the papers' tables with our counts of parameters and multiply-adds",
    "benchmark": "compare latency and memory of networks, with the machine's peak rates",
}
#: what other tools call a command, and its name here
OTHER_NAMES = {
    **dict.fromkeys(("fit", "finetune", "fine_tune", "fine-tune"), "train"),
    **dict.fromkeys(("eval", "val", "validate", "test", "score"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify", "detect", "segment", "run"), "predict"),
    **dict.fromkeys(("convert", "quantize", "onnx"), "export"),
    **dict.fromkeys(("list", "ls", "zoo"), "models"),
    **dict.fromkeys(("cam", "gradcam", "visualize", "attention"), "explain"),
    **dict.fromkeys(("speed", "latency", "profile"), "benchmark"),
}
#: commands that `vitrail_cli` answers itself
FRONT = {"help": "this page, or the options of a command: vitrail help train", "version": "the installed version"}


def usage() -> str:
    """The page `vitrail --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in (COMMANDS | FRONT).items())
    return (
        "usage: vitrail COMMAND [options]\n\n"
        "Small, fast vision transformers for classification, detection, instance, semantic and panoptic segmentation,\n"
        "keypoints and re-identification.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        "  -h, --help     this page; `vitrail COMMAND --help` lists the options of a command\n"
        "  --version      the installed version\n"
        "  --json         print one JSON document instead of tables\n"
        "  --debug        print the traceback of an error instead of one sentence\n"
        "  --keep_memory  keep freed memory for the next tensors: often faster on Linux CPUs, see docs/performance.md\n"
    )
