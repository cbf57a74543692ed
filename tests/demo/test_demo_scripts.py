"""The page's scripts in Node: resampling, preprocessing and decoding are those of Pillow, PyTorch and the library."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_helpers import node, photograph, same_result
from PIL import Image

from vitrail.checkpoint.load import open_network
from vitrail.config.data import RESIZE_MODES, Preprocess
from vitrail.demo.description import (
    PROBE,
    decoding_of,
    description_of,
    of_classifier,
    preparation_of,
    probe_image,
    resizes_tall_first,
)
from vitrail.deploy.export.wrappers import part_of
from vitrail.engine.predict import Predictor

RESIZE = """
import { readFileSync, writeFileSync } from "node:fs";
import { resize } from "./page/resample.js";
JSON.parse(readFileSync("cases.json")).forEach(({ width, height, to, filter, tall }, i) => {
  const image = { width, height, data: new Uint8ClampedArray(readFileSync(`${i}.in`)) };
  writeFileSync(`${i}.out`, resize(image, ...to, filter, tall).data);
});
"""
PREPARE = """
import { readFileSync, writeFileSync } from "node:fs";
import { prepare } from "./page/prepare.js";
const shapes = JSON.parse(readFileSync("cases.json")).map(({ width, height, input, how }, i) => {
  const image = { width, height, data: new Uint8ClampedArray(readFileSync(`${i}.in`)) };
  const made = prepare(image, input, how);
  writeFileSync(`${i}.out`, made.data);
  return [1, made.channels, made.height, made.width];
});
console.log(JSON.stringify(shapes));
"""
DECODE = """
import { readFileSync } from "node:fs";
import { prepare } from "./page/prepare.js";
import { decode } from "./page/decode.js";
const found = JSON.parse(readFileSync("cases.json")).map(({ width, height, input, how, decoding, dims }, i) => {
  const image = { width, height, data: new Uint8ClampedArray(readFileSync(`${i}.in`)) };
  const outputs = {};
  for (const name of Object.keys(dims)) {
    const bytes = readFileSync(`${i}.${name}`);
    outputs[name] = { dims: dims[name], data: new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4) };
  }
  const result = decode(outputs, decoding, prepare(image, input, how), [height, width]);
  return { ...result, indices: [...(result.indices ?? [])], shares: [...(result.shares ?? [])] };
});
console.log(JSON.stringify(found));
"""


def write_cases(folder: Path, images: list[Image.Image], about: list[dict]) -> None:
    for i, image in enumerate(images):
        (folder / f"{i}.in").write_bytes(np.asarray(image.convert("RGBA")).tobytes())
    sizes = [{"width": image.width, "height": image.height} for image in images]
    (folder / "cases.json").write_text(json.dumps([size | one for size, one in zip(sizes, about, strict=True)]))


def sizes(rng: np.random.Generator) -> tuple[int, int]:
    """Sides of all magnitudes, short ones often."""
    width, height = np.exp(rng.uniform(0, 5.6, 2)).astype(int)
    return int(width), int(height)


def test_resampling_is_that_of_pillow(tmp_path):
    rng = np.random.default_rng(0)
    images, about = [], []
    for i in range(120):
        image = Image.fromarray(rng.integers(0, 256, (*sizes(rng)[::-1], 3), dtype=np.uint8))
        to = image.size if i == 7 else (image.width, sizes(rng)[1]) if i % 11 == 0 else sizes(rng)
        images.append(image)
        about.append({"to": to, "filter": RESIZE_MODES[i % len(RESIZE_MODES)], "tall": resizes_tall_first()})
    write_cases(tmp_path, images, about)
    node(RESIZE, tmp_path)
    for i, (image, case) in enumerate(zip(images, about, strict=True)):
        width, height = case["to"]
        expected = np.asarray(image.resize((width, height), Image.Resampling[case["filter"].upper()]))
        found = np.frombuffer((tmp_path / f"{i}.out").read_bytes(), np.uint8).reshape(height, width, 3)
        assert np.array_equal(found, expected), (i, image.size, case)


def test_input_of_a_classifier_is_ours(tmp_path):
    rng = np.random.default_rng(1)
    images, about, expected = [], [], []
    for i in range(60):
        size = tuple(int(v) for v in rng.integers(20, 90, 2)) if i % 3 else (int(rng.integers(20, 90)),) * 2
        channels = 1 if i % 5 == 0 else 3
        pre = Preprocess(
            image_size=size,
            mean=tuple(rng.uniform(0, 1, channels)),
            std=tuple(rng.uniform(0.1, 1, channels)),
            interpolation=RESIZE_MODES[i % len(RESIZE_MODES)],
            crop_pct=float(rng.choice([1.0, 0.9, 0.875, 0.77])),
            in_chans=channels,
        )
        image = photograph(rng, *(side + 1 for side in sizes(rng)))
        made = of_classifier(pre)
        images.append(image)
        input = {"height": size[0], "width": size[1], "channels": channels, "mean": pre.mean, "std": pre.std}
        about.append({"input": input, "how": made.how})
        expected.append(made.prepare(image))
    write_cases(tmp_path, images, about)
    compare(tmp_path, expected, most=1e-6)


def compare(folder: Path, expected: list[torch.Tensor], most: float) -> None:
    """The floats of `PREPARE` are these."""
    for i, (shape, tensor) in enumerate(zip(json.loads(node(PREPARE, folder)), expected, strict=True)):
        assert shape == list(tensor.shape), i
        found = np.frombuffer((folder / f"{i}.out").read_bytes(), np.float32).reshape(shape)
        assert np.abs(found - tensor.numpy()).max() <= most, i


@pytest.mark.parametrize(("task", "most"), [("semantic_segmentation", 1e-6), ("detection", 1e-4)])
def test_input_of_other_tasks_is_ours(weights, tmp_path, task, most):
    rng = np.random.default_rng(2)
    network = open_network(str(weights[task]))
    part = part_of(network, features=False)
    made = preparation_of(network, part.module)
    images = [photograph(rng, *(side + 1 for side in sizes(rng))) for _ in range(25)]
    input = description_of(network, part, made, "")["input"]
    write_cases(tmp_path, images, [{"input": input, "how": made.how}] * len(images))
    compare(tmp_path, [made.prepare(image) for image in images], most)


@pytest.mark.parametrize("task", ["detection", "semantic_segmentation"])
def test_decoding_is_ours(weights, tmp_path, task):
    """Boxes with scores, and the class of every pixel, are those of `vitrail predict`."""
    rng = np.random.default_rng(4)
    network = open_network(str(weights[task]))
    part = part_of(network, features=False)
    made = preparation_of(network, part.module)
    images = [photograph(rng, *size) for size in ((90, 70), (151, 40), (33, 64), (20, 25), (130, 129))]
    about = []
    description = description_of(network, part, made, "")
    for i, image in enumerate(images):
        with torch.no_grad():
            outputs = part.module(made.prepare(image))
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        for name, output in zip(part.outputs, outputs, strict=True):
            (tmp_path / f"{i}.{name}").write_bytes(output.contiguous().numpy().tobytes())
        dims = {name: list(output.shape) for name, output in zip(part.outputs, outputs, strict=True)}
        decoding = decoding_of(network, part)
        about.append({"input": description["input"], "how": made.how, "decoding": decoding, "dims": dims})
    write_cases(tmp_path, images, about)
    found = json.loads(node(DECODE, tmp_path))
    for image, one in zip(images, found, strict=True):
        same_result(one, Predictor(network, "cpu").predict([image])[0])


def test_large_maps_are_computed_smaller(tmp_path):
    """Of an image of 300 x 200 pixels with at most 1,500 of them, the map is 47 x 32."""
    logits = np.zeros((1, 3, 8, 12), np.float32)
    logits[0, 2, :, 6:] = 1
    (tmp_path / "0.out").write_bytes(logits.tobytes())
    how = {"kind": "fit", "short_side": 32, "max_side": 48, "multiple": 1, "filter": "bilinear", "least": 32}
    input = {"channels": 3, "mean": [0, 0, 0], "std": [1, 1, 1]}
    decoding = {"kind": "class_maps", "output": "out", "most_pixels": 1500}
    about = {"input": input, "how": how, "decoding": decoding, "dims": {"out": list(logits.shape)}}
    write_cases(tmp_path, [Image.new("RGB", (300, 200))], [about])
    (found,) = json.loads(node(DECODE, tmp_path))
    assert (found["mapHeight"], found["mapWidth"]) == (32, 47)
    assert found["shares"] == pytest.approx([0.5, 0, 0.5], abs=0.05)


def test_probe_is_the_same_image(tmp_path):
    program = 'import { probe } from "./page/prepare.js"; import { writeFileSync } from "node:fs";'
    node(program + f"writeFileSync('0.out', probe({PROBE[0]}, {PROBE[1]}).data);", tmp_path)
    found = np.frombuffer((tmp_path / "0.out").read_bytes(), np.uint8).reshape(PROBE[1], PROBE[0], 4)
    assert np.array_equal(found[..., :3], np.asarray(probe_image()))


def test_halves_are_rounded_as_in_python(tmp_path):
    values = [0.5, 1.5, 2.5, 0.49999999999999994, 3.2, 3.7, 4, 1e9 + 0.5]
    program = f'import {{ halfEven }} from "./page/prepare.js"; console.log(JSON.stringify({values}.map(halfEven)));'
    assert json.loads(node(program, tmp_path)) == [round(value) for value in values]
