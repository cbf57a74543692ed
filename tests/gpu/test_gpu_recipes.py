"""Recipes on a GPU: every task in half precision, and a training that diverges."""

import dataclasses
import math
from pathlib import Path

import pytest

from recipe_helpers import CONFIGS, Amount, places_for, read_recipe
from vitrail.config.train import TrainConfig
from vitrail.engine.trainer import fit
from vitrail.errors import UserError

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

SMALL = sorted((CONFIGS / "mini").glob("*.yaml"))
HEADS = [
    "emsnet/detection", "pslt/detection_sparse_rcnn", "mat/detection_ssdlite", "pale/semantic_segmentation",
    "lvt/semantic_segmentation",
]  # fmt: skip
RECIPES = [*SMALL, *(CONFIGS / f"{name}.yaml" for name in HEADS)]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def losses(path: Path, base: Path, output: Path, steps: int = 3, **changes) -> list[float]:
    """Of the first steps of a recipe on generated data, on a GPU."""
    recipe = read_recipe(path)
    places = places_for(base, recipe, Amount(images=4, classes=8, identities=16))
    config: TrainConfig = dataclasses.replace(
        recipe.config(places), device="cuda", output=str(output), max_steps=steps, init=None, **changes
    )
    config.data.workers = 0
    found: list[float] = []
    fit(config, lambda _, loss: found.append(loss))
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_task_learns_in_half_precision_what_it_learns_in_float32(path, base, tmp_path):
    batch = 16 if path.stem == "reid" else 4  # four images of four persons
    expected = losses(path, base, tmp_path / "whole", batch_size=batch, precision="fp32")
    for precision in ("bf16", "fp16"):
        found = losses(path, base, tmp_path / precision, batch_size=batch, precision=precision)
        assert all(map(math.isfinite, found))
        assert found[0] == pytest.approx(expected[0], rel=0.05, abs=0.02)


@pytest.mark.parametrize("model", ["mat_1", "pslt_tiny", "emsnet_xxtiny", "pale_tiny", "lvt", "partialformer_b0"])
def test_a_training_that_diverges_says_so(tmp_path, model):
    config = TrainConfig(model=model, image_size=32, device="cuda", lr=1e6, epochs=3, output=str(tmp_path / "run"))
    config.optim.warmup_epochs = 0
    with pytest.raises(UserError, match="The training diverged"):
        fit(config)


def test_two_runs_of_one_seed_begin_alike(base, tmp_path):
    path = CONFIGS / "mini" / "detection.yaml"
    first, second = (losses(path, base, tmp_path / name, steps=1) for name in "ab")
    assert first == pytest.approx(second, rel=1e-5)
