"""Every recipe opens as it should, is read, builds its network and trains two steps."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.cli import main

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
    return {
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


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_recipe(recipe, roots, tmp_path):
    text = recipe.read_text(encoding="utf-8")
    head = text[: text.index("\ntask:")]
    for word in ("Expected:", "Hardware:", "Command:"):
        assert word in head
    assert f"configs/{recipe.relative_to(CONFIGS)}" in head
    data = re.search(r"^data: \{name: (\w+)", text, re.M).group(1)
    argv = ["train", "--config", str(recipe), "--output", str(tmp_path / "run"), "--max_steps", "2"]
    argv += ["--batch_size", "4", "--data.workers", "0", "--device", "cpu", "--precision", "fp32"]
    if data != "digits":
        argv += ["--data.root", str(roots[data])]
    if "image_size: 224" in text:
        argv += ["--image_size", "64"]
    assert main(argv) == 0
    assert (tmp_path / "run" / "best.safetensors").is_file()
