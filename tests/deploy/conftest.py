"""A short run on the digits, in every format."""

from pathlib import Path

import numpy as np
import pytest
from export_helpers import SUFFIX, axes_of
from PIL import Image

from vitrail.cli import main

TINY = ["--model", "mat_1", "--model_options", '{"depths": [1, 1, 1, 1]}', "--device", "cpu"]


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A short run on the digits."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert main(["train", *TINY, "--epochs", "1", "--max_steps", "20", "--output", str(folder)]) == 0
    return folder


class Files(dict):
    """The run in every format, each exported when a test first asks for it: several processes share the tests."""

    def __init__(self, run: Path, folder: Path):
        super().__init__()
        self.run, self.folder = run, folder

    def __missing__(self, name: str) -> Path:
        self[name] = path = self.folder / name / f"digits{SUFFIX[name]}"
        argv = ["export", str(self.run), "--format", name, "--output", str(path), "--dynamic", axes_of(name)]
        assert main(argv) == 0
        return path


@pytest.fixture(scope="session")
def files(run, tmp_path_factory) -> Files:
    """The run in every format."""
    return Files(run, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def embedded(run, tmp_path_factory) -> Path:
    """The run in ONNX with its preprocessing inside, for a fixed batch of 2."""
    path = tmp_path_factory.mktemp("embedded") / "digits.onnx"
    argv = ["export", str(run), "--format", "onnx", "--output", str(path), "--embed_preprocessing"]
    assert main([*argv, "--dynamic", "none", "--batch_size", "2"]) == 0
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder
