"""A record of what the library computes, to hold one version of its code against another.

    python benchmarks/record.py --output old.json                       # in the tree of the old code
    python benchmarks/record.py --output new.json --against old.json    # in the tree of the new code

Recorded: names and shapes of every network's weights, its weights after `torch.manual_seed(0)`, its logits at two
sizes, eager and fused; the table of reference outputs; `vitrail reproduce`; the metrics of stored predictions; the
weights that short runs of every task end with; the outputs of an exported file. Everything runs on one CPU thread. Only
names that users rely on are used here, so that the same script runs on both trees. VITRAIL_TEST_DATA names the folder
of the data sets. With `--against` it ends with 1 if anything differs, and prints by how much; fused
logits may differ by 1e-5 of the largest one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import vitrail

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((224, 224), (96, 160))
#: folder, task, layout, predictions
PREDICTIONS = (
    ("coco_mini", "detection", "coco", "results/val_bbox.json"),
    ("coco_mini", "instance_segmentation", "coco", "results/val_segm.json"),
    ("coco_kpt_mini", "detection", "coco", "results/all_bbox.json"),
    ("coco_kpt_mini", "instance_segmentation", "coco", "results/all_segm.json"),
    ("coco_kpt_mini", "keypoints", "coco", "results/all_keypoints.json"),
    ("coco_mini", "panoptic_segmentation", "coco", "results/val_panoptic.json"),
    ("ade_mini", "semantic_segmentation", "ade20k", "results/pred"),
    ("camvid_mini", "semantic_segmentation", "ade20k", "results/pred"),
    ("reid_sim", "reid", None, "metric_case.npz"),
)
#: small recipe -> folder of data
RUNS = {
    "detection": "pennfudan_mini",
    "instance_segmentation": "pennfudan_mini",
    "semantic_segmentation": "camvid_mini",
    "panoptic_segmentation": "coco_mini",
    "keypoints": "coco_kpt_mini",
    "reid": "reid_sim",
}
STEPS = "3"
#: of the largest logit
FUSED_TOLERANCE = 1e-5


def command(*argv: str, folder: Path = ROOT) -> str:
    """The standard output of a command; if it fails, the record ends with its error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr[-2000:]}")
    return done.stdout


def cli(*argv: str) -> str:
    """The standard output of a `vitrail` command."""
    return command("-m", "vitrail", *argv)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes and values, whatever the order."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()


def fill(model: torch.nn.Module) -> None:
    """Weights that follow from their names alone: the order in which modules are made does not matter."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.1 * noise.abs())
        elif tensor.dim() < 2:
            tensor.copy_(0.1 * noise + float(name.endswith("weight")))
        else:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))


@torch.inference_mode()
def networks(work: Path) -> dict[str, Any]:
    """Weights' names and shapes, initial weights, logits."""
    found = {}
    for name in vitrail.list_models():
        torch.manual_seed(0)
        model = vitrail.create_model(name).eval()
        entry: dict[str, Any] = {"initial": digest(model.state_dict())}
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        entry["keys"] = hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()
        fill(model)
        fused = vitrail.fuse(model)
        for height, width in SIZES:
            images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
            entry[f"eager {height}x{width}"] = model(images)[0].tolist()
            entry[f"fused {height}x{width}"] = fused(images)[0].tolist()
        found[name] = entry
        print(name, file=sys.stderr)
    return found


def parity(work: Path) -> Any:
    """Differences from the reference outputs, eager."""
    return json.loads(command(str(ROOT / "tests" / "parity" / "table.py"), "--form", "eager", "--json"))


def reproduce(work: Path) -> Any:
    """The papers' tables with our counts."""
    return json.loads(cli("reproduce", "--json"))


def stored_predictions(work: Path) -> dict[str, Any]:
    """Metrics of the data sets' stored predictions."""
    data, found = Path(os.environ["VITRAIL_TEST_DATA"]), {}
    for folder, task, layout, predictions in PREDICTIONS:
        where = ["--data", layout, "--data.root", str(data / folder)] if layout else []
        text = cli("evaluate", "--task", task, "--predictions", str(data / folder / predictions), *where, "--json")
        found[f"{folder} {task}"] = numbers(json.loads(text))
    return found


def runs(work: Path) -> dict[str, Any]:
    """The weights that short runs end with."""
    data, found = Path(os.environ["VITRAIL_TEST_DATA"]), {}
    commands = {"digits": ["--epochs", "2"]}
    with tarfile.open(data / "reid_sim" / "reid_sim.tar") as archive:
        archive.extractall(work, filter="data")
    for name, folder in RUNS.items():
        root = next(work.rglob("bounding_box_train")).parent if name == "reid" else data / folder
        recipe = str(ROOT / "configs" / "mini" / f"{name}.yaml")
        commands[name] = ["--config", recipe, "--data.root", str(root), "--max_steps", STEPS]
    for name, options in commands.items():
        cli("train", *options, "--device", "cpu", "--seed", "0", "--data.workers", "0", "--output", str(work / name))
        found[name] = {path.stem: digest(load_file(path)) for path in sorted((work / name).glob("*.safetensors"))}
        print(name, file=sys.stderr)
    return found


def exported(work: Path) -> dict[str, Any]:
    """The outputs of the digits run's ONNX file."""
    import onnxruntime

    file = work / "digits.onnx"
    cli("export", str(work / "digits"), "--format", "onnx", "--output", str(file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options)
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return {"outputs": [output.ravel().tolist() for output in session.run(None, {entry.name: images})]}


def numbers(content: Any) -> dict[str, float]:
    """Every number of a JSON document with its path."""
    if isinstance(content, dict):
        return {f"{key}.{path}".strip("."): x for key, value in content.items() for path, x in numbers(value).items()}
    if isinstance(content, list):
        return {f"{i}.{path}".strip("."): x for i, value in enumerate(content) for path, x in numbers(value).items()}
    if isinstance(content, int | float) and not isinstance(content, bool):
        return {"": float(content)}
    return {}


def texts(content: Any, path: str = "") -> dict[str, str]:
    """Every text of a JSON document with its path, except explanations, which may be reworded."""
    if isinstance(content, dict):
        entries = ((key, value) for key, value in content.items() if key != "reason")
        return {where: x for key, value in entries for where, x in texts(value, f"{path}.{key}").items()}
    if isinstance(content, list):
        return {where: x for i, value in enumerate(content) for where, x in texts(value, f"{path}.{i}").items()}
    return {path: content} if isinstance(content, str) else {}


PARTS: dict[str, Callable[[Path], Any]] = {
    "networks": networks,
    "parity": parity,
    "reproduce": reproduce,
    "stored predictions": stored_predictions,
    "runs": runs,
    "exported": exported,
}


def differences(old: Any, new: Any) -> list[str]:
    """One line a kind of difference; none where all is the same."""
    before, after = numbers(old), numbers(new)
    lines = [f"{len(before)} numbers became {len(after)}"] if before.keys() != after.keys() else []
    changed = {path: abs(before[path] - after[path]) for path in before.keys() & after.keys()}
    # a fused network takes the kernels that were fastest just now: two runs of one version differ by as much
    largest = max((abs(value) for path, value in before.items() if path.startswith("fused")), default=0)
    limits = {path: FUSED_TOLERANCE * largest if path.startswith("fused") else 0 for path in changed}
    changed = {path: difference for path, difference in changed.items() if not difference <= limits[path]}
    if changed:
        worst = max(changed, key=lambda path: changed[path])
        lines.append(f"{len(changed)} of {len(before)} numbers differ, most {worst}: {before[worst]} -> {after[worst]}")
    words, new_words = texts(old), texts(new)
    other = sorted(path for path in words.keys() | new_words.keys() if words.get(path) != new_words.get(path))
    if other:
        lines.append(f"{len(other)} of {len(words)} texts differ, for example {other[0]}")
    return lines


def take(output: Path, parts: list[str]) -> None:
    """Write a record, part by part."""
    torch.set_num_threads(1)
    record = {}
    with tempfile.TemporaryDirectory() as work:
        for name in parts:
            record[name] = PARTS[name](Path(work))
            output.write_text(json.dumps(record, indent=1), encoding="utf-8")


def compare(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Print what differs between two records, a line an entry; returns whether nothing does."""
    same = True
    for name in new:
        for entry in old[name] if isinstance(old[name], dict) else [None]:
            pair = (old[name], new[name]) if entry is None else (old[name][entry], new[name].get(entry))
            lines = differences(*pair)
            same &= not lines
            print(f"{name}{'' if entry is None else ' ' + entry}: {'; '.join(lines) or 'identical'}")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the record, JSON; taken if it is not there yet")
    parser.add_argument("--against", type=Path, help="an earlier record to compare with")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    if not args.output.exists():
        take(args.output, args.parts)
    if args.against is None:
        return 0
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (args.against, args.output)]
    return 0 if compare(*records) else 1


if __name__ == "__main__":
    sys.exit(main())
