"""Files of strangers, generated: a right answer, or one sentence with exit code 2; never a traceback, a hang or a loss.

    pytest -m fuzz                         ten minutes on two cores
    VITRAIL_FUZZ_MINUTES=60 pytest -m fuzz

A failure names the command and keeps the files that it met.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fuzz_helpers import Fuzzer, damaged, fuzz_settings, mutated
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotated_helpers import write_coco

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(7200)]

#: a network that is built and run in a moment
SMALL = ["--model", "emsnet_xxtiny", "--image_size", "32", "--device", "cpu", "--data.workers", "0"]
STEP = ["--epochs", "1", "--max_steps", "1", "--batch_size", "4", "--output", "out"]
MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "F")


def image_bytes(mode: str, size: tuple[int, int], format: str, seed: int = 0) -> bytes:
    """An encoded image of noise, or another mode's where the format has no such."""
    rng = np.random.default_rng(seed)
    high = {"I;16": 65535, "I": 70000}.get(mode, 255)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(rng.integers(0, high, size[::-1]).astype(kind))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode)
    out = io.BytesIO()
    try:
        image.save(out, format)
    except (OSError, ValueError, KeyError):
        image.convert("RGB").save(out, format)
    return out.getvalue()


# ---- images -----------------------------------------------------------------------------------------------------


@fuzz_settings
@given(st.data())
def _images(fuzz: Fuzzer, data: st.DataObject) -> None:
    folder = fuzz.fresh()
    inputs = folder / "inputs"
    inputs.mkdir()
    for number in range(data.draw(st.integers(1, 3))):
        format = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA"]))
        size = data.draw(st.sampled_from([(8, 8), (1, 1), (40, 30), (300, 1), (1, 2000), (33, 65)]))
        content = damaged(image_bytes(data.draw(st.sampled_from(MODES)), size, format, number), data)
        name = (
            data.draw(st.sampled_from(["a", "b[c]", "é", "a\x1b[2J", "-x", "$y$", " "])) + f"{number}.{format.lower()}"
        )
        (inputs / name).write_bytes(content)
    argv = ["predict", "random:emsnet_xxtiny", "inputs", "--device", "cpu"]
    if data.draw(st.booleans()):
        argv += ["--save", "out"]
    as_json = data.draw(st.booleans())
    found = fuzz.run(*argv, *(["--json"] if as_json else []))
    if found.code == 0 and as_json:
        for record in found.document:
            assert record["error"] or 0 <= min(record["probabilities"]) <= sum(record["probabilities"]) <= 1 + 1e-5


def test_images(fuzz):
    fuzz.repeat(_images)


# ---- a folder per class -----------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "cat",
        "Cat",
        "dog",
        "1",
        "2",
        "10",
        "01",
        "train",
        "Training",
        "val",
        "TEST",
        "a b",
        "[b]",
        "$_$",
        "é",
        "猫",
        ".hidden",
        "x\x07",
    ]
)


@fuzz_settings
@given(st.data())
def _class_folders(fuzz: Fuzzer, data: st.DataObject) -> None:
    folder = fuzz.fresh()
    for _ in range(data.draw(st.integers(1, 6))):
        where = folder / "inputs" / Path(*data.draw(st.lists(NAMES, min_size=1, max_size=2)))
        where.mkdir(parents=True, exist_ok=True)
        for number in range(data.draw(st.integers(0, 6))):
            odd = ["heic", "txt", "", "broken", "link", "pipe"] if data.draw(st.integers(0, 5)) == 0 else []
            kind = data.draw(st.sampled_from(["png", "PNG", "jpg", *odd]))
            path = where / f"{number}{'.' + kind if kind in ('png', 'PNG', 'jpg', 'heic', 'txt') else '.png'}"
            if kind == "pipe":
                if not list(folder.glob("inputs/pipe*")):
                    os.mkfifo(folder / "inputs" / f"pipe{number}.png")
            elif kind == "link":
                if not path.is_symlink() and not path.exists():
                    path.symlink_to("../nowhere.png")
            elif not path.is_symlink():
                good = image_bytes("RGB", (20, 24), "JPEG" if kind == "jpg" else "PNG", number)
                path.write_bytes(damaged(good, data) if kind == "broken" else good)
    fuzz.run("train", "--data", "folder", "--data.root", "inputs", *SMALL, *STEP)


def test_class_folders(fuzz):
    fuzz.repeat(_class_folders)


# ---- COCO -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """Four images with boxes, masks and panoptic segments, twice."""
    return write_coco(tmp_path_factory.mktemp("coco"), {"train": 4, "val": 4})


def perfect(annotations: list[dict]) -> list[dict]:
    """Results that say what the annotations say."""
    kept = ("image_id", "category_id", "bbox", "segmentation")
    return [{**{name: record[name] for name in kept}, "score": 0.9} for record in annotations]


@fuzz_settings
@given(st.data())
def _coco_truth(fuzz: Fuzzer, coco: Path, data: st.DataObject) -> None:
    """Perfect results of an annotation file that was changed: at most 1, and 1 where nothing of it was."""
    truth = json.loads((coco / "annotations/instances_val.json").read_text())
    results = perfect(truth["annotations"])
    for record in results:
        record["segmentation"] = rle_of(record["segmentation"], truth["images"][0])
    task = data.draw(st.sampled_from(["detection", "instance_segmentation"]))
    side = data.draw(st.sampled_from(["truth", "results", "neither"]))
    folder = fuzz.fresh()
    (folder / "t.json").write_text(json.dumps(mutated(truth, data) if side == "truth" else truth))
    (folder / "p.json").write_text(json.dumps(mutated(results, data) if side == "results" else results))
    argv = ["evaluate", "--task", task, "--predictions", "p.json", "--data", "coco", "--data.annotations", "t.json"]
    found = fuzz.run(*argv, "--data.images", str(coco / "images/val"), "--json")
    if found.code == 0:
        assert 0 <= found.document["AP"] <= 1 + 1e-9
    if side == "neither":
        assert found.document["AP"] == 1


def rle_of(polygons: list, image: dict) -> dict:
    """Polygons as compressed run lengths, the one form that results may have."""
    from faster_coco_eval import mask

    found: Any = mask.frPyObjects(polygons, image["height"], image["width"])
    found = mask.merge(found)
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def test_coco_truth(fuzz, coco):
    fuzz.repeat(_coco_truth, coco)


@fuzz_settings
@given(st.data())
def _coco_training(fuzz: Fuzzer, coco: Path, data: st.DataObject) -> None:
    task, group, head = data.draw(
        st.sampled_from(
            [
                ("detection", "instances", '{"channels": 8}'),
                (
                    "instance_segmentation",
                    "instances",
                    '{"channels": 8, "fc_channels": 8, "box_batch_size_per_image": 8}',
                ),
                ("panoptic_segmentation", "panoptic", "{}"),
            ]
        )
    )
    folder = fuzz.fresh()
    (folder / "inputs/annotations").mkdir(parents=True)
    (folder / "inputs/images").symlink_to(coco / "images")
    for part in ("train", "val"):
        name = f"{group}_{part}.json"
        content = json.loads((coco / "annotations" / name).read_text())
        changed = mutated(content, data) if data.draw(st.booleans()) else content
        (folder / "inputs/annotations" / name).write_text(json.dumps(changed))
        if group == "panoptic":
            (folder / f"inputs/annotations/panoptic_{part}").symlink_to(coco / f"annotations/panoptic_{part}")
    argv = ["train", "--task", task, "--data", "coco", "--data.root", "inputs", "--head_options", head, *SMALL, *STEP]
    fuzz.run(*argv, "--detection.max_side", "64")


def test_coco_training(fuzz, coco):
    fuzz.repeat(_coco_training, coco)


# ---- masks of classes -------------------------------------------------------------------------------------------


@fuzz_settings
@given(st.data())
def _mask_folders(fuzz: Fuzzer, data: st.DataObject) -> None:
    folder = fuzz.fresh()
    flat = data.draw(st.booleans())
    for part in ("training", "validation"):
        for kind in ("images", "annotations"):
            where = folder / "inputs" / kind / ("" if flat else part)
            where.mkdir(parents=True, exist_ok=True)
            for number in range(3):
                # odd things are drawn at a number in the middle of a range, as the ends are drawn often
                size = (36, 40) if data.draw(st.integers(0, 30)) == 17 else (40, 36)
                if kind == "images":
                    content = image_bytes("RGB", size, "PNG", number)
                else:
                    values = np.random.default_rng(number).integers(
                        0, data.draw(st.sampled_from([3] * 20 + [1, 256])), size[::-1]
                    )
                    out = io.BytesIO()
                    Image.fromarray(values.astype(np.uint8)).save(out, "PNG")
                    content = out.getvalue()
                if data.draw(st.integers(0, 30)) == 17:
                    content = damaged(content, data)
                (where / f"{number}.png").write_bytes(content)
    listed: dict = {"classes": ["a", "b", "c"], "ignore_index": 255}
    text = json.dumps(mutated(listed, data) if data.draw(st.booleans()) else listed)
    (folder / "inputs/classes.json").write_text(text)
    argv = ["train", "--task", "semantic_segmentation", "--data", "ade20k", "--data.root", "inputs", *SMALL, *STEP]
    fuzz.run(*argv, "--head_options", '{"channels": 8, "fpn_channels": 8}')


def test_mask_folders(fuzz):
    fuzz.repeat(_mask_folders)


# ---- weights ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    """A small network's weights file."""
    from vitrail.checkpoint.description import WeightsMeta
    from vitrail.checkpoint.format import save_weights
    from vitrail.config.data import Preprocess
    from vitrail.factory import build_model

    options = {"depths": [1, 1, 1, 1]}
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    meta = WeightsMeta("emsnet_xxtiny", options, classes=["a", "b", "c"], preprocess=Preprocess((32, 32)))
    save_weights(path, build_model("emsnet_xxtiny", options, 3).state_dict(), meta)
    return path.read_bytes()


@fuzz_settings
@given(st.data())
def _weights_files(fuzz: Fuzzer, weights: bytes, data: st.DataObject) -> None:
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    kind = data.draw(st.sampled_from(["description", "header", "bytes"]))
    content = weights
    if kind == "description":
        described = mutated(json.loads(header["__metadata__"]["vitrail"]), data)
        header["__metadata__"]["vitrail"] = json.dumps(described)
    elif kind == "header":
        header = mutated(header, data)
    if kind != "bytes":
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + weights[8 + size :]
    else:
        content = damaged(weights, data)
    folder = fuzz.fresh()
    (folder / "inputs").mkdir()
    (folder / "inputs/w.safetensors").write_bytes(content)
    (folder / "inputs/a.png").write_bytes(image_bytes("RGB", (20, 20), "PNG"))
    fuzz.run("predict", "inputs/w.safetensors", "inputs/a.png", "--device", "cpu")


def test_weights_files(fuzz, weights):
    fuzz.repeat(_weights_files, weights)


# ---- exported files ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory) -> dict[str, Path]:
    """The weights as an ONNX file and as one of torch.export."""
    from vitrail.cli import main

    folder = tmp_path_factory.mktemp("exported")
    (folder / "w.safetensors").write_bytes(weights)
    made = {"onnx": folder / "w.onnx", "torch_export": folder / "w.pt2"}
    for format, path in made.items():
        argv = ["export", str(folder / "w.safetensors"), "--format", format, "--output", str(path), "--dynamic", "none"]
        assert main(argv) == 0
    return made


@fuzz_settings
@given(st.data())
def _exported_files(fuzz: Fuzzer, exported: dict[str, Path], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(exported.values())))
    folder = fuzz.fresh()
    (folder / "inputs").mkdir()
    (folder / "inputs/a.png").write_bytes(image_bytes("RGB", (20, 20), "PNG"))
    content, described = path.read_bytes(), json.loads(Path(f"{path}.json").read_text())
    if data.draw(st.booleans()):
        described = mutated(described, data)
    else:
        content = damaged(content, data)
    (folder / "inputs" / path.name).write_bytes(content)
    (folder / "inputs" / f"{path.name}.json").write_text(json.dumps(described))
    fuzz.run("predict", f"inputs/{path.name}", "inputs/a.png", "--device", "cpu")


def test_exported_files(fuzz, exported):
    fuzz.repeat(_exported_files, exported)


# ---- recipes and runs -------------------------------------------------------------------------------------------

RECIPE = {
    "model": "emsnet_xxtiny",
    "model_options": {"depths": [1, 1, 1, 1]},
    "data": {"name": "digits"},
    "augment": {"hflip": 0.0, "scale": [0.7, 1.0]},
    "optim": {"optimizer": "adamw", "weight_decay": 0.05, "warmup_epochs": 1},
    "image_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.001,
    "seed": 3,
}


@fuzz_settings
@given(st.data())
def _recipes(fuzz: Fuzzer, data: st.DataObject) -> None:
    recipe = mutated(RECIPE, data)
    text = yaml.safe_dump(recipe, allow_unicode=True) if writable(recipe) else json.dumps(recipe)
    content = damaged(text.encode("utf-8", "surrogateescape"), data) if data.draw(st.booleans()) else text.encode()
    folder = fuzz.fresh()
    (folder / "inputs").mkdir()
    (folder / "inputs/r.yaml").write_bytes(content)
    argv = ["train", "--config", "inputs/r.yaml", "--max_steps", "1", "--output", "out", "--device", "cpu"]
    fuzz.run(*argv, "--data.workers", "0")


def writable(value) -> bool:
    """Whether YAML writes a value: its numbers have as many digits as Python writes."""
    try:
        yaml.safe_dump(value)
    except (ValueError, yaml.YAMLError):
        return False
    return True


def test_recipes(fuzz):
    fuzz.repeat(_recipes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that was stopped after a step."""
    from vitrail.cli import main

    folder = tmp_path_factory.mktemp("run") / "out"
    argv = ["train", "--model", "emsnet_xxtiny", "--model_options", '{"depths": [1, 1, 1, 1]}', "--device", "cpu"]
    assert main([*argv, "--data.workers", "0", "--epochs", "2", "--max_steps", "1", "--output", str(folder)]) == 0
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@fuzz_settings
@given(st.data())
def _runs(fuzz: Fuzzer, run: dict[str, bytes], data: st.DataObject) -> None:
    folder = fuzz.fresh()
    victim = data.draw(st.sampled_from(sorted(run)))
    for name, content in run.items():
        path = folder / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == victim:
            if name.endswith((".json", ".vitrail-run")) and data.draw(st.booleans()):
                content = json.dumps(mutated(json.loads(content), data)).encode()
            elif name.endswith(".yaml") and data.draw(st.booleans()):
                content = json.dumps(mutated(yaml.safe_load(content), data)).encode()
            else:
                content = damaged(content, data)
        path.write_bytes(content)
    if data.draw(st.booleans()):
        fuzz.run("evaluate", "out", "--device", "cpu")
    else:
        argv = ["train", "--model", "emsnet_xxtiny", "--model_options", '{"depths": [1, 1, 1, 1]}', "--device", "cpu"]
        how = data.draw(st.sampled_from(["--resume", "--overwrite"]))
        fuzz.run(*argv, "--data.workers", "0", "--epochs", "2", "--max_steps", "2", "--output", "out", how)


def test_runs(fuzz, run):
    fuzz.repeat(_runs, run)
