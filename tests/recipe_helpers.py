"""Recipes as they open, the command each names, and small data with the classes that command expects.

`python tests/recipe_helpers.py [NAME ...]` runs every recipe's own command (of those whose path holds a NAME) for two
steps and prints a table: recipe, processes, steps, seconds, loss of the first step.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from keypoint_helpers import NAMES, person
from vitrail.cli.parsing import read
from vitrail.cli.train import given, parser
from vitrail.config.train import TrainConfig
from vitrail.data.datasets.coco_rle import pixels_of
from vitrail.engine.option_rules import check, drop_ineffective

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
#: width and height of images of COCO and ADE20K: long, so that 1333 pixels limit them and a step on CPUs is short
SIZE = (320, 80)
THINGS, STUFF = 80, 53
#: processes that this machine can be asked for, of those a command starts
MOST = 2


@dataclass
class Recipe:
    """A recipe and the command that stands in its head.

    Attributes:
        path: below `configs`.
        head: the comments before the first value.
        values: as in the file.
        argv: of `vitrail`, with the placeholders as they stand.
        processes: that the command starts.
    """

    path: Path
    head: str
    values: dict[str, Any]
    argv: list[str]
    processes: int

    @property
    def name(self) -> str:
        """Path below `configs`."""
        return str(self.path.relative_to(CONFIGS))

    def filled(self, places: dict[str, Path]) -> list[str]:
        """The command's words with every placeholder replaced."""
        return [str(places.get(word, word)) for word in self.argv]

    def config(self, places: dict[str, Path], *more: str) -> TrainConfig:
        """What the command trains with, checked as the command does; `more` are further words."""
        assert self.argv[0] == "train"
        call = read(parser(), [*self.filled(places)[1:], *more])
        config, _ = drop_ineffective(TrainConfig(**call.values), call.typed)
        check(config, *given(call))
        return config


def read_recipe(path: Path) -> Recipe:
    """A recipe with its command, which must be `vitrail train` or torchrun's of it."""
    text = path.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    words = shlex.split(re.search(r"^# Command: (.+)$", head, re.M).group(1))
    started = re.fullmatch(r"torchrun --nproc-per-node (\d+) -m vitrail", " ".join(words[:5]))
    if started is None:
        assert words[0] == "vitrail", words
        return Recipe(path, head, yaml.safe_load(text), words[1:], 1)
    return Recipe(path, head, yaml.safe_load(text), words[5:], int(started.group(1)))


# ---- data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """How much of everything: images, classes of ImageNet, identities."""

    images: int
    classes: int
    identities: int


def places_for(base: Path, recipe: Recipe, amount: Amount) -> dict[str, Path]:
    """A file or folder for every placeholder of a recipe's command but that of `--init`; made once in `base`."""
    writers = {
        "coco": ("COCO", write_coco),
        "ade20k": ("ADE20K", write_ade20k),
        "market1501": ("MARKET", write_market),
        "imagenet": ("IMAGENET", write_imagenet),
        "folder": ("FOLDER", write_imagenet),
        "cifar10": ("FOLDER", lambda root, _: write_cifar(root, 10)),
        "cifar100": ("FOLDER", lambda root, _: write_cifar(root, 100)),
        "digits": ("", lambda root, _: None),
    }
    mini, kind = recipe.path.parent.name == "mini", recipe.values["data"]["name"]
    word, write = writers[kind]
    root = base / f"{kind}_{amount.images}"
    if not root.exists():
        root.mkdir(parents=True)
        write(root, amount)
    # the small recipes name their data sets by their own words
    words = {"MAPS": root / "maps", word: root}
    if mini or kind == "cifar10":
        words |= dict.fromkeys(("PENNFUDAN", "COCO_MINI", "COCO_KPT_MINI", "FOLDER", "FOLDER_OR_NPZ"), root)
    return words


def noise(seed: int, width: int, height: int) -> Image.Image:
    """An image of coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def write_coco(root: Path, amount: Amount) -> None:
    """Instances, keypoints and panoptic segments of 80 things and 53 stuff, in COCO's own layout."""
    things = [{"id": i, "name": f"thing{i}", "isthing": 1, "color": [i, 20, 200]} for i in range(1, THINGS + 1)]
    things[0]["name"] = "person"
    stuff = [{"id": 100 + i, "name": f"stuff{i}", "isthing": 0, "color": [i, 200, 20]} for i in range(STUFF)]
    keypoint_categories = [{**things[0], "keypoints": NAMES}]
    for part, count in (("train", amount.images), ("val", 2)):
        (root / f"{part}2017").mkdir(parents=True)
        maps = root / "annotations" / f"panoptic_{part}2017"
        maps.mkdir(parents=True)
        images, objects, persons, segments = [], [], [], []
        for number in range(1, count + 1):
            name = f"{number:012d}.jpg"
            noise(number, *SIZE).save(root / f"{part}2017" / name)
            images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            ids = np.full(SIZE[::-1], 1)
            infos = [{"id": 1, "category_id": 100 + number % STUFF, "iscrowd": 0}]
            for k, left in enumerate((8, 110, 210)):
                box = [left, 12, 70, 56]
                category = (5 * number + k) % THINGS + 1
                corners = [left, 12, left + 70, 12, left + 70, 68, left, 68]
                known = {"id": 10 * number + k, "image_id": number, "bbox": box, "area": 70 * 56, "iscrowd": 0}
                objects.append({**known, "category_id": category, "segmentation": [corners]})
                persons.append(person(10 * number + k, number, box))
                ids[12:68, left : left + 70] = k + 2
                infos.append({"id": k + 2, "category_id": category, "iscrowd": 0})
            Image.fromarray(pixels_of(ids)).save(maps / name.replace("jpg", "png"))
            segments.append({"image_id": number, "file_name": name.replace("jpg", "png"), "segments_info": infos})
        for kind, annotations, categories in (
            ("instances", objects, things),
            ("person_keypoints", persons, keypoint_categories),
            ("panoptic", segments, [*things, *stuff]),
        ):
            content = {"images": images, "annotations": annotations, "categories": categories}
            (root / "annotations" / f"{kind}_{part}2017.json").write_text(json.dumps(content), encoding="utf-8")


def write_ade20k(root: Path, amount: Amount) -> None:
    """Masks of the values 0 to 150, in ADE20K's own layout."""
    for part, count in (("training", amount.images), ("validation", 2)):
        for folder in ("images", "annotations"):
            (root / folder / part).mkdir(parents=True)
        for number in range(count):
            noise(number, *SIZE).save(root / "images" / part / f"ADE_{number:08d}.jpg")
            values = np.random.default_rng(number).integers(0, 151, (SIZE[1] // 8, SIZE[0] // 8), dtype=np.uint8)
            mask = Image.fromarray(values).resize(SIZE, Image.Resampling.NEAREST)
            mask.save(root / "annotations" / part / f"ADE_{number:08d}.png")


def write_imagenet(root: Path, amount: Amount) -> None:
    """An image a class in `train` and `val`, and a label map for each of the former in `maps`."""
    for number, part in enumerate(("train", "val")):  # a file each: the parts must not share one
        noise(number, 120, 96).save(root / f"{part}.jpg")
    rng = np.random.default_rng(0)
    scores, kinds = rng.normal(size=(5, 4, 4)), rng.integers(0, amount.classes, (5, 4, 4))
    (root / "maps").mkdir()
    np.save(root / "maps" / "map.npy", np.stack([scores, kinds]).astype(np.float16))
    for i in range(amount.classes):
        wnid = f"n{1440764 + i:08d}"
        for part in ("train", "val"):
            (root / part / wnid).mkdir(parents=True)
            os.link(root / f"{part}.jpg", root / part / wnid / f"{wnid}_1.JPEG")
        (root / "maps" / wnid).mkdir()
        os.link(root / "maps" / "map.npy", root / "maps" / wnid / f"{wnid}_1.npy")
    for part in ("train", "val"):
        (root / f"{part}.jpg").unlink()


def write_cifar(root: Path, classes: int) -> None:
    """An image a class, as arrays."""
    pixels = np.random.default_rng(0).integers(0, 255, (classes, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(classes)
    np.savez(root / f"cifar{classes}.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)


def write_market(root: Path, amount: Amount) -> None:
    """Identities seen by four cameras, in Market-1501's own layout."""
    parts = {"bounding_box_train": amount.identities, "query": 3, "bounding_box_test": 3}
    for number, (part, identities) in enumerate(parts.items()):
        (root / part).mkdir()
        image = root / f"{part}.jpg"
        noise(number, 64, 128).save(image)
        for pid in range(1, identities + 1):
            for camera in range(1, 5):
                # another second than the query's, so that nothing is in two parts
                second = {"query": 1}.get(part, 2)
                os.link(image, root / part / f"{pid:04d}_c{camera}s{second}_000001_00.jpg")
        image.unlink()


def write_weights(path: Path, model: str) -> Path:
    """Fresh weights of a classifier of ImageNet's classes, as a file for `--init`."""
    import vitrail
    from vitrail.checkpoint.description import WeightsMeta
    from vitrail.checkpoint.format import save_weights

    network = vitrail.create_model(model)
    save_weights(path, network.state_dict(), WeightsMeta(model=model, classes=[str(i) for i in range(1000)]))
    return path


# ---- running ----------------------------------------------------------------------------------------------------


def run_recipe(recipe: Recipe, base: Path, steps: int = 2, device: str = "cpu") -> dict[str, Any]:
    """Run a recipe's own command, shrunk by its data and its steps alone, on at most `MOST` processes.

    Returns: recipe, processes (those of the command, and those started), steps, seconds, loss of the first step.

    Raises:
        AssertionError: the command fails; with the end of what it said.
    """
    # one image for each process, or two where batch norms need them: detectors at 1333 pixels take gigabytes
    normed = recipe.values["data"]["name"] == "ade20k" or recipe.values.get("head") == "ssdlite"
    images = 2 * MOST if normed else MOST
    words = places_for(base, recipe, Amount(images, classes=8, identities=16))
    if "--init" in recipe.argv:
        model = recipe.values["model"]
        weights = words[recipe.argv[recipe.argv.index("--init") + 1]] = base / f"{model}.safetensors"
        if not weights.exists():
            write_weights(weights, model)
    output = base / "runs" / recipe.name.replace("/", "_").removesuffix(".yaml")
    processes = min(recipe.processes, MOST)
    start = [sys.executable, "-m"]
    if recipe.processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    argv = [*start, "vitrail", *recipe.filled(words), "--output", str(output), "--max_steps", str(steps)]
    argv += ["--data.workers", "0", "--device", device]
    began = time.perf_counter()
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert (output / "best.safetensors").is_file()
    return {
        "recipe": recipe.name,
        "processes": f"{processes} of {recipe.processes}" if processes < recipe.processes else str(processes),
        "steps": summary["steps"],
        "seconds": round(seconds),
        "loss": first_loss(output),
    }


def first_loss(run: Path) -> float:
    """Of the first step, as TensorBoard has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events"))
    events.Reload()
    return events.Scalars("train/loss")[0].value


def row(found: dict[str, Any]) -> str:
    """One line of the table."""
    return f"| {found['recipe']} | {found['processes']} | {found['steps']} | {found['seconds']} | {found['loss']:.4g} |"


def main() -> int:
    """Print the table; the number of recipes that failed."""
    wanted = sys.argv[1:]
    chosen = [r for r in map(read_recipe, RECIPES) if not wanted or any(name in r.name for name in wanted)]
    print("| recipe | processes | steps | seconds | first loss |\n|---|---|---:|---:|---:|", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as base:
        for recipe in chosen:
            try:
                print(row(run_recipe(recipe, Path(base))), flush=True)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"| {recipe.name} | failed | | | |\n{error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
