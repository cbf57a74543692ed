"""Every recipe opens as it should, is read, builds its network and trains two steps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from annotated_helpers import write_coco
from people_helpers import four_people, write_people
from vitrail.bench.reproduce import PAPERS, read_rows
from vitrail.cli import main
from vitrail.cli.parsing import read
from vitrail.cli.train import parser
from vitrail.config import TrainConfig
from vitrail.tasks import build_task

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Small data of every layout the recipes name."""
    base = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for name in ("n01440764", "n01443537"):
            folder = base / "folder" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (72, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    for classes in (10, 100):
        pixels = rng.integers(0, 255, (classes, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(classes)
        np.savez(base / f"cifar{classes}.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    write_coco(base / "coco", {"train": 4, "val": 2})
    for part in ("train", "val"):
        write_people(base / "people", four_people(), part)
        for folder in ("images", "annotations"):
            (base / "masks" / folder / part).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (90, 72), (40 * i, 90, 20)).save(base / "masks" / "images" / part / f"{i}.jpg")
            mask = Image.fromarray(rng.integers(0, 12, (72, 90), dtype=np.uint8))
            mask.save(base / "masks" / "annotations" / part / f"{i}.png")
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (base / "market" / part).mkdir(parents=True)
        for pid, camera in [(pid, camera) for pid in range(1, 18) for camera in range(1, 5)]:
            crop = Image.new("RGB", (32, 64), (10 * pid, 50 * camera, 90))
            crop.save(base / "market" / part / f"{pid:04d}_c{camera}s1_000001_00.jpg")
    return {
        "detection": base / "coco",
        "instance_segmentation": base / "coco",
        "panoptic_segmentation": base / "coco",
        "keypoints": base / "people",
        "semantic_segmentation": base / "masks",
        "reid": base / "market",
        "imagenet": base / "folder",
        "folder": base / "folder",
        "cifar10": base / "cifar10.npz",
        "cifar100": base / "cifar100.npz",
    }


def test_all_six_papers_have_a_recipe():
    assert {p.parent.name for p in CONFIGS.glob("*/imagenet.yaml")} == {
        "pslt",
        "lvt",
        "pale",
        "emsnet",
        "mat",
        "partialformer",
    }


def task_in(text: str) -> str:
    return re.search(r"^task: (\w+)", text, re.M).group(1)


def options(text: str, roots: dict[str, Path]) -> list[str]:
    """The command line that makes a recipe small."""
    task, data = task_in(text), re.search(r"^data: \{name: (\w+)", text, re.M).group(1)
    argv = ["--batch_size", "16" if task == "reid" else "4"]
    argv += ["--data.workers", "0", "--device", "cpu", "--precision", "fp32"]
    if data != "digits":
        argv += ["--data.root", str(roots[task if task in roots else data])]
    if task == "keypoints":
        return [*argv, "--image_size", "64", "64"]
    large = re.search(r"^image_size: (224|512|800|320|192|160|\[256, 128\])", text, re.M)
    return [*argv, "--image_size", *(["64", "32"] if task == "reid" else ["64"])] if large else argv


def own_task(text: str) -> bool:
    """Whether it is a full recipe beyond classification, whose networks are too large for a quick step."""
    return task_in(text) != "classification"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_recipe_says_what_it_is_and_can_be_built(recipe, roots):
    text = recipe.read_text(encoding="utf-8")
    head = text[: text.index("\ntask:")]
    for word in ("Expected:", "Hardware:", "Command:"):
        assert word in head
    assert f"configs/{recipe.relative_to(CONFIGS)}" in head
    task = build_task(TrainConfig(**read(parser(), ["--config", str(recipe), *options(text, roots)]).values))
    with torch.device("meta"):
        assert sum(p.numel() for p in task.build_model().parameters()) > 1e6
    task.train_batches(0, 1)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(p, marks=[pytest.mark.slow] if own_task(p.read_text()) and p.parent.name != "mini" else [])
        for p in RECIPES
    ],
    ids=lambda p: str(p.relative_to(CONFIGS)),
)
def test_a_recipe_trains(recipe, roots, tmp_path):
    text = recipe.read_text(encoding="utf-8")
    argv = ["train", "--config", str(recipe), "--output", str(tmp_path / "run"), "--max_steps", "2"]
    assert main([*argv, *options(text, roots)]) == 0
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_every_downstream_row_has_a_recipe():
    for family in PAPERS:
        rows = [row for row in read_rows(family) if row["head"] and row["model"]]
        wanted = {(row["task"], row["head"]) for row in rows if row["task"] in build_tasks()}
        texts = [p.read_text(encoding="utf-8") for p in (CONFIGS / family).glob("*.yaml")]
        found = {(task_in(text), match.group(1)) for text in texts if (match := re.search(r"^head: (\w+)", text, re.M))}
        assert wanted <= found, family


def build_tasks() -> set[str]:
    """Tasks whose networks have heads."""
    from vitrail.tasks import TASKS

    return set(TASKS) - {"classification"}
