"""Every option of the other commands in every kind of call: it changes something that can be observed, or is refused.

See `option_walk`, which prints this walk, too. A call is observed by what it prints, what it writes, and what its
loaders, devices, threads and networks are given.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from browser_helpers import stand_in
from option_walk import Row, beside, digest, other_values, plain_run, root_of, write_weights
from vitrail.cli import main
from vitrail.cli.parsing import ALLOW, Parser
from vitrail.data.video import VideoWriter
from vitrail.engine.option_rules import names
from vitrail.engine.trainer import fit

COMMANDS = (
    *("evaluate", "predict", "explain", "report", "compare", "lab", "demo", "export", "benchmark", "token_labels"),
    "teach",
)
#: options that say how a command is read or how its results are printed
ABOUT = ("help", "config", "print_config")
#: what is different in every call
MEASURED = ("_ms", "time", "latency", "memory", "load", "machine", "roofline", "rows", "unsteady", "ratio", "settings")


@dataclass
class Kind:
    """A kind of call of a command.

    Attributes:
        command: its name.
        label: of the kind.
        argv: what follows the name.
        others: other values of options than the default ones, as tokens; None where there is no other.
        beside: further tokens that let an option have an effect.
    """

    command: str
    label: str
    argv: list[str]
    others: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)


# ---- calls ------------------------------------------------------------------------------------------------------


def weights(base: Path, task: str = "classification") -> str:
    """A weights file of a task."""
    path = base / f"{task}.safetensors"
    if not path.exists():
        write_weights(plain_run(task, base), base)
    return str(path)


def exported(base: Path) -> str:
    """The classifier's ONNX file."""
    path = base / "exported.onnx"
    if not path.exists():
        code, *_ = call(["export", weights(base), "--format", "onnx", "--output", str(path), "--image_size", "32"])
        assert code == 0
    return str(path)


def stored(base: Path, task: str) -> str:
    """Stored predictions of a task."""
    rng = np.random.default_rng(0)
    if task == "detection":
        return str(base / "boxes.json")
    if task == "semantic_segmentation":
        (base / "found_masks").mkdir(exist_ok=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 4, (64, 72), dtype=np.uint8)).save(base / "found_masks" / f"{i}.png")
        return str(base / "found_masks")
    fields = {}
    for side, count in (("query", 3), ("gallery", 6)):
        fields |= {f"{side}_feat": rng.normal(size=(count, 4)).astype(np.float32), f"{side}_pid": np.arange(count) % 3}
        fields[f"{side}_cam"] = np.full(count, len(side))
    np.savez(base / "embeddings.npz", **fields)
    return str(base / "embeddings.npz")


def kinds(command: str, base: Path) -> Iterable[Kind]:
    """The calls in which a command's options are tried."""
    return {
        "evaluate": _evaluations,
        "predict": _predictions,
        "explain": _explanations,
        "report": _reports,
        "compare": _comparisons,
        "lab": _laboratories,
        "demo": _demos,
        "export": _exports,
        "benchmark": _benchmarks,
        "token_labels": _label_maps,
        "teach": _teachings,
    }[command](base)


def _data(name: str, root: Path) -> list[str]:
    return ["--data", name, "--data.root", str(root)]


def _evaluations(base: Path) -> Iterator[Kind]:
    own = {"data.root": base / "classes1"}
    names = {"classification": "folder", "semantic_segmentation": "ade20k", "reid": "market1501"}
    yield Kind("evaluate", "parts", [weights(base), *_data("folder", base / "classes0")], own)
    yield Kind("evaluate", "flat", [weights(base), *_data("folder", base / "flat0")], {"data.root": base / "flat1"})
    for task in ("detection", "semantic_segmentation", "keypoints", "reid"):
        root = root_of(task, base)
        argv = [weights(base, task), *_data(names.get(task, "coco"), root)]
        found = ["--inference.score_thresh", "0"] if task == "detection" else []
        images, annotations = root / "images" / "train", root / "annotations" / "train"
        if task == "detection":
            annotations = annotations.with_name("instances_train.json")
        elif task == "keypoints":  # the annotations of both parts are the same
            images, annotations = root / "images" / "more", base / "more_persons.json"
        yield Kind(
            "evaluate",
            task,
            [*argv, *found],
            {
                "data.root": root_of(task, base, 1),
                "data.annotations": annotations,
                "data.images": root / "images" / "train",
                "data.name": "folder",
            },
            {
                "data.annotations": ["--data.images", str(images)],
                "data.images": ["--data.annotations", str(annotations)],
            },
        )
    for task, data in (("detection", "coco"), ("semantic_segmentation", "ade20k"), ("reid", "")):
        argv = ["--task", task, "--predictions", stored(base, task)]
        argv += _data(data, root_of(task, base)) if data else []
        yield Kind("evaluate", f"stored {task}", argv, {"predictions": base / "fewer_boxes.json"})
    yield Kind("evaluate", "exported", [exported(base), *_data("folder", base / "classes0")], own)


def _predictions(base: Path) -> Iterator[Kind]:
    images = str(base / "classes0" / "val")
    file = ["--output", str(base / "out" / "s.jsonl")]
    others = {"output": base / "out" / "r.csv", "shard": "1/2", "coco_images": base / "images.json"}
    beside = {"shard": file, "coco_images": ["--output", str(base / "out" / "r.json")]}
    names = [{"id": i, "file_name": f"{i}.png"} for i in range(1)]
    known = json.loads((root_of("detection", base) / "annotations" / "instances_train.json").read_text())["categories"]
    categories = [{"id": 7 + i, "name": category["name"]} for i, category in enumerate(known)]
    (base / "images.json").write_text(json.dumps({"images": names, "categories": categories}))
    yield Kind("predict", "classes", [weights(base), images], others, beside)
    for task in ("detection", "semantic_segmentation", "keypoints", "reid"):
        found = ["--inference.score_thresh", "0"] if task == "detection" else []
        one = images if task != "detection" else str(base / "classes0" / "val" / "cat")  # names are COCO's ids
        yield Kind("predict", task, [weights(base, task), one, *found], others, beside)
    yield Kind("predict", "exported", [exported(base), images], others, beside)
    yield Kind("predict", "video", [weights(base), clip(base)], others, beside)


def clip(base: Path) -> str:
    """A video of four frames; needs PyAV."""
    path = base / "clip.mp4"
    if not path.exists():
        writer = VideoWriter(path, (40, 32))
        for number in range(4):
            writer.add(Image.new("RGB", (40, 32), (60 * number, 20, 200 - 60 * number)), number / 2)
        writer.close()
    return str(path)


def _explanations(base: Path) -> Iterator[Kind]:
    argv = [weights(base), str(base / "classes0" / "val")]
    yield Kind("explain", "gradcam", argv)
    for method in ("attention", "receptive_field", "attended_region", "spectrum", "similarity"):
        yield Kind("explain", method, [*argv, "--method", method], {"method": "gradcam"})
    task = "semantic_segmentation"
    another = shutil.copyfile(weights(base, task), base / "another.safetensors")
    images = str(root_of(task, base) / "images" / "val")
    yield Kind(
        "explain",
        "predictions",
        [weights(base, task), images, "--method", "predictions"],
        {"method": "spectrum", "against": another, "truth": root_of(task, base)},
    )


def trained(base: Path) -> str:
    """A run of a classifier."""
    run = base / "reported"
    if not (run / "summary.json").exists():
        fit(replace(plain_run("classification", base), epochs=1, output=str(run)))
    return str(run)


def _reports(base: Path) -> Iterator[Kind]:
    # without times the page is the same in every call
    page = ["--output", str(base / "out" / "a.html"), "--rounds", "0"]
    others = {"output": base / "out" / "b.html", "rounds": 1}
    yield Kind("report", "run", [trained(base), *page, "--examples", "1"], others)
    named = [trained(base), *_data("folder", base / "classes0"), *page]
    yield Kind("report", "named data", named, {**others, "data.root": base / "classes1"})
    yield Kind("report", "stored", [trained(base), *page, "--evaluate", "false"], {**others, "evaluate": "true"})


def _comparisons(base: Path) -> Iterator[Kind]:
    page = ["--output", str(base / "out" / "a.html"), "--rounds", "0"]
    others = {"output": base / "out" / "b.html", "rounds": 1}
    yield Kind("compare", "costs", [trained(base), str(Path(trained(base)) / "best.safetensors"), *page], others)
    both = [trained(base), weights(base), *_data("folder", base / "classes0"), "--examples", "1", *page]
    yield Kind("compare", "named data", both, {**others, "data.root": base / "classes1"})


def _laboratories(base: Path) -> Iterator[Kind]:
    """What the recipe's options do, the walk of `train` shows: here all of them have to come to the runs."""
    run = plain_run("classification", base)
    host = ["--host_options.width", "8", "--host_options.depths", "[1,1,1,1]", "--host_options.num_heads", "[1,1,1,1]"]
    argv = ["--mixers", "identity,pooling", *host, *_data("folder", base / "classes0"), "--image_size", "64"]
    argv += ["--epochs", "4", "--batch_size", "4", "--augment.hflip", "0.5", "--device", "cpu"]
    own = {
        "mixers": "identity,window",
        "host": "mat",
        "host_options": '{"width": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 1, 1]}',
        "mixer_options": '{"kernel_size": 5}',
        "equal": "macs",
        "budget": 60000,
        "seeds": 2,
        "wait": "false",
        "output": base / "out" / "another",
    }
    shared = {name: _token(other_values(run, name, base)[0]) for name in options_of("lab") if name in set(names())}
    extra = {
        name: [t for n, v in (beside("classification", name, base) or {}).items() for t in (f"--{n}", _token(v))]
        for name in shared
    }
    yield Kind("lab", "mixers", [*argv, "--output", str(base / "out" / "lab")], shared | own, extra)


def _token(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _demos(base: Path) -> Iterator[Kind]:
    for name in ("runtime", "runtime2"):
        if not (base / name).exists():
            stand_in(base / name, webgpu=name == "runtime")
    page = ["--output", str(base / "out" / "a"), "--onnxruntime_web", str(base / "runtime"), "--image_size", "64"]
    images = ["--images", str(base / "classes0" / "val"), "--examples", "1"]
    others = {
        "output": base / "out" / "b",
        "onnxruntime_web": base / "runtime2",
        "image_size": 96,
        "images": base / "classes1",
        "title": "another",
        "examples": 0,
        "serve": "true",
        "port": 1,
    }
    serving = {"port": ["--serve", "true"]}
    for task in ("classification", "detection", "semantic_segmentation"):
        yield Kind("demo", task, [weights(base, task), *page, *images], others, serving)


def _exports(base: Path) -> list[Kind]:
    out = ["--format", "onnx", "--output", str(base / "out" / "a.onnx"), "--image_size", "32"]
    data = _data("folder", base / "classes0")
    others = {"format": "torch_export", "output": base / "out" / "b.onnx", "data.root": base / "classes1"}
    image = str(base / "classes0" / "train" / "cat" / "0.png")
    int8 = ["--quantize", "int8", "--max_drop", "100", "--max_slowdown", "1000"]
    missed = {"quantize": None, "max_drop": -101, "max_slowdown": 1e-6}
    return [
        Kind("export", "onnx", [weights(base), *out, "--images", image], others),
        Kind("export", "int8", [weights(base), *out, *data, *int8], others | missed),
    ]


def _benchmarks(base: Path) -> list[Kind]:
    quick = ["--rounds", "1", "--roofline", "false"]
    small = ["emsnet_xxtiny", "--image_size", "32", *quick]
    head = ["mat_1", "--model_options", '{"depths": [1, 1, 1, 1]}', "--head_options", '{"channels": 8}']
    images = ["--images", str(base / "classes0" / "val")]
    labels = ["--variants", '{"a": {"branch_fusion": false}}']
    named = {"images": base / "classes0" / "val"}
    mat = {**named, "variants": '{"a": {"mlp_dwconv": false}}', "model_options": '{"depths": [1, 2, 1, 1]}'}
    return [
        Kind("benchmark", "torch", small, named),
        Kind("benchmark", "onnxruntime", [*small, "--runtime", "onnxruntime"], {**named, "runtime": "torch"}),
        Kind(
            "benchmark",
            "variants",
            [*small, *labels],
            {**named, "variants": '{"b": {"branch_fusion": false}}', "model_options": '{"depths": [1, 1, 1, 1]}'},
        ),
        Kind(
            "benchmark",
            "head",
            [*head, "--head", "segformer", "--image_size", "32", *quick],
            {**mat, "head": "upernet"},
        ),
        Kind("benchmark", "detector", [*head, "--head", "retinanet", "--image_size", "32", *quick], mat),
        Kind("benchmark", "table", ["--options_of", "emsnet:3.8", "--image_size", "32", *quick], named),
        Kind("benchmark", "images", [*small, *images], {"images": base / "classes0" / "train"}),
        Kind("benchmark", "weights", [weights(base), *images, *quick], {"images": base / "classes0" / "train"}),
    ]


def _label_maps(base: Path) -> list[Kind]:
    argv = [weights(base), "--output", str(base / "out" / "maps"), "--image_size", "32"]
    return [
        Kind("token_labels", "parts", [*argv, *_data("folder", base / "classes0")], {"data.root": base / "classes1"}),
        Kind("token_labels", "flat", [*argv, *_data("folder", base / "flat0")], {"data.root": base / "flat1"}),
    ]


def _teachings(base: Path) -> Iterator[Kind]:
    run = plain_run("classification", base)
    shared = {name: _token(other_values(run, name, base)[0]) for name in options_of("teach") if name in set(names())}
    others = {
        **shared,
        "model": "test_vit",  # of another normalisation
        "model_options": '{"in_chans": 1}',
        "outputs": "both",
        "output": base / "out" / "other",
        "overwrite": "true",
    }
    extra = {
        name: [t for n, v in (beside("classification", name, base) or {}).items() for t in (f"--{n}", _token(v))]
        for name in shared
        if name != "data.source"  # the same images by another reader have the same outputs
    }
    for label, folder in (("parts", "classes0"), ("flat", "flat0")):
        argv = [weights(base), *_data("folder", base / folder), "--image_size", "32", "--epochs", "4", "--batch_size"]
        argv += ["4", "--augment.hflip", "0.5", "--device", "cpu", "--output", str(base / "out" / "taught")]
        yield Kind("teach", label, argv, others, extra)


def other(kind: Kind, name: str, base: Path) -> list[str]:
    """Tokens that give an option another value than the plain call's."""
    values = {
        "data.name": "digits",
        "data.root": base / "classes1",
        "data.images": base / "classes1",
        "data.annotations": base / "boxes.json",
        "data.classes": base / "other_classes.json",
        "data.source": "folder",
        "data.input_key": "png",
        "data.target_key": "label",
        "data.train_split": "val",
        "data.val_split": "train",
        "data.unlabelled": base / "classes1",
        "data.limit": 1,
        "data.val_fraction": 0.5,
        "data.split_seed": 7,
        "data.workers": 1,
        "data.max_pixels": 10,
        "data.white": 100,
        "inference.flip": "true",
        "inference.scales": "[0.5,1.0]",
        "inference.window": 40,
        "inference.score_thresh": 0.9,
        "inference.nms_thresh": 0.01,
        "inference.max_detections": 1,
        "inference.stuff_area": 9,
        "inference.boxes": base / "person_boxes.json",
        "predictions": base / "boxes.json",
        "task": "keypoints",
        "model": "emsnet_xxtiny",
        "batch_size": 2,
        "device": "cuda",
        "output": base / "out" / "new",
        "runtime": "openvino",
        "top_k": 1,
        "save": base / "out" / "saved",
        "white": 100,
        "dynamic": "none",
        "image_size": 64,
        "features": "true",
        "end_to_end": "true",
        "embed_preprocessing": "true",
        "quantize": "int8",
        "calibration_images": 2,
        "max_drop": 50,
        "max_slowdown": 2,
        "tolerance": 1e-12,
        "threads": 2,
        "overwrite": "true",
        "images": base / "classes0" / "train" / "dog" / "1.png",
        "source": base / "clip.mp4",
        "every": 2,
        "max_frames": 1,
        "against": "resnet10t",
        "truth": base / "masks0",
        "model_options": '{"branch_fusion": false}',
        "variants": '{"a": {"branch_fusion": false}}',
        "head": "segformer",
        "head_options": '{"channels": 16}',
        "options_of": "mat:4.9",
        "forms": "fused",
        "compile": "true",
        "precision": "bf16",
        "memory_format": "contiguous",
        "rounds": 2,
        "training": "true",
        "roofline": "true",
        "sizes": '{"emsnet_xxtiny": [64, 64]}',
        "format": "torch_export",
        "method": "spectrum",
        "layer": "stages.1",
        "class": "1",
        "at": "[16,16]",
        "granularity": "residual",
        "frequency": "true",
        "drawing": "maps",
        "budget": "[1,1,1,7]",
        "evaluate": "false",
        "examples": 2,
        "of": "heads",
    }
    value = kind.others[name] if name in kind.others else values[name]
    return [f"--{name}", str(value)]


def options_of(command: str) -> list[str]:
    """Dotted names of a command's options."""
    parser: Parser = importlib.import_module(f"vitrail.cli.{command}").parser()
    named = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    groups = {name.rpartition(".")[0] for name in named} - {""}
    return [name for name in named if name not in {*ABOUT, *groups, ALLOW} and name[0] != "-" and name[-1] != "+"]


# ---- observing --------------------------------------------------------------------------------------------------


def call(argv: list[str]) -> tuple[int, str, str, list[Any]]:
    """Exit code, standard output, standard error, and what was passed to loaders, devices and threads."""
    from vitrail.benchmark import benchmark, forms
    from vitrail.benchmark.forms import Candidate
    from vitrail.data import loader
    from vitrail.deploy.export import export, verify
    from vitrail.lab import laboratory
    from vitrail.utils.plain import to_dict

    passed: list[Any] = []

    def noted(original: Any, what: str) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            plain = [
                repr(a) if isinstance(a, Candidate) else a for a in given if isinstance(a, (int, float, str, Candidate))
            ]
            passed.append([what, *plain])
            return original(*args, **kwargs)

        return wrapper

    measuring: Any = importlib.import_module("vitrail.engine.evaluate")
    predicting: Any = importlib.import_module("vitrail.engine.predict")
    filming: Any = importlib.import_module("vitrail.engine.predict_video")
    original = measuring.measure

    def measured(*args: Any, infer: Any, **kwargs: Any) -> Any:
        def seen(model: Any, inputs: Any) -> Any:
            found = infer(model, inputs)
            passed.append(digest(found))
            return found

        return original(*args, infer=seen, **kwargs)

    def not_trained(plan: Any, folder: Any, recipe: Any, *, wait: bool, note: Any) -> bool:
        passed.append([digest([to_dict(plan), to_dict(recipe)]), str(folder.path), wait])
        return False

    demonstrating: Any = importlib.import_module("vitrail.cli.demo")
    out, err = io.StringIO(), io.StringIO()
    torch.manual_seed(0)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        patch.object(loader.EvalLoader, "__init__", noted(loader.EvalLoader.__init__, "loader")),
        patch.object(loader.TrainLoader, "__init__", noted(loader.TrainLoader.__init__, "training loader")),
        patch.object(measuring, "measure", measured),
        patch.object(laboratory, "work", not_trained),
        patch.object(demonstrating, "serve", lambda folder, names, port, tell: passed.append(["serve", port])),
        patch.object(predicting, "predict_files", noted(predicting.predict_files, "predict")),
        patch.object(filming, "frame_results", noted(filming.frame_results, "frames")),
        patch.object(export, "torch_threads", noted(verify.torch_threads, "threads")),
        patch.object(benchmark, "timed_form_of", noted(benchmark.timed_form_of, "candidate")),
        patch.object(benchmark, "measure", noted(benchmark.measure, "rounds")),
        patch.object(benchmark, "pinned_threads", noted(benchmark.pinned_threads, "threads")),
        # a process of its own for each call, which no option but --device reaches
        patch.object(benchmark, "peaks", lambda candidates, advance: iter([None] * len(candidates))),
        patch.object(forms, "compiled", lambda module, device: module),  # the compiled form takes minutes
        patch.object(benchmark, "rates", lambda *_: passed.append("roofline") or {}),
    ):
        warnings.simplefilter("ignore")
        code = main(argv)
    return code, out.getvalue(), err.getvalue(), passed


def observe(kind: Kind, tokens: list[str], base: Path, again: bool = False) -> dict[str, str]:
    """What can be seen of a call, as texts by name; {"refused": sentence} where it is refused.

    Args:
        kind: of the call.
        tokens: further ones.
        base: of the data.
        again: what an earlier call wrote is there.
    """
    if not again:
        shutil.rmtree(base / "out", ignore_errors=True)
        (base / "out").mkdir()
    # the titles of what is measured say whose images they are
    form = [] if kind.command == "evaluate" else ["--json"]
    code, printed, said, passed = call([kind.command, *kind.argv, *tokens, *form])
    if code == 2:
        return {"refused": said.strip().removeprefix("vitrail: ")}
    assert code == 0, (kind, tokens, said)
    content: Any = json.loads(printed) if form else printed
    seen = {
        "printed": _steady(content),
        "passed": passed,
        "files": {
            str(path.relative_to(base)): _text(path) for path in sorted((base / "out").rglob("*")) if path.is_file()
        },
    }
    if kind.command == "benchmark":
        told = ("source", "name", "label", "batch", "image_size", "build", "predictions")
        seen["rows"] = [[row.get(k) for k in told] for row in content["rows"]]
    return {name: digest(value) for name, value in seen.items()}


def _steady(value: Any) -> Any:
    """A document without what differs from call to call."""
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if not any(part in k for part in MEASURED)}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def _text(path: Path) -> bytes | str:
    # exporters write their own times and paths
    return (
        path.read_bytes()
        if path.suffix in (".png", ".npy", ".csv", ".jpg", ".html")
        else str(path.stat().st_size // 64)
    )


# ---- the walk ---------------------------------------------------------------------------------------------------


def walk_command(command: str, base: Path, labels: tuple[str, ...] = ()) -> Iterator[Row]:
    """Every option of a command in every kind of call, or in those of these labels."""
    left = set(labels)
    for kind in kinds(command, base):
        if labels and not left:
            return
        if labels and kind.label not in left:
            continue
        left.discard(kind.label)
        plain = observe(kind, [], base)
        assert "refused" not in plain, (kind, plain)
        for name in options_of(command):
            if kind.others.get(name, "") is None:
                continue
            row = _row(kind, name, other(kind, name, base), [], plain, base)
            beside = kind.beside.get(name)
            if row.verdict == "refused" and beside:
                row = _row(kind, name, other(kind, name, base), beside, observe(kind, beside, base), base)
            yield row


def _row(kind: Kind, name: str, tokens: list[str], beside: list[str], plain: dict[str, str], base: Path) -> Row:
    row = Row(f"{kind.command}: {kind.label}", name, "", "", dict.fromkeys(beside))
    again = name == "overwrite"
    if again:
        observe(kind, [], base)
        plain = observe(kind, [], base, again)
    found = observe(kind, [*beside, *tokens], base, again)
    if "refused" in found:
        return replace(row, verdict="refused", detail=re.sub(re.escape(str(base)), "", found["refused"]))
    changed = [key for key in found if found[key] != plain.get(key)]
    return replace(row, verdict="effective" if changed else "ignored", detail=", ".join(changed))
