"""Small images in colours, and a recipe that learns them within seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import PLAIN

from vitrail.config.data import DataConfig
from vitrail.config.train import OptimConfig, TrainConfig


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def npz(tmp_path_factory) -> Path:
    """120 + 40 images of ten classes, each class a colour under noise."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 3))

    def part(count):
        y = np.arange(count) % 10
        noise = rng.integers(-40, 40, (count, 32, 32, 3))
        return (colours[y][:, None, None] + noise).clip(0, 255).astype(np.uint8), y

    x_train, y_train = part(120)
    x_test, y_test = part(40)
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def recipe(npz, tmp_path):
    def make(output="run", **changes) -> TrainConfig:
        values = {
            "model": "test_vit",
            "data": DataConfig("cifar10", root=str(npz)),
            "augment": PLAIN,
            "optim": OptimConfig(warmup_epochs=1),
            "batch_size": 24,
            "epochs": 2,
            "device": "cpu",
            "output": str(tmp_path / output),
        }
        return TrainConfig(**{**values, **changes})

    return make
